"""What is done inside a transaction of PostgreSQL; the store of `asyncmig.journal.store`, for many machines.

Every transaction begins with the lock on the journal's one row: so events are numbered in the order in which they
are committed, without gaps, and no two transactions wait for each other in a ring. A transaction is repeated when the
connection breaks; whether it was committed after all is told by its name, which the holder's row keeps. Time is the
server's.
"""

import hashlib
import logging
import os
import re
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import astuple
from typing import final
from uuid import uuid4

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import TupleRow
from psycopg.sql import SQL, Identifier

from asyncmig._core.server_address import parse_server
from asyncmig.errors import CustomerHeld, InvalidInput, JournalError, JournalUnavailable
from asyncmig.journal.claims import ClaimedRow, ClaimStore, Rows, Sighting, WriteOp
from asyncmig.journal.lease import Holder, enter, leave

__all__ = ["VERSION", "Address", "PostgresStore"]

_log = logging.getLogger("asyncmig.journal")
_Connection = psycopg.Connection[TupleRow]

VERSION = 1
_TABLES = """
    CREATE TABLE journal (version integer NOT NULL, last bigint NOT NULL);
    INSERT INTO journal VALUES (1, 0);
    CREATE TABLE holders (
        instance text PRIMARY KEY, label text NOT NULL, host text NOT NULL, boot text NOT NULL,
        namespace text NOT NULL, pid bigint NOT NULL, started text NOT NULL,
        lease double precision NOT NULL, renewed timestamptz NOT NULL, done text NOT NULL);
    CREATE TABLE companies (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, external_id text NOT NULL UNIQUE, state bytea,
        token bigint NOT NULL DEFAULT 0, holder text);
    CREATE TABLE events (
        seq bigint PRIMARY KEY, company bigint NOT NULL, at timestamptz NOT NULL,
        kind text NOT NULL, detail bytea NOT NULL);
    CREATE INDEX events_by_company ON events (company, seq);
    CREATE FUNCTION events_stand() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN RAISE EXCEPTION 'events are only added'; END $$;
    CREATE TRIGGER events_stand BEFORE UPDATE OR DELETE ON events
        FOR EACH STATEMENT EXECUTE FUNCTION events_stand();
"""
_BY_HOLDER = "CREATE INDEX companies_by_holder ON companies (holder) WHERE holder IS NOT NULL"
"""Each heartbeat asks what its instance holds. Journals of earlier versions get it when they are opened."""
_CLEAN = """DELETE FROM holders WHERE renewed < clock_timestamp() - interval '1 day'
    AND instance NOT IN (SELECT holder FROM companies WHERE holder IS NOT NULL)"""
_HAS_SCHEMA = "SELECT 1 FROM pg_namespace WHERE nspname = %s"
_LONGEST_NAME = 63
"""Bytes of a name in PostgreSQL."""
_PAUSES = (0.05, 0.1, 0.2, 0.5, 1.0)
"""Real seconds between tries to connect again; the last one over and over."""
_ITS_OWN_FAULT = (CustomerHeld, psycopg.DataError, psycopg.IntegrityError, UnicodeError)
"""Errors that concern one step of a transaction and not the others."""


def _checked_schema(name: str) -> str:
    if not name.strip() or not name.isprintable() or ";" in name or len(name.encode()) > _LONGEST_NAME:
        raise InvalidInput(
            "schema", name, f"must be a name of at most {_LONGEST_NAME} bytes, without a semicolon"
        )
    if name.lower().startswith("pg_") or name == "$user":
        raise InvalidInput("schema", name, "is a name that PostgreSQL keeps for itself")
    return name


@final
class Address:
    """Where a journal is: a database, a schema in it, and what errors call it, which holds no secret.

    Raises `InvalidInput` for an address or a name that PostgreSQL would not accept.
    """

    __slots__ = ("_options", "_server", "_writable", "schema", "text")

    def __init__(self, conninfo: str, schema: str) -> None:
        self._server = parse_server("conninfo", conninfo, "postgres")
        parts = self._server.checked("conninfo", conninfo_to_dict)
        self.schema = _checked_schema(schema)
        self._options = str(parts.get("options") or "")
        # A standby that is being promoted counts as away, and of several hosts the one that takes writes is used.
        chosen = "target_session_attrs" in parts or "PGTARGETSESSIONATTRS" in os.environ
        self._writable: dict[str, str] = {} if chosen else {"target_session_attrs": "read-write"}
        self.text = f"postgresql://{parts.get('host') or 'localhost'}/{parts.get('dbname') or ''}#{schema}"

    def __repr__(self) -> str:
        return f"<Address {self.text}>"

    @property
    def channel(self) -> str:
        """The channel on which changes are told; its name is as short as PostgreSQL allows."""
        name = f"{self.schema}_journal"
        return name if len(name.encode()) <= _LONGEST_NAME else hashlib.sha256(name.encode()).hexdigest()[:48]

    def options(self) -> dict[str, str | int | bool]:
        """Return how to connect.

        The server ends a transaction whose client was stopped in the middle of it: it holds the journal's lock.
        """
        quoted = '"' + self.schema.replace('"', '""') + '"'
        path = re.sub(r"([\\\s])", r"\\\1", quoted)  # libpq splits at blanks, and a backslash keeps one
        settings = f"-c search_path={path} -c idle_in_transaction_session_timeout=1000 -c lock_timeout=20000"
        return {
            "conninfo": self._server.text,
            "autocommit": True,
            "connect_timeout": 5,
            "tcp_user_timeout": 10_000,
            "options": f"{self._options} {settings}".strip(),
            **self._writable,
        }

    def connect(self) -> _Connection:
        """Open a connection. Raises `psycopg.OperationalError`."""
        return psycopg.connect(**self.options())  # type: ignore[arg-type]  # a mapping has one type of values

    def explain(self, error: Exception) -> JournalError:
        """Return the error that callers see: `JournalUnavailable` if the same call may succeed later."""
        self._server.scrub(error)
        passes = isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)
        return (JournalUnavailable if passes else JournalError)(self.text, " ".join(str(error).split()))


@final
class PostgresStore(ClaimStore):
    """The one connection of this process that writes. Not for two threads at once.

    `patience`: real seconds for which a database that is away is waited for.
    """

    __slots__ = ("_address", "_db", "_lease", "_patience", "_seq", "_stopping")
    _COMPANY = "SELECT id, token, state, holder FROM companies WHERE external_id = ?"

    def __init__(self, address: Address, *, label: str, lease: float, patience: float) -> None:
        super().__init__(address.text, label)
        self._address, self._lease, self._patience = address, lease, patience
        self._db: _Connection | None = None
        self._seq = 0
        self._stopping = True

    def open(self) -> None:
        """Connect, and make the tables where there are none. Raises `JournalError`."""
        with ExitStack() as opened:
            try:
                db = self._address.connect()
                opened.callback(db.close)
                self._prepare(db)
            except psycopg.Error as error:
                raise self._address.explain(error) from error
            opened.pop_all()
        self._db, self._stopping = db, False
        self._holder = Holder.here(self._label)
        self._owned.clear()
        enter(self._holder)

    def _prepare(self, db: _Connection) -> None:
        schema = Identifier(self._address.schema)
        with db.transaction():
            db.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 7))", (self._address.channel,))
            if db.execute("SELECT to_regclass('journal')").fetchone() == (None,):
                self._check_no_other_case(db)
                if db.execute(_HAS_SCHEMA, (self._address.schema,)).fetchone() is None:
                    db.execute(SQL("CREATE SCHEMA {}").format(schema))
                db.execute(_TABLES)
            if db.execute("SELECT to_regclass('companies_by_holder')").fetchone() == (None,):
                db.execute(_BY_HOLDER)
            row = db.execute("SELECT version FROM journal").fetchone()
            if row is None or row[0] != VERSION:
                newer = f"is of version {row and row[0]}, and this asyncmig knows {VERSION}"
                raise JournalError(self._address.text, newer)
            db.execute(_CLEAN)

    def _check_no_other_case(self, db: _Connection) -> None:
        """Refuse to begin a new journal where an earlier version would have used one whose name is in lower case."""
        name = self._address.schema
        folded = Identifier(name.lower(), "journal").as_string(db)
        if name != name.lower() and db.execute("SELECT to_regclass(%s)", (folded,)).fetchone() != (None,):
            raise JournalError(
                self._address.text,
                f"there is a journal in the schema {name.lower()!r}: give its name in lower case",
            )

    def close(self) -> None:
        """Give up all that is held, and disconnect; a second time nothing happens."""
        if self._stopping:
            return
        self._stopping = True
        leave(self._holder)
        try:
            with self._reconnected() as db, db.transaction():
                self._give_up_all()
        except psycopg.Error as error:
            _log.warning("what was held has to expire: %s", self._address.explain(error))
        finally:
            self._db = None

    def transact(self, steps: Sequence[WriteOp]) -> None:
        """Do all steps in one transaction, once, also if the connection breaks.

        What fails by its own fault leaves nothing, and the others stand. When the database stays away, all steps
        fail with `JournalError`.
        """
        try:
            self._outlast(steps, done=uuid4().hex)
        except (psycopg.Error, JournalError) as error:
            reason = error if isinstance(error, JournalError) else self._address.explain(error)
            for step in steps:
                step.fail(reason)
            if not steps:
                _log.warning("the lease was not renewed: %s", reason)

    def renew(self) -> None:
        """Say that this holder lives."""
        if not self._stopping:
            self.transact(())

    def _outlast(self, steps: Sequence[WriteOp], *, done: str) -> None:
        # A beat waits for nothing: the next one comes.
        until = time.monotonic() + (self._patience if steps else 0.0)  # noqa: TID251 - a thread that waits for a server, in real seconds
        tries = 0
        while True:
            try:
                self._once(steps, done)
                self._owned.update(self._new)
                return
            except psycopg.Error:
                broken = self._db is None or self._db.closed
                if not broken or self._stopping or time.monotonic() >= until:  # noqa: TID251 - as above
                    raise
            time.sleep(_PAUSES[min(tries, len(_PAUSES) - 1)])
            tries += 1

    def _once(self, steps: Sequence[WriteOp], done: str) -> None:
        if self._stopping:
            raise JournalError(self._address.text, "is closed")
        db = self._reconnected()
        with db.transaction():
            (seq,) = db.execute("SELECT last FROM journal FOR UPDATE").fetchone() or (0,)
            self._seq = seq
            if self._has_done(db, done):
                return
            self._new.clear()
            for step in steps:
                self._attempt(db, step)
            if not steps:
                self._give_up_strays()
            if self._seq != seq:
                db.execute("UPDATE journal SET last = %s", (self._seq,))
                db.execute("SELECT pg_notify(%s, %s)", (self._address.channel, str(self._seq)))
            self._note(db, done)

    def _has_done(self, db: _Connection, done: str) -> bool:
        """Return whether this very transaction was committed, and only the answer was lost."""
        row = db.execute("SELECT done FROM holders WHERE instance = %s", (self._holder.instance,)).fetchone()
        return row == (done,)

    def _note(self, db: _Connection, done: str) -> None:
        """Say that this holder lives, and what it did last."""
        db.execute(
            """INSERT INTO holders VALUES (%s, %s, %s, %s, %s, %s, %s, %s, clock_timestamp(), %s)
            ON CONFLICT (instance) DO UPDATE SET renewed = excluded.renewed, done = excluded.done""",
            (*astuple(self._holder), self._lease, done),
        )

    def _attempt(self, db: _Connection, step: WriteOp) -> None:
        seq = self._seq
        try:
            with db.transaction():
                step.attempt()
        except _ITS_OWN_FAULT as error:
            self._seq = seq
            step.fail(error if isinstance(error, JournalError) else self._address.explain(error))

    def _reconnected(self) -> _Connection:
        """Return the connection, a new one if it broke. Raises `psycopg.OperationalError`."""
        if self._db is None or self._db.closed:
            self._db = None
            self._db = self._address.connect()
        return self._db

    # The dialect

    def _run(self, sql: str, *values: object) -> Rows:
        return self._connected().execute(sql.replace("?", "%s").encode(), values)

    def _announce(self) -> None:
        """Do nothing: each transaction does so."""

    def _append(self, held: ClaimedRow, kind: str, detail: bytes) -> None:
        self._seq += 1
        self._run(
            "INSERT INTO events VALUES (?, ?, clock_timestamp(), ?, ?)", self._seq, held.row, kind, detail
        )

    def _look_up(self, instance: str) -> Sighting | None:
        row = (
            self._connected()
            .execute(
                """SELECT instance, label, host, boot, namespace, pid, started, lease,
                extract(epoch FROM clock_timestamp() - renewed)::float8 FROM holders WHERE instance = %s""",
                (instance,),
            )
            .fetchone()
        )
        if row is None:
            return None
        *fields, lease, age = row
        holder = Holder(*fields)
        return Sighting(holder, f"{holder}, last seen {age:.0f} s ago", age < lease and not holder.is_dead())

    def _connected(self) -> _Connection:
        if self._db is None:
            raise JournalError(self._address.text, "is closed")
        return self._db
