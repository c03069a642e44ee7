"""What is done inside a transaction of PostgreSQL; the store of `asyncmig._journal.store`, for many machines.

Every transaction begins with the lock on the journal's one row: so events are numbered in the order in which they
are committed, without gaps, and no two transactions wait for each other in a ring. A transaction is repeated when the
connection breaks; whether it was committed after all is told by its name, which the holder's row keeps. Time is the
server's.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import astuple
from typing import final
from uuid import uuid4

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import TupleRow
from psycopg.sql import SQL, Identifier

from asyncmig._journal.lease import Holder, enter, leave
from asyncmig._journal.store import Held, Step
from asyncmig.errors import CompanyHeld, InvalidInput, JournalError

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
_CLEAN = """DELETE FROM holders WHERE renewed < clock_timestamp() - interval '1 day'
    AND instance NOT IN (SELECT holder FROM companies WHERE holder IS NOT NULL)"""
_Renewal = tuple[Holder, float, float]
"""A holder, its lease, and the seconds since it said that it lives, on the server's clock."""
_PAUSES = (0.05, 0.1, 0.2, 0.5, 1.0)
"""Real seconds between tries to connect again; the last one over and over."""
_ITS_OWN_FAULT = (CompanyHeld, psycopg.DataError, psycopg.IntegrityError, UnicodeError)
"""Errors that concern one step of a transaction and not the others."""


@final
class Address:
    """Where a journal is: a database, a schema in it, and what errors call it, which holds no secret.

    Raises `InvalidInput` for what is no connection string of PostgreSQL.
    """

    __slots__ = ("_conninfo", "schema", "text")

    def __init__(self, conninfo: str, schema: str) -> None:
        try:
            parts = conninfo_to_dict(conninfo)
        except psycopg.ProgrammingError as error:
            raise InvalidInput("conninfo", "***", "is no connection string of PostgreSQL") from error
        if not schema.isidentifier() or len(schema) > 50:
            raise InvalidInput("schema", schema, "must be a plain name of at most 50 characters")
        self._conninfo, self.schema = conninfo, schema
        self.text = f"postgresql://{parts.get('host') or 'localhost'}/{parts.get('dbname') or ''}#{schema}"

    @property
    def channel(self) -> str:
        """The channel on which changes are told."""
        return f"{self.schema}_journal"

    def options(self) -> dict[str, str | int | bool]:
        """Return how to connect.

        The server ends a transaction whose client was stopped in the middle of it: it holds the journal's lock.
        """
        settings = (
            f"-c search_path={self.schema} -c idle_in_transaction_session_timeout=1000 -c lock_timeout=20000"
        )
        return {
            "conninfo": self._conninfo,
            "autocommit": True,
            "connect_timeout": 5,
            "tcp_user_timeout": 10_000,
            "options": settings,
        }

    def connect(self) -> _Connection:
        """Open a connection. Raises `psycopg.OperationalError`."""
        return psycopg.connect(**self.options())  # type: ignore[arg-type]  # a mapping has one type of values

    def explain(self, error: Exception) -> JournalError:
        """Return the error that callers see."""
        return JournalError(self.text, " ".join(str(error).split()))


@final
class PostgresStore:
    """The one connection of this process that writes. Not for two threads at once.

    `patience`: real seconds for which a database that is away is waited for.
    """

    __slots__ = ("_address", "_db", "_done", "_holder", "_label", "_lease", "_patience", "_seq", "_stopping")

    def __init__(self, address: Address, *, label: str, lease: float, patience: float) -> None:
        self._address, self._label, self._lease, self._patience = address, label, lease, patience
        self._db: _Connection | None = None
        self._holder = Holder.here(label)
        self._done, self._seq = "", 0
        self._stopping = True

    def open(self) -> None:
        """Connect, and make the tables where there are none. Raises `JournalError`."""
        self._stopping = False
        try:
            self._db = self._address.connect()
            self._prepare(self._db)
        except psycopg.Error as error:
            raise self._address.explain(error) from error
        self._holder = Holder.here(self._label)
        enter(self._holder)

    def _prepare(self, db: _Connection) -> None:
        schema = Identifier(self._address.schema)
        with db.transaction():
            db.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 7))", (self._address.channel,))
            if db.execute("SELECT to_regclass('journal')").fetchone() == (None,):
                if db.execute("SELECT to_regnamespace(%s)", (self._address.schema,)).fetchone() == (None,):
                    db.execute(SQL("CREATE SCHEMA {}").format(schema))
                db.execute(_TABLES)
            row = db.execute("SELECT version FROM journal").fetchone()
            if row is None or row[0] != VERSION:
                newer = f"is of version {row and row[0]}, and this asyncmig knows {VERSION}"
                raise JournalError(self._address.text, newer)
            db.execute(_CLEAN)

    def close(self) -> None:
        """Give up all that is held, and disconnect; a second time nothing happens."""
        db, self._db = self._db, None
        if self._stopping:
            return
        self._stopping = True
        leave(self._holder)
        try:
            db = db if db is not None and not db.closed else self._address.connect()
            with db, db.transaction():
                db.execute("UPDATE companies SET holder = NULL WHERE holder = %s", (self._holder.instance,))
                db.execute("DELETE FROM holders WHERE instance = %s", (self._holder.instance,))
        except psycopg.Error as error:
            _log.warning("journal %s: what was held has to expire: %s", self._address.text, error)

    def transact(self, steps: Sequence[Step]) -> None:
        """Do all steps in one transaction, once, also if the connection breaks.

        What fails by its own fault leaves nothing, and the others stand. When the database stays away, all steps
        fail with `JournalError`.
        """
        try:
            self._outlast(steps, done=uuid4().hex)
        except (psycopg.Error, JournalError) as error:
            for step in steps:
                step.fail(error if isinstance(error, JournalError) else self._address.explain(error))
            if not steps:
                _log.warning("journal %s: the lease was not renewed: %s", self._address.text, error)

    def renew(self) -> None:
        """Say that this holder lives."""
        if not self._stopping:
            self.transact(())

    def _outlast(self, steps: Sequence[Step], *, done: str) -> None:
        # A beat waits for nothing: the next one comes.
        until = time.monotonic() + (self._patience if steps else 0.0)  # noqa: TID251 - a thread that waits for a server, in real seconds
        tries = 0
        while True:
            try:
                self._once(steps, done)
                return
            except psycopg.Error:
                broken = self._db is None or self._db.closed
                if not broken or self._stopping or time.monotonic() >= until:  # noqa: TID251 - as above
                    raise
            time.sleep(_PAUSES[min(tries, len(_PAUSES) - 1)])
            tries += 1

    def _once(self, steps: Sequence[Step], done: str) -> None:
        if self._stopping:
            raise JournalError(self._address.text, "is closed")
        if self._db is None or self._db.closed:
            self._db = None
            self._db = self._address.connect()
        db = self._db
        with db.transaction():
            (seq,) = db.execute("SELECT last FROM journal FOR UPDATE").fetchone() or (0,)
            self._seq = seq
            if self._has_done(db, done):
                return
            for step in steps:
                self._attempt(db, step)
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

    def _attempt(self, db: _Connection, step: Step) -> None:
        seq = self._seq
        try:
            with db.transaction():
                step.attempt()
        except _ITS_OWN_FAULT as error:
            self._seq = seq
            step.fail(error if isinstance(error, JournalError) else self._address.explain(error))

    # Steps

    def claim(self, external_id: str) -> Held:
        """Take a company, whether it is known or not. Raises `CompanyHeld`. For use in a step."""
        db = self._connected()
        db.execute("INSERT INTO companies (external_id) VALUES (%s) ON CONFLICT DO NOTHING", (external_id,))
        row = db.execute(
            "SELECT id, token, state, holder FROM companies WHERE external_id = %s FOR UPDATE", (external_id,)
        ).fetchone()
        assert row is not None
        company, token, state, holder = row
        if holder is not None:
            self._check_free(db, external_id, holder)
        db.execute(
            "UPDATE companies SET token = %s, holder = %s WHERE id = %s",
            (token + 1, self._holder.instance, company),
        )
        return Held(external_id, company, token + 1, state)

    def write(self, held: Held, kind: str, detail: bytes, state: bytes) -> None:
        """Add an event and set the state. Raises `CompanyHeld` if it was taken over. For use in a step."""
        db = self._connected()
        changed = db.execute(
            "UPDATE companies SET state = %s WHERE id = %s AND token = %s AND holder = %s",
            (state, held.row, held.token, self._holder.instance),
        )
        if changed.rowcount != 1:
            raise CompanyHeld(self._address.text, held.external_id, self._successor(db, held))
        self._seq += 1
        db.execute(
            "INSERT INTO events VALUES (%s, %s, clock_timestamp(), %s, %s)",
            (self._seq, held.row, kind, detail),
        )

    def release(self, held: Held) -> None:
        """Give a company up, if it is still held. For use in a step."""
        self._connected().execute(
            "UPDATE companies SET holder = NULL WHERE id = %s AND token = %s AND holder = %s",
            (held.row, held.token, self._holder.instance),
        )

    def _check_free(self, db: _Connection, external_id: str, instance: str) -> None:
        if instance == self._holder.instance:
            raise CompanyHeld(self._address.text, external_id, "another task of this journal")
        found = self._renewal(db, instance)
        if found is not None:
            holder, lease, age = found
            if age < lease and not holder.is_dead():
                raise CompanyHeld(self._address.text, external_id, _describe(found))
        _log.warning(
            "journal %s: %s is taken over from %s", self._address.text, external_id, found and found[0]
        )

    def _successor(self, db: _Connection, held: Held) -> str:
        row = db.execute("SELECT holder FROM companies WHERE id = %s", (held.row,)).fetchone()
        found = None if row is None or row[0] is None else self._renewal(db, row[0])
        return (
            "nobody now, after it was taken over"
            if found is None
            else f"{found[0]}, last seen {found[2]:.0f} s ago"
        )

    def _renewal(self, db: _Connection, instance: str) -> _Renewal | None:
        row = db.execute(
            """SELECT instance, label, host, boot, namespace, pid, started, lease,
            extract(epoch FROM clock_timestamp() - renewed)::float8 FROM holders WHERE instance = %s""",
            (instance,),
        ).fetchone()
        if row is None:
            return None
        *holder, lease, age = row
        return Holder(*holder), lease, age

    def _connected(self) -> _Connection:
        if self._db is None:
            raise JournalError(self._address.text, "is closed")
        return self._db


def _describe(renewal: _Renewal) -> str:
    holder, _, age = renewal
    return f"{holder}, last seen {age:.0f} s ago"
