"""What is left to be sent, and when it can end at the earliest: arithmetic, without a clock or a session.

A server that allows W requests in a window lets the first W go at once, and W more with each window that ends. So
n requests of one budget take at least `(n - 1) // W` windows until the last is sent. That is a lower bound on any
client; what comes on top is the time that the imports themselves take, which nobody knows before some have ended.
"""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import final

from asyncmig.companies import routes
from asyncmig.session import Scope

__all__ = ["Durations", "Forecast", "UnderWay", "earliest_end", "forecast", "requests_left"]

_BEFORE_RUN = (routes.CREATE_COMPANY.key, routes.CREATE_UPLOAD.key, routes.START_IMPORT.key)
_STARTS_AT = {
    "checking": 0,
    "waiting": 0,
    "creating": 0,
    "uploading": 1,
    "starting": 2,
    "running": 3,
    "deciding": 3,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class UnderWay:
    """A customer who has not ended."""

    step: str = "waiting"
    files: int = 1
    """How many are still to be uploaded."""
    age: float | None = None
    """Seconds for which the import has been running, if it has begun."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """Seconds until the end. `is_bound`: it cannot be sooner, and how much later it will be nobody knows yet."""

    seconds: float
    is_bound: bool


@final
class Durations:
    """How long imports took, as far as some have ended."""

    __slots__ = ("_longest",)

    def __init__(self) -> None:
        self._longest: float | None = None

    def add(self, seconds: float) -> None:
        """Take the duration of an import that has ended."""
        self._longest = max(seconds, self._longest or 0.0)

    @property
    def longest(self) -> float | None:
        """Seconds; None before the first end. The last of many to end is what a fleet waits for."""
        return self._longest


def requests_left(customer: UnderWay) -> Counter[str]:
    """Return the fewest requests, by endpoint, that a customer still takes: one poll, and a ZIP of all sheets."""
    stages = (
        {routes.CREATE_COMPANY.key: 1},
        {routes.CREATE_UPLOAD.key: customer.files},
        {routes.START_IMPORT.key: 1},
        {routes.READ_IMPORT.key: 1},
        {routes.DOWNLOAD.key: 1},
    )
    left: Counter[str] = Counter()
    for stage in stages[_STARTS_AT.get(customer.step, len(stages) - 1) :]:
        left.update(stage)
    return +left


def earliest_end(
    requests: Mapping[str, int], *, limit: int, window: float, scope: Scope = "endpoint"
) -> float:
    """Return the seconds before which the last of these requests cannot be sent, with nothing sent lately."""
    counts = [sum(requests.values())] if scope == "key" else list(requests.values())
    return max(((count - 1) // limit * window for count in counts if count), default=0.0)


def forecast(
    under_way: Collection[UnderWay],
    durations: Durations,
    *,
    limit: int,
    window: float,
    scope: Scope,
    concurrency: int = 500,
) -> Forecast:
    """Return when all of `under_way` will have ended, from the budget and from how long imports took so far."""
    left: Counter[str] = Counter()
    for (step, files), count in Counter((customer.step, customer.files) for customer in under_way).items():
        for endpoint, requests in requests_left(UnderWay(step=step, files=files)).items():
            left[endpoint] += requests * count
    starts = {endpoint: left[endpoint] for endpoint in _BEFORE_RUN if left[endpoint]}
    started = earliest_end(starts, limit=limit, window=window, scope=scope)
    bound = earliest_end(left, limit=limit, window=window, scope=scope)
    longest, ages = durations.longest, [customer.age for customer in under_way if customer.age is not None]
    if longest is None:
        return Forecast(bound, is_bound=bool(under_way))
    ends = [bound, *(longest - age for age in ages)]
    if starts:
        ends += [started + longest, longest * -(-len(under_way) // concurrency)]
    return Forecast(max(ends), is_bound=any(age > longest for age in ages))
