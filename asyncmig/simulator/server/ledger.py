"""The ledger: every request, and when the end of each run was first read."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import final

__all__ = ["Entry", "Ledger", "Verdict"]

_MEANINGS = {
    "over_the_limit": "requests over the rate limit (429)",
    "key_leaks": "requests that sent the API key to the storage's host",
    "duplicate_imports": "imports of rows that the company already had",
    "duplicate_companies": "companies created twice for one customer",
    "duplicate_exports": "exports started twice",
    "polls_after_the_end": "reads of a run that was known to have ended",
    "hasty_polls": "reads of a run too soon after the one before",
    "blind_decisions": "decisions about questions that were not read",
    "after_refusal": "requests after the API key was refused (401)",
    "malformed": "malformed requests (400)",
    "unaccounted": "imports whose end was never read",
}
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
class Verdict:
    """How often a client did what it should not do. `str(verdict)` says it in words: a clean one is "no faults"."""

    over_the_limit: int
    """The number of requests with a 429."""
    key_leaks: int
    """Requests that carried the API key to the storage's host."""
    duplicate_imports: int
    """Imports of rows that the company already had."""
    duplicate_companies: int
    duplicate_exports: int
    """Exports of a company with the mode and selection of an earlier one, under another key."""
    polls_after_the_end: int
    """Reads of a run after one that showed its end."""
    hasty_polls: int
    """Reads of a run less than `Ledger.shortest_pause` seconds after the one before."""
    blind_decisions: int
    """Decisions about a parked run that had not been read."""
    after_refusal: int
    """Requests after the first 401."""
    malformed: int
    """Requests with a 400."""
    unaccounted: int
    """Imports whose end was never read, for example because the test ended before."""

    def __str__(self) -> str:
        found = [f"{_MEANINGS[name]}: {count}" for name, count in asdict(self).items() if count]
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

    def verdict(
        self, *, duplicate_imports: int, duplicate_companies: int, duplicate_exports: int, unaccounted: int
    ) -> Verdict:
        """Return what a client did wrong, including what only the world knows."""
        statuses = [entry.status for entry in self.entries]
        refused = statuses.index(401) if 401 in statuses else len(statuses)
        shown = {(run_id, park) for run_id, readings in self.readings.items() for _, park in readings}
        times = [[at for at, _ in readings] for readings in self.readings.values()]
        return Verdict(
            over_the_limit=self.over_the_limit,
            key_leaks=self.key_leaks,
            duplicate_imports=duplicate_imports,
            duplicate_companies=duplicate_companies,
            duplicate_exports=duplicate_exports,
            polls_after_the_end=sum(
                at > ended for run_id, ended in self.end_read_at.items() for at, _ in self.readings[run_id]
            ),
            hasty_polls=sum(
                late - early < self.shortest_pause for reads in times for early, late in pairwise(reads)
            ),
            blind_decisions=sum(decision not in shown for decision in self.decisions),
            after_refusal=max(0, len(statuses) - refused - 1),
            malformed=statuses.count(400),
            unaccounted=unaccounted,
        )

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
    def requests(self) -> Counter[str]:
        """Requests by endpoint."""
        return Counter(entry.endpoint for entry in self.entries)

    @property
    def poll_share(self) -> float:
        """The share of all requests that were status checks."""
        polls = sum(entry.template.endswith(_POLLS) for entry in self.entries)
        return polls / len(self.entries) if self.entries else 0.0
