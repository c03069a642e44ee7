"""A journal in the memory of this process."""

from bisect import bisect_right
from types import TracebackType
from typing import Self, cast, final

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


@final
class MemoryJournal(JournalPort):
    """A journal that is lost when this process ends, for migrations that a job runner restarts from the beginning.

    It needs no `async with`, and its calls never wait.
    """

    __slots__ = ("_changed", "_events", "_held", "_instructions", "_seq", "_states", "_tokens")

    def __init__(self) -> None:
        self._tokens: dict[str, int] = {}
        self._held: dict[str, int] = {}
        self._states: dict[str, bytes] = {}
        self._changed: dict[str, str] = {}
        """The time of the last event of each customer."""
        self._events: list[JournalEvent] = []
        self._seq = 0
        self._instructions: dict[str, Instruction] = {}

    async def claim(self, external_id: str) -> MemoryClaim:
        """Claim a customer. Raises `CustomerHeld` if another task holds it."""
        if external_id in self._held:
            raise CustomerHeld(":memory:", external_id, "another task of this journal")
        token = self._held[external_id] = self._tokens[external_id] = self._tokens.get(external_id, 0) + 1
        return MemoryClaim(self, external_id, token, self._states.get(external_id))

    async def state(self, external_id: str) -> bytes | None:
        return self._states.get(external_id)

    async def states(self) -> dict[str, bytes]:
        return dict(self._states)

    async def events(
        self, external_id: str | None = None, *, after: int = 0, limit: int | None = None
    ) -> list[JournalEvent]:
        start = bisect_right(self._events, after, key=lambda event: event.seq)
        found = [event for event in self._events[start:] if external_id in {None, event.external_id}]
        return found[:limit]

    async def instruct(self, external_id: str, instruction: Instruction) -> None:
        self._tokens.setdefault(external_id, 0)
        self._instructions[external_id] = instruction

    async def delete_instruction(self, external_id: str, instruction: Instruction) -> None:
        if self._instructions.get(external_id) == instruction:
            del self._instructions[external_id]

    async def instruction(self, external_id: str) -> Instruction | None:
        return self._instructions.get(external_id)

    async def instructions(self, wanted: Wanted | None = None) -> dict[str, Instruction]:
        return {name: each for name, each in self._instructions.items() if wanted in {None, each.wanted}}

    async def forget(self, external_id: str) -> None:
        async with await self.claim(external_id):
            for each in (self._states, self._changed, self._instructions, self._held, self._tokens):
                cast("dict[str, object]", each).pop(external_id, None)
            self._events = [event for event in self._events if event.external_id != external_id]

    async def activity(self, external_id: str | None = None) -> dict[str, Activity]:
        names = self._tokens if external_id is None else self._tokens.keys() & {external_id}
        return {
            name: Activity(self._changed.get(name), "a task of this process" if name in self._held else None)
            for name in names
        }

    def copy_without_claims(self) -> "MemoryJournal":
        """Return a copy without claims, as a new process would find the journal after this one died."""
        other = MemoryJournal()
        other._tokens, other._states = dict(self._tokens), dict(self._states)
        other._events, other._changed = list(self._events), dict(self._changed)
        other._seq, other._instructions = self._seq, dict(self._instructions)
        return other

    def record(self, claim: MemoryClaim, kind: str, detail: bytes, state: bytes) -> None:
        """Write for a claim; see `MemoryClaim.write`."""
        if self._held.get(claim.external_id) != claim.token:
            raise CustomerHeld(":memory:", claim.external_id, "no task: this claim was released")
        self._seq += 1
        event = JournalEvent(self._seq, claim.external_id, Moment.now().iso(), kind, detail)
        self._events.append(event)
        self._changed[claim.external_id] = event.at
        self._states[claim.external_id] = state

    def free(self, claim: MemoryClaim) -> None:
        """Release a claim; see `MemoryClaim.release`."""
        if self._held.get(claim.external_id) == claim.token:
            del self._held[claim.external_id]
