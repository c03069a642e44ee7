"""What a session owns, and every generation of the API uses."""

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

import anyio

from asyncmig._core.endpoint import Endpoint
from asyncmig._io.byte_throttle import ByteThrottle
from asyncmig._io.caller import Caller
from asyncmig._io.decided import DecidedParks
from asyncmig._io.gate import Gate
from asyncmig._io.poller import Poller
from asyncmig._io.unwritten import UnwrittenEntries
from asyncmig.events import Events

__all__ = ["SessionContext"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionContext:
    """The parts of one session, handed to the handles that it makes."""

    caller: Caller
    poller: Poller
    gate: Callable[[Endpoint], Gate]
    check_open: Callable[[], None]
    """Raises what a request would raise now: `UsageError`, `SessionClosed`, or the `AuthError` that closed it."""
    events: Events
    rng: Random
    uploads: anyio.CapacityLimiter
    pace: ByteThrottle | None = None
    """Of the bytes of all uploads."""
    missing: set[str] = field(default_factory=set[str])
    """What this server was seen not to offer."""
    decided: DecidedParks = field(default_factory=DecidedParks)
    unwritten: dict[str, UnwrittenEntries] = field(default_factory=dict[str, UnwrittenEntries])
    """Entries that a journal could not take yet, by external id."""
