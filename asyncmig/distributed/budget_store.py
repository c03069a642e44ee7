"""The interface of a shared window: a store keeps the budgets of an account for all processes, and grants slots.

A `SharedWindow` makes a `BudgetStore` for each budget, and for each set of budgets that a request charges together.
In one exchange, a process reports the results of its requests and asks for the next slot. The store grants a slot of
every budget of the set, or returns when to ask again. It measures time on its own clock, never on the clock of a
process. `asyncmig.distributed.redis.RedisWindow` implements the interface on Redis, and
`asyncmig.distributed.local.LocalWindow` on files.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from asyncmig._core.run_table import RunStore
from asyncmig._io.event_loop import loop_speed
from asyncmig._io.send_log import EarlierSlot

__all__ = [
    "BudgetReply",
    "BudgetStore",
    "RunStore",
    "SharedBudget",
    "SharedBudgets",
    "SharedWindow",
    "SlotEvent",
    "SlotReport",
    "name_of_set",
]

SlotEvent = Literal[
    "accepted",
    "rejected",
    "lost",
    "unsent",
    "limit",
    "headers",
    "held",
    "answered_before",
    "sent_before",
    "used_before",
    "last_seen",
]
"""What a report is about. The script in Redis uses the same names.

- `accepted`: the request was answered, with a status other than 429.
- `rejected`: it was answered with 429.
- `lost`: it may have arrived, but no answer will come.
- `unsent`: no request was sent with the slot.
- `limit`: the configured limit.
- `headers`: the headers of a response that concern the budget.
- `held`: a 429 holds the requests that charge a set of budgets. The first budget of the set gets the report.
- `answered_before`, `sent_before`: a slot of the last window, reported again because the store may have lost it.
- `used_before`: how many slots all processes had taken at an earlier time.
- `last_seen`: the epoch and the turn of the last reply that this process received.
"""


class SlotReport(NamedTuple):
    """One report of a process to the store."""

    slot: str
    """The name of the slot; for `used_before` the number of slots; for `last_seen` the epoch; for `limit` empty; for
    `headers` the limit and the number of remaining requests as `LIMIT/REMAINING`, where either may be empty; for
    `held` the name of the set."""
    event: SlotEvent
    seconds: float = 0.0
    """For `rejected` the `Retry-After`, or 0; for `..._before` the age of the report; for `limit` the limit; for
    `last_seen` the turn; for `headers` the seconds until the reset, or 0; for `held` the seconds until the hold
    ends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetReply:
    """The state of a budget in the store. Seconds are those of the event loop's clock."""

    granted: bool = False
    """Whether a slot was granted."""
    wait: float = 0.0
    """Seconds until another attempt to get a slot can succeed."""
    slots: int
    """W; see `asyncmig._core.limiter`."""
    burst: int
    """B; see `asyncmig._core.limiter`."""
    used: int
    """The number of slots that all processes have taken."""
    clients: int
    """The number of processes that used the store recently."""
    held: float = 0.0
    """Seconds until the hold after a 429 ends."""
    epoch: str = ""
    """Identifies the data of the store. It changes when the store detects a loss of data."""
    turn: int = 0
    """Increases with each exchange of an epoch. A lower turn than before shows that the store lost its latest
    writes."""
    lost: bool = False
    """Whether the store has lost data. Then no slot was granted, and this process must report its slots again."""


class SharedBudget(NamedTuple):
    """A budget that processes share. `window`: seconds of the event loop's clock."""

    name: str
    limit: int
    window: float


def name_of_set(budgets: Sequence[SharedBudget]) -> str:
    """Return the name that stores give to a set of budgets; empty for a single budget."""
    return "+".join(each.name for each in budgets) if len(budgets) > 1 else ""


class BudgetStore(Protocol):
    """One budget, or several that requests charge together, kept outside this process."""

    async def exchange(
        self, reports: Sequence[Sequence[SlotReport]], want: str | None
    ) -> Sequence[BudgetReply]:
        """Send the `reports` of each budget, and ask for a slot of every budget with the name `want`; None: for no
        slot.

        Return a reply for each budget, in the same order. Either all budgets grant the slot or none. Raises `OSError`
        if the store does not answer; it may still have processed the reports.
        """
        ...


class SharedWindow(Protocol):
    """Makes the shared budgets of one session."""

    processes: int
    """The number of processes to assume until the store has reported a number."""

    def budgets(
        self, budgets: Sequence[SharedBudget], *, account: str, timeout: float, speed: float
    ) -> BudgetStore:
        """Return the store of budgets that are charged together.

        `account`: a digest that identifies the API key. `timeout`: seconds of the event loop's clock after which an
        unanswered request has either arrived or been lost. `speed`: seconds of the event loop's clock in one real
        second.
        """
        ...

    def runs(self, account: str) -> RunStore:
        """Return the store of an account's run slots."""
        ...

    async def aclose(self) -> None:
        """Close the connections."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedBudgets:
    """The budgets of an account in a shared window."""

    window: SharedWindow
    account: str
    """A digest that identifies the API key."""
    timeout: float
    """Seconds after which an unanswered request has either arrived or been lost."""
    earlier: Sequence[EarlierSlot] = ()
    """The slots of earlier processes in the send log. The store may not have them."""

    def store(self, budgets: Sequence[SharedBudget]) -> BudgetStore:
        """Return the store of budgets that are charged together, for the running event loop."""
        speed = loop_speed(asyncio.get_running_loop())
        return self.window.budgets(budgets, account=self.account, timeout=self.timeout, speed=speed)
