"""How long runs take, learnt while they run: a hazard for each shelf of ages.

Ages are cut into geometric *shelves*. On each, the hazard (ends per second of a run that still runs) is
`ended / watched`: a Gamma prior with the observations added, a fiftieth of an end in a fiftieth of `age + 60 s`.
That is the only hazard without a scale of its own: a run is expected to go on for about as long as it went on so far.
It weighs little, so that ages at which nothing ends are soon known, and left alone.

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


_RATIO = 1.07


def _edges(first: float, ratio: float, last: float) -> tuple[float, ...]:
    edges = [0.0, first]
    while edges[-1] < last:
        edges.append(edges[-1] * ratio)
    return tuple(edges)


EDGES = _edges(5.0, _RATIO, 7200.0)
"""Where each shelf begins; the last one has no end."""

_PRIOR = 0.02
_PRIOR_DELAY = 60.0
_MOST_NEWS = 24
"""How many observations may wait until the next fit: one costs as much as many decisions."""
_ENDS = (*EDGES[1:], math.inf)


def shelf_of(age: float) -> int:
    """Return the number of the shelf that `age`, at least 0, lies on."""
    return bisect_right(EDGES, age) - 1


@final
class Hazard:
    """The durations of one class of runs, as far as they are known."""

    __slots__ = ("_ended", "_heard", "_news", "_rate", "_rest", "_risk", "_watched", "edition")

    def __init__(self) -> None:
        middles = [
            (low + min(high, low * _RATIO)) / 2 for low, high in zip(EDGES[1:], _ENDS[1:], strict=True)
        ]
        self._ended = [_PRIOR] * len(EDGES)
        self._watched = [_PRIOR * (middle + _PRIOR_DELAY) for middle in (EDGES[1] / 2, *middles)]
        self._heard = self._news = 0
        """How many observations there were, and how many of them since the last fit."""
        self.edition: int = 0
        """How often the rest was fitted to what was observed."""
        self._rate = [0.0] * len(EDGES)
        self._risk = [0.0] * len(EDGES)
        """The hazard summed up to the beginning of each shelf: minus the logarithm of the survival there."""
        self._rest = [0.0] * len(EDGES)
        """The seconds that a run is expected to live on at the beginning of each shelf."""
        self._fit()

    def rate(self, age: float) -> float:
        """Return the ends per second of a run of this age."""
        shelf = shelf_of(age)
        return self._ended[shelf] / self._watched[shelf]

    def lived(self, low: float, high: float) -> None:
        """Learn that a run was running from age `low` to age `high`."""
        if low >= high:
            return
        for shelf, start, end in _parts(low, high):
            self._watched[shelf] += end - start
        self._learnt()

    def ended(self, low: float, high: float) -> None:
        """Learn that a run that was running at age `low` had ended at age `high`."""
        if high - low < 1e-9:  # no share of so short a time could be told from none
            self._ended[shelf_of(high)] += 1.0
        else:
            self._spread(low, high)
        self._learnt()

    def _spread(self, low: float, high: float) -> None:
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

    def waiting(self, low: float, high: float) -> float:
        """Return W(low, high): the expected seconds since the end of a run seen running at `low`, now `high` old."""
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

    def _learnt(self) -> None:
        self._heard += 1
        self._news += 1
        if self._news > min(_MOST_NEWS, self._heard // _MOST_NEWS):
            self._fit()

    def _fit(self) -> None:
        self._news = 0
        self.edition += 1
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
