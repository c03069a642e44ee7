"""The attempts of a request, or of a compound step. Only this module decides whether something is repeated.

Each `Attempts` makes at most `RetryPolicy.attempts` attempts (default 8). A compound step, such as an upload (request
a URL, send the bytes to it), has one `Attempts` for all its requests, so that the numbers are not multiplied. When
the session's retry quota is spent, calls wait in its `RetryQueue`. There, an attempt counts only if the server has
answered another call in the meantime.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from random import Random
from types import TracebackType
from typing import final

from asyncmig._core.endpoint import Endpoint
from asyncmig._core.retry import Doubt, Next, RetryPolicy, RetryQuota, after_failure, backoff
from asyncmig._io.failures import Failures, StepScope, current_step
from asyncmig.errors import AsyncmigError, UnknownOutcome
from asyncmig.events import Events

__all__ = ["Attempts", "RetryQueue", "RetryableFailure", "TimedAttempts"]


@final
class RetryQueue:
    """The waits before retries: a back-off, or one queue with single probes when the session's quota is spent."""

    __slots__ = ("_policy", "_quota", "_rng", "_timer", "_waiters", "successes")

    def __init__(self, policy: RetryPolicy, rng: Random) -> None:
        self._policy = policy
        self._quota = RetryQuota(ceiling=policy.ceiling)
        self._rng = rng
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self.successes: int = 0
        """The number of responses of the server so far."""

    async def wait(self, attempt: int, *, retry_after: float, timed_out: bool, queued: bool) -> bool:
        """Wait until attempt `attempt + 1` may start; return whether the call waited in the queue.

        `queued`: whether the call waited in the queue before the attempt that failed. Then it waits there again.
        """
        if not queued and self._quota.take(timed_out=timed_out):
            await asyncio.sleep(max(retry_after, backoff(self._policy, attempt, self._rng)))
            return False
        if retry_after > 0:
            await asyncio.sleep(retry_after)
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        self._arm()
        try:
            await waiter
        except BaseException:
            if not waiter.cancelled():
                self._release(1)  # released and cancelled in the same turn: release the next waiter
            raise
        return True

    def succeeded(self) -> None:
        """Report a response of the server. It releases two waiting calls."""
        self.successes += 1
        self._quota.succeeded()
        if self._waiters:
            self._release(2)

    def _release(self, count: int) -> None:
        while count and self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                count -= 1
        if not self._waiters and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self) -> None:
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._quota.next_probe(), self._probe)

    def _probe(self) -> None:
        self._timer = None
        self._release(1)
        if self._waiters:
            self._arm()


class RetryableFailure(Exception):
    """An attempt failed, and another attempt may succeed."""

    def __init__(
        self,
        error: AsyncmigError,
        doubt: Doubt = Doubt.MAYBE,
        *,
        retry_after: float = 0.0,
        timed_out: bool = False,
    ) -> None:
        """`retry_after`: the minimum number of seconds before the next attempt."""
        super().__init__(error)
        self.error: AsyncmigError = error
        self.doubt: Doubt = doubt
        self.retry_after: float = retry_after
        self.timed_out: bool = timed_out


def _never(_: AsyncmigError) -> bool:
    return False


@final
class Attempts:
    """Repeats a block until it succeeds, on the session's retry quota:

        attempts = caller.repeated(endpoint, ids, on=(NoAnswer, ServerError))
        while True:
            async with attempts:
                return await step()

    An attempt has failed if the block raises `RetryableFailure`, or an error of the kinds `on` for which `unless`
    returns False. Then the exit of the block suppresses the error, and waits until the next attempt may start. If no
    attempt is left, it raises the error, or `UnknownOutcome` if the server may have processed the request.
    """

    __slots__ = (
        "_endpoint",
        "_failures",
        "_ids",
        "_is_own",
        "_last_successes",
        "_loggable_body",
        "_on",
        "_policy",
        "_queue",
        "_queued",
        "_unless",
        "attempt",
        "doubts",
    )

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        queue: RetryQueue,
        policy: RetryPolicy,
        events: Events,
        ids: Mapping[str, str],
        loggable_body: str = "",
        on: tuple[type[AsyncmigError], ...] = (),
        unless: Callable[[AsyncmigError], bool] | None = None,
    ) -> None:
        self._endpoint, self._queue, self._policy = endpoint, queue, policy
        self._loggable_body, self._on, self._unless = loggable_body, on, unless or _never
        step = current_step()
        self._ids, self._failures = ids, step or Failures(events, most=policy.attempts)
        self._is_own = step is None
        self._queued, self._last_successes = False, 0
        self.attempt: int = 1
        """The number of the present attempt, from 1."""
        self.doubts: int = 0
        """The number of failed attempts that the server may have processed."""

    @property
    def most(self) -> int:
        """The maximum number of attempts."""
        return self._policy.attempts

    @property
    def is_last(self) -> bool:
        """Whether no attempt follows the present one."""
        return self.attempt >= self.most

    async def __aenter__(self) -> None:
        """Begin an attempt."""

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> bool:
        if exc is None:
            await self.succeeded()
            return False
        if isinstance(exc, RetryableFailure):
            failure = exc
        elif isinstance(exc, self._on) and not self._unless(exc):
            failure = RetryableFailure(exc)
        else:
            return False
        try:
            await self.failed(failure)
        except AsyncmigError as error:
            if error is exc:
                return False
            error.__context__ = None  # `RetryableFailure` is internal and would only repeat the error
            raise
        return True

    async def failed(self, failure: RetryableFailure) -> None:
        """Wait until the next attempt may start. If none is left, raise the error or `UnknownOutcome`."""
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
        successes = self._queue.successes
        # In the retry queue, an attempt counts only if the server has answered another call in the meantime: then the
        # failure concerns this call. Otherwise the server is unavailable, and waiting for it costs no attempt.
        self.attempt += not self._queued or successes > self._last_successes
        self._last_successes = successes
        self._queued = await self._queue.wait(
            self.attempt - 1,
            retry_after=failure.retry_after,
            timed_out=failure.timed_out,
            queued=self._queued,
        )

    async def succeeded(self) -> None:
        """Report that the last attempt succeeded, unless these attempts are part of a larger step."""
        if self._is_own:
            await self._failures.succeeded()

    def unknown(self, reason: str) -> UnknownOutcome:
        """Return the error for a request whose outcome is unknown."""
        endpoint = self._endpoint
        return UnknownOutcome(
            endpoint.method, endpoint.template, reason, self._loggable_body, endpoint.advice
        )


@final
class TimedAttempts:
    """Repeats a block for at most `seconds`, in the same way as `Attempts`, but without a pause of its own.

    The requests inside the block have their own attempts and pauses. Their failures are reported as failures of this
    step.
    """

    __slots__ = ("_endpoint", "_failures", "_on", "_step", "_unless", "_until")

    def __init__(
        self,
        events: Events,
        endpoint: Endpoint,
        *,
        seconds: float,
        on: tuple[type[AsyncmigError], ...],
        unless: Callable[[AsyncmigError], bool],
    ) -> None:
        """`endpoint`: names the step in events if an error has no endpoint."""
        self._until = asyncio.get_running_loop().time() + seconds
        self._endpoint, self._on, self._unless = endpoint, on, unless
        self._failures = Failures(events, until=self._until)
        self._step = StepScope(self._failures)

    async def __aenter__(self) -> None:
        self._step.__enter__()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> bool:
        self._step.__exit__()
        if exc is None:
            await self._failures.succeeded()
            return False
        is_over = asyncio.get_running_loop().time() >= self._until
        if not isinstance(exc, self._on) or is_over or self._unless(exc):
            return False
        await self._failures.failed(exc, endpoint=self._endpoint.key, ids={})
        return True
