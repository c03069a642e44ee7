"""One run, for everybody who waits for it: its last reading, its changes, and who is to be woken."""

import asyncio
import copy
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Generic, Protocol, Self, TypeVar, cast, final

from asyncmig._core.age_buckets import PolledRun
from asyncmig._core.lifecycle import Lifecycle, Phase
from asyncmig._io.failures import Failures, Owner, owner
from asyncmig._io.gate import Gate, Slot
from asyncmig.errors import AsyncmigError, SessionClosed

__all__ = ["Reading", "SecondChannel", "Unsure", "Watch", "Watching", "fresh"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading(Generic[T]):
    """What one read of a run showed."""

    status: str
    progress: str | None
    value: T


class Unsure(Exception):
    """A lookup through the second channel said that something runs, but not whether it is this run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SecondChannel(Generic[T]):
    """Another endpoint, with a budget of its own, that tells whether a run still goes on."""

    gate: Gate
    lookup: Callable[[Slot], Awaitable[Reading[T] | None]]
    """Make one attempt: the reading of the run if it goes on, None if it does not, `Unsure` if that is not said."""


class Watching(Protocol):
    """Who polls the runs that are watched."""

    def enter(self, watch: "Watch[object]", /) -> None:
        """Somebody waits for the run from now on; raises if nothing is polled any more."""

    def check(self) -> None:
        """Raise if nothing is polled any more."""

    def leave(self, watch: "Watch[object]", /) -> None:
        """Nobody waits for the run any more."""

    def prioritise(self, watch: "Watch[object]", /) -> None:
        """Somebody wants the run read before others."""

    def announced(self, watch: "Watch[object]", phase: Phase, /) -> None:
        """A reply other than a read named an end or a park of the run."""

    def resumed(self, watch: "Watch[object]", /) -> None:
        """The run was answered."""

    def observed(self, watch: "Watch[object]", reading: Reading[object], /) -> None:
        """Somebody else read the run just now."""


class _Change(Generic[T]):
    """A change of status or progress text, and the way to the next one; who has passed it lets it go."""

    __slots__ = ("next", "reading")

    def __init__(self, reading: Reading[T] | None = None) -> None:
        self.reading = reading
        self.next: _Change[T] | None = None


@final
class Watch(Generic[T]):
    """One run, for everybody who waits for it. It is polled while somebody does, and never after its end."""

    __slots__ = (
        "__weakref__",
        "_change",
        "_key",
        "_phase",
        "_poller",
        "_shown",
        "_stale",
        "_waiters",
        "_waiting",
        "begun",
        "closed",
        "entry",
        "failures",
        "ids",
        "latest",
        "lifecycle",
        "missing_since",
        "owner",
        "read",
        "run",
        "second",
        "stalled",
    )

    def __init__(
        self,
        run: Hashable,
        poller: Watching,
        *,
        now: float,
        started: float,
        last_read: float | None,
        group: Hashable,
        read: Callable[[Slot], Awaitable[Reading[T]]],
        lifecycle: Lifecycle,
        second: SecondChannel[T] | None,
        ids: Mapping[str, str],
    ) -> None:
        self._poller = poller
        self.run: Hashable = run
        self.read: Callable[[Slot], Awaitable[Reading[T]]] = read
        self.lifecycle: Lifecycle = lifecycle
        self.second: SecondChannel[T] | None = second
        self.entry: PolledRun[Watch[object]] = PolledRun(
            self._plain(), now, lifecycle=lifecycle, started=started, last_read=last_read, group=group
        )
        """The run as the poll schedule knows it."""
        self.latest: Reading[T] | None = None
        """The last reading; None before the first."""
        self.ids: Mapping[str, str] = ids
        """What stands in the route of its reads."""
        self.owner: Owner | None = owner()
        """On whose behalf it was last waited for."""
        self.failures: Failures | None = None
        """Those of the reads since the last one that told something."""
        self.begun: int = 0
        """How many reads were begun."""
        self.stalled: bool = False
        self.missing_since: float | None = None
        """Since when every read was answered 404."""
        self._phase = Phase.ACTIVE
        self._shown = self._stale = 0
        """The read that `latest` is from; and the last one that is older than what was heard otherwise."""
        self._key: tuple[str, str | None] | None = None
        self._change: _Change[T] = _Change()
        self._waiters: set[asyncio.Future[None]] = set()
        self._waiting = 0
        self.closed: bool = False

    def __repr__(self) -> str:
        status = self.latest.status if self.latest else "not read yet"
        return f"<Watch of {self.run}: {status}, {self._waiting} waiting>"

    @property
    def name(self) -> str:
        """What people call it: with the customer, if that is known."""
        run_id = self.ids.get("run_id", str(self.run))
        return f"{run_id} of {self.owner.external_id}" if self.owner else run_id

    # For whoever waits

    async def wait(self, *, through_parks: bool = False) -> Reading[T]:
        """Wait until the run has ended, or has parked (unless `through_parks`), and return that reading.

        Raises `AuthError`, `SessionClosed`, `NotFound` once every read has said so for 30 s, and what else `read`
        raised that no later poll can mend.
        """
        if not self._settled(through_parks):
            with _Waiting(self):
                while not self._settled(through_parks):
                    await self.news()
        assert self.latest is not None
        return self.latest

    def updates(self) -> AsyncIterator[Reading[T]]:
        """Iterate over the changes of status or progress text, each once, until the run has ended.

        The first is what is known already. The run is polled while the next change is waited for.
        """
        return _Updates(self, self._change)

    async def refresh(self) -> Reading[T]:
        """Return the first reading that is begun from now on, as soon as the floor allows; or that of the end."""
        asked = self.begun
        if not self._is_newer(asked):
            with _Waiting(self):
                while not self._is_newer(asked):
                    self._poller.prioritise(self._plain())
                    await self.news()
        assert self.latest is not None
        return self.latest

    # For whoever knows more

    def observe(self, reading: Reading[T]) -> None:
        """Take in what somebody else read just now: it counts as a poll. Reads under way are older news."""
        self._stale = self.begun
        self._poller.observed(self._plain(), cast("Reading[object]", reading))

    def announced(self, status: str) -> None:
        """A reply other than a read named this status. A run that has ended or parked by it is read next."""
        phase = self.lifecycle.phase(status)
        if phase is not Phase.ACTIVE and not self.ended:
            self._poller.announced(self._plain(), phase)

    def resumed(self) -> None:
        """A decision was sent: the run is active again, whatever the last reading says."""
        self._stale = self.begun
        self._key = None
        if self._phase is Phase.PARKED:
            self._phase = Phase.ACTIVE
        self._poller.resumed(self._plain())

    def close(self) -> None:
        """Poll this run no more: every wait for it ends with `SessionClosed`. The run itself goes on."""
        self.closed = True
        self._poller.leave(self._plain())
        self.fail(SessionClosed("the watch is closed"))

    # For the poller

    @property
    def ended(self) -> bool:
        return self._phase is Phase.TERMINAL

    def begin(self) -> int:
        """Count a read that starts now."""
        self.begun += 1
        return self.begun

    def take(self, reading: Reading[T], number: int | None = None) -> Phase | None:
        """Take in a reading, and wake who waits. None: it came too late to be news.

        `number`: the read that it is from; None if somebody else made it.
        """
        phase = self.lifecycle.phase(reading.status)
        if self._phase is Phase.TERMINAL:
            return None
        if number is not None:
            if number <= self._stale and phase is not Phase.TERMINAL:
                return None
            self._shown = number
        self.latest, self._phase = reading, phase
        if self._key != (reading.status, reading.progress):
            self._key = (reading.status, reading.progress)
            change = _Change(reading)
            self._change.next = self._change = change
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        return phase

    def fail(self, error: BaseException) -> None:
        """End every wait with `error`."""
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_exception(fresh(error))

    def want(self, change: int) -> None:
        """Count who waits; raises if nothing is polled any more."""
        if change > 0:
            self._check()
            self.owner = owner() or self.owner
            self._poller.enter(self._plain())
        self._waiting += change
        if not self._waiting:
            self._poller.leave(self._plain())

    async def news(self) -> None:
        """Wait for the next reading; raises if nothing is polled any more."""
        self._check()  # broken off in the turn in which a reading woke this task, nobody would wake it again
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            await waiter
        finally:
            self._waiters.discard(waiter)
            if waiter.done() and not waiter.cancelled():
                waiter.exception()  # whoever was cancelled in the same turn does not hear of it

    def _check(self) -> None:
        if self.closed:
            raise SessionClosed("the watch is closed")
        self._poller.check()

    def _settled(self, through_parks: bool) -> bool:
        return self._phase is Phase.TERMINAL or (self._phase is Phase.PARKED and not through_parks)

    def _is_newer(self, number: int) -> bool:
        return self._phase is Phase.TERMINAL or self._shown > number

    def _plain(self) -> "Watch[object]":
        return cast("Watch[object]", self)


@final
class _Waiting:
    """Keeps a run polled while somebody waits for it."""

    __slots__ = ("_watch",)

    def __init__(self, watch: "Watch[T]") -> None:
        self._watch = cast("Watch[object]", watch)

    def __enter__(self) -> None:
        self._watch.want(+1)

    def __exit__(self, *exc_info: object) -> None:
        self._watch.want(-1)


@final
class _Updates(Generic[T]):
    """Follows the changes of one run. It holds nothing while nobody waits for the next one."""

    __slots__ = ("_change", "_watch")

    def __init__(self, watch: Watch[T], change: _Change[T]) -> None:
        self._watch = watch
        self._change: _Change[T] = change
        if change.reading is not None:
            before: _Change[T] = _Change()
            before.next, self._change = change, before

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Reading[T]:
        if self._must_wait():
            with _Waiting(self._watch):
                while self._must_wait():
                    await self._watch.news()
        if self._change.next is None:
            raise StopAsyncIteration
        self._change = self._change.next
        assert self._change.reading is not None
        return self._change.reading

    def _must_wait(self) -> bool:
        return self._change.next is None and not self._watch.ended


def fresh(error: BaseException) -> BaseException:
    """Return a copy of an error of this library, for each who is to raise it; another error as it is."""
    if not isinstance(error, AsyncmigError):
        return error
    copied = copy.copy(error)
    copied.__cause__ = error.__cause__
    return copied
