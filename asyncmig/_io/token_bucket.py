"""A token bucket that imitates the server's, for a server that accepts only small bursts."""

import asyncio
from collections.abc import Callable
from typing import final

from aiolimiter import AsyncLimiter

from asyncmig._io.event_loop import start_task

__all__ = ["TokenBucket"]

_TOKEN = 1.0 - 1e-6
"""The part of a token that suffices: rounding and timers that fire early must not cost another sleep."""


@final
class TokenBucket:
    """Fetches one token at a time: at most `burst` tokens at once, and `slots` in a window of `window` seconds.

    `on_token` is called whenever a token was fetched.
    """

    __slots__ = ("_bucket", "_on_token", "_shape", "_task", "_window", "has_token")

    def __init__(self, window: float, on_token: Callable[[], None]) -> None:
        self._window, self._on_token = window, on_token
        self._bucket: AsyncLimiter | None = None
        self._shape = (0, 0)
        """`burst` and `slots` of the bucket."""
        self._task: asyncio.Task[None] | None = None
        self.has_token: bool = False
        """Whether a token was fetched and not used yet. The user of the token sets this to False."""

    @property
    def is_fetching(self) -> bool:
        """Whether a task waits for a token. At most one, because the bucket would order several by amount."""
        return self._task is not None

    def fetch(self, burst: int, slots: int) -> None:
        """Start a task that waits for a token. No task may be running."""
        self._task = start_task(self._fetch(burst, slots), name="asyncmig gate")

    def stop(self) -> None:
        """Cancel the task, if there is one."""
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def _fetch(self, burst: int, slots: int) -> None:
        bucket = self._bucket
        if bucket is None or self._shape != (burst, slots):
            bucket = AsyncLimiter(burst, burst * self._window / slots)
            await bucket.acquire(burst)  # the server's bucket is empty after the 429 that showed its size
            self._bucket, self._shape = bucket, (burst, slots)
        # Not `acquire` alone: its timers may fire early, and then it would spin on a clock that stands still.
        while not bucket.has_capacity(_TOKEN):  # noqa: ASYNC110
            await asyncio.sleep(self._window / slots / 4)
        await bucket.acquire(_TOKEN)
        self.has_token, self._task = True, None
        self._on_token()
