"""The line in which calls wait for a server that is away: one for the whole session."""

import asyncio
from collections import deque
from random import Random
from typing import final

from asyncmig._core.retry import RetryPolicy, RetryQuota, backoff

__all__ = ["RetryQueue"]


@final
class RetryQueue:
    """Back-off paid from the session's quota; when that is spent, a line with one probe for all."""

    __slots__ = ("_line", "_policy", "_quota", "_rng", "_timer", "successes")

    def __init__(self, policy: RetryPolicy, rng: Random) -> None:
        self._policy = policy
        self._quota = RetryQuota(ceiling=policy.ceiling)
        self._rng = rng
        self._line: deque[asyncio.Future[None]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self.successes: int = 0

    async def wait(self, attempt: int, *, retry_after: float, timed_out: bool, queued: bool) -> bool:
        """Wait until attempt `attempt + 1` may start; return whether that was in the line.

        `queued`: the failed attempt was itself let go from the line, so it stands there again.
        """
        if not queued and self._quota.take(timed_out=timed_out):
            await asyncio.sleep(max(retry_after, backoff(self._policy, attempt, self._rng)))
            return False
        if retry_after > 0:
            await asyncio.sleep(retry_after)
        waiter = asyncio.get_running_loop().create_future()
        self._line.append(waiter)
        self._arm()
        try:
            await waiter
        except BaseException:
            if not waiter.cancelled():
                self._let_go(1)  # its turn came in the moment of its cancellation: the next one takes it
            raise
        return True

    def succeeded(self) -> None:
        """The server answered: the line moves, two for each answer."""
        self.successes += 1
        self._quota.succeeded()
        if self._line:
            self._let_go(2)

    def _let_go(self, count: int) -> None:
        while count and self._line:
            waiter = self._line.popleft()
            if not waiter.done():
                waiter.set_result(None)
                count -= 1
        if not self._line and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self) -> None:
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._quota.next_probe(), self._probe)

    def _probe(self) -> None:
        self._timer = None
        self._let_go(1)
        if self._line:
            self._arm()
