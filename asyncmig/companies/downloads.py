"""Bring a company's sheets to disk: each file is whole, or not there at all."""

import glob
import os
import tempfile
import uuid
import zipfile
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import IO, Self, final

import msgspec

from asyncmig._io.threads import WriteBehind, in_thread, write_all
from asyncmig.companies import routes
from asyncmig.companies.fetch import TRANSIENT, Fetch, can_do_without, is_no_archive, no_sheets
from asyncmig.companies.lookup import called
from asyncmig.companies.names import file_names
from asyncmig.companies.records import RecordCounter
from asyncmig.companies.wire import Sheet
from asyncmig.errors import ApiError, AsyncmigError, NoAnswer, TruncatedDownload

__all__ = ["Downloaded", "download"]

_CHUNK = 256 * 1024


class Downloaded(msgspec.Struct, frozen=True, kw_only=True):
    """One sheet on disk."""

    sheet: str
    path: str
    rows: int
    """Records below the header."""
    size: int
    """Bytes."""


@final
class _Part:
    """A file that is written beside its place, and takes it only when it is whole.

    Its name is its own: a process that was paused for so long that another one took over must not write into
    what that one delivers. What a process that was killed has left is removed.
    """

    __slots__ = ("_part", "_path", "_size", "file", "records", "sheet")

    def __init__(self, sheet: str, path: Path) -> None:
        self.sheet = sheet
        self._path, self._part = path, path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")

    def __enter__(self) -> Self:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        for left in self._path.parent.glob(f"{glob.escape(self._path.name)}.{'?' * 32}.part"):
            with suppress(OSError):
                left.unlink()
        self.file = self._part.open("xb", buffering=0)
        try:
            self.restart()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        try:
            with _naming(self._part):
                self.file.close()
        finally:
            self._part.unlink(missing_ok=True)

    def restart(self) -> None:
        """Forget what was written."""
        with _naming(self._part):
            self.file.seek(0)
            self.file.truncate()
        self.records, self._size = RecordCounter(), 0

    def naming(self) -> AbstractContextManager[None]:
        """Let an error of the disk say that it is about this file."""
        return _naming(self._part)

    def count(self, chunk: bytes) -> None:
        """Take note of bytes that are written."""
        self.records.feed(chunk)
        self._size += len(chunk)

    @property
    def path(self) -> Path:
        """Its place."""
        return self._path

    def commit(self) -> Downloaded:
        """Bring it to disk and put it in place. Blocks."""
        with _naming(self._part):
            os.fsync(self.file.fileno())
        self._part.replace(self._path)
        return Downloaded(sheet=self.sheet, path=str(self._path), rows=self.records.rows, size=self._size)


@contextmanager
def _naming(path: Path) -> Generator[None]:
    """Let an error of the disk say which file it is about."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


async def download(fetch: Fetch, sheets: Sequence[Sheet], folder: Path, *, whole: bool) -> list[Downloaded]:
    """Bring `sheets` to `folder/SHEET.csv`; `whole`: they are all that the company has.

    All of them come in one ZIP where the server offers that. Everything is fetched and checked before anything is
    put in place. Raises `TruncatedDownload` when what came and what was reported still disagree at the last
    attempt, `InvalidInput` if a file would replace an input.
    """
    tries = fetch.engine.caller.tries(routes.DOWNLOAD)
    archived = whole and len(sheets) != 1
    while True:
        try:
            with ExitStack() as stack:
                parts = await _fetch(fetch, sheets, folder, stack, archived)
                if whole:
                    fetch.expected.check_sum([part.records for part in parts])
                return await in_thread(_commit, parts, fetch.checks)
        except TruncatedDownload as error:
            trouble, archived = error, not sheets
        await tries.failed(trouble)


async def _fetch(
    fetch: Fetch, sheets: Sequence[Sheet], folder: Path, stack: ExitStack, archived: bool
) -> list[_Part]:
    none_here = False
    if archived and fetch.archives:
        try:
            parts = await _fetch_archive(fetch, sheets, folder, stack)
        except (ApiError, NoAnswer, TruncatedDownload) as error:
            if not can_do_without(error, sheets):
                raise
            none_here = isinstance(error, ApiError) and is_no_archive(error)
        else:
            if parts is not None:
                return parts
    if not sheets:
        raise no_sheets()
    names = file_names(sheet.name or sheet.id for sheet in sheets)
    parts = [
        stack.enter_context(_Part(sheet.name or sheet.id, folder / f"{name}.csv"))
        for sheet, name in zip(sheets, names, strict=True)
    ]
    for sheet, part in zip(sheets, parts, strict=True):
        await _fetch_sheet(fetch, sheet, part)
    if none_here:
        fetch.no_archives()
    return parts


async def _fetch_sheet(fetch: Fetch, sheet: Sheet, part: _Part) -> None:
    tries = fetch.engine.caller.tries(routes.DOWNLOAD)
    while True:
        try:
            part.restart()
            with part.naming():
                async with fetch.answer(sheet) as answer, WriteBehind(part.file) as file:
                    async for chunk in answer.chunks():
                        part.count(chunk)
                        await file.write(chunk)
            fetch.expected.check(part.sheet, sheet, part.records)
        except TRANSIENT as error:
            trouble: AsyncmigError = error
        else:
            return
        await tries.failed(trouble)


async def _fetch_archive(
    fetch: Fetch, sheets: Sequence[Sheet], folder: Path, stack: ExitStack
) -> list[_Part] | None:
    """Fetch all sheets as one archive; None if not all of them are in it."""
    tries = fetch.engine.caller.tries(routes.DOWNLOAD)
    while True:
        try:
            with tempfile.TemporaryFile(buffering=0) as archive:
                async with fetch.answer(None) as answer, WriteBehind(archive) as file:
                    async for chunk in answer.chunks():
                        await file.write(chunk)
                return await in_thread(_unpack, fetch, archive, sheets, folder, stack)
        except TRANSIENT as error:
            if isinstance(error, ApiError) and is_no_archive(error):
                raise
            trouble: AsyncmigError = error
        await tries.failed(trouble)


def _unpack(
    fetch: Fetch, archive: IO[bytes], sheets: Sequence[Sheet], folder: Path, stack: ExitStack
) -> list[_Part] | None:
    with _whole():
        content = zipfile.ZipFile(archive)
        entries = [entry for entry in content.infolist() if _is_sheet(entry)]
    titles = [PurePosixPath(entry.filename).name[: -len(".csv")] for entry in entries]
    missing = Counter(sheet.name.casefold() for sheet in sheets)
    missing.subtract(title.casefold() for title in titles)
    if not entries or any(count > 0 for count in missing.values()):
        return None
    names = file_names(titles)
    parts = [_Part(*each) for each in zip(titles, (folder / f"{n}.csv" for n in names), strict=True)]
    for entry, part in zip(entries, parts, strict=True):
        stack.enter_context(part)
        for chunk in _chunks(content, entry):
            part.count(chunk)
            with part.naming():
                write_all(part.file, [chunk])
        named = called(part.sheet, sheets)
        fetch.expected.check(part.sheet, named[0] if len(named) == 1 else None, part.records)
    return parts


def _is_sheet(entry: zipfile.ZipInfo) -> bool:
    return entry.filename.lower().endswith(".csv") and not entry.filename.startswith("__MACOSX/")


def _chunks(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Generator[bytes]:
    with _whole(), archive.open(entry) as source:
        while chunk := source.read(_CHUNK):
            yield chunk


@contextmanager
def _whole() -> Generator[None]:
    """Say that an archive is damaged, in whatever way `zipfile` stumbles over it."""
    try:
        yield
    except Exception as error:  # a dozen kinds, few of them documented
        raise TruncatedDownload("all sheets", f"not a whole ZIP archive ({error})") from error


def _commit(parts: Sequence[_Part], checks: Sequence[Callable[[Path], None]]) -> list[Downloaded]:
    for part in parts:
        for check in checks:
            check(part.path)
    return [part.commit() for part in parts]
