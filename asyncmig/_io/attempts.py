"""The attempts of one call: how many there were, and when there may be another."""

from collections.abc import Mapping
from typing import final

from asyncmig._core.endpoint import Endpoint
from asyncmig._core.retry import Doubt, Next, RetryPolicy, after_failure
from asyncmig._io.failures import Failures, current_step
from asyncmig._io.retry_queue import RetryQueue
from asyncmig.errors import AsyncmigError, UnknownOutcome
from asyncmig.events import Events

__all__ = ["Attempts", "RetryableFailure"]


class RetryableFailure(Exception):
    """An attempt failed in a way that a repeat may mend."""

    def __init__(
        self,
        error: AsyncmigError,
        doubt: Doubt = Doubt.MAYBE,
        *,
        retry_after: float = 0.0,
        timed_out: bool = False,
    ) -> None:
        super().__init__(error)
        self.error: AsyncmigError = error
        self.doubt: Doubt = doubt
        self.retry_after: float = retry_after
        self.timed_out: bool = timed_out


@final
class Attempts:
    """The attempts of one call, or of one compound step: counts them, waits between them, ends them."""

    __slots__ = (
        "_endpoint",
        "_failures",
        "_ids",
        "_is_own",
        "_outage",
        "_policy",
        "_queued",
        "_seen",
        "_sent",
        "attempt",
        "doubts",
    )

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        outage: RetryQueue,
        policy: RetryPolicy,
        events: Events,
        ids: Mapping[str, str],
        sent: str = "",
    ) -> None:
        self._endpoint, self._outage, self._policy, self._sent = endpoint, outage, policy, sent
        step = current_step()
        self._ids, self._failures = ids, step or Failures(events, most=policy.attempts)
        self._is_own = step is None
        self._queued, self._seen = False, 0
        self.attempt: int = 1
        self.doubts: int = 0

    @property
    def is_last(self) -> bool:
        """Whether no attempt follows the present one."""
        return self.attempt >= self._policy.attempts

    async def failed(self, failure: RetryableFailure) -> None:
        """Wait until the next attempt may start; or raise what the call comes to."""
        error = failure.error
        self.doubts += failure.doubt is Doubt.MAYBE
        worst = Doubt.MAYBE if self.doubts else failure.doubt
        what = after_failure(self._endpoint.repeat, worst, self.attempt, self._policy)
        if what is Next.UNKNOWN:
            raise self.unknown(str(error)) from error
        if what is Next.GIVE_UP:
            raise error
        await self._failures.failed(
            error, endpoint=self._endpoint.key, ids=self._ids, limited=not self._queued
        )
        seen = self._outage.successes
        # In the line of an outage an attempt is spent only if the server answered somebody else since:
        # then the fault is this call's own, otherwise it waits for the server, not for luck.
        self.attempt += not self._queued or seen > self._seen
        self._seen = seen
        self._queued = await self._outage.wait(
            self.attempt - 1,
            retry_after=failure.retry_after,
            timed_out=failure.timed_out,
            queued=self._queued,
        )

    async def succeeded(self) -> None:
        """Note that the last attempt went well; a step that goes on beyond it says so itself."""
        if self._is_own:
            await self._failures.succeeded()

    def unknown(self, reason: str) -> UnknownOutcome:
        """Return the error for an outcome that nobody knows."""
        endpoint = self._endpoint
        return UnknownOutcome(endpoint.method, endpoint.template, reason, self._sent, endpoint.advice)
