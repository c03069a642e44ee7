"""The parts of one session that the clients and workflows of every API generation use."""

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
from asyncmig.events import Events

__all__ = ["SessionContext"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionContext:
    """The parts of one session, from which an API generation builds its client."""

    caller: Caller
    poller: Poller
    gate: Callable[[Endpoint], Gate]
    runs: RunSlots
    """The run slots. Requests to endpoints with a `run_order` take them; workflows report the runs that they read."""
    account: str
    """A digest that identifies the account: a digest of the API key, or of the session's `account`."""
    remember: Callable[[Path], Awaitable[None]]
    """Opens the send log at a path, unless the session has one."""
    check_open: Callable[[], None]
    """Raises the error that a request would raise now: `UsageError`, `SessionClosed`, or the earlier `AuthError`."""
    events: Events
    rng: Random
    _kept: dict[type, object] = field(default_factory=dict[type, object])

    def keep(self, state: object) -> None:
        """Keep an object for the whole session; `kept` returns it."""
        self._kept[type(state)] = state

    def kept(self, kind: type[T]) -> T:
        """Return the session's object of this class. If none was kept, make one without arguments and keep it."""
        if kind not in self._kept:
            self._kept[kind] = kind()
        return cast("T", self._kept[kind])
