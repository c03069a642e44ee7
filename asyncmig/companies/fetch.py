"""One download as the server gives it: the archive of all sheets, or one sheet as CSV."""

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import final

from asyncmig._io.attempts import RetryableFailure
from asyncmig._io.caller import Call
from asyncmig._io.context import SessionContext
from asyncmig._io.reply import is_html
from asyncmig._io.transport import Answer
from asyncmig.companies import routes
from asyncmig.companies.expected import Expected
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

__all__ = ["TRANSIENT", "Fetch", "can_do_without", "is_no_archive", "no_sheets"]

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

    @asynccontextmanager
    async def answer(self, sheet: Sheet | None) -> AsyncGenerator[Answer]:
        """Yield the answer at its headers, in one attempt; without a sheet that is the archive of all of them."""
        query = {} if sheet is None else {"sheet_id": sheet.id}
        call = Call(
            endpoint=routes.DOWNLOAD,
            ids=self.ids,
            query={**query, "filter": self.row_filter},
            rank=self.rank,
        )
        async with self.context.caller.stream(call) as answer:
            if is_html(answer):
                raise UnexpectedReply(
                    "GET", routes.DOWNLOAD.template, answer.status, "HTML instead of a file"
                )
            yield answer

    async def opened(self, sheet: Sheet | None, stack: AsyncExitStack) -> Answer:
        """Return an answer that `stack` closes, after as many attempts as it takes."""
        tries = self.context.caller.attempts(routes.DOWNLOAD, self.ids)
        while True:
            try:
                answer = await stack.enter_async_context(self.answer(sheet))
            except TRANSIENT as error:
                if sheet is None and isinstance(error, ApiError) and is_no_archive(error):
                    raise
                trouble: AsyncmigError = error
            else:
                await tries.succeeded()
                return answer
            await tries.failed(RetryableFailure(trouble))

    @property
    def archives(self) -> bool:
        """Whether this server may have an archive of all sheets: it was not seen to have none."""
        return "zip" not in self.context.missing

    def no_archives(self) -> None:
        """Remember that sheets can be downloaded here, and an archive of them cannot."""
        self.context.missing.add("zip")


def is_no_archive(error: ApiError) -> bool:
    """Return whether this says that there is no archive of all sheets; a 404 may mean the company, too."""
    return error.status in _NO_ZIP


def can_do_without(error: AsyncmigError, sheets: Sequence[Sheet]) -> bool:
    """Return whether the sheets one by one, which are the same data, may come where the archive does not."""
    if isinstance(error, AuthError):
        return False
    return bool(sheets) or (isinstance(error, ApiError) and is_no_archive(error))


def no_sheets() -> NotFound:
    """Return the error where there is neither an archive nor a sheet that is known."""
    return NotFound("GET", routes.DOWNLOAD.template, 404, "no ZIP here, and no sheet ids are known")
