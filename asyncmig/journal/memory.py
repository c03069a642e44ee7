"""A journal in the memory of this process."""

from bisect import bisect_right
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self, final

from asyncmig.errors import CustomerHeld
from asyncmig.journal.lease import Moment
from asyncmig.journal.ports import Activity, Instruction, JournalEvent, JournalPort, Wanted

__all__ = ["MemoryClaim", "MemoryJournal"]


@dataclass(slots=True)
class _Customer:
    token: int = 0
    is_held: bool = False
    state: bytes | None = None
    changed_at: str | None = None
    """The time of the last event."""
    instruction: Instruction | None = None


@final
class MemoryClaim:
    """A claim of a customer in a `MemoryJournal`; see `ClaimPort`."""

    __slots__ = ("_customer", "_journal", "external_id", "state", "token")

    def __init__(self, journal: "MemoryJournal", external_id: str, customer: _Customer) -> None:
        self._journal, self._customer = journal, customer
        self.external_id: str = external_id
        self.token: int = customer.token
        self.state: bytes | None = customer.state

    async def write(self, kind: str, detail: bytes, state: bytes) -> None:
        """Append an event and set the state. Raises `CustomerHeld` after the claim was released."""
        if not self._holds():
            raise CustomerHeld(":memory:", self.external_id, "no task: this claim was released")
        self._customer.changed_at = self._journal.append(self.external_id, kind, detail)
        self._customer.state = self.state = state

    async def release(self) -> None:
        """Release the customer."""
        if self._holds():
            self._customer.is_held = False

    def _holds(self) -> bool:
        return self._customer.is_held and self._customer.token == self.token

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.release()


@final
class MemoryJournal(JournalPort):
    """A journal that is lost when this process ends, for migrations that a job runner restarts from the beginning.

    It needs no `async with`, and its calls never wait.
    """

    __slots__ = ("_customers", "_events", "_seq")

    def __init__(self) -> None:
        self._customers: dict[str, _Customer] = {}
        self._events: list[JournalEvent] = []
        self._seq = 0

    async def claim(self, external_id: str) -> MemoryClaim:
        """Claim a customer. Raises `CustomerHeld` if another task holds it."""
        customer = self._customers.setdefault(external_id, _Customer())
        if customer.is_held:
            raise CustomerHeld(":memory:", external_id, "another task of this journal")
        customer.token += 1
        customer.is_held = True
        return MemoryClaim(self, external_id, customer)

    async def state(self, external_id: str) -> bytes | None:
        customer = self._customers.get(external_id)
        return None if customer is None else customer.state

    async def states(self) -> dict[str, bytes]:
        return {name: each.state for name, each in self._customers.items() if each.state is not None}

    async def events(
        self, external_id: str | None = None, *, after: int = 0, limit: int | None = None
    ) -> list[JournalEvent]:
        start = bisect_right(self._events, after, key=lambda event: event.seq)
        found = [event for event in self._events[start:] if external_id in {None, event.external_id}]
        return found[:limit]

    async def instruct(self, external_id: str, instruction: Instruction) -> None:
        self._customers.setdefault(external_id, _Customer()).instruction = instruction

    async def delete_instruction(self, external_id: str, instruction: Instruction) -> None:
        customer = self._customers.get(external_id)
        if customer is not None and customer.instruction == instruction:
            customer.instruction = None

    async def instruction(self, external_id: str) -> Instruction | None:
        customer = self._customers.get(external_id)
        return None if customer is None else customer.instruction

    async def instructions(self, wanted: Wanted | None = None) -> dict[str, Instruction]:
        return {
            name: found
            for name, each in self._customers.items()
            if (found := each.instruction) is not None and wanted in {None, found.wanted}
        }

    async def forget(self, external_id: str) -> None:
        async with await self.claim(external_id):
            del self._customers[external_id]
            self._events = [event for event in self._events if event.external_id != external_id]

    async def activity(self, external_id: str | None = None) -> dict[str, Activity]:
        names = self._customers if external_id is None else self._customers.keys() & {external_id}
        return {
            name: Activity(each.changed_at, "a task of this process" if each.is_held else None)
            for name in names
            for each in [self._customers[name]]
        }

    def copy_without_claims(self) -> "MemoryJournal":
        """Return a copy without claims, as a new process would find the journal after this one died."""
        other = MemoryJournal()
        other._customers = {name: replace(each, is_held=False) for name, each in self._customers.items()}
        other._events, other._seq = list(self._events), self._seq
        return other

    def append(self, external_id: str, kind: str, detail: bytes) -> str:
        """Append an event for a claim, and return its time."""
        self._seq += 1
        event = JournalEvent(self._seq, external_id, Moment.now().iso(), kind, detail)
        self._events.append(event)
        return event.at
