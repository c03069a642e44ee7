"""The order in which the customers of a fleet send their first requests."""

import asyncio
from typing import final

import anyio

__all__ = ["Turn"]

_LONGEST_READ = 60.0
"""Seconds that a customer waits for others to read their files: reads of a network drive may hang."""


@final
class Turn:
    """The place of a customer among those that begin together: their first requests are sent in this order.

    Their files are read in threads, which takes longest for the largest. Without an order, small customers would
    spend the limit meanwhile.
    """

    __slots__ = ("_before", "_is_over")

    def __init__(self, before: "Turn | None" = None) -> None:
        self._before, self._is_over = before, asyncio.Event()

    async def come(self) -> None:
        """Wait until each customer before this one had its turn or has ended, at most `_LONGEST_READ` seconds."""
        with anyio.move_on_after(_LONGEST_READ):
            while self._before is not None:
                await self._before._is_over.wait()
                self._before = self._before._before  # one that ended without a turn did not wait
        self._before = None
        self.end()

    def end(self) -> None:
        """Let no other customer wait for this one."""
        self._is_over.set()
