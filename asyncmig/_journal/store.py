"""What is done inside a transaction: claim, write, give up; and many of these in one transaction."""

import logging
import sqlite3
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Protocol, final

from asyncmig._journal.file import Connect, explain, open_for_writing
from asyncmig._journal.lease import Holder, Moment, Renewal, enter, leave
from asyncmig.errors import CompanyHeld, JournalError

__all__ = ["Held", "Step", "Store"]

_log = logging.getLogger("asyncmig.journal")

_ITS_OWN_FAULT = (
    CompanyHeld,
    sqlite3.DataError,
    sqlite3.IntegrityError,
    sqlite3.InterfaceError,
    sqlite3.ProgrammingError,
    OverflowError,
    UnicodeError,
)
"""Errors that concern one step of a transaction and not the others."""


@final
@dataclass(frozen=True, slots=True)
class Held:
    """A company that was claimed: its row, and the token that a write has to show."""

    external_id: str
    row: int
    token: int
    state: bytes | None


class Step(Protocol):
    """A part of a transaction, which somebody waits for."""

    def attempt(self) -> None:
        """Do it, inside the transaction, and keep the result."""
        ...

    def fail(self, error: JournalError) -> None:
        """It was not done."""
        ...


@final
class Store:
    """The one connection that writes. Not for two threads at once."""

    __slots__ = ("_connect", "_db", "_holder", "_identity", "_label", "_lease", "_now", "_path", "_renewed")

    def __init__(self, path: Path, *, label: str, lease: float, connect: Connect) -> None:
        self._path, self._label, self._lease, self._connect = path, label, lease, connect
        self._holder = Holder.here(label)
        self._db: sqlite3.Connection | None = None
        self._identity = (0, 0)
        self._now = Moment.now()
        self._renewed = self._now

    def open(self) -> None:
        """Open the file. Raises `JournalError`."""
        self._db = open_for_writing(self._path, self._connect)
        self._identity = self._inode()
        self._holder = Holder.here(self._label)  # anew: the process may have forked since
        enter(self._holder)

    def close(self) -> None:
        """Give up all that is held, and close the file; a second time nothing happens."""
        db, self._db = self._db, None
        if db is None:
            return
        leave(self._holder)  # from here on others in this process may take over, even if the next lines fail
        try:
            with db:
                db.execute("BEGIN IMMEDIATE")
                db.execute("UPDATE companies SET holder = NULL WHERE holder = ?", (self._holder.instance,))
                db.execute("DELETE FROM holders WHERE instance = ?", (self._holder.instance,))
        except sqlite3.Error as error:
            _log.warning("journal %s: what was held has to expire: %s", self._path, explain(error))
        finally:
            db.close()

    def transact(self, steps: Sequence[Step]) -> None:
        """Do all steps in one transaction. What fails by its own fault leaves nothing, and the others stand.

        When the file cannot be written, all steps fail with `JournalError`, and none was done.
        """
        try:
            db = self._ready()
            db.execute("BEGIN IMMEDIATE")
            self._now = Moment.now()
            for step in steps:
                self._attempt(db, step)
            self._renew(db)
            db.execute("COMMIT")
        except (sqlite3.Error, OSError, JournalError) as error:
            reason = error.reason if isinstance(error, JournalError) else explain(error)
            for step in steps:
                step.fail(JournalError(str(self._path), reason))
            if not steps:
                _log.warning("journal %s: the lease was not renewed: %s", self._path, reason)
        finally:
            self._roll_back()

    def renew(self) -> None:
        """Say that this holder lives, unless a transaction did so lately."""
        if self._db is not None and self._is_due(Moment.now()):
            self.transact(())

    def claim(self, external_id: str) -> Held:
        """Take a company, whether it is known or not. Raises `CompanyHeld`. For use in a step."""
        db = self._opened()
        db.execute("INSERT OR IGNORE INTO companies (external_id) VALUES (?)", (external_id,))
        row, token, state, holder = self._company(db, external_id)
        if holder is not None:
            self._check_free(db, external_id, holder)
        db.execute(
            "INSERT OR REPLACE INTO holders VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (*astuple(self._holder), self._lease, self._now.wall, self._now.uptime),
        )
        db.execute(
            "UPDATE companies SET token = ?, holder = ? WHERE id = ?", (token + 1, self._holder.instance, row)
        )
        return Held(external_id, row, token + 1, state)

    def write(self, held: Held, kind: str, detail: bytes, state: bytes) -> None:
        """Add an event and set the state. Raises `CompanyHeld` if it was taken over. For use in a step."""
        db = self._opened()
        changed = db.execute(
            "UPDATE companies SET state = ? WHERE id = ? AND token = ? AND holder = ?",
            (state, held.row, held.token, self._holder.instance),
        )
        if changed.rowcount != 1:
            raise CompanyHeld(str(self._path), held.external_id, self._successor(db, held))
        db.execute(
            "INSERT INTO events (company, at, kind, detail) VALUES (?, ?, ?, ?)",
            (held.row, self._now.iso(), kind, detail),
        )

    def release(self, held: Held) -> None:
        """Give a company up, if it is still held. For use in a step."""
        self._opened().execute(
            "UPDATE companies SET holder = NULL WHERE id = ? AND token = ? AND holder = ?",
            (held.row, held.token, self._holder.instance),
        )

    def _attempt(self, db: sqlite3.Connection, step: Step) -> None:
        db.execute("SAVEPOINT step")
        try:
            step.attempt()
        except _ITS_OWN_FAULT as error:
            db.execute("ROLLBACK TO step")
            step.fail(error if isinstance(error, JournalError) else JournalError(str(self._path), str(error)))
        db.execute("RELEASE step")

    def _renew(self, db: sqlite3.Connection) -> None:
        if self._is_due(self._now):
            db.execute(
                "UPDATE holders SET wall = ?, uptime = ? WHERE instance = ?",
                (self._now.wall, self._now.uptime, self._holder.instance),
            )
            self._renewed = self._now

    def _is_due(self, now: Moment) -> bool:
        # Half of a beat: a beat that comes right after a write would otherwise leave two thirds of the lease.
        return now.uptime - self._renewed.uptime >= self._lease / 6

    def _check_free(self, db: sqlite3.Connection, external_id: str, instance: str) -> None:
        renewal = _renewal(db, instance)
        # What this journal holds stays held, also when all of the process slept past its own lease.
        if renewal is not None and (instance == self._holder.instance or not renewal.is_over(self._now)):
            raise CompanyHeld(str(self._path), external_id, self._describe(renewal))
        _log.warning(
            "journal %s: %s is taken over from %s", self._path, external_id, renewal and renewal.holder
        )

    def _successor(self, db: sqlite3.Connection, held: Held) -> str:
        instance = self._company(db, held.external_id)[3]
        renewal = None if instance is None else _renewal(db, instance)
        return "nobody now, after it was taken over" if renewal is None else self._describe(renewal)

    def _describe(self, renewal: Renewal) -> str:
        own = renewal.holder.instance == self._holder.instance
        return "another task of this journal" if own else renewal.describe(self._now)

    def _company(self, db: sqlite3.Connection, external_id: str) -> tuple[int, int, bytes | None, str | None]:
        row: tuple[int, int, bytes | None, str | None] = db.execute(
            "SELECT id, token, CAST(state AS BLOB), holder FROM companies WHERE external_id = ?",
            (external_id,),
        ).fetchone()
        return row

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


def _renewal(db: sqlite3.Connection, instance: str) -> Renewal | None:
    row = db.execute("SELECT * FROM holders WHERE instance = ?", (instance,)).fetchone()
    if row is None:
        return None
    *holder, lease, wall, uptime = row
    return Renewal(Holder(*holder), lease, Moment(wall, uptime))
