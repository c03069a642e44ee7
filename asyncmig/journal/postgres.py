"""A journal in PostgreSQL, for workers on many machines; needs the extra `postgres`.

    async with PostgresJournal("postgresql://db/migrations") as journal:
        async with asyncmig.Fleet(session, journal=journal) as fleet:
            ...

It promises what `asyncmig.journal.Journal` does, on the server's clock. A database that restarts is waited for; what
was being written then is written once. Tables stand in a schema of their own.
"""

import asyncio
import math
from collections.abc import AsyncGenerator, Callable
from datetime import UTC
from types import TracebackType
from typing import Self, TypeVar, final

import psycopg
from psycopg.rows import TupleRow
from psycopg.sql import SQL, Identifier

from asyncmig._core.arguments import checked_call
from asyncmig.errors import InvalidInput
from asyncmig.journal import Claim, Event
from asyncmig.journal.postgres_store import Address, PostgresStore
from asyncmig.journal.writer import Writer

__all__ = ["PostgresJournal"]

_T = TypeVar("_T")
_Connection = psycopg.Connection[TupleRow]
_LOOK_AGAIN = 30.0
"""Real seconds after which changes are looked for, told of or not."""
_PAUSE = 0.5
_STATES = "SELECT external_id, state FROM companies WHERE state IS NOT NULL ORDER BY id"
_EVENTS = """SELECT seq, external_id, at, kind, detail FROM events JOIN companies ON companies.id = company
    WHERE seq > %s AND (%s::text IS NULL OR external_id = %s) ORDER BY seq LIMIT %s"""
_BATCH = 1000


@final
class PostgresJournal:
    """A journal in a schema of a database, made where there is none; for one event loop, `async with`.

    `conninfo`: as libpq takes it, a URL or `key=value`. `holder` is a name for this process in the errors of others.
    `lease`: real seconds after which a holder that shows no life is replaced. `patience`: real seconds for which a
    database that is away is waited for; then calls raise `JournalError`.
    """

    __slots__ = ("_address", "_patience", "_writer")

    @checked_call
    def __init__(
        self,
        conninfo: str,
        *,
        schema: str = "asyncmig",
        holder: str | None = None,
        lease: float = 30.0,
        patience: float = 60.0,
    ) -> None:
        if not (lease > 0 and math.isfinite(lease)):
            raise InvalidInput("lease", lease, "must be a positive number of seconds")
        self._address, self._patience = Address(conninfo, schema), patience
        store = PostgresStore(self._address, label=holder or "", lease=lease, patience=patience)
        self._writer = Writer(store, self._address.text, lease=lease, threaded=True)

    def __repr__(self) -> str:
        return f"<PostgresJournal {self._address.text}>"

    async def __aenter__(self) -> Self:
        await self._writer.open()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        """Write what is under way, give up every claim, disconnect."""
        await self._writer.close()

    async def claim(self, external_id: str) -> Claim:
        """Take a company, known or new; see `JournalPort.claim`. Cancelled, it is given back."""
        return Claim(self._writer, self._address.text, await self._writer.claim(external_id))

    async def states(self) -> dict[str, bytes]:
        """Return the state of each company that has one, the oldest company first. Raises `JournalError`."""
        rows = await self._read(lambda db: db.execute(_STATES).fetchall())
        return dict(rows)

    async def events(
        self, external_id: str | None = None, *, after: int = 0, limit: int | None = None
    ) -> list[Event]:
        """Return the events after number `after`, in order, at most `limit`. Raises `JournalError`."""
        query = (after, external_id, external_id, limit)
        return [_event(row) for row in await self._read(lambda db: db.execute(_EVENTS, query).fetchall())]

    async def changes(self, *, after: int | None = None) -> AsyncGenerator[Event]:
        """Yield each event as soon as it is committed by anybody, for ever; those after number `after` first.

        Without `after` it begins with what comes next. Nothing is missed while the connection is away. Raises
        `JournalError` for a journal that is gone or may not be read.
        """
        loop = asyncio.get_running_loop()
        speed = float(getattr(loop, "speed", 1.0))
        while True:
            try:
                async with await psycopg.AsyncConnection.connect(**self._address.options()) as db:  # type: ignore[arg-type]
                    await db.execute(SQL("LISTEN {}").format(Identifier(self._address.channel)))
                    while True:
                        if after is None:
                            row = await (await db.execute("SELECT last FROM journal")).fetchone()
                            after = int(row[0]) if row else 0
                        rows = await (await db.execute(_EVENTS, (after, None, None, _BATCH))).fetchall()
                        for row in rows:
                            event = _event(row)
                            after = event.seq
                            yield event
                        if len(rows) < _BATCH:
                            async for _ in db.notifies(timeout=_LOOK_AGAIN * speed, stop_after=1):
                                pass
            except psycopg.OperationalError:
                await asyncio.sleep(_PAUSE * speed)
            except psycopg.Error as error:
                raise self._address.explain(error) from error

    async def _read(self, query: Callable[[_Connection], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(None, self._query, query)

    def _query(self, query: Callable[[_Connection], _T]) -> _T:
        try:
            with self._address.connect() as db:
                return query(db)
        except psycopg.Error as error:
            raise self._address.explain(error) from error


def _event(row: TupleRow) -> Event:
    seq, external_id, at, kind, detail = row
    text = at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return Event(seq, external_id, text, kind, detail)
