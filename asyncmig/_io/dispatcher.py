"""Grants the slots of one limiter to the requests that wait for them.

`turn`, a function without an await, makes every decision. It runs when a request begins to wait, when a response
arrives, when the timer fires, and when the token bucket has a token. It grants every slot that the limiter allows,
and sets the timer for the next one. While no request waits, there is neither a timer nor a task.
"""

import asyncio
import copy
from collections.abc import Callable, Iterable, Iterator
from operator import itemgetter
from random import Random
from typing import TYPE_CHECKING, Protocol

from asyncmig._core.endpoint import Lane
from asyncmig._core.limiter import Limiter
from asyncmig._core.limits import RateHeaders
from asyncmig._io.event_loop import running_loop
from asyncmig._io.token_bucket import TokenBucket
from asyncmig._io.waiters import Head, Waiters
from asyncmig.errors import AsyncmigError
from asyncmig.events import BudgetLearnt, Events, Held

if TYPE_CHECKING:
    from asyncmig._io.budget_set import BudgetSet

__all__ = ["TICK", "Dispatcher", "DispatcherFactory"]

TICK = 1e-6
"""Seconds by which an event loop may fire a timer early. A timer for such a short rest might be early again."""


class Dispatcher:
    """Grants the slots of one limiter to the requests that wait for them."""

    __slots__ = (
        "_budget",
        "_closed",
        "_events",
        "_held_for",
        "_is_reserving",
        "_loop",
        "_names",
        "_recent",
        "_reported",
        "_sets",
        "_timer",
        "_tokens",
        "granted",
        "limiter",
        "on_held",
        "waiters",
        "window",
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
        """`recent`: the ages in seconds of the answers to an earlier process. `budget`: the budget's name in
        events."""
        self.limiter: Limiter = limiter
        self.waiters: Waiters = Waiters()
        self.granted: int = 0
        self.window: float = window
        self._budget, self._events = budget, events or Events()
        self.on_held: Callable[[float], None] | None = None
        """Called with the seconds of each hold."""
        self._reported = (limiter.slots, limiter.burst)
        """W and B, as the last event reported them."""
        self._recent, self._held_for = tuple(recent), 0.0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._names: Random | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._tokens = TokenBucket(window, self.turn)
        self._closed: AsyncmigError | None = None
        self._sets: list[BudgetSet] = []
        """The sets that contain this budget. Their waiters compete for its slots."""
        self._is_reserving = False
        """Whether the timer is set for a waiter of a set that goes first."""

    def join(self, queue: "BudgetSet") -> None:
        """Also grant slots to the waiters of a set of budgets."""
        self._sets.append(queue)

    def now(self) -> float:
        """Return the loop's time. The first call also takes the slots of an earlier process."""
        if self._loop is None:
            self._loop = running_loop("Gate")
            self.limiter.resume(self._recent, self._loop.time())
            self.limiter.hold_until(self._loop.time() + self._held_for)
        return self._loop.time()

    # The state of the budget

    def slowest(self) -> "Dispatcher":
        """Return the dispatcher of the only budget; see `BudgetSet.slowest`."""
        return self

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
        """The end of the present or last hold."""
        return self.limiter.held_until

    @property
    def limit(self) -> int:
        """The configured limit."""
        return self.limiter.limit

    def used(self) -> int:
        """Return the number of taken slots."""
        return self.limiter.used(self.now())

    def wait_estimate(self, lane: Lane) -> float:
        """Return the approximate seconds that a request of this lane would wait now."""
        ahead = sum(waiters.ahead_of(lane) for waiters in self._queues())
        return self.limiter.wait_for(ahead, self.now())

    def longest_wait(self, lane: Lane) -> tuple[str, float]:
        """Return the budget's name, and the approximate seconds that a request of this lane would wait now."""
        return self._budget, self.wait_estimate(lane)

    def waiting(self, lane: Lane) -> int:
        """Return the number of waiters of a lane, including those that also wait for other budgets."""
        return sum(waiters.waiting[lane] for waiters in self._queues())

    def _queues(self) -> Iterator[Waiters]:
        yield self.waiters
        for each in self._sets:
            yield each.waiters

    def is_wanted(self) -> bool:
        """Return whether any request waits for a slot, also with other budgets."""
        return self.waiters.count > 0 or (bool(self._sets) and any(each.waiters.count for each in self._sets))

    def resume(self, recent: Iterable[float], held_for: float) -> None:
        """Take the slots of an earlier process, and send nothing for `held_for` seconds.

        `recent`: the ages in seconds of its answers.
        """
        if self._loop is None:
            self._recent, self._held_for = (*self._recent, *recent), max(held_for, self._held_for)
            return
        now = self.now()
        self.limiter.resume(recent, now)
        self.limiter.hold_until(now + held_for)

    def recent(self) -> list[float]:
        """Return the ages in seconds of the answers of the last window."""
        return self.limiter.recent(self.now())

    def resize(self, limit: int) -> None:
        """Use another limit from now on."""
        self.limiter.resize(limit)
        self.turn()

    # Entering

    def enter_now(self) -> float | None:
        """Take a slot if one is free and no request waits. Return the time, or None if the request must wait.

        Raises the error given to `close`, and `UsageError` on another event loop than before.
        """
        if self._closed is not None:
            raise copy.copy(self._closed)
        loop, limiter = running_loop("Gate", self._loop), self.limiter
        if self.waiters.count or self._is_reserving or limiter.burst < limiter.slots:
            return None
        now = self.now() if self._loop is None else loop.time()
        at = limiter.next_at(now)
        return None if at is None or at > now else self.take(now)

    def check_open(self) -> None:
        """Raise the error given to `close`, and `UsageError` on another event loop than before."""
        if self._closed is not None:
            raise copy.copy(self._closed)
        running_loop("Gate", self._loop)

    async def wait(
        self, lane: Lane, rank: float, ticket: int, order: int = 0, run: str | None = None
    ) -> float:
        """Wait for a slot, take it, and return the time of the grant. A single budget has no run slots."""
        self._loop = asyncio.get_running_loop()
        waiter = self.waiters.enqueue(lane, rank, ticket, order)
        if self._timer is None or self._is_reserving:
            self.turn()
        try:
            return await waiter
        except BaseException:
            if waiter.cancel() or waiter.cancelled():
                self.waiters.cancelled(lane)
                if not self.is_wanted():
                    self._stop_timers()
            elif waiter.exception() is None:  # granted and cancelled in the same turn of the loop
                self.unsent(waiter.result())
            raise

    def name_of(self, sent_at: float) -> str:
        """Return the name of the slot taken at `sent_at`. It is unique among the slots of all processes."""
        if self._names is None:
            self._names = Random()  # seeded by the system; not earlier, because a fork would copy it
        return f"{self._names.getrandbits(128):032x}"

    # Leaving

    def accepted(self, sent_at: float, headers: RateHeaders | None = None) -> None:
        """Report an answer other than a 429. `headers`: its headers, if they concern this budget."""
        limiter, now = self.limiter, self.now()
        limiter.accepted(now, sent_at=sent_at)
        if headers is not None:
            limiter.apply_headers(headers, now)
        if (limiter.slots, limiter.burst) != self._reported:
            self._emit_learnt()
        if self._timer is None:
            self._turn_after_answer()

    def rejected(self, sent_at: float, retry_after: float | None, headers: RateHeaders | None = None) -> None:
        """Report a 429. `headers`: its headers, if they concern this budget."""
        held = self.held_until
        self.limiter.rejected(self.now(), sent_at=sent_at, retry_after=retry_after)
        if headers is not None:
            self.limiter.apply_headers(headers, self.now())
        if self.held_until > held:
            self._emit_held()
        self._turn_after_answer()

    def lost(self, sent_at: float) -> None:
        """Report that no answer will come."""
        self.limiter.lost(self.now(), sent_at=sent_at)
        self._turn_after_answer()

    def unsent(self, sent_at: float) -> None:
        """Report that the request was not sent: its slot is free."""
        self.limiter.unsent(self.now(), sent_at=sent_at)
        self.turn()

    def _turn_after_answer(self) -> None:
        """After an answer, run a turn unless a timer is set: an answer frees no slot before the timer fires."""
        if self._timer is None and self.is_wanted():
            self.turn()

    # Events

    def _emit_held(self) -> None:
        now, until = self.now(), self.held_until
        if self.on_held is not None:
            self.on_held(until - now)
        self._reported = slots, burst = (self.slots, self.burst)
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

    def _emit_learnt(self) -> None:
        slots, burst = estimate = (self.slots, self.burst)
        if estimate != self._reported:
            self._reported = estimate
            self._events.emit(BudgetLearnt(at=self.now(), budget=self._budget, slots=slots, burst=burst))

    # Turns

    def turn(self) -> None:
        """Grant every slot that may be granted now; then set the timer, or fetch a token, for the next one."""
        self._disarm()
        while self._loop is not None and self.is_wanted() and not self._tokens.is_fetching:
            now = self.now()
            at = self.limiter.next_at(now)
            if at is None:
                return  # the next answer starts a turn
            if at - now > TICK:
                self._wake_at(at)
                return
            if not self._tokens.has_token and self.limiter.burst < self.limiter.slots:
                self._tokens.fetch(self.limiter.burst, self.limiter.slots)
                return
            if self._sets:
                if not self._grant_first(max(now, at)):
                    return
                continue
            if (waiter := self.waiters.dequeue(self.granted)) is None:
                return
            waiter.set_result(self.take(max(now, at)))

    def _grant_first(self, now: float) -> bool:
        """Grant the slot to the first waiter whose other budgets, if it needs any, can also grant.

        A waiter whose other budgets can grant soon keeps the slot until then. Return whether the slot was granted.
        """
        heads: list[tuple[Head, BudgetSet | None]] = [
            (head[0], each) for each in self._sets if (head := each.waiters.head(self.granted))
        ]
        if own := self.waiters.head(self.granted):
            heads.append((own[0], None))
        for _, each in sorted(heads, key=itemgetter(0)):
            if each is None:
                waiter = self.waiters.dequeue(self.granted)
                assert waiter is not None
                waiter.set_result(self.take(now))
                return True
            at = each.next_at(now, self.granted)
            if at is not None and at - now <= TICK:
                each.grant(max(now, at), self.granted, by=self)
                return True
            if at is not None and at - now <= self.window / self.slots:
                self._wake_at(at)
                self._is_reserving = True
                return False
        return False

    def has_before(self, queue: "BudgetSet", place: Head, now: float) -> bool:
        """Return whether a waiter of another queue goes before `place`, and can be granted now."""
        if (own := self.waiters.head(self.granted)) and own[0] < place:
            return True
        for each in self._sets:
            if each is not queue and (head := each.waiters.head(self.granted)) and head[0] < place:
                at = each.next_at(now, self.granted)
                if at is not None and at - now <= TICK:
                    return True
        return False

    def _wake_at(self, at: float) -> None:
        assert self._loop is not None
        self._timer = self._loop.call_at(at, self.turn)

    def slot_taken(self) -> None:
        """Set the timer for the next slot: another budget has granted a slot of this one to a waiter of a set."""
        if self._timer is None and not self._tokens.is_fetching and self.is_wanted():
            at = self.next_at(now := self.now())
            if at is not None:
                self._wake_at(max(at, now))

    def next_at(self, now: float) -> float | None:
        """Return the earliest time of a grant to a waiter of a set; None if that depends on the next answer."""
        limiter, tokens = self.limiter, self._tokens
        at = limiter.next_at(now)
        if at is None or at - now > TICK or tokens.has_token or limiter.burst >= limiter.slots:
            return at
        if not tokens.is_fetching:
            tokens.fetch(limiter.burst, limiter.slots)
        return None

    def take(self, now: float, name: str = "") -> float:
        """Take a slot, at a time that `next_at` returned; return the time of the grant.

        `name`: the slot's name in a shared store.
        """
        self._tokens.has_token = False
        self.limiter.take(now)
        self.granted += 1
        return now

    def _disarm(self) -> None:
        self._is_reserving = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _stop_timers(self) -> None:
        """Stop the timer and the task, because no request waits."""
        self._disarm()
        self._tokens.stop()

    def close(self, error: AsyncmigError) -> None:
        """End every wait, present and future, with a copy of `error`."""
        self._closed = error
        self._stop_timers()
        self.waiters.end(error)

    async def aclose(self) -> None:
        """Wait until no task runs. All requests must have been answered."""


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
