"""Which runs of an account are in progress, and when the next one may be started.

A start takes a slot under the id of its resource, which has one run at a time. The slot is free again when the run
was seen to have left its active statuses. Other users of the account occupy slots, too, which only a 429 shows. After
one, nothing is tried again before one of our runs has left, the server's `Retry-After` has passed, or `_RETRIES` has:
runs of others cannot be seen, and a refused try may cost an hourly slot.

The table of several processes is kept in one place (`dump`, `load`). A slot whose run no process has reported for
`FORGOTTEN` seconds counts as one of another user: it can be tried, and is not assumed to be free.

Times are seconds on the caller's clock.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias, cast, final

__all__ = ["FORGOTTEN", "HeldSlot", "Reach", "RunStore", "RunTable"]

Reach: TypeAlias = Literal["host", "network"]
"""Which processes can use a store: those of one host, or of several."""

FORGOTTEN = 7200.0
"""Seconds without a report after which a run may have ended unseen. Longer than any run takes that is not blocked."""
_RETRIES = (60.0, 120.0, 300.0, 600.0, 1200.0)
"""Seconds before each further try after a 429; the last one applies to all later tries."""
_LONGEST_RETRY_AFTER = 3600.0


@dataclass(slots=True)
class HeldSlot:
    """The slot of one run."""

    seen_at: float
    """When a process last reported it."""
    is_known: bool = True
    """False while the response to the request that starts the run has not arrived."""
    waits: bool = False
    """Whether the run is blocked, and waits for a person."""


@final
class RunTable:
    """The run slots of one account. Every `run` is the id of the resource that it belongs to."""

    __slots__ = ("epoch", "limit", "others", "probing", "refused", "retry_at", "runs", "tries", "wanted")

    def __init__(self, limit: int | None) -> None:
        self.limit: int | None = limit
        self.epoch: str = ""
        """Changes when the place that keeps the table has lost it."""
        self.runs: dict[str, HeldSlot] = {}
        self.others: int = 0
        """The runs of other users of the account, as far as a 429 showed them."""
        self.refused: int = 0
        """The number of 429s."""
        self.tries: int = 0
        self.retry_at: float = float("-inf")
        """When the next start may be tried after a 429."""
        self.probing: str | None = None
        """The run whose start is tried although others may still occupy the slots."""
        self.wanted: dict[str, tuple[int, float]] = {}
        """The starts that other processes want: for each process the lowest order, and the time until which it
        holds."""

    @property
    def is_stuck(self) -> bool:
        """Whether every slot is held by a known run that waits for a person."""
        return (
            self.limit is not None
            and self.others <= 0
            and len(self.runs) >= self.limit
            and all(slot.waits for slot in self.runs.values())
        )

    # What may be started

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
        """Note the lowest order of the starts that a process wants; None if it wants none."""
        self.wanted = {
            each: entry for each, entry in self.wanted.items() if each != process and entry[1] > now
        }
        if order is not None:
            self.wanted[process] = order, until

    # What became of it

    def seen(self, run: str, now: float, *, is_blocked: bool = False, waits: bool = False) -> None:
        """Note that a run is in progress. A blocked run that waits for a person still does."""
        slot = self.runs.get(run)
        self.runs[run] = HeldSlot(now, waits=waits or (is_blocked and slot is not None and slot.waits))
        self._end_probe(run)

    def left(self, run: str) -> bool:
        """Note that a run is no longer in progress, or never was. Return whether it held a slot."""
        self._end_probe(run)
        if self.runs.pop(run, None) is None:
            return False
        self.retry_at = float("-inf")
        return True

    def started(self, run: str, now: float) -> None:
        """Note that the server started the run, or that it may have: the slot stays taken."""
        slot = self.runs.get(run)
        if slot is not None and not slot.is_known:
            slot.is_known, slot.seen_at = True, now
            self.tries = 0
            self._end_probe(run)

    def not_started(self, run: str) -> bool:
        """Note that the server did not start the run. A slot that was taken before stays taken. Return whether the
        slot is free."""
        slot = self.runs.get(run)
        if slot is None or slot.is_known:
            return False
        del self.runs[run]
        if self.probing == run:
            self.others += 1
        self._end_probe(run)
        return True

    def rejected(self, run: str, now: float, *, retry_after: float | None, listed: int | None) -> None:
        """Note a 429 because of the runs in progress; `listed`: how many the server lists, if it does."""
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
        """Return the table as JSON."""
        runs = {run: [slot.seen_at, slot.is_known, slot.waits] for run, slot in self.runs.items()}
        state = {name: getattr(self, name) for name in self.__slots__ if name not in ("limit", "runs")}
        retry_at = None if self.retry_at == float("-inf") else self.retry_at
        return json.dumps({**state, "retry_at": retry_at, "runs": runs}).encode()

    def load(self, data: bytes) -> None:
        """Take over a table that `dump` returned. Raises `ValueError` for anything else."""
        try:
            state = cast("Mapping[str, object]", json.loads(data))
            runs = cast("Mapping[str, tuple[float, bool, bool]]", state["runs"])
            self.runs = {run: HeldSlot(*slot) for run, slot in runs.items()}
            wanted = cast("Mapping[str, tuple[int, float]]", state["wanted"])
            self.wanted = {process: (order, until) for process, (order, until) in wanted.items()}
            for name in ("epoch", "others", "refused", "tries", "probing"):
                setattr(self, name, state[name])
            retry_at = cast("float | None", state["retry_at"])
            self.retry_at = float("-inf") if retry_at is None else retry_at
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a table of run slots: {error}") from error


class RunStore(Protocol):
    """Keeps the table of an account for several processes, as bytes."""

    @property
    def reach(self) -> Reach:
        """Which processes can use it."""
        ...

    async def update(self, change: Callable[[bytes, float], bytes], *, speed: float) -> None:
        """Replace the state by `change(state, now)`, as one step for all processes.

        The first state is empty. `now`: the store's clock in seconds of an event loop that runs `speed` times as
        fast. `change` may be called several times. Raises `OSError` or `JournalError` if the store does not answer.
        """
        ...
