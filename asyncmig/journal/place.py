"""The place of a journal as users name it: a file, the address of a PostgreSQL, or an environment variable with
one."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import final

from asyncmig._core.arguments import checked_call
from asyncmig._core.server_address import Server, is_postgres, parse_server
from asyncmig.errors import InvalidInput
from asyncmig.journal.database import DatabaseJournal, state_file
from asyncmig.journal.lease import DURATION
from asyncmig.journal.sqlite import Journal
from asyncmig.journal.sqlite_file import check_is_path

__all__ = ["JournalPlace", "open_journal"]


@final
@dataclass(frozen=True, repr=False)  # the text may contain a password
class JournalPlace:
    """The place of a journal.

    `text`: the path of a file, the address of a PostgreSQL (a URL or `key=value` pairs), or the name of an
    environment variable. A name counts as a variable only if the variable holds the address of a PostgreSQL;
    otherwise it is the path of a file. The properties raise `InvalidInput`, which shows no secret, for the address of
    another server and for an invalid address.
    """

    text: str

    @property
    def _variable(self) -> str | None:
        """The address in the environment variable that `text` names; None if it names none."""
        held = os.environ.get(self.text, "")
        return held if is_postgres(held) else None

    @property
    def server(self) -> Server | None:
        """The PostgreSQL; None for a file."""
        held = self._variable
        if held is not None:
            return parse_server(self.text, held, "postgres")
        if is_postgres(self.text):
            return parse_server("journal", self.text, "postgres")
        check_is_path(self.text)
        return None

    @property
    def path(self) -> Path | None:
        """The file; None for a database."""
        return Path(self.text) if self.server is None else None

    @property
    def shows_password(self) -> bool:
        """Whether `text` itself contains a password."""
        server = self.server
        return server is not None and self._variable is None and server.has_secret

    def beside(self, suffix: str) -> Path:
        """Return the path of a file that belongs to the journal: beside a journal file, or `state_file` for a
        database."""
        server = self.server
        if server is not None:
            return state_file(server, suffix)
        path = Path(self.text)
        return path.parent / f"{path.name}.{suffix}"

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return "<JournalPlace>"


@checked_call
def open_journal(
    place: str | Path | JournalPlace,
    *,
    holder: str | None = None,
    lease: float = DURATION,
    read_only: bool = False,
) -> DatabaseJournal:
    """Return the journal in a file or in a PostgreSQL database. Enter it with `async with`.

    `place`: the path of a file, the address of a PostgreSQL (a URL or `key=value` pairs; needs the extra `postgres`),
    or the name of an environment variable that holds such an address. In a database, the journal is in the schema
    `asyncmig`. `holder`, `lease` (real seconds) and `read_only`: see `Journal`. Raises `InvalidInput` for an invalid
    address, for the address of another server, and if the extra `postgres` is missing.
    """
    place = place if isinstance(place, JournalPlace) else JournalPlace(str(place))
    server = place.server
    if server is None:
        return Journal(place.text, holder=holder, lease=lease, read_only=read_only)
    try:
        from asyncmig.journal.postgres import PostgresJournal  # imported here because psycopg is optional
    except ModuleNotFoundError as error:
        reason = "needs the extra `postgres`: pip install 'asyncmig[postgres]'"
        raise InvalidInput("journal", str(server), reason) from error
    return PostgresJournal(server.text, holder=holder, lease=lease, read_only=read_only)
