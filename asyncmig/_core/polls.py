"""Which run to poll next, so that ends of runs are noticed as early as the budget allows.

**Theory of operation.** A run that has ended waits until a poll notices its end. The value of a poll is the expected
waiting that it ends. For a run that was last seen running at age a and has age b now, the value is

    W(a, b) = ∫ₐᵇ P(ended by s | running at a) ds = b - a - (R(a) - R(b)) / S(a),    R(x) = ∫ₓ^∞ S

where S is the survival function of durations, which is learnt from the polls (`hazard`). To poll the run with the
largest W is the index rule for optimum checking (Barlow, Hunter & Proschan, "Optimum checking procedures", J. SIAM
11, 1963): at the optimum, each poll is made when the expected waiting has reached the same value, for every run. For
frequent polls this is Keller's rule: poll at a rate proportional to the square root of the hazard ("Optimum checking
schedules for systems subject to random failure", Management Science 21, 1974). It is also the Whittle index of the
problem with the average number of polls relaxed; see Azar et al., "Tractable near-optimal policies for crawling"
(PNAS 115, 2018).

`age_buckets` finds the largest W in O(buckets) instead of O(runs).

Three rules apply whatever the estimate is:

- The *floor* (`Lifecycle.floor`): the least time between an answer and the next read of the same run.
- *Parked* runs wait for people. They get every tenth poll, and each poll that no other run can use.
- *Fairness*: if the pace allows one poll of each run in `FAIR` seconds, no run is unpolled for longer. Each poll then
  has a deadline. The run that was unpolled longest goes first as soon as any further delay would miss a deadline (the
  feasibility test of earliest-deadline-first), and not before.

All times are seconds on the caller's clock.
"""

import heapq
import math
from collections.abc import Callable, Hashable
from itertools import count
from typing import Generic, TypeVar, final

from asyncmig._core.age_buckets import AgeBuckets, BucketHeap, Durations, PolledRun, first_of
from asyncmig._core.hazard import Hazard
from asyncmig._core.lifecycle import Phase

__all__ = ["FAIR", "PollSchedule"]

RunT = TypeVar("RunT")

FAIR = 870.0
"""The longest time without a poll: fifteen minutes, less the time that a slow answer may take."""
_BUCKET = 15.0
"""Seconds in one `PolledRun.seen_bucket`."""
_EVERY_PARKED = 10
"""Every tenth poll goes to a parked run."""
_LONGEST_PAUSE = 60.0
"""The longest wait before a run whose reads fail is read again."""


@final
class PollSchedule(Generic[RunT]):
    """Orders the polls of any number of runs."""

    __slots__ = (
        "_below_floor",
        "_by_last_seen",
        "_classes",
        "_durations",
        "_fair",
        "_parked",
        "_polled",
        "_prioritised",
        "_since_parked",
        "_tickets",
        "ready",
    )

    def __init__(self, *, durations: Callable[[], Durations] = Hazard, fair: float = FAIR) -> None:
        """`durations`: makes the estimate for one class of runs. `fair`: see *fairness* in the module's docstring."""
        self._durations, self._fair = durations, fair
        self._classes: dict[Hashable, AgeBuckets[RunT]] = {}
        self._below_floor: BucketHeap[RunT] = []
        self._prioritised: BucketHeap[RunT] = []
        self._parked: BucketHeap[RunT] = []
        self._by_last_seen: dict[int, int] = {}
        """The number of runs in age buckets, by `PolledRun.seen_bucket`."""
        self._tickets = count(1)
        self._since_parked = 0
        self._polled = 0
        self.ready = 0
        """The number of runs that may be polled now."""

    def __len__(self) -> int:
        return self._polled

    def durations(self, group: Hashable = None) -> Durations:
        """Return the estimate for a class of runs."""
        return self._class(group).durations

    # The runs that are polled

    def add(self, run: PolledRun[RunT], now: float) -> None:
        """Poll `run` from now on."""
        if not run.is_polled:
            run.is_polled = True
            self._polled += 1
            self._enqueue(run, now)

    def remove(self, run: PolledRun[RunT]) -> None:
        """Stop polling `run`; what is known of it stays."""
        if run.is_polled:
            run.is_polled = False
            self._polled -= 1
            self._dequeue(run)

    def prioritise(self, run: PolledRun[RunT], now: float, *, until: float = -math.inf) -> None:
        """Poll `run` before others until a read has observed it, and at least until the time `until`.

        The floor of an active run still applies. The longer floor of a parked run does not, because a caller requests
        this read.
        """
        run.prioritised, run.awaited_until = True, max(run.awaited_until, until)
        if (run.relaxed or run.parked) and not run.failures:
            run.ready_at = min(run.ready_at, run.answered_at + run.floor(now))
        self._enqueue(run, now)

    def relax(self, run: PolledRun[RunT], seconds: float, now: float) -> None:
        """Read `run` no more often than every `seconds`, because another channel announces changes; 0 ends that."""
        run.relaxed = seconds
        if not run.failures:
            run.ready_at = min(run.ready_at, run.answered_at + run.floor(now))
        self._enqueue(run, now)

    # The next run

    def next_at(self, now: float) -> float | None:
        """Return the earliest time for a poll; None while there is no run to poll."""
        self._promote(now)
        if self.ready:
            return now
        head = first_of(self._below_floor)
        return head[0] if head else None

    def next(self, now: float, *, pace: float, lookup: bool = False) -> PolledRun[RunT] | None:
        """Return the run whose poll has the largest value, or None if none may be polled now.

        The run is not returned again before `reschedule`. `pace`: seconds between two polls. `lookup`: the poll goes
        through the second channel, which shows that a run has ended but not how. Prioritised and parked runs need a
        read, so a lookup skips them.
        """
        self._promote(now)
        if not lookup and first_of(self._prioritised):
            heap: BucketHeap[RunT] | None = self._prioritised
        elif not lookup and self._since_parked >= _EVERY_PARKED - 1 and first_of(self._parked):
            heap = self._parked
        else:
            heap = self._oldest() if self._is_late(now, pace) else self._best(now)
            heap = heap or (None if lookup else self._parked)
        if not heap or first_of(heap) is None:
            return None
        run = heap[0][2]
        self._since_parked = 0 if heap is self._parked else self._since_parked + 1
        self._dequeue(run)
        run.is_being_read = True
        return run

    def reschedule(self, run: PolledRun[RunT], now: float) -> None:
        """Report that the read of a run that `next` returned is over, with or without success."""
        if run.is_being_read:
            run.is_being_read = False
            self._enqueue(run, now)

    # The results of polls

    def observed(
        self, run: PolledRun[RunT], now: float, phase: Phase, *, sent: float, lookup: bool = False
    ) -> None:
        """Report a read of `run` by any process. It was sent at `sent` and answered `now`."""
        self._learn(run, now, phase, sent)
        run.failures, run.prioritised, run.presumed_ended_at = 0, now < run.awaited_until, None
        if not lookup:
            run.answered_at = now
        if phase is Phase.TERMINAL:
            self.remove(run)
            return
        if run.parked and phase is Phase.PARKED:
            run.started += now - run.last_seen  # parked time does not count as age
        run.last_seen = now if phase is Phase.PARKED else max(run.last_seen, sent)
        run.parked = phase is Phase.PARKED
        pause = run.floor(now)
        run.ready_at = now + (max(run.lifecycle.parked_floor, pause) if run.parked else pause)
        self._enqueue(run, now)

    def presume_ended(self, run: PolledRun[RunT], now: float) -> None:
        """Report that the second channel no longer lists the run. It has ended, and a read will show how."""
        run.presumed_ended_at = now
        run.ready_at = run.answered_at + run.floor(now)
        self.prioritise(run, now)

    def rejected(self, run: PolledRun[RunT], now: float, *, blame: bool = True) -> None:
        """Report that a read failed. The run keeps its last known state, and its floor begins again.

        With `blame`, each failure in a row doubles the pause, up to the longer of one minute and the floor. A run
        that can never be read then does not use up the polls of the others.
        """
        run.failures += blame
        pause = run.floor(now)
        run.ready_at = now + max(pause, min(_LONGEST_PAUSE, pause * 2 ** min(max(0, run.failures - 1), 5)))
        self._enqueue(run, now)

    def resumed(self, run: PolledRun[RunT], now: float) -> None:
        """Report that a decision was sent for a parked run: it is active, with the floor of an active run."""
        if run.parked:
            run.started += now - run.last_seen
            run.parked, run.last_seen = False, now
            run.ready_at = min(run.ready_at, max(now, run.answered_at + run.floor(now)))
            self._enqueue(run, now)

    def _learn(self, run: PolledRun[RunT], now: float, phase: Phase, sent: float) -> None:
        if run.parked:
            return
        durations, low = self._class(run.group).durations, max(0.0, run.last_seen - run.started)
        if phase is Phase.ACTIVE:
            durations.lived(low, sent - run.started)
        else:
            durations.ended(low, max(low, (run.presumed_ended_at or now) - run.started))

    # The heaps

    def _class(self, group: Hashable) -> AgeBuckets[RunT]:
        if group not in self._classes:
            self._classes[group] = AgeBuckets(self._durations())
        return self._classes[group]

    def _enqueue(self, run: PolledRun[RunT], now: float) -> None:
        """Put a run into the heap for its state. A run that is being read stays out."""
        if not run.is_polled or run.is_being_read:
            return
        self._dequeue(run)
        if run.ready_at > now:
            heap, key = self._below_floor, run.ready_at
        else:
            heap, key = self._heap_for(run), run.last_seen
            self.ready += 1
            run.seen_bucket = int(run.last_seen // _BUCKET)
            self._by_last_seen[run.seen_bucket] = self._by_last_seen.get(run.seen_bucket, 0) + 1
        run.ticket = next(self._tickets)
        heapq.heappush(heap, (key, run.ticket, run))

    def _dequeue(self, run: PolledRun[RunT]) -> None:
        """Remove a run from its heap. Its entry stays there and is dropped once it reaches the head."""
        if run.seen_bucket is not None:
            self.ready -= 1
            self._by_last_seen[run.seen_bucket] -= 1
            if not self._by_last_seen[run.seen_bucket]:
                del self._by_last_seen[run.seen_bucket]
            run.seen_bucket = None
            self._class(run.group).leave(run)
        run.ticket = 0

    def _heap_for(self, run: PolledRun[RunT]) -> BucketHeap[RunT]:
        if run.prioritised:
            return self._prioritised
        if run.parked:
            return self._parked
        return self._class(run.group).enter(run)

    def _promote(self, now: float) -> None:
        """Move the runs whose floor is over to the heaps of runs that may be polled."""
        while (head := first_of(self._below_floor)) and head[0] <= now:
            self._enqueue(head[2], now)

    def _is_late(self, now: float, pace: float) -> bool:
        """Return whether a run would miss its fairness deadline unless the longest unpolled runs go first now."""
        if self._polled * pace > self._fair:
            return False
        ahead = 0
        for bucket in sorted(self._by_last_seen):
            ahead += self._by_last_seen[bucket]
            left = bucket * _BUCKET + self._fair - now
            if ahead * pace > left:
                return True
            if left > self.ready * pace:
                return False
        return False

    def _oldest(self) -> BucketHeap[RunT] | None:
        """Return the heap whose head was unpolled longest."""
        heaps = [heap for each in self._classes.values() for heap in each.heaps()]
        return min(heaps, key=lambda heap: heap[0][0], default=None)

    def _best(self, now: float) -> BucketHeap[RunT] | None:
        """Return the heap whose head has the largest W."""
        best, chosen = -1.0, None
        for each in self._classes.values():
            best, heap = each.best(now, best)
            chosen = heap or chosen
        return chosen
