"""A journal's schema in PostgreSQL: its address, its connections, its tables, and what its errors mean."""

import hashlib
import logging
import os
import re
from typing import final

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import TupleRow
from psycopg.sql import SQL, Identifier

from asyncmig._core.server_address import Server, parse_server
from asyncmig.errors import InvalidInput, JournalError, JournalUnavailable

__all__ = ["PostgresSchema"]

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
_RUN_SLOTS = "CREATE TABLE IF NOT EXISTS run_slots (account text PRIMARY KEY, state bytea NOT NULL)"
"""For the runs in progress. Earlier versions of asyncmig ignore this table."""
_BY_HOLDER = "CREATE INDEX companies_by_holder ON companies (holder) WHERE holder IS NOT NULL"
"""For the heartbeat, which queries the claims of its instance.

A journal of an earlier version of asyncmig gets this index when it is opened.
"""
_HAS_INSTRUCTIONS = (
    "SELECT 1 FROM pg_attribute WHERE attrelid = to_regclass('companies') AND attname = 'wanted'"
)
_INSTRUCTIONS = """
    ALTER TABLE companies ADD COLUMN wanted text, ADD COLUMN instruction bytea;
    CREATE INDEX companies_by_wanted ON companies (wanted) WHERE wanted IS NOT NULL;
"""
"""For the instructions about customers. Earlier versions of asyncmig ignore these columns."""
_CLEAN = """DELETE FROM holders WHERE renewed < clock_timestamp() - interval '1 day'
    AND instance NOT IN (SELECT holder FROM companies WHERE holder IS NOT NULL)"""
_HAS_SCHEMA = "SELECT 1 FROM pg_namespace WHERE nspname = %s"
_LONGEST_NAME = 63
"""The maximum length of a name in PostgreSQL, in bytes."""


def _checked_name(name: str) -> str:
    if not name.strip() or not name.isprintable() or ";" in name or len(name.encode()) > _LONGEST_NAME:
        raise InvalidInput(
            "schema", name, f"must be a name of at most {_LONGEST_NAME} bytes, without a semicolon"
        )
    if name.lower().startswith("pg_") or name == "$user":
        raise InvalidInput("schema", name, "is reserved by PostgreSQL")
    return name


@final
class PostgresSchema:
    """A database, the schema in it that holds the journal, and `text`, the journal's name in errors without secrets.

    Raises `InvalidInput` for an address or a schema name that PostgreSQL would not accept.
    """

    __slots__ = ("_options", "_writable", "name", "server", "text")

    def __init__(self, conninfo: str, name: str) -> None:
        self.server: Server = parse_server("conninfo", conninfo, "postgres")
        parts = self.server.checked("conninfo", conninfo_to_dict)
        self.name: str = _checked_name(name)
        self._options = str(parts.get("options") or "")
        # Connect to the host that accepts writes. A standby that is being promoted counts as unavailable.
        chosen = "target_session_attrs" in parts or "PGTARGETSESSIONATTRS" in os.environ
        self._writable: dict[str, str] = {} if chosen else {"target_session_attrs": "read-write"}
        self.text: str = f"postgresql://{parts.get('host') or 'localhost'}/{parts.get('dbname') or ''}#{name}"

    def __repr__(self) -> str:
        return f"<PostgresSchema {self.text}>"

    @property
    def channel(self) -> str:
        """The channel of change notifications. A name that is too long for PostgreSQL is replaced by its digest."""
        name = f"{self.name}_journal"
        return name if len(name.encode()) <= _LONGEST_NAME else hashlib.sha256(name.encode()).hexdigest()[:48]

    def options(self) -> dict[str, str | int | bool]:
        """Return the connection's options.

        The server aborts a transaction after one second without a statement. A client that was suspended during its
        transaction would otherwise keep the journal's lock.
        """
        quoted = '"' + self.name.replace('"', '""') + '"'
        path = re.sub(r"([\\\s])", r"\\\1", quoted)  # libpq splits at unescaped white space
        settings = f"-c search_path={path} -c idle_in_transaction_session_timeout=1000 -c lock_timeout=20000"
        return {
            "conninfo": self.server.text,
            "autocommit": True,
            "connect_timeout": 5,
            "tcp_user_timeout": 10_000,
            "options": f"{self._options} {settings}".strip(),
            **self._writable,
        }

    def connect(self) -> _Connection:
        """Open a connection. Raises `psycopg.OperationalError`."""
        return psycopg.connect(**self.options())  # type: ignore[arg-type]  # the values of the mapping have several types

    def explain(self, error: Exception) -> JournalError:
        """Return the error that callers see: `JournalUnavailable` if the same call may succeed later."""
        self.server.scrub(error)
        passes = isinstance(
            error,
            psycopg.OperationalError | psycopg.InterfaceError | psycopg.errors.ReadOnlySqlTransaction,
        )
        return (JournalUnavailable if passes else JournalError)(self.text, " ".join(str(error).split()))

    def prepare(self, db: _Connection) -> None:
        """Create the tables unless they exist. Raises `JournalError` for a journal of another version."""
        with db.transaction():
            db.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 7))", (self.channel,))
            if db.execute("SELECT to_regclass('journal')").fetchone() == (None,):
                self._check_no_other_case(db)
                if db.execute(_HAS_SCHEMA, (self.name,)).fetchone() is None:
                    db.execute(SQL("CREATE SCHEMA {}").format(Identifier(self.name)))
                db.execute(_TABLES)
            db.execute(_RUN_SLOTS)
            if db.execute("SELECT to_regclass('companies_by_holder')").fetchone() == (None,):
                db.execute(_BY_HOLDER)
            if db.execute(_HAS_INSTRUCTIONS).fetchone() is None:
                db.execute(_INSTRUCTIONS)
            row = db.execute("SELECT version FROM journal").fetchone()
            if row is None or row[0] != VERSION:
                why = f"is of version {row and row[0]}, and this version of asyncmig supports {VERSION}"
                raise JournalError(self.text, why)
            db.execute(_CLEAN)

    def _check_no_other_case(self, db: _Connection) -> None:
        """Refuse to create a journal if there is one under the same name in lower case.

        Earlier versions of asyncmig used the name in lower case.
        """
        name = self.name
        folded = Identifier(name.lower(), "journal").as_string(db)
        if name != name.lower() and db.execute("SELECT to_regclass(%s)", (folded,)).fetchone() != (None,):
            raise JournalError(
                self.text,
                f"there is a journal in the schema {name.lower()!r}: pass its name in lower case",
            )
