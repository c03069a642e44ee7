"""The handle of one company: upload, import, download, stream and export."""

from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import final

from asyncmig._core.arguments import checked_call, checked_path
from asyncmig._io.context import SessionContext
from asyncmig.companies.downloads import Download, Fetch
from asyncmig.companies.expected import Expected
from asyncmig.companies.exports import ExportOutcome, Exports, ExportStage, in_stages, summary_of
from asyncmig.companies.imports import Imports, key_or_new
from asyncmig.companies.streams import stream_all, stream_sheet
from asyncmig.companies.uploads import Uploaded, upload
from asyncmig.companies.wire import CompanyCreated, CompanyInfo, Connection, Sheet, Template
from asyncmig.customers.catalog import checked_id, named
from asyncmig.customers.outcome import Downloaded, ExportMode, ExportSummary, ImportReport, RowFilter
from asyncmig.customers.paths import Inputs
from asyncmig.errors import InvalidInput
from asyncmig.transfers.content import BinaryFile, Progress, Stream

__all__ = ["Company", "known_sheets"]


@final
class Company:
    """The handle of one company: its ids, its sheets, and the operations on it."""

    __slots__ = (
        "_check",
        "_context",
        "_uploaded",
        "connections",
        "created_at",
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
        created = created or CompanyCreated(company=CompanyInfo(id=company_id), sheets=tuple(sheets))
        self.id: str = company_id
        self.external_id: str | None = external_id or created.company.external_id
        self.is_new: bool = is_new
        """Whether this handle created the company. False if it existed before, or was opened by its id."""
        self.name: str | None = created.company.name
        """None if the company was opened by its id. The same applies to the attributes below."""
        self.created_at: str | None = created.company.created_at
        """ISO 8601, as the server sent it."""
        self.workbook_id: str | None = created.workbook_id
        """The workbook id that webhooks of its exports name."""
        self.magic_link_url: str | None = created.magic_link_url
        """A login link. It is a secret, so no repr shows it."""
        self.connections: tuple[Connection, ...] = created.connections
        """The connections as the server shows them, without their secrets."""
        self.sheets: tuple[Sheet, ...] = created.sheets
        self._uploaded = Inputs()
        self._check: Callable[[Path], None] | None = None
        self.imports: Imports = Imports(context, company_id, self._uploaded)

    @property
    def exports(self) -> Exports:
        """The destination exports of the company."""
        return Exports(self._context, self.id)

    def __repr__(self) -> str:
        return f"<Company {self.id}: external_id={self.external_id!r}, {len(self.sheets)} sheets>"

    def guard(self, check: Callable[[Path], None]) -> None:
        """Call `check` with the final path of each downloaded file before it is renamed to it. An exception from
        `check` ends the download.

        Without `check`, downloads refuse to replace only the files that this handle has uploaded.
        """
        self._check = check

    @checked_call
    def sheet(self, wanted: str, /) -> Sheet:
        """Return the sheet with this name or id; no request.

        ```python
        contacts = company.sheet("Contacts")
        ```

        The handle knows the sheets from the response to `create` and from the reports of its completed imports.
        Raises `InvalidInput` that lists the known names.
        """
        sheets: Sequence[Sheet] = self.sheets
        for run in self.imports.started:
            if run.state is not None and run.state.status == "completed":
                sheets = known_sheets(sheets, run.state.report)
        if not sheets:
            raise InvalidInput("sheet", wanted, "no sheets are known here: the company was opened by its id")
        return named("sheet", wanted, sheets)

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
        r"""Upload a file for an import without changing it: CSV, Excel, or any format that the source reads.

        ```python
        uploaded = await company.upload(b"Email,Last Name\nada@example.com,Lovelace\n", name="people.csv")
        again = await company.imports.start(files=[uploaded])
        await again.wait()
        ```

        - `source`: a path; bytes; a seekable binary file object, which is read from its current position and is
          not closed; or a stream: an async iterable of bytes, or a callable that opens one, with its `size` in
          bytes.
        - `content_type`: by default guessed from the name.
        - `progress(sent, size)`: called with numbers of bytes as they are sent. A repeat starts at 0 again. An
          exception from it ends the upload.
        - `rank`: among waiting requests, the one with the lowest rank is sent first.

        If an upload URL fails, expires or was used, a new one is requested and the bytes are sent again from the
        start. An async generator can be read only once: if it breaks off, the error says so, no import has seen
        any of it, and the upload can be called again. A callable is called again instead. At most
        `max_parallel_uploads` uploads of the session run at a time.

        Raises `InvalidInput` for a source that is missing, empty, of a different size than stated, or changed
        while it was read; exceptions of a stream unchanged; `NoAnswer` or `UnexpectedReply` when the attempts are
        used up.
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
        """Download sheets to `to/SHEET.csv`. A file is complete or does not exist.

        ```python
        files = await company.download(to="out/acme", sheets=["Contacts"], filter="all")
        ```

        - `sheets`: names, ids or `Sheet`s; by default all, in one ZIP if the server offers it. File names are the
          sheets' names without unsafe characters.
        - `filter`: `"valid"` drops every row with a bad cell, `"all"` keeps them.
        - `report`: the report of the company's only import. The handle knows it already if it created the company
          and started the import. The download is compared with the report, and repeated if it was cut short.

        A download stops if it has more rows than were reported, if no row ends within 16 MiB, or if it has used
        nine tenths of the disk space that was free. An archive also stops at more than 16 MiB per sheet plus 1
        MiB per reported row. A download that stopped is tried once more.

        Raises `InvalidInput` for an unknown sheet and for one that would replace a file that this handle uploaded
        or that a fleet migrates; `TruncatedDownload` if the last attempt still disagrees with the report;
        `NotFound` if no sheet is known and the server has no ZIP; `OSError` if the folder cannot be written.
        """
        folder = checked_path("to", to)
        fetch, among = self._fetch(filter, report, rank)
        if sheets is None:
            return Download(fetch, among, folder, among=among, whole=True).run()
        if isinstance(sheets, str) or not sheets:
            raise InvalidInput("sheets", sheets, "must be a sequence of sheets, and not empty")
        wanted = {sheet.id: sheet for sheet in (_chosen(each, among, "sheets") for each in sheets)}
        return Download(fetch, list(wanted.values()), folder, among=among, whole=False).run()

    @checked_call
    def stream(
        self,
        sheet: str | Sheet | None = None,
        *,
        filter: RowFilter = "valid",  # noqa: A002 - the API's own word
        report: ImportReport | None = None,
        rank: float = 0.0,
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Open a download as an async iterator over its bytes, to pass it on without a disk.

        ```python
        received = bytearray()
        async with company.stream("Contacts") as chunks:
            async for chunk in chunks:
                received += chunk
        # Only now is the sheet known to be complete: a stream that was cut short raises at the end of the loop.
        ```

        Yields the CSV of one `sheet` (name, id or `Sheet`); without a sheet, a ZIP of all sheets, which is built
        locally if the server has none. Chunks have at most about 256 KiB. A slow reader slows the transfer. The
        transfer of the body holds no slot of the rate limit. Leaving the block early closes the connection.
        `filter` and `report` are as in `download`.

        A failed attempt is repeated only before the first byte. After it, a body that breaks off or does not have
        the reported rows raises `TruncatedDownload` at the end of the loop. Raises `InvalidInput` for an unknown
        sheet.
        """
        fetch, among = self._fetch(filter, report, rank)
        if sheet is None:
            return stream_all(fetch, among)
        return stream_sheet(fetch, _chosen(sheet, among, "sheet"))

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
        """Write the company's rows to its destination: first a canary (the first row of each template), then all.

        ```python
        exported = await company.export()
        if not exported.is_clean:
            print(exported.stopped, exported.report.failed, exported.report.hollow)
        ```

        If the canary has a failed or hollow write, or no report, the full export is not started, and `stopped`
        says why. Unverified writes do not stop the export, because some writers never read back what they wrote.
        `canary_first=False` writes everything at once.

        `canary_key`, `full_key`: idempotency keys of the two stages. With the same keys, a call after a crash, a
        cancellation or an error returns the existing runs. The keys do not prevent duplicate records at the
        destination, and the full export writes the canary's rows again: see `Exports.start`, and `note`.

        Raises the errors of `Exports.start`, and `RunFailed` or `RunCanceled` for either run.
        """
        keys: dict[ExportMode, str] = {}
        given: tuple[tuple[ExportMode, str | None], ...] = (("canary", canary_key), ("full", full_key))
        for mode, key in given:
            if key == "" or (key is not None and canary_key == full_key):
                raise InvalidInput(f"{mode}_key", key, "must not be empty, nor the same for both stages")
            keys[mode] = key_or_new(self._context, key, f"{mode}_key")
        done: dict[ExportMode, ExportStage] = {}

        async def export(mode: ExportMode) -> ExportSummary:
            run = await self.exports.start(
                mode=mode,
                template_ids=template_ids,
                row_filter=row_filter,
                idempotency_key=keys[mode],
                rank=rank,
            )
            report = (await run.wait()).report
            done[mode] = ExportStage(run_id=run.id, idempotency_key=keys[mode], report=report)
            return summary_of(mode, run.id, report)

        stopped = await in_stages(("canary", "full") if canary_first else ("full",), export)
        return ExportOutcome(canary=done.get("canary"), full=done.get("full"), stopped=stopped)

    def _fetch(
        self, row_filter: RowFilter, report: ImportReport | None, rank: float
    ) -> tuple[Fetch, list[Sheet]]:
        """Return the download settings and the known sheets."""
        if row_filter not in ("valid", "all"):
            raise InvalidInput("filter", row_filter, "is neither 'valid' nor 'all'")
        report = report or self._only_report()
        fetch = Fetch(
            context=self._context,
            company_id=self.id,
            row_filter=row_filter,
            expected=Expected(report, row_filter),
            rank=rank,
            checks=(self._uploaded.check,) if self._check is None else (self._uploaded.check, self._check),
        )
        return fetch, known_sheets(self.sheets, report)

    def _only_report(self) -> ImportReport | None:
        """Return the report of the only import, or None if there may have been another one."""
        if not self.is_new or len(self.imports.started) != 1:
            return None
        state = self.imports.started[0].state
        return state.report if state is not None and state.status == "completed" else None


def known_sheets(sheets: Sequence[Sheet], report: ImportReport | None) -> list[Sheet]:
    """Return `sheets` and those that only the report names."""
    ids = {sheet.id for sheet in sheets}
    reported = [
        Sheet(id=count.sheet_id, name=count.template_name or count.sheet_id)
        for count in (report.per_sheet if report else ())
        if count.sheet_id is not None and count.sheet_id not in ids
    ]
    return [*sheets, *{sheet.id: sheet for sheet in reported}.values()]


def _chosen(wanted: str | Sheet, among: Sequence[Sheet], field: str) -> Sheet:
    """Return the sheet with this name or id. If no sheet is known, `wanted` is taken as an id."""
    if isinstance(wanted, Sheet):
        return wanted
    if not among or not wanted:
        return Sheet(id=checked_id(field, wanted, "sheets"))
    return named(field, wanted, among)
