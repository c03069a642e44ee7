"""An endpoint as a row of facts: method, route template, urgency, and what a client may do when a request fails."""

import enum
from dataclasses import dataclass, field

__all__ = ["LARGEST_LIST", "LARGEST_REPLY", "Endpoint", "Lane", "Repeat"]

LARGEST_REPLY = 4 * 1024 * 1024
"""Largest reply in bytes, after decompression."""
LARGEST_LIST = 16 * 1024 * 1024
"""Largest list, and reply to `Session.request`, in bytes after decompression."""


class Lane(enum.IntEnum):
    """How urgent a request is: a lower lane goes first whenever a budget has room."""

    DECIDE = 0
    """A person waits for the answer."""
    WORK = 1
    """Does work: create, upload, start, download."""
    POLL = 2
    """Only reads a status."""


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
    """One route of an API. Statistics and retry rules are kept by `key`. Compared by identity."""

    name: str
    method: str
    template: str
    """Path below the base URL, with `{placeholders}` for ids. Ids are not part of the endpoint.

    A template that is one placeholder, such as `{upload_url}`, stands for a URL that the server names.
    """
    repeat: Repeat
    doubtful_refusals: frozenset[int] = frozenset()
    """Statuses that mean "taken". If the answer to an earlier attempt was lost, that attempt may be the cause of such
    a refusal, and the outcome is unknown."""
    lane: Lane = Lane.WORK
    advice: str = ""
    """What a person can do when the outcome of a request is unknown."""
    largest_reply: int = LARGEST_REPLY
    """Bytes of a reply, decompressed. Reading stops at a larger one, which counts as a lost answer."""
    stall_timeout: float = 0.0
    """Seconds that the server may legitimately send nothing while a body comes. Where `Timeouts.stall` of the session
    is shorter, this applies instead."""
    quiet_for: float = 0.0
    """Seconds that a live stream may legitimately send nothing. If not 0, this replaces `Timeouts.stall`, and
    `Timeouts.min_rate` does not apply."""

    sends_html: bool = True
    """Whether the server may send an HTML page as a body. If not, a page is a proxy's, and the attempt has failed."""

    budgets: tuple[str, ...] = ()
    """The named budgets that a request charges, as far as the session's `Limits` have them. If it charges none, it
    charges a budget of its own (`key`)."""
    run_order: int | None = None
    """None if a request starts no run. Otherwise it takes a run slot for as long as its run is in progress. In its
    lane, a request of a lower order goes first."""

    key: str = field(init=False)
    """Method and route template."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", f"{self.method} {self.template}")
