"""Failed attempts that are repeated: which of them are told, and to whom.

Every loop that repeats something reports its failures to a `Failures`. A task says with `working_for` on whose behalf
it sends, and with `repeating` until when it repeats a step; loops inside of such a step report to it, so that a step
with several loops counts its attempts once.
"""

import asyncio
from collections.abc import Awaitable, Callable, Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import final

from asyncmig._core.retry import Occasions
from asyncmig.errors import ApiError, JournalError, NoAnswer
from asyncmig.events import AttemptFailed, Events, Recovered

__all__ = ["Failures", "Owner", "current_step", "owner", "repeating", "working_for"]


@final
@dataclass(slots=True)
class Owner:
    """A customer on whose behalf requests are sent."""

    external_id: str
    keep: Callable[[AttemptFailed | Recovered], Awaitable[None]] | None = None
    """Writes down what was told; None: nobody does, or no longer."""


_owner: ContextVar[Owner | None] = ContextVar("asyncmig owner", default=None)
_step: ContextVar["Failures | None"] = ContextVar("asyncmig step", default=None)


def current_step() -> "Failures | None":
    """Return the failures of the step that the current task repeats, if it said so."""
    return _step.get()


def owner() -> Owner | None:
    """Return on whose behalf the current task sends, if it said so."""
    return _owner.get()


@contextmanager
def working_for(customer: Owner) -> Generator[None]:
    """Send on behalf of a customer until the block ends."""
    token = _owner.set(customer)
    try:
        yield
    finally:
        _owner.reset(token)
        customer.keep = None  # a poll may still be under way


@contextmanager
def repeating(events: Events, *, until: float) -> "Generator[Failures]":
    """Repeat a step until the loop's time `until`: loops inside of the block report to what this yields."""
    failures = Failures(events, until=until)
    token = _step.set(failures)
    try:
        yield failures
    finally:
        _step.reset(token)


@final
class Failures:
    """The failed attempts of one step. Tells the first, and then some, at intervals that double."""

    __slots__ = ("_events", "_last", "_most", "_occasions", "_until", "owner")

    def __init__(
        self,
        events: Events,
        *,
        most: int | None = None,
        until: float | None = None,
        owner: Owner | None = None,
    ) -> None:
        """`most`: attempts after which the step ends; `until`: when it does; None: it does not."""
        self._events, self._most, self._until = events, most, until
        self.owner: Owner | None = owner or _owner.get()
        self._occasions = Occasions()
        self._last: AttemptFailed | None = None

    async def failed(
        self, error: Exception, *, endpoint: str, ids: Mapping[str, str], limited: bool = True
    ) -> None:
        """Count a failed attempt that is repeated, and tell of it if that is due.

        `limited`: False while the server is away for everybody, and the step waits until it is back.
        """
        now = asyncio.get_running_loop().time()
        if not self._occasions.failed(now):
            return
        self._last = AttemptFailed(
            at=now,
            external_id=self.owner.external_id if self.owner else None,
            endpoint=_endpoint_of(error) or endpoint,
            ids=ids,
            attempt=self._occasions.count,
            attempts=self._most if limited else None,
            until=self._until if limited else None,
            status=error.status if isinstance(error, ApiError) else None,
            error=_reason(error),
        )
        await self._tell(self._last)

    async def succeeded(self) -> None:
        """Tell that the step went well after all, if a failure of it was told."""
        last, self._last = self._last, None
        count, self._occasions = self._occasions.count, Occasions()
        if last is not None:
            now = asyncio.get_running_loop().time()
            await self._tell(
                Recovered(
                    at=now,
                    external_id=last.external_id,
                    endpoint=last.endpoint,
                    ids=last.ids,
                    attempts=count + 1,
                    seconds=now - last.at,
                )
            )

    async def _tell(self, event: AttemptFailed | Recovered) -> None:
        self._events.emit(event)
        if self.owner is not None and self.owner.keep is not None:
            await self.owner.keep(event)


def _endpoint_of(error: Exception) -> str | None:
    return f"{error.method} {error.endpoint}" if isinstance(error, ApiError | NoAnswer) else None


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
