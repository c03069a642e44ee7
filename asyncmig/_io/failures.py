"""Reports failed attempts that will be repeated: selects those that become events, and adds the customer.

Every retry loop reports its failures to a `Failures`. A task enters an `Owner` to set its customer, and a
`StepScope` while it repeats a step. Retry loops inside the step report to the step's `Failures`, so that the attempts
of the whole step are counted together.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar, Token
from dataclasses import dataclass, field
from typing import final

from asyncmig._core.retry import ReportThrottle
from asyncmig.errors import ApiError, JournalError, NoAnswer
from asyncmig.events import AttemptFailed, Events, Recovered

__all__ = ["Failures", "Owner", "StepScope", "current_step", "owner"]


@final
@dataclass(slots=True)
class Owner:
    """The customer for whom the current task sends requests, inside a `with` block. Is entered once."""

    external_id: str
    keep: Callable[[AttemptFailed | Recovered], Awaitable[None]] | None = None
    """Writes reported events to the journal; None without a journal, and after the work for the customer has
    ended."""
    _token: "Token[Owner | None] | None" = field(default=None, init=False, repr=False)

    def __enter__(self) -> None:
        self._token = _owner.set(self)

    def __exit__(self, *exc_info: object) -> None:
        assert self._token is not None
        _owner.reset(self._token)
        self.keep = None  # a poll for the customer may still be in progress, and must not write


_owner: ContextVar[Owner | None] = ContextVar("asyncmig owner", default=None)
_step: ContextVar["Failures | None"] = ContextVar("asyncmig step", default=None)


def current_step() -> "Failures | None":
    """Return the failures of the step that the current task repeats; None outside of a `StepScope`."""
    return _step.get()


def owner() -> Owner | None:
    """Return the customer for whom the current task sends; None outside of the block of an `Owner`."""
    return _owner.get()


@final
class StepScope:
    """Makes retry loops inside its `with` block report to the given `Failures`, as attempts of one step."""

    __slots__ = ("_failures", "_token")

    def __init__(self, failures: "Failures") -> None:
        self._failures = failures

    def __enter__(self) -> None:
        self._token = _step.set(self._failures)

    def __exit__(self, *exc_info: object) -> None:
        _step.reset(self._token)


@final
class Failures:
    """The failed attempts of one step. Reports the first one, and further ones at intervals that double."""

    __slots__ = ("_events", "_last", "_most", "_throttle", "_until", "owner")

    def __init__(
        self,
        events: Events,
        *,
        most: int | None = None,
        until: float | None = None,
        owner: Owner | None = None,
    ) -> None:
        """`most`: the maximum number of attempts. `until`: when the repeats end. None: no limit."""
        self._events, self._most, self._until = events, most, until
        self.owner: Owner | None = owner or _owner.get()
        self._throttle = ReportThrottle()
        self._last: AttemptFailed | None = None

    async def failed(
        self, error: Exception, *, endpoint: str, ids: Mapping[str, str], limited: bool = True
    ) -> None:
        """Count a failed attempt that will be repeated, and report it if a report is due.

        `limited`: False while the server is unavailable, because then `most` and `until` do not apply.
        """
        now = asyncio.get_running_loop().time()
        if not self._throttle.failed(now):
            return
        self._last = AttemptFailed(
            at=now,
            external_id=self.owner.external_id if self.owner else None,
            endpoint=f"{error.method} {error.endpoint}"
            if isinstance(error, ApiError | NoAnswer)
            else endpoint,
            ids=ids,
            attempt=self._throttle.count,
            attempts=self._most if limited else None,
            until=self._until if limited else None,
            status=error.status if isinstance(error, ApiError) else None,
            error=_reason(error),
        )
        await self._report(self._last)

    async def succeeded(self) -> None:
        """Report that the step has succeeded, if a failure was reported."""
        last, self._last = self._last, None
        count, self._throttle = self._throttle.count, ReportThrottle()
        if last is not None:
            now = asyncio.get_running_loop().time()
            await self._report(
                Recovered(
                    at=now,
                    external_id=last.external_id,
                    endpoint=last.endpoint,
                    ids=last.ids,
                    attempts=count + 1,
                    seconds=now - last.at,
                )
            )

    async def _report(self, event: AttemptFailed | Recovered) -> None:
        self._events.emit(event)
        if self.owner is not None and self.owner.keep is not None:
            await self.owner.keep(event)


def _reason(error: Exception) -> str:
    match error:
        case ApiError():
            return error.text or "(empty body)"
        case NoAnswer():
            return f"no answer ({error.reason})"
        case JournalError():
            return error.reason
        case _:
            return str(error)
