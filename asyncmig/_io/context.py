"""The parts of one session that the clients of every API generation use."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import TypeVar, cast

from asyncmig._core.endpoint import Endpoint
from asyncmig._io.caller import Caller
from asyncmig._io.gate import Gate
from asyncmig._io.poller import Poller
from asyncmig._io.run_slots import RunSlots
from asyncmig._io.unwritten import UnwrittenEntries
from asyncmig.events import Events

__all__ = ["SessionContext"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionContext:
    """The parts of one session. A generation builds its client from them."""

    caller: Caller
    poller: Poller
    gate: Callable[[Endpoint], Gate]
    runs: RunSlots
    """The runs in progress. Requests of endpoints with a `run_order` take slots; workflows report what they see."""
    account: str
    """A digest that stands for the account: for its key, or for the session's `account`."""
    remember: Callable[[Path], Awaitable[None]]
    """Opens the send log at a path, unless the session has one."""
    check_open: Callable[[], None]
    """Raises what a request would raise now: `UsageError`, `SessionClosed`, or the `AuthError` that closed it."""
    events: Events
    rng: Random
    unwritten: dict[str, UnwrittenEntries] = field(default_factory=dict[str, UnwrittenEntries])
    """Journal entries that could not be written yet, by external id."""
    _kept: dict[type, object] = field(default_factory=dict[type, object])

    def keep(self, state: object) -> None:
        """Keep an object for the whole session; `kept` returns it to every client built from this context."""
        self._kept[type(state)] = state

    def kept(self, kind: type[T]) -> T:
        """Return the session's only object of this class. The first call makes it, without arguments."""
        if kind not in self._kept:
            self._kept[kind] = kind()
        return cast("T", self._kept[kind])
