"""A table of the statuses and times of one kind of run: when it is parked or ended, and how often it may be read.

Each API generation defines its own tables. Times are in seconds.
"""

import enum
from dataclasses import dataclass

from msgspec import Struct
from msgspec.structs import force_setattr

__all__ = ["HasStatus", "Lifecycle", "Phase"]


class Phase(enum.Enum):
    """What a status means to a task that waits for the run."""

    ACTIVE = "active"
    PARKED = "parked"
    TERMINAL = "terminal"


class HasStatus(Struct, frozen=True, kw_only=True):
    """A reply with the status of a run.

    The status is converted to the contract's spelling: lower case, no spaces around it, `canceled` with one l.
    """

    status: str

    def __post_init__(self) -> None:
        status = self.status.strip().lower()
        force_setattr(self, "status", "canceled" if status == "cancelled" else status)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lifecycle:
    """The statuses of one kind of run, and the contract's times for reading it.

    A status that is in none of the sets counts as active, so that polling continues. The client logs it once.
    """

    known: frozenset[str]
    """The documented active statuses."""
    parked: frozenset[str]
    terminal: frozenset[str]

    shortest_floor: float
    """The floor of a young run. A floor is the shortest time between the answer to a read and the next read."""
    longest_floor: float
    """The floor of an old run."""
    age_per_floor: float
    """The floor grows by one second for each `age_per_floor` seconds of age, between the two bounds."""
    parked_floor: float
    """The floor of a parked run, which waits for a person. A read that a caller requests need not wait for it."""
    read_lag: float
    """How long a read may show an old state: a read of a new run may return 404, and an ended run may look active."""
    stall_alarm: float
    """The age at which a run that has not ended is reported as stalled. Parked time does not count."""

    def phase(self, status: str) -> Phase:
        """Return what `status` means."""
        if status in self.terminal:
            return Phase.TERMINAL
        return Phase.PARKED if status in self.parked else Phase.ACTIVE

    def is_known(self, status: str) -> bool:
        """Return whether `status` is documented."""
        return status in self.known or status in self.parked or status in self.terminal

    def floor(self, age: float) -> float:
        """Return the floor of an active run of this age."""
        return min(self.longest_floor, max(self.shortest_floor, age / self.age_per_floor))
