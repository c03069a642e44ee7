"""The runs that may be in progress in the account at a time, and those that are.

A request that starts a run takes a slot under the id of its resource, which has one run at a time. The slot is free
again when the run was seen to have left its active statuses. Other users of the account occupy slots, too, which only
a 429 shows. After one, nothing is tried again before one of our runs has left, the server's `Retry-After` has passed,
or `_RETRIES` has: runs of others cannot be seen, and a refused try may cost an hourly slot.
"""

import asyncio
from dataclasses import dataclass
from typing import Protocol, final

__all__ = ["RunSlots", "RunSlotsStatistics"]

_RETRIES = (60.0, 120.0, 300.0, 600.0, 1200.0)
"""Seconds before each further try after a 429; the last one applies to all later tries."""
_LONGEST_RETRY_AFTER = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSlotsStatistics:
    """A snapshot of the run slots."""

    limit: int | None
    """The runs that may be in progress in the account; None: any number."""
    runs: tuple[str, ...]
    """The resources of this process whose runs are in progress."""
    others: int
    """The runs of other users of the account, as far as a 429 showed them."""
    refused: int
    """The number of 429s."""
    held_until: float | None
    """When the next try is made after a 429, on the loop's clock; None without one."""


class _Waiting(Protocol):
    def turn(self) -> None: ...


@final
class RunSlots:
    """The run slots of one account. Every `run` is the id of the resource that it belongs to."""

    __slots__ = (
        "_limit",
        "_others",
        "_probing",
        "_refused",
        "_retry_at",
        "_runs",
        "_timer",
        "_tries",
        "_waiting",
    )

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self._runs: dict[str, bool] = {}
        """The runs that hold a slot, and whether each was known before the present request for it."""
        self._others = self._tries = self._refused = 0
        self._probing: str | None = None
        """The run that is tried although the slots of others may still be occupied."""
        self._retry_at = float("-inf")
        self._timer: asyncio.TimerHandle | None = None
        self._waiting: list[_Waiting] = []

    # What workflows report

    def seen(self, run: str) -> None:
        """Report that a run is in progress: a read, a refusal or the journal shows it queued, running or blocked."""
        self._runs[run] = True

    def left(self, run: str) -> None:
        """Report that a run is no longer in progress, or never was."""
        if self._runs.pop(run, None) is not None:
            self._retry_at = float("-inf")
            self._wake()

    def statistics(self) -> RunSlotsStatistics:
        """Return a snapshot."""
        held = self._retry_at > asyncio.get_running_loop().time()
        return RunSlotsStatistics(
            limit=self._limit,
            runs=tuple(self._runs),
            others=self._others,
            refused=self._refused,
            held_until=self._retry_at if held else None,
        )

    # What requests take

    def join(self, waiting: _Waiting) -> None:
        """Call its `turn` whenever a slot may be free."""
        self._waiting.append(waiting)

    def holds(self, run: str) -> bool:
        """Return whether a run holds a slot."""
        return run in self._runs

    def next_at(self, run: str, now: float) -> float | None:
        """Return the earliest time at which `run` may be started; None if that depends on another run."""
        if self._limit is None or run in self._runs:
            return now
        if self._retry_at > now:
            self._wake_at(self._retry_at)
            return self._retry_at
        if len(self._runs) + self._others < self._limit:
            return now
        return now if self._others and self._probing is None and len(self._runs) < self._limit else None

    def wait_estimate(self, now: float) -> float:
        """Return the seconds for which no run is started; how long runs take is not known."""
        return max(0.0, self._retry_at - now)

    def take(self, run: str) -> None:
        """Take a slot, at a time that `next_at` returned."""
        if run in self._runs:
            return
        if self._limit is not None and len(self._runs) + self._others >= self._limit:
            self._probing = run
            self._others -= 1
        self._runs[run] = False

    def started(self, run: str) -> None:
        """Report that the server started the run, or that it may have: the slot stays taken."""
        if self._runs.get(run) is False:
            self._runs[run] = True
            self._tries = 0
            self._end_probe(run)

    def refused(self, run: str) -> None:
        """Report that the server did not start the run. A slot that was known to be taken before stays taken."""
        if self._runs.get(run) is False:
            del self._runs[run]
            if self._probing == run:
                self._others += 1
            self._end_probe(run)
            self._wake()

    def rejected(self, run: str, retry_after: float | None, listed: int | None) -> None:
        """Report a 429 because of the runs in progress; `listed`: how many the server lists, if it does."""
        self._refused += 1
        if self._runs.get(run) is False:
            del self._runs[run]
        self._end_probe(run)
        self._others = max(1, (listed or 0) - len(self._runs))
        pause = _RETRIES[min(self._tries, len(_RETRIES) - 1)]
        if retry_after is not None:
            pause = min(_LONGEST_RETRY_AFTER, max(1.0, retry_after))
        self._tries += 1
        self._retry_at = asyncio.get_running_loop().time() + pause
        self._wake()

    def _end_probe(self, run: str) -> None:
        if self._probing == run:
            self._probing = None

    def _wake(self) -> None:
        for each in self._waiting:
            each.turn()

    def _wake_at(self, at: float) -> None:
        if self._timer is None or self._timer.cancelled() or self._timer.when() < at:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = asyncio.get_running_loop().call_at(at, self._on_time)

    def _on_time(self) -> None:
        self._timer = None
        self._wake()
