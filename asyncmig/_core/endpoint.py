"""The properties of an endpoint: method, route template, lane, budgets, and what a client may do after a failure."""

import enum
from dataclasses import dataclass, field

__all__ = ["LARGEST_LIST", "LARGEST_REPLY", "Endpoint", "Lane", "Repeat"]

LARGEST_REPLY = 4 * 1024 * 1024
"""The default limit of a reply, in bytes after decompression."""
LARGEST_LIST = 16 * 1024 * 1024
"""The limit of a list, and of a reply to `Session.request`, in bytes after decompression."""


class Lane(enum.IntEnum):
    """The urgency of a request. Of the requests that wait for a budget, one of a lower lane goes first."""

    DECIDE = 0
    """For requests whose result a person waits for."""
    WORK = 1
    """For requests that do work: create, upload, start, download."""
    POLL = 2
    """For requests that only read a status."""


class Repeat(enum.Enum):
    """Whether a request may be sent again when its outcome is unknown."""

    ALWAYS = "always"
    """Safe to repeat: the request only reads, or a second one changes nothing."""
    KEYED = "keyed"
    """Safe to repeat: the body carries an idempotency key or a unique id. If we give up, the request may still be
    running, and only the same key can find it."""
    NEVER = "never"
    """Not safe: the server may have processed the first request, and a second one would do the same again."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Endpoint:
    """One route of an API. Two endpoints are equal only if they are the same object."""

    name: str
    method: str
    template: str
    """Path below the base URL, with `{placeholders}` for ids. Ids are not part of the endpoint.

    A template that is one placeholder, such as `{upload_url}`, represents a URL that the server names.
    """
    repeat: Repeat
    doubtful_refusals: frozenset[int] = frozenset()
    """Statuses that mean "exists already". If the answer to an earlier attempt was lost, that attempt may have caused
    such a refusal. Then the outcome is unknown."""
    lane: Lane = Lane.WORK
    advice: str = ""
    """What a person can do when the outcome of a request is unknown."""
    largest_reply: int = LARGEST_REPLY
    """The limit of a reply, in bytes after decompression. Reading stops at the limit, and the answer counts as
    lost."""
    quiet_for: float = 0.0
    """Seconds for which a live stream may send nothing. Unless it is 0, it replaces `Timeouts.stall`, and
    `Timeouts.min_rate` does not apply."""

    sends_html: bool = True
    """Whether an HTML page can be the server's own response. If not, a proxy sent the page, and the attempt has
    failed."""

    budgets: tuple[str, ...] = ()
    """The named budgets that a request charges, if the session's `Limits` have them. A request that charges none of
    them charges the endpoint's own budget, whose name is `key`."""
    run_order: int | None = None
    """None if a request starts no run. Otherwise a request takes a run slot until its run is no longer in progress,
    and in its lane a request of a lower order goes first."""

    key: str = field(init=False)
    """Method and route template, such as `GET /sources`."""
    counted_as: tuple[str, str] = field(init=False)
    """The key and the name of the lane, under which requests are counted."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", f"{self.method} {self.template}")
        object.__setattr__(self, "counted_as", (self.key, self.lane.name))
