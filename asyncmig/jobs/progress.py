"""How far the runs of a session's customers are, from its events: what no journal holds."""

import asyncio
import re
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from statistics import median
from typing import final
from weakref import WeakValueDictionary

import msgspec

from asyncmig.customers.status import CustomerStatus, MigrationProgress
from asyncmig.events import Event, MigrationChanged, RunChanged, RunEnded
from asyncmig.steps import OUTCOMES

__all__ = ["LiveProgress"]

_OBSERVED = 200
"""How many of the last durations count for the estimate of a run that reports no percentage."""
_PERCENT = re.compile(r"(?<![\d.])(\d{1,9}(?:\.\d{1,20})?) ?%")
_ROWS = re.compile(r"(?<![\d,])(\d[\d,]{0,20}) ?(?:of|/) ?(\d[\d,]{0,20}) rows", re.IGNORECASE)
"""Both are bounded: `int` refuses a number of thousands of digits, and `float` one of hundreds."""


@final
@dataclass(slots=True)
class _Run:
    """A run that is in progress, since this process saw it first."""

    external_id: str
    first_at: float
    first_percent: float | None = None
    percent: float | None = None
    rows: int | None = None
    total_rows: int | None = None


@final
class LiveProgress:
    """Listens to the events of a session, and adds to statuses what they say."""

    __slots__ = ("_changed", "_runs", "_seconds")

    KINDS = (MigrationChanged, RunChanged, RunEnded)
    """The events to which this listens."""

    def __init__(self) -> None:
        self._runs: dict[str, _Run] = {}
        self._seconds: deque[float] = deque(maxlen=_OBSERVED)
        self._changed = WeakValueDictionary[str, asyncio.Event]()
        """For each customer that a call of `news` waits for, the event of its next change, which the calls hold."""

    def take(self, event: Event) -> None:
        """Learn from an event."""
        if isinstance(event, MigrationChanged):
            self._take_step(event)
            self._wake(event.external_id)
        elif isinstance(event, RunChanged) and (run := self._runs.get(event.ids.get("run", ""))) is not None:
            _read_text(run, event.progress or "")
            self._wake(run.external_id)
        elif isinstance(event, RunEnded):
            self._runs.pop(event.ids.get("run", ""), None)
            if event.seconds is not None and event.status == "completed":
                self._seconds.append(event.seconds)

    async def news(self, external_id: str, seconds: float) -> bool:
        """Wait until something changes for a customer, or so many seconds; return whether something did."""
        changed = self._changed.setdefault(external_id, asyncio.Event())
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await changed.wait()
        return changed.is_set()

    def added_to(self, status: CustomerStatus) -> CustomerStatus:
        """Return a status with the progress of the customer's run."""
        run = self._runs.get(status.ids.get("run", ""))
        if run is None or status.outcome != "pending":
            return status
        return msgspec.structs.replace(
            status,
            progress=msgspec.structs.replace(
                status.progress or MigrationProgress(),
                percent=run.percent,
                rows=run.rows,
                total_rows=run.total_rows,
                seconds_left=self._seconds_left(run),
            ),
        )

    def _take_step(self, event: MigrationChanged) -> None:
        run_id = event.ids.get("run")
        if run_id is None:
            return
        if event.step == "running":
            self._runs.setdefault(run_id, _Run(event.external_id, event.at))
        elif event.step in OUTCOMES or event.step == "downloading":
            self._runs.pop(run_id, None)

    def _wake(self, external_id: str) -> None:
        if (changed := self._changed.pop(external_id, None)) is not None:
            changed.set()

    def _seconds_left(self, run: _Run) -> float | None:
        age = asyncio.get_running_loop().time() - run.first_at
        if run.percent is not None and run.first_percent is not None and run.percent > run.first_percent:
            return round(age * (100.0 - run.percent) / (run.percent - run.first_percent), 1)
        return round(max(0.0, median(self._seconds) - age), 1) if self._seconds else None


def _read_text(run: _Run, text: str) -> None:
    """Read the numbers in the server's progress text, if there are any."""
    if found := _ROWS.search(text):
        run.rows, run.total_rows = (int(number.replace(",", "")) for number in found.groups())
    if found := _PERCENT.search(text):
        run.percent = min(100.0, float(found[1]))
    elif run.rows is not None and run.total_rows:
        run.percent = round(min(100.0, 100.0 * run.rows / run.total_rows), 1)
    if run.first_percent is None:
        run.first_percent = run.percent
