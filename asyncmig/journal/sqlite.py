"""What was done for each company, durable: a run that was killed anywhere goes on from here.

    async with Journal("fleet.db") as journal, await journal.claim("acme-001") as claim:
        ...                                     # claim.state: how far the last one came, or None
        await claim.write("create", b'{"body": ...}', b'{"step": "creating"}')

A journal is an SQLite file with a write-ahead log that is synced at each commit. `write` adds an event to a log
that only grows, and sets the company's state, in one transaction; when it returns, both survive a power cut. Many
tasks that write at once share a transaction. It knows nothing of what the bytes mean, and stores just what it is
given: what is secret must not be given to it.

One holder works on a company. A claim is a lease with a fencing token: the holder's process renews it in real
seconds, whatever the event loop's clock does; a holder that is dead is replaced at once where that can be told (same
machine), otherwise after the lease; and a process that was paused meanwhile cannot write, for its token is
old. Any number of processes may share a file on a local disk. A network file system will not do (SQLite's
write-ahead log needs shared memory): there, put another store behind `JournalPort`.
"""

import asyncio
import logging
import math
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar, final

from asyncmig._core.arguments import checked_call
from asyncmig.errors import InvalidInput, JournalError
from asyncmig.journal.claims import ClaimedRow
from asyncmig.journal.file import Connect, check_is_path, connect
from asyncmig.journal.reader import (
    Activity,
    Event,
    check_file,
    read_activity,
    read_events,
    read_states,
)
from asyncmig.journal.store import Store
from asyncmig.journal.writer import Writer

__all__ = ["Activity", "Claim", "Event", "Journal"]


_T = TypeVar("_T")
_log = logging.getLogger("asyncmig.journal")


@final
class Claim:
    """A company held in a `Journal`; see `ClaimPort`. `async with` gives it up."""

    __slots__ = ("_held", "_path", "_released", "_writer", "external_id", "state", "token")

    def __init__(self, writer: Writer, path: str, held: ClaimedRow) -> None:
        self._writer, self._path, self._held = writer, path, held
        self.external_id: str = held.external_id
        self.token: int = held.token
        self.state: bytes | None = held.state
        self._released = False

    async def write(self, kind: str, detail: bytes, state: bytes) -> None:
        """Add an event and set the state, both or neither, on disk when it returns; see `ClaimPort.write`."""
        if self._released:
            raise JournalError(self._path, f"the claim of {self.external_id} was given up")
        await self._writer.write(self._held, kind, detail, state)
        self.state = state

    async def release(self) -> None:
        """Give the company up.

        Raises `JournalError` if that cannot be written. This journal can claim the company all the same, and gives it
        up for other processes as soon as a heartbeat can be written.
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
            _log.warning("%s", error)  # the block's own end, perhaps a cancellation, is what counts


@final
class Journal:
    """A journal in a file, made where there is none; for one event loop, `async with`.

    `holder` is a name for this process in the errors of others. `lease`: real seconds after which a holder that shows
    no life is replaced. `read_only` opens a file that must exist, changes nothing and refuses claims; `states` and
    `events` read while others write. `threaded=False` writes on the loop itself, which stands still meanwhile: for
    tests that must be the same in each run. `connect` opens the file, for tests of a failing disk.

    Entering raises `JournalError`: no such folder, no permission, a full disk, a file that is no journal or is of
    a newer version. An older journal is brought up to date.
    """

    __slots__ = ("_connect", "_path", "_read_only", "_threaded", "_writer")

    @checked_call
    def __init__(
        self,
        path: str | Path,
        *,
        holder: str | None = None,
        lease: float = 30.0,
        read_only: bool = False,
        threaded: bool = True,
        connect: Connect = connect,
    ) -> None:
        if not (lease > 0 and math.isfinite(lease)):
            raise InvalidInput("lease", lease, "must be a positive number of seconds")
        check_is_path(path)
        self._path = Path(path).absolute()  # also after the process changed its folder
        self._read_only, self._threaded, self._connect = read_only, threaded, connect
        store = Store(self._path, label=holder or "", lease=lease, connect=connect)
        self._writer = Writer(store, str(self._path), lease=lease, threaded=threaded)

    async def __aenter__(self) -> Self:
        if self._read_only:
            await self.events(limit=0)
        else:
            await self._writer.open()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        """Write what is under way, give up every claim, close the file."""
        await self._writer.close()

    async def claim(self, external_id: str) -> Claim:
        """Take a company, known or new. Cancelled, it is given back.

        Raises `CustomerHeld`, naming the holder, also if that is another task of this process; `JournalError`.
        """
        if self._read_only:
            raise JournalError(str(self._path), "is open for reading only")
        return Claim(self._writer, str(self._path), await self._writer.claim(external_id))

    async def states(self) -> dict[str, bytes]:
        """Return the state of each company that has one, the oldest company first. Raises `JournalError`."""
        return await self._read(lambda: read_states(self._path, self._connect))

    async def events(
        self, external_id: str | None = None, *, after: int = 0, limit: int | None = None
    ) -> list[Event]:
        """Return the events after number `after`, in order, at most `limit`. Raises `JournalError`."""
        return await self._read(
            lambda: read_events(self._path, self._connect, external_id, after, -1 if limit is None else limit)
        )

    async def activity(self) -> dict[str, Activity]:
        """Return who works on each company, and when something was last written. Raises `JournalError`."""
        return await self._read(lambda: read_activity(self._path, self._connect))

    async def check(self) -> None:
        """Read every page of the file; raise `JournalError` if one is damaged."""
        await self._read(lambda: check_file(self._path, self._connect))

    async def _read(self, work: Callable[[], _T]) -> _T:
        if not self._threaded:
            return work()
        return await asyncio.get_running_loop().run_in_executor(None, work)
