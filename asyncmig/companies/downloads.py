"""Download a company's sheets to disk. Each file is complete or does not exist."""

import hashlib
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from asyncmig._io.threads import WriteBehind, in_thread, write_all
from asyncmig.companies.expected import Expected
from asyncmig.companies.fetch import TRANSIENT, Fetch, can_do_without, is_no_archive, no_sheets, refuse_page
from asyncmig.companies.wire import Sheet
from asyncmig.customers.file_names import file_names
from asyncmig.customers.lookup import called
from asyncmig.customers.outcome import Downloaded
from asyncmig.errors import ApiError, AsyncmigError, NoAnswer, TruncatedDownload
from asyncmig.transfers.bound import Bound
from asyncmig.transfers.part import CHUNK, Part, Repeats, may_take

__all__ = ["download"]

_ALL = "all sheets"
_DIRECTORY = 4 * 1024 * 1024
"""Largest size, in bytes, of an archive's directory, which is read into memory. 40,000 members fit."""
_MORE_SHEETS = 100
"""How many unknown sheets an archive may contain. Each sheet needs an open file."""


async def download(
    fetch: Fetch, sheets: Sequence[Sheet], folder: Path, *, among: Sequence[Sheet], whole: bool
) -> list[Downloaded]:
    """Download `sheets` to `folder/SHEET.csv`. `whole`: they are all sheets of the company. `among`: all known
    sheets.

    A sheet has the same file name whichever other sheets are downloaded with it. All sheets come in one ZIP if
    the server offers it. Everything is downloaded and checked before any file is put in place.

    Raises `TruncatedDownload` if the last attempt still disagrees with the report, or if the same wrong bytes
    came eight times; `InvalidInput` if a file would replace an input.
    """
    attempts, repeats = fetch.repeated((TruncatedDownload,), unless=_is_final), Repeats()
    archived = whole and len(sheets) != 1
    while True:
        async with attempts:
            parts, none_here = None, False
            with ExitStack() as stack:
                if archived and fetch.archives:
                    archived = not sheets  # a repeat fetches the sheets one by one, if they are known
                    try:
                        parts = await _fetch_archive(fetch, sheets, folder, stack, repeats)
                    except (ApiError, NoAnswer, TruncatedDownload) as error:
                        if not can_do_without(error, sheets):
                            raise
                        none_here = is_no_archive(error)
                if parts is None:
                    parts = _parts(sheets, among, folder, stack, repeats)
                    for sheet, part in zip(sheets, parts, strict=True):
                        await _fetch_sheet(fetch, sheet, part)
                    if none_here:
                        fetch.no_archives()
                if whole:
                    await in_thread(_check_sum, fetch.expected, parts, repeats)
                return await in_thread(_commit, parts, fetch.checks)


def _parts(
    sheets: Sequence[Sheet], among: Sequence[Sheet], folder: Path, stack: ExitStack, repeats: Repeats
) -> list[Part]:
    """Open a file for each sheet."""
    if not sheets:
        raise no_sheets()
    every = {sheet.id: sheet.name or sheet.id for sheet in (*among, *sheets)}
    names = dict(zip(every, file_names(every.values()), strict=True))
    return [
        stack.enter_context(Part(sheet.name or sheet.id, folder / f"{names[sheet.id]}.csv", repeats))
        for sheet in sheets
    ]


async def _fetch_sheet(fetch: Fetch, sheet: Sheet, part: Part) -> None:
    attempts = fetch.repeated(TRANSIENT, unless=_is_final)
    while True:
        async with attempts:
            part.restart(fetch.expected.most_rows(part.sheet, sheet))
            try:
                await _receive(fetch, sheet, part)
            except NoAnswer as error:
                raise await in_thread(part.broken_off, error) from None
            await in_thread(part.check, partial(fetch.expected.check, part.sheet, sheet))
            if not part.ends_with_line_end and fetch.ends_lines and fetch.expected.is_exact([sheet]):
                await in_thread(part.check_unended_line)
                fetch.no_line_ends()
            return


async def _receive(fetch: Fetch, sheet: Sheet, part: Part) -> None:
    with part.naming():
        async with fetch.exchange(sheet) as answer, WriteBehind(part.file) as file:
            refuse_page(answer)
            async for chunk in answer.chunks():
                await file.write(chunk)
                if part.count(chunk):
                    await file.settled()
                    await in_thread(part.check_bound)


async def _fetch_archive(
    fetch: Fetch, sheets: Sequence[Sheet], folder: Path, stack: ExitStack, repeats: Repeats
) -> list[Part] | None:
    """Download all sheets as one archive. Return None if a sheet is missing in it."""
    attempts = fetch.repeated(TRANSIENT, unless=lambda error: _is_final(error) or is_no_archive(error))
    while True:
        async with attempts:
            with tempfile.TemporaryFile(buffering=0) as archive:
                bound = _archive_bound(fetch, len(sheets))
                async with fetch.exchange(None) as answer, WriteBehind(archive) as file:
                    refuse_page(answer)
                    async for chunk in answer.chunks():
                        if reason := bound.exceeded(len(chunk)):
                            raise repeats.too_much(_ALL, reason)
                        await file.write(chunk)
                return await in_thread(_unpack, fetch, archive, sheets, folder, stack, repeats)


def _archive_bound(fetch: Fetch, sheets: int) -> Bound:
    free = may_take(Path(tempfile.gettempdir()))
    most = fetch.expected.most_in_archive(sheets)
    return Bound(rows=None, size=free if most is None else min(free, most))


def _unpack(
    fetch: Fetch,
    archive: IO[bytes],
    sheets: Sequence[Sheet],
    folder: Path,
    stack: ExitStack,
    repeats: Repeats,
) -> list[Part] | None:
    try:
        with _whole():
            _check_directory(archive)
            content = zipfile.ZipFile(archive)
            entries = [entry for entry in content.infolist() if _is_sheet(entry)]
            if len(entries) > len(sheets) + _MORE_SHEETS:
                raise ValueError(f"it has {len(entries)} sheets")
        titles = [PurePosixPath(entry.filename).name[: -len(".csv")] for entry in entries]
        missing = Counter(sheet.name.casefold() for sheet in sheets)
        missing.subtract(title.casefold() for title in titles)
        if not entries or any(count > 0 for count in missing.values()):
            return None
        parts = [
            stack.enter_context(Part(title, folder / f"{name}.csv", repeats))
            for title, name in zip(titles, file_names(titles), strict=True)
        ]
        for entry, part in zip(entries, parts, strict=True):
            _unpack_sheet(fetch.expected, content, entry, part, sheets)
        return parts
    except TruncatedDownload as error:
        if error.name == _ALL:
            archive.seek(0)
            digest = hashlib.sha256()
            for chunk in iter(partial(archive.read, CHUNK), b""):
                digest.update(chunk)
            raise repeats.wrong(error, digest.digest()) from error.__cause__
        raise


def _unpack_sheet(
    expected: Expected, content: zipfile.ZipFile, entry: zipfile.ZipInfo, part: Part, sheets: Sequence[Sheet]
) -> None:
    named = called(part.sheet, sheets)
    sheet = named[0] if len(named) == 1 else None
    part.restart(expected.most_rows(part.sheet, sheet))
    for chunk in _chunks(content, entry):
        with part.naming():
            write_all(part.file, [chunk])
        if part.count(chunk):
            part.check_bound()
    part.check(partial(expected.check, part.sheet, sheet))


def _check_directory(archive: IO[bytes]) -> None:
    """Raise `TruncatedDownload` for an archive whose directory is too large for memory: `zipfile` reads all of it.

    The sizes are in the records at the end of an archive (APPNOTE.TXT, 4.3.14 and 4.3.16).
    """
    size = archive.seek(0, 2)
    start = archive.seek(max(0, size - 22 - 65_535 - 76))
    tail = archive.read(size - start)
    at = tail.rfind(b"PK\x05\x06")
    if at < 0:
        return
    directory = int.from_bytes(tail[at + 12 : at + 16], "little")
    if at >= 76 and tail[at - 20 :].startswith(b"PK\x06\x07"):  # ZIP64
        directory = int.from_bytes(tail[at - 36 : at - 28], "little")
    if directory > _DIRECTORY:
        raise ValueError(f"its directory has {directory} bytes")


def _is_sheet(entry: zipfile.ZipInfo) -> bool:
    return entry.filename.lower().endswith(".csv") and not entry.filename.startswith("__MACOSX/")


def _chunks(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Generator[bytes]:
    with _whole(), archive.open(entry) as source:
        while chunk := source.read(CHUNK):
            yield chunk


@contextmanager
def _whole() -> Generator[None]:
    """Turn every kind of exception that `zipfile` raises for a damaged archive into one error."""
    try:
        yield
    except Exception as error:  # it raises a dozen kinds of exceptions, few of them documented
        raise TruncatedDownload(_ALL, f"not a whole ZIP archive ({error})") from error


def _check_sum(expected: Expected, parts: Sequence[Part], repeats: Repeats) -> None:
    """Compare the number of rows of all sheets together with the report; if they differ, count the rows in another
    way.
    """
    try:
        expected.check_sum([part.found for part in parts if part.found is not None])
    except TruncatedDownload as error:
        recounted = [part.recounted() for part in parts]
        for counts in zip(*(counter.counts() for counter, _ in recounted), strict=True):
            if any(count.cut for count in counts):
                continue
            with suppress(TruncatedDownload):
                expected.check_sum(counts)
                for part, count in zip(parts, counts, strict=True):
                    part.found = count
                return
        raise repeats.wrong(error, b"".join(digest for _, digest in recounted)) from None


def _is_final(error: AsyncmigError) -> bool:
    return isinstance(error, TruncatedDownload) and error.is_final


def _commit(parts: Sequence[Part], checks: Sequence[Callable[[Path], None]]) -> list[Downloaded]:
    for part in parts:
        for check in checks:
            check(part.path)
    return [part.commit() for part in parts]
