"""One download request: the archive of all sheets, or one sheet as CSV."""

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import final

from asyncmig._io.attempts import Attempts
from asyncmig._io.call import Call
from asyncmig._io.context import SessionContext
from asyncmig._io.transport import Response
from asyncmig.companies import routes
from asyncmig.companies.expected import Expected
from asyncmig.companies.wire import Sheet
from asyncmig.customers.outcome import RowFilter
from asyncmig.errors import (
    ApiError,
    AsyncmigError,
    AuthError,
    NotFound,
)

__all__ = ["Fetch", "ServerTraits", "can_do_without", "is_no_archive", "no_sheets"]

_NO_ARCHIVE = frozenset({400, 404, 405, 501})


@final
@dataclass(slots=True)
class ServerTraits:
    """What the downloads of a session have shown about its server."""

    has_archives: bool = True
    """False once the server has refused the archive of all sheets and sent the single sheets."""
    ends_lines: bool = True
    """False once a complete sheet arrived twice without a line end at its end."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Fetch:
    """The parameters of a download: company, filter, rank, and the expected rows."""

    context: SessionContext
    company_id: str
    row_filter: RowFilter
    expected: Expected
    rank: float
    checks: Sequence[Callable[[Path], None]] = ()
    """Called with the final path of each file before it is renamed to it. An exception prevents that."""

    @property
    def traits(self) -> ServerTraits:
        """What is known about the server; shared by all downloads of the session."""
        return self.context.kept(ServerTraits)

    def exchange(self, sheet: Sheet | None) -> AbstractAsyncContextManager[Response]:
        """Send one request and yield the response at its headers. None as the sheet requests the archive."""
        query = {**({} if sheet is None else {"sheet_id": sheet.id}), "filter": self.row_filter}
        call = Call(endpoint=routes.DOWNLOAD, ids={"id": self.company_id}, query=query, rank=self.rank)
        return self.context.caller.stream(call)

    def repeated(
        self,
        on: tuple[type[AsyncmigError], ...] = (),
        *,
        unless: Callable[[AsyncmigError], bool] | None = None,
    ) -> Attempts:
        """Return the attempts of one step of this download."""
        return self.context.caller.repeated(routes.DOWNLOAD, {"id": self.company_id}, on=on, unless=unless)


def is_no_archive(error: AsyncmigError) -> bool:
    """Return whether this error may mean that the server has no archive. A 404 may also concern the company."""
    return isinstance(error, ApiError) and error.status in _NO_ARCHIVE


def can_do_without(error: AsyncmigError, sheets: Sequence[Sheet]) -> bool:
    """Return whether the single sheets may be available although the archive failed with this error."""
    if isinstance(error, AuthError):
        return False
    return bool(sheets) or is_no_archive(error)


def no_sheets() -> NotFound:
    """Return the error for a company without an archive and without known sheets."""
    return NotFound("GET", routes.DOWNLOAD.template, 404, "no ZIP here, and no sheet ids are known")
