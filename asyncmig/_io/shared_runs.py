"""The run slots that several processes share: a copy of the table in a store, for one of the processes.

Every change is applied to the copy at once, and written to the store in the background. If the write fails, it is
repeated. If the store has lost its data, the process reports again the runs that it knows.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import final
from uuid import uuid4

from asyncmig._core.run_table import Reach, RunStore, RunTable
from asyncmig._io.event_loop import loop_speed, start_task
from asyncmig.errors import JournalError
from asyncmig.events import Events, SharedWindowFound, SharedWindowLost

__all__ = ["SharedRuns"]

_log = logging.getLogger("asyncmig")
Change = Callable[[RunTable, float], object]
"""Changes a table, at a time on its clock."""
_RUNS = "runs"
"""The name of the run slots in events."""
_RETRY = 1.0
"""Real seconds between attempts to reach the store again."""
_SETTLE = 120.0
"""Seconds after a loss of data in which no run is started, because other processes must report their runs first."""
_WANTED_FOR = 15.0
"""Real seconds for which a waiting start goes before the starts of a higher order in other processes."""
_LAST_REPORTS = 1.0
"""Real seconds for the last writes when the session is closed."""


@final
class SharedRuns:
    """A run table in a store. `on_update` is called after the changes were written."""

    __slots__ = (
        "_changes",
        "_epoch",
        "_events",
        "_lost_at",
        "_on_update",
        "_own",
        "_process",
        "_store",
        "_task",
        "shift",
        "table",
    )

    def __init__(
        self, store: RunStore, table: RunTable, *, on_update: Callable[[], None], events: Events
    ) -> None:
        """`table`: the table of this process so far, with times on the loop's clock."""
        self._store, self._on_update, self._events = store, on_update, events
        self.table: RunTable = table
        self.shift: float = 0.0
        """Seconds by which the store's clock is ahead of the loop's."""
        self._process, self._epoch = uuid4().hex, ""
        self._own = set(table.runs)
        """The runs in progress that this process has reported."""
        self._changes: list[Change] = []
        """The changes that are not in the store yet."""
        self._task: asyncio.Task[None] | None = None
        self._lost_at: float | None = None
        if self._own:
            self._report()

    @property
    def reach(self) -> Reach:
        """Which processes can use the store."""
        return self._store.reach

    def now(self) -> float:
        """Return the time on the table's clock."""
        return asyncio.get_running_loop().time() + self.shift

    def change(self, run: str, change: Change) -> None:
        """Apply a change that concerns the slot of a run."""
        change(self.table, self.now())
        if run in self.table.runs:
            self._own.add(run)
        else:
            self._own.discard(run)
        self._changes.append(change)
        self._report()

    async def reserve(self, run: str, order: int) -> bool:
        """Take a slot for a start. Return False if none is free, or if a start of a lower order waits in another
        process.

        Also returns False if the store does not answer.
        """
        loop, is_taken = asyncio.get_running_loop(), False
        wanted_for = _WANTED_FOR * loop_speed(loop)

        def take(table: RunTable, now: float) -> None:
            nonlocal is_taken
            at = table.next_at(run, now)
            is_taken = at is not None and at <= now and table.comes_first(order, self._process, now)
            table.want(None if is_taken else order, self._process, now, now + wanted_for)
            if is_taken:
                table.take(run, now)

        try:
            await self._update(take)
        except (OSError, JournalError) as error:
            self._on_lost(error)
            return False
        if is_taken:
            self._own.add(run)
        return is_taken

    async def aclose(self) -> None:
        """Write the remaining changes, for at most one real second."""
        task = self._task
        if task is not None:
            try:
                await asyncio.wait([task], timeout=_LAST_REPORTS * loop_speed(asyncio.get_running_loop()))
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    def stop(self) -> None:
        """Write nothing more, because another store is used from now on."""
        if self._task is not None:
            self._task.cancel()

    def _report(self) -> None:
        if self._task is None:
            self._task = start_task(self._write(), name="asyncmig run slots")

    async def _write(self) -> None:
        try:
            while self._changes or not self._epoch:
                try:
                    await self._update()
                except (OSError, JournalError) as error:
                    self._on_lost(error)
                    await asyncio.sleep(_RETRY * loop_speed(asyncio.get_running_loop()))
        finally:
            self._task = None
        self._on_update()

    async def _update(self, last: Change | None = None) -> None:
        """Apply the changes that are not in the store yet, and then `last`. Use the resulting table from now on."""
        loop = asyncio.get_running_loop()
        changes, result = tuple(self._changes), RunTable(self.table.limit)
        at = 0.0

        def apply(data: bytes, now: float) -> bytes:
            nonlocal result, at
            result, at = self._loaded(data, now), now
            for change in changes:
                change(result, now)
            if last is not None:
                last(result, now)
            return result.dump()

        await self._store.update(apply, speed=loop_speed(loop))
        del self._changes[: len(changes)]
        self.table, self.shift, self._epoch = result, at - loop.time(), result.epoch
        for change in self._changes:
            change(self.table, at)
        self._own &= self.table.runs.keys()
        self._on_found()

    def _loaded(self, data: bytes, now: float) -> RunTable:
        table = RunTable(self.table.limit)
        try:
            if data:
                table = RunTable.load(data, table.limit)
        except ValueError as error:
            _log.warning("run slots: the shared table is damaged and is replaced: %s", error)
        table.epoch = table.epoch or uuid4().hex[:16]
        if table.epoch != self._epoch:
            for run in self._own:
                if run not in table.runs:
                    table.seen(run, now)
            if (
                self._epoch
            ):  # the store has lost its data, and other processes have not reported their runs yet
                table.retry_at = max(table.retry_at, now + _SETTLE)
        return table

    def _on_lost(self, error: Exception) -> None:
        if self._lost_at is not None:
            return
        self._lost_at = asyncio.get_running_loop().time()
        _log.warning("run slots: the store is unavailable (%s); no run is started", error)
        self._events.emit(
            SharedWindowLost(at=self._lost_at, budget=_RUNS, slots=0, processes=1, error=str(error))
        )

    def _on_found(self) -> None:
        if self._lost_at is None:
            return
        now, lost_at, self._lost_at = asyncio.get_running_loop().time(), self._lost_at, None
        _log.warning("run slots: the store is available again")
        self._events.emit(
            SharedWindowFound(at=now, budget=_RUNS, slots=self.table.limit or 0, seconds=now - lost_at)
        )
