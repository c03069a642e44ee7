"""Journal entries that could not be written yet: the session keeps them until the journal is back."""

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
    """The entries of one customer that a journal could not take, and its state before them."""

    before: bytes | None
    entries: tuple[UnwrittenEntry, ...]

    def missing(self, state: bytes | None) -> tuple[UnwrittenEntry, ...]:
        """Return the entries that a journal with this state lacks; none if another process wrote meanwhile."""
        states = [self.before, *(entry.state for entry in self.entries)]
        return self.entries[states.index(state) :] if state in states else ()
