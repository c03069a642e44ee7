"""Decides when a request is sent again and when the client gives up.

Two rules prevent a retry storm:

- A call makes at most `RetryPolicy.attempts` attempts. Between them it backs off with full jitter (Brooker,
  "Exponential Backoff and Jitter", AWS Architecture Blog, 2015).
- All calls of a session share one retry quota (as in the "standard" retry mode of the AWS SDKs). Each retry costs
  tokens, and each success returns one. Once the quota is spent, failed calls wait in one queue. Single probes at
  growing intervals detect when the server is available again. From then on, each success releases two calls (slow
  start, as in TCP).

A 429 does not count as a failed attempt: the gate handles it.
"""

import enum
import math
from dataclasses import dataclass
from random import Random
from typing import final

from asyncmig._core.arguments import check_fields
from asyncmig._core.endpoint import Repeat
from asyncmig.errors import InvalidInput, NoAnswer, ServerError, TruncatedDownload, UnexpectedReply

__all__ = [
    "FINAL",
    "TRANSIENT",
    "Doubt",
    "Next",
    "ReportThrottle",
    "RetryPolicy",
    "RetryQuota",
    "after_failure",
    "backoff",
]

FINAL = frozenset({501, *range(402, 408), *range(410, 425), 426, 428, 431, 451})
"""Undocumented statuses that a repeat does not change. The others (redirects, 408, 425) may be temporary."""
TRANSIENT = (NoAnswer, ServerError, UnexpectedReply, TruncatedDownload)
"""Errors that another attempt may avoid: the server is unavailable, or a proxy responded in its place."""


class Doubt(enum.Enum):
    """What a failed attempt may have done on the server."""

    NOT_SENT = "not sent"
    """No connection was made, so the request cannot have arrived."""
    MAYBE = "maybe"
    """Time-out, reset, 5xx or an unreadable answer: the server may have processed the request."""


class Next(enum.Enum):
    """What to do after a failed attempt."""

    RETRY = "retry"
    GIVE_UP = "give up"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """The maximum number of attempts of a call, and the bounds of the pause between two attempts, in seconds.

    Raises `InvalidInput` for less than one attempt or a negative time.
    """

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

    At most `policy.ceiling`. Without the floor, full jitter would send a third of the retries almost at once.
    """
    return rng.uniform(policy.floor, max(policy.floor, min(policy.ceiling, 2.0**attempt)))


def after_failure(repeat: Repeat, doubt: Doubt, attempt: int, policy: RetryPolicy) -> Next:
    """Decide what to do after attempt `attempt` (from 1) has failed. `doubt`: the worst of all attempts so far."""
    if repeat is Repeat.NEVER and doubt is Doubt.MAYBE:
        return Next.UNKNOWN
    if attempt < policy.attempts:
        return Next.RETRY
    return Next.UNKNOWN if repeat is Repeat.KEYED and doubt is Doubt.MAYBE else Next.GIVE_UP


@final
class ReportThrottle:
    """Selects which failures of one step are reported: the first, and then one after 15 s, 30 s, 60 s, ... 10 min.

    Times are seconds on the caller's clock.
    """

    FIRST_PAUSE, LONGEST_PAUSE = 15.0, 600.0

    __slots__ = ("_next_at", "_pause", "count")

    def __init__(self) -> None:
        self.count = 0
        """Failures so far."""
        self._next_at, self._pause = -math.inf, self.FIRST_PAUSE

    def failed(self, now: float) -> bool:
        """Count a failure, and return whether to report it."""
        self.count += 1
        if now < self._next_at:
            return False
        self._next_at, self._pause = now + self._pause, min(self.LONGEST_PAUSE, 2 * self._pause)
        return True


@final
class RetryQuota:
    """The retries that a session may still make, and the intervals of the probes once they are spent.

    It starts with `CAPACITY` tokens. A retry costs `COST` tokens, after a time-out `COST_OF_TIMEOUT`. A success
    returns one token. `ceiling`: the longest interval between probes, in seconds.
    """

    CAPACITY = 500
    COST = 5
    COST_OF_TIMEOUT = 10

    __slots__ = ("_ceiling", "_probes", "tokens")

    def __init__(self, *, ceiling: float = 20.0) -> None:
        self._ceiling = ceiling
        self._probes = 0
        self.tokens = self.CAPACITY

    def take(self, *, timed_out: bool) -> bool:
        """Take the tokens for one retry. Return False if too few are left: then the call must wait in the queue."""
        cost = self.COST_OF_TIMEOUT if timed_out else self.COST
        if self.tokens < cost:
            return False
        self.tokens -= cost
        return True

    def succeeded(self) -> None:
        """Return one token after a success."""
        self.tokens = min(self.CAPACITY, self.tokens + 1)
        self._probes = 0

    def next_probe(self) -> float:
        """Return the seconds until the queue's next probe: 1, 2, 4, ... `ceiling`."""
        self._probes += 1
        return min(self._ceiling, 2.0 ** min(self._probes - 1, 60))
