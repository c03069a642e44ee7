"""A journal in the memory of this process."""

from bisect import bisect_right
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self, final

from asyncmig.errors import CustomerHeld
from asyncmig.journal.lease import Moment
from asyncmig.journal.ports import Activity, Instruction, JournalEvent, JournalPort, Wanted

__all__ = ["MemoryClaim", "MemoryJournal"]


@final
class MemoryClaim:
    """A claim of a customer in a `MemoryJournal`; see `ClaimPort`."""

    __slots__ = ("_journal", "external_id", "state", "token")

    def __init__(self, journal: "MemoryJournal", external_id: str, token: int, state: bytes | None) -> None:
        self._journal, self.state = journal, state
        self.external_id: str = external_id
        self.token: int = token

    async def write(self, kind: str, detail: bytes, state: bytes) -> None:
        """Append an event and set the state. Raises `CustomerHeld` after the claim was released."""
        self._journal.record(self, kind, detail, state)
        self.state = state

    async def release(self) -> None:
        """Release the customer."""
        self._journal.free(self)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.release()


@dataclass(slots=True)
class _Customer:
    token: int = 0
    is_held: bool = False
    state: bytes | None = None
    changed_at: str | None = None
    """The time of the last event."""
    instruction: Instruction | None = None


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
        return MemoryClaim(self, external_id, customer.token, customer.state)

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

    def record(self, claim: MemoryClaim, kind: str, detail: bytes, state: bytes) -> None:
        """Write for a claim; see `MemoryClaim.write`."""
        customer = self._held_by(claim)
        if customer is None:
            raise CustomerHeld(":memory:", claim.external_id, "no task: this claim was released")
        self._seq += 1
        event = JournalEvent(self._seq, claim.external_id, Moment.now().iso(), kind, detail)
        self._events.append(event)
        customer.changed_at, customer.state = event.at, state

    def free(self, claim: MemoryClaim) -> None:
        """Release a claim; see `MemoryClaim.release`."""
        if (customer := self._held_by(claim)) is not None:
            customer.is_held = False

    def _held_by(self, claim: MemoryClaim) -> _Customer | None:
        customer = self._customers.get(claim.external_id)
        return (
            customer if customer is not None and customer.is_held and customer.token == claim.token else None
        )
