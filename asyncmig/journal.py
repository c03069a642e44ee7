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
from typing import Protocol, Self, TypeVar, final

from asyncmig._core.arguments import checked_call
from asyncmig._journal.claims import Held
from asyncmig._journal.file import Connect, check_is_path, connect
from asyncmig._journal.lease import Moment
from asyncmig._journal.reader import (
    Activity,
    Event,
    check_file,
    read_activity,
    read_events,
    read_states,
)
from asyncmig._journal.store import Store
from asyncmig._journal.writer import Writer
from asyncmig.errors import CompanyHeld, InvalidInput, JournalError

__all__ = [
    "Activity",
    "Claim",
    "ClaimPort",
    "Event",
    "Journal",
    "JournalPort",
    "MemoryClaim",
    "MemoryJournal",
]

_T = TypeVar("_T")
_log = logging.getLogger("asyncmig.journal")


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

        Raises `CompanyHeld` if the company was taken over, `JournalError` if it cannot be written. Once called it
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
        """Take a company that nobody holds, known or new. Raises `CompanyHeld`, `JournalError`."""
        ...

    async def states(self) -> dict[str, bytes]:
        """Return the state of each company that has one, the oldest company first. Raises `JournalError`."""
        ...

    async def events(
        self, external_id: str | None = None, *, after: int = 0, limit: int | None = None
    ) -> list[Event]:
        """Return the events after number `after`, in order, at most `limit`. Raises `JournalError`."""
        ...


@final
class Claim:
    """A company held in a `Journal`; see `ClaimPort`. `async with` gives it up."""

    __slots__ = ("_held", "_path", "_released", "_writer", "external_id", "state", "token")

    def __init__(self, writer: Writer, path: str, held: Held) -> None:
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

        Raises `CompanyHeld`, naming the holder, also if that is another task of this process; `JournalError`.
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


@final
class MemoryClaim:
    """A company held in a `MemoryJournal`; see `ClaimPort`."""

    __slots__ = ("_journal", "external_id", "state", "token")

    def __init__(self, journal: "MemoryJournal", external_id: str, token: int, state: bytes | None) -> None:
        self._journal, self.state = journal, state
        self.external_id: str = external_id
        self.token: int = token

    async def write(self, kind: str, detail: bytes, state: bytes) -> None:
        """Add an event and set the state. Raises `CompanyHeld` once it was given up."""
        self._journal.record(self, kind, detail, state)
        self.state = state

    async def release(self) -> None:
        """Give the company up."""
        self._journal.free(self)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.release()


@final
class MemoryJournal:
    """A journal of this process alone, gone with it: for a migration that a job runner repeats from the start.

    It needs no opening and no closing, and its calls never wait.
    """

    __slots__ = ("_events", "_held", "_states", "_tokens")

    def __init__(self) -> None:
        self._tokens: dict[str, int] = {}
        self._held: dict[str, int] = {}
        self._states: dict[str, bytes] = {}
        self._events: list[Event] = []

    async def claim(self, external_id: str) -> MemoryClaim:
        """Take a company. Raises `CompanyHeld` if another task has it."""
        if external_id in self._held:
            raise CompanyHeld(":memory:", external_id, "another task of this journal")
        token = self._held[external_id] = self._tokens[external_id] = self._tokens.get(external_id, 0) + 1
        return MemoryClaim(self, external_id, token, self._states.get(external_id))

    async def states(self) -> dict[str, bytes]:
        """Return the state of each company that has one."""
        return dict(self._states)

    async def events(
        self, external_id: str | None = None, *, after: int = 0, limit: int | None = None
    ) -> list[Event]:
        """Return the events after number `after`, in order, at most `limit`."""
        found = [event for event in self._events[after:] if external_id in {None, event.external_id}]
        return found[:limit]

    async def activity(self) -> dict[str, Activity]:
        """Return who works on each company, and when something was last written."""
        latest = {event.external_id: event.at for event in self._events}
        return {
            name: Activity(latest.get(name), "a task of this process" if name in self._held else None)
            for name in self._tokens
        }

    def successor(self) -> "MemoryJournal":
        """Return another one with the same content that nobody holds anything of: as if the process had died."""
        other = MemoryJournal()
        other._tokens, other._states, other._events = (
            dict(self._tokens),
            dict(self._states),
            list(self._events),
        )
        return other

    def record(self, claim: MemoryClaim, kind: str, detail: bytes, state: bytes) -> None:
        """Do what `MemoryClaim.write` says."""
        if self._held.get(claim.external_id) != claim.token:
            raise CompanyHeld(":memory:", claim.external_id, "nobody now: the claim was given up")
        event = Event(len(self._events) + 1, claim.external_id, Moment.now().iso(), kind, detail)
        self._events.append(event)
        self._states[claim.external_id] = state

    def free(self, claim: MemoryClaim) -> None:
        """Do what `MemoryClaim.release` says."""
        if self._held.get(claim.external_id) == claim.token:
            del self._held[claim.external_id]
