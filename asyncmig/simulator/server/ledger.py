"""The ledger: every request, and when the end of each run was first read."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import ClassVar, final

__all__ = ["BaseVerdict", "Entry", "Ledger"]

_POLLS = ("/imports/{run_id}", "/exports/{run_id}", "/runs/{run_id}", "/jobs/{job_id}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One request to the API's host, by route."""

    at: float
    method: str
    template: str
    ids: Mapping[str, str]
    status: int

    @property
    def endpoint(self) -> str:
        """Method and route template."""
        return f"{self.method} {self.template}"


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseVerdict:
    """How often a client did what it should not do. `str(verdict)` says it in words: a clean one is "no faults"."""

    _MEANINGS: ClassVar[Mapping[str, str]] = {}
    """The words for each field."""

    def __str__(self) -> str:
        found = [f"{self._MEANINGS[name]}: {count}" for name, count in asdict(self).items() if count]
        return "; ".join(found) or "no faults"


@final
class Ledger:
    """Keeps the entries, and answers questions about them."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.shortest_pause: float = 1.5
        """Seconds: a read of a run sooner after the one before counts as hasty."""
        self.key_leaks = 0
        """Requests that carried the API key to the storage's host."""
        self.detection: dict[str, float] = {}
        """By run: seconds from its end to the first read that showed it."""

        self.readings: dict[str, list[tuple[float, int]]] = {}
        """By run: when it was read, and which of its parks it showed."""
        self.end_read_at: dict[str, float] = {}
        self.decisions: list[tuple[str, int]] = []
        """Decisions: the run, and which of its parks was answered."""

    def note_decision(self, run_id: str, park: int) -> None:
        """Record a decision that was accepted."""
        self.decisions.append((run_id, park))

    def note_reading(self, run_id: str, park: int, now: float) -> None:
        """Record that a run was read."""
        self.readings.setdefault(run_id, []).append((now, park))

    def note(self, entry: Entry) -> None:
        """Record a request."""
        self.entries.append(entry)

    def note_end(self, run_id: str, *, ended_at: float, read_at: float) -> None:
        """Record that the end of a run was read."""
        self.detection.setdefault(run_id, read_at - ended_at)
        self.end_read_at.setdefault(run_id, read_at)

    @property
    def over_the_limit(self) -> int:
        """Requests that were answered 429."""
        return sum(entry.status == 429 for entry in self.entries)

    @property
    def after_refusal(self) -> int:
        """Requests after the first 401."""
        statuses = [entry.status for entry in self.entries]
        return len(statuses) - statuses.index(401) - 1 if 401 in statuses else 0

    @property
    def requests(self) -> Counter[str]:
        """Requests by endpoint."""
        return Counter(entry.endpoint for entry in self.entries)

    @property
    def poll_share(self) -> float:
        """The share of all requests that were status checks."""
        polls = sum(entry.template.endswith(_POLLS) for entry in self.entries)
        return polls / len(self.entries) if self.entries else 0.0
