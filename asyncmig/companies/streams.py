"""Pass a download on while it arrives: to object storage or a browser, without a disk.

What was passed on cannot be taken back. So any fault of a body after its first byte, including a wrong number of
rows, is raised where the iterator would otherwise end.
"""

import zipfile
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from io import RawIOBase
from typing import TYPE_CHECKING, final

from asyncmig._io.threads import in_thread
from asyncmig._io.transport import Answer, Lost
from asyncmig.companies.fetch import Fetch, can_do_without, is_no_archive, no_sheets
from asyncmig.companies.wire import Sheet
from asyncmig.customers.file_names import file_names
from asyncmig.errors import ApiError, NoAnswer, TruncatedDownload
from asyncmig.transfers.bound import Bound
from asyncmig.transfers.recount import Recounter

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

__all__ = ["stream_all", "stream_sheet"]

_ALL = "all sheets"
_END, _LONGEST_END = b"PK\x05\x06", 22 + 65_535
"""The record that ends a ZIP archive, and its largest size in bytes (APPNOTE.TXT, 4.3.16)."""


@asynccontextmanager
async def stream_sheet(fetch: Fetch, sheet: Sheet) -> AsyncGenerator[AsyncIterator[bytes]]:
    """Yield an iterator over the CSV of one sheet."""
    async with AsyncExitStack() as stack:
        answer = await fetch.opened(sheet, stack)
        yield await stack.enter_async_context(aclosing(_checked(fetch, sheet, answer)))


@asynccontextmanager
async def stream_all(fetch: Fetch, sheets: Sequence[Sheet]) -> AsyncGenerator[AsyncIterator[bytes]]:
    """Yield an iterator over a ZIP of all sheets: the server's, or one built here from the single sheets."""
    async with AsyncExitStack() as stack:
        answer, none_here = await _archive(fetch, sheets, stack)
        chunks = (
            _whole(fetch, sheets, answer)
            if answer is not None
            else _zipped(fetch, sheets, none_here=none_here)
        )
        if answer is None and not sheets:
            raise no_sheets()
        yield await stack.enter_async_context(aclosing(chunks))


async def _archive(
    fetch: Fetch, sheets: Sequence[Sheet], stack: AsyncExitStack
) -> tuple[Answer | None, bool]:
    """Return the archive, if there is one, and whether the server says that it has none."""
    if not fetch.archives:
        return None, True
    try:
        return await fetch.opened(None, stack), False
    except (ApiError, NoAnswer) as error:
        if not can_do_without(error, sheets):
            raise
        return None, is_no_archive(error)


async def _chunks(name: str, answer: Answer) -> AsyncGenerator[bytes]:
    try:
        async for chunk in answer.chunks():
            yield chunk
    except Lost as lost:
        raise TruncatedDownload(name, lost.reason) from lost


async def _checked(fetch: Fetch, sheet: Sheet, answer: Answer) -> AsyncGenerator[bytes]:
    """Yield the bytes of a sheet. Raises for too many rows, or at the end if the sheet cannot be complete."""
    name, records = sheet.name or sheet.id, Recounter()
    bound = Bound(rows=fetch.expected.most_rows(name, sheet))
    async with aclosing(_chunks(name, answer)) as chunks:
        async for chunk in chunks:
            records.feed(chunk)
            if reason := bound.exceeded(len(chunk), [count.rows for count in records.counts()]):
                raise TruncatedDownload(name, reason)
            yield chunk
    fetch.expected.check(name, sheet, records)


async def _whole(fetch: Fetch, sheets: Sequence[Sheet], answer: Answer) -> AsyncGenerator[bytes]:
    """Yield the bytes of an archive. Raises at the end unless its last record says that it ends there."""
    size, tail = 0, b""
    bound = Bound(rows=None, size=fetch.expected.most_in_archive(len(sheets)))
    async with aclosing(_chunks(_ALL, answer)) as chunks:
        async for chunk in chunks:
            size += len(chunk)
            if reason := bound.exceeded(len(chunk)):
                raise TruncatedDownload(_ALL, reason)
            tail = (tail + chunk)[-_LONGEST_END:]
            yield chunk
    if not _ends(tail, size):
        raise TruncatedDownload(_ALL, "not a whole ZIP archive (its end is missing)")


def _ends(tail: bytes, size: int) -> bool:
    """Return whether a ZIP archive of `size` bytes can end with these bytes: a directory, and the record that
    locates it.
    """
    at = tail.rfind(_END)
    if at < 0 or len(tail) - at < 22:
        return False
    length, start, comment = (
        int.from_bytes(tail[at + begin : at + end], "little") for begin, end in ((12, 16), (16, 20), (20, 22))
    )
    if at + 22 + comment != len(tail):
        return False
    is_zip64 = 0xFFFF_FFFF in (length, start) and tail[:at][-20:].startswith(b"PK\x06\x07")
    return is_zip64 or start + length + 22 + comment <= size


async def _zipped(fetch: Fetch, sheets: Sequence[Sheet], *, none_here: bool) -> AsyncGenerator[bytes]:
    """Yield a ZIP archive that is built from the single sheets while they arrive."""
    outlet = _Outlet()
    names = file_names(sheet.name or sheet.id for sheet in sheets)
    with zipfile.ZipFile(outlet, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for sheet, name in zip(sheets, names, strict=True):
            with archive.open(f"{name}.csv", "w", force_zip64=True) as entry:
                async with stream_sheet(fetch, sheet) as chunks:
                    async for chunk in chunks:
                        await in_thread(entry.write, chunk)
                        if ready := outlet.taken():
                            yield ready
    if none_here:
        fetch.no_archives()
    yield outlet.taken()


@final
class _Outlet(RawIOBase):
    """A write-only file that returns what was written to it."""

    def __init__(self) -> None:
        self._held = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: "ReadableBuffer", /) -> int:
        before = len(self._held)
        self._held += memoryview(data)
        return len(self._held) - before

    def taken(self) -> bytes:
        """Return the bytes written since the last call."""
        taken, self._held = bytes(self._held), bytearray()
        return taken
