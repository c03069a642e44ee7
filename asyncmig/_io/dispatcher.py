"""Grants the slots of one limiter to the requests that wait: one timer, and a bucket if the server has a small one.

`turn`, a plain function, makes every decision. It runs when a request joins, when an answer comes and when the timer
fires: it grants what may be granted and sets the timer for the rest. A task exists only while it waits for the
bucket. While no request waits, there is neither a task nor a timer.
"""

import asyncio
import copy
import heapq
import uuid
from collections.abc import Iterable
from typing import Protocol, final

from aiolimiter import AsyncLimiter

from asyncmig._core.endpoint import Lane
from asyncmig._core.limiter import Limiter
from asyncmig._io.event_loop import running_loop, start_task
from asyncmig.errors import AsyncmigError
from asyncmig.events import BudgetLearnt, Events, Held

__all__ = ["EVERY", "TICK", "Dispatcher", "DispatcherFactory", "Waiters"]


EVERY = 20
"""Every 20th grant goes to a waiting poll, so that polls never starve."""
_MANY = 64

_Entry = tuple[float, int, asyncio.Future[float]]


@final
class Waiters:
    """The requests that wait: a heap for each lane, by rank and ticket.

    A cancelled waiter leaves a dead entry. A heap with too many dead entries is rebuilt.
    """

    __slots__ = ("_heaps", "count", "waiting")

    def __init__(self) -> None:
        self._heaps: tuple[list[_Entry], ...] = tuple([] for _ in Lane)
        self.waiting: list[int] = [0 for _ in Lane]
        """The number of waiters, by lane."""
        self.count: int = 0

    def enqueue(self, lane: Lane, rank: float, ticket: int) -> asyncio.Future[float]:
        """Add a waiter; the result of the future is the time of its grant."""
        waiter: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._heaps[lane], (rank, ticket, waiter))
        self.waiting[lane] += 1
        self.count += 1
        return waiter

    def cancelled(self, lane: Lane) -> None:
        """Report that a waiter of this lane was cancelled while it waited."""
        self.waiting[lane] -= 1
        self.count -= 1
        heap = self._heaps[lane]
        if len(heap) > _MANY + 2 * self.waiting[lane]:
            heap[:] = [entry for entry in heap if not entry[2].done()]
            heapq.heapify(heap)

    def dequeue(self, granted: int) -> asyncio.Future[float] | None:
        """Remove and return the next waiter after `granted` grants; None if all others are cancelled."""
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
        """Return how many waiters go before one that joins this lane now."""
        return sum(self.waiting[: lane + 1])

    def end(self, error: Exception) -> None:
        """End every wait with a copy of `error`; a shared object would collect the tracebacks of all waiters."""
        for lane in Lane:
            while waiter := self._pop(lane):
                waiter.set_exception(copy.copy(error))


TICK = 1e-6
"""Seconds by which an event loop may fire a timer early. Waiting again for such a rest could go on forever."""
_TOKEN = 1.0 - 1e-6
"""The part of a token that suffices: rounding and timers that fire early must not cost another sleep."""


class Dispatcher:
    """Grants the slots of one limiter to the requests that wait for them."""

    __slots__ = (
        "_believed",
        "_bucket",
        "_bucket_shape",
        "_budget",
        "_closed",
        "_events",
        "_fetching",
        "_has_token",
        "_loop",
        "_recent",
        "_timer",
        "_window",
        "granted",
        "limiter",
        "waiters",
    )

    def __init__(
        self,
        limiter: Limiter,
        *,
        window: float,
        recent: Iterable[float],
        budget: str = "",
        events: Events | None = None,
    ) -> None:
        """`recent`: ages in seconds of an earlier process's answers. `budget`: the budget's name in events."""
        self.limiter: Limiter = limiter
        self.waiters: Waiters = Waiters()
        self.granted: int = 0
        self._window = window
        self._budget, self._events = budget, events
        self._believed = (limiter.slots, limiter.burst)
        """W and B as the last event reported them."""
        self._recent = tuple(recent)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._bucket: AsyncLimiter | None = None
        self._bucket_shape = (0, 0)
        self._has_token = False
        self._fetching: asyncio.Task[None] | None = None
        self._closed: AsyncmigError | None = None

    def now(self) -> float:
        """Return the loop's time. The first call also takes the slots that an earlier process used."""
        if self._loop is None:
            self._loop = running_loop("Gate")
            self.limiter.resume(self._recent, self._loop.time())
        return self._loop.time()

    # The state of the budget

    @property
    def slots(self) -> int:
        """The present estimate of W."""
        return self.limiter.slots

    @property
    def burst(self) -> int:
        """The present estimate of B."""
        return self.limiter.burst

    @property
    def refused(self) -> int:
        """The number of 429s."""
        return self.limiter.refused

    @property
    def held_until(self) -> float:
        return self.limiter.held_until

    def used(self) -> int:
        """Return the number of taken slots."""
        return self.limiter.used(self.now())

    def wait_estimate(self, lane: Lane) -> float:
        """Return the approximate seconds that a request of this lane would wait now."""
        return self.limiter.wait_for(self.waiters.ahead_of(lane), self.now())

    def resize(self, limit: int) -> None:
        """Use another limit from now on."""
        self.limiter.resize(limit)
        self.turn()

    # Entering

    def enter_now(self) -> float | None:
        """Take a slot if one is free and no request waits. Return the time, or None if the request must wait.

        Raises the error given to `close`, and `UsageError` on another event loop than before.
        """
        self._check_open()
        limiter = self.limiter
        if self.waiters.count or limiter.burst < limiter.slots:
            return None
        now = self.now()
        at = limiter.next_at(now)
        return None if at is None or at > now else self._grant(now)

    def _check_open(self) -> None:
        if self._closed is not None:
            raise copy.copy(self._closed)
        running_loop("Gate", self._loop)

    async def wait(self, lane: Lane, rank: float, ticket: int) -> float:
        """Wait for a slot, take it, and return the time of the grant."""
        self._loop = asyncio.get_running_loop()
        waiter = self.waiters.enqueue(lane, rank, ticket)
        if self._timer is None:
            self.turn()
        try:
            return await waiter
        except BaseException:
            self._gave_up(waiter, lane)
            raise

    def _gave_up(self, waiter: asyncio.Future[float], lane: Lane) -> None:
        if waiter.cancel() or waiter.cancelled():
            self.waiters.cancelled(lane)
            if not self.waiters.count:
                self._stop_timers()
        elif waiter.exception() is None:  # cancelled in the loop iteration of its grant
            self.unsent(waiter.result())

    def name_of(self, sent_at: float) -> str:
        """Return a name for the slot taken at `sent_at`, unique among the slots of all processes."""
        return uuid.uuid4().hex

    # Leaving

    def accepted(self, sent_at: float) -> None:
        self.limiter.accepted(self.now(), sent_at=sent_at)
        self._tell_learnt()
        self._left()

    def rejected(self, sent_at: float, retry_after: float | None) -> None:
        held = self.held_until
        self.limiter.rejected(self.now(), sent_at=sent_at, retry_after=retry_after)
        if self.held_until > held:
            self._tell_held()
        self._left()

    def lost(self, sent_at: float) -> None:
        self.limiter.lost(self.now(), sent_at=sent_at)
        self._left()

    def unsent(self, sent_at: float) -> None:
        self.limiter.unsent(self.now(), sent_at=sent_at)
        self.turn()

    def _left(self) -> None:
        """After an answer: run a turn unless a timer is set, because an answer frees nothing sooner than the
        timer."""
        if self._timer is None and self.waiters.count:
            self.turn()

    # Events

    def _tell_held(self) -> None:
        if self._events is None:
            return
        self._believed = slots, burst = (self.slots, self.burst)
        now, until = self.now(), self.held_until
        self._events.emit(
            Held(
                at=now,
                budget=self._budget,
                until=until,
                seconds=max(0.0, until - now),
                slots=slots,
                burst=burst,
            )
        )

    def _tell_learnt(self) -> None:
        slots, burst = believed = (self.slots, self.burst)
        if self._events is not None and believed != self._believed:
            self._believed = believed
            self._events.emit(BudgetLearnt(at=self.now(), budget=self._budget, slots=slots, burst=burst))

    # Turns

    def turn(self) -> None:
        """Grant all that may be granted now, and set the timer or start the task for the rest."""
        self._disarm()
        while self._loop is not None and self.waiters.count and self._fetching is None:
            now = self.now()
            at = self.limiter.next_at(now)
            if at is None:
                return  # the next answer starts a turn
            if at - now > TICK:
                self._timer = self._loop.call_at(at, self.turn)
                return
            if not self._has_token and self.limiter.burst < self.limiter.slots:
                self._fetching = start_task(self._fetch(), name="asyncmig gate")
                return
            if (waiter := self.waiters.dequeue(self.granted)) is None:
                return
            self._has_token = False
            waiter.set_result(self._grant(max(now, at)))

    def _grant(self, now: float) -> float:
        self.limiter.take(now)
        self.granted += 1
        return now

    async def _fetch(self) -> None:
        """Wait for a token of the bucket. Only one task does so at a time, because the bucket would order by
        amount."""
        await self._take_token()
        self._has_token, self._fetching = True, None
        self.turn()

    async def _take_token(self) -> None:
        burst, slots = shape = (self.limiter.burst, self.limiter.slots)
        bucket = self._bucket
        if bucket is None or self._bucket_shape != shape:
            bucket = AsyncLimiter(burst, burst * self._window / slots)
            await bucket.acquire(burst)  # start empty, as the server's bucket is
            self._bucket, self._bucket_shape = bucket, shape
        # The bucket's own wait could spin on a clock that stands still, because its timers may fire a tick early.
        while not bucket.has_capacity(_TOKEN):  # noqa: ASYNC110
            await asyncio.sleep(self._window / slots / 4)
        await bucket.acquire(_TOKEN)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _stop_timers(self) -> None:
        """Stop the timer and the task; no request waits."""
        self._disarm()
        if self._fetching is not None:
            self._fetching.cancel()
            self._fetching = None

    def close(self, error: AsyncmigError) -> None:
        """End every wait, present and future, with a copy of `error`."""
        self._closed = error
        self._stop_timers()
        self.waiters.end(error)

    async def aclose(self) -> None:
        """Wait until nothing runs. All requests must have been answered."""


class DispatcherFactory(Protocol):
    """Creates the dispatcher of a gate; the class `Dispatcher` is one such factory."""

    def __call__(
        self,
        limiter: Limiter,
        *,
        window: float,
        recent: Iterable[float],
        budget: str = "",
        events: Events | None = None,
    ) -> Dispatcher:
        """Return a dispatcher for a new `limiter`; the arguments are those of `Dispatcher`."""
        ...
