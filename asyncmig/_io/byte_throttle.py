"""A pace for bytes that everybody shares."""

import asyncio
from typing import final

from aiolimiter import AsyncLimiter

from asyncmig.errors import InvalidInput

__all__ = ["ByteThrottle"]

_SLICES = 8
"""Turns a second while one alone sends; with more of them they take turns."""
_EXACT = 1.0 - 1e-6
"""What an amount may lack: rounding should not cost another sleep."""


@final
class ByteThrottle:
    """At most `rate` bytes a second for all together, first come, first served."""

    __slots__ = ("_bucket", "_rate", "_turn", "slice")

    def __init__(self, rate: float) -> None:
        if not 1.0 <= rate < float("inf"):
            raise InvalidInput("upload_bytes_per_second", rate, "must be at least one byte a second")
        self._rate = rate
        self.slice: int = max(1, int(rate / _SLICES))
        """The most that `take` gives at once, in bytes."""
        burst = max(rate / 2, 1.0)
        self._bucket = AsyncLimiter(burst, burst / rate)
        self._turn = asyncio.Lock()

    async def take(self, amount: int) -> None:
        """Wait until `amount` bytes, at most a slice, may go."""
        async with self._turn:
            # The bucket's own wait serves small amounts first, and could spin on a clock that stands still.
            while not self._bucket.has_capacity(amount * _EXACT):  # noqa: ASYNC110
                await asyncio.sleep(amount / self._rate / 2)
            await self._bucket.acquire(amount * _EXACT)
