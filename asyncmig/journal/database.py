"""What the journals in SQLite and PostgreSQL have in common: claims, reads, and the lifetime of the writer."""

import asyncio
import hashlib
import logging
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self, TypeVar, cast, final

from asyncmig._core.run_table import RunStore
from asyncmig.errors import InvalidInput, JournalError
from asyncmig.journal.claims import ClaimedRow, ClaimStore, HolderStatus, Row
from asyncmig.journal.ports import Activity, Instruction, JournalEvent, Wanted
from asyncmig.journal.writer import Writer

__all__ = ["Claim", "DatabaseJournal", "state_folder"]

_T = TypeVar("_T")
_log = logging.getLogger("asyncmig.journal")


@final
class Claim:
    """A claim of a customer in a database; see `ClaimPort`. Leaving the `async with` block releases it."""

    __slots__ = ("_held", "_place", "_released", "_writer", "external_id", "state", "token")

    def __init__(self, writer: Writer, place: str, held: ClaimedRow) -> None:
        self._writer, self._place, self._held = writer, place, held
        self.external_id: str = held.external_id
        self.token: int = held.token
        self.state: bytes | None = held.state
        self._released = False

    async def write(self, kind: str, detail: bytes, state: bytes) -> None:
        """Append an event and set the state in one commit; durable when it returns. See `ClaimPort.write`."""
        if self._released:
            raise JournalError(self._place, f"the claim of {self.external_id} was released")
        await self._writer.write(self._held, kind, detail, state)
        self.state = state

    async def forget(self) -> None:
        """Delete the customer and its events in one commit; see `DatabaseJournal.forget`. The claim ends."""
        await self._writer.forget(self._held)
        self._released = True

    async def release(self) -> None:
        """Release the customer.

        Raises `JournalError` if the write fails. Even then this journal can claim the customer again, and its next
        heartbeat releases the customer for other processes.
        """
        if self._released or not self._writer.is_open:
            return
        self._released = True
        await self._writer.release(self._held)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        try:
            await self.release()
        except JournalError as error:
            if exc is None:
                raise
            _log.warning("%s", error)  # the error of the block, which may be a cancellation, takes precedence


def state_folder() -> Path:
    """Return the folder for the side files of journals that are given by URL; it may not exist yet.

    It is `asyncmig` in `$XDG_STATE_HOME` (default `~/.local/state`).
    """
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state", "asyncmig")


class DatabaseJournal(ABC):
    """A journal in a database, for one event loop. Use it as `async with`; see `JournalPort`."""

    __slots__ = ("_place", "_read_only", "_threaded", "_writer")
    _STATES: ClassVar[str]
    """The query for the external id and the state of each customer that has one."""
    _STATE: ClassVar[str]
    """The query for the state of the customer with an external id."""
    _EVENTS: ClassVar[str]
    """The query for the fields of `JournalEvent`: `seq` above, limit (None: all)."""
    _EVENTS_OF: ClassVar[str]
    """The same for one customer: its external id comes first. It reads no event of another customer."""
    _ACTIVITY: ClassVar[str]
    """The query for each customer's external id, the time of its last event, and its holder (first: the instance).

    A condition or an order can be appended.
    """
    _INSTRUCTIONS: ClassVar[str] = """SELECT external_id, wanted, instruction FROM companies
        WHERE wanted IS NOT NULL"""
    """The query for the fields of each instruction. A condition can be appended."""

    def __init__(
        self, store: ClaimStore, place: str, *, lease: float, read_only: bool, threaded: bool = True
    ) -> None:
        """`place`: the journal's name in errors."""
        if not (lease > 0 and math.isfinite(lease)):
            raise InvalidInput("lease", lease, "must be a positive number of seconds")
        self._place, self._read_only, self._threaded = place, read_only, threaded
        self._writer = Writer(store, place, lease=lease, threaded=threaded)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._place}>"

    @property
    def send_log(self) -> Path:
        """The send log of fleets that use this journal, in the user's state folder."""
        digest = hashlib.sha256(self._place.encode()).hexdigest()[:12]
        return state_folder() / f"{digest}.recent"

    async def __aenter__(self) -> Self:
        if self._read_only:
            await self.events(limit=0)
        else:
            await self._writer.open()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        """Commit the queued writes, release every claim, and disconnect."""
        await self._writer.close()

    async def claim(self, external_id: str) -> Claim:
        """Claim a customer, known or new. If cancelled, the claim is released.

        Raises `CustomerHeld` with the holder, which may be another task of this process; `JournalError`.
        """
        self._check_writable()
        return Claim(self._writer, self._place, await self._writer.claim(external_id))

    def _check_writable(self) -> None:
        if self._read_only:
            raise JournalError(self._place, "is open for reading only")

    def run_slots(self, account: str) -> RunStore | None:
        """Return the store of an account's run slots, if other processes of this journal need one."""
        return None

    async def forget(self, external_id: str) -> None:
        """Delete all that the journal has of a customer, durably.

        The company or migration at the server remains. If the same external id is migrated again, the server may
        refuse to create it; then the outcome is `unknown`. Raises `CustomerHeld` while a task works on the customer;
        `JournalError`.
        """
        async with await self.claim(external_id) as claim:
            await claim.forget()

    async def state(self, external_id: str) -> bytes | None:
        """Return the state of a customer; None if it has none. Raises `JournalError`."""
        rows = await self._in_thread(partial(self._read, self._STATE, external_id))
        return cast("bytes | None", rows[0][0]) if rows else None

    async def states(self) -> dict[str, bytes]:
        """Return the state of each customer that has one, in the order of their first claims.

        Raises `JournalError`.
        """
        rows = await self._in_thread(partial(self._read, self._STATES))
        return dict(cast("Sequence[tuple[str, bytes]]", rows))

    async def events(
        self, external_id: str | None = None, *, after: int = 0, limit: int | None = None
    ) -> list[JournalEvent]:
        """Return the events with a `seq` above `after`, in order, at most `limit`. Raises `JournalError`."""
        query = (
            partial(self._read, self._EVENTS, after, limit)
            if external_id is None
            else partial(self._read, self._EVENTS_OF, external_id, after, limit)
        )
        rows = await self._in_thread(query)
        return [JournalEvent(*row) for row in cast("Sequence[tuple[int, str, str, str, bytes]]", rows)]

    async def instruct(self, external_id: str, instruction: Instruction) -> None:
        """Record an instruction about a customer, durably; see `JournalPort.instruct`. Raises `JournalError`."""
        self._check_writable()
        await self._writer.instruct(external_id, instruction)

    async def delete_instruction(self, external_id: str, instruction: Instruction) -> None:
        """Delete an instruction, unless another one has replaced it. Raises `JournalError`."""
        self._check_writable()
        await self._writer.delete_instruction(external_id, instruction)

    async def instruction(self, external_id: str) -> Instruction | None:
        """Return the instruction about a customer; None if there is none. Raises `JournalError`."""
        query = f"{self._INSTRUCTIONS} AND external_id = ?"
        return (await self._in_thread(partial(self._read_instructions, query, external_id))).get(external_id)

    async def instructions(self, wanted: Wanted | None = None) -> dict[str, Instruction]:
        """Return all instructions, or those of one kind, by external id. Raises `JournalError`."""
        query = f"{self._INSTRUCTIONS} AND wanted = coalesce(?, wanted)"
        return await self._in_thread(partial(self._read_instructions, query, wanted))

    def _read_instructions(self, sql: str, *values: object) -> dict[str, Instruction]:
        try:
            rows = self._read(sql, *values)
        except JournalError as error:
            if "column" not in error.reason or "wanted" not in error.reason:
                raise
            return {}  # an earlier version created the tables, and no process has upgraded them yet
        return {
            external_id: Instruction(wanted, detail)
            for external_id, wanted, detail in cast("Sequence[tuple[str, Wanted, bytes]]", rows)
        }

    async def activity(self, external_id: str | None = None) -> dict[str, Activity]:
        """Return the activity of each customer, or of one, as `JournalPort.activity` does. Raises `JournalError`."""
        return await self._in_thread(partial(self._read_activity, external_id))

    def _read_activity(self, external_id: str | None) -> dict[str, Activity]:
        statuses: dict[object, HolderStatus] = {}
        found: dict[str, Activity] = {}
        rows = (
            self._read(f"{self._ACTIVITY} ORDER BY id")
            if external_id is None
            else self._read(f"{self._ACTIVITY} WHERE external_id = ?", external_id)
        )
        for row in rows:
            name, at, holder = cast("str", row[0]), cast("str | None", row[1]), row[2:]
            if holder[0] is not None and holder[0] not in statuses:
                statuses[holder[0]] = self._status_of(holder)
            status = statuses.get(holder[0])
            found[name] = Activity(at, status.text if status is not None and status.is_alive else None)
        return found

    @staticmethod
    @abstractmethod
    def _status_of(holder: Row) -> HolderStatus:
        """Return the holder in the columns of a row of `_ACTIVITY`."""

    @abstractmethod
    def _read(self, sql: str, *values: object) -> Sequence[Row]:
        """Run a query on a connection of its own, which does not block writers. Raises `JournalError`."""

    async def _in_thread(self, work: Callable[[], _T]) -> _T:
        if not self._threaded:
            return work()
        return await asyncio.get_running_loop().run_in_executor(None, work)
