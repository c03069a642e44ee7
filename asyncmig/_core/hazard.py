"""Estimates how long runs take: a hazard rate for each age bucket, learnt from polls.

Ages are divided into geometric *buckets*. In each bucket the hazard (ends per second of a run that still runs) is
`ended / watched`: the observations plus a Gamma prior of 0.02 ends in `0.02 * (age + 60 s)`. This prior has no time
scale of its own: it expects that a run continues for about as long as it has run so far. Its weight is small, so that
a few observations show at which ages no run ends; such ages get few polls.

A run that was seen running adds the seconds between two reads to `watched`. The end of a run that was found ended is
at an unknown time between two reads: it is distributed over the buckets between them in proportion to the present
hazard, and `watched` grows by the time that it is expected to have run there. This is the E-step of the EM algorithm
for interval-censored lifetimes (Turnbull, "The empirical distribution function with arbitrarily grouped, censored and
truncated data", JRSS B 38, 1976), one observation at a time (Cappé & Moulines, "On-line expectation-maximization",
JRSS B 71, 2009).

The module `polls` ranks runs by the expected waiting that follows from the hazard. Ages and times are in seconds.
"""

import math
from bisect import bisect_right
from typing import final

__all__ = ["EDGES", "Hazard", "bucket_of"]


_RATIO = 1.07


def _edges(first: float, ratio: float, last: float) -> tuple[float, ...]:
    edges = [0.0, first]
    while edges[-1] < last:
        edges.append(edges[-1] * ratio)
    return tuple(edges)


EDGES = _edges(5.0, _RATIO, 7200.0)
"""The age at which each bucket begins; the last one has no end."""

_PRIOR = 0.02
_PRIOR_DELAY = 60.0
_MOST_UNFITTED = 24
"""The largest number of observations between two fits. A fit takes as long as many decisions."""
_ENDS = (*EDGES[1:], math.inf)


def bucket_of(age: float) -> int:
    """Return the number of the bucket that contains `age`, at least 0."""
    return bisect_right(EDGES, age) - 1


@final
class Hazard:
    """The estimated durations of one class of runs."""

    __slots__ = (
        "_ended",
        "_observations",
        "_rate",
        "_remaining",
        "_risk",
        "_unfitted",
        "_watched",
        "edition",
    )

    def __init__(self) -> None:
        middles = [
            (low + min(high, low * _RATIO)) / 2 for low, high in zip(EDGES[1:], _ENDS[1:], strict=True)
        ]
        self._ended = [_PRIOR] * len(EDGES)
        self._watched = [_PRIOR * (middle + _PRIOR_DELAY) for middle in (EDGES[1] / 2, *middles)]
        self._observations = self._unfitted = 0
        """The number of all observations, and of those since the last fit."""
        self.edition: int = 0
        """The number of fits so far."""
        self._rate = [0.0] * len(EDGES)
        self._risk = [0.0] * len(EDGES)
        """The integral of the hazard up to the beginning of each bucket: -log(survival) there."""
        self._remaining = [0.0] * len(EDGES)
        """The expected remaining seconds of a run at the beginning of each bucket."""
        self._fit()

    def rate(self, age: float) -> float:
        """Return the ends per second of a run of this age."""
        bucket = bucket_of(age)
        return self._ended[bucket] / self._watched[bucket]

    def lived(self, low: float, high: float) -> None:
        """Learn that a run was running from age `low` to age `high`."""
        if low >= high:
            return
        for bucket, start, end in _parts(low, high):
            self._watched[bucket] += end - start
        self._count()

    def ended(self, low: float, high: float) -> None:
        """Learn that a run that was running at age `low` had ended at age `high`."""
        if high - low < 1e-9:  # too short to distribute without rounding to zero
            self._ended[bucket_of(high)] += 1.0
        else:
            self._spread(low, high)
        self._count()

    def _spread(self, low: float, high: float) -> None:
        alive, total = 1.0, 0.0
        spread: list[tuple[int, float, float, float]] = []
        for bucket, start, end in _parts(low, high):
            rate = self._rate[bucket]
            share = -alive * math.expm1(-rate * (end - start))
            spread.append((bucket, share, share / rate, end - start))
            alive -= share
            total += share
        for bucket, share, lived, seconds in spread:
            self._ended[bucket] += share / total
            self._watched[bucket] += max(0.0, (lived - alive * seconds) / total)

    def waiting(self, low: float, high: float) -> float:
        """Return W(low, high): the expected seconds since the end of a run.

        The run was last seen running at age `low`, and its age is `high` now.
        """
        first, last = bisect_right(EDGES, low) - 1, bisect_right(EDGES, high) - 1
        rate = self._rate[first]
        if first == last:
            passed = rate * (high - low)
            return high - low + math.expm1(-passed) / rate
        alive = math.exp(
            self._risk[first]
            - self._risk[last]
            + rate * (low - EDGES[first])
            - self._rate[last] * (high - EDGES[last])
        )
        return high - low - self._remaining_at(first, low) + alive * self._remaining_at(last, high)

    def _remaining_at(self, bucket: int, age: float) -> float:
        rate = self._rate[bucket]
        if bucket == len(EDGES) - 1:
            return 1.0 / rate
        passed = math.exp(-rate * (EDGES[bucket + 1] - age))
        return (1.0 - passed) / rate + passed * self._remaining[bucket + 1]

    def _count(self) -> None:
        self._observations += 1
        self._unfitted += 1
        if self._unfitted > min(_MOST_UNFITTED, self._observations // _MOST_UNFITTED):
            self._fit()

    def _fit(self) -> None:
        self._unfitted = 0
        self.edition += 1
        self._rate = [ended / watched for ended, watched in zip(self._ended, self._watched, strict=True)]
        risk = 0.0
        for bucket in range(len(EDGES) - 1):
            risk += self._rate[bucket] * (EDGES[bucket + 1] - EDGES[bucket])
            self._risk[bucket + 1] = risk
        for bucket in reversed(range(len(EDGES))):
            self._remaining[bucket] = self._remaining_at(bucket, EDGES[bucket])


def _parts(low: float, high: float) -> "list[tuple[int, float, float]]":
    """Return the buckets between two ages, each with the part of the interval that it contains."""
    first, last = bucket_of(low), bucket_of(high)
    return [
        (bucket, max(low, EDGES[bucket]), min(high, _ENDS[bucket]))
        for bucket in range(first, last + 1)
        if high > EDGES[bucket] or first == last
    ]
