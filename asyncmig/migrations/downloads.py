"""Find the sheets of a migration, and download them to disk. Each file is complete or does not exist.

A create response lists the sheets, and no request returns that list again.
"""

import asyncio
import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

from msgspec import UNSET

from asyncmig._core.arguments import checked_text
from asyncmig._core.retry import FINAL, TRANSIENT
from asyncmig._io.call import Call
from asyncmig._io.context import SessionContext
from asyncmig._io.threads import WriteBehind, in_thread
from asyncmig._io.transport import Response
from asyncmig.customers import outcome
from asyncmig.customers.catalog import CatalogueItem, named
from asyncmig.customers.files import file_names
from asyncmig.errors import (
    ApiError,
    AsyncmigError,
    BadRequest,
    Conflict,
    InvalidInput,
    NoAnswer,
    NotFound,
    RunFailed,
    ServerError,
    TruncatedDownload,
    UnknownOutcome,
)
from asyncmig.migrations import routes
from asyncmig.migrations.expected import Downloaded, Expected, RowFilter, with_flags
from asyncmig.migrations.export_jobs import ExportJob, LinkLost, start_export
from asyncmig.migrations.log import LogOutcome, read_log
from asyncmig.migrations.previews import PREVIEW_LOOKS, SECONDS_BETWEEN_LOOKS, read_preview
from asyncmig.migrations.state import ClientState
from asyncmig.migrations.wire import ExportBody, Report, Sheet, Templates
from asyncmig.transfers.part import Part, WrongDownloads, open_parts

__all__ = ["Fetch", "checked_fields", "chosen_sheets", "download", "find_sheets"]

_COLUMNS = re.compile(rb"coverage|empty|column", re.IGNORECASE)
"""The 409s of a download differ by their text only."""
_JOBS = 2
"""The most export jobs that are started for one sheet, of the few that an account has in an hour."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Fetch:
    """The parameters of a download."""

    context: SessionContext
    migration_id: str
    fields: tuple[str, ...]
    omit_empty: bool
    row_filter: RowFilter
    report: Report | None
    rank: float
    known: Sequence[Sheet]
    """All known sheets of the migration."""
    by_slug: bool = False
    """Whether files are named by the slugs of the sheets, not by their names."""
    checks: Sequence[Callable[[Path], None]] = ()
    """Called with each file before it is put in place. An exception from them prevents that."""

    @property
    def ids(self) -> dict[str, str]:
        """The ids in the route."""
        return {"id": self.migration_id}

    @property
    def state(self) -> ClientState:
        """What the session knows of the server's downloads."""
        return self.context.kept(ClientState)

    def expected(self, sheet: Sheet, *, total: int | None, filtered: bool = False) -> Expected:
        """Return the rows that a response of a sheet must have."""
        return Expected(
            report=self.report,
            sheet=sheet,
            names=frozenset(sheet.name or "" for sheet in self.known),
            total=total,
            filtered=filtered,
            row_filter=self.row_filter,
        )


async def find_sheets(
    context: SessionContext, migration_id: str, report: Report | None = None
) -> tuple[Sheet, ...]:
    """Return the sheets of the preview, and those in the report of an execution.

    The preview may be gone after an execution. Then the log has the names of the sheets. Reports and logs have the
    names of templates only, so that the slugs come from the account's templates. Without any name, an executed
    migration has all of them. Raises `NotFound` if there is neither a preview nor an execution.
    """
    found: list[CatalogueItem] = []
    counts = report.per_sheet if report else ()
    names = {count.template_name for count in counts if count.template_name}
    try:
        preview = await read_preview(context, migration_id, {})
        found += [*preview.templates, *(each.sheet for each in preview.sheets)]
    except NotFound:
        if not names:
            executed = await _executed(context, migration_id, is_needed=report is None)
            names = {count.sheet for outcome in executed for count in outcome.per_sheet if count.sheet}
            if report is None and not executed:
                raise
    if not found or names - {each.name for each in found}:
        listed = await context.caller.call(Call(endpoint=routes.LIST_TEMPLATES), Templates)
        found += [each for each in listed.templates if not names or each.name in names]
    return tuple({each.id: Sheet(id=each.id, name=each.name) for each in found}.values())


async def _executed(context: SessionContext, migration_id: str, *, is_needed: bool) -> list[LogOutcome]:
    """Return what the executions in the log did. If the log `is_needed`, raise `ApiError` where it is not there."""
    try:
        log = await read_log(context, migration_id)
    except (Conflict, NotFound, ServerError):
        if is_needed:
            raise
        return []
    return [run.outcome for run in log.runs if run.outcome]


def chosen_sheets(wanted: Sequence[str | Sheet], known: Sequence[Sheet]) -> list[Sheet]:
    """Return the sheets with these names or slugs, each once. Raises `InvalidInput` for an unknown one."""
    if isinstance(wanted, str) or not wanted:
        raise InvalidInput("sheets", wanted, "must be a sequence of sheets, and not empty")
    chosen = [each if isinstance(each, Sheet) else named("sheets", each, known) for each in wanted]
    return list({sheet.id: sheet for sheet in chosen}.values())


def checked_fields(fields: Sequence[str]) -> tuple[str, ...]:
    """Return names of columns as a request can name them. Raises `InvalidInput`."""
    for name in fields:
        if "," in checked_text("fields", name):
            raise InvalidInput("fields", name, "has a comma, which separates the names in a request")
    return tuple(fields)


async def download(fetch: Fetch, sheets: Sequence[Sheet], folder: Path, *, are_all: bool) -> list[Downloaded]:
    """Download `sheets` to `folder/SHEET.csv`, or to `folder/SLUG.csv`. `are_all`: these are all of the migration.

    A sheet has the same file name whichever other sheets are downloaded with it. Everything is downloaded and checked
    before any file is put in place. A sheet without rows that the server does not know is left out.
    """
    every = {
        sheet.id: sheet.id if fetch.by_slug else sheet.name or sheet.id for sheet in (*fetch.known, *sheets)
    }
    names, wrong_downloads = dict(zip(every, file_names(every.values()), strict=True)), WrongDownloads()
    with ExitStack() as stack:
        opened = [
            Part(sheet.name or sheet.id, folder / f"{names[sheet.id]}.csv", wrong_downloads)
            for sheet in sheets
        ]
        await in_thread(open_parts, opened, stack)
        parts: list[tuple[Expected, Part]] = []
        for sheet, part in zip(sheets, opened, strict=True):
            expected = await _fetch_sheet(fetch, sheet, part)
            if expected is not None:
                parts.append((expected, part))
        files = await in_thread(_commit, parts, fetch.checks)
    return with_flags(files, row_filter=fetch.row_filter, are_all=are_all)


async def _fetch_sheet(fetch: Fetch, sheet: Sheet, part: Part) -> Expected | None:
    attempts = fetch.context.caller.repeated(routes.DOWNLOAD, fetch.ids, on=TRANSIENT, unless=_is_final)
    missing, job, filtered, starts = 0, None, fetch.state.honours_filter, 0
    is_job_refused = False
    while True:
        async with attempts:
            try:
                if job is None:
                    expected = await _fetch_direct(fetch, sheet, part, filtered=filtered)
                    if not filtered:
                        fetch.state.honours_filter = False
                    return expected
                return await _fetch_job(fetch, sheet, part, job)
            except (LinkLost, RunFailed):
                if starts >= _JOBS:
                    raise
                job = None  # it failed or its file is gone, so another one is started
            except NoAnswer as error:
                raise await in_thread(part.broken_off, error) from None
            except TruncatedDownload as error:
                if not (error.is_final and job is None and filtered and fetch.row_filter == "valid"):
                    raise
                fetch = replace(
                    fetch, row_filter="all"
                )  # the total may count rows that the filter leaves out
            except NotFound:  # a sheet may come some seconds after the execution
                nothing = fetch.expected(sheet, total=None)
                if nothing.reported == 0:
                    return None
                missing += 1
                if missing == PREVIEW_LOOKS:
                    raise
                await asyncio.sleep(SECONDS_BETWEEN_LOOKS)
            except BadRequest as error:
                if not filtered or b"unknown_field" in error.body:
                    raise
                filtered = False  # once more without the filter
            except Conflict as error:
                is_about_columns = fetch.omit_empty and _COLUMNS.search(error.body)
                if is_about_columns or job is not None or is_job_refused:
                    raise  # there are no statistics, or every column is empty; or both ways were refused
                body = ExportBody(
                    slug=sheet.id,
                    fields=fetch.fields or UNSET,
                    omit_empty=True if fetch.omit_empty else UNSET,
                )
                starts += 1
                try:
                    job = await start_export(fetch.context, fetch.migration_id, body, rank=fetch.rank)
                except Conflict:  # another export did not end for ten minutes
                    is_job_refused = True
                except UnknownOutcome as error:  # an export changes nothing, so another one is started
                    raise error.__cause__ or error from None


async def _fetch_direct(fetch: Fetch, sheet: Sheet, part: Part, *, filtered: bool) -> Expected:
    query = {"fields": ",".join(fetch.fields)} if fetch.fields else {}
    query |= {"omit_empty": "true"} if fetch.omit_empty else {}
    query |= {"filter": fetch.row_filter} if filtered else {}
    call = Call(endpoint=routes.DOWNLOAD, ids={**fetch.ids, "slug": sheet.id}, query=query, rank=fetch.rank)
    async with fetch.context.caller.stream(call) as answer:
        expected = fetch.expected(
            sheet,
            total=_number(answer.headers.get("X-Total-Records", "")),
            filtered=filtered and fetch.row_filter != "all",
        )
        await _receive(answer, part, expected)
    await _check(fetch, part, expected)
    return expected


async def _fetch_job(fetch: Fetch, sheet: Sheet, part: Part, job: ExportJob) -> Expected:
    """Fetch a sheet that cannot be downloaded directly, through an export job."""
    try:
        expected = fetch.expected(sheet, total=(await job.wait()).total_rows)
        async with job.opened() as answer:
            await _receive(answer, part, expected)
    except NotFound as error:  # the server has deleted the job
        raise LinkLost(error.method, error.endpoint, error.status, error.text) from error
    await _check(fetch, part, expected)
    return expected


async def _check(fetch: Fetch, part: Part, expected: Expected) -> None:
    """Raise `TruncatedDownload` unless the file can be the complete sheet: its rows, and the end of its last line.

    A file without even a header, or without that end, counts if the same bytes come twice.
    """
    await in_thread(part.check, expected.check)
    state = fetch.state
    if part.is_empty:
        await in_thread(part.check_unended_line)
    elif part.ends_with_line_end:
        state.ends_lines = True
    elif state.ends_lines:
        await in_thread(part.check_unended_line)
        state.ends_lines = False


async def _receive(answer: Response, part: Part, expected: Expected) -> None:
    part.restart(expected.total)
    with part.named_errors():
        async with WriteBehind(part.file) as file:
            async for chunk in answer.chunks():
                await file.write(chunk)
                if part.count(chunk):
                    await file.settled()
                    await in_thread(part.check_bound)


def _is_final(error: AsyncmigError) -> bool:
    if isinstance(error, TruncatedDownload):
        return error.is_final
    return isinstance(error, ApiError) and error.status in FINAL


def _number(text: str) -> int | None:
    text = text.strip()
    return int(text) if text.isascii() and text.isdigit() else None


def _commit(
    parts: Sequence[tuple[Expected, Part]], checks: Sequence[Callable[[Path], None]]
) -> list[tuple[Expected, outcome.Downloaded]]:
    for _, part in parts:
        for check in checks:
            check(part.path)
    return [(expected, part.commit()) for expected, part in parts]
