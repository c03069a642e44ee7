"""Who waits before a budget, in the order in which they will go."""

import asyncio
import copy
import heapq
from typing import final

from asyncmig._core.endpoint import Lane

__all__ = ["EVERY", "Waiters"]

EVERY = 20
"""Every 20th grant goes to a waiting poll, so that polls never starve."""
_MANY = 64

_Entry = tuple[float, int, asyncio.Future[float]]


@final
class Waiters:
    """A heap for each lane, by rank and ticket; who gives up leaves a dead entry, but never too many of them."""

    __slots__ = ("_heaps", "count", "waiting")

    def __init__(self) -> None:
        self._heaps: tuple[list[_Entry], ...] = tuple([] for _ in Lane)
        self.waiting: list[int] = [0 for _ in Lane]
        """How many, by lane."""
        self.count: int = 0

    def join(self, lane: Lane, rank: float, ticket: int) -> asyncio.Future[float]:
        """Stand in line; the future is given the time of the grant."""
        waiter: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._heaps[lane], (rank, ticket, waiter))
        self.waiting[lane] += 1
        self.count += 1
        return waiter

    def give_up(self, lane: Lane) -> None:
        """A waiter of this lane was cancelled in line."""
        self.waiting[lane] -= 1
        self.count -= 1
        heap = self._heaps[lane]
        if len(heap) > _MANY + 2 * self.waiting[lane]:
            heap[:] = [entry for entry in heap if not entry[2].done()]
            heapq.heapify(heap)

    def next(self, granted: int) -> asyncio.Future[float] | None:
        """Take out whose turn it is after `granted` grants. None: whoever is left was cancelled in this very turn."""
        if granted % EVERY == EVERY - 1 and (waiter := self._pop(Lane.POLL)):
            return waiter
        for lane in Lane:
            if waiter := self._pop(lane):
                return waiter
        return None

    def _pop(self, lane: Lane) -> asyncio.Future[float] | None:
        heap = self._heaps[lane]
        while heap:
            waiter = heapq.heappop(heap)[2]
            if not waiter.done():
                self.waiting[lane] -= 1
                self.count -= 1
                return waiter
        return None

    def ahead_of(self, lane: Lane) -> int:
        """Return how many go before one who joins this lane now."""
        return sum(self.waiting[: lane + 1])

    def end(self, error: Exception) -> None:
        """End every wait with a copy of `error`: one object would collect the tracebacks of all."""
        for lane in Lane:
            while waiter := self._pop(lane):
                waiter.set_exception(copy.copy(error))
