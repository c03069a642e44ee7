"""A run, and the tasks that wait for it."""

import asyncio
import copy
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Self, TypeVar, cast, final

from asyncmig._core.age_buckets import PolledRun
from asyncmig._core.lifecycle import Lifecycle, Phase
from asyncmig._io.failures import Failures, Owner, owner
from asyncmig._io.gate import Gate, Slot
from asyncmig.errors import AsyncmigError, SessionClosed
from asyncmig.events import RunChanged, RunEnded

if TYPE_CHECKING:
    from asyncmig._io.poll_group import PollGroup

__all__ = ["Reading", "SecondChannel", "Unsure", "Watch", "fresh"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading(Generic[T]):
    """The result of one read of a run."""

    status: str
    progress: str | None
    value: T


class Unsure(Exception):
    """The second channel shows that a run is active, but not whether it is this run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SecondChannel(Generic[T]):
    """Another endpoint, with its own budget, that shows whether a run is still active."""

    gate: Gate
    lookup: Callable[[Slot], Awaitable[Reading[T] | None]]
    """Makes one attempt. Returns a reading if the run is active, and None if not. Raises `Unsure` if that is
    unclear."""


class _Change(Generic[T]):
    """A change of status or progress text, with a reference to the next one.

    Iterators hold references only to their last change, so that earlier changes are freed.
    """

    __slots__ = ("next", "reading")

    def __init__(self, reading: Reading[T] | None = None) -> None:
        self.reading = reading
        self.next: _Change[T] | None = None


@final
class Watch(Generic[T]):
    """A run, and the tasks that wait for it. The run is polled while a task waits, and never after its end."""

    __slots__ = (
        "__weakref__",
        "_change",
        "_key",
        "_phase",
        "_polls",
        "_shown",
        "_stale",
        "_waiters",
        "_waiting",
        "begun",
        "closed",
        "entry",
        "event_ids",
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
        polls: "PollGroup",
        *,
        started: float,
        group: Hashable,
        read: Callable[[Slot], Awaitable[Reading[T]]],
        lifecycle: Lifecycle,
        second: SecondChannel[T] | None,
        ids: Mapping[str, str],
        event_ids: Callable[[], Mapping[str, str]],
    ) -> None:
        self._polls = polls
        self.run: Hashable = run
        self.read: Callable[[Slot], Awaitable[Reading[T]]] = read
        self.lifecycle: Lifecycle = lifecycle
        self.second: SecondChannel[T] | None = second
        self.entry: PolledRun[Watch[object]] = PolledRun(
            self._plain(), polls.now(), lifecycle=lifecycle, started=started, group=group
        )
        """The run's entry in the poll schedule."""
        self.latest: Reading[T] | None = None
        """The last reading; None before the first."""
        self.ids: Mapping[str, str] = ids
        """The values of the placeholders in the route of its reads."""
        self.event_ids: Callable[[], Mapping[str, str]] = event_ids
        """Returns the server's ids by kind, for events about the run."""
        self.owner: Owner | None = owner()
        """The customer of the task that began to wait last."""
        self.failures: Failures | None = None
        """The failed reads since the last successful one."""
        self.begun: int = 0
        """The number of reads begun so far."""
        self.stalled: bool = False
        self.missing_since: float | None = None
        """Since when every read was answered with 404; None if the last read was not."""
        self._phase = Phase.ACTIVE
        self._shown = self._stale = 0
        """The number of the read that returned `latest`, and of the last read that is obsolete because of other
        news."""
        self._key: tuple[str, str | None] | None = None
        self._change: _Change[T] = _Change()
        self._waiters: list[asyncio.Future[None]] = []
        self._waiting = 0
        self.closed: bool = False

    def __repr__(self) -> str:
        status = self.latest.status if self.latest else "not read yet"
        return f"<Watch of {self.run}: {status}, {self._waiting} waiting>"

    @property
    def name(self) -> str:
        """The run's name in log messages, with the customer if it is known."""
        run_id = self.ids.get("run_id", str(self.run))
        return f"{run_id} of {self.owner.external_id}" if self.owner else run_id

    # For waiting tasks

    async def wait(self, *, through_parks: bool = False) -> Reading[T]:
        """Wait until the run has ended, or is parked (unless `through_parks`), and return that reading.

        Raises `AuthError`; `SessionClosed`; `NotFound` when every read was answered with 404 for
        `Lifecycle.read_lag`; and any other error of `read` after which the run is not polled again.
        """
        if not self._settled(through_parks):
            with self:
                while not self._settled(through_parks):
                    await self.news()
        assert self.latest is not None
        return self.latest

    def updates(self) -> AsyncIterator[Reading[T]]:
        """Iterate over the changes of status or progress text, until the run has ended.

        The first item is the latest reading, if there is one. The run is polled while a task waits for the next item.
        """
        return _Updates(self, self._change)

    async def refresh(self) -> Reading[T]:
        """Return the result of a read that begins after this call, as soon as the floor allows it.

        If the run has ended, return its last reading.
        """
        asked = self.begun
        if not self._is_newer(asked):
            with self:
                while not self._is_newer(asked):
                    self._polls.prioritise(self._plain())
                    await self.news()
        assert self.latest is not None
        return self.latest

    # For code that gets news of the run from other requests

    def observe(self, reading: Reading[T]) -> None:
        """Accept a reading that other code has made now, as a poll. It makes reads in progress obsolete."""
        self._stale = self.begun
        self._polls.observed(self._plain(), cast("Reading[object]", reading))

    def report(self, reading: Reading[T], *, began: bool) -> None:
        """Emit an event if the status or the progress text is new, and another one for the end.

        The function that reads the run calls this before it returns the reading. `began`: whether the start of the
        run is known.
        """
        latest = self.latest
        if latest is not None and (latest.status, latest.progress) == (reading.status, reading.progress):
            return
        now, emit, ids = self._polls.now(), self._polls.emit, self.event_ids()
        emit(RunChanged(at=now, ids=ids, status=reading.status, progress=reading.progress))
        if self.ended or self.lifecycle.phase(reading.status) is not Phase.TERMINAL:
            return
        seconds = self.entry.age(now) if began else None
        noticed_within = now - self.entry.last_seen if began or latest else None
        emit(RunEnded(at=now, ids=ids, status=reading.status, seconds=seconds, noticed_within=noticed_within))

    def announced(self, status: str) -> None:
        """Report a status in a reply to another request. If the run has ended or is parked, it is read next."""
        phase = self.lifecycle.phase(status)
        if phase is not Phase.ACTIVE and not self.ended:
            lag = self.lifecycle.read_lag if phase is Phase.TERMINAL else 0.0
            self._polls.prioritise(self._plain(), seconds=lag)

    def resumed(self) -> None:
        """Report that a decision was sent: the run is active again, whatever the latest reading shows."""
        self._stale = self.begun
        self._key = None
        if self._phase is Phase.PARKED:
            self._phase = Phase.ACTIVE
        self._polls.resumed(self._plain())

    def relax(self, seconds: float) -> None:
        """Read the run at most every `seconds`, because another channel announces changes; 0 ends this."""
        if self.entry.relaxed != seconds and not self.ended:
            self._polls.relax(self._plain(), seconds)

    def close(self) -> None:
        """Stop polling the run. Every wait for it ends with `SessionClosed`; the run continues on the server."""
        self.closed = True
        self._polls.leave(self._plain())
        self.fail(SessionClosed("the watch is closed"))

    # Called by the poller

    @property
    def ended(self) -> bool:
        """Whether a read has shown that the run has ended."""
        return self._phase is Phase.TERMINAL

    def begin(self) -> int:
        """Count a read that begins now, and return its number."""
        self.begun += 1
        return self.begun

    def take(self, reading: Reading[T], number: int | None = None) -> Phase | None:
        """Accept a reading, wake the waiting tasks and return its phase. Return None if the reading is obsolete.

        `number`: the number of the read; None if other code has made it.
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

    def __enter__(self) -> None:
        """Keep the run polled while a task waits. Raises the error with which polling has ended, if it has."""
        self._check()
        self.owner = owner() or self.owner
        self._polls.enter(self._plain())
        self._waiting += 1

    def __exit__(self, *exc_info: object) -> None:
        self._waiting -= 1
        if not self._waiting:
            self._polls.leave(self._plain())

    async def news(self) -> None:
        """Wait for the next reading. Raises the error with which polling has ended, if it has."""
        self._check()  # polling may have ended after a reading woke this task
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        finally:
            self._waiters.remove(waiter)
            if waiter.done() and not waiter.cancelled():
                # A task that is cancelled in the same turn does not raise it, and asyncio would log it.
                waiter.exception()

    def _check(self) -> None:
        if self.closed:
            raise SessionClosed("the watch is closed")
        self._polls.check()

    def _settled(self, through_parks: bool) -> bool:
        return self._phase is Phase.TERMINAL or (self._phase is Phase.PARKED and not through_parks)

    def _is_newer(self, number: int) -> bool:
        return self._phase is Phase.TERMINAL or self._shown > number

    def _plain(self) -> "Watch[object]":
        return cast("Watch[object]", self)


@final
class _Updates(Generic[T]):
    """Iterates over the changes of a run. The run is polled only while a task waits for the next change."""

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
            with self._watch:
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
    """Return a copy of an error of this library, because each task must raise its own; any other error unchanged."""
    if not isinstance(error, AsyncmigError):
        return error
    copied = copy.copy(error)
    copied.__cause__ = error.__cause__
    return copied
