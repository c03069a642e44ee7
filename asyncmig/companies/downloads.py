"""Bring a company's sheets to disk: each file is whole, or not there at all.

A proxy may cut a body short and still answer 200 with a length that agrees. So the records that came are
counted and compared with what the completed import reported (`_expect`); the comparison is only right for a
company that has had a single import.
"""

import glob
import os
import tempfile
import uuid
import zipfile
import zlib
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import IO, Literal, Self, final

import msgspec

from asyncmig._io.caller import Call
from asyncmig._io.engine import Engine
from asyncmig._io.reply import is_html
from asyncmig._io.threads import in_thread
from asyncmig.companies import routes
from asyncmig.companies.names import file_names
from asyncmig.companies.records import RecordCounter
from asyncmig.companies.wire import ImportReport, Sheet
from asyncmig.errors import (
    ApiError,
    AsyncmigError,
    NoAnswer,
    NotFound,
    ServerError,
    TruncatedDownload,
    UnexpectedReply,
)

__all__ = ["Downloaded", "RowFilter", "download"]

RowFilter = Literal["valid", "all"]
_CHUNK = 256 * 1024
_TRANSIENT = (NoAnswer, ServerError, UnexpectedReply, TruncatedDownload)
_NO_ZIP = frozenset({400, 404, 405, 501})


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

    __slots__ = ("_file", "_part", "_path", "_size", "records", "sheet")

    def __init__(self, sheet: str, path: Path) -> None:
        self.sheet = sheet
        self._path, self._part = path, path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")

    def __enter__(self) -> Self:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        for left in self._path.parent.glob(f"{glob.escape(self._path.name)}.{'?' * 32}.part"):
            with suppress(OSError):
                left.unlink()
        self._file = self._part.open("xb")
        try:
            self.restart()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        try:
            with _naming(self._part):
                self._file.close()
        finally:
            self._part.unlink(missing_ok=True)

    def restart(self) -> None:
        """Forget what was written."""
        with _naming(self._part):
            self._file.seek(0)
            self._file.truncate()
        self.records, self._size = RecordCounter(), 0

    def write(self, chunk: bytes) -> None:
        with _naming(self._part):
            self._file.write(chunk)
        self.records.feed(chunk)
        self._size += len(chunk)

    def check(self, expected: int | None) -> None:
        """Raise `TruncatedDownload` unless what came can be the whole."""
        if self.records.cut:
            raise TruncatedDownload(self.sheet, "it ends inside a quoted cell")
        if expected is not None and not self.records.may_be(expected):
            raise TruncatedDownload(self.sheet, f"{self.records.rows} rows came, {expected} were reported")

    def commit(self) -> Downloaded:
        """Bring it to disk and put it in place. Blocks."""
        with _naming(self._part):
            self._file.flush()
            os.fsync(self._file.fileno())
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


@final
class _Download:
    """One download of some sheets: what is asked, and what is expected."""

    __slots__ = ("_company_id", "_engine", "_filter", "_rank", "_report")

    def __init__(
        self, engine: Engine, company_id: str, row_filter: RowFilter, report: ImportReport | None, rank: float
    ) -> None:
        self._engine, self._company_id, self._rank = engine, company_id, rank
        self._filter, self._report = row_filter, report

    async def run(self, sheets: Sequence[Sheet], folder: Path) -> list[Downloaded]:
        """Fetch everything, check everything, then put everything in place."""
        tries = self._engine.caller.tries(routes.DOWNLOAD)
        while True:
            try:
                with ExitStack() as stack:
                    parts = await self._fetch(sheets, folder, stack)
                    self._check_sum(parts)
                    return await in_thread(_commit, parts)
            except TruncatedDownload as error:
                trouble = error
            await tries.failed(trouble)

    async def _fetch(self, sheets: Sequence[Sheet], folder: Path, stack: ExitStack) -> list[_Part]:
        if len(sheets) != 1 and "zip" not in self._engine.missing:
            parts = await self._fetch_zip(sheets, folder, stack)
            if parts is not None:
                return parts
        if not sheets:
            raise NotFound("GET", routes.DOWNLOAD.template, 404, "no ZIP here, and no sheet ids are known")
        names = file_names(sheet.name or sheet.id for sheet in sheets)
        parts = [
            stack.enter_context(_Part(sheet.name or sheet.id, folder / f"{name}.csv"))
            for sheet, name in zip(sheets, names, strict=True)
        ]
        for sheet, part in zip(sheets, parts, strict=True):
            await self._fetch_sheet(sheet, part)
        return parts

    async def _fetch_sheet(self, sheet: Sheet, part: _Part) -> None:
        tries = self._engine.caller.tries(routes.DOWNLOAD)
        while True:
            try:
                await self._stream({"sheet_id": sheet.id}, part)
                part.check(self._expect(sheet, part.sheet))
            except _TRANSIENT as error:
                trouble: AsyncmigError = error
            else:
                return
            await tries.failed(trouble)

    async def _fetch_zip(self, sheets: Sequence[Sheet], folder: Path, stack: ExitStack) -> list[_Part] | None:
        """Fetch all sheets as one archive; None where the server offers none, or not all of them in it."""
        tries = self._engine.caller.tries(routes.DOWNLOAD)
        while True:
            try:
                with tempfile.TemporaryFile() as archive:
                    await self._stream({}, archive)
                    return await in_thread(self._unpack, archive, sheets, folder, stack)
            except _TRANSIENT as error:
                trouble: AsyncmigError = error
            except ApiError as error:
                trouble = error
            if isinstance(trouble, ApiError) and trouble.status in _NO_ZIP:
                self._engine.missing.add("zip")
                return None
            if not isinstance(trouble, _TRANSIENT):
                raise trouble
            await tries.failed(trouble)

    def _unpack(
        self, archive: IO[bytes], sheets: Sequence[Sheet], folder: Path, stack: ExitStack
    ) -> list[_Part] | None:
        try:
            with zipfile.ZipFile(archive) as content:
                entries = [entry for entry in content.infolist() if not entry.is_dir()]
                titles = [PurePosixPath(entry.filename).name.removesuffix(".csv") for entry in entries]
                if not {sheet.name.casefold() for sheet in sheets} <= {title.casefold() for title in titles}:
                    return None
                names = file_names(titles)
                parts = [
                    _Part(*each) for each in zip(titles, (folder / f"{n}.csv" for n in names), strict=True)
                ]
                for entry, part in zip(entries, parts, strict=True):
                    stack.enter_context(part)
                    with content.open(entry) as source:
                        while chunk := source.read(_CHUNK):
                            part.write(chunk)
                    part.check(self._expect(_titled(part.sheet, sheets), part.sheet))
                return parts
        except (zipfile.BadZipFile, EOFError, NotImplementedError, zlib.error) as error:
            raise TruncatedDownload("all sheets", f"not a whole ZIP archive ({error})") from error

    async def _stream(self, query: dict[str, str], target: _Part | IO[bytes]) -> None:
        call = Call(
            endpoint=routes.DOWNLOAD,
            ids={"id": self._company_id},
            query={**query, "filter": self._filter},
            rank=self._rank,
        )
        if isinstance(target, _Part):
            target.restart()
        async with self._engine.caller.stream(call) as answer:
            if is_html(answer):
                raise UnexpectedReply(
                    "GET", routes.DOWNLOAD.template, answer.status, "HTML instead of a file"
                )
            async for chunk in answer.chunks():
                target.write(chunk)

    def _expect(self, sheet: Sheet | None, title: str) -> int | None:
        """Return the rows that a sheet must have, or None where the report does not say.

        With `filter=all` that is its `rowCount`; with `filter=valid` too, but only if no row is invalid.
        """
        if self._report is None or (self._filter == "valid" and self._report.invalid_rows != 0):
            return None
        if sheet is not None:
            counts = [count.rows for count in self._report.per_sheet if count.sheet_id == sheet.id]
        else:
            counts = [count.rows for count in self._report.per_sheet if count.template_name == title]
        return counts[0] if len(counts) == 1 else None

    def _check_sum(self, parts: Sequence[_Part]) -> None:
        """Compare the rows of all sheets together with what the same report inserted."""
        report = self._report
        if report is None or report.inserted is None:
            return
        expected = report.inserted
        if self._filter == "valid":
            if report.invalid_rows is None:
                return
            expected -= report.invalid_rows
        fewest = sum(part.records.rows for part in parts)
        if not fewest <= expected <= fewest + sum(part.records.blank for part in parts):
            raise TruncatedDownload("all sheets", f"{fewest} rows came, {expected} were reported")


def _all(sheets: Sequence[Sheet], report: ImportReport | None) -> list[Sheet]:
    """Return the sheets that are known, and those that only the report names."""
    known = {sheet.id for sheet in sheets}
    reported = [
        Sheet(id=count.sheet_id, name=count.template_name or count.sheet_id)
        for count in (report.per_sheet if report else ())
        if count.sheet_id is not None and count.sheet_id not in known
    ]
    return [*sheets, *{sheet.id: sheet for sheet in reported}.values()]


def _titled(title: str, sheets: Sequence[Sheet]) -> Sheet | None:
    """Return the sheet that a file of the archive is; None if there is none, or several that it may be."""
    for wanted in (
        [s for s in sheets if s.name == title],
        [s for s in sheets if s.name.casefold() == title.casefold()],
    ):
        if wanted:
            return wanted[0] if len(wanted) == 1 else None
    return None


def _commit(parts: Sequence[_Part]) -> list[Downloaded]:
    return [part.commit() for part in parts]


async def download(
    engine: Engine,
    company_id: str,
    sheets: Sequence[Sheet],
    folder: Path,
    *,
    row_filter: RowFilter,
    report: ImportReport | None = None,
    rank: float = 0.0,
) -> list[Downloaded]:
    """Bring `sheets` to `folder/SHEET.csv`, in one ZIP where the server offers that; without any, all there are.

    `report`: of the only import that the company has had; what came is compared with it. Raises
    `TruncatedDownload` when they still disagree at the last attempt.
    """
    return await _Download(engine, company_id, row_filter, report, rank).run(_all(sheets, report), folder)
