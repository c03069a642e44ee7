"""Which run to poll next, so that ends of runs are noticed as early as the budget allows.

Theory of operation
-------------------
A poll is worth what it may end: the waiting since the end of a run that ended unnoticed. For a run that was seen
running at age a and is of age b now, that expected waiting is

    W(a, b) = ∫ₐᵇ P(ended by s | running at a) ds = b - a - (R(a) - R(b)) / S(a),    R(x) = ∫ₓ^∞ S

with S the survival function of durations, learnt while it runs (`hazard`). Polling the run with the largest W is the
index rule for optimum checking (Barlow, Hunter & Proschan, "Optimum checking procedures", J. SIAM 11, 1963): at the
optimum every poll is made when it has saved the same expected waiting, whatever the run. For frequent polls that is
Keller's rule: poll at a rate proportional to the square root of the hazard ("Optimum checking schedules for systems
subject to random failure", Management Science 21, 1974). It is also the Whittle index of the problem with the average
number of polls relaxed; see Azar et al., "Tractable near-optimal policies for crawling" (PNAS 115, 2018).

How the largest is found in O(shelves), not O(runs), is in `shelves`.

Around the index there are bounds that no estimate may break:

- The *floor*: a run is not read again sooner than `floor(age)` after its last answer.
- *Parked* runs wait for people. They get every tenth poll, and what nobody else can use.
- *Fairness*: while the pace allows one poll a run in `FAIR` seconds, no run goes unpolled for longer. Polls are due
  at fixed times then, so the oldest goes first as soon as waiting any longer would make one of them late (the
  feasibility test of earliest-deadline-first), and not a poll sooner.

Nothing here awaits: `now` goes in, a run comes out. All times are seconds on the caller's clock.
"""

import heapq
import math
from collections.abc import Callable, Hashable
from itertools import count
from typing import Generic, TypeVar, final

from asyncmig._core.age_buckets import (
    AgeBuckets,
    BucketHeap,
    Durations,
    PolledRun,
    PollState,
    first_of,
)
from asyncmig._core.hazard import Hazard
from asyncmig._core.lifecycle import Phase

__all__ = ["FAIR", "PollSchedule"]

RunT = TypeVar("RunT")

FAIR = 870.0
"""Fifteen minutes, less the time that a slow answer may take."""
_BUCKET = 15.0
_EVERY_PARKED = 10
_LONGEST_PAUSE = 60.0
"""The longest wait before a run whose reads fail is read again."""


@final
class PollSchedule(Generic[RunT]):
    """Orders the polls of any number of runs."""

    __slots__ = (
        "_by_age",
        "_classes",
        "_durations",
        "_fair",
        "_hurried",
        "_parked",
        "_resting",
        "_since_parked",
        "_tickets",
        "_wanted",
        "ready",
    )

    def __init__(self, *, durations: Callable[[], Durations] = Hazard, fair: float = FAIR) -> None:
        """`durations` makes what learns of one class; `fair`: how long a run goes unpolled, if the pace allows."""
        self._durations, self._fair = durations, fair
        self._classes: dict[Hashable, AgeBuckets[RunT]] = {}
        self._resting: BucketHeap[RunT] = []
        self._hurried: BucketHeap[RunT] = []
        self._parked: BucketHeap[RunT] = []
        self._by_age: dict[int, int] = {}
        """How many runs stand on the shelves, by the time at which they were last seen, in buckets."""
        self._tickets = count(1)
        self._since_parked = 0
        self._wanted = 0
        self.ready = 0
        """How many runs are above their floor and wait for a poll."""

    def __len__(self) -> int:
        return self._wanted

    def durations(self, group: Hashable = None) -> Durations:
        """Return what is known of a class."""
        return self._class(group).durations

    # Who is polled

    def add(self, run: PolledRun[RunT], now: float) -> None:
        """Poll `run` from now on."""
        if not run.wanted:
            run.wanted = True
            self._wanted += 1
            self._put(run, now)

    def remove(self, run: PolledRun[RunT]) -> None:
        """Poll `run` no more; what is known of it stays."""
        if run.wanted:
            run.wanted = False
            self._wanted -= 1
            self._displace(run)

    def hurry(self, run: PolledRun[RunT], now: float, *, until: float = -math.inf) -> None:
        """Poll `run` before others until it was observed, and until the time `until`, but not below its floor."""
        run.hurried, run.awaited_until = True, max(run.awaited_until, until)
        self._put(run, now)

    # Which one

    def next_at(self, now: float) -> float | None:
        """Return when a run may be polled: `now`, a later time, or None if none ever may."""
        self._wake(now)
        if self.ready:
            return now
        head = first_of(self._resting)
        return head[0] if head else None

    def next(self, now: float, *, pace: float, lookup: bool = False) -> PolledRun[RunT] | None:
        """Return the run whose poll is worth most, or None if none may be polled now.

        It is out until `landed`. `pace`: seconds between two polls. `lookup`: the poll goes through the second
        channel, which tells that a run has ended but not how: only for runs that compete by their index.
        """
        self._wake(now)
        line = None if lookup else self._first(now)
        if line is None:
            line = self._oldest() if self._is_late(now, pace) else self._best(now)
        line = line or (None if lookup else self._parked)
        if not line or first_of(line) is None:
            return None
        run = line[0][2]
        self._since_parked = 0 if line is self._parked else self._since_parked + 1
        self._displace(run)
        run.place = PollState.AWAY
        return run

    def landed(self, run: PolledRun[RunT], now: float) -> None:
        """The read that `next` gave out has ended, in whatever way: the run may be given out again."""
        if run.place is PollState.AWAY:
            run.place = PollState.NOWHERE
            self._put(run, now)

    # What came of it

    def observed(
        self, run: PolledRun[RunT], now: float, phase: Phase, *, sent: float, lookup: bool = False
    ) -> None:
        """Report what a read of `run` showed that was sent at `sent` and answered `now`, whoever made it."""
        self._learn(run, now, phase, sent)
        run.failures, run.hurried, run.gone_at = 0, now < run.awaited_until, None
        if not lookup:
            run.read_at = now
        if phase is Phase.TERMINAL:
            self.remove(run)
            return
        if run.parked and phase is Phase.PARKED:
            run.started += now - run.seen  # its age stands still
        run.seen = now if phase is Phase.PARKED else max(run.seen, sent)
        run.parked = phase is Phase.PARKED
        pause = run.floor(now)
        run.ready_at = now + (max(run.lifecycle.parked_floor, pause) if run.parked else pause)
        self._put(run, now)

    def gone(self, run: PolledRun[RunT], now: float) -> None:
        """Report that the second channel does not know the run any more: it has ended, and a read can tell how."""
        run.gone_at = now
        run.ready_at = run.read_at + run.floor(now)
        self.hurry(run, now)

    def rejected(self, run: PolledRun[RunT], now: float, *, blame: bool = True) -> None:
        """Report that a read told nothing: the run is where it was, above its floor.

        With `blame` it rests twice as long each time, up to a minute or its floor: a run that can never be read must
        not take the place of those that can.
        """
        run.failures += blame
        pause = run.floor(now)
        run.ready_at = now + max(pause, min(_LONGEST_PAUSE, pause * 2 ** min(max(0, run.failures - 1), 5)))
        self._put(run, now)

    def resumed(self, run: PolledRun[RunT], now: float) -> None:
        """Report that a parked run was answered: it runs again, and competes again as soon as its floor allows."""
        if run.parked:
            run.started += now - run.seen
            run.parked, run.seen = False, now
            run.ready_at = min(run.ready_at, max(now, run.read_at + run.floor(now)))
            self._put(run, now)

    def _learn(self, run: PolledRun[RunT], now: float, phase: Phase, sent: float) -> None:
        if run.parked:
            return
        durations, low = self._class(run.group).durations, max(0.0, run.seen - run.started)
        if phase is Phase.ACTIVE:
            durations.lived(low, sent - run.started)
        else:
            durations.ended(low, max(low, (run.gone_at or now) - run.started))

    # The lines

    def _class(self, group: Hashable) -> AgeBuckets[RunT]:
        if group not in self._classes:
            self._classes[group] = AgeBuckets(self._durations())
        return self._classes[group]

    def _put(self, run: PolledRun[RunT], now: float) -> None:
        """Put a run where it belongs."""
        if not run.wanted or run.place is PollState.AWAY:
            return
        self._displace(run)
        if run.ready_at > now:
            run.place, line, key = PollState.RESTING, self._resting, run.ready_at
        else:
            run.place, line, key = PollState.READY, self._line(run), run.seen
            self.ready += 1
            run.bucket = int(run.seen // _BUCKET)
            self._by_age[run.bucket] = self._by_age.get(run.bucket, 0) + 1
        run.ticket = next(self._tickets)
        heapq.heappush(line, (key, run.ticket, run))

    def _displace(self, run: PolledRun[RunT]) -> None:
        """Take a run out of the line that it stands in; what it leaves there is dropped when it comes to the head."""
        if run.place is PollState.AWAY:
            return
        if run.bucket is not None:
            self.ready -= 1
            self._by_age[run.bucket] -= 1
            if not self._by_age[run.bucket]:
                del self._by_age[run.bucket]
            run.bucket = None
            self._class(run.group).leave(run)
        run.place, run.ticket = PollState.NOWHERE, 0

    def _line(self, run: PolledRun[RunT]) -> BucketHeap[RunT]:
        if run.hurried:
            return self._hurried
        if run.parked:
            return self._parked
        return self._class(run.group).enter(run)

    def _wake(self, now: float) -> None:
        """Let the runs that have left their floor compete."""
        while (head := first_of(self._resting)) and head[0] <= now:
            self._put(head[2], now)

    def _first(self, now: float) -> BucketHeap[RunT] | None:
        """Return the line that goes before the index, if there is one."""
        if first_of(self._hurried):
            return self._hurried
        if self._since_parked >= _EVERY_PARKED - 1 and first_of(self._parked):
            return self._parked
        return None

    def _is_late(self, now: float, pace: float) -> bool:
        """Return whether some run will have gone unpolled for too long unless the oldest go now."""
        if self._wanted * pace > self._fair:
            return False
        ahead = 0
        for bucket in sorted(self._by_age):
            ahead += self._by_age[bucket]
            left = bucket * _BUCKET + self._fair - now
            if ahead * pace > left:
                return True
            if left > self.ready * pace:
                return False
        return False

    def _oldest(self) -> BucketHeap[RunT] | None:
        """Return the shelf whose head was unpolled longest."""
        lines = [line for each in self._classes.values() for line in each.lines()]
        return min(lines, key=lambda line: line[0][0], default=None)

    def _best(self, now: float) -> BucketHeap[RunT] | None:
        """Return the line whose head has the largest index."""
        best, chosen = -1.0, None
        for each in self._classes.values():
            best, line = each.best(now, best)
            chosen = line or chosen
        return chosen
