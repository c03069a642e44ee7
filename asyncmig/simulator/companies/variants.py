"""Choices where the contract is silent. A client must be correct under all of them.

A profile is a server to rehearse against: a rate limit, faults and variants under one name.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from asyncmig.simulator.server.limits import FixedWindow, RateLimit, SlidingCounter, SlidingLog, TokenBucket
from asyncmig.simulator.server.messages import Json
from asyncmig.simulator.server.settings import BaseVariants, amount, share, silence, text

__all__ = ["PAGES", "PROFILES", "VARIANTS", "Profile", "Variants", "page_of"]

PAGES = ("none", "cursor", "url", "page", "offset", "repeats", "more")
"""The ways in which a list of imports can be paginated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variants(BaseVariants):
    """One choice for each silence of the contract, by the number in the contract's list; and how often runs and
    writes fail. A choice with one reading is never drawn. Times are in seconds, shares are from 0 to 1.
    """

    replay_status: int = silence(1, 200, 201)
    """How a repeat under a known idempotency key is answered."""
    replay_shows: str = silence(1, "present", "queued")
    """The status in that answer."""
    refs_count: bool = silence(1, True, False)
    """A repeat with a fresh upload is another payload (409)."""
    name_first: bool = silence(2, False, True)
    """A name that is taken (400) is noticed before an external id that is taken (409)."""
    existing: bool = silence(2, False, True)
    """A company with a known external id is answered with 200 and the company."""
    active: str = silence(3, "bare", "wrapped", "anonymous")
    """The active import: bare, wrapped in `run`, or without its id."""
    parks_twice: bool = silence(5, False, True)
    """After an approval the run parks once more, its questions under the same ids."""
    unanswered: str = silence(6, "proposed", "untouched")
    """What an approval with answers does about questions that it leaves out."""
    rejected_keeps: bool = silence(7, False, True)
    """A rejected run leaves its valid rows."""
    upload_refs: str = silence(8, "several", "one")
    """How many imports an `upload_ref` serves."""
    zip_status: int = silence(9, 200, 404, 501)
    """The archive of all sheets; 404 or 501 where it does not exist yet."""
    catalogue: bool = silence(9, True, False)
    """Sources and templates can be listed; otherwise 404."""
    unconnected_export: str = silence(10, "fails", "refused", "conflict")
    """An export without a connection: its run `fails`, or it is `refused` (400) or a `conflict` (409)."""
    second_import: str = silence(11, "appends", "replaces")
    """What a second import of a company does to the rows of the first."""
    inline_rows: int | None = amount(11, None, 10)
    """How many rows an import takes inline; more are refused."""
    inline_status: int = silence(11, 413, 400)
    """The status of that refusal."""
    park_lasts: float | None = amount(12, None)
    """Seconds after which a park expires into `failed`."""
    strange_status: str | None = text(12, None, "blocked", "paused")
    """A status that the contract does not name, shown while a run is running."""
    poll_url: str = silence(13, "path", "foreign")
    """`foreign`: absolute, to another host."""
    error_body: bool = silence(15, True, False)
    """Errors come with their text; otherwise with an empty body."""
    lag: float = amount(18, 0.0, 5.0, 15.0)
    """Seconds in which a run that was just created answers 404."""
    upload_status: int = silence(0, 201, 200)
    """The status of an answer with a signed URL."""
    pages: str = silence(0, *PAGES)
    """List imports: all at once (`none`), or one by one, and the next under `cursor`, `url`, `page` or `offset`; or
    `repeats`, the same page each time, with a new cursor; or `more`, which names no way to the next page."""
    list_field: str = text(0, "imports", "runs", "items", "data", "")
    """List imports: the field that has them, or `` for a bare list."""
    failed_writes: float = share(0, 0.03)
    """Share of an export's writes that the destination refuses."""
    hollow_writes: float = share(0, 0.03)
    """Share of them that it accepts without keeping the fields."""
    unread_writes: float = share(0, 0.0)
    """Share of the successful writes that are not read back: `fields_confirmed` is null."""
    listed_writes: int | None = amount(0, None)
    """At most so many writes are in an export's report, whatever its counts say."""
    gzip: bool = silence(0, False, True)
    """Downloads are compressed for a client that accepts it."""
    zombies: float = share(0, 0.0, 0.1)
    """Share of runs whose engine dies: they read `failed` in the end."""
    canceled: float = share(0, 0.0, 0.1)
    """Share of runs that another client cancels."""
    stale: float = share(0, 0.0, 0.2)
    """Share of reads that repeat the previous read."""
    upload_lives: float = amount(0, 3600.0)
    """Seconds in which a signed URL can be used."""
    key_lives: float | None = amount(0, None)
    """Seconds from the first request to the moment at which the key is revoked."""

    def having(self, name: str, rate: float) -> "Variants":
        """Return these choices with one more, by its name on the command line (`VARIANTS`).

        `rate` is the share of those that have one. Raises `KeyError` for an unknown name.
        """
        chosen, value = VARIANTS[name]
        return self.with_reading(chosen, value, rate)


VARIANTS: Mapping[str, tuple[str, object]] = {
    "zombies": ("zombies", None),
    "canceled": ("canceled", None),
    "stale": ("stale", None),
    "expired-upload-url": ("upload_lives", 0.2),
    "revoked-key": ("key_lives", 60.0),
    "expiring-park": ("park_lasts", 60.0),
    "no-zip": ("zip_status", 404),
    "no-catalogue": ("catalogue", False),
    "foreign-poll-url": ("poll_url", "foreign"),
    "strange-status": ("strange_status", "blocked"),
    "drift": ("drift", True),
    "lagging-run": ("lag", 10.0),
    "second-park": ("parks_twice", True),
    "few-inline-rows": ("inline_rows", 10),
    "untouched-questions": ("unanswered", "untouched"),
    "pages": ("pages", "cursor"),
    "endless-pages": ("pages", "repeats"),
    "gzip": ("gzip", True),
    "failed-writes": ("failed_writes", None),
    "hollow-writes": ("hollow_writes", None),
    "empty-errors": ("error_body", False),
}
"""Names on the command line: the field and its value; None for a share, which becomes the rate."""


def page_of(items: Sequence[Json], query: Mapping[str, str], variants: Variants, *, number: int) -> object:
    """Return the page of a list that a query asks for, or the whole list. `number`: of the requests so far."""
    how, field = variants.pages, variants.list_field
    if how == "none":
        return {field: items} if field else items
    asked = query.get("cursor") or query.get("offset") or query.get("page") or ""
    position = int(asked) - (how == "page") if asked.isdigit() else 0
    is_last = position + 1 >= len(items)
    address = f"https://elsewhere.invalid/api/v1/imports?cursor={position + 1}&limit=1"
    following: dict[str, Json] = {
        "cursor": {"next_cursor": None if is_last else str(position + 1)},
        "url": {"links": {"next": None if is_last else address}},
        "page": {"pagination": {"page": position + 1, "total_pages": len(items)}},
        "offset": {"offset": position, "limit": 1, "total": len(items)},
        "repeats": {"next": f"again-{number}", "has_more": True},
        "more": {"has_more": not is_last},
    }
    return {field or "imports": items[position : position + 1], **following[how]}


# Profiles


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
