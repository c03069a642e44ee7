"""Pass a download on while it arrives, for example to object storage or a browser, without a disk.

Bytes that were passed on cannot be taken back. So if a body breaks off or has a wrong number of rows, the iterator
raises an error instead of ending.
"""

import zipfile
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager

from asyncmig._core.retry import TRANSIENT
from asyncmig._io.threads import in_thread
from asyncmig._io.transport import Lost, Response
from asyncmig.companies.archive import LONGEST_END, ZipOutput, is_whole_end
from asyncmig.companies.downloads import Fetch, can_do_without, is_no_archive, no_sheets
from asyncmig.companies.expected import ALL_SHEETS
from asyncmig.companies.wire import Sheet
from asyncmig.customers.files import file_names
from asyncmig.errors import ApiError, NoAnswer, TruncatedDownload
from asyncmig.transfers.part import Bound
from asyncmig.transfers.recount import Recounter

__all__ = ["stream_all", "stream_sheet"]


@asynccontextmanager
async def stream_sheet(fetch: Fetch, sheet: Sheet) -> AsyncGenerator[AsyncIterator[bytes]]:
    """Yield an iterator over the CSV of one sheet."""
    async with AsyncExitStack() as stack:
        answer = await _opened(fetch, sheet, stack)
        yield await stack.enter_async_context(aclosing(_checked_sheet(fetch, sheet, answer)))


@asynccontextmanager
async def stream_all(fetch: Fetch, sheets: Sequence[Sheet]) -> AsyncGenerator[AsyncIterator[bytes]]:
    """Yield an iterator over a ZIP of all sheets: the server's, or one built here from the single sheets.

    Raises `NotFound` if the server has no archive and no sheet is known.
    """
    async with AsyncExitStack() as stack:
        answer, is_refused = None, False
        if fetch.traits.has_archives:
            try:
                answer = await _opened(fetch, None, stack)
            except (ApiError, NoAnswer) as error:
                if not can_do_without(error, sheets):
                    raise
                is_refused = is_no_archive(error)
        if answer is not None:
            chunks = _checked_archive(fetch, sheets, answer)
        elif sheets:
            chunks = _built_archive(fetch, sheets, is_refused=is_refused)
        else:
            raise no_sheets()
        yield await stack.enter_async_context(aclosing(chunks))


async def _opened(fetch: Fetch, sheet: Sheet | None, stack: AsyncExitStack) -> Response:
    """Return the response at its headers, after as many attempts as needed. `stack` closes it."""
    attempts = fetch.repeated(TRANSIENT, unless=is_no_archive if sheet is None else None)
    while True:
        async with attempts, AsyncExitStack() as opening:
            answer = await opening.enter_async_context(fetch.exchange(sheet))
            stack.push_async_callback(opening.pop_all().aclose)
            return answer


async def _chunks(name: str, answer: Response) -> AsyncGenerator[bytes]:
    try:
        async for chunk in answer.chunks():
            yield chunk
    except Lost as lost:
        raise TruncatedDownload(name, lost.reason) from lost


async def _checked_sheet(fetch: Fetch, sheet: Sheet, answer: Response) -> AsyncGenerator[bytes]:
    """Yield the bytes of a sheet. Raises for too many rows, or at the end if the sheet cannot be complete."""
    name, records = sheet.name or sheet.id, Recounter()
    bound = Bound(rows=fetch.expected.most_rows(name, sheet))
    async with aclosing(_chunks(name, answer)) as chunks:
        async for chunk in chunks:
            records.feed(chunk)
            if reason := bound.exceeded(len(chunk), [count.rows for count in records.counts()]):
                raise TruncatedDownload(name, reason)
            yield chunk
    fetch.expected.check(name, sheet, records.counts())


async def _checked_archive(fetch: Fetch, sheets: Sequence[Sheet], answer: Response) -> AsyncGenerator[bytes]:
    """Yield the bytes of the server's archive. Raises for too many bytes, or at the end if its end is missing."""
    size, tail = 0, b""
    bound = Bound(rows=None, size=fetch.expected.most_in_archive(len(sheets)))
    async with aclosing(_chunks(ALL_SHEETS, answer)) as chunks:
        async for chunk in chunks:
            size += len(chunk)
            if reason := bound.exceeded(len(chunk)):
                raise TruncatedDownload(ALL_SHEETS, reason)
            tail = (tail + chunk)[-LONGEST_END:]
            yield chunk
    if not is_whole_end(tail, size):
        raise TruncatedDownload(ALL_SHEETS, "not a whole ZIP archive (its end is missing)")


async def _built_archive(fetch: Fetch, sheets: Sequence[Sheet], *, is_refused: bool) -> AsyncGenerator[bytes]:
    """Yield a ZIP archive that is built from the single sheets while they arrive."""
    output = ZipOutput()
    names = file_names(sheet.name or sheet.id for sheet in sheets)
    with zipfile.ZipFile(output, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for sheet, name in zip(sheets, names, strict=True):
            with archive.open(f"{name}.csv", "w", force_zip64=True) as entry:
                async with stream_sheet(fetch, sheet) as chunks:
                    async for chunk in chunks:
                        await in_thread(entry.write, chunk)
                        if ready := output.taken():
                            yield ready
    if is_refused:
        fetch.traits.has_archives = False
    yield output.taken()
