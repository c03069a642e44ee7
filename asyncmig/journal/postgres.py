"""The journal in PostgreSQL, for workers on several machines; needs the extra `postgres`.

    async with PostgresJournal("postgresql://db/migrations") as journal:
        async with asyncmig.Fleet(session, journal=journal) as fleet:
            ...

It gives the same guarantees as `asyncmig.journal.Journal`, on the server's clock. Its tables have a schema of their
own.

While the database restarts, writes wait. A transaction that the restart interrupts is committed exactly once: each
transaction writes its id into the row of its holder, and the journal repeats it unless that row shows that it was
committed.

Every transaction first locks the only row of the table `journal`. Events are therefore numbered without gaps in the
order of their commits, and transactions cannot deadlock.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import astuple
from pathlib import Path
from typing import ClassVar, cast, final
from uuid import uuid4

import psycopg
from psycopg.rows import TupleRow
from psycopg.sql import SQL, Identifier

from asyncmig._core.arguments import checked_call
from asyncmig._core.run_table import Reach, RunStore
from asyncmig.errors import CustomerHeld, JournalError, JournalNotFound
from asyncmig.journal.claims import ClaimedRow, ClaimStore, Row, StatementResult, WriteOp
from asyncmig.journal.database import EVENTS, SCHEMA, DatabaseJournal, state_file
from asyncmig.journal.lease import DURATION, Holder, Lease
from asyncmig.journal.ports import JournalEvent
from asyncmig.journal.postgres_schema import PostgresSchema

__all__ = ["PostgresJournal"]

_Connection = psycopg.Connection[TupleRow]
_HolderRow = tuple[str, str, str, str, str, int, str, float, float]
_RECHECK = 30.0
"""Real seconds after which `changes` queries the events even without a notification."""
_RECONNECT = 0.5
"""Real seconds between the attempts of `changes` to connect."""
_BATCH = 1000
_PAUSES = (0.05, 0.1, 0.2, 0.5, 1.0)
"""Real seconds between attempts of the writer to connect again; the last one repeats."""
_RUNS_INSERT = "INSERT INTO run_slots VALUES (%s, '') ON CONFLICT (account) DO NOTHING"
_RUNS_READ = """SELECT state, extract(epoch FROM clock_timestamp())::float8
    FROM run_slots WHERE account = %s FOR UPDATE"""
_RUNS_WRITE = "UPDATE run_slots SET state = %s WHERE account = %s"


@final
class PostgresJournal(DatabaseJournal):
    """A journal in a schema of a database, which is created if it does not exist; for one event loop, `async with`.

    `conninfo`: a URL or `key=value` pairs, as libpq accepts them. `holder`: a name for this process in the errors of
    other processes. `lease`: real seconds after which a holder without a heartbeat is replaced. `read_only` uses an
    existing journal, changes nothing and refuses claims. `patience`: real seconds for which writes wait for an
    unavailable database; after that, they raise `JournalError`. Reads do not wait.
    """

    __slots__ = ("_schema",)

    @checked_call
    def __init__(
        self,
        conninfo: str,
        *,
        schema: str = SCHEMA,
        holder: str | None = None,
        lease: float = DURATION,
        read_only: bool = False,
        patience: float = 60.0,
    ) -> None:
        self._schema = PostgresSchema(conninfo, schema)
        store = PostgresStore(self._schema, label=holder or "", lease=lease, patience=patience)
        super().__init__(store, lease=lease, read_only=read_only)

    @property
    def send_log(self) -> Path:
        """The send log of fleets that use this journal, in the user's state folder."""
        return state_file(self._schema.server, "recent", schema=self._schema.name)

    def run_slots(self, account: str) -> RunStore:
        """Return the run slots of an account, for all processes that use this journal."""
        return PostgresRuns(self._schema, account)

    async def changes(self, *, after: int | None = None) -> AsyncGenerator[JournalEvent]:
        """Yield each event of all processes as soon as it is committed, without end.

        Begins after the event with the number `after`; without `after`, with the next event. An interrupted
        connection loses no event. Raises `JournalError` if the journal was deleted or cannot be read.
        """
        loop = asyncio.get_running_loop()
        speed = float(getattr(loop, "speed", 1.0))
        events = _placeholders(EVENTS.format_map(PostgresStore.DIALECT))
        while True:
            try:
                async with await psycopg.AsyncConnection.connect(**self._schema.options()) as db:  # type: ignore[arg-type]
                    await db.execute(SQL("LISTEN {}").format(Identifier(self._schema.channel)))
                    while True:
                        if after is None:
                            row = await (await db.execute("SELECT last FROM journal")).fetchone()
                            after = int(row[0]) if row else 0
                        found = await db.execute(events, (after, _BATCH))
                        rows = await found.fetchall()
                        for row in rows:
                            event = JournalEvent(*row)
                            after = event.seq
                            yield event
                        if len(rows) < _BATCH:
                            async for _ in db.notifies(timeout=_RECHECK * speed, stop_after=1):
                                pass
            except psycopg.OperationalError:
                await asyncio.sleep(_RECONNECT * speed)
            except psycopg.Error as error:
                raise self._schema.explain(error) from error


@final
class PostgresStore(ClaimStore):
    """The PostgreSQL connection of this process that writes; see `ClaimStore`.

    `patience`: real seconds to wait for an unavailable database.
    """

    __slots__ = ("_db", "_lease", "_patience", "_schema", "_seq", "_stopping")
    DIALECT: ClassVar[Mapping[str, str]] = {
        "state": "state",
        "detail": "detail",
        "at": """to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')""",
        # The age of the last heartbeat, in seconds, is last.
        "holder": """instance, label, host, boot, namespace, pid, started, lease,
            greatest(extract(epoch FROM clock_timestamp() - renewed), 0)::float8""",
        "limit": "?",
        "events_of": "companies JOIN events",
    }
    _DATABASE_ERRORS = (psycopg.Error, JournalError)
    _OP_ERRORS = (CustomerHeld, psycopg.DataError, psycopg.IntegrityError, UnicodeError)

    def __init__(self, schema: PostgresSchema, *, label: str, lease: float, patience: float) -> None:
        super().__init__(schema.text, label)
        self._schema, self._lease, self._patience = schema, lease, patience
        self._db: _Connection | None = None
        self._seq = 0
        """The number of the last event of the current transaction."""
        self._stopping = True

    def open(self) -> None:
        with ExitStack() as opened:
            try:
                db = self._schema.connect()
                opened.callback(db.close)
                self._schema.prepare(db)
            except psycopg.Error as error:
                raise self._schema.explain(error) from error
            opened.pop_all()
        self._db, self._stopping = db, False
        self._start_holding()

    def close(self) -> None:
        if self._stopping:
            return
        self._stopping = True
        self._stop_holding()
        try:
            with self._reconnected() as db, db.transaction():
                self._release_all()
        except psycopg.Error as error:
            self._warn_not_released(error)
        finally:
            self._db = None

    def read(self, sql: str, *values: object) -> Sequence[Row]:
        try:
            with self._schema.connect() as db:
                return db.execute(_placeholders(sql), values).fetchall()
        except psycopg.errors.UndefinedTable:
            raise JournalNotFound(self.place, "there is no journal in this database") from None
        except psycopg.Error as error:
            raise self._schema.explain(error) from error

    @staticmethod
    def lease_in(row: Row) -> Lease:
        columns = cast("_HolderRow", row)
        return Lease(Holder(*columns[:7]), *columns[7:])

    def renew(self) -> None:
        if not self._stopping:
            self.transact(())

    def _commit(self, ops: Sequence[WriteOp]) -> None:
        """Commit exactly once, even if the connection breaks. Wait while the database is unavailable."""
        # A heartbeat, which has no operations, does not wait: the next one follows soon.
        until = time.monotonic() + (self._patience if ops else 0.0)  # noqa: TID251 - a thread that waits for a server, in real seconds
        transaction, attempts = uuid4().hex, 0
        while True:
            try:
                self._commit_once(ops, transaction)
            except psycopg.Error as error:
                if isinstance(error, psycopg.errors.ReadOnlySqlTransaction) and self._db is not None:
                    self._db.close()  # the server is a standby now: connect to the one that accepts writes
                broken = self._db is None or self._db.closed
                if not broken or self._stopping or time.monotonic() >= until:  # noqa: TID251 - as above
                    raise
            else:
                return
            time.sleep(_PAUSES[min(attempts, len(_PAUSES) - 1)])
            attempts += 1

    def _commit_once(self, ops: Sequence[WriteOp], transaction: str) -> None:
        if self._stopping:
            raise JournalError(self.place, "is closed")
        db = self._reconnected()
        with db.transaction():
            (seq,) = db.execute("SELECT last FROM journal FOR UPDATE").fetchone() or (0,)
            self._seq = seq
            if self._was_committed(db, transaction):
                return
            self._apply(ops)
            if not ops:
                self._release_orphans()
            if self._seq != seq:
                db.execute("UPDATE journal SET last = %s", (self._seq,))
                db.execute("SELECT pg_notify(%s, %s)", (self._schema.channel, str(self._seq)))
            self._renew(db, transaction)

    def _was_committed(self, db: _Connection, transaction: str) -> bool:
        """Return whether an earlier attempt was committed and only the server's answer was lost."""
        row = db.execute("SELECT done FROM holders WHERE instance = %s", (self._holder.instance,)).fetchone()
        return row == (transaction,)

    def _renew(self, db: _Connection, transaction: str) -> None:
        """Renew the lease, and store the transaction's id."""
        db.execute(
            """INSERT INTO holders VALUES (%s, %s, %s, %s, %s, %s, %s, %s, clock_timestamp(), %s)
            ON CONFLICT (instance) DO UPDATE SET renewed = excluded.renewed, done = excluded.done""",
            (*astuple(self._holder), self._lease, transaction),
        )

    def _reconnected(self) -> _Connection:
        """Return the connection, a new one if it is broken. Raises `psycopg.OperationalError`."""
        if self._db is None or self._db.closed:
            self._db = None
            self._db = self._schema.connect()
        return self._db

    @contextmanager
    def _savepoint(self) -> Generator[None]:
        seq = self._seq
        try:
            with self._connected().transaction():
                yield
        except self._OP_ERRORS:
            self._seq = seq
            raise

    def _run(self, sql: str, *values: object) -> StatementResult:
        return self._connected().execute(_placeholders(sql), values)

    def _explain(self, error: Exception) -> JournalError:
        return error if isinstance(error, JournalError) else self._schema.explain(error)

    def _register_holder(self) -> None:
        """Do nothing, because each transaction ends with `_renew`."""

    def _append(self, held: ClaimedRow, kind: str, detail: bytes) -> None:
        self._seq += 1
        self._run(
            "INSERT INTO events VALUES (?, ?, clock_timestamp(), ?, ?)", self._seq, held.row, kind, detail
        )

    def _delete_events(self, held: ClaimedRow) -> None:
        self._run("ALTER TABLE events DISABLE TRIGGER events_stand")
        self._run("DELETE FROM events WHERE company = ?", held.row)
        self._run("ALTER TABLE events ENABLE TRIGGER events_stand")

    def _connected(self) -> _Connection:
        if self._db is None:
            raise JournalError(self.place, "is closed")
        return self._db


@final
class PostgresRuns:
    """The run slots of an account, in one row of the journal's database; see `RunStore`."""

    __slots__ = ("_account", "_schema")
    reach: Reach = "network"

    def __init__(self, schema: PostgresSchema, account: str) -> None:
        self._schema, self._account = schema, account

    async def update(self, change: Callable[[bytes, float], bytes], *, speed: float) -> None:
        """Replace the state in one transaction, which locks the row. Raises `JournalError`."""
        try:
            async with (
                await psycopg.AsyncConnection.connect(**self._schema.options()) as db,  # type: ignore[arg-type]  # the values of the mapping have several types
                db.transaction(),
            ):
                await db.execute(_RUNS_INSERT, (self._account,))
                row = await (await db.execute(_RUNS_READ, (self._account,))).fetchone()
                assert row is not None
                old, now = bytes(row[0]), float(row[1])
                new = change(old, now * speed)
                if new != old:
                    await db.execute(_RUNS_WRITE, (new, self._account))
        except psycopg.Error as error:
            raise self._schema.explain(error) from error


def _placeholders(sql: str) -> bytes:
    """Return a statement with psycopg's placeholders instead of `?`."""
    return sql.replace("?", "%s").encode()
