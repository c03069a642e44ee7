"""Profiles of servers to rehearse against: a rate limit, faults and variants under one name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from asyncmig.simulator.server.limits import FixedWindow, RateLimit, SlidingCounter, SlidingLog, TokenBucket

__all__ = ["PROFILES", "Profile"]

_FLAKY = (
    "request-lost",
    "answer-lost",
    "reset-mid-body",
    "500-before",
    "500-after",
    "html-502",
    "empty-503",
    "truncated",
)
_PREVIEW = {
    "drift": 1.0,
    "strange-status": 1.0,
    "lagging-run": 1.0,
    "no-zip": 1.0,
    "foreign-poll-url": 1.0,
    "stale": 0.1,
    "zombies": 0.02,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """A server. `goes_wrong`: faults and variants by their names on the command line, with their rates."""

    about: str
    limit: Callable[[int, float], RateLimit] = SlidingLog
    """Makes a rate limit from a number of calls and a window in seconds."""
    goes_wrong: Mapping[str, float] = field(default_factory=dict[str, float])


PROFILES: Mapping[str, Profile] = {
    "calm": Profile(about="nothing goes wrong; a sliding window"),
    "fixed-window": Profile(about="the limit is counted from minute to minute", limit=FixedWindow),
    "strict": Profile(
        about="a refused request counts against the limit as well",
        limit=lambda limit, window: SlidingLog(limit, window, count_rejects=True),
    ),
    "counter": Profile(about="a sliding counter, stricter than a window at times", limit=SlidingCounter),
    "small-burst": Profile(
        about="a bucket that allows a tenth of the limit at once",
        limit=lambda limit, window: TokenBucket(limit, window, burst=max(1, limit // 10)),
    ),
    "preview": Profile(
        about="shapes and statuses that the client does not know, lagging reads", goes_wrong=_PREVIEW
    ),
    "flaky": Profile(
        about="one request in twelve meets a network or proxy in trouble",
        goes_wrong=dict.fromkeys(_FLAKY, 0.01),
    ),
    "hostile": Profile(
        about="flaky, preview and strict in one",
        limit=lambda limit, window: SlidingLog(limit, window, count_rejects=True),
        goes_wrong={**_PREVIEW, **dict.fromkeys(_FLAKY, 0.01)},
    ),
}
"""Profiles by their names on the command line."""
