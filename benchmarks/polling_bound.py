"""A lower bound on the mean detection delay of any poll schedule, by Lagrangian relaxation.

The problem: there are n runs and one poll every τ seconds. If a run ends at X and is next polled at b, its end is
noticed b - X seconds late. A policy may know the distribution of X (survival S), but not X: it knows only the results
of its polls.

Relaxation. Let λ(t) ≥ 0 be the price of one poll at time t. Any policy makes at most ∫ dt/τ polls in any period, so
it pays at most ∫ λ(t) dt/τ, and

    E[all delays]  ≥  min over policies { E[all delays] + E[its payments] }  -  ∫ λ(t) dt/τ.

This minimum is over policies without a common budget, so it separates into one problem for each run. A poll that
finds the run still running gives no other information, so the best policy of a run is a fixed sequence of poll times
that ends with the run. Let U(a) be S(a) times the lowest cost from age a on, if a poll at age a found the run
running:

    U(a) = min over b > a of { ∫ₐᵇ (S(a) - S(s)) ds + λ(b) S(a) + U(b) },    bound = Σ U(0) - ∫ λ(t) dt/τ.

(The integral is the expected delay of an end between a and b. The poll at b is paid for if the run was found running
at a.) By weak duality this is a bound for *every* λ, optimal or not. A better λ gives a tighter bound. With a λ that
is not optimal, the bound is loose, and a ratio to it is higher.

- Runs start by a Poisson process, in the long run: λ is constant. If n runs are in progress on average, the budget
  of a run is (mean duration) / (n τ) polls. With the best λ, a run demands exactly this number, which bisection
  finds.
- All runs start at once: the best λ(t) are the shadow prices of a linear program. It is the minimum over *mixtures*
  of sequences whose expected polls at each time keep the budget. Its unknowns are the shares of runs that are polled
  at a and next at b. It is solved on a coarse grid of ages. U is then computed with its prices on a fine grid.

What can be reached. If all runs start at once, all runs in progress have the same age, and a policy can distinguish
them only by their last polls. The run with the earliest last poll is the most likely to have ended, so any policy
but round robin is worse. The bound agrees: for a growing number of runs with the same n τ, the delay of round robin
comes within 0.5 % of it (n τ = 180 s: 47.6, 47.9, 56.3 and 66.5 s for the four distributions here, bounds 47.4,
47.9, 56.4 and 66.5 s). So in this case no knowledge of the distribution helps. An index helps among runs of
*different* ages.

With `Rules` the bound is that of policies that keep these rules: they do not poll a run of age a for `floor(a)`
seconds after each poll, and poll it again within `longest`. With few runs, the floor and not the budget causes the
delay.

Polls are allowed only on a grid of ages. This makes the bound slightly too high, by a second-order amount, because
the cost of a single run is flat near its minimum. It is not slight if polls are so frequent that the grid itself
causes the delay. The step of the grid is initially a sixtieth of the time between two polls of a run, and at least
half a second.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from random import Random

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog
from scipy.sparse import coo_array

__all__ = ["DISTRIBUTIONS", "Distribution", "Known", "Rules", "bound_at_once", "bound_in_the_long_run"]

HORIZON = 7200.0
"""The longest duration of a run in seconds: distributions are cut there."""
_PARTS, _FINER, _FINEST = 15, 4, 0.5
"""Grid steps between two polls of a run for the prices; the factor for the bound; its smallest step in seconds."""

_LONGEST_FLOOR = 60.0

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Rules:
    """The earliest and the latest time until a run of some age is polled again, in seconds."""

    floor: Callable[[float], float] = lambda age: 0.0
    longest: float = math.inf


FREE = Rules()


@dataclass(frozen=True)
class Distribution:
    """A distribution of durations in seconds."""

    name: str
    uncut: Callable[[float], float]
    """The survival function before the cut at `HORIZON`."""
    draw_uncut: Callable[[Random], float]

    def survival(self, age: float) -> float:
        rest = self.uncut(HORIZON)
        return max(0.0, (self.uncut(age) - rest) / (1.0 - rest))

    def draw(self, rng: Random) -> float:
        while (duration := self.draw_uncut(rng)) > HORIZON:
            pass
        return duration

    @cached_property
    def mean(self) -> float:
        return float(Ages(self, 1.0).area[-1])


def _lognormal(median: float, sigma: float) -> Distribution:
    return Distribution(
        "log-normal",
        lambda age: 0.5 * math.erfc(math.log(age / median) / sigma / math.sqrt(2)) if age > 0 else 1.0,
        lambda rng: rng.lognormvariate(math.log(median), sigma),
    )


def _exponential(mean: float) -> Distribution:
    return Distribution(
        "exponential", lambda age: math.exp(-age / mean), lambda rng: rng.expovariate(1 / mean)
    )


def _uniform(low: float, high: float) -> Callable[[float], float]:
    return lambda age: min(1.0, max(0.0, (high - age) / (high - low)))


def _two_classes() -> Distribution:
    quick, slow = _uniform(60, 180), _uniform(1800, 2400)
    return Distribution(
        "two classes",
        lambda age: (quick(age) + slow(age)) / 2,
        lambda rng: rng.uniform(60, 180) if rng.getrandbits(1) else rng.uniform(1800, 2400),
    )


DISTRIBUTIONS = [
    _lognormal(1200, 0.8),
    _exponential(1200),
    _two_classes(),
    Distribution("±10 %", _uniform(1620, 1980), lambda rng: rng.uniform(1620, 1980)),
]


class Ages:
    """S and its integral up to each age, on a grid that ends `extra` seconds after the end of all runs."""

    def __init__(self, distribution: Distribution, step: float, *, extra: float = 0.0) -> None:
        at = np.arange(0.0, HORIZON + extra + step, step)
        alive = np.array([distribution.survival(age) for age in at.tolist()])
        middle = np.array([distribution.survival(age + step / 2) for age in at.tolist()])
        self.step, self.running = step, int((alive > 0.0).sum())
        """`running` is the number of ages at which a run may still be running."""
        size = min(len(at), self.running + 1 + math.ceil(extra / step))
        self.at, self.alive = at[:size], alive[:size]
        parts = step * (alive[:-1] + 4 * middle[:-1] + alive[1:]) / 6
        self.area = np.concatenate([[0.0], np.cumsum(parts)])[:size]

    def next_ones(self, k: int, rules: Rules) -> range:
        """Return the ages at which a run may be polled next if it was polled at age number `k`."""
        soonest = max(1, math.ceil(rules.floor(k * self.step) / self.step - 1e-9))
        latest = min(len(self.at) - 1, k + rules.longest / self.step)
        return range(k + soonest, max(int(latest), k + soonest) + 1)


class Known:
    """The true distribution instead of a learnt one: the waiting time W is read from a table."""

    def __init__(self, distribution: Distribution) -> None:
        ages = Ages(distribution, 1.0)
        self._alive, self._area = ages.alive.tolist(), ages.area.tolist()

    def _at(self, values: list[float], age: float) -> float:
        low = int(age)
        if low + 1 >= len(values):
            return values[-1]
        return values[low] + (values[low + 1] - values[low]) * (age - low)

    def waiting(self, low: float, high: float) -> float:
        alive = self._at(self._alive, low)
        if alive <= 1e-12:
            return high - low
        return max(0.0, high - low - (self._at(self._area, high) - self._at(self._area, low)) / alive)

    edition = 0

    def lived(self, low: float, high: float) -> None: ...

    def ended(self, low: float, high: float) -> None: ...


def _cheapest(ages: Ages, price: Floats, rules: Rules) -> tuple[float, float]:
    """Return U(0), and the number of polls that a run demands at these prices."""
    at, alive, area, size = ages.at, ages.alive, ages.area, len(ages.at)
    cost, after, width = np.zeros(size), np.full(size, size), 64
    for k in reversed(range(ages.running)):
        choice, best, ahead = ages.next_ones(k, rules), math.inf, width
        low = choice.start
        while low < choice.stop:
            part = slice(low, min(low + ahead, choice.stop))
            delay = (at[part] - at[k]) * alive[k] - (area[part] - area[k])
            total = delay + price[part] * alive[k] + cost[part]
            least = int(total.argmin())
            if total[least] < best:
                best, after[k] = float(total[least]), low + least
            if delay[-1] >= best:
                break  # a longer wait costs more
            low, ahead = low + ahead, ahead * 2
        cost[k], width = best, max(64, 2 * int(after[k] - k))
    return float(cost[0]), _demand(ages, after)


def _demand(ages: Ages, after: NDArray[np.int64]) -> float:
    demand, k = 0.0, 0
    while k < ages.running:
        demand += float(ages.alive[k])
        k = int(after[k])
    return demand


def bound_in_the_long_run(distribution: Distribution, n: int, pace: float, *, rules: Rules = FREE) -> float:
    """Return the bound on the mean delay for `n` runs in progress on average and a poll every `pace` seconds."""
    polls = distribution.mean / (n * pace)
    ages = Ages(distribution, max(_FINEST, n * pace / _PARTS / _FINER), extra=_LONGEST_FLOOR)
    best, low, high = 0.0, math.log(1e-6), math.log(4 * n * pace)
    for _ in range(14):
        price = math.exp((low + high) / 2)
        cost, demand = _cheapest(ages, np.full(len(ages.at), price), rules)
        best = max(best, cost - price * polls)
        low, high = ((low + high) / 2, high) if demand > polls else (low, (low + high) / 2)
    return best


def bound_at_once(distribution: Distribution, n: int, pace: float, *, rules: Rules = FREE) -> float:
    """Return the bound on the mean delay for `n` runs that start at once and a poll every `pace` seconds."""
    interval = n * pace
    step = max(1.0, interval / _PARTS)
    extra = 1.2 * interval + _LONGEST_FLOOR
    at, price = _shadow_prices(Ages(distribution, step, extra=extra), interval, rules)
    ages = Ages(distribution, max(_FINEST, step / _FINER), extra=extra)
    fine = np.interp(ages.at, at, price)
    fine[0] = 0.0
    return _cheapest(ages, fine, rules)[0] - float(fine.sum()) * ages.step / interval


def _shadow_prices(ages: Ages, interval: float, rules: Rules) -> tuple[Floats, Floats]:
    """Return ages, and the value of a poll at each age.

    `interval` is the time between two polls of a run while all runs are in progress.
    """
    reach = math.ceil(1.5 * interval / ages.step) + 2
    pairs = [(a, b) for a in range(ages.running) for b in ages.next_ones(a, rules)[:reach]]
    low, high = np.array(pairs).T
    number = np.arange(len(pairs))
    goes_on = high < ages.running
    flow = coo_array(  # a run that is polled at an age was polled before or has just started
        (
            np.concatenate([np.ones(len(pairs)), -np.ones(int(goes_on.sum()))]),
            (np.concatenate([low, high[goes_on]]), np.concatenate([number, number[goes_on]])),
        ),
        shape=(ages.running, len(pairs)),
    )
    polls = coo_array((ages.alive[low], (high, number)), shape=(len(ages.at), len(pairs)))
    solved = linprog(
        (ages.at[high] - ages.at[low]) * ages.alive[low] - (ages.area[high] - ages.area[low]),
        A_ub=polls.tocsr(),
        b_ub=np.full(len(ages.at), ages.step / interval),
        A_eq=flow.tocsr(),
        b_eq=np.eye(1, ages.running)[0],
        method="highs",
    )
    if not solved.success:
        raise RuntimeError(solved.message)
    return ages.at, -solved.ineqlin.marginals
