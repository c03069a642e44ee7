"""The handle of one migration: upload, generate, answer, execute, download."""

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import TypeVar, cast, final, get_args

import msgspec

from asyncmig._core.arguments import checked_call, checked_path, checked_text
from asyncmig._io.call import Call
from asyncmig._io.context import SessionContext
from asyncmig.customers.catalog import checked_id
from asyncmig.customers.paths import Inputs
from asyncmig.errors import InvalidInput
from asyncmig.migrations import routes
from asyncmig.migrations.connections import SourceConnection
from asyncmig.migrations.downloads import Fetch, checked_fields, chosen_sheets, download, find_sheets
from asyncmig.migrations.expected import Downloaded, RowFilter
from asyncmig.migrations.export_jobs import ExportJob, start_export
from asyncmig.migrations.knowledge import Knowledge
from asyncmig.migrations.log import Log, read_log, settled
from asyncmig.migrations.operation import Operation, StartPoint
from asyncmig.migrations.previews import Preview, read_preview
from asyncmig.migrations.runs import Run
from asyncmig.migrations.starts import Noted, Starter
from asyncmig.migrations.state import MigrationState, state_of
from asyncmig.migrations.thread import BEGINNING, Event, Include, checked_include, thread_pages
from asyncmig.migrations.uploads import (
    Item,
    ToUpload,
    Uploaded,
    checked_items,
    default_type,
    list_files,
    upload_contents,
)
from asyncmig.migrations.wire import (
    ExportBody,
    Kind,
    MigrationInfo,
    Report,
    RunBody,
    RunState,
    Sheet,
    StoredFile,
)
from asyncmig.transfers.content import BinaryFile, Progress, Stream, content_of
from asyncmig.transfers.uploads import checked_content_type

__all__ = ["Difference", "Migration"]

T = TypeVar("T")


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """A field in which an existing migration differs from the request that found it."""

    field: str
    """`name`, `source` or `templates`."""
    requested: str | tuple[str, ...] | None
    found: str | tuple[str, ...] | None


@final
class Migration:
    """The handle of one migration: its id, its sheets, and the operations on it."""

    __slots__ = (
        "_checks",
        "_context",
        "_shared",
        "_starter",
        "_uploaded",
        "connection",
        "differences",
        "external_id",
        "id",
        "is_new",
        "knowledge",
        "name",
        "sheets",
        "source",
        "status",
    )

    def __init__(
        self,
        context: SessionContext,
        migration_id: str,
        *,
        external_id: str | None = None,
        sheets: Sequence[Sheet] = (),
        info: MigrationInfo | None = None,
        is_new: bool = False,
        differences: Sequence[Difference] = (),
    ) -> None:
        self._context = context
        self.id: str = migration_id
        self.external_id: str | None = external_id or (info.external_id if info else None)
        self.is_new: bool = is_new
        """Whether this handle created the migration. False if it existed before, or was opened by its id."""
        self.differences: tuple[Difference, ...] = tuple(differences)
        """How an existing migration differs from what was asked for. Its files may be there already, too."""
        self.name: str | None = info.name if info else None
        """None if the migration was opened by its id. The same applies to `source` and `status`."""
        self.source: str | None = info.source if info else None
        self.status: str | None = info.status if info else None
        """When the handle was made: `awaiting_files`, `ready`, `awaiting_approval` or `completed`."""
        self.sheets: tuple[Sheet, ...] = (info.templates or ()) if info else tuple(sheets)
        """One sheet for each template. Empty if the migration was opened by its id."""
        self.knowledge: Knowledge = Knowledge(
            context, routes.MIGRATION_KNOWLEDGE, routes.WRITE_MIGRATION_KNOWLEDGE, {"id": migration_id}
        )
        """What the agent knows about this customer."""
        self.connection: SourceConnection = SourceConnection(context, migration_id)
        """The live connections to the customer's source system."""
        self._shared: MigrationState = state_of(context, migration_id)
        self._starter = Starter(context, migration_id)
        self._uploaded = Inputs()
        self._checks: tuple[Callable[[Path], None], ...] = (self._uploaded.check,)

    def __repr__(self) -> str:
        return f"<Migration {self.id}: external_id={self.external_id!r}, {len(self.sheets)} sheets>"

    @property
    def _ids(self) -> dict[str, str]:
        return {"id": self.id}

    def guard(self, check: Callable[[Path], None]) -> None:
        """Call `check` with the path of each downloaded file before it is put in place; see `Company.guard`."""
        self._checks = (self._uploaded.check, check)

    # Files

    async def files(self) -> tuple[StoredFile, ...]:
        """Return the files that have arrived; one request."""
        return await list_files(self._context, self.id)

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
        """Upload one file, unless the migration has one with this name and size.

        For several files, `upload_all` is cheaper.

        The arguments and errors are those of `Company.upload` in the generation "companies". The files of the
        migration are listed first; a run may read at most 400 files, of them 5 PDF or Word documents.
        """
        if isinstance(source, Path | str):
            self._uploaded.add([Path(source)])
        content = content_of(source, name=name, size=size)
        kind = default_type(content.name) if content_type is None else checked_content_type(content_type)
        item = Item(content=content, content_type=kind, progress=progress)
        return (await upload_contents(self._context, self.id, [item], rank=rank))[0]

    @checked_call
    async def upload_all(self, files: Sequence[ToUpload], *, rank: float = 0.0) -> list[Uploaded]:
        """Upload the files that the migration does not have yet, in parallel, with one request for each 25 files.

        ```python
        uploaded = await migration.upload_all(["contacts.csv", ("deals.csv", b"Name,Amount\\n")])
        ```

        `files`: paths, or names with bytes. Files that the migration has with the same name and size are not sent
        again; their `is_new` is False. Raises `InvalidInput` before any request for a missing or empty file, and for
        more than 400 files or 5 documents; before any upload if there would be too many with those that are there.
        """
        self._uploaded.add(Path(file) for file in files if isinstance(file, Path | str))
        items = checked_items(files)
        return await upload_contents(self._context, self.id, items, rank=rank)

    # Operations

    @checked_call
    async def generate(
        self,
        *,
        extract_via_api: bool | None = None,
        noted: Noted | None = None,
        since: StartPoint | None = None,
        rank: float = 0.0,
    ) -> Run:
        """Let the agent read the files (or the connection) and prepare a preview.

        ```python
        run = await migration.generate()
        preview = await run.wait()
        ```

        - `extract_via_api`: True also reads the live connection, False reads only files; by default, the connection
          is read only if there are no files.
        - `noted`: awaited before the request with the point that another process needs to continue.
        - `since`: what `noted` received in a process that was interrupted. The run that it has begun is returned; a
          new one is started only if it never was.

        A start whose response was lost is repeated only after the server shows that it never happened. Raises
        `BadRequest` without files and connection; `Conflict` if another run of the migration is in progress;
        `UnknownOutcome` if the server does not tell what happened.
        """
        body = RunBody(
            kind="generate",
            extract_via_api=msgspec.UNSET if extract_via_api is None else extract_via_api,
        )
        return await self._starter.start(body, noted=noted, rank=rank, since=since)

    @checked_call
    async def update(
        self,
        message: str,
        *,
        noted: Noted | None = None,
        since: StartPoint | None = None,
        rank: float = 0.0,
    ) -> Run:
        """Ask the agent to change what it prepared. The run ends with a new preview. See `generate`."""
        body = RunBody(kind="update", message=checked_text("message", message))
        return await self._starter.start(body, noted=noted, rank=rank, since=since)

    @checked_call
    async def clarify(
        self,
        question: str,
        *,
        noted: Noted | None = None,
        since: StartPoint | None = None,
        rank: float = 0.0,
    ) -> Run:
        """Ask the agent a question that changes nothing; `run.messages()` has the answer. See `generate`."""
        body = RunBody(kind="clarify", message=checked_text("question", question))
        return await self._starter.start(body, noted=noted, rank=rank, since=since)

    @checked_call
    async def execute(
        self, *, noted: Noted | None = None, since: StartPoint | None = None, rank: float = 0.0
    ) -> Run:
        """Import what the preview shows. The run ends with a report. See `generate`.

        A second execution imports again: it replaces or adds, depending on the server.
        """
        return await self._starter.start(RunBody(kind="execute"), noted=noted, rank=rank, since=since)

    @checked_call
    async def recover(self, point: StartPoint) -> Run | None:
        """Return the run that a start has begun, or None if it never happened; for a process that was interrupted.

        `point`: what `noted` received before the start. Raises `UnknownOutcome` if the server does not tell.
        """
        return await self._starter.find(point)

    @checked_call
    def run(
        self,
        run_id: str,
        *,
        kind: Kind | None = None,
        after: int | None = None,
        before: RunState | None = None,
        age: float | None = None,
    ) -> Run:
        """Return the handle of a run with a known id, without a request.

        If this session started or opened the run last, that handle is returned. Otherwise every end counts, unless
        `kind` and `after` (the sequence that was noted before the start; `Run.after`) say which operation it is.
        `before`: the last reading before the start. `age`: seconds since the start, if known.
        """
        checked = checked_id("run_id", run_id, "imports", "runs")
        last, age = self._shared.run, age or 0.0
        if kind is None and last is not None and last.id == checked:
            return last
        now = self._context.poller.now()
        operation = Operation(kind=kind, requested_at=now - age, after=after, before=before)
        return Run(self._context, self.id, checked, operation, age=age)

    @checked_call
    async def preview(self, *, fields: Sequence[str] = (), omit_empty: bool = False) -> Preview:
        """Return a sample of what an execution would import. Raises `NotFound` if there is none for 30 s.

        `fields`: exact names of columns, in this order. `omit_empty`: without columns that are empty in the sample.
        """
        query = {"fields": ",".join(checked_fields(fields))} if fields else {}
        query |= {"omit_empty": "true"} if omit_empty else {}
        return await read_preview(self._context, self.id, query)

    # Thread and log

    @checked_call
    async def events(self, *, after: int | None = None, include: Include = "user") -> list[Event]:
        """Return the events of the thread after a sequence; by default all."""
        pages = thread_pages(self._context, self.id, after=_start(after), include=checked_include(include))
        return [event async for page in pages for event in page]

    async def thread(self, *, after: int | None = None, include: Include = "user") -> AsyncGenerator[Event]:
        """Yield the events of the thread after a sequence (by default all), and new ones as they come.

        ```python
        async for event in migration.thread(after=run.after):
            print(event.type, event.text)
        ```

        Reconnects when the stream ends, and reads snapshots while the stream brings nothing. The iteration ends when
        the server says that no run is in progress, or a snapshot has nothing new, and the last known run has ended.
        All iterations and waiting tasks of the session share one stream.
        """
        stream = self._shared.stream(checked_include(include))
        async with aclosing(stream.events(after=_start(after))) as events:
            async for event in events:
                if event is not None:
                    yield event
                elif self._shared.run is None or not await self._shared.run.is_active():
                    return

    async def log(self, *, wait: bool = False) -> Log:
        """Return what each run did, oldest first.

        While anything is in progress, raises `Conflict`; with `wait=True`, waits until that has ended, and asks again
        after as many seconds as the server says. A blocked run can stay in progress without end, and a preview may
        count as in progress.
        """
        return await settled(partial(read_log, self._context, self.id), wait=wait)

    async def log_json(self, *, wait: bool = False) -> bytes:
        """Return the log as the server writes it, as JSON. `wait` as in `log`."""
        call = Call(endpoint=routes.READ_LOG, ids=self._ids)
        return (await settled(partial(self._context.caller.reply, call), wait=wait)).content

    async def log_markdown(self, *, wait: bool = False) -> str:
        """Return the log as Markdown. `wait` as in `log`."""
        call = Call(endpoint=routes.READ_LOG, ids=self._ids, query={"format": "md"})
        reply = await settled(partial(self._context.caller.reply, call), wait=wait)
        return reply.content.decode("utf-8", "replace")

    # Delivery

    @checked_call
    async def download(
        self,
        *,
        to: Path | str,
        sheets: Sequence[str | Sheet] | None = None,
        fields: Sequence[str] = (),
        omit_empty: bool = False,
        filter: RowFilter = "valid",  # noqa: A002 - the API's own word
        by_slug: bool = False,
        report: Report | None = None,
        rank: float = 0.0,
    ) -> list[Downloaded]:
        """Download sheets to `to/SHEET.csv` (`to/SLUG.csv` with `by_slug`). A file is complete or does not exist.

        ```python
        files = await migration.download(to="out/acme", report=report)
        ```

        - `sheets`: names, slugs or `Sheet`s; by default all.
        - `fields`, `omit_empty`: as in `preview`.
        - `filter`: `"valid"` asks for rows without a bad cell, `"invalid"` for the others. Servers that do not know
          the filter send all rows; then `flagged` of the files is `included` or `unknown`.
        - `report`: the result of the execution. The rows are compared with it and with the response's own total.
          Where neither tells whether rows are missing, `is_verified` is False.

        A sheet that the server stores compressed is fetched through an export job. Raises `InvalidInput` for an
        unknown sheet and for one that would replace an uploaded file; `BadRequest` for an unknown field; `Conflict`
        if `omit_empty` is not possible; `TruncatedDownload` if the last attempt still has too few rows.
        """
        if filter not in get_args(RowFilter):
            raise InvalidInput("filter", filter, f"is none of {list(get_args(RowFilter))}")
        folder, known = checked_path("to", to), await self._known_sheets(report)
        wanted = known if sheets is None else chosen_sheets(sheets, known)
        fetch = Fetch(
            context=self._context,
            migration_id=self.id,
            fields=checked_fields(fields),
            omit_empty=omit_empty,
            row_filter=filter,
            report=report,
            rank=rank,
            known=known,
            by_slug=by_slug,
            checks=self._checks,
        )
        return await download(fetch, wanted, folder, are_all=sheets is None)

    @checked_call
    async def export_job(
        self,
        sheets: str | Sheet | Sequence[str | Sheet] | None = None,
        *,
        fields: Sequence[str] = (),
        omit_empty: bool = False,
        rank: float = 0.0,
    ) -> ExportJob:
        """Let the server prepare one sheet as CSV, or several (by default all) as a ZIP archive of CSVs.

        ```python
        job = await migration.export_job()
        await job.download("out/acme.zip")
        ```

        While another export of the migration runs, this waits for at most ten minutes. Raises `Conflict` after that,
        or if there is nothing to export.
        """
        known = await self._known_sheets()
        single = [sheets] if isinstance(sheets, str | Sheet) else None
        chosen = chosen_sheets(single or cast("Sequence[str | Sheet] | None", sheets) or known, known)
        slugs, unset = tuple(sheet.id for sheet in chosen), msgspec.UNSET
        body = ExportBody(
            slug=slugs[0] if single else unset,
            slugs=unset if single else slugs,
            fields=checked_fields(fields) or unset,
            omit_empty=True if omit_empty else unset,
        )
        return await start_export(self._context, self.id, body, rank=rank)

    async def _known_sheets(self, report: Report | None = None) -> list[Sheet]:
        """Return the sheets; those of a migration that was opened by its id are looked up."""
        if not self.sheets:
            self.sheets = await find_sheets(self._context, self.id, report)
        return list(self.sheets)


def _start(after: int | None) -> int:
    return BEGINNING if after is None else after
