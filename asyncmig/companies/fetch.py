"""One download as the server gives it: the archive of all sheets, or one sheet as CSV."""

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import final

from asyncmig._io.attempts import Attempts
from asyncmig._io.caller import Call
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
"""What another attempt may mend: the server is away, or a proxy answered in its place."""
_NO_ZIP = frozenset({400, 404, 405, 501})


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Fetch:
    """What is asked for: whose rows, which of them, how urgently, and how many must come."""

    context: SessionContext
    company_id: str
    row_filter: RowFilter
    expected: Expected
    rank: float
    checks: Sequence[Callable[[Path], None]] = ()
    """Called with each file before it is put in place; they raise what keeps it from that."""

    @property
    def ids(self) -> dict[str, str]:
        """What stands in the route."""
        return {"id": self.company_id}

    def exchange(self, sheet: Sheet | None) -> AbstractAsyncContextManager[Answer]:
        """Send one request; yields the answer at its headers. Without a sheet it asks for the archive of all of them.

        `refuse_page` must see the answer before its body is used.
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
        """Return an answer that `stack` closes, after as many attempts as it takes."""
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
        """Whether this server may have an archive of all sheets: it was not seen to have none."""
        return self.context.kept(ClientState).has_archives

    def no_archives(self) -> None:
        """Remember that sheets can be downloaded here, and an archive of them cannot."""
        self.context.kept(ClientState).has_archives = False


def refuse_page(answer: Answer) -> None:
    """Raise `UnexpectedReply` for an HTML page, which a proxy may have sent instead of the file."""
    if is_html(answer):
        raise UnexpectedReply("GET", routes.DOWNLOAD.template, answer.status, "HTML instead of a file")


def is_no_archive(error: AsyncmigError) -> bool:
    """Return whether this says that there is no archive of all sheets; a 404 may also concern the company."""
    return isinstance(error, ApiError) and error.status in _NO_ZIP


def can_do_without(error: AsyncmigError, sheets: Sequence[Sheet]) -> bool:
    """Return whether the sheets one by one, which are the same data, may come where the archive does not."""
    if isinstance(error, AuthError):
        return False
    return bool(sheets) or is_no_archive(error)


def no_sheets() -> NotFound:
    """Return the error where there is neither an archive nor a sheet that is known."""
    return NotFound("GET", routes.DOWNLOAD.template, 404, "no ZIP here, and no sheet ids are known")
