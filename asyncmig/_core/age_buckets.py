"""Groups runs by age, to find the one with the largest expected waiting W (see `polls`).

A heap for each age bucket holds the runs whose age at the last poll lay in that bucket, ordered by the time of that
poll. The run that was unpolled longest has the largest W of its bucket, so only the heads are compared. A decision
costs O(buckets) and not O(runs). Until the estimate of durations changes, W grows by at most one second per second.
Its last value plus the time since then is therefore an upper bound. W is computed again only for heads whose bound
exceeds the largest W so far.

All times are seconds on the caller's clock.
"""

import heapq
import math
from collections.abc import Hashable
from typing import Generic, Protocol, TypeVar, final

from asyncmig._core.hazard import EDGES, bucket_of
from asyncmig._core.lifecycle import Lifecycle

__all__ = ["AgeBuckets", "BucketHeap", "Durations", "PolledRun", "first_of"]

RunT = TypeVar("RunT")


class Durations(Protocol):
    """An estimate of how long runs take, learnt from polls. `Hazard` implements it."""

    @property
    def edition(self) -> int:
        """A number that changes whenever `waiting` may return other values than before."""
        ...

    def waiting(self, low: float, high: float) -> float:
        """Return W(low, high), as `polls` defines it."""
        ...

    def lived(self, low: float, high: float) -> None:
        """Learn that a run was running between these ages."""

    def ended(self, low: float, high: float) -> None:
        """Learn that a run ended between these ages."""


@final
class PolledRun(Generic[RunT]):
    """The schedule's data about a run. They stay valid while the run is not polled."""

    __slots__ = (
        "age_bucket",
        "answered_at",
        "awaited_until",
        "failures",
        "group",
        "is_being_read",
        "is_polled",
        "last_seen",
        "lifecycle",
        "parked",
        "presumed_ended_at",
        "prioritised",
        "ready_at",
        "relaxed",
        "run",
        "seen_bucket",
        "started",
        "ticket",
    )

    def __init__(
        self,
        run: RunT,
        now: float,
        *,
        lifecycle: Lifecycle,
        started: float,
        group: Hashable = None,
    ) -> None:
        """`started`: when the run began. `group`: the class of runs whose durations it shares.

        Its floor begins now, because another process may have read it just now.
        """
        self.run: RunT = run
        self.lifecycle: Lifecycle = lifecycle
        self.group: Hashable = group
        self.started: float = min(started, now)
        """When the run began, plus the time for which it was parked. Its age is thus the time for which it was
        active."""
        self.last_seen: float = self.started
        """When the run was last known to be active or parked."""
        self.answered_at: float = now
        self.ready_at: float = self.answered_at + lifecycle.floor(now - self.started)
        self.parked: bool = False
        self.prioritised: bool = False
        self.awaited_until: float = -math.inf
        """Until this time the run is polled before others, whatever a read shows. A reply to another request has
        reported its end, and reads may lag behind that."""
        self.is_polled: bool = False
        self.relaxed: float = 0.0
        """The least seconds between reads while another channel announces changes. Does not apply while the run is
        polled before others."""
        self.failures: int = 0
        self.presumed_ended_at: float | None = None
        self.is_being_read: bool = False
        """Whether `PollSchedule.next` returned it, and the read is in progress."""
        self.ticket: int = 0
        """The number of its valid heap entry. Entries with another number are ignored."""
        self.seen_bucket: int | None = None
        """`last_seen` in units of 15 s; None unless the run may be polled now."""
        self.age_bucket: int | None = None
        """The age bucket that contains the run; None if none does."""

    def age(self, now: float) -> float:
        """Return the seconds for which the run has been active. Parked time does not count."""
        return max(0.0, (self.last_seen if self.parked else now) - self.started)

    def floor(self, now: float) -> float:
        """Return the least seconds between an answer and the next read of the run while it is active."""
        floor = self.lifecycle.floor(self.age(now))
        return floor if self.prioritised or now < self.awaited_until else max(floor, self.relaxed)


BucketHeap = list[tuple[float, int, PolledRun[RunT]]]


@final
class AgeBuckets(Generic[RunT]):
    """The runs of one class, whose durations have one distribution, in age buckets."""

    __slots__ = ("_bounds", "_edition", "_heaps", "_last_best", "durations")

    def __init__(self, durations: Durations) -> None:
        self.durations: Durations = durations
        self._heaps: list[BucketHeap[RunT]] = [[] for _ in EDGES]
        self._bounds = [-math.inf] * len(EDGES)
        """An upper bound for each bucket: W of its head is at most this number plus the present time."""
        self._edition = durations.edition
        self._last_best = 0
        """The bucket whose head had the largest W at the last decision."""

    def enter(self, run: PolledRun[RunT]) -> BucketHeap[RunT]:
        """Assign `run` to its age bucket, and return that bucket's heap for the caller to push it."""
        bucket = run.age_bucket = bucket_of(max(0.0, run.last_seen - run.started))
        self._bounds[bucket] = max(self._bounds[bucket], -run.last_seen)
        return self._heaps[bucket]

    def leave(self, run: PolledRun[RunT]) -> None:
        """Report that `run` has left its bucket."""
        if run.age_bucket is not None:
            # The run may have been the head, and W of the next head is unknown.
            self._bounds[run.age_bucket] = math.inf
            run.age_bucket = None

    def heaps(self) -> list[BucketHeap[RunT]]:
        """Return the heaps that are not empty."""
        return [heap for heap in self._heaps if first_of(heap)]

    def best(self, now: float, least: float) -> tuple[float, BucketHeap[RunT] | None]:
        """Return the largest W of a head, if it exceeds `least`, and its heap; otherwise `least` and None."""
        if self._edition != self.durations.edition:
            self._edition = self.durations.edition
            self._bounds = [math.inf if heap else -math.inf for heap in self._heaps]
        chosen = None
        if (waiting := self._index(self._last_best, now)) > least:
            # This head often has the largest W again. Then W of few other heads must be computed.
            least, chosen = waiting, self._last_best
        more = least - now
        for bound, bucket in sorted(
            [(each, bucket) for bucket, each in enumerate(self._bounds) if each > more], reverse=True
        ):
            if bound + now <= least:
                break
            if (waiting := self._index(bucket, now)) > least:
                least, chosen = waiting, bucket
        if chosen is None:
            return least, None
        self._last_best = chosen
        return least, self._heaps[chosen]

    def _index(self, bucket: int, now: float) -> float:
        """Return W of the head of a bucket."""
        if (head := first_of(self._heaps[bucket])) is None:
            self._bounds[bucket] = -math.inf
            return -math.inf
        seen, _, run = head
        waiting = self.durations.waiting(max(0.0, seen - run.started), max(0.0, now - run.started))
        self._bounds[bucket] = waiting - now
        return waiting


def first_of(heap: BucketHeap[RunT]) -> tuple[float, int, PolledRun[RunT]] | None:
    """Return the first valid entry of a heap; drop the invalid ones before it."""
    while heap:
        head = heap[0]
        if head[1] == head[2].ticket:
            return head
        heapq.heappop(heap)
    return None
