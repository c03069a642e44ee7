"""The requests that wait for a slot of one budget, or of one set of budgets, and which of them is next."""

import asyncio
import copy
import heapq
from functools import partial
from typing import final

from asyncmig._core.endpoint import Lane
from asyncmig._io.event_loop import gradually

__all__ = ["EVERY", "Head", "Waiters"]

EVERY = 20
"""Every 20th grant goes to a waiting poll, so that polls never starve."""
_LANES = tuple(Lane)
_POLL_FIRST = (Lane.POLL, *Lane)
_MOST_CANCELLED = 64
"""A heap is rebuilt when it has more entries of cancelled waiters than this and than twice its waiters."""

_Entry = tuple[int, float, int, asyncio.Future[float]]
"""Order, rank, ticket and the waiter."""
Head = tuple[int, int, float, int]
"""The place of the first waiter of a queue: lane, order, rank and ticket. The lowest of several queues goes first."""


@final
class Waiters:
    """The requests that wait: a heap for each lane, by order, rank and ticket.

    The entry of a cancelled waiter stays in its heap until it comes first or the heap is rebuilt.
    """

    __slots__ = ("_heaps", "count", "waiting")

    def __init__(self) -> None:
        self._heaps: tuple[list[_Entry], ...] = tuple([] for _ in Lane)
        self.waiting: list[int] = [0 for _ in Lane]
        """The number of waiters, by lane."""
        self.count: int = 0

    def enqueue(self, lane: Lane, rank: float, ticket: int, order: int = 0) -> asyncio.Future[float]:
        """Add a waiter; the result of the future is the time of its grant."""
        waiter: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._heaps[lane], (order, rank, ticket, waiter))
        self.waiting[lane] += 1
        self.count += 1
        return waiter

    def cancelled(self, lane: Lane) -> None:
        """Report that a waiter of this lane was cancelled while it waited."""
        self.waiting[lane] -= 1
        self.count -= 1
        heap = self._heaps[lane]
        if len(heap) > _MOST_CANCELLED + 2 * self.waiting[lane]:
            heap[:] = [entry for entry in heap if not entry[3].done()]
            heapq.heapify(heap)

    def dequeue(self, granted: int) -> asyncio.Future[float] | None:
        """Remove and return the next waiter after `granted` grants; None if all others are cancelled."""
        lane = self._next_lane(granted)
        if lane is None:
            return None
        self.waiting[lane] -= 1
        self.count -= 1
        return heapq.heappop(self._heaps[lane])[3]

    def head(self, granted: int) -> tuple[Head, asyncio.Future[float]] | None:
        """Return the waiter that `dequeue` would return, and its place; leave it in the queue."""
        lane = self._next_lane(granted)
        if lane is None:
            return None
        order, rank, ticket, waiter = self._heaps[lane][0]
        is_urgent = lane is Lane.POLL and granted % EVERY == EVERY - 1
        return (-1 if is_urgent else lane, order, rank, ticket), waiter

    def _next_lane(self, granted: int) -> Lane | None:
        """Return the lane whose first waiter is next, without cancelled waiters before it."""
        for lane in _POLL_FIRST if granted % EVERY == EVERY - 1 else _LANES:
            heap = self._heaps[lane]
            while heap and heap[0][3].done():
                heapq.heappop(heap)
            if heap:
                return lane
        return None

    def ahead_of(self, lane: Lane) -> int:
        """Return how many waiters go before one that joins this lane now."""
        return sum(self.waiting[: lane + 1])

    def end(self, error: Exception) -> None:
        """End every wait with `error`, a few in each turn of the loop."""
        left = [(lane, entry[3]) for lane in Lane for entry in self._heaps[lane]]
        for heap in self._heaps:
            heap.clear()
        if left:
            ends = (partial(self._end, lane, waiter, error) for lane, waiter in left)
            gradually(ends, left[0][1].get_loop())

    def _end(self, lane: Lane, waiter: asyncio.Future[float], error: Exception) -> None:
        if not waiter.done():  # if it was cancelled meanwhile, `cancelled` has counted it already
            self.waiting[lane] -= 1
            self.count -= 1
            waiter.set_exception(copy.copy(error))  # a shared one would collect the tracebacks of all waiters
