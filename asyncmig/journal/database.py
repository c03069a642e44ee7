"""What the journals in SQLite and PostgreSQL have in common: claims, reads, and the lifetime of the writer."""

import asyncio
import hashlib
import logging
import math
import os
import re
from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar, cast, final

from asyncmig._core.run_table import RunStore
from asyncmig._core.server_address import Server
from asyncmig.errors import InvalidInput, JournalError
from asyncmig.journal.claims import ClaimedRow, ClaimStore, Row
from asyncmig.journal.ports import Activity, Instruction, JournalEvent, JournalPort, Wanted
from asyncmig.journal.writer import Op, Writer

__all__ = ["EVENTS", "SCHEMA", "Claim", "DatabaseJournal", "state_file"]

_T = TypeVar("_T")
_log = logging.getLogger("asyncmig.journal")
SCHEMA = "asyncmig"
"""The default schema of a journal in PostgreSQL."""
# The words in braces are parts of `ClaimStore.DIALECT`.
_STATES = "SELECT external_id, {state} FROM companies WHERE state IS NOT NULL ORDER BY id"
_STATE = "SELECT {state} FROM companies WHERE external_id = ?"
EVENTS = """SELECT seq, external_id, {at}, kind, {detail} FROM events JOIN companies ON companies.id = company
    WHERE seq > ? ORDER BY seq LIMIT {limit}"""
"""The query for the fields of `JournalEvent`."""
_EVENTS_OF = """SELECT seq, external_id, {at}, kind, {detail} FROM {events_of} ON companies.id = company
    WHERE external_id = ? AND seq > ? ORDER BY seq LIMIT {limit}"""
_ACTIVITY = """SELECT external_id,
        (SELECT {at} FROM events WHERE company = companies.id ORDER BY seq DESC LIMIT 1), {holder}
    FROM companies LEFT JOIN holders ON instance = holder"""
_INSTRUCTIONS = "SELECT external_id, wanted, instruction FROM companies WHERE wanted IS NOT NULL"


@final
class Claim:
    """A claim of a customer in a database; see `ClaimPort`. Leaving the `async with` block releases it."""

    __slots__ = ("_held", "_released", "_store", "_writer", "external_id", "state", "token")

    def __init__(self, writer: Writer, store: ClaimStore, held: ClaimedRow) -> None:
        self._writer, self._store, self._held = writer, store, held
        self.external_id: str = held.external_id
        self.token: int = held.token
        self.state: bytes | None = held.state
        self._released = False

    async def write(self, kind: str, detail: bytes, state: bytes) -> None:
        """Append an event and set the state in one commit; durable when it returns. See `ClaimPort.write`."""
        if self._released:
            raise JournalError(self._store.place, f"the claim of {self.external_id} was released")
        await self._writer.submit(partial(self._store.write, self._held, kind, detail, state)).future
        self.state = state

    async def forget(self) -> None:
        """Delete the customer and its events in one commit; see `JournalPort.forget`. The claim ends."""
        await self._writer.submit(partial(self._store.forget, self._held)).future
        self._released = True

    async def release(self) -> None:
        """Release the customer.

        Raises `JournalError` if the write fails. Even then this journal can claim the customer again, and its next
        heartbeat releases the customer for other processes.
        """
        if self._released or not self._writer.is_open:
            return
        self._released = True
        store, held = self._store, self._held
        await self._writer.submit(partial(store.release, held), partial(store.mark_released, held)).future

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


def state_file(server: Server, suffix: str, *, schema: str = SCHEMA) -> Path:
    """Return the path of a file of this user that belongs to the journal on a server.

    It is in the folder `asyncmig` in `$XDG_STATE_HOME` (default `~/.local/state`), which may not exist yet. Raises
    `InvalidInput` if the variable is not set and the user has no home directory.
    """
    try:
        folder = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state", "asyncmig")
    except RuntimeError as error:
        reason = "must name a folder, because this user has no home directory"
        raise InvalidInput("XDG_STATE_HOME", "", reason) from error
    place = str(server) if schema == SCHEMA else f"{server}#{schema}"
    digest = hashlib.sha256(place.encode()).hexdigest()[:12]
    name = re.sub(r"[^A-Za-z0-9.-]+", "_", f"{server.host}_{server.database}")[:80]
    return folder / f"{name}_{digest}.{suffix}"


class DatabaseJournal(JournalPort):
    """A journal in a database, for one event loop. Use it as `async with`; see `JournalPort`."""

    __slots__ = ("_read_only", "_store", "_threaded", "_writer")

    def __init__(self, store: ClaimStore, *, lease: float, read_only: bool, threaded: bool = True) -> None:
        if not (lease > 0 and math.isfinite(lease)):
            raise InvalidInput("lease", lease, "must be a positive number of seconds")
        self._store, self._read_only, self._threaded = store, read_only, threaded
        self._writer = Writer(store, lease=lease, threaded=threaded)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._store.place}>"

    @property
    @abstractmethod
    def send_log(self) -> Path:
        """The send log of fleets that use this journal; its folder may not exist yet."""

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
        op = self._writer.submit(partial(self._store.claim, external_id))
        try:
            return Claim(self._writer, self._store, await op.future)
        except asyncio.CancelledError:
            if self._writer.is_open:
                self._release_result(op)
            raise

    def _release_result(self, op: Op[ClaimedRow]) -> None:
        """Queue the release of the claim that `op` makes; `op` itself may still be in the queue."""

        def do(act: Callable[[ClaimedRow], None]) -> None:
            if op.result is not None:
                act(op.result)

        self._writer.submit(partial(do, self._store.release), partial(do, self._store.mark_released))

    def _check_writable(self) -> None:
        if self._read_only:
            raise JournalError(self._store.place, "is open for reading only")

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
        rows = await self._read(_STATE, external_id)
        return cast("bytes | None", rows[0][0]) if rows else None

    async def states(self) -> dict[str, bytes]:
        rows = await self._read(_STATES)
        return dict(cast("Sequence[tuple[str, bytes]]", rows))

    async def events(
        self, external_id: str | None = None, *, after: int = 0, limit: int | None = None
    ) -> list[JournalEvent]:
        rows = (
            await self._read(EVENTS, after, limit)
            if external_id is None
            else await self._read(_EVENTS_OF, external_id, after, limit)
        )
        return [JournalEvent(*row) for row in cast("Sequence[tuple[int, str, str, str, bytes]]", rows)]

    async def instruct(self, external_id: str, instruction: Instruction) -> None:
        self._check_writable()
        await self._writer.submit(partial(self._store.instruct, external_id, instruction)).future

    async def delete_instruction(self, external_id: str, instruction: Instruction) -> None:
        self._check_writable()
        await self._writer.submit(partial(self._store.delete_instruction, external_id, instruction)).future

    async def instruction(self, external_id: str) -> Instruction | None:
        return (await self._instructions("external_id = ?", external_id)).get(external_id)

    async def instructions(self, wanted: Wanted | None = None) -> dict[str, Instruction]:
        return await self._instructions("wanted = coalesce(?, wanted)", wanted)

    async def _instructions(self, condition: str, value: str | None) -> dict[str, Instruction]:
        try:
            rows = await self._read(f"{_INSTRUCTIONS} AND {condition}", value)
        except JournalError as error:
            if "column" not in error.reason or "wanted" not in error.reason:
                raise
            return {}  # an earlier version created the tables, and no process has upgraded them yet
        return {
            external_id: Instruction(wanted, detail)
            for external_id, wanted, detail in cast("Sequence[tuple[str, Wanted, bytes]]", rows)
        }

    async def activity(self, external_id: str | None = None) -> dict[str, Activity]:
        rows = (
            await self._read(f"{_ACTIVITY} ORDER BY id")
            if external_id is None
            else await self._read(f"{_ACTIVITY} WHERE external_id = ?", external_id)
        )
        return await self._in_thread(partial(self._activity_in, rows))

    def _activity_in(self, rows: Sequence[Row]) -> dict[str, Activity]:
        found: dict[str, Activity] = {}
        alive: dict[object, str | None] = {None: None}
        """A description of each holder that is alive, by its instance."""
        for row in rows:
            instance = row[2]
            if instance not in alive:
                lease = self._store.lease_in(row[2:])
                alive[instance] = None if lease.is_over else str(lease)
            found[cast("str", row[0])] = Activity(cast("str | None", row[1]), alive[instance])
        return found

    async def _read(self, sql: str, *values: object) -> Sequence[Row]:
        query = sql.format_map(self._store.DIALECT)
        return await self._in_thread(partial(self._store.read, query, *values))

    async def _in_thread(self, work: Callable[[], _T]) -> _T:
        if not self._threaded:
            return work()
        return await asyncio.get_running_loop().run_in_executor(None, work)
