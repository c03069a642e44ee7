"""The journal in an SQLite file.

    async with Journal("fleet.db") as journal, await journal.claim("acme-001") as claim:
        ...                                     # claim.state: the last state written, or None
        await claim.write("create", b'{"body": ...}', b'{"step": "creating"}')

The file has a write-ahead log, which is synced at each commit. A `write` appends an event and sets the customer's
state in one transaction. When it returns, both survive a power cut. Tasks that write at the same time share a
transaction.

A claim is a lease with a fencing token. The holder's process renews the lease in real seconds, independent of the
event loop's clock. The claims of a dead holder on the same machine can be taken over at once, those of any other when
its lease expires. A process that was suspended in the meantime cannot write, because its token is outdated.

Any number of processes can share a file on a local disk. A network file system does not work, because SQLite's
write-ahead log needs shared memory. For several machines, use `asyncmig.distributed.postgres.PostgresJournal`.
"""

import logging
import sqlite3
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple
from functools import partial
from pathlib import Path
from typing import ClassVar, cast, final

from asyncmig._core.arguments import checked_call
from asyncmig.errors import CustomerHeld, JournalError
from asyncmig.journal.claims import ClaimedRow, ClaimStore, Row, StatementResult, WriteOp
from asyncmig.journal.database import DatabaseJournal
from asyncmig.journal.lease import DURATION, Holder, Lease, Moment
from asyncmig.journal.sqlite_file import (
    FORBID_DELETE,
    Connect,
    back_up,
    check_is_path,
    compact,
    connect,
    explain,
    journal_error,
    open_for_reading,
    open_for_writing,
)

__all__ = ["Journal"]

_log = logging.getLogger("asyncmig.journal")
_HolderRow = tuple[str, str, str, str, str, int, str, float, float, float]


@final
class Journal(DatabaseJournal):
    """A journal in a file, which is created if it does not exist; for one event loop, used as `async with`.

    `holder`: a name for this process in the errors of other processes. `lease`: real seconds after which a holder
    without a heartbeat is replaced. `read_only` opens an existing file, changes nothing and refuses claims; `states`
    and `events` work while other processes write. `threaded=False` writes on the event loop and blocks it meanwhile,
    for tests that must be reproducible. `connect` opens the file, for tests of a failing disk.

    Entering raises `JournalError` for a missing folder, missing permission, a full disk, a file that is not a
    journal, and a journal of a newer version. It upgrades an older journal.
    """

    __slots__ = ("_connect", "_path")

    @checked_call
    def __init__(
        self,
        path: str | Path,
        *,
        holder: str | None = None,
        lease: float = DURATION,
        read_only: bool = False,
        threaded: bool = True,
        connect: Connect = connect,
    ) -> None:
        check_is_path(path)
        self._path = Path(path).absolute()  # the process may change its working directory
        self._connect = connect
        store = SqliteStore(self._path, label=holder or "", lease=lease, connect=connect)
        super().__init__(store, lease=lease, read_only=read_only, threaded=threaded)

    @property
    def send_log(self) -> Path:
        """The send log of fleets that use this journal, beside it."""
        return self._path.with_name(f"{self._path.name}.recent")

    async def backup(self, to: Path | str) -> None:
        """Copy the journal into a new file (mode 0600). Processes can write the journal at the same time, without
        waiting.

        The copy contains everything that was committed before, except the claims. Raises `InvalidInput` if `to`
        exists; `JournalError` about the journal, or about `to` if it cannot be written.
        """
        await self._in_thread(partial(back_up, self._path, Path(to), self._connect))

    async def compact(self) -> tuple[int, int]:
        """Shrink the file by the space of forgotten customers. Return its size in bytes before and after.

        Other processes can read at the same time. Their writes wait, and raise `JournalUnavailable` after 10 s. Needs
        up to twice the size of the file as free disk space. Raises `JournalError`.
        """
        return await self._in_thread(partial(compact, self._path, self._connect))

    async def check(self) -> None:
        """Read every page of the file. Raises `JournalError` if one is damaged."""
        found = [str(row[0]) for row in await self._read("PRAGMA quick_check(3)")]
        if found != ["ok"]:
            raise JournalError(
                self._store.place, f"the file is damaged; keep a copy of it ({'; '.join(found)})"
            )


@final
class SqliteStore(ClaimStore):
    """The SQLite connection of this process that writes; see `ClaimStore`."""

    __slots__ = ("_connect", "_db", "_identity", "_lease", "_now", "_path", "_renewed")
    DIALECT: ClassVar[Mapping[str, str]] = {
        "state": "CAST(state AS BLOB)",
        "detail": "CAST(detail AS BLOB)",
        "at": "at",
        "holder": "holders.*",
        "limit": "coalesce(?, -1)",
        "events_of": "companies CROSS JOIN events INDEXED BY events_by_company",
    }
    _DATABASE_ERRORS = (sqlite3.Error, OSError, JournalError)
    _OP_ERRORS = (
        CustomerHeld,
        sqlite3.DataError,
        sqlite3.IntegrityError,
        sqlite3.InterfaceError,
        sqlite3.ProgrammingError,
        OverflowError,
        UnicodeError,
    )

    def __init__(self, path: Path, *, label: str, lease: float, connect: Connect) -> None:
        super().__init__(str(path), label)
        self._path, self._lease, self._connect = path, lease, connect
        self._db: sqlite3.Connection | None = None
        self._identity = (0, 0)
        self._now = Moment.now()
        """The time of the current transaction."""
        self._renewed = self._now

    def open(self) -> None:
        self._db = open_for_writing(self._path, self._connect)
        self._identity = self._inode()
        self._start_holding()

    def close(self) -> None:
        db = self._db
        if db is None:
            return
        self._stop_holding()
        try:
            with db:
                db.execute("BEGIN IMMEDIATE")
                self._release_all()
        except sqlite3.Error as error:
            self._warn_not_released(error)
        finally:
            self._db = None
            db.close()

    def read(self, sql: str, *values: object) -> Sequence[Row]:
        with open_for_reading(self._path, self._connect) as db:
            return db.execute(sql, values).fetchall()

    @staticmethod
    def lease_in(row: Row) -> Lease:
        columns = cast("_HolderRow", row)
        holder, renewed = Holder(*columns[:7]), Moment(*columns[8:])
        return Lease(holder, columns[7], Moment.now().since(renewed, boot=holder.boot))

    def renew(self) -> None:
        if self._db is not None and self._is_due(Moment.now()):
            self.transact(())

    def _commit(self, ops: Sequence[WriteOp]) -> None:
        try:
            db = self._opened()
            if self._inode() != self._identity:
                raise JournalError(str(self._path), "the file was replaced or moved while it was in use")
            db.execute("BEGIN IMMEDIATE")
            self._now = Moment.now()
            self._apply(ops)
            if due := self._is_due(self._now):
                self._renew()
            db.execute("COMMIT")
            self._renewed = self._now if due else self._renewed
        finally:
            self._roll_back()

    @contextmanager
    def _savepoint(self) -> Generator[None]:
        db = self._opened()
        db.execute("SAVEPOINT op")
        try:
            yield
        except self._OP_ERRORS:
            db.execute("ROLLBACK TO op")
            db.execute("RELEASE op")
            raise
        db.execute("RELEASE op")

    def _run(self, sql: str, *values: object) -> StatementResult:
        return self._opened().execute(sql, values)

    def _explain(self, error: Exception) -> JournalError:
        return journal_error(self._path, error)

    def _renew(self) -> None:
        self._run(
            "UPDATE holders SET wall = ?, uptime = ? WHERE instance = ?",
            self._now.wall,
            self._now.uptime,
            self._holder.instance,
        )
        self._release_orphans()

    def _is_due(self, now: Moment) -> bool:
        # Half of the heartbeat interval. If it were the whole interval, a heartbeat shortly before its end would be
        # skipped, and the next one would find the lease two thirds over.
        return now.uptime - self._renewed.uptime >= self._lease / 6

    def _register_holder(self) -> None:
        self._run(
            "INSERT OR REPLACE INTO holders VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            *astuple(self._holder),
            self._lease,
            self._now.wall,
            self._now.uptime,
        )

    def _append(self, held: ClaimedRow, kind: str, detail: bytes) -> None:
        self._run(
            "INSERT INTO events (company, at, kind, detail) VALUES (?, ?, ?, ?)",
            held.row,
            self._now.iso(),
            kind,
            detail,
        )

    def _delete_events(self, held: ClaimedRow) -> None:
        self._run("DROP TRIGGER events_stay")
        # A row without a customer keeps the highest number, which SQLite would otherwise assign again.
        self._run(
            "INSERT INTO events (company, at, kind, detail) VALUES (0, ?, 'forget', x'')", self._now.iso()
        )
        self._run(
            "DELETE FROM events WHERE company = ? OR (company = 0 AND seq < last_insert_rowid())", held.row
        )
        self._run(FORBID_DELETE)

    def _opened(self) -> sqlite3.Connection:
        if self._db is None:
            raise JournalError(str(self._path), "is closed")
        return self._db

    def _inode(self) -> tuple[int, int]:
        # Never open() this file: closing it would drop SQLite's locks of this process (see sqlite.org, "How To
        # Corrupt An SQLite Database File", 2.2).
        try:
            status = self._path.stat()
        except FileNotFoundError:
            return (0, 0)
        return (status.st_dev, status.st_ino)

    def _roll_back(self) -> None:
        """Roll back an open transaction. If that fails, close the connection, so that it writes nothing more."""
        db = self._db
        if db is None or not db.in_transaction:
            return
        try:
            db.execute("ROLLBACK")
        except sqlite3.Error as error:
            _log.warning("journal %s: closed because a rollback failed: %s", self._path, explain(error))
            self._db = None
            self._stop_holding()
            db.close()
