"""The runs that are read through one gate: their schedule, their pace and the reads in progress.

A group has one timer for each of its channels. When the pace allows it and the floor of a run is over, one poll asks
the gate for a slot, in the lowest lane. The run to read is chosen when the slot is granted. The next poll does not
wait for the answer.

If the budget is short, a group may use a *second channel*: another endpoint with its own gate, which shows whether a
run is still active. A run that this endpoint no longer lists is read next.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from functools import partial
from typing import final

from asyncmig._core.endpoint import Lane
from asyncmig._core.polls import PollSchedule
from asyncmig._io.event_loop import gradually, start_task
from asyncmig._io.failures import Failures
from asyncmig._io.gate import TICK, Gate, Slot
from asyncmig._io.watch import Reading, Unsure, Watch, fresh
from asyncmig.errors import (
    AsyncmigError,
    AuthError,
    NoAnswer,
    NotFound,
    RateLimited,
    ServerError,
    SessionClosed,
    UnexpectedReply,
)
from asyncmig.events import Events, RunChanged, RunEnded, RunStalled

__all__ = ["PollGroup", "RunWarnings"]

_log = logging.getLogger("asyncmig")
_UNREADABLE = 10
"""The number of failed reads in a row after which a warning is logged."""
_SHORT = 10.0
"""The budget is short if polling all runs that are due takes more seconds than this."""
_TEMPORARY = (ServerError, NoAnswer, UnexpectedReply)


@final
class RunWarnings:
    """Reports unknown statuses, stalled runs, and runs that cannot be read, each once."""

    __slots__ = ("_unknown", "events")

    def __init__(self, events: Events) -> None:
        self.events: Events = events
        self._unknown: set[str] = set()

    def status(self, watch: Watch[object], status: str) -> None:
        """Log a warning about a status if it is unknown."""
        if not watch.lifecycle.is_known(status) and status not in self._unknown:
            self._unknown.add(status)
            _log.warning("unknown status %r: it counts as active, and polling continues", status)

    async def failed(self, watch: Watch[object], error: AsyncmigError) -> None:
        """Report a failed read."""
        if watch.entry.failures == _UNREADABLE:
            _log.warning("run %s cannot be read; polling continues: %s", watch.name, error)
        if watch.failures is None:
            watch.failures = Failures(self.events, owner=watch.owner)
        await watch.failures.failed(error, endpoint=watch.name, ids=watch.ids)

    async def succeeded(self, watch: Watch[object]) -> None:
        """Report a successful read, if reads had failed before."""
        failures, watch.failures = watch.failures, None
        if failures is not None:
            await failures.succeeded()

    def age(self, watch: Watch[object], now: float) -> None:
        """Report a run if it is older than its stall alarm."""
        age = watch.entry.age(now)
        if watch.stalled or watch.ended or watch.entry.parked or age < watch.lifecycle.stall_alarm:
            return
        watch.stalled = True
        external_id = watch.owner.external_id if watch.owner else None
        self.events.emit(RunStalled(at=now, external_id=external_id, ids=watch.event_ids(), seconds=age))


@final
class PollChannel:
    """The polls of a group that go through one gate, at the pace of its budget."""

    __slots__ = ("_asking", "_group", "_lookup", "_paced_until", "_timer", "_turned_at", "gate")

    def __init__(self, group: "PollGroup", gate: Gate, *, lookup: bool) -> None:
        self._group, self.gate, self._lookup = group, gate, lookup
        self._asking: asyncio.Task[None] | None = None
        """The poll that waits for its slot; there is at most one."""
        self._timer: asyncio.TimerHandle | None = None
        self._paced_until = self._turned_at = float("-inf")

    def turn(self) -> None:
        """Start the next poll if it is due, or set the timer for it."""
        if self._asking is not None:
            return
        self._disarm()
        now = self._group.now()
        at = self._group.due_at(now, lookup=self._lookup)
        if at is None:
            return
        at = max(at, self._paced_until)
        if at - now > TICK:
            self._timer = asyncio.get_running_loop().call_at(at, self.turn)
            return
        self._turned_at = max(at, now)
        self._asking = self._group.spawn(self._poll())

    def stop(self) -> None:
        """Start no more polls; reads in progress continue."""
        self._disarm()
        if self._asking is not None:
            self._asking.cancel()
            self._asking = None

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def _poll(self) -> None:
        try:
            async with self.gate.slot(lane=Lane.POLL) as slot:
                watch = self._granted()
                if watch is None:
                    slot.unsent()
                else:
                    await self._group.read(watch, slot, lookup=self._lookup)
        except AsyncmigError as error:  # from the gate; errors of the read are handled in `PollGroup.read`
            self._asking = None
            self._group.break_off(error)
        finally:
            if self._asking is asyncio.current_task():
                self._asking = None

    def _granted(self) -> Watch[object] | None:
        """Choose the run for a slot that was granted now."""
        self._asking = None
        now = max(self._group.now(), self._turned_at)  # a timer may fire a tick early
        pace = self.gate.pace
        watch = self._group.pick(now, pace=pace, lookup=self._lookup)
        self._paced_until = now + (_SHORT if watch is None and self._lookup else pace)
        self.turn()
        return watch


@final
class PollGroup:
    """The runs that are read through one gate."""

    __slots__ = ("_broken", "_channels", "_close", "_loop", "_schedule", "_tasks", "_warnings", "_watches")

    def __init__(
        self,
        gate: Gate,
        *,
        warnings: RunWarnings,
        close: Callable[[AsyncmigError], None],
        loop: Callable[[], asyncio.AbstractEventLoop],
    ) -> None:
        """`close`: called with an error that ends the polling of all groups. `loop`: returns the event loop; raises
        `UsageError` on another one.
        """
        self._warnings, self._close, self._loop = warnings, close, loop
        self._schedule: PollSchedule[Watch[object]] = PollSchedule()
        self._channels = [PollChannel(self, gate, lookup=False)]
        self._watches: set[Watch[object]] = set()
        """The runs for which a task waits."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._broken: AsyncmigError | None = None

    # Called by watches

    def check(self) -> None:
        """Raise the error with which polling has ended, if it has."""
        if self._broken is not None:
            raise fresh(self._broken)

    def enter(self, watch: Watch[object]) -> None:
        """Start to poll a run. Raises the error with which polling has ended, if it has."""
        self.check()
        now = self.now()
        self._watches.add(watch)
        self._schedule.add(watch.entry, now)
        self.turn()

    def leave(self, watch: Watch[object]) -> None:
        """Stop polling a run."""
        self._watches.discard(watch)
        self._schedule.remove(watch.entry)
        watch.missing_since = None
        if not self._watches:
            self.stop()

    def prioritise(self, watch: Watch[object], *, seconds: float = 0.0) -> None:
        """Read a run before others: once, and again for at least `seconds`."""
        now = self.now()
        self._schedule.prioritise(watch.entry, now, until=now + seconds)
        self.turn()

    def resumed(self, watch: Watch[object]) -> None:
        """Report that a decision was sent for a run."""
        self._schedule.resumed(watch.entry, self.now())
        self.turn()

    def relax(self, watch: Watch[object], seconds: float) -> None:
        """Read a run no more often than every `seconds`."""
        self._schedule.relax(watch.entry, seconds, self.now())
        self.turn()

    def emit(self, event: RunChanged | RunEnded) -> None:
        """Emit an event about a run."""
        self._warnings.events.emit(event)

    def observed(self, watch: Watch[object], reading: Reading[object]) -> None:
        """Report that other code has read a run now."""
        self._take(watch, reading, None, self.now(), lookup=False)
        self.turn()

    # Called by channels

    def now(self) -> float:
        return self._loop().time()

    def spawn(self, poll: Coroutine[object, object, None]) -> asyncio.Task[None]:
        task = start_task(poll, name="asyncmig poll")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def due_at(self, now: float, *, lookup: bool) -> float | None:
        """Return the earliest time for a poll; None if that depends on a later change."""
        if not self._watches or self._broken is not None:
            return None
        at = self._schedule.next_at(now)
        if lookup and at is not None and self._schedule.ready * self._channels[0].gate.pace < _SHORT:
            return None
        return at

    def pick(self, now: float, *, pace: float, lookup: bool) -> Watch[object] | None:
        """Return the run to read now; None if none must be read any more."""
        if not self._watches or self._broken is not None:
            return None
        entry = self._schedule.next(now, pace=pace, lookup=lookup)
        if entry is None:
            return None
        if lookup and entry.run.second is None:
            self._schedule.reschedule(entry, now)
            return None
        return entry.run

    def turn(self) -> None:
        """Start or schedule polls after a change."""
        for channel in self._channels:
            channel.turn()

    def stop(self) -> None:
        for channel in self._channels:
            channel.stop()

    def break_off(self, error: AsyncmigError) -> None:
        """End all polling: every wait, present and future, ends with `error`."""
        self._broken = error
        self.stop()
        gradually((partial(watch.fail, error) for watch in tuple(self._watches)), self._loop())

    async def read(self, watch: Watch[object], slot: Slot, *, lookup: bool) -> None:
        """Make one read, and pass its result to the schedule and to the waiting tasks."""
        sent, number = self.now(), watch.begin()
        try:
            if lookup:
                await self._look_up(watch, slot, number, sent)
            else:
                reading = await watch.read(slot)
                self._take(watch, reading, number, sent, lookup=False)
            await self._warnings.succeeded(watch)
        except RateLimited:
            self._schedule.rejected(watch.entry, self.now(), blame=False)
        except _TEMPORARY as error:
            self._schedule.rejected(watch.entry, self.now())
            watch.missing_since = None
            await self._warnings.failed(watch, error)
        except NotFound as error:
            now = self.now()
            self._schedule.rejected(watch.entry, now)
            watch.missing_since = now if watch.missing_since is None else watch.missing_since
            if now - watch.missing_since > watch.lifecycle.read_lag:
                watch.fail(error)
        except (AuthError, SessionClosed) as error:
            self._schedule.rejected(watch.entry, self.now())
            self._close(error)
        except Exception as error:  # any other error must reach the waiting tasks
            self._schedule.rejected(watch.entry, self.now())
            watch.fail(error)
        finally:
            now = self.now()
            self._schedule.reschedule(watch.entry, now)
            self._warnings.age(watch, now)
            self.turn()

    async def _look_up(self, watch: Watch[object], slot: Slot, number: int, sent: float) -> None:
        second = watch.second
        assert second is not None
        try:
            reading = await second.lookup(slot)
        except (NotFound, Unsure):
            watch.second = None
            self._schedule.rejected(watch.entry, self.now(), blame=False)
            return
        if reading is None:
            watch.second = None  # if a read shows that the run is active, this channel is unreliable
            self._schedule.presume_ended(watch.entry, self.now())
        else:
            self._take(watch, reading, number, sent, lookup=True)

    def _take(
        self, watch: Watch[object], reading: Reading[object], number: int | None, sent: float, *, lookup: bool
    ) -> None:
        now, watch.missing_since = self.now(), None
        phase = watch.take(reading, number)
        if phase is None:
            self._schedule.rejected(watch.entry, now, blame=False)
            return
        self._schedule.observed(watch.entry, now, phase, sent=sent, lookup=lookup)
        self._warnings.status(watch, reading.status)

    # Called by the poller

    def use_second(self, gate: Gate) -> None:
        """Also poll through this gate."""
        if all(channel.gate is not gate for channel in self._channels):
            self._channels.append(PollChannel(self, gate, lookup=True))

    async def aclose(self) -> None:
        """Cancel the reads in progress, and wait until they have ended."""
        self.stop()
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
