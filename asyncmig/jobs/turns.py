"""The order in which the customers of a fleet send their first requests."""

import asyncio
from functools import partial
from typing import final

__all__ = ["Turns"]

_LONGEST_READ = 60.0
"""Seconds for which a customer waits while others read their files, because reads of a network drive may hang."""


@final
class Turns:
    """The order of customers that begin together: their first requests are sent in this order.

    Their files are read in threads, which takes longest for the largest. Without an order, small customers would
    spend the limit meanwhile.
    """

    __slots__ = ("_first", "_over", "_waiting")

    def __init__(self) -> None:
        self._first = 0
        """All customers before this place had their turn, or have ended without one."""
        self._over = bytearray()
        self._waiting: dict[int, asyncio.Future[None]] = {}

    def place(self) -> int:
        """Return a place behind all earlier ones."""
        self._over.append(False)
        return len(self._over) - 1

    async def come(self, place: int) -> None:
        """Wait until each customer before this one had its turn or has ended, at most `_LONGEST_READ` seconds."""
        if self._first < place:
            loop = asyncio.get_running_loop()
            waiter = self._waiting[place] = loop.create_future()
            timer = loop.call_later(_LONGEST_READ, partial(self._give_up, place))
            try:
                await waiter
            finally:
                timer.cancel()
                self._waiting.pop(place, None)
        self.end(place)

    def end(self, place: int) -> None:
        """Let no customer wait for the one with this place any more."""
        self._over[place] = True
        self._wake(place)
        while self._first < len(self._over) and self._over[self._first]:
            self._first += 1
        self._wake(self._first)

    def _give_up(self, place: int) -> None:
        """Let this customer, and those after it, wait for no earlier customer any more."""
        self._first = max(self._first, place)
        self._wake(place)

    def _wake(self, place: int) -> None:
        waiter = self._waiting.pop(place, None)
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
