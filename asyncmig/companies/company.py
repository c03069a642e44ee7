"""One company: its ids, its sheets, and the way to all that can be done with it."""

from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import final

from asyncmig._core.arguments import checked_call, checked_path
from asyncmig._io.context import SessionContext
from asyncmig.companies.content import BinaryFile, Progress, Stream
from asyncmig.companies.downloads import download
from asyncmig.companies.expected import Expected
from asyncmig.companies.exports import ExportOutcome, Exports
from asyncmig.companies.fetch import Fetch
from asyncmig.companies.imports import Imports
from asyncmig.companies.lookup import named
from asyncmig.companies.sheets import chosen, known
from asyncmig.companies.streams import stream_all, stream_sheet
from asyncmig.companies.uploads import Uploaded, upload
from asyncmig.companies.wire import CompanyCreated, Connection, Sheet, Template
from asyncmig.customers.outcome import Downloaded, RowFilter
from asyncmig.customers.paths import Inputs
from asyncmig.customers.report import ImportReport
from asyncmig.errors import InvalidInput

__all__ = ["Company"]


@final
class Company:
    """One customer's migration: its ids, its sheets, and what can be done with them."""

    __slots__ = (
        "_checks",
        "_context",
        "_uploaded",
        "connections",
        "created_at",
        "exports",
        "external_id",
        "id",
        "imports",
        "is_new",
        "magic_link_url",
        "name",
        "sheets",
        "workbook_id",
    )

    def __init__(
        self,
        context: SessionContext,
        company_id: str,
        *,
        external_id: str | None = None,
        sheets: Sequence[Sheet] = (),
        created: CompanyCreated | None = None,
        is_new: bool = False,
    ) -> None:
        self._context = context
        self.id: str = company_id
        self.external_id: str | None = external_id or (created.company.external_id if created else None)
        self.is_new: bool = is_new
        """Whether this handle created it: False if it was there already, or was opened by its id."""
        self.name: str | None = created.company.name if created else None
        """None if it was opened by its id; so are the following."""
        self.created_at: str | None = created.company.created_at if created else None
        """ISO 8601, as the server says it."""
        self.workbook_id: str | None = created.workbook_id if created else None
        """What the webhooks of its exports name."""
        self.magic_link_url: str | None = created.magic_link_url if created else None
        """Lets whoever holds it in: it is in no repr."""
        self.connections: tuple[Connection, ...] = created.connections if created else ()
        """The destination as the server knows it, without its secrets."""
        self.sheets: tuple[Sheet, ...] = created.sheets if created else tuple(sheets)
        self._uploaded = Inputs()
        self._checks: tuple[Callable[[Path], None], ...] = (self._uploaded.check,)
        self.imports: Imports = Imports(context, company_id, self._uploaded)
        self.exports: Exports = Exports(context, company_id)

    def __repr__(self) -> str:
        return f"<Company {self.id}: external_id={self.external_id!r}, {len(self.sheets)} sheets>"

    def guard(self, check: Callable[[Path], None]) -> None:
        """Call `check` with each file before a download puts it in place; what it raises ends the download.

        Downloads never replace what this handle has uploaded; this protects other files as well.
        """
        self._checks = (self._uploaded.check, check)

    @checked_call
    def sheet(self, wanted: str, /) -> Sheet:
        """Return the sheet of this name, or of this id: one that `create` told of, or a completed import.

            contacts = company.sheet("Contacts")

        Raises `InvalidInput` that lists the names that are known. No request is made.
        """
        sheets = {sheet.id: sheet for sheet in (*self._reported(), *self.sheets)}
        if not sheets:
            raise InvalidInput("sheet", wanted, "no sheets are known here: the company was opened by its id")
        return named("sheet", wanted, tuple(sheets.values()))

    @checked_call
    async def upload(
        self,
        source: Path | str | bytes | BinaryFile | Stream,
        *,
        name: str | None = None,
        size: int | None = None,
        content_type: str | None = None,
        progress: Progress | None = None,
        rank: float = 0.0,
    ) -> Uploaded:
        """Upload a file for an import, as it is: CSV, Excel, or whatever the source reads.

            uploaded = await company.upload(Path("contacts.xlsx"))
            uploaded = await company.upload(lambda: bucket.chunks("deals.csv"), name="deals.csv", size=bucket.size)
            run = await company.imports.start(files=[uploaded])

        `source`: a path; bytes; a binary file object that can seek, which is read from where it stands and is not
        closed; or a stream: an async iterable of bytes, or a callable that opens one, with its `size` in bytes. A URL
        that failed, expired or was used is replaced, and the bytes are sent again from the start. A stream that can
        be read only once (an async generator) is not: if it breaks off midway, the error says so, no import has seen
        any of it, and the upload can be made again. A callable is called again instead.

        `content_type`: goes by the name if not given. `progress(sent, size)`: called with bytes as they go out, from
        0 again in a repeat; what it raises ends the upload. `rank`: a lower one goes first among requests that wait.
        At most `max_parallel_uploads` of the session are under way at a time.

        Raises `InvalidInput` for a source that is missing, empty, of another size than was said, or changes while it
        is read; what a stream raises, as it is; `NoAnswer`, `UnexpectedReply` when the attempts are used up.
        """
        if isinstance(source, Path | str):
            self._uploaded.add([Path(source)])
        return await upload(
            self._context,
            self.id,
            source,
            name=name,
            size=size,
            content_type=content_type,
            progress=progress,
            rank=rank,
        )

    @checked_call
    def download(
        self,
        *,
        to: Path | str,
        sheets: Sequence[str | Sheet] | None = None,
        filter: RowFilter = "valid",  # noqa: A002 - the API's own word
        report: ImportReport | None = None,
        rank: float = 0.0,
    ) -> Coroutine[object, object, list[Downloaded]]:
        """Bring sheets to `to/SHEET.csv`; a file is whole, or not there at all.

            files = await company.download(to="out/acme-001", sheets=["Contacts"], filter="all")

        `sheets`: names, ids or `Sheet`s; all if not given, in one ZIP where the server offers that. File names are
        the sheets' names, made safe. `filter="valid"` drops every row that has one bad cell, `"all"` keeps them.
        `report`: of the only import that the company has had (known without saying, if this handle created the
        company and started the import); what came is compared with it, and a download that was cut short is
        repeated.

        A download is stopped once more rows have come than were reported, no row has ended within 16 MiB, or it has
        taken nine tenths of the disk space that was free; an archive also once it has more than 16 MiB for each sheet
        and 1 MiB for each row that was reported. It is then tried once more.

        Raises `InvalidInput` for a sheet that is not known, and for one that would replace a file that this handle
        uploaded or that a fleet migrates; `TruncatedDownload` when what came and the report still disagree at the
        last attempt; `NotFound` where no sheet is known and the server has no ZIP; `OSError` for a
        folder that cannot be written.
        """
        folder = checked_path("to", to)
        fetch, among = self._fetch(filter, report, rank)
        if sheets is None:
            return download(fetch, among, folder, among=among, whole=True)
        if isinstance(sheets, str) or not sheets:
            raise InvalidInput("sheets", sheets, "must be a sequence of sheets, and not empty")
        wanted = {sheet.id: sheet for sheet in (chosen(each, among, "sheets") for each in sheets)}
        return download(fetch, list(wanted.values()), folder, among=among, whole=False)

    @checked_call
    def stream(
        self,
        sheet: str | Sheet | None = None,
        *,
        filter: RowFilter = "valid",  # noqa: A002 - the API's own word
        report: ImportReport | None = None,
        rank: float = 0.0,
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Open a download as an iterator over its bytes, to hand it on without a disk.

            async with company.stream("Contacts") as chunks:
                async for chunk in chunks:
                    await storage.write(chunk)
            await storage.commit()  # not before the loop has ended by itself

        The CSV of one `sheet` (name, id or `Sheet`); without one, a ZIP of all of them, made here where the server
        has none. Chunks have about 256 KiB at most; a slow reader slows the transfer, and no part of the limit is
        held while the body comes. Leaving the block early closes the connection. `filter` and `report` as for
        `download`.

        Before the first byte a failed attempt is repeated. After it nothing can be taken back: a body that breaks
        off, or has not the rows that the report says, raises `TruncatedDownload` at the end of the loop, so only a
        loop that ends without an error has handed on the whole. Raises `InvalidInput` for a sheet that is not
        known.
        """
        fetch, among = self._fetch(filter, report, rank)
        if sheet is None:
            return stream_all(fetch, among)
        return stream_sheet(fetch, chosen(sheet, among, "sheet"))

    @checked_call
    async def export(
        self,
        *,
        canary_first: bool = True,
        template_ids: Sequence[str | Template] | None = None,
        row_filter: str | None = None,
        canary_key: str | None = None,
        full_key: str | None = None,
        rank: float = 0.0,
    ) -> ExportOutcome:
        """Write the company's rows to its destination: the first row of each template, and if that went well, all.

            exported = await company.export()
            if not exported.is_clean:
                print(exported.stopped, exported.report.failed, exported.report.hollow)

        See `Exports.export`, which this is.
        """
        return await self.exports.export(
            canary_first=canary_first,
            template_ids=template_ids,
            row_filter=row_filter,
            canary_key=canary_key,
            full_key=full_key,
            rank=rank,
        )

    def _fetch(
        self, row_filter: RowFilter, report: ImportReport | None, rank: float
    ) -> tuple[Fetch, list[Sheet]]:
        """Return how to download, and the sheets that there are."""
        if row_filter not in ("valid", "all"):
            raise InvalidInput("filter", row_filter, "is neither 'valid' nor 'all'")
        report = report or self._only_report()
        fetch = Fetch(
            context=self._context,
            company_id=self.id,
            row_filter=row_filter,
            expected=Expected(report, row_filter),
            rank=rank,
            checks=self._checks,
        )
        return fetch, known(self.sheets, report)

    def _only_report(self) -> ImportReport | None:
        """Return the report of the only import, where there can have been no other."""
        if not self.is_new or len(self.imports.started) != 1:
            return None
        state = self.imports.started[0].state
        return state.report if state is not None and state.status == "completed" else None

    def _reported(self) -> list[Sheet]:
        """Return the sheets that the completed imports of this handle tell of."""
        states = [run.state for run in self.imports.started]
        reports = [state.report for state in states if state and state.report and state.status == "completed"]
        return [
            Sheet(id=count.sheet_id, name=count.template_name or "")
            for report in reports
            for count in report.per_sheet
            if count.sheet_id is not None
        ]
