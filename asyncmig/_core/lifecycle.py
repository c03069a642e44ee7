"""A run's life as a table: which statuses park it, which end it. Every other status is active."""

import enum
from dataclasses import dataclass

__all__ = ["Lifecycle", "Phase"]


class Phase(enum.Enum):
    """What a status means for whoever waits."""

    ACTIVE = "active"
    PARKED = "parked"
    TERMINAL = "terminal"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lifecycle:
    """The statuses of one kind of run.

    A status that stands in no set, also one invented tomorrow, is active: polling goes on.
    `known` are the active statuses that are documented; others are warned of once.
    """

    known: frozenset[str]
    parked: frozenset[str]
    terminal: frozenset[str]

    def phase(self, status: str) -> Phase:
        """Return what `status` means."""
        if status in self.terminal:
            return Phase.TERMINAL
        return Phase.PARKED if status in self.parked else Phase.ACTIVE

    def is_known(self, status: str) -> bool:
        """Return whether `status` is documented."""
        return status in self.known or status in self.parked or status in self.terminal
