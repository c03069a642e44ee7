"""One schedule for the status checks of all runs: any number of tasks wait on a run and share its polls."""

import asyncio
import copy
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable
from dataclasses import dataclass
from types import TracebackType
from typing import Generic, Self, TypeVar, cast, final

from asyncmig._core.endpoint import Lane
from asyncmig._core.lifecycle import Lifecycle, Phase
from asyncmig._core.polls import PollSchedule
from asyncmig._io.gate import TICK, Gate, Slot
from asyncmig.errors import (
    AsyncmigError,
    NoAnswer,
    NotFound,
    RateLimited,
    ServerError,
    SessionClosed,
    UnexpectedReply,
)

__all__ = ["Poller", "Reading", "Watch"]

T = TypeVar("T")
_log = logging.getLogger("asyncmig")
_LAG = 30.0
"""Seconds after its start in which a run may answer 404 (contract: reads may lag)."""
_STALLED = 75 * 60.0
_TELLS_NOTHING = (RateLimited, ServerError, NoAnswer, UnexpectedReply)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading(Generic[T]):
    """What one read of a run showed."""

    status: str
    progress: str | None
    value: T


@final
class Watch(Generic[T]):
    """One run, for everybody who waits for it. It is polled only while somebody does."""

    __slots__ = (
        "_error",
        "_event",
        "_lifecycle",
        "_line",
        "_phase",
        "_read_at",
        "_reads",
        "_seen_at",
        "_stalled",
        "_wanted",
        "group",
        "latest",
        "read",
        "run",
        "started",
    )

    def __init__(
        self,
        line: "_Line",
        run: Hashable,
        read: Callable[[Slot], Awaitable[Reading[T]]],
        lifecycle: Lifecycle,
        started: float,
        group: Hashable,
    ) -> None:
        self._line, self.run, self.read = line, run, read
        self._lifecycle, self.started, self.group = lifecycle, started, group
        self.latest: Reading[T] | None = None
        """The last reading; None before the first."""
        self._phase = Phase.ACTIVE
        self._error: AsyncmigError | None = None
        self._event = asyncio.Event()
        self._wanted = 0
        self._reads = (0, 0)
        """The number of the read that started last, and of the one that `latest` is from."""
        self._seen_at = self._read_at = started
        self._stalled = False

    async def wait(self, *, through_parks: bool = False) -> Reading[T]:
        """Wait until the run has ended, or has parked (unless `through_parks`), and return that reading."""
        with _Wanted(self):
            while True:
                if self._phase is Phase.TERMINAL or (self._phase is Phase.PARKED and not through_parks):
                    assert self.latest is not None
                    return self.latest
                await self._next()

    async def updates(self) -> AsyncIterator[Reading[T]]:
        """Yield each change of status or progress text once, until the run has ended."""
        shown: tuple[str, str | None] | None = None
        with _Wanted(self):
            while True:
                latest = self.latest
                if latest is not None and (latest.status, latest.progress) != shown:
                    shown = latest.status, latest.progress
                    yield latest
                    continue
                if self._phase is Phase.TERMINAL:
                    return
                await self._next()

    async def refresh(self) -> Reading[T]:
        """Return the next reading that starts from now on, as soon as the pace allows; or the one of its end."""
        with _Wanted(self):
            last = self._reads[0]
            while self._phase is not Phase.TERMINAL and (self.latest is None or self._reads[1] <= last):
                self._line.schedule.hurry(self.run)
                self._line.rouse()
                await self._next()
            assert self.latest is not None
            return self.latest

    def resumed(self) -> None:
        """The run was answered: it is active again, whatever the last reading says."""
        if self._phase is Phase.PARKED:
            self._phase = Phase.ACTIVE
            self._line.schedule.resumed(self.run, self._line.now())
            self._line.rouse()

    async def _next(self) -> None:
        if self._error is not None:
            raise copy.copy(self._error)
        await self._event.wait()
        if self._error is not None:
            raise copy.copy(self._error)

    def want(self, change: int) -> None:
        """Count who waits; the schedule holds the run while anybody does."""
        self._wanted += change
        if self._phase is Phase.TERMINAL or self._error is not None:
            return
        if change > 0 and self._wanted == 1:
            self._line.schedule.add(
                self.run,
                now=self._line.now(),
                started=self.started,
                seen=self._seen_at,
                read=self._read_at,
                group=self.group,
            )
            self._line.start()
        elif self._wanted == 0:
            self._line.schedule.remove(self.run)
            self._line.rouse()

    def begin(self) -> int:
        """Count a read that starts now."""
        self._reads = (self._reads[0] + 1, self._reads[1])
        return self._reads[0]

    def take(self, reading: Reading[T], number: int, now: float) -> Phase | None:
        """Take a reading in and wake who waits; None for one that was overtaken by a later one or by the end."""
        if self._phase is Phase.TERMINAL or number < self._reads[1]:
            return None
        self.latest, self._reads = reading, (self._reads[0], number)
        self._phase = self._lifecycle.phase(reading.status)
        self._seen_at = self._read_at = now
        self._wake()
        return self._phase

    def failed(self, error: AsyncmigError) -> None:
        """End every wait, also those to come, with `error`."""
        self._error = error
        self._wake()

    def _wake(self) -> None:
        self._event.set()
        self._event = asyncio.Event()

    def stalls(self, now: float) -> bool:
        """Return whether the run has become suspiciously old; true once."""
        if self._stalled or now - self.started < _STALLED:
            return False
        self._stalled = True
        return True

    def knows(self, status: str) -> bool:
        return self._lifecycle.is_known(status)


@final
class _Wanted:
    """Holds a run in the schedule while somebody waits for it."""

    __slots__ = ("_watch",)

    def __init__(self, watch: "Watch[T]") -> None:
        self._watch = watch

    def __enter__(self) -> None:
        self._watch.want(+1)

    def __exit__(self, *exc_info: object) -> None:
        self._watch.want(-1)


@final
class _Line:
    """The polls that go through one gate: their schedule, their pace, the reads in flight."""

    __slots__ = ("_gate", "_poller", "_reads", "_task", "_wake", "schedule", "watches")

    def __init__(self, poller: "Poller", gate: Gate) -> None:
        self._poller, self._gate = poller, gate
        self.schedule: PollSchedule[Hashable] = PollSchedule()
        self.watches: dict[Hashable, Watch[object]] = {}
        self._task: asyncio.Task[None] | None = None
        self._reads: set[asyncio.Task[None]] = set()
        self._wake: asyncio.Future[None] | None = None

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    def start(self) -> None:
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="asyncmig polls")
        self.rouse()

    def rouse(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def aclose(self, error: AsyncmigError) -> None:
        tasks = [*self._reads] + ([self._task] if self._task is not None else [])
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._fail(error)

    def _fail(self, error: AsyncmigError) -> None:
        for watch in self.watches.values():
            watch.failed(error)

    async def _run(self) -> None:
        """Poll while anybody waits: when the pace allows, when a run is above its floor, when the gate lets it."""
        paced_until = 0.0
        try:
            while len(self.schedule):
                now = self.now()
                at = self.schedule.next_at(now)
                if at is None or max(at, paced_until) - now > TICK:
                    await self._sleep_until(None if at is None else max(at, paced_until))
                    continue
                slot = await self._gate.slot(lane=Lane.POLL).__aenter__()
                now = max(self.now(), at)
                run = self.schedule.next(now)
                if run is None:
                    slot.unsent()
                    continue
                paced_until = now + self._gate.pace
                read = asyncio.create_task(self._read(slot, self.watches[run]), name=f"asyncmig poll {run}")
                self._reads.add(read)
                read.add_done_callback(self._reads.discard)
        except AsyncmigError as error:
            self._fail(error)
        finally:
            self._task = None

    async def _read(self, slot: Slot, watch: Watch[object]) -> None:
        number = watch.begin()
        async with slot.held():
            try:
                reading = await watch.read(slot)
            except _TELLS_NOTHING:
                self.schedule.rejected(watch.run, self.now())
                self.rouse()
                return
            except NotFound as error:
                if self.now() - watch.started > _LAG:
                    watch.failed(error)
                else:
                    self.schedule.rejected(watch.run, self.now())
                    self.rouse()
                return
            except AsyncmigError as error:
                watch.failed(error)
                return
        self._observe(watch, reading, number)

    def _observe(self, watch: Watch[object], reading: Reading[object], number: int) -> None:
        now = self.now()
        phase = watch.take(reading, number, now)
        if phase is None:
            return
        self.schedule.observed(watch.run, now, ended=phase is Phase.TERMINAL, parked=phase is Phase.PARKED)
        self.rouse()
        self._poller.notice(watch, reading, phase, now)

    async def _sleep_until(self, at: float | None) -> None:
        loop = asyncio.get_running_loop()
        self._wake = loop.create_future()
        timer = None if at is None else loop.call_at(at, self.rouse)
        try:
            await self._wake
        finally:
            self._wake = None
            if timer is not None:
                timer.cancel()


@final
class Poller:
    """The poll schedules of a session, one for each gate that polls go through."""

    __slots__ = ("_closed", "_lines", "_on_stalled", "_strange")

    def __init__(self, *, on_stalled: Callable[[Hashable, float], None]) -> None:
        self._lines: dict[Gate, _Line] = {}
        self._on_stalled = on_stalled
        self._strange: set[str] = set()
        self._closed: AsyncmigError | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        """Stop polling; every wait ends with `SessionClosed`. The runs stay alive on the server."""
        self._closed = SessionClosed()
        for line in self._lines.values():
            await line.aclose(self._closed)

    def watch(
        self,
        run: Hashable,
        *,
        gate: Gate,
        read: Callable[[Slot], Awaitable[Reading[T]]],
        lifecycle: Lifecycle,
        started: float,
        group: Hashable = None,
    ) -> Watch[T]:
        """Return the watch of `run`, the same for everybody who asks.

        `read` makes one attempt with the slot it is given. `started`: on the loop's clock. A poll that fails is
        made again in its turn; `AuthError`, and `NotFound` later than 30 s after the start, end every wait.
        """
        line = self._lines.get(gate)
        if line is None:
            line = self._lines[gate] = _Line(self, gate)
        watch = line.watches.get(run)
        if watch is None:
            made = Watch(line, run, read, lifecycle, started, group)
            watch = line.watches[run] = cast("Watch[object]", made)
            if self._closed is not None:
                watch.failed(self._closed)
        return cast("Watch[T]", watch)  # one run is of one kind

    def notice(self, watch: Watch[object], reading: Reading[object], phase: Phase, now: float) -> None:
        """Warn of what is odd: a status never seen, a run that should long have ended."""
        if not watch.knows(reading.status) and reading.status not in self._strange:
            self._strange.add(reading.status)
            _log.warning("unknown status %r: taken for active, and polled on", reading.status)
        if phase is not Phase.TERMINAL and watch.stalls(now):
            _log.warning("run %s has not ended after %.0f s", watch.run, now - watch.started)
            self._on_stalled(watch.run, now - watch.started)
