"""The run slots of an account in PostgreSQL, for processes that share no other store."""

from collections.abc import Callable
from typing import final

import psycopg

from asyncmig._core.run_table import Reach
from asyncmig.journal.postgres_schema import PostgresSchema

__all__ = ["PostgresRuns"]

_NAME = "INSERT INTO run_slots VALUES (%s, '') ON CONFLICT (account) DO NOTHING"
_READ = """SELECT state, extract(epoch FROM clock_timestamp())::float8
    FROM run_slots WHERE account = %s FOR UPDATE"""
_WRITE = "UPDATE run_slots SET state = %s WHERE account = %s"


@final
class PostgresRuns:
    """One row of the journal's database; see `asyncmig._core.run_table.RunStore`."""

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
                await db.execute(_NAME, (self._account,))
                row = await (await db.execute(_READ, (self._account,))).fetchone()
                assert row is not None
                old, now = bytes(row[0]), float(row[1])
                new = change(old, now * speed)
                if new != old:
                    await db.execute(_WRITE, (new, self._account))
        except psycopg.Error as error:
            raise self._schema.explain(error) from error
