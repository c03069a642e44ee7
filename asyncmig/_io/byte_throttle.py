"""Limits the bytes per second of all uploads together."""

import asyncio
from typing import final

from aiolimiter import AsyncLimiter

from asyncmig.errors import InvalidInput

__all__ = ["ByteThrottle"]

_SLICES = 8
"""Slices per second. Several uploads take turns slice by slice."""
_EXACT = 1.0 - 1e-6
"""The part of an amount that suffices: rounding must not cost another sleep."""


@final
class ByteThrottle:
    """Lets at most `rate` bytes per second pass in total, first come, first served."""

    __slots__ = ("_bucket", "_rate", "_turn", "slice")

    def __init__(self, rate: float) -> None:
        if not 1.0 <= rate < float("inf"):
            raise InvalidInput("upload_bytes_per_second", rate, "must be at least one byte a second")
        self._rate = rate
        self.slice: int = max(1, int(rate / _SLICES))
        """The most bytes that one `take` may request."""
        burst = max(rate / 2, 1.0)
        self._bucket = AsyncLimiter(burst, burst / rate)
        self._turn = asyncio.Lock()

    async def take(self, amount: int) -> None:
        """Wait until `amount` bytes, at most one slice, may be sent."""
        async with self._turn:
            # The bucket's own wait prefers small amounts, and could spin on a clock that stands still.
            while not self._bucket.has_capacity(amount * _EXACT):  # noqa: ASYNC110
                await asyncio.sleep(amount / self._rate / 2)
            await self._bucket.acquire(amount * _EXACT)
