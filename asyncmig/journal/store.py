"""The journal's one SQLite connection that writes, and how it does many steps in one transaction."""

import logging
import sqlite3
from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path
from typing import final

from asyncmig.errors import CustomerHeld, JournalError
from asyncmig.journal.claims import ClaimedRow, ClaimStore, Rows, Sighting, WriteOp
from asyncmig.journal.file import Connect, explain, journal_error, open_for_writing
from asyncmig.journal.lease import Holder, Moment, Renewal, enter, leave

__all__ = ["Store"]

_log = logging.getLogger("asyncmig.journal")

_ITS_OWN_FAULT = (
    CustomerHeld,
    sqlite3.DataError,
    sqlite3.IntegrityError,
    sqlite3.InterfaceError,
    sqlite3.ProgrammingError,
    OverflowError,
    UnicodeError,
)
"""Errors that concern one step of a transaction and not the others."""


@final
class Store(ClaimStore):
    """The one connection that writes. Not for two threads at once."""

    __slots__ = ("_connect", "_db", "_identity", "_lease", "_now", "_path", "_renewed")
    _COMPANY = "SELECT id, token, CAST(state AS BLOB), holder FROM companies WHERE external_id = ?"

    def __init__(self, path: Path, *, label: str, lease: float, connect: Connect) -> None:
        super().__init__(str(path), label)
        self._path, self._lease, self._connect = path, lease, connect
        self._db: sqlite3.Connection | None = None
        self._identity = (0, 0)
        self._now = Moment.now()
        self._renewed = self._now

    def open(self) -> None:
        """Open the file. Raises `JournalError`."""
        self._db = open_for_writing(self._path, self._connect)
        self._identity = self._inode()
        self._holder = Holder.here(self._label)  # anew: the process may have forked since
        self._owned.clear()
        enter(self._holder)

    def close(self) -> None:
        """Give up all that is held, and close the file; a second time nothing happens."""
        db = self._db
        if db is None:
            return
        leave(self._holder)  # from here on others in this process may take over, even if the next lines fail
        try:
            with db:
                db.execute("BEGIN IMMEDIATE")
                self._give_up_all()
        except sqlite3.Error as error:
            _log.warning("journal %s: what was held has to expire: %s", self._path, explain(error))
        finally:
            self._db = None
            db.close()

    def transact(self, steps: Sequence[WriteOp]) -> None:
        """Do all steps in one transaction. What fails by its own fault leaves nothing, and the others stand.

        When the file cannot be written, all steps fail with `JournalError`, and none was done.
        """
        try:
            db = self._ready()
            db.execute("BEGIN IMMEDIATE")
            self._now = Moment.now()
            self._new.clear()
            for step in steps:
                self._attempt(db, step)
            if due := self._is_due(self._now):
                self._renew()
            db.execute("COMMIT")
            self._owned.update(self._new)
            self._renewed = self._now if due else self._renewed
        except (sqlite3.Error, OSError, JournalError) as error:
            failure = journal_error(self._path, error)
            for step in steps:  # an error for each: their callers raise them in tasks of their own
                step.fail(type(failure)(str(self._path), failure.reason))
            if not steps:
                _log.warning("journal %s: the lease was not renewed: %s", self._path, failure.reason)
        finally:
            self._roll_back()

    def renew(self) -> None:
        """Say that this holder lives, unless a transaction did so lately."""
        if self._db is not None and self._is_due(Moment.now()):
            self.transact(())

    def _attempt(self, db: sqlite3.Connection, step: WriteOp) -> None:
        db.execute("SAVEPOINT step")
        try:
            step.attempt()
        except _ITS_OWN_FAULT as error:
            db.execute("ROLLBACK TO step")
            step.fail(error if isinstance(error, JournalError) else JournalError(str(self._path), str(error)))
        db.execute("RELEASE step")

    def _renew(self) -> None:
        self._run(
            "UPDATE holders SET wall = ?, uptime = ? WHERE instance = ?",
            self._now.wall,
            self._now.uptime,
            self._holder.instance,
        )
        self._give_up_strays()

    def _is_due(self, now: Moment) -> bool:
        # Half of a beat: a beat that comes right after a write would otherwise leave two thirds of the lease.
        return now.uptime - self._renewed.uptime >= self._lease / 6

    def _run(self, sql: str, *values: object) -> Rows:
        return self._opened().execute(sql, values)

    def _announce(self) -> None:
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

    def _look_up(self, instance: str) -> Sighting | None:
        row = self._opened().execute("SELECT * FROM holders WHERE instance = ?", (instance,)).fetchone()
        if row is None:
            return None
        *holder, lease, wall, uptime = row
        renewal = Renewal(Holder(*holder), lease, Moment(wall, uptime))
        return Sighting(renewal.holder, renewal.describe(self._now), not renewal.is_over(self._now))

    def _opened(self) -> sqlite3.Connection:
        if self._db is None:
            raise JournalError(str(self._path), "is closed")
        return self._db

    def _ready(self) -> sqlite3.Connection:
        db = self._opened()
        if self._inode() != self._identity:
            raise JournalError(str(self._path), "the file was replaced or moved while it was in use")
        return db

    def _inode(self) -> tuple[int, int]:
        # Never open() this file: closing it again would drop SQLite's locks of this process (see sqlite.org,
        # "How To Corrupt An SQLite Database File", 2.2).
        try:
            status = self._path.stat()
        except FileNotFoundError:
            return (0, 0)
        return (status.st_dev, status.st_ino)

    def _roll_back(self) -> None:
        """Leave no transaction open; where even that fails, nothing more is written by this connection."""
        db = self._db
        if db is None or not db.in_transaction:
            return
        try:
            db.execute("ROLLBACK")
        except sqlite3.Error as error:
            _log.warning("journal %s: closed, for it cannot roll back: %s", self._path, explain(error))
            self._db = None
            leave(self._holder)
            db.close()
