"""An endpoint as a row of facts: method, route template, what a repeat may do, how urgent it is."""

import enum
from dataclasses import dataclass

__all__ = ["LARGEST_LIST", "LARGEST_REPLY", "Endpoint", "Lane", "Repeat"]

LARGEST_REPLY = 4 * 1024 * 1024
LARGEST_LIST = 16 * 1024 * 1024


class Lane(enum.IntEnum):
    """How urgent a request is: a lower lane goes first whenever a budget has room."""

    DECIDE = 0
    """A person waits for it."""
    WORK = 1
    """Gets something done: create, upload, start, download."""
    POLL = 2
    """Only looks: status checks."""


class Repeat(enum.Enum):
    """Whether a request may be sent again when its outcome is not known."""

    ALWAYS = "always"
    """Reading, or harmless to repeat."""
    KEYED = "keyed"
    """The key in its body makes it harmless to repeat; given up, it may be under way, and only that key finds it."""
    UNIQUE = "unique"
    """The server refuses a second one; but a refusal cannot be told from one that concerns somebody else."""
    NEVER = "never"
    """The first one may have been processed, and a second one would do it twice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One route of an API. Rate limits, statistics and retry rules are kept by `key`."""

    name: str
    method: str
    template: str
    """Path below the base URL, with `{placeholders}` for ids; ids are not part of the endpoint."""
    repeat: Repeat
    lane: Lane = Lane.WORK
    advice: str = ""
    """What a person can do when the outcome of a request is not known."""

    largest_reply: int = LARGEST_REPLY
    """Bytes of a reply, decompressed; a larger one is not read to its end."""

    @property
    def key(self) -> str:
        """Method and route template: what the API counts a rate limit by."""
        return f"{self.method} {self.template}"
