"""The interface of a journal, which a store of your own can implement, and the records that a journal returns.

The callers of a journal use only `JournalPort` and `ClaimPort`.
"""

from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Protocol, Self, final

__all__ = ["Activity", "ClaimPort", "Instruction", "JournalEvent", "JournalPort", "Wanted"]

Wanted = Literal["run", "retry", "cancel"]
"""What an instruction requests: to migrate a customer, to retry it, or to cancel it."""


@final
@dataclass(frozen=True, slots=True)
class JournalEvent:
    """One entry of a customer's log."""

    seq: int
    """Increases with each event of the journal."""
    external_id: str
    at: str
    """The wall-clock time of the commit: ISO 8601, UTC, milliseconds."""
    kind: str
    detail: bytes
    """The details of the entry. The journal does not interpret them."""


@final
@dataclass(frozen=True, slots=True)
class Activity:
    """The process that works on a customer, and the time of the last event."""

    at: str | None
    """The time of the last event: ISO 8601, UTC; None if there is no event."""
    holder: str | None
    """A description of the live process that holds the customer; None if there is none."""


@final
@dataclass(frozen=True, slots=True)
class Instruction:
    """A request about a customer that has not been carried out yet. It can be recorded without a claim."""

    wanted: Wanted
    detail: bytes
    """The details of the request. The journal does not interpret them."""


class ClaimPort(Protocol):
    """The exclusive right of one task to work on a customer. Leaving the `async with` block releases it."""

    @property
    def external_id(self) -> str:
        """The customer's external id."""
        ...

    @property
    def token(self) -> int:
        """The fencing token: larger with each claim of this customer."""
        ...

    @property
    def state(self) -> bytes | None:
        """The last state written, by this claim or an earlier one; None if there is none."""
        ...

    async def write(self, kind: str, detail: bytes, state: bytes) -> None:
        """Append an event and set the state, atomically and durably.

        Raises `CustomerHeld` if another process took the customer over, `JournalError` if the write fails. A
        cancelled call ends at once, but its write cannot be withdrawn: it may or may not happen. Claim the customer
        again to read the resulting state.
        """
        ...

    async def release(self) -> None:
        """Release the customer. Does nothing if the claim was released before or taken over."""
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None: ...


class JournalPort(Protocol):
    """A durable store of one state and a log of events for each customer."""

    __slots__ = ()

    async def claim(self, external_id: str) -> ClaimPort:
        """Claim a customer that no live process holds; the customer may be new.

        Raises `CustomerHeld`, `JournalError`.
        """
        ...

    async def state(self, external_id: str) -> bytes | None:
        """Return the state of a customer; None if it has none. Raises `JournalError`.

        The time does not depend on the number of customers.
        """
        ...

    async def states(self) -> dict[str, bytes]:
        """Return the state of each customer that has one, in the order of their first claims.

        Raises `JournalError`.
        """
        ...

    async def activity(self, external_id: str | None = None) -> dict[str, Activity]:
        """Return when the last event of each customer was written, and which live process holds it.

        With `external_id`, only for this customer; empty if the journal does not know it. Raises `JournalError`.
        """
        ...

    async def events(
        self, external_id: str | None = None, *, after: int = 0, limit: int | None = None
    ) -> list[JournalEvent]:
        """Return the events with a `seq` above `after`, in order, at most `limit`. Raises `JournalError`."""
        ...

    async def instruct(self, external_id: str, instruction: Instruction) -> None:
        """Record an instruction about a customer, known or new, durably; it replaces an earlier one.

        Raises `JournalError`.
        """
        ...

    async def delete_instruction(self, external_id: str, instruction: Instruction) -> None:
        """Delete an instruction, unless another one has replaced it. Raises `JournalError`."""
        ...

    async def instruction(self, external_id: str) -> Instruction | None:
        """Return the instruction about a customer; None if there is none. Raises `JournalError`."""
        ...

    async def instructions(self, wanted: Wanted | None = None) -> dict[str, Instruction]:
        """Return all instructions, or those of one kind, by external id. Raises `JournalError`."""
        ...

    async def forget(self, external_id: str) -> None:
        """Delete all that the journal has of a customer. Raises `CustomerHeld`, `JournalError`."""
        ...
