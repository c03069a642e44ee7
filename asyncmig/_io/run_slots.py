"""The run slots of one account, for the requests that start runs. `asyncmig._core.run_table` decides who gets them.

Several processes may share the slots (`share`). Then a start reserves its slot in the store when all its budgets have
room, and releases it if they have none afterwards. While the store is unavailable, no run is started.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias, final

from asyncmig._core.run_table import RunStore, RunTable
from asyncmig._io.dispatcher import TICK
from asyncmig._io.event_loop import loop_speed, start_task
from asyncmig._io.shared_runs import SharedRuns
from asyncmig.errors import AsyncmigError, NoRunSlot
from asyncmig.events import Events, RunSlotsBlocked, RunSlotsChanged

__all__ = ["RunSlots", "RunSlotsStatistics"]

_log = logging.getLogger("asyncmig")
Check: TypeAlias = Callable[[], Awaitable[object]]
"""Reads a run, and reports the result."""
_CHECK_PAUSES = (60.0, 120.0, 300.0)
"""Seconds before each check of the runs that wait for a person; the last value repeats."""
_REFRESH = 60.0
"""Seconds after which a run that is still in progress is reported again."""
_RECHECK = 5.0
"""Real seconds between two attempts to get a shared slot, because another process may have released one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSlotsStatistics:
    """A snapshot of the run slots."""

    limit: int | None
    """The most runs that may be in progress in the account; None: any number."""
    runs: tuple[str, ...]
    """The ids of the resources with a run in progress, including those of processes that share the slots."""
    waits_for_person: tuple[str, ...] = ()
    """Those of `runs` whose run is blocked until a person answers."""
    others: int
    """The number of runs of other users of the account. Only a 429 shows them."""
    waiting: int = 0
    """The number of starts that wait."""
    refused: int
    """The number of 429s."""
    held_until: float | None
    """When the next start is tried after a 429, on the loop's clock; None without a hold."""
    was_used: bool = False
    """Whether any run was started or reported."""


@final
class RunSlots:
    """The run slots of one account. `run` is always the id of the resource that the run belongs to."""

    __slots__ = (
        "_checks",
        "_events",
        "_not_before",
        "_reported",
        "_reserved",
        "_shared",
        "_table",
        "_tasks",
        "_timer",
        "_waiting",
        "_was_stuck",
        "_was_used",
        "gives_up",
        "starts",
    )

    def __init__(self, limit: int | None, *, events: Events | None = None) -> None:
        self._table, self._events = RunTable(limit), events or Events()
        self.gives_up: bool = False
        """Whether starts raise `NoRunSlot` while every slot is held by a run that waits for a person."""
        self.starts: int = 0
        """The number of starts that wait."""
        self._checks: dict[str, Check] = {}
        """For each run that waits for a person, the function that reads it."""
        self._was_stuck = False
        self._reported: tuple[int, int, int, int] = (0, 0, 0, 0)
        """The numbers in the last event."""
        self._was_used = False
        self._timer: asyncio.TimerHandle | None = None
        self._waiting: list[Callable[[], None]] = []
        """Called whenever a slot may be free."""
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._shared: SharedRuns | None = None
        self._reserved: set[str] = set()
        """The runs whose slots are reserved, but whose budgets are not charged yet."""
        self._not_before = float("-inf")
        """When the next attempt to get a shared slot may be made."""

    # Called by workflows

    def seen(self, run: str, *, is_blocked: bool = False) -> None:
        """Report that a run is in progress, as a read, a refusal or the journal shows."""
        if not is_blocked:
            self._checks.pop(run, None)
        slot, now = self._table.runs.get(run), self._now()
        has_changed = slot is None or not slot.is_known or (slot.waits and not is_blocked)
        if has_changed or (slot is not None and slot.seen_at + _REFRESH <= now):
            self._change(run, lambda table, at: table.seen(run, at, is_blocked=is_blocked))
        if has_changed:
            self._wake()

    def waits_for_person(self, run: str, check: Check) -> None:
        """Report that a run is blocked, and that only a person can continue it.

        `check`: reads the run and reports the result. It is called repeatedly while a start waits, because the person
        may answer in another process. `seen` for a run that is not blocked ends this, and so does `left`.
        """
        self._checks[run] = check
        self._change(run, lambda table, at: table.seen(run, at, waits=True))
        self._start_checks()
        self._wake()

    def left(self, run: str) -> None:
        """Report that a run is no longer in progress, or never was."""
        self._checks.pop(run, None)
        if run in self._table.runs:
            self._change(run, lambda table, at: table.left(run))
            self._not_before = float("-inf")
            self._wake()

    def statistics(self) -> RunSlotsStatistics:
        """Return a snapshot."""
        table, now = self._table, self._now()
        return RunSlotsStatistics(
            limit=table.limit,
            runs=tuple(table.runs),
            waits_for_person=tuple(run for run, slot in table.runs.items() if slot.waits),
            others=max(0, table.others),
            waiting=self.starts,
            refused=table.refused,
            was_used=self._was_used,
            held_until=self._on_loop(table.retry_at) if table.retry_at > now else None,
        )

    # Called by requests

    def join(self, turn: Callable[[], None]) -> None:
        """From now on, call `turn` whenever a slot may be free."""
        self._waiting.append(turn)

    def begins_to_wait(self) -> None:
        """Report that a start waits from now on."""
        self.starts += 1
        self._emit_changes()
        self._start_checks()

    def ends_waiting(self) -> None:
        """Report that a start does not wait any more."""
        self.starts -= 1
        self._emit_changes()

    def refusal(self, run: str) -> NoRunSlot | None:
        """Return the error with which the wait of a start must end now; None if it may continue."""
        if not self._table.is_stuck or run in self._table.runs:
            return None
        if not self._was_stuck:
            self._events.emit(RunSlotsBlocked(at=_loop_time(), runs=tuple(self._table.runs)))
        self._was_stuck = True
        return NoRunSlot(tuple(self._table.runs)) if self.gives_up else None

    @property
    def are_taken(self) -> bool:
        """Whether no further run can be started now."""
        limit = self._table.limit
        return limit is not None and len(self._table.runs) + self._table.others >= limit

    def holds(self, run: str) -> bool:
        """Return whether a run holds a slot."""
        return run in self._table.runs

    def next_at(self, run: str, now: float, order: int = 0) -> float | None:
        """Return the earliest time at which `run` may be started; None if that depends on another run.

        A shared slot is reserved first: this returns None, and `turn` is called when it is reserved. If no start
        takes it in that turn, it is released.
        """
        at = self.earliest(run, now)
        if self._shared is None or self.holds(run) or self._table.limit is None or at is None or at > now:
            return at
        self._start("reserve", partial(self._reserve_and_wake, run, order))
        return None

    def earliest(self, run: str, now: float) -> float | None:
        """Return when `run` may be started, as far as this process knows; None if that depends on another run."""
        shift = 0.0 if self._shared is None else self._shared.shift
        found = self._table.next_at(run, now + shift)
        at = None if found is None else max(found - shift, now)
        if self._shared is not None and not self.holds(run):  # another process may release a slot meanwhile
            at = max(now if at is None else at, self._not_before)
        if at is not None and at - now <= TICK:
            at = now  # the times of two clocks differ by a rounding error
        if at is not None and at > now:
            self._wake_at(at)
        return at

    def wait_estimate(self, now: float) -> float:
        """Return the seconds until the end of a hold, without the durations of runs, which are not known."""
        return max(0.0, self._on_loop(self._table.retry_at) - now)

    def take(self, run: str) -> None:
        """Take a slot, at a time that `next_at` returned."""
        if run in self._reserved:
            self._reserved.discard(run)
        else:
            self._change(run, lambda table, at: table.take(run, at))

    def started(self, run: str) -> None:
        """Report that the server has started the run, or may have: the slot stays taken."""
        if self._is_unanswered(run):
            self._change(run, lambda table, at: table.started(run, at))

    def refused(self, run: str) -> None:
        """Report that the server did not start the run. The slot stays taken if the run was in progress before."""
        if self._is_unanswered(run):
            self._change(run, lambda table, _: table.not_started(run))
            self._wake()

    def rejected(self, run: str, retry_after: float | None, listed: int | None) -> None:
        """Report a 429 because of the runs in progress. `listed`: how many runs it lists; None without a list."""
        self._change(run, lambda table, at: table.rejected(run, at, retry_after=retry_after, listed=listed))
        self._wake()

    def _is_unanswered(self, run: str) -> bool:
        slot = self._table.runs.get(run)
        return slot is not None and not slot.is_known

    # Waking up

    def _wake(self) -> None:
        self._was_stuck = self._was_stuck and self._table.is_stuck
        for turn in self._waiting:
            turn()

    def _wake_at(self, at: float) -> None:
        if self._timer is None or self._timer.cancelled() or self._timer.when() > at:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = asyncio.get_running_loop().call_at(at, self._on_time)

    def _on_time(self) -> None:
        self._timer = None
        self._wake()

    # Runs that wait for a person

    def _start_checks(self) -> None:
        if self._checks and (self._shared is not None or (self.starts and not self.gives_up)):
            self._start("check", self._check_blocked)

    async def _check_blocked(self) -> None:
        checks = 0
        while self._checks and (self._shared is not None or self.starts):
            await asyncio.sleep(_CHECK_PAUSES[min(checks, len(_CHECK_PAUSES) - 1)])
            checks += 1
            for run, check in list(self._checks.items()):
                try:
                    await check()
                except AsyncmigError as error:
                    _log.warning("the blocked run of %s cannot be read: %s", run, error)

    # Sharing

    def share(self, store: RunStore) -> None:
        """Share the slots with all processes that use the same store.

        A later call is ignored, unless its store is for several hosts and the first one was for one host.
        """
        if self._table.limit is None:
            return
        if self._shared is None or (self._shared.reach, store.reach) == ("host", "network"):
            if self._shared is not None:
                self._shared.stop()
            self._shared = SharedRuns(store, self._table, on_update=self._on_update, events=self._events)

    async def reserve(self, run: str, order: int) -> bool:
        """Take a shared slot before the budgets are charged; return whether one was free. `release` undoes it."""
        if self._shared is None or self._table.limit is None or self.holds(run):
            return True
        is_taken = await self._shared.reserve(run, order)
        self._table = self._shared.table
        if is_taken:
            self._reserved.add(run)
        else:
            self._put_off()
        return is_taken

    def release(self, run: str) -> None:
        """Release a slot that was reserved and not taken."""
        if run in self._reserved:
            self._reserved.discard(run)
            self._change(run, lambda table, _: table.not_started(run))

    async def aclose(self) -> None:
        """Stop all tasks. Write the last changes to the store, for at most one real second."""
        if self._timer is not None:
            self._timer.cancel()
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        if self._shared is not None:
            await self._shared.aclose()

    async def _reserve_and_wake(self, run: str, order: int) -> None:
        try:
            if await self.reserve(run, order):
                self._wake()
        finally:
            if run in self._reserved:  # if the budgets have no room any more, or the start was cancelled
                self._put_off()
                self.release(run)
            self._wake_at(_loop_time())  # for the other starts

    def _put_off(self) -> None:
        self._not_before = _loop_time() + _RECHECK * loop_speed(asyncio.get_running_loop())

    def _on_update(self) -> None:
        assert self._shared is not None
        self._table = self._shared.table
        self._emit_changes()
        self._wake()

    def _change(self, run: str, change: Callable[[RunTable, float], object]) -> None:
        if self._shared is None:
            change(self._table, _loop_time())
        else:
            self._shared.change(run, change)
        self._emit_changes()

    def _emit_changes(self) -> None:
        """Emit an event if the numbers of runs have changed."""
        table = self._table
        waits = sum(slot.waits for slot in table.runs.values())
        numbers = len(table.runs), waits, max(0, table.others), self.starts
        if numbers == self._reported:
            return
        self._reported, self._was_used = numbers, True
        self._events.emit(
            RunSlotsChanged(
                at=_loop_time(),
                limit=table.limit,
                in_progress=numbers[0],
                waits_for_person=waits,
                others=numbers[2],
                waiting=self.starts,
            )
        )

    def _now(self) -> float:
        """Return the time on the table's clock."""
        return _loop_time() if self._shared is None else self._shared.now()

    def _on_loop(self, at: float) -> float:
        """Convert a time on the table's clock to the loop's clock."""
        return at if self._shared is None else at - self._shared.shift

    def _start(self, name: str, work: Callable[[], Coroutine[object, object, None]]) -> None:
        """Start a task, unless one of this name runs."""
        task = self._tasks.get(name)
        if task is None or task.done():
            self._tasks[name] = start_task(work(), name=f"asyncmig run slots: {name}")


def _loop_time() -> float:
    return asyncio.get_running_loop().time()
