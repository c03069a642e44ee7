"""Choices where the contract is silent. A client must be correct under all of them.

A profile is a server to rehearse against: a rate limit, faults and variants under one name.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from random import Random

from asyncmig.simulator.server.limits import FixedWindow, RateLimit, SlidingCounter, SlidingLog, TokenBucket
from asyncmig.simulator.server.settings import check_amount, is_share

__all__ = ["PAGES", "PROFILES", "VARIANTS", "Profile", "Variants"]

_SHARES = ("failed_writes", "hollow_writes", "unread_writes", "zombies", "canceled", "stale")
_AMOUNTS = ("listed_writes", "inline_rows", "park_lasts", "lag", "upload_lives", "key_lives")
PAGES = ("none", "cursor", "url", "page", "offset", "repeats", "more")
"""The ways in which a list of imports can be paginated."""

_WORDS: dict[str, tuple[object, ...]] = {
    "replay_status": (200, 201),
    "replay_shows": ("present", "queued"),
    "active": ("bare", "wrapped", "anonymous"),
    "unconnected_export": ("refused", "conflict", "fails"),
    "unanswered": ("proposed", "untouched"),
    "pages": PAGES,
    "poll_url": ("path", "foreign"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Variants:
    """One choice for each silence of the contract; the numbers are those of the contract's list."""

    replay_status: int = 200
    """1: how a repeat under a known idempotency key is answered, 200 or 201."""
    replay_shows: str = "present"
    """1: the status in that answer, `present` or `queued`."""
    name_first: bool = False
    """2: a name that is taken (400) is noticed before an external id that is taken (409)."""
    existing: bool = False
    """2: a company with a known external id is answered with 200 and the company."""
    active: str = "bare"
    """3: the active import `bare`, `wrapped` in `run`, or `anonymous`, without its id."""
    parks_twice: bool = False
    """5: after an approval the run parks once more, its questions under the same ids."""
    rejected_keeps: bool = False
    """7: a rejected run leaves its valid rows."""
    zip_status: int = 200
    """9: the archive of all sheets: 200, or 404 or 501 where it does not exist yet."""
    catalogue: bool = True
    """9: sources and templates can be listed; otherwise 404."""
    unconnected_export: str = "fails"
    """10: an export without a connection is `refused` (400), a `conflict` (409), or its run `fails`."""
    failed_writes: float = 0.03
    """Share of an export's writes that the destination refuses."""
    hollow_writes: float = 0.03
    """Share of them that it accepts without keeping the fields."""
    unread_writes: float = 0.0
    """Share of the successful writes that are not read back: `fields_confirmed` is null."""
    listed_writes: int | None = None
    """At most so many writes are in an export's report, whatever its counts say."""
    gzip: bool = False
    """Downloads are compressed for a client that accepts it."""
    unanswered: str = "proposed"
    """6: what an approval with answers does about questions that it leaves out: as `proposed`, or `untouched`."""
    inline_rows: int | None = None
    """11: how many rows an import takes inline; more are refused."""
    inline_status: int = 413
    """11: the status of that refusal, 413 or 400."""
    pages: str = "none"
    """List imports: all at once (`none`), or one by one, and the next under `cursor`, `url`, `page` or `offset`; or
    `repeats`, the same page each time, with a new cursor; or `more`, which names no way to the next page."""
    list_field: str = "imports"
    """List imports: the field that has them, or `` for a bare list."""
    park_lasts: float | None = None
    """12: seconds after which a park expires into `failed`."""
    strange_status: str | None = None
    """12: a status that the contract does not name, shown while the run is running."""
    poll_url: str = "path"
    """13: a `path`, or `foreign`: absolute, to another host."""
    drift: bool = False
    """15: numbers as strings, null for optional fields, unknown fields."""
    error_body: bool = True
    """15: errors come with their text; otherwise with an empty body."""
    lag: float = 0.0
    """18: seconds in which a run that was just created answers 404."""
    zombies: float = 0.0
    """Share of runs whose engine dies: they read `failed` in the end."""
    canceled: float = 0.0
    """Share of runs that another client cancels."""
    stale: float = 0.0
    """Share of reads that repeat the previous read."""
    upload_lives: float = 3600.0
    """Seconds in which a signed URL can be used."""
    key_lives: float | None = None
    """Seconds from the first request to the moment at which the key is revoked."""

    def __post_init__(self) -> None:
        """Raise `ValueError` for invalid shares and unknown words."""
        for name in _SHARES:
            if not is_share(getattr(self, name)):
                raise ValueError(f"{name} must be a number from 0 to 1: {getattr(self, name)!r}")
        for name in _AMOUNTS:
            if getattr(self, name) is not None:
                check_amount(name, getattr(self, name))
        for name, known in _WORDS.items():
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name} must be one of {', '.join(map(str, known))}: {getattr(self, name)!r}"
                )

    @classmethod
    def drawn(cls, rng: Random) -> "Variants":
        """Return a random choice for everything."""
        return cls(
            replay_status=rng.choice((200, 201)),
            replay_shows=rng.choice(("present", "queued")),
            name_first=rng.random() < 0.5,
            existing=rng.random() < 0.3,
            active=rng.choice(("bare", "wrapped", "anonymous")),
            parks_twice=rng.random() < 0.3,
            rejected_keeps=rng.random() < 0.5,
            zip_status=rng.choice((200, 404, 501)),
            catalogue=rng.random() < 0.7,
            unconnected_export=rng.choice(("refused", "conflict", "fails")),
            strange_status=rng.choice((None, "blocked", "paused")),
            poll_url=rng.choice(("path", "foreign")),
            drift=rng.random() < 0.5,
            error_body=rng.random() < 0.7,
            lag=rng.choice((0.0, 5.0, 15.0)),
            zombies=rng.choice((0.0, 0.1)),
            canceled=rng.choice((0.0, 0.1)),
            stale=rng.choice((0.0, 0.2)),
            unanswered=rng.choice(("proposed", "untouched")),
            inline_rows=rng.choice((None, 10)),
            inline_status=rng.choice((400, 413)),
            pages=rng.choice(PAGES),
            list_field=rng.choice(("imports", "runs", "items", "data", "")),
        )

    def having(self, name: str, rate: float) -> "Variants":
        """Return these choices with one more, by its name on the command line. Raises `KeyError` for an unknown
        name.
        """
        if name in ("zombies", "canceled", "stale"):
            return {
                "zombies": replace(self, zombies=rate),
                "canceled": replace(self, canceled=rate),
                "stale": replace(self, stale=rate),
            }[name]
        return _NAMED[name](self)


_NAMED: dict[str, Callable[[Variants], Variants]] = {
    "expired-upload-url": lambda variants: replace(variants, upload_lives=0.2),
    "revoked-key": lambda variants: replace(variants, key_lives=60.0),
    "expiring-park": lambda variants: replace(variants, park_lasts=60.0),
    "no-zip": lambda variants: replace(variants, zip_status=404),
    "no-catalogue": lambda variants: replace(variants, catalogue=False),
    "foreign-poll-url": lambda variants: replace(variants, poll_url="foreign"),
    "strange-status": lambda variants: replace(variants, strange_status="blocked"),
    "drift": lambda variants: replace(variants, drift=True),
    "lagging-run": lambda variants: replace(variants, lag=10.0),
    "second-park": lambda variants: replace(variants, parks_twice=True),
    "few-inline-rows": lambda variants: replace(variants, inline_rows=10),
    "untouched-questions": lambda variants: replace(variants, unanswered="untouched"),
    "pages": lambda variants: replace(variants, pages="cursor"),
    "endless-pages": lambda variants: replace(variants, pages="repeats"),
    "gzip": lambda variants: replace(variants, gzip=True),
    "failed-writes": lambda variants: replace(variants, failed_writes=0.5),
    "hollow-writes": lambda variants: replace(variants, hollow_writes=0.5),
    "empty-errors": lambda variants: replace(variants, error_body=False),
}
VARIANTS = ("zombies", "canceled", "stale", *_NAMED)
"""Names that `Variants.having` knows; the first three have a rate."""
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
