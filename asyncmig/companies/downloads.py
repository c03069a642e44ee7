"""Download a company's sheets to disk. Each file is complete or does not exist."""

import hashlib
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from io import BytesIO, FileIO
from pathlib import Path, PurePosixPath
from typing import final

from asyncmig._core.retry import TRANSIENT
from asyncmig._io.attempts import Attempts, RetryableFailure
from asyncmig._io.call import Call
from asyncmig._io.context import SessionContext
from asyncmig._io.threads import WriteBehind, in_thread, write_all
from asyncmig._io.transport import Response
from asyncmig.companies import routes
from asyncmig.companies.archive import chunks_of, open_archive
from asyncmig.companies.expected import ALL_SHEETS, Expected
from asyncmig.companies.wire import Sheet
from asyncmig.customers.catalog import called
from asyncmig.customers.files import file_names
from asyncmig.customers.outcome import Downloaded, RowFilter
from asyncmig.errors import ApiError, AsyncmigError, AuthError, NoAnswer, NotFound, TruncatedDownload
from asyncmig.transfers.part import CHUNK, Bound, Part, WrongDownloads, open_parts, usable_bytes

__all__ = ["Download", "Fetch", "ServerTraits", "can_do_without", "is_no_archive", "no_sheets"]

_NO_ARCHIVE = frozenset({400, 404, 405, 501})
_MORE_SHEETS = 100
"""Most unknown sheets that an archive may contain. Each sheet needs an open file."""
_Flaw = TruncatedDownload | RetryableFailure
_Result = list[Downloaded] | _Flaw
"""The files; or the error about all sheets together, which ends a round of the download and not only an attempt."""


@final
@dataclass(slots=True)
class ServerTraits:
    """What the downloads of a session have shown about its server."""

    has_archives: bool = True
    """False once the server has refused the archive of all sheets and sent the single sheets."""
    ends_lines: bool = True
    """False once a complete sheet arrived twice without a line end at its end; true again after one with it."""


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


@final
class Download:
    """One download of one or several sheets to `folder/SHEET.csv`."""

    def __init__(
        self, fetch: Fetch, sheets: Sequence[Sheet], folder: Path, *, among: Sequence[Sheet], whole: bool
    ) -> None:
        """`among`: all known sheets. `whole`: `sheets` are all of them.

        The file name of a sheet does not depend on which other sheets are downloaded.
        """
        names = {sheet.id: sheet.name or sheet.id for sheet in (*among, *sheets)}
        files = dict(zip(names, file_names(names.values()), strict=True))
        self._fetch, self._sheets, self._folder, self._whole = fetch, sheets, folder, whole
        self._paths = [folder / f"{files[sheet.id]}.csv" for sheet in sheets]
        self._use_archive = whole and len(sheets) != 1
        self._rounds = fetch.repeated()
        self._wrong_downloads = WrongDownloads(self._rounds.most)
        self._attempts: dict[str | None, Attempts] = {}

    async def run(self) -> list[Downloaded]:
        """Download the sheets and return them. All sheets come in one ZIP if the server offers it.

        All files are downloaded and checked before the first one gets its final name. A request for the archive or
        for a sheet may fail `RetryPolicy.attempts` times in the whole download. If the rows of all sheets together
        disagree with the report, all sheets are requested again, at most as many times.

        Raises `TruncatedDownload` if the last attempt disagrees with the report, or if the same wrong bytes arrived
        in every attempt (at most eight); `InvalidInput` if a file would replace an input.
        """
        while True:
            async with self._rounds:
                with ExitStack() as stack:
                    result = await self._fetched(stack)
                    if isinstance(result, Exception):
                        raise result
                    return result

    async def _fetched(self, stack: ExitStack) -> _Result:
        """Download the sheets, check each, and give all files their names. `stack` removes temporary files."""
        traits, is_refused = self._fetch.traits, False
        if self._use_archive and traits.has_archives:
            self._use_archive = not self._sheets  # a repeat requests the single sheets, if they are known
            try:
                if (result := await self._from_archive(stack)) is not None:
                    return result
            except (ApiError, NoAnswer, TruncatedDownload) as error:
                if not can_do_without(error, self._sheets):
                    raise
                is_refused = is_no_archive(error)
        if not self._sheets:
            raise no_sheets()
        parts = [
            Part(sheet.name or sheet.id, path, self._wrong_downloads)
            for sheet, path in zip(self._sheets, self._paths, strict=True)
        ]
        await in_thread(open_parts, parts, stack)
        for sheet, part in zip(self._sheets, parts, strict=True):
            await self._fetch_sheet(sheet, part)
        if is_refused:
            traits.has_archives = False
        return await in_thread(self._committed, parts)

    def _attempts_for(self, sheet: Sheet | None) -> Attempts:
        """Return the attempts of a sheet, or of the archive: the same ones in every round of this download."""

        def is_final(error: AsyncmigError) -> bool:
            if isinstance(error, TruncatedDownload):
                return error.is_final
            return sheet is None and is_no_archive(error)

        key = None if sheet is None else sheet.id
        if key not in self._attempts:
            self._attempts[key] = self._fetch.repeated(TRANSIENT, unless=is_final)
        return self._attempts[key]

    async def _fetch_sheet(self, sheet: Sheet, part: Part) -> None:
        attempts = self._attempts_for(sheet)
        while True:
            async with attempts:
                part.restart(self._fetch.expected.most_rows(part.sheet, sheet))
                try:
                    with part.named_errors():
                        async with self._fetch.exchange(sheet) as answer, WriteBehind(part.file) as file:
                            async for chunk in answer.chunks():
                                await file.write(chunk)
                                if part.count(chunk):
                                    await file.settled()
                                    await in_thread(part.check_bound)
                except NoAnswer as error:
                    raise await in_thread(part.broken_off, error) from None
                return await self._check(sheet, part)

    async def _check(self, sheet: Sheet, part: Part) -> None:
        expected, traits = self._fetch.expected, self._fetch.traits
        check = partial(expected.check, part.sheet, sheet)
        if not part.is_plausible(check):
            await in_thread(part.check, check)
        if part.ends_with_line_end:
            traits.ends_lines |= not part.is_empty
        elif traits.ends_lines and expected.is_exact([sheet]):
            await in_thread(part.check_unended_line)
            traits.ends_lines = False

    async def _from_archive(self, stack: ExitStack) -> _Result | None:
        """Take all sheets from one archive. Return None if a sheet is missing in it."""
        attempts = self._attempts_for(None)
        while True:
            async with attempts:
                with ExitStack() as files:
                    async with self._fetch.exchange(None) as answer:
                        archive = await self._received(answer, files)
                    return await in_thread(self._unpack, archive, stack)

    async def _received(self, answer: Response, files: ExitStack) -> FileIO | BytesIO:
        """Return an archive: in memory if it is small, otherwise in a temporary file that `files` closes."""
        most = self._fetch.expected.most_in_archive(len(self._sheets))
        bound, small, chunks = Bound(rows=None, size=most), BytesIO(), answer.chunks()
        async for chunk in chunks:
            self._check_bound(bound, len(chunk))
            small.write(chunk)
            if small.tell() > CHUNK:
                break
        else:
            return small
        free = usable_bytes(Path(tempfile.gettempdir()))
        bound = Bound(rows=None, size=free if most is None else min(free, most))
        self._check_bound(bound, small.tell())
        archive = files.enter_context(tempfile.TemporaryFile(buffering=0))  # noqa: SIM115 - `files` closes it
        async with WriteBehind(archive) as file:
            await file.write(small.getvalue())
            async for chunk in chunks:
                self._check_bound(bound, len(chunk))
                await file.write(chunk)
        return archive

    def _check_bound(self, bound: Bound, size: int) -> None:
        if reason := bound.exceeded(size):
            raise self._wrong_downloads.stopped(ALL_SHEETS, reason)

    def _unpack(self, archive: FileIO | BytesIO, stack: ExitStack) -> _Result | None:
        try:
            content, entries = open_archive(archive, most_sheets=len(self._sheets) + _MORE_SHEETS)
            titles = [PurePosixPath(entry.filename).name[: -len(".csv")] for entry in entries]
            missing = Counter(sheet.name.casefold() for sheet in self._sheets)
            missing.subtract(title.casefold() for title in titles)
            if not entries or any(count > 0 for count in missing.values()):
                return None
            parts = [
                Part(title, self._folder / f"{name}.csv", self._wrong_downloads)
                for title, name in zip(titles, file_names(titles), strict=True)
            ]
            open_parts(parts, stack)
            for entry, part in zip(entries, parts, strict=True):
                self._unpack_sheet(content, entry, part)
        except TruncatedDownload as error:
            if error.name != ALL_SHEETS:
                raise
            archive.seek(0)
            digest = hashlib.file_digest(archive, "sha256").digest()
            raise self._wrong_downloads.wrong(error, digest) from error.__cause__
        return self._committed(parts)

    def _unpack_sheet(self, archive: zipfile.ZipFile, entry: zipfile.ZipInfo, part: Part) -> None:
        sheets = called(part.sheet, self._sheets)
        sheet = sheets[0] if len(sheets) == 1 else None
        part.restart(self._fetch.expected.most_rows(part.sheet, sheet))
        for chunk in chunks_of(archive, entry):
            with part.named_errors():
                write_all(part.file, [chunk])
            if part.count(chunk):
                part.check_bound()
        part.check(partial(self._fetch.expected.check, part.sheet, sheet))

    def _committed(self, parts: Sequence[Part]) -> _Result:
        """Give all files their names, unless the rows of all sheets together disagree with the report. Blocks."""
        if self._whole:
            try:
                self._fetch.expected.check_sum([part.found for part in parts if part.found is not None])
            except TruncatedDownload as flaw:
                if (error := self._recount_sum(parts, flaw)) is not None:
                    return error
        for part in parts:
            for check in self._fetch.checks:
                check(part.path)
        return [part.commit() for part in parts]

    def _recount_sum(self, parts: Sequence[Part], flaw: TruncatedDownload) -> _Flaw | None:
        """Count the rows in every other reading, and compare them with the report. Blocks.

        Return None if one agrees; otherwise `RetryableFailure`, or `TruncatedDownload` if another attempt is unlikely
        to differ.
        """
        recounted = [part.recounted() for part in parts]
        for counts in zip(*(counter.counts() for counter, _ in recounted), strict=True):
            if any(count.cut for count in counts):
                continue
            with suppress(TruncatedDownload):
                self._fetch.expected.check_sum(counts)
                for part, count in zip(parts, counts, strict=True):
                    part.found = count
                return None
        wrong = self._wrong_downloads.wrong(flaw, b"".join(digest for _, digest in recounted))
        return wrong if wrong.is_final else RetryableFailure(wrong)
