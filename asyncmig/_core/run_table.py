"""The run slots of an account: which runs are in progress, and when the next one may be started.

A start takes a slot under the id of its resource, which has at most one run at a time. The slot is free again when a
read has shown that the run is no longer in progress. Other users of the account occupy slots as well, which only a
429 shows. After such a 429, no start is tried until one of our runs is no longer in progress, or until the server's
`Retry-After` (without one, the next of `_RETRIES`) has passed. The reason: runs of other users cannot be read, and
each refused try may cost an hourly slot of a budget.

Several processes keep their table in one store (`dump`, `load`). If no process has reported a run for `FORGOTTEN`
seconds, its slot counts as one of another user: a start may be tried, but the slot is not assumed to be free.

All times are seconds on the caller's clock.
"""

from collections.abc import Callable
from typing import Literal, Protocol, TypeAlias, final

import msgspec
from msgspec import Struct

__all__ = ["FORGOTTEN", "HeldSlot", "Reach", "RunStore", "RunTable"]

Reach: TypeAlias = Literal["host", "network"]
"""Which processes can use a store: those of one host, or of several."""

FORGOTTEN = 7200.0
"""Seconds without a report after which a run may have ended unnoticed. Every run that is not blocked is shorter."""
_RETRIES = (60.0, 120.0, 300.0, 600.0, 1200.0)
"""Seconds before each further try after a 429. The last value repeats."""
_LONGEST_RETRY_AFTER = 3600.0


@final
class HeldSlot(Struct, array_like=True):
    """The slot of one run."""

    seen_at: float
    """When a process last reported the run."""
    is_known: bool = True
    """False while the response to the request that starts the run has not arrived."""
    waits: bool = False
    """Whether the run is blocked until a person answers."""


@final
class RunTable(Struct):
    """The run slots of one account. `run` is always the id of the resource that the run belongs to."""

    limit: int | None
    epoch: str = ""
    """Identifies the table in its store. It changes when the store has lost the table."""
    runs: dict[str, HeldSlot] = {}
    others: int = 0
    """The number of runs of other users of the account. Only a 429 shows them."""
    refused: int = 0
    """The number of 429s."""
    tries: int = 0
    """The number of 429s since the last start."""
    retry_at: float = float("-inf")
    """When the next start may be tried after a 429."""
    probing: str | None = None
    """The run whose start is tried although other users may still occupy the slots."""
    wanted: dict[str, tuple[int, float]] = {}
    """The starts that wait in other processes: for each process the lowest order, and until when this is valid."""

    @property
    def is_stuck(self) -> bool:
        """Whether every slot is held by a known run that waits for a person."""
        return (
            self.limit is not None
            and self.others <= 0
            and len(self.runs) >= self.limit
            and all(slot.waits for slot in self.runs.values())
        )

    # Before a start

    def next_at(self, run: str, now: float) -> float | None:
        """Return the earliest time at which `run` may be started; None if that depends on another run."""
        if self.limit is None or run in self.runs:
            return now
        self._forget(now)
        if self.retry_at > now:
            return self.retry_at
        if len(self.runs) + self.others < self.limit:
            return now
        return now if self.others > 0 and self.probing is None and len(self.runs) < self.limit else None

    def take(self, run: str, now: float) -> None:
        """Take a slot, at a time that `next_at` returned."""
        if run in self.runs:
            return
        if self.limit is not None and len(self.runs) + self.others >= self.limit:
            self.probing = run
            self.others -= 1
        self.runs[run] = HeldSlot(now, is_known=False)

    def comes_first(self, order: int, process: str, now: float) -> bool:
        """Return whether no other process wants to start a run of a lower order."""
        return not any(
            lower < order and until > now for other, (lower, until) in self.wanted.items() if other != process
        )

    def want(self, order: int | None, process: str, now: float, until: float) -> None:
        """Record the lowest order of the starts that wait in a process, valid until `until`; None if none waits."""
        self.wanted = {
            each: entry for each, entry in self.wanted.items() if each != process and entry[1] > now
        }
        if order is not None:
            self.wanted[process] = order, until

    # Results of starts and reads

    def seen(self, run: str, now: float, *, is_blocked: bool = False, waits: bool = False) -> None:
        """Record that a run is in progress. A blocked run that waited for a person still waits for that person."""
        slot = self.runs.get(run)
        self.runs[run] = HeldSlot(now, waits=waits or (is_blocked and slot is not None and slot.waits))
        self._end_probe(run)

    def left(self, run: str) -> None:
        """Record that a run is not in progress."""
        self._end_probe(run)
        if self.runs.pop(run, None) is not None:
            self.retry_at = float("-inf")

    def started(self, run: str, now: float) -> None:
        """Record that the server has started the run, or may have: the slot stays taken."""
        slot = self.runs.get(run)
        if slot is not None and not slot.is_known:
            slot.is_known, slot.seen_at = True, now
            self.tries = 0
            self._end_probe(run)

    def not_started(self, run: str) -> None:
        """Record that the server did not start the run. Its slot is free, unless it was in progress before."""
        slot = self.runs.get(run)
        if slot is not None and not slot.is_known:
            del self.runs[run]
            if self.probing == run:
                self.others += 1
            self._end_probe(run)

    def rejected(self, run: str, now: float, *, retry_after: float | None, listed: int | None) -> None:
        """Record a 429 because of the runs in progress. `listed`: how many runs it lists; None without a list."""
        self.refused += 1
        slot = self.runs.get(run)
        if slot is not None and not slot.is_known:
            del self.runs[run]
        self._end_probe(run)
        self.others = max(1, (listed or 0) - len(self.runs))
        pause = _RETRIES[min(self.tries, len(_RETRIES) - 1)]
        if retry_after is not None:
            pause = min(_LONGEST_RETRY_AFTER, max(1.0, retry_after))
        self.tries += 1
        self.retry_at = now + pause

    def _end_probe(self, run: str) -> None:
        if self.probing == run:
            self.probing = None

    def _forget(self, now: float) -> None:
        for run, slot in list(self.runs.items()):
            if slot.seen_at + FORGOTTEN <= now:
                del self.runs[run]
                self._end_probe(run)
                self.others += 1

    # Between processes

    def dump(self) -> bytes:
        """Return the table as JSON, without the limit, which each process configures."""
        state = msgspec.structs.asdict(self)
        del state["limit"]
        return msgspec.json.encode(state)

    @classmethod
    def load(cls, data: bytes, limit: int | None) -> "RunTable":
        """Return a table that `dump` wrote. Raises `ValueError` for anything else."""
        state = msgspec.json.decode(data, type=dict[str, object])
        if state.get("retry_at") is None:  # JSON has no infinity
            state.pop("retry_at", None)
        return msgspec.convert({**state, "limit": limit}, cls)


class RunStore(Protocol):
    """Keeps the run table of an account for several processes, as bytes."""

    @property
    def reach(self) -> Reach:
        """Which processes can use it."""
        ...

    async def update(self, change: Callable[[bytes, float], bytes], *, speed: float) -> None:
        """Replace the bytes by `change(bytes, now)`, atomically for all processes.

        They are empty at first. `now`: the time of the store's clock, in seconds of an event loop that runs `speed`
        times as fast. `change` may be called several times. Raises `OSError` or `JournalError` if the store does not
        answer.
        """
        ...
