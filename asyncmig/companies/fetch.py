"""One download request: the archive of all sheets, or one sheet as CSV."""

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import final

from asyncmig._io.attempts import Attempts
from asyncmig._io.call import Call
from asyncmig._io.context import SessionContext
from asyncmig._io.reply import is_html
from asyncmig._io.transport import Answer
from asyncmig.companies import routes
from asyncmig.companies.expected import Expected
from asyncmig.companies.state import ClientState
from asyncmig.companies.wire import Sheet
from asyncmig.customers.outcome import RowFilter
from asyncmig.errors import (
    ApiError,
    AsyncmigError,
    AuthError,
    NoAnswer,
    NotFound,
    ServerError,
    TruncatedDownload,
    UnexpectedReply,
)

__all__ = ["TRANSIENT", "Fetch", "can_do_without", "is_no_archive", "no_sheets", "refuse_page"]

TRANSIENT = (NoAnswer, ServerError, UnexpectedReply, TruncatedDownload)
"""Errors that another attempt may avoid: the server is unavailable, or a proxy responded in its place."""
_NO_ZIP = frozenset({400, 404, 405, 501})


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
    """Called with each file before it is put in place. An exception from them prevents that."""

    @property
    def ids(self) -> dict[str, str]:
        """The ids in the route."""
        return {"id": self.company_id}

    def exchange(self, sheet: Sheet | None) -> AbstractAsyncContextManager[Answer]:
        """Send one request and yield the response at its headers. Without a sheet, it requests the archive of all
        sheets.

        `refuse_page` must check the response before its body is used.
        """
        query = {} if sheet is None else {"sheet_id": sheet.id}
        call = Call(
            endpoint=routes.DOWNLOAD,
            ids=self.ids,
            query={**query, "filter": self.row_filter},
            rank=self.rank,
        )
        return self.context.caller.stream(call)

    async def opened(self, sheet: Sheet | None, stack: AsyncExitStack) -> Answer:
        """Return a response that `stack` closes, after as many attempts as needed."""
        attempts = self.repeated(TRANSIENT, unless=is_no_archive if sheet is None else None)
        while True:
            async with attempts, AsyncExitStack() as opening:
                answer = await opening.enter_async_context(self.exchange(sheet))
                refuse_page(answer)
                stack.push_async_callback(opening.pop_all().aclose)
                return answer

    def repeated(
        self, on: tuple[type[AsyncmigError], ...], *, unless: Callable[[AsyncmigError], bool] | None = None
    ) -> Attempts:
        """Return the attempts of one step of this download."""
        return self.context.caller.repeated(routes.DOWNLOAD, self.ids, on=on, unless=unless)

    @property
    def archives(self) -> bool:
        """Whether this server may offer an archive of all sheets."""
        return self.context.kept(ClientState).has_archives

    def no_archives(self) -> None:
        """Remember that this server offers sheets but no archive of them."""
        self.context.kept(ClientState).has_archives = False

    @property
    def ends_lines(self) -> bool:
        """Whether this server may end the last line of each sheet: no sheet without that came twice."""
        return self.context.kept(ClientState).ends_lines

    def no_line_ends(self) -> None:
        """Remember that sheets of this server are whole although their last line has no end."""
        self.context.kept(ClientState).ends_lines = False


def refuse_page(answer: Answer) -> None:
    """Raise `UnexpectedReply` for an HTML page, which a proxy may have sent instead of the file."""
    if is_html(answer):
        raise UnexpectedReply("GET", routes.DOWNLOAD.template, answer.status, "HTML instead of a file")


def is_no_archive(error: AsyncmigError) -> bool:
    """Return whether this error means that there is no archive of all sheets. A 404 may also concern the company."""
    return isinstance(error, ApiError) and error.status in _NO_ZIP


def can_do_without(error: AsyncmigError, sheets: Sequence[Sheet]) -> bool:
    """Return whether single sheets, which contain the same data, may be available although the archive is not."""
    if isinstance(error, AuthError):
        return False
    return bool(sheets) or is_no_archive(error)


def no_sheets() -> NotFound:
    """Return the error for a company without an archive and without known sheets."""
    return NotFound("GET", routes.DOWNLOAD.template, 404, "no ZIP here, and no sheet ids are known")
