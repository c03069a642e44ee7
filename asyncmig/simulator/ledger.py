"""What the server saw: every request, and when the end of each run was first read."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

__all__ = ["Entry", "Ledger"]

_POLLS = ("/imports/{run_id}", "/exports/{run_id}")


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
        return f"{self.method} {self.template}"


@final
class Ledger:
    """Keeps the entries, and answers questions about them."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.key_leaks = 0
        """Requests that carried the API key to the storage's host."""
        self.detection: dict[str, float] = {}
        """By run: seconds from its end to the first read that showed it."""

        self.decisions: list[tuple[str, int]] = []
        """Decisions that were taken: the run, and which of its parks was answered."""

    def note_decision(self, run_id: str, park: int) -> None:
        self.decisions.append((run_id, park))

    def note(self, entry: Entry) -> None:
        self.entries.append(entry)

    def note_end(self, run_id: str, *, ended_at: float, read_at: float) -> None:
        self.detection.setdefault(run_id, read_at - ended_at)

    @property
    def over_the_limit(self) -> int:
        """Requests that were answered 429."""
        return sum(entry.status == 429 for entry in self.entries)

    @property
    def requests(self) -> Counter[str]:
        """Requests by endpoint."""
        return Counter(entry.endpoint for entry in self.entries)

    @property
    def poll_share(self) -> float:
        """The share of all requests that were status checks."""
        polls = sum(entry.template.endswith(_POLLS) for entry in self.entries)
        return polls / len(self.entries) if self.entries else 0.0
