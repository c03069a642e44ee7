"""What a journal offers, so that another store can take its place."""

from types import TracebackType
from typing import Protocol, Self

from asyncmig.journal.reader import (
    Event,
)

__all__ = ["ClaimPort", "JournalPort"]


class ClaimPort(Protocol):
    """A company that this task works on; leaving the block gives it up."""

    @property
    def external_id(self) -> str:
        """The company."""
        ...

    @property
    def token(self) -> int:
        """Larger with each claim of this company."""
        ...

    @property
    def state(self) -> bytes | None:
        """What was written last, by this claim or before it; None if nothing was."""
        ...

    async def write(self, kind: str, detail: bytes, state: bytes) -> None:
        """Add an event and set the state, both or neither, durably.

        Raises `CustomerHeld` if the company was taken over, `JournalError` if it cannot be written. Once called it
        is not taken back: cancelled while it waits, it ends at once, and the write happens or does not. What holds
        then is told by claiming again.
        """
        ...

    async def release(self) -> None:
        """Give the company up; a second time, or after a take-over, nothing happens."""
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None: ...


class JournalPort(Protocol):
    """What a store of migrations has to offer, so that another one can stand in."""

    async def claim(self, external_id: str) -> ClaimPort:
        """Take a company that nobody holds, known or new. Raises `CustomerHeld`, `JournalError`."""
        ...

    async def states(self) -> dict[str, bytes]:
        """Return the state of each company that has one, the oldest company first. Raises `JournalError`."""
        ...

    async def events(
        self, external_id: str | None = None, *, after: int = 0, limit: int | None = None
    ) -> list[Event]:
        """Return the events after number `after`, in order, at most `limit`. Raises `JournalError`."""
        ...
