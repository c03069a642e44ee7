"""How long runs take, learnt while they run: a hazard for each shelf of ages.

Ages are cut into geometric *shelves*. On each, the hazard (ends per second of a run that still runs) is
`ended / watched`: a Gamma prior with the observations added, half an end in half of `age + 60 s`. That prior is the
only hazard without a scale of its own: a run is expected to go on for about as long as it went on so far.

A run that was seen running adds the seconds between two looks to `watched`. A run that was found ended did so
somewhere between two looks: one end is spread over the shelves between them as the present hazard has it, with the
time that it was expected to live there. That is the E-step of the EM algorithm for interval-censored lifetimes
(Turnbull, "The empirical distribution function with arbitrarily grouped, censored and truncated data", JRSS B 38,
1976), one observation at a time (Cappé & Moulines, "On-line expectation-maximization", JRSS B 71, 2009).

From the hazard follows the expected waiting that `polls` ranks by. Ages and times are in seconds.
"""

import math
from bisect import bisect_right
from typing import final

__all__ = ["EDGES", "Hazard", "shelf_of"]


def _edges(first: float, ratio: float, last: float) -> tuple[float, ...]:
    edges = [0.0, first]
    while edges[-1] < last:
        edges.append(edges[-1] * ratio)
    return tuple(edges)


EDGES = _edges(5.0, 1.25, 7200.0)
"""Where each shelf begins; the last one has no end."""

_PRIOR = 0.5
_PRIOR_DELAY = 60.0
_ENDS = (*EDGES[1:], math.inf)


def shelf_of(age: float) -> int:
    """Return the number of the shelf that `age`, at least 0, lies on."""
    return bisect_right(EDGES, age) - 1


@final
class Hazard:
    """The durations of one class of runs, as far as they are known."""

    __slots__ = ("_ended", "_fitted", "_rate", "_rest", "_risk", "_watched")

    def __init__(self) -> None:
        middles = [(low + min(high, low * 1.25)) / 2 for low, high in zip(EDGES[1:], _ENDS[1:], strict=True)]
        self._ended = [_PRIOR] * len(EDGES)
        self._watched = [_PRIOR * (middle + _PRIOR_DELAY) for middle in (EDGES[1] / 2, *middles)]
        self._fitted = False
        self._rate = [0.0] * len(EDGES)
        self._risk = [0.0] * len(EDGES)
        """The hazard summed up to the beginning of each shelf: minus the logarithm of the survival there."""
        self._rest = [0.0] * len(EDGES)
        """The seconds that a run is expected to live on at the beginning of each shelf."""

    def rate(self, age: float) -> float:
        """Return the ends per second of a run of this age."""
        self._fit()
        return self._rate[shelf_of(age)]

    def lived(self, low: float, high: float) -> None:
        """Learn that a run was running from age `low` to age `high`."""
        if low >= high:
            return
        for shelf, start, end in _parts(low, high):
            self._watched[shelf] += end - start
        self._fitted = False

    def ended(self, low: float, high: float) -> None:
        """Learn that a run that was running at age `low` had ended at age `high`."""
        self._fit()
        if low >= high:
            self._ended[shelf_of(high)] += 1.0
            self._fitted = False
            return
        alive, total = 1.0, 0.0
        spread: list[tuple[int, float, float, float]] = []
        for shelf, start, end in _parts(low, high):
            rate = self._rate[shelf]
            share = -alive * math.expm1(-rate * (end - start))
            spread.append((shelf, share, share / rate, end - start))
            alive -= share
            total += share
        for shelf, share, lived, seconds in spread:
            self._ended[shelf] += share / total
            self._watched[shelf] += max(0.0, (lived - alive * seconds) / total)
        self._fitted = False

    def waiting(self, low: float, high: float) -> float:
        """Return W(low, high): the expected seconds since the end of a run seen running at `low`, now `high` old."""
        if not self._fitted:
            self._fit()
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
        return high - low - self._rest_at(first, low) + alive * self._rest_at(last, high)

    def _rest_at(self, shelf: int, age: float) -> float:
        rate = self._rate[shelf]
        if shelf == len(EDGES) - 1:
            return 1.0 / rate
        passed = math.exp(-rate * (EDGES[shelf + 1] - age))
        return (1.0 - passed) / rate + passed * self._rest[shelf + 1]

    def _fit(self) -> None:
        if self._fitted:
            return
        self._fitted = True
        self._rate = [ended / watched for ended, watched in zip(self._ended, self._watched, strict=True)]
        risk = 0.0
        for shelf in range(len(EDGES) - 1):
            risk += self._rate[shelf] * (EDGES[shelf + 1] - EDGES[shelf])
            self._risk[shelf + 1] = risk
        for shelf in reversed(range(len(EDGES))):
            self._rest[shelf] = self._rest_at(shelf, EDGES[shelf])


def _parts(low: float, high: float) -> "list[tuple[int, float, float]]":
    """Return the shelves between two ages, each with the ages from and to which it is crossed."""
    first, last = shelf_of(low), shelf_of(high)
    return [
        (shelf, max(low, EDGES[shelf]), min(high, _ENDS[shelf]))
        for shelf in range(first, last + 1)
        if high > EDGES[shelf] or first == last
    ]
