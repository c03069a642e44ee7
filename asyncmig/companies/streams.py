"""Hand a download on while it comes: to object storage, to a browser, without a disk.

What has been handed on cannot be taken back. So whatever is wrong with a body after its first byte, at the latest a
number of rows that is not the reported one, is raised where the iterator would otherwise have ended.
"""

import zipfile
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from io import RawIOBase
from typing import TYPE_CHECKING, final

from asyncmig._io.threads import in_thread
from asyncmig._io.transport import Answer, Lost
from asyncmig.companies.expected import Bound
from asyncmig.companies.fetch import Fetch, can_do_without, is_no_archive, no_sheets
from asyncmig.companies.recount import Recounter
from asyncmig.companies.wire import Sheet
from asyncmig.customers.file_names import file_names
from asyncmig.errors import ApiError, NoAnswer, TruncatedDownload

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

__all__ = ["stream_all", "stream_sheet"]

_ALL = "all sheets"
_END, _LONGEST_END = b"PK\x05\x06", 22 + 65_535
"""The record that ends a ZIP archive, and how long it can be (APPNOTE.TXT, 4.3.16)."""


@asynccontextmanager
async def stream_sheet(fetch: Fetch, sheet: Sheet) -> AsyncGenerator[AsyncIterator[bytes]]:
    """Yield an iterator over the CSV of one sheet."""
    async with AsyncExitStack() as stack:
        answer = await fetch.opened(sheet, stack)
        yield await stack.enter_async_context(aclosing(_checked(fetch, sheet, answer)))


@asynccontextmanager
async def stream_all(fetch: Fetch, sheets: Sequence[Sheet]) -> AsyncGenerator[AsyncIterator[bytes]]:
    """Yield an iterator over a ZIP of all sheets: the server's, or one that is made here of the single sheets."""
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
    """Return the archive, if it comes, and whether the server says that it has none."""
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
    """Yield the bytes of a sheet; raise when more come than there can be, or at the end unless it can be whole."""
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
    """Yield the bytes of an archive, and raise at the end unless its last record says that it ends there."""
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
    """Return whether a ZIP archive of `size` bytes may end with this: a directory, and the record that says where."""
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
    """Yield a ZIP archive that is made of the single sheets while they come."""
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
    """A file that can only be written to, and hands out what was."""

    def __init__(self) -> None:
        self._held = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: "ReadableBuffer", /) -> int:
        before = len(self._held)
        self._held += memoryview(data)
        return len(self._held) - before

    def taken(self) -> bytes:
        """Return what was written since the last time."""
        taken, self._held = bytes(self._held), bytearray()
        return taken
