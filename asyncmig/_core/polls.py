"""Which run to poll next, so that ends of runs are noticed as early as the budget allows.

Theory of operation
-------------------
A poll is worth what it may end: the waiting since the last poll of a run that has ended unnoticed. For a run that
was seen running at age a and is of age b now, that expected waiting is

    W(a, b) = ∫ₐᵇ P(ended by s | running at a) ds = (b - a) - (R(a) - R(b)) / S(a),   R(x) = ∫ₓ^∞ S

with S the survival function of durations. Polling the run with the largest W is the index rule for optimum checking
(Barlow, Hunter & Proschan, "Optimum checking procedures", SIAM 1963); for frequent polls it becomes Keller's square
root of the hazard ("Optimum checking schedules for systems subject to random failure", Management Science 1974).

S is learnt while it runs. Ages are cut into geometric *shelves*; the hazard of a shelf is `ended / watched`, with the
prior 1 / (age + 60 s). Runs whose last poll found them on one shelf share a line ordered by the time of that poll:
there the run that was unpolled longest has the largest W, so only the heads of the lines compete, and a decision
costs O(shelves), not O(runs).

Nothing here awaits: `now` goes in, a run comes out.
"""

import heapq
import math
from bisect import bisect_right
from collections.abc import Hashable
from itertools import count
from typing import Generic, TypeVar, final

__all__ = ["PollSchedule", "floor"]

Run = TypeVar("Run", bound=Hashable)

EDGES = [0.0, 5.0]
while EDGES[-1] < 7200.0:
    EDGES.append(EDGES[-1] * 1.25)
_PRIOR = 0.5
_PRIOR_DELAY = 60.0
_EVERY_PARKED = 10
_PARKED_FLOOR = 10.0
_LONGEST_UNPOLLED = 900.0
"""Seconds after which a run is polled whatever its index: no estimate is that good."""


def floor(age: float) -> float:
    """Return the seconds that must pass between two reads of a run of this age: 2 s, and more as it ages."""
    return min(30.0, max(2.0, age / 120.0))


@final
class _Hazard:
    """The learnt distribution of durations of one class of runs."""

    __slots__ = ("_ended", "_watched")

    def __init__(self) -> None:
        middles = [(low + high) / 2 for low, high in zip(EDGES, [*EDGES[1:], EDGES[-1] * 1.25], strict=True)]
        self._ended = [_PRIOR] * len(EDGES)
        self._watched = [_PRIOR * (middle + _PRIOR_DELAY) for middle in middles]

    def rate(self, shelf: int) -> float:
        """Return ends per second on a shelf."""
        return self._ended[shelf] / self._watched[shelf]

    def seen_running(self, low: float, high: float) -> None:
        """A run was alive from age `low` to age `high`."""
        for shelf, spent in _spread(low, high):
            self._watched[shelf] += spent

    def seen_ended(self, low: float, high: float) -> None:
        """A run ended somewhere between these ages: spread it over the shelves as the present hazard has it."""
        parts = [(shelf, spent, spent * self.rate(shelf)) for shelf, spent in _spread(low, high)]
        total, alive = sum(weight for _, _, weight in parts), 1.0
        for shelf, spent, weight in parts:
            share = weight / total
            self._ended[shelf] += share
            self._watched[shelf] += spent * (alive - share / 2)
            alive -= share

    def waiting(self, low: float, high: float) -> float:
        """Return W(low, high), in seconds. From shelf to shelf, for differences of tails would cancel out."""
        alive, lived = 1.0, 0.0
        for shelf, spent in _spread(low, high):
            rate = self.rate(shelf)
            lost = -math.expm1(-rate * spent)
            lived += alive * lost / rate
            alive *= 1.0 - lost
        return high - low - lived


def _shelf(age: float) -> int:
    return bisect_right(EDGES, age) - 1


def _spread(low: float, high: float) -> list[tuple[int, float]]:
    """Return the shelves between two ages, and the seconds on each."""
    parts: list[tuple[int, float]] = []
    shelf = _shelf(low)
    while low < high:
        end = EDGES[shelf + 1] if shelf + 1 < len(EDGES) else math.inf
        parts.append((shelf, min(high, end) - low))
        low, shelf = end, shelf + 1
    return parts


@final
class _Entry(Generic[Run]):
    """A run of the schedule. `seen`: the time at which it was last known to be running."""

    __slots__ = ("group", "hurried", "parked", "run", "seen", "started", "ticket")

    def __init__(self, run: Run, group: Hashable, started: float, seen: float) -> None:
        self.run, self.group, self.started, self.seen = run, group, started, seen
        self.parked = self.hurried = False
        self.ticket = 0
        """The number under which it stands in a line; another number there is a leftover."""


_Line = list[tuple[float, int, _Entry[Run]]]


@final
class PollSchedule(Generic[Run]):
    """Orders the polls of any number of runs. A run that `next` gave is out until it is reported on."""

    __slots__ = ("_entries", "_hazards", "_hurried", "_later", "_parked", "_picks", "_shelves", "_tickets")

    def __init__(self) -> None:
        self._entries: dict[Run, _Entry[Run]] = {}
        self._hazards: dict[Hashable, _Hazard] = {}
        self._shelves: dict[tuple[Hashable, int], _Line[Run]] = {}
        self._parked: _Line[Run] = []
        self._hurried: _Line[Run] = []
        self._later: _Line[Run] = []
        """Runs below their floor, by the time at which they leave it."""
        self._tickets = count(1)
        self._picks = 0

    def __len__(self) -> int:
        return len(self._entries)

    def add(
        self,
        run: Run,
        *,
        now: float,
        started: float,
        seen: float | None = None,
        read: float | None = None,
        group: Hashable = None,
    ) -> None:
        """Take in a run that `started` at that time, on the caller's clock.

        `seen`: when it was last known to be running, if not at its start. `read`: when it was last read. Runs of one
        `group` share a distribution of durations.
        """
        entry = self._entries[run] = _Entry(run, group, started, started if seen is None else seen)
        self._hazards.setdefault(group, _Hazard())
        self._put_off(entry, (started if read is None else read) + floor(now - started))

    def remove(self, run: Run) -> None:
        """Forget a run: it has ended, or nobody waits for it."""
        entry = self._entries.pop(run, None)
        if entry is not None:
            entry.ticket = 0

    def next_at(self, now: float) -> float | None:
        """Return when a run may be polled: `now`, a later time, or None if there is none."""
        self._bring_in(now)
        if any(_head(line) for line in (self._hurried, self._parked, *self._shelves.values())):
            return now
        head = _head(self._later)
        return head[0] if head else None

    def next(self, now: float) -> Run | None:
        """Return the run whose poll is worth most, or None if none may be polled now."""
        self._bring_in(now)
        self._picks += 1
        line = self._hurried if _head(self._hurried) else None
        if line is None and self._picks % _EVERY_PARKED == 0 and _head(self._parked):
            line = self._parked
        line = line or self._best(now) or (self._parked if _head(self._parked) else None)
        if line is None:
            return None
        entry = heapq.heappop(line)[2]
        entry.ticket, entry.hurried = 0, False
        return entry.run

    def observed(self, run: Run, now: float, *, ended: bool, parked: bool = False) -> None:
        """Report what a read of `run` showed, whoever made it."""
        entry = self._entries.get(run)
        if entry is None:
            return
        if not (entry.parked and parked):
            hazard = self._hazards[entry.group]
            learn = hazard.seen_ended if ended or parked else hazard.seen_running
            learn(max(0.0, entry.seen - entry.started), max(0.0, now - entry.started))
        if ended:
            self.remove(run)
            return
        entry.seen, entry.parked = now, parked
        wait = floor(now - entry.started)
        self._put_off(entry, now + (max(_PARKED_FLOOR, wait) if parked else wait))

    def rejected(self, run: Run, now: float) -> None:
        """Report that a poll told nothing: the run is where it was, but not before its floor."""
        entry = self._entries.get(run)
        if entry is not None:
            self._put_off(entry, now + floor(now - entry.started))

    def resumed(self, run: Run, now: float) -> None:
        """Report that a parked run was answered: it runs again."""
        entry = self._entries.get(run)
        if entry is not None and entry.parked:
            entry.parked, entry.seen = False, now
            self._put_off(entry, now + floor(now - entry.started))

    def hurry(self, run: Run) -> None:
        """Poll this run before others, as soon as its floor allows."""
        entry = self._entries.get(run)
        if entry is None or entry.hurried:
            return
        entry.hurried = True
        if entry.ticket and not any(entry is waiting for _, _, waiting in self._later):
            self._enqueue(self._hurried, entry.seen, entry)

    def _put_off(self, entry: _Entry[Run], until: float) -> None:
        self._enqueue(self._later, until, entry)

    def _enqueue(self, line: _Line[Run], key: float, entry: _Entry[Run]) -> None:
        entry.ticket = next(self._tickets)
        heapq.heappush(line, (key, entry.ticket, entry))

    def _bring_in(self, now: float) -> None:
        """Move the runs that have left their floor to where they compete."""
        while (head := _head(self._later)) and head[0] <= now:
            entry = heapq.heappop(self._later)[2]
            if entry.hurried:
                line = self._hurried
            elif entry.parked:
                line = self._parked
            else:
                shelf = _shelf(max(0.0, entry.seen - entry.started))
                line = self._shelves.setdefault((entry.group, shelf), [])
            self._enqueue(line, entry.seen, entry)

    def _best(self, now: float) -> "_Line[Run] | None":
        best, chosen = -1.0, None
        for (group, _), line in self._shelves.items():
            head = _head(line)
            if head is None or now - head[0] <= best:
                continue
            entry = head[2]
            unpolled = now - entry.seen
            low = max(0.0, entry.seen - entry.started)
            worth = (
                unpolled
                if unpolled > _LONGEST_UNPOLLED
                else self._hazards[group].waiting(low, low + unpolled)
            )
            if worth > best:
                best, chosen = worth, line
        return chosen


def _head(line: _Line[Run]) -> "tuple[float, int, _Entry[Run]] | None":
    """Return the first of a line, after dropping what was left behind in it."""
    while line and line[0][1] != line[0][2].ticket:
        heapq.heappop(line)
    return line[0] if line else None
