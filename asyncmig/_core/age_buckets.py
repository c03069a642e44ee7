"""Runs in lines by their age, and which of them is overdue most.

Runs whose last poll found them on one shelf of ages stand in one line, ordered by the time of that poll: there
the run that was unpolled longest has the largest W (see `polls`), so only the heads compete, and a decision costs
O(shelves), not O(runs). W grows by at most a second per second, as long as nothing new is known of durations. So what
it was when it was last computed, and the seconds since then, are a bound, and only heads that may be the best by it
are computed again.

All times are seconds on the caller's clock.
"""

import enum
import heapq
import math
from collections.abc import Hashable
from typing import Generic, Protocol, TypeVar, final

from asyncmig._core.hazard import EDGES, shelf_of
from asyncmig._core.lifecycle import Lifecycle

__all__ = ["AgeBuckets", "BucketHeap", "Durations", "PollState", "PolledRun", "first_of"]

RunT = TypeVar("RunT")


class Durations(Protocol):
    """What is known of how long runs take; `Hazard` learns it."""

    @property
    def edition(self) -> int:
        """Another number whenever `waiting` may say something else than before."""
        ...

    def waiting(self, low: float, high: float) -> float:
        """Return W(low, high) of the theory above."""
        ...

    def lived(self, low: float, high: float) -> None:
        """Learn that a run was running between these ages."""

    def ended(self, low: float, high: float) -> None:
        """Learn that a run ended between these ages."""


class PollState(enum.Enum):
    NOWHERE = "nowhere"
    RESTING = "resting"
    """Below its floor."""
    READY = "ready"
    AWAY = "away"
    """`next` gave it out: a read is under way."""


@final
class PolledRun(Generic[RunT]):
    """A run as the schedule knows it; it keeps what it knows while nobody wants it polled."""

    __slots__ = (
        "awaited_until",
        "bucket",
        "failures",
        "gone_at",
        "group",
        "hurried",
        "lifecycle",
        "parked",
        "place",
        "read_at",
        "ready_at",
        "run",
        "seen",
        "shelf",
        "started",
        "ticket",
        "wanted",
    )

    def __init__(
        self,
        run: RunT,
        now: float,
        *,
        lifecycle: Lifecycle,
        started: float,
        last_read: float | None = None,
        group: Hashable = None,
    ) -> None:
        """`started`: when the run did; `last_read`: when it was last seen running, if that is known.

        If it is not, somebody may have read it just now, and it is polled no sooner than its floor allows.
        """
        self.run: RunT = run
        self.lifecycle: Lifecycle = lifecycle
        self.group: Hashable = group
        self.started: float = min(started, now)
        """Moved on while the run is parked: its age is the time for which it ran."""
        self.seen: float = self.started if last_read is None else min(max(last_read, self.started), now)
        """When it was last known to be running, or parked."""
        self.read_at: float = now if last_read is None else self.seen
        self.ready_at: float = self.read_at + lifecycle.floor(now - self.started)
        self.parked: bool = False
        self.hurried: bool = False
        self.awaited_until: float = -math.inf
        """Until then it is polled before others whatever a read shows: a reply named its end, and reads may lag."""
        self.wanted: bool = False
        self.failures: int = 0
        self.gone_at: float | None = None
        self.place: PollState = PollState.NOWHERE
        self.ticket: int = 0
        """Where it stands, and under which number; another number in a line is a leftover."""
        self.bucket: int | None = None
        self.shelf: int | None = None

    def age(self, now: float) -> float:
        """Return the seconds for which the run has been running, without those for which it was parked."""
        return max(0.0, (self.seen if self.parked else now) - self.started)

    def floor(self, now: float) -> float:
        """Return the least seconds between an answer and the next read of the run, unless it is parked."""
        return self.lifecycle.floor(self.age(now))


BucketHeap = list[tuple[float, int, PolledRun[RunT]]]


@final
class AgeBuckets(Generic[RunT]):
    """Runs of one distribution of durations, and what is known of it."""

    __slots__ = ("_edition", "_last", "_lines", "_most", "durations")

    def __init__(self, durations: Durations) -> None:
        self.durations: Durations = durations
        self._lines: list[BucketHeap[RunT]] = [[] for _ in EDGES]
        self._most = [-math.inf] * len(EDGES)
        """W of each head can be no more than this and the time."""
        self._edition = durations.edition
        self._last = 0
        """The shelf whose head was the best, the last time."""

    def enter(self, run: PolledRun[RunT]) -> BucketHeap[RunT]:
        """Return the line for `run`, in which it stands from now on."""
        shelf = run.shelf = shelf_of(max(0.0, run.seen - run.started))
        self._most[shelf] = max(self._most[shelf], -run.seen)
        return self._lines[shelf]

    def leave(self, run: PolledRun[RunT]) -> None:
        """Take note that `run` stands here no more."""
        if run.shelf is not None:
            self._most[run.shelf] = math.inf  # whoever comes after it is not known yet
            run.shelf = None

    def lines(self) -> list[BucketHeap[RunT]]:
        """Return the lines in which somebody stands."""
        return [line for line in self._lines if first_of(line)]

    def best(self, now: float, least: float) -> tuple[float, BucketHeap[RunT] | None]:
        """Return the largest W of a head and its line, if it is more than `least`."""
        if self._edition != self.durations.edition:
            self._edition = self.durations.edition
            self._most = [math.inf] * len(EDGES)
        chosen = None
        if (worth := self._worth(self._last, now)) > least:
            least, chosen = worth, self._last  # often the best again, and then hardly another is computed
        more = least - now
        for most, shelf in sorted(
            [(m, shelf) for shelf, m in enumerate(self._most) if m > more], reverse=True
        ):
            if most + now <= least:
                break
            if (worth := self._worth(shelf, now)) > least:
                least, chosen = worth, shelf
        if chosen is None:
            return least, None
        self._last = chosen
        return least, self._lines[chosen]

    def _worth(self, shelf: int, now: float) -> float:
        """Return W of the head of a shelf."""
        if (head := first_of(self._lines[shelf])) is None:
            self._most[shelf] = -math.inf
            return -math.inf
        seen, _, run = head
        worth = self.durations.waiting(max(0.0, seen - run.started), max(0.0, now - run.started))
        self._most[shelf] = worth - now
        return worth


def first_of(line: BucketHeap[RunT]) -> tuple[float, int, PolledRun[RunT]] | None:
    """Return the first of a line, after dropping what was left behind in it."""
    while line:
        head = line[0]
        if head[1] == head[2].ticket:
            return head
        heapq.heappop(line)
    return None
