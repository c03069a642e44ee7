"""Journal entries that could not be written yet. The session keeps them until the journal is available."""

from dataclasses import dataclass
from typing import final

__all__ = ["UnwrittenEntries", "UnwrittenEntry"]


@final
@dataclass(frozen=True, slots=True)
class UnwrittenEntry:
    """The arguments of one write to a claim."""

    kind: str
    detail: bytes
    state: bytes


@final
@dataclass(frozen=True, slots=True)
class UnwrittenEntries:
    """The entries of a customer that could not be written, and the state before them."""

    before: bytes | None
    entries: tuple[UnwrittenEntry, ...]

    def missing(self, state: bytes | None) -> tuple[UnwrittenEntry, ...]:
        """Return the entries that a journal with this state lacks; none if another process wrote meanwhile."""
        states = [self.before, *(entry.state for entry in self.entries)]
        return self.entries[states.index(state) :] if state in states else ()
