"""The port of a shared window: a store keeps the budgets of an account for all processes, and grants their slots.

A `SharedWindow` makes a `BudgetStore` for each budget, and for each set of budgets that a request charges together. A
process reports what became of its slots and asks for the next one in the same exchange. The store grants a slot of
every budget of the set, or says when to ask again. It measures time on its own clock and never uses the clock of a
process. `asyncmig.distributed.redis.RedisWindow` is the implementation on Redis, and
`asyncmig.distributed.local.LocalWindow` the one on files.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from asyncmig._core.run_table import RunStore

__all__ = [
    "BudgetReply",
    "BudgetStore",
    "RunStore",
    "SharedBudget",
    "SharedWindow",
    "SlotEvent",
    "SlotReport",
]

SlotEvent = Literal[
    "accepted",
    "rejected",
    "lost",
    "unsent",
    "limited",
    "told",
    "answered_before",
    "sent_before",
    "used_before",
    "knows",
]
"""What a report says. The store's script knows the same names.

- `accepted`, `rejected`, `lost`: the request was answered, was answered with 429, or may have arrived unanswered.
- `unsent`: no request was sent with the slot.
- `limited`: the configured limit.
- `told`: what the headers of a response said about the budget.
- `answered_before`, `sent_before`: a slot of the last window, reported again because the store may have lost it.
- `used_before`: how many slots all processes had taken at an earlier time.
- `knows`: the epoch and the turn of the last reply that this process received.
"""


class SlotReport(NamedTuple):
    """One report of a process to the store."""

    slot: str
    """The name of the slot. For `used_before` the number of slots; for `knows` the epoch; for `told` the limit and
    the remaining requests as `LIMIT/REMAINING`, either may be empty; for `limited` empty."""
    event: SlotEvent
    seconds: float = 0.0
    """`rejected`: Retry-After. Reports of earlier times: their age. `limited`: the limit. `knows`: the turn. `told`:
    the seconds until the reset, or 0."""


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


class SharedBudget(NamedTuple):
    """A budget that processes share. `window`: seconds of the event loop's clock."""

    name: str
    limit: int
    window: float


class BudgetStore(Protocol):
    """One budget, or several that requests charge together, kept outside this process."""

    async def exchange(
        self, reports: Sequence[Sequence[SlotReport]], want: str | None
    ) -> Sequence[BudgetReply]:
        """Send the `reports` of each budget, and ask for a slot of all with the name `want` unless that is None.

        Return a reply for each budget, in their order. Either all grant the slot or none does. Raises `OSError` if
        the store does not answer. It may have processed the reports all the same.
        """
        ...


class SharedWindow(Protocol):
    """Makes the shared budgets of one session."""

    processes: int
    """The number of processes to assume until the store has reported one."""

    def budgets(
        self, budgets: Sequence[SharedBudget], *, account: str, timeout: float, speed: float
    ) -> BudgetStore:
        """Return the store of budgets that are charged together.

        `account`: a digest that stands for the API key. `timeout`: seconds after which an unanswered request has
        either arrived or been lost, in the event loop's seconds. `speed`: seconds of the event loop's clock in one
        real second.
        """
        ...

    def runs(self, account: str) -> RunStore:
        """Return the store of an account's run slots."""
        ...

    async def aclose(self) -> None:
        """Close the connections."""
        ...
