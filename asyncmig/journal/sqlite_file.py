"""The SQLite file of a journal: how it is opened, its schema versions, and the texts of its errors."""

import contextlib
import os
import re
import sqlite3
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

from asyncmig.errors import InvalidInput, JournalError, JournalNotFound, JournalUnavailable, is_temporary

__all__ = [
    "BUSY",
    "FORBID_DELETE",
    "SCHEMA_VERSIONS",
    "Connect",
    "back_up",
    "compact",
    "connect",
    "explain",
    "journal_error",
    "open_for_reading",
    "open_for_writing",
]

Connect = Callable[[str], sqlite3.Connection]
"""Opens an SQLite URI in autocommit mode, for use in any thread."""

BUSY = 10.0
"""Real seconds for which a process waits for the transaction of another. Transactions take milliseconds."""

_ADDRESS = re.compile(r"""\s*["']?[a-z][a-z0-9+.:-]+:/|.*\bpassword\s*=""", re.IGNORECASE)
"""A URL, whose slashes `Path` joins. A drive of Windows has one letter."""
_APPLICATION = 0x61736D67  # "asmg": marks an SQLite file as a journal

FORBID_DELETE = """CREATE TRIGGER events_stay BEFORE DELETE ON events
            BEGIN SELECT RAISE(ABORT, 'events are only added'); END"""

SCHEMA_VERSIONS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE holders (
            instance TEXT PRIMARY KEY, label TEXT NOT NULL, host TEXT NOT NULL, boot TEXT NOT NULL,
            namespace TEXT NOT NULL, pid INTEGER NOT NULL, started TEXT NOT NULL,
            lease REAL NOT NULL, wall REAL NOT NULL, uptime REAL NOT NULL)""",
        """CREATE TABLE companies (
            id INTEGER PRIMARY KEY, external_id TEXT NOT NULL UNIQUE, state BLOB,
            token INTEGER NOT NULL DEFAULT 0, holder TEXT)""",
        """CREATE TABLE events (
            seq INTEGER PRIMARY KEY, company INTEGER NOT NULL, at TEXT NOT NULL,
            kind TEXT NOT NULL, detail BLOB NOT NULL)""",
        "CREATE INDEX events_by_company ON events (company)",
        FORBID_DELETE,
        """CREATE TRIGGER events_stand BEFORE UPDATE ON events
            BEGIN SELECT RAISE(ABORT, 'events are only added'); END""",
    ),
)
"""For each schema version, the statements that upgrade the version before it. Never edit a released version."""

_BY_HOLDER = "CREATE INDEX IF NOT EXISTS companies_by_holder ON companies (holder) WHERE holder IS NOT NULL"
"""For the heartbeat, which queries the claims of its instance.

An index needs no new schema version, because earlier versions of asyncmig keep it up to date.
"""

_INSTRUCTIONS = (
    "ALTER TABLE companies ADD COLUMN wanted TEXT",
    "ALTER TABLE companies ADD COLUMN instruction BLOB",
    "CREATE INDEX companies_by_wanted ON companies (wanted) WHERE wanted IS NOT NULL",
)
"""For the instructions about customers.

The columns need no new schema version, because earlier versions of asyncmig ignore them. During a deployment, both
versions can use the same journal.
"""

_REASONS = {
    sqlite3.SQLITE_FULL: "the disk is full",
    sqlite3.SQLITE_READONLY: "the file or its folder is read-only",
    sqlite3.SQLITE_CANTOPEN: "it cannot be opened: the folder is read-only, or permission is denied",
    sqlite3.SQLITE_PERM: "permission is denied",
    sqlite3.SQLITE_NOTADB: "this file is not a journal",
    sqlite3.SQLITE_CORRUPT: "the file is damaged; keep a copy of it",
    sqlite3.SQLITE_BUSY: f"another process has kept it locked for {BUSY:g} s; is that process suspended?",
    sqlite3.SQLITE_IOERR: "the disk cannot be read or written",
}


_TEMPORARY = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_INTERRUPT,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_PROTOCOL,
    }
)
"""SQLite's codes after which the same call may succeed later, without a change of the file or its permissions."""


def explain(error: Exception) -> str:
    """Return a description of an error of SQLite, followed by SQLite's own text, or the text of an `OSError`.

    The text of an `OSError` contains no file name, because that may be the name of a temporary file.
    """
    reason = _REASONS.get(_code(error))
    return f"{reason} ({error})" if reason else getattr(error, "strerror", None) or str(error)


def journal_error(path: Path, error: Exception) -> JournalError:
    """Return the error that callers see: `JournalUnavailable` if the same call may succeed later."""
    if isinstance(error, JournalError):
        return error
    passes = is_temporary(error) if isinstance(error, OSError) else _code(error) in _TEMPORARY
    return (JournalUnavailable if passes else JournalError)(str(path), explain(error))


def _code(error: Exception) -> int:
    """Return the primary result code of an SQLite error; 0 for any other error."""
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def check_is_path(path: str | Path) -> None:
    """Raise `InvalidInput` if a path is the address of a server or another URL.

    The error does not show it: it may hold a password.
    """
    if _ADDRESS.match(str(path)):
        why = (
            "is the address of a server: name a file, or for PostgreSQL a postgresql:// URL (`open_journal`)"
        )
        raise InvalidInput("journal", "***", why)


def connect(uri: str) -> sqlite3.Connection:
    """Open an SQLite URI."""
    return sqlite3.connect(uri, uri=True, timeout=BUSY, isolation_level=None, check_same_thread=False)


def open_for_writing(path: Path, connect: Connect) -> sqlite3.Connection:
    """Open a journal. Create a missing one (mode 0600), and upgrade one of an older version.

    Raises `JournalError`. A file that is not a journal is not changed.
    """
    _check_place(path)
    with _explained(path):
        _create(path)
        db = connect(_uri(path, "rwc"))
        try:
            _prepare(db, path)
        except BaseException:
            db.close()
            raise
        return db


def _create(path: Path) -> None:
    """Create the file, unless it exists, with access for its owner only. SQLite's side files get the same mode.

    The file is created under another name and linked, because closing a file descriptor of the journal would drop
    SQLite's locks of this process. If that fails, SQLite creates the file or reports the reason.
    """
    place = Path(os.path.realpath(path))
    if place.exists():
        return
    with contextlib.suppress(OSError):
        descriptor, name = tempfile.mkstemp(prefix=f"{place.name}.", dir=place.parent)
        try:
            os.close(descriptor)
            os.link(name, place)
        finally:
            os.unlink(name)


@contextmanager
def open_for_reading(path: Path, connect: Connect) -> Generator[sqlite3.Connection]:
    """Open an existing journal without changing it. Other processes may write it, and its folder may be read-only.

    Raises `JournalError`.
    """
    _check_place(path)
    if not path.exists():
        raise JournalNotFound(str(path), "there is no such file")
    with _explained(path), closing(_first_readable(path, connect)) as db:
        version = _version(db, path)
        db.text_factory = partial(
            str, encoding="utf-8", errors="replace"
        )  # a text that is damaged must not make the other rows unreadable
        if version != len(SCHEMA_VERSIONS):
            if version == 0:
                raise JournalNotFound(str(path), "is empty")
            raise JournalError(str(path), "is of an older version: the next run upgrades it")
        yield db


def back_up(path: Path, to: Path, connect: Connect) -> None:
    """Copy a journal into a new file, without its claims; see `Journal.backup`."""
    with _explained(to):
        if to.exists():
            raise InvalidInput("to", str(to), "exists already: name a new file")
        _check_place(to)
    with open_for_reading(path, connect) as source, _explained(to):
        descriptor, name = tempfile.mkstemp(prefix=f"{to.name}.", dir=to.parent)
        os.close(descriptor)
        try:
            with closing(connect(_uri(Path(name), "rw"))) as copy:
                try:
                    source.backup(copy)
                except sqlite3.DatabaseError as error:
                    if _code(error) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                        raise journal_error(path, error) from error
                    raise
                copy.execute("PRAGMA journal_mode=DELETE")  # one file, without side files
                copy.execute("UPDATE companies SET holder = NULL")
                copy.execute("DELETE FROM holders")
            os.link(name, to)
        finally:
            os.unlink(name)


def compact(path: Path, connect: Connect) -> tuple[int, int]:
    """Rewrite a journal without free pages; see `Journal.compact`. Return its size in bytes before and after."""
    with _explained(path), closing(open_for_writing(path, connect)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        before = path.stat().st_size
        db.execute("VACUUM")
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return before, path.stat().st_size


def _first_readable(path: Path, connect: Connect) -> sqlite3.Connection:
    # "rw" comes first: only such a connection deletes the side files when it is the last one to close.
    # "immutable" is for a folder where side files cannot be created. It ignores a "-wal" file, so none may exist.
    modes = ["rw", "ro"] if path.with_name(f"{path.name}-wal").exists() else ["rw", "ro", "ro&immutable=1"]
    for mode in modes[:-1]:
        try:
            return _queryable(path, mode, connect)
        except sqlite3.OperationalError as error:
            if _code(error) in _TEMPORARY:  # another mode would ignore the lock or wait for it again
                raise
    return _queryable(path, modes[-1], connect)


def _queryable(path: Path, mode: str, connect: Connect) -> sqlite3.Connection:
    db = connect(_uri(path, mode))
    try:
        db.execute("PRAGMA query_only=ON")
        db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except BaseException:
        db.close()
        raise
    return db


def _prepare(db: sqlite3.Connection, path: Path) -> None:
    db.execute("PRAGMA synchronous=FULL")
    db.execute("PRAGMA fullfsync=ON")  # on macOS, only this waits until the disk has written
    _version(db, path)  # before any change: raises for a file that is not a journal
    _use_wal(db, path)
    db.execute("BEGIN IMMEDIATE")
    try:
        version = _version(db, path)  # again: another process may have upgraded it
        if version < len(SCHEMA_VERSIONS):
            for statement in (line for step in SCHEMA_VERSIONS[version:] for line in step):
                db.execute(statement)
            db.execute(f"PRAGMA application_id={_APPLICATION}")
            db.execute(f"PRAGMA user_version={len(SCHEMA_VERSIONS)}")
        db.execute(_BY_HOLDER)
        if not db.execute("SELECT 1 FROM pragma_table_info('companies') WHERE name = 'wanted'").fetchone():
            for statement in _INSTRUCTIONS:
                db.execute(statement)
        # A killed process leaves its row, which is needed until its last claim is taken over.
        db.execute(
            "DELETE FROM holders WHERE instance NOT IN (SELECT holder FROM companies WHERE holder NOT NULL)"
        )
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def _version(db: sqlite3.Connection, path: Path) -> int:
    """Return the schema version of a journal; 0 for an empty file. Raises `JournalError` for any other file."""
    with _snapshot(db):
        application, version, tables = (
            int(db.execute(query).fetchone()[0])
            for query in (
                "PRAGMA application_id",
                "PRAGMA user_version",
                "SELECT count(*) FROM sqlite_master",
            )
        )
    if application == 0 and version == 0 and tables == 0:
        return 0
    if application != _APPLICATION:
        raise JournalError(str(path), "this SQLite file is not a journal: it belongs to another program")
    if version > len(SCHEMA_VERSIONS):
        raise JournalError(
            str(path),
            f"was written by a newer version of asyncmig (journal version {version}, "
            f"this version supports up to {len(SCHEMA_VERSIONS)})",
        )
    return version


@contextmanager
def _snapshot(db: sqlite3.Connection) -> Generator[None]:
    """Let all reads of the block see the same state, because another process may be creating the journal."""
    if db.in_transaction:
        yield
        return
    db.execute("BEGIN")
    try:
        yield
    finally:
        if db.in_transaction:
            db.execute("ROLLBACK")


def _use_wal(db: sqlite3.Connection, path: Path) -> None:
    """Switch the file to a write-ahead log, permanently.

    Retries if the file is locked: SQLite does not wait if two processes switch a new file at the same time.
    """
    for pause in (0.01, 0.05, 0.2, 1.0, None):
        try:
            mode: str = db.execute("PRAGMA journal_mode=WAL").fetchone()[0]
        except sqlite3.OperationalError as error:
            if _code(error) != sqlite3.SQLITE_BUSY or pause is None:
                raise
            time.sleep(pause)
        else:
            if mode != "wal":
                raise JournalError(
                    str(path), f"this file system does not support a write-ahead log (SQLite offers {mode!r})"
                )
            return


def _check_place(path: Path) -> None:
    if not path.parent.is_dir():
        raise JournalError(str(path), f"there is no folder {path.parent}")
    if path.is_dir():
        raise JournalError(str(path), "this is a folder")
    if path.exists() and not path.is_file():
        raise JournalError(str(path), "this is not a file")


def _uri(path: Path, mode: str) -> str:
    return f"{path.absolute().as_uri()}?mode={mode}"


@contextmanager
def _explained(path: Path) -> Generator[None]:
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise journal_error(path, error) from error
