"""The ledger: every request, and when the end of each run was first read. The verdict: what the client did wrong."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import final

__all__ = ["BaseVerdict", "Entry", "Ledger", "mistake", "shared_counts"]

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


@final
@dataclass(slots=True, kw_only=True)
class Ledger:
    """Keeps the entries, and answers questions about them."""

    entries: list[Entry] = field(default_factory=list[Entry])
    shortest_pause: float = 1.5
    """Seconds: a read of a run sooner after the one before counts as hasty."""
    key_leaks: int = 0
    """Requests that carried the API key to another host."""
    refusals: Counter[int] = field(default_factory=Counter[int])
    """By status: refusals that a client can avoid if it follows the contract."""
    readings: dict[str, list[tuple[float, int]]] = field(default_factory=dict[str, list[tuple[float, int]]])
    """By run: when it was read, and which of its parks it showed."""
    detection: dict[str, float] = field(default_factory=dict[str, float])
    """By run: seconds from its end to the first read that showed it."""
    end_read_at: dict[str, float] = field(default_factory=dict[str, float])
    decisions: list[tuple[str, int]] = field(default_factory=list[tuple[str, int]])
    """Decisions that were accepted: the run, and which of its parks was answered."""

    def note_reading(self, run_id: str, park: int, now: float, *, ended_at: float | None) -> None:
        """Record that a run was read, and with `ended_at` that the read showed its end."""
        self.readings.setdefault(run_id, []).append((now, park))
        if ended_at is not None:
            self.detection.setdefault(run_id, now - ended_at)
            self.end_read_at.setdefault(run_id, now)

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


def mistake(words: str) -> int:
    """Return a field of a verdict: how often a client did this."""
    made: int = field(metadata={"words": words})
    return made


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseVerdict:
    """How often a client did what it should not do. `str(verdict)` says it in words: a clean one is "no faults"."""

    over_the_limit: int = mistake("requests over the rate limit (429)")
    """Not those that were refused because too many runs were in progress."""
    key_leaks: int = mistake("requests that sent the API key to another host")
    after_refusal: int = mistake("requests after the API key was refused (401)")
    malformed: int = mistake("malformed requests (400)")
    """Not those that a client cannot foresee, such as one with a row filter that the server does not know."""

    def __str__(self) -> str:
        counts = [(each.metadata["words"], getattr(self, each.name)) for each in fields(self)]
        return "; ".join(f"{words}: {count}" for words, count in counts if count) or "no faults"


def shared_counts(ledger: Ledger) -> dict[str, int]:
    """Return the fields of `BaseVerdict`."""
    return {
        "over_the_limit": ledger.refusals[429],
        "key_leaks": ledger.key_leaks,
        "after_refusal": ledger.after_refusal,
        "malformed": ledger.refusals[400],
    }
