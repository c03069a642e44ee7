"""When to send a request again, and when to stop: the only layer of the library that retries.

Two rules keep an outage from becoming a storm. A call makes at most `attempts` tries, apart by back-off
with full jitter (Brooker, "Exponential Backoff and Jitter", AWS Architecture Blog, 2015). And all calls of
a session share one quota of retries (the "standard" mode of the AWS SDKs): every retry costs, every
success pays back a little. Once the quota is spent nobody retries by itself: calls stand in one line, and
single probes, ever further apart, find out for all of them whether the server is back. From the first
answer on, each success lets two more go (slow start, as in TCP), so that the line is not a stampede.

A 429 is no failure in this sense: it belongs to the gate and spends no attempt.
"""

import enum
import math
from dataclasses import dataclass
from random import Random
from typing import final

from asyncmig._core.arguments import check_fields
from asyncmig._core.endpoint import Repeat
from asyncmig.errors import InvalidInput

__all__ = [
    "FINAL",
    "Doubt",
    "Next",
    "Occasions",
    "RetryPolicy",
    "RetryQuota",
    "after_failure",
    "backoff",
]

FINAL = frozenset({501, *range(402, 408), *range(410, 425), 426, 428, 431, 451})
"""Undocumented statuses that another try does not change; the others (redirects, 408, 425) may pass."""


class Doubt(enum.Enum):
    """What a failed attempt may have done on the server."""

    NOT_SENT = "not sent"
    """No connection: it cannot have arrived."""
    MAYBE = "maybe"
    """Time-out, reset, 5xx, an answer that says nothing: it may have been processed."""


class Next(enum.Enum):
    """What to do after a failed attempt."""

    RETRY = "retry"
    GIVE_UP = "give up"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often, and how far apart (seconds). Raises `InvalidInput` for less than one attempt, or a negative time."""

    attempts: int = 8
    floor: float = 1.0
    ceiling: float = 20.0

    def __post_init__(self) -> None:
        check_fields(self)
        if self.attempts < 1:
            raise InvalidInput("attempts", self.attempts, "must be at least 1")
        for name in ("floor", "ceiling"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise InvalidInput(name, getattr(self, name), "must be a number of seconds, and not negative")


def backoff(policy: RetryPolicy, attempt: int, rng: Random) -> float:
    """Return the seconds between attempt `attempt` (from 1) and the next: drawn from [floor, 2 ** attempt].

    At most `policy.ceiling`. Full jitter above a floor: without one, a third of the retries would come at once.
    """
    return rng.uniform(policy.floor, max(policy.floor, min(policy.ceiling, 2.0**attempt)))


def after_failure(repeat: Repeat, doubt: Doubt, attempt: int, policy: RetryPolicy) -> Next:
    """Decide after attempt `attempt` (from 1) of a call has failed; `doubt`: the worst of all its attempts."""
    if repeat is Repeat.NEVER and doubt is Doubt.MAYBE:
        return Next.UNKNOWN
    if attempt < policy.attempts:
        return Next.RETRY
    return Next.UNKNOWN if repeat is Repeat.KEYED and doubt is Doubt.MAYBE else Next.GIVE_UP


@final
class Occasions:
    """Which failures of one step are worth telling: the first, and then one after 15 s, 30 s, 60 s, ... 10 min.

    Times are seconds on the caller's clock.
    """

    FIRST_PAUSE, LONGEST_PAUSE = 15.0, 600.0

    __slots__ = ("_next_at", "_pause", "count")

    def __init__(self) -> None:
        self.count = 0
        """Failures so far."""
        self._next_at, self._pause = -math.inf, self.FIRST_PAUSE

    def failed(self, now: float) -> bool:
        """Count a failure, and return whether it is to be told."""
        self.count += 1
        if now < self._next_at:
            return False
        self._next_at, self._pause = now + self._pause, min(self.LONGEST_PAUSE, 2 * self._pause)
        return True


@final
class RetryQuota:
    """The retries that a whole session may still make, and the pace of the probes once they are spent.

    `capacity` tokens; a retry costs `COST` (after a time-out `COST_OF_TIMEOUT`), a success pays back one.
    """

    COST = 5
    COST_OF_TIMEOUT = 10

    __slots__ = ("_capacity", "_ceiling", "_probes", "tokens")

    def __init__(self, *, capacity: int = 500, ceiling: float = 20.0) -> None:
        self._capacity = capacity
        self._ceiling = ceiling
        self._probes = 0
        self.tokens = capacity

    def take(self, *, timed_out: bool) -> bool:
        """Pay for one retry; or return False, and the call stands in line."""
        cost = self.COST_OF_TIMEOUT if timed_out else self.COST
        if self.tokens < cost:
            return False
        self.tokens -= cost
        return True

    def succeeded(self) -> None:
        """Pay back one token: the server answers."""
        self.tokens = min(self._capacity, self.tokens + 1)
        self._probes = 0

    def next_probe(self) -> float:
        """Return the seconds until the next probe of the line: 1, 2, 4, ... `ceiling`."""
        self._probes += 1
        return min(self._ceiling, 2.0 ** (self._probes - 1))
