"""The port of a shared window: a store keeps each budget for all processes, and grants their slots.

A `SharedWindow` makes one `BudgetStore` for each budget. A process reports what became of its slots and asks for the
next one in the same exchange. The store grants the slot or says when to ask again. It measures time on its own clock
and never uses the clock of a process. `asyncmig.distributed.redis.RedisWindow` is the implementation on Redis.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

__all__ = ["BudgetReply", "BudgetStore", "SharedWindow", "SlotEvent", "SlotReport"]

SlotEvent = Literal[
    "accepted",
    "rejected",
    "lost",
    "unsent",
    "limited",
    "answered_before",
    "sent_before",
    "used_before",
    "knows",
]
"""What a report says. The store's script knows the same names.

- `accepted`, `rejected`, `lost`: the request was answered, was answered with 429, or may have arrived unanswered.
- `unsent`: no request was sent with the slot.
- `limited`: the configured limit.
- `answered_before`, `sent_before`: a slot of the last window, reported again because the store may have lost it.
- `used_before`: how many slots all processes had taken at an earlier time.
- `knows`: the epoch and the turn of the last reply that this process received.
"""


class SlotReport(NamedTuple):
    """One report of a process to the store."""

    slot: str
    """The name of the slot; for `used_before` the number of slots, for `knows` the epoch, otherwise empty."""
    event: SlotEvent
    seconds: float = 0.0
    """`rejected`: Retry-After. Reports of earlier times: their age. `limited`: the limit. `knows`: the turn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetReply:
    """The state of a budget in the store. Seconds are those of the event loop's clock."""

    granted: bool = False
    wait: float = 0.0
    """Seconds until another request for a slot can succeed."""
    slots: int
    burst: int
    used: int
    clients: int
    """Processes that the store heard from recently."""
    held: float = 0.0
    """Seconds until the hold after a 429 ends."""
    epoch: str = ""
    """Changes when the store detects that it lost data."""
    turn: int = 0
    """Increases with each exchange of an epoch. A lower turn shows that the store lost its latest writes."""
    lost: bool = False
    """Whether the store lost data, so that this process must report its slots again. No slot was granted."""


class BudgetStore(Protocol):
    """One budget, kept outside this process."""

    async def exchange(self, reports: Sequence[SlotReport], want: str | None) -> BudgetReply:
        """Send `reports`, and ask for a slot with the name `want` unless that is None.

        Raises `OSError` if the store does not answer. It may have processed the reports all the same.
        """
        ...


class SharedWindow(Protocol):
    """Makes the shared budgets of one session."""

    processes: int
    """The number of processes to assume until the store has reported one."""

    def budget(
        self, name: str, *, account: str, limit: int, window: float, timeout: float, speed: float
    ) -> BudgetStore:
        """Return the store of the budget `name`.

        `account`: a digest that stands for the API key. `timeout`: seconds after which an unanswered request has
        either arrived or been lost. `speed`: seconds of the event loop's clock in one real second. `window` and
        `timeout` are in the event loop's seconds.
        """
        ...

    async def aclose(self) -> None:
        """Close the connections."""
        ...
