"""Rate limits of a server: fixed and sliding windows, a two-window counter, a token bucket. All of them are pure."""

import re
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from math import ceil
from typing import Protocol, final

from asyncmig.simulator.server.settings import check_amount

__all__ = [
    "Budgets",
    "FixedWindow",
    "Limits",
    "Meter",
    "RateLimit",
    "SlidingCounter",
    "SlidingLog",
    "TokenBucket",
]


class RateLimit(Protocol):
    """Decides about one call after another."""

    def allow(self, now: float) -> bool:
        """Count a call at `now` and return whether it is allowed."""
        ...


Rate = tuple[int, float]
"""So many requests in so many seconds."""
_RATE = re.compile(r"(\d{1,9})/(\d{0,9}(?:\.\d{1,9})?)(s|m|h)?")
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}
_HOURLY: Mapping[str, Rate] = {"agent": (5, 3600.0), "create": (1, 3600.0), "generate": (1, 3600.0)}
_ANY_ENDPOINT: Rate = (100, 60.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The numbers of an account's limits: by class, by endpoint, or for the whole key."""

    rates: Mapping[str, Rate] = field(default_factory=dict[str, Rate])
    """By class: reads, writes, jobs, agent, create, generate. Without any, each endpoint has its own limit."""
    endpoint: Rate = _ANY_ENDPOINT
    """The limit of each endpoint, where there are no classes."""
    key: Rate | None = None
    """Where there are no classes: one limit for all endpoints together."""
    runs: int | None = 3
    """Runs that may be in progress at the same time."""

    @property
    def by_class(self) -> bool:
        """Whether requests are counted by class."""
        return bool(self.rates)

    def charged(self, endpoint: str) -> str:
        """Return what a request to an endpoint charges where there are no classes."""
        return endpoint if self.key is None else _KEY

    def rate_of(self, name: str) -> Rate | None:
        """Return the limit of a class or an endpoint, or None where there is none."""
        if self.rates:
            return self.rates.get(name)
        return self.key if name == _KEY else self.endpoint

    @classmethod
    def parse(cls, text: str) -> "Limits":
        """Return `by-class`, `per-minute`, `per-endpoint` or `per-key`, or limits of a text such as
        `agent=50/1h,create=20/1h,runs=5`.

        A text that names classes changes those of `by-class`; one that names only `endpoint` or `key` has no classes.
        The same texts are accepted as by `asyncmig.Limits.parse`. Raises `ValueError` for any other.
        """
        if (preset := _PRESETS.get(text.strip().lower())) is not None:
            return preset
        by_class = _PRESETS["by-class"]
        values: dict[str, str] = {}
        for part in text.split(","):
            name, _, value = (piece.strip() for piece in part.partition("="))
            if name in values or name not in (*by_class.rates, "endpoint", "key", "runs"):
                raise ValueError(
                    f"{part!r} is not a limit: there are {', '.join(_PRESETS)}, and once each "
                    f"{', '.join(by_class.rates)}, endpoint and key as in agent=5/1h, and runs=3"
                )
            values[name] = value
        runs = _runs(values.pop("runs")) if "runs" in values else None
        rates = {name: _rate(value) for name, value in values.items()}
        endpoint, key = rates.pop("endpoint", None), rates.pop("key", None)
        if not rates and (endpoint or key):
            return cls(endpoint=endpoint or _ANY_ENDPOINT, key=key, runs=runs)
        return cls(
            rates={**by_class.rates, **rates},
            endpoint=endpoint or _ANY_ENDPOINT,
            key=key,
            runs=runs or by_class.runs,
        )


def _rate(text: str) -> Rate:
    match = _RATE.fullmatch(text.lower())
    if match is None or not (match[2] or match[3]):
        raise ValueError(f"{text!r} is not a rate such as 5/1h")
    limit, window = int(match[1]), float(match[2] or 1) * _UNITS[match[3] or "s"]
    if limit < 1 or window <= 0:
        raise ValueError(f"{text!r} must have a limit and a window greater than 0")
    return limit, window


def _runs(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 0 < len(text) < 10 or int(text) < 1:
        raise ValueError(f"runs={text!r} must be a whole number of at least 1")
    return int(text)


_KEY = "*"
_PRESETS: Mapping[str, Limits] = {
    "by-class": Limits(rates={"reads": (30, 60.0), "writes": (10, 60.0), "jobs": (5, 3600.0), **_HOURLY}),
    "per-minute": Limits(rates={"reads": (60, 60.0), "writes": (60, 60.0), "jobs": (60, 60.0), **_HOURLY}),
    "per-endpoint": Limits(runs=None),
    "per-key": Limits(key=_ANY_ENDPOINT, runs=None),
}


@dataclass(eq=False)
class Meter(ABC):
    """A rate limit that can tell a client how much of it is left: `limit` calls in `window` seconds.

    With `count_rejects`, a refused call counts, too.
    """

    limit: int
    window: float = 60.0
    count_rejects: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        check_amount("limit", self.limit)
        check_amount("window", self.window, is_zero_allowed=False)

    def allow(self, now: float) -> bool:
        """Count a call at `now` (seconds) and return whether it is allowed."""
        allowed = self.remaining(now) > 0
        if allowed or self.count_rejects:
            self.count(now)
        return allowed

    @abstractmethod
    def remaining(self, now: float) -> int:
        """Return how many calls are allowed at `now`."""

    @abstractmethod
    def resets_in(self, now: float) -> float:
        """Return the seconds until calls are allowed again."""

    @abstractmethod
    def count(self, now: float) -> None:
        """Count a call. `remaining` was called with the same `now`."""


@dataclass(eq=False)
class FixedWindow(Meter):
    """`limit` calls in each window; windows begin at `phase` and every `window` seconds after."""

    phase: float = field(default=0.0, kw_only=True)
    _current: float = field(default=float("-inf"), init=False)
    _calls: int = field(default=0, init=False)
    _calls_before: int = field(default=0, init=False)
    """Calls in the window before this one."""

    def remaining(self, now: float) -> int:
        """Return how many calls the window of `now` still allows."""
        current = (now - self.phase) // self.window
        if current != self._current:
            self._calls_before = self._calls if current == self._current + 1 else 0
            self._current, self._calls = current, 0
        return max(0, self.limit - self._calls)

    def resets_in(self, now: float) -> float:
        """Return the seconds until the next window."""
        return self.window - (now - self.phase) % self.window

    def count(self, now: float) -> None:
        self._calls += 1


@final
class SlidingCounter(FixedWindow):
    """The present fixed window, plus the previous one weighted by how much of it is still in view."""

    def remaining(self, now: float) -> int:
        """Return how many calls are allowed at `now`."""
        left = super().remaining(now)
        return max(0, ceil(left - self._calls_before * self.resets_in(now) / self.window))


@final
@dataclass(eq=False)
class SlidingLog(Meter):
    """`limit` calls in any `window` seconds."""

    _log: deque[float] = field(default_factory=deque[float], init=False)

    def remaining(self, now: float) -> int:
        """Return how many calls are allowed at `now`."""
        while self._log and self._log[0] <= now - self.window:
            self._log.popleft()
        return max(0, self.limit - len(self._log))

    def resets_in(self, now: float) -> float:
        """Return the seconds until a call is allowed; 0 if one is."""
        if self.remaining(now) or not self.limit:
            return 0.0 if self.limit else self.window
        return self._log[-self.limit] + self.window - now

    def count(self, now: float) -> None:
        self._log.append(now)


@final
@dataclass(eq=False)
class TokenBucket(Meter):
    """`burst` tokens, refilled at `limit` in `window` seconds. With `count_rejects`, a refused call costs one too."""

    burst: int = field(kw_only=True)
    _at: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_amount("burst", self.burst)
        self._tokens = float(self.burst)

    def remaining(self, now: float) -> int:
        """Return how many whole tokens there are at `now`."""
        self._tokens = min(self.burst, self._tokens + (now - self._at) * self.limit / self.window)
        self._at = now
        return int(self._tokens)

    def resets_in(self, now: float) -> float:
        """Return the seconds until there is a whole token."""
        missing = 1.0 - self._tokens if self.remaining(now) < 1 else 0.0
        return missing * self.window / self.limit if self.limit else self.window

    def count(self, now: float) -> None:
        self._tokens = max(0.0, self._tokens - 1.0)


@final
class Budgets:
    """Rate limits by name. A request charges several of them, all or none."""

    def __init__(self, make: Callable[[str], Meter | None]) -> None:
        """`make`: makes the limit of a name, or None where there is none."""
        self._make = make
        self._meters: dict[str, Meter | None] = {}

    def _named(self, names: Iterable[str]) -> list[Meter]:
        for name in names:
            if name not in self._meters:
                self._meters[name] = self._make(name)
        return [meter for name in names if (meter := self._meters[name]) is not None]

    def admit(self, names: Iterable[str], now: float) -> bool:
        """Charge a request to its budgets; return whether all of them allow it.

        A refused request is charged to all of them if they count refused ones.
        """
        meters = self._named(tuple(names))
        left = [meter.remaining(now) for meter in meters]
        admitted = 0 not in left
        for meter in meters:
            if admitted or meter.count_rejects:
                meter.count(now)
        return admitted

    def headers(self, names: Iterable[str], now: float, clock: float) -> dict[str, str]:
        """Return the headers about the tightest of some budgets. `clock`: Unix seconds at `now`."""
        meters = self._named(tuple(names))
        if not meters:
            return {}
        meter = min(meters, key=lambda each: (each.remaining(now), -each.resets_in(now)))
        resets_in = ceil(meter.resets_in(now))
        return {
            "X-RateLimit-Limit": str(meter.limit),
            "X-RateLimit-Remaining": str(meter.remaining(now)),
            "X-RateLimit-Reset": str(ceil(clock + resets_in)),
            "Retry-After": str(max(1, resets_in)),
        }
