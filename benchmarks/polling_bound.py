"""What no poll schedule can beat: a lower bound on the mean detection delay, by Lagrangian relaxation.

The problem: n runs; one poll every τ seconds; a run that ends at X and is polled next at b was waited for b - X
seconds too long. A policy may know the distribution of X (survival S), but not X: it sees only what its polls show.

Relaxation. Let λ(t) ≥ 0 be a price of one poll at time t. Whatever a policy does, it makes at most ∫ dt/τ polls over
any time, so that what it pays is at most ∫ λ(t) dt/τ, and

    E[all delays]  ≥  min over policies { E[all delays] + E[what it pays] }  -  ∫ λ(t) dt/τ.

The minimum is now over policies without any common budget: it falls apart into one problem for each run. As a run
that still runs tells nothing else, its best policy is a fixed sequence of poll times that ends with the run. With
U(a) = S(a) times the least cost from a poll at age a on that found it running:

    U(a) = min over b > a of { ∫ₐᵇ (S(a) - S(s)) ds + λ(b) S(a) + U(b) },    bound = Σ U(0) - ∫ λ(t) dt/τ.

(The integral is the expected waiting of an end between a and b; the poll at b is paid for if the run was found
running at a.) By weak duality this is a bound for *every* λ: it holds whether λ is optimal or not, and is only the
better the better λ is.

- Starts by a Poisson process, in the long run: a constant λ; per run, the budget is (mean duration) / (n τ) polls
  when n runs are alive on average. The bound is concave in λ and is maximised by golden section.
- All starts at once: λ(t) follows the fluid limit: all runs alive have one age and share the budget, so the interval
  is I(t) = n S(t) τ and the price h(t) I(t)² / 2. It is then improved by subgradient steps: the subgradient at t is
  the number of polls that the runs demand there, less the budget.

Polls are allowed on a grid of ages, 2 s apart, and prices are sought on one 8 s apart. The first makes the bound a
little too high, by a second-order amount (near its minimum the cost of a single run is flat): with a grid of 1 s the
bounds for 300 runs are lower by at most 0.2 % in the long run and 1.2 % at once. The second makes it too low.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate, pairwise
from random import Random

__all__ = ["DISTRIBUTIONS", "Distribution", "Known", "bound_at_once", "bound_in_the_long_run"]

HORIZON = 7200.0
"""No run takes longer: distributions are cut there."""
_COARSE, _FINE = 8.0, 2.0


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

    @property
    def mean(self) -> float:
        return Table(self, 1.0).rest[0]


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


class Table:
    """S and its tail integral R on a grid of ages."""

    def __init__(self, distribution: Distribution, step: float) -> None:
        size = int(HORIZON / step) + 1
        self.step = step
        self.alive = [distribution.survival(k * step) for k in range(size)]
        while len(self.alive) > 2 and self.alive[-2] <= 0.0:
            self.alive.pop()
        self.rest = [0.0] * len(self.alive)
        for k in reversed(range(len(self.alive) - 1)):
            middle = distribution.survival((k + 0.5) * step)
            area = step * (self.alive[k] + 4 * middle + self.alive[k + 1]) / 6
            self.rest[k] = self.rest[k + 1] + area


class Known:
    """The true distribution in the place of what is learnt: W from a table."""

    def __init__(self, distribution: Distribution) -> None:
        self._table = Table(distribution, 1.0)

    def _at(self, values: list[float], age: float) -> float:
        low = int(age)
        if low + 1 >= len(values):
            return 0.0
        return values[low] + (values[low + 1] - values[low]) * (age - low)

    def waiting(self, low: float, high: float) -> float:
        alive = self._at(self._table.alive, low)
        if alive <= 1e-12:
            return high - low
        return max(
            0.0, high - low - (self._at(self._table.rest, low) - self._at(self._table.rest, high)) / alive
        )

    def lived(self, low: float, high: float) -> None: ...

    def ended(self, low: float, high: float) -> None: ...


def _cheapest(table: Table, price: list[float]) -> tuple[float, list[int]]:
    """Return U(0), and after which poll the next one is best made."""
    alive, rest, step, size = table.alive, table.rest, table.step, len(table.alive)
    cost = [0.0] * size
    after = [size - 1] * size
    for k in reversed(range(size - 1)):
        here, left, best = alive[k], rest[k], math.inf
        for j in range(k + 1, size):
            delay = (j - k) * step * here - left + rest[j]
            if delay >= best:
                break  # longer waits only cost more
            if (total := delay + price[j] * here + cost[j]) < best:
                best, after[k] = total, j
        cost[k] = best
    return cost[0], after


def bound_in_the_long_run(distribution: Distribution, n: int, pace: float) -> float:
    """Return the bound on the mean delay with `n` runs alive on average, one poll every `pace` seconds."""
    polls = distribution.mean / (n * pace)
    coarse = Table(distribution, _COARSE)

    def dual(price: float, table: Table) -> float:
        return _cheapest(table, [price] * len(table.alive))[0] - price * polls

    low, high = 0.0, 4 * n * pace  # in seconds of waiting; far more than a poll can save
    for _ in range(25):
        part = (high - low) * 0.381966
        if dual(low + part, coarse) < dual(high - part, coarse):
            low += part
        else:
            high -= part
    return dual((low + high) / 2, Table(distribution, _FINE))


def bound_at_once(distribution: Distribution, n: int, pace: float) -> float:
    """Return the bound on the mean delay of `n` runs that start at once, one poll every `pace` seconds."""
    coarse = Table(distribution, _COARSE)
    price = _fluid(coarse, n * pace)
    for steps, size, width in [
        (40, 0.5, 4),
        (40, 0.3, 2),
        (40, 0.3, 1),
        (40, 0.1, 2),
        (40, 0.1, 1),
        (40, 0.1, 0.5),
    ]:
        price = _improved(coarse, price, n * pace, steps=steps, size=size, width=width)[1]
    fine, ratio = Table(distribution, _FINE), round(_COARSE / _FINE)
    price = [price[min(-(-k // ratio), len(price) - 1)] for k in range(len(fine.alive))]
    return max(_improved(fine, price, n * pace, steps=8, size=0.05, width=width)[0] for width in (0.5, 1.0))


def _fluid(table: Table, interval: float) -> list[float]:
    """Return the prices of the fluid limit; `interval`: between two polls of a run while all are alive."""
    alive, price = table.alive, [0.0]
    for before, after in pairwise(alive):
        price.append((before - after) / table.step / before * (before * interval) ** 2 / 2)
    return [max(each, max(price) / 1000) for each in price]


def _improved(
    table: Table, price: list[float], interval: float, *, steps: int, size: float, width: float
) -> tuple[float, list[float]]:
    """Return the best bound of some subgradient steps, and its prices.

    Steps are multiplicative, and the demand is averaged over `width` intervals, for the runs of the relaxed problem
    all poll at the same moments.
    """
    alive, budget = table.alive, table.step / interval
    best, kept = -math.inf, price
    for number in range(steps):
        cost, after = _cheapest(table, price)
        if (bound := cost - budget * sum(price[1:])) > best:
            best, kept = bound, price
        sums = [0.0, *accumulate(_demand(alive, after))]
        price = price.copy()
        for k in range(1, len(alive)):
            reach = max(1, int(width * interval * alive[k - 1] / table.step / 2))
            low, high = max(0, k - reach), min(len(alive), k + reach + 1)
            wanted = (sums[high] - sums[low]) / (high - low) / budget
            price[k] *= math.exp(size / (1 + number / 10) * (min(2.0, wanted) - 1))
    return best, kept


def _demand(alive: list[float], after: list[int]) -> list[float]:
    """Return the expected polls of one run at each age, when each is followed by the one `after` it."""
    demand, k = [0.0] * len(alive), 0
    while k < len(alive) - 1:
        demand[after[k]] += alive[k]
        k = after[k]
    return demand
