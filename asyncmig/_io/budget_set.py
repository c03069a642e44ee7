"""Grants a slot of each of several budgets, and a run slot if the request starts a run: all of them in one turn, or
none.

A waiting request of a set holds nothing. It is in one queue, which the dispatchers of all its budgets share. When one
of them can grant a slot, and this request goes first, the request is granted if all others can grant a slot, too. If
not, the slot goes to the next request, with one exception: if this request can be granted within the mean interval
between two slots of that budget, the slot is kept for it. Otherwise requests that need only one budget could overtake
it forever.
"""

import asyncio
import os
from collections.abc import Callable, Iterable, Sequence
from operator import itemgetter

from asyncmig._core.endpoint import Lane
from asyncmig._core.limiter import SHORT_WINDOW
from asyncmig._core.limits import RateHeaders
from asyncmig._io.dispatcher import TICK, Dispatcher
from asyncmig._io.run_slots import RunSlots
from asyncmig._io.waiters import Waiters
from asyncmig.errors import AsyncmigError, UsageError
from asyncmig.events import Events, Held

__all__ = ["BudgetSet"]

_LONGEST_HOLD = 3600.0
"""Seconds. The server may count a request in a budget with a longer window than those of the set."""
_FIRST_PAUSE = 1.0
"""Seconds of the hold after a 429 without a header that explains it. Each further one doubles them."""


class BudgetSet:
    """The requests that charge the same budgets, and may start a run. A `Slot` uses it like a `Dispatcher`."""

    __slots__ = (
        "_dispatchers",
        "_events",
        "_held_until",
        "_name",
        "_pause",
        "_run_of",
        "_runs",
        "_sent",
        "on_held",
        "waiters",
    )

    def __init__(
        self,
        dispatchers: Sequence[Dispatcher],
        runs: RunSlots | None = None,
        *,
        name: str = "",
        events: Events | None = None,
    ) -> None:
        """`name`: the budget's name in events about a hold of these requests only."""
        self._name, self._events = name, events or Events()
        self.on_held: Callable[[float], None] | None = None
        self.waiters: Waiters = Waiters()
        self._dispatchers, self._runs = tuple(dispatchers), runs
        self._held_until = float("-inf")
        self._pause = _FIRST_PAUSE
        self._sent: dict[float, tuple[float, ...]] = {}
        """When each dispatcher granted its slot, by the time at which the first one did."""
        self._run_of: dict[asyncio.Future[float], tuple[str, Lane]] = {}
        """The run that each waiter would start, and the waiter's lane."""
        for each in self._dispatchers:
            each.join(self)
        if runs is not None:
            runs.join(self.turn)

    # Called by slots

    def now(self) -> float:
        return max(each.now() for each in self._dispatchers)

    def enter_now(self) -> float | None:
        """Return None, because all slots of a set are granted in a turn. Raises as `Dispatcher.enter_now` does."""
        for each in self._dispatchers:
            each.check_open()
        return None

    async def wait(
        self, lane: Lane, rank: float, ticket: int, order: int = 0, run: str | None = None
    ) -> float:
        """Wait for a slot of each budget, and for a run slot if `run` is given; return the time of the grant."""
        self.now()
        runs = self._runs if run is not None else None
        if run is not None and runs is not None and runs.holds(run):
            order = -1  # it needs no run slot, so it must not wait behind requests that do
        waiter = self.waiters.enqueue(lane, rank, ticket, order)
        if run is not None and runs is not None:
            self._run_of[waiter] = run, lane
            runs.begins_to_wait()
        self.turn()
        try:
            return await waiter
        except BaseException:
            if waiter.cancel() or waiter.cancelled():
                self.waiters.cancelled(lane)
                self.turn()  # a slot may be kept for this waiter
            elif waiter.exception() is None:  # cancelled in the loop iteration of its grant
                self.unsent(waiter.result())
                if run is not None:
                    self.run_refused(run)
            raise
        finally:
            self._run_of.pop(waiter, None)
            if runs is not None:
                runs.ends_waiting()

    def name_of(self, sent_at: float) -> str:
        return os.urandom(16).hex()

    def wait_estimate(self, lane: Lane) -> float:
        now = self.now()
        runs = 0.0 if self._runs is None else self._runs.wait_estimate(now)
        return max(self._held_until - now, runs, *(each.wait_estimate(lane) for each in self._dispatchers))

    def longest_wait(self, lane: Lane) -> tuple[str, float]:
        """Return what delays a request of this lane most, and the approximate seconds; infinity for a run slot."""
        if self._runs is not None and self._runs.are_taken:
            return "runs", float("inf")
        return max((each.longest_wait(lane) for each in self._dispatchers), key=itemgetter(1))

    # Called by the dispatchers

    def turn(self) -> None:
        """Let each dispatcher grant slots, and set its timer."""
        self._refuse_starts()
        for each in self._dispatchers:
            each.turn()

    def _refuse_starts(self) -> None:
        """End the waits of starts that must not wait for a run slot; see `RunSlots.gives_up`."""
        for waiter, (run, lane) in list(self._run_of.items()):
            if self._runs is not None and (error := self._runs.refusal(run)) and not waiter.done():
                waiter.set_exception(error)
                self.waiters.cancelled(lane)

    def next_at(self, now: float, granted: int) -> float | None:
        """Return the earliest time at which all budgets can grant; None if that depends on the next answer."""
        head = self.waiters.head(granted)
        if head is None:
            return None
        latest = max(now, self._held_until)
        for each in self._dispatchers:
            at = each.next_at(now)
            if at is None or each.has_before(self, head[0], now):
                return None
            latest = max(latest, at)
        if self._runs is not None and (start := self._run_of.get(head[1])):
            # Asked last, because a shared run slot is reserved only when all budgets can grant.
            at = self._runs.next_at(start[0], now, head[0][1]) if latest - now <= TICK else latest
            return None if at is None else max(latest, at)
        return latest

    @property
    def asks_at(self) -> float:
        """When the first waiter asks a shared store for its slots, unless other waiters go first."""
        return float("inf")  # there is no store

    def grant(self, at: float, granted: int, *, by: Dispatcher) -> None:
        """Grant to the first waiter, at a time that `next_at` returned."""
        waiter = self.waiters.dequeue(granted)
        assert waiter is not None
        self._grant_to(waiter, at, os.urandom(16).hex())
        for each in self._dispatchers:
            if each is not by:
                each.slot_taken()

    def _grant_to(self, waiter: asyncio.Future[float], at: float, slot: str) -> None:
        """Take a slot of each budget, with the same name, and the run slot."""
        start = self._run_of.pop(waiter, None)
        if self._runs is not None and start is not None:
            self._runs.take(start[0])
        sent = tuple(each.take(at, slot) for each in self._dispatchers)
        self._sent[sent[0]] = sent
        waiter.set_result(sent[0])

    # The results of requests

    def accepted(self, sent_at: float, headers: RateHeaders | None = None) -> None:
        self._pause = _FIRST_PAUSE
        charged = self._charged(headers)
        for each, at in self._taken(sent_at):
            each.accepted(at, headers if each is charged else None)

    def rejected(self, sent_at: float, retry_after: float | None, headers: RateHeaders | None = None) -> None:
        """Report a 429. It holds the budget that its headers concern, or only the requests of this set.

        If the headers concern no budget, the slowest budget counts the 429.
        """
        charged = self._charged(headers)
        if charged is None:
            self.slowest().limiter.refused += 1
            self._hold(retry_after)  # first, so that the next request does not take the slot
        for each, at in sorted(self._taken(sent_at), key=lambda taken: taken[0] is not charged):
            if each is charged:
                each.rejected(at, retry_after, headers)
            else:
                each.lost(at)  # the server may have counted the request here

    def lost(self, sent_at: float) -> None:
        for each, at in self._taken(sent_at):
            each.lost(at)

    def unsent(self, sent_at: float) -> None:
        for each, at in self._taken(sent_at):
            each.unsent(at)

    def run_started(self, run: str) -> None:
        """Report that the request started a run, or may have: the run slot stays taken."""
        if self._runs is not None:
            self._runs.started(run)

    def run_refused(self, run: str) -> None:
        """Report that the request started no run: its run slot is free."""
        if self._runs is not None:
            self._runs.refused(run)

    def too_many_runs(self, sent_at: float, run: str, retry_after: float | None, listed: int | None) -> None:
        """Report a 429 because of the runs in progress. `listed`: how many runs it lists; None without a list."""
        if self._runs is not None:
            self._runs.rejected(run, retry_after, listed)
        self.lost(sent_at)  # the server may have counted the request

    def _taken(self, sent_at: float) -> list[tuple[Dispatcher, float]]:
        return list(zip(self._dispatchers, self._sent.pop(sent_at), strict=True))

    def _charged(self, headers: RateHeaders | None) -> Dispatcher | None:
        """Return the dispatcher of the only budget with the limit in the headers; None if that is unclear."""
        if len(self._dispatchers) == 1:
            return self._dispatchers[0]
        if headers is None:
            return None
        named = [each for each in self._dispatchers if each.limit == headers.limit]
        return named[0] if len(named) == 1 else None

    def _hold(self, retry_after: float | None) -> None:
        """Hold the requests of this set: for `retry_after`, or until its long windows have certainly room again."""
        now, longest = self.now(), max(each.window for each in self._dispatchers)
        most = max(longest, _LONGEST_HOLD)
        if retry_after is not None:
            until = now + min(most, max(1.0, retry_after))
        elif longest > SHORT_WINDOW:
            until = max(
                each.limiter.unexplained_hold(now) for each in self._dispatchers if each.window > SHORT_WINDOW
            )
        else:
            until = now + self._pause
            self._pause = min(most, self._pause * 2.0)
        self._held_until = max(self._held_until, until)
        if self.on_held is not None:
            self.on_held(self._held_until - now)
        self._events.emit(
            Held(
                at=now,
                budget=self._name,
                until=self._held_until,
                seconds=self._held_until - now,
                slots=self.slowest().slots,
                burst=self.slowest().burst,
            )
        )
        asyncio.get_running_loop().call_at(until + TICK, self.turn)

    # Called by the gate

    def slowest(self) -> Dispatcher:
        """Return the dispatcher of the budget that allows the fewest requests in a time."""
        return max(self._dispatchers, key=lambda each: each.window / each.slots)

    @property
    def held_until(self) -> float:
        return max(self._held_until, *(each.held_until for each in self._dispatchers))

    def waiting(self, lane: Lane) -> int:
        return self.waiters.waiting[lane]

    def resume(self, recent: Iterable[float], held_for: float) -> None:
        """Send none of these requests for `held_for` seconds. `recent` is ignored: it concerns single budgets."""
        self._held_until = max(self._held_until, asyncio.get_running_loop().time() + held_for)

    def resize(self, limit: int) -> None:
        """Raise `UsageError`, because each budget has a limit of its own."""
        raise UsageError(
            "these requests charge several budgets: set the limit of each, `session.budget(name).limit`"
        )

    def close(self, error: AsyncmigError) -> None:
        """End every wait, present and future, with a copy of `error`."""
        self.waiters.end(error)

    async def aclose(self) -> None:
        """Do nothing: the gates of the single budgets close the dispatchers."""
