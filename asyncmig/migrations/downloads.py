"""Download sheets to disk. Each file is complete or does not exist."""

import asyncio
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

from msgspec import UNSET

from asyncmig._core.retry import FINAL, TRANSIENT
from asyncmig._io.call import Call
from asyncmig._io.context import SessionContext
from asyncmig._io.threads import WriteBehind, in_thread
from asyncmig._io.transport import Response
from asyncmig.customers import outcome
from asyncmig.customers.files import file_names
from asyncmig.errors import (
    ApiError,
    AsyncmigError,
    BadRequest,
    Conflict,
    NoAnswer,
    NotFound,
    RunFailed,
    TruncatedDownload,
    UnknownOutcome,
)
from asyncmig.migrations import routes
from asyncmig.migrations.expected import Downloaded, Expected, RowFilter, with_flags
from asyncmig.migrations.export_jobs import ExportJob, LinkLost, start_export
from asyncmig.migrations.previews import PREVIEW_LOOKS, SECONDS_BETWEEN_LOOKS
from asyncmig.migrations.state import ClientState
from asyncmig.migrations.wire import ExportBody, Report, Sheet
from asyncmig.transfers.part import Part, WrongDownloads

__all__ = ["Fetch", "download"]

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
    names: frozenset[str]
    """The names of all sheets of the migration."""
    by_slug: bool = False
    """Whether files are named by the slugs of the sheets, not by their names."""
    checks: Sequence[Callable[[Path], None]] = ()
    """Called with each file before it is put in place. An exception from them prevents that."""

    @property
    def ids(self) -> dict[str, str]:
        """The ids in the route."""
        return {"id": self.migration_id}

    @property
    def honours_filter(self) -> bool:
        """Whether the server may know the row filter: it has not refused it in this session."""
        return self.context.kept(ClientState).honours_filter

    def expected(self, sheet: Sheet, *, total: int | None, filtered: bool = False) -> Expected:
        """Return the rows that a response of a sheet must have."""
        return Expected(
            report=self.report,
            sheet=sheet,
            names=self.names,
            total=total,
            filtered=filtered,
            row_filter=self.row_filter,
        )

    def exchange(self, sheet: Sheet, *, filtered: bool) -> AbstractAsyncContextManager[Response]:
        """Send one request and yield the response at its headers."""
        query = {"fields": ",".join(self.fields)} if self.fields else {}
        query |= {"omit_empty": "true"} if self.omit_empty else {}
        query |= {"filter": self.row_filter} if filtered else {}
        ids = {**self.ids, "slug": sheet.id}
        return self.context.caller.stream(
            Call(endpoint=routes.DOWNLOAD, ids=ids, query=query, rank=self.rank)
        )


async def download(
    fetch: Fetch, sheets: Sequence[Sheet], folder: Path, *, among: Sequence[Sheet], are_all: bool
) -> list[Downloaded]:
    """Download `sheets` to `folder/SHEET.csv`, or to `folder/SLUG.csv`.

    `among`: all known sheets. `are_all`: the sheets are all of the migration.

    A sheet has the same file name whichever other sheets are downloaded with it. Everything is downloaded and checked
    before any file is put in place. A sheet without rows that the server does not know is left out.
    """
    every = {sheet.id: sheet.id if fetch.by_slug else sheet.name or sheet.id for sheet in (*among, *sheets)}
    names, wrong_downloads = dict(zip(every, file_names(every.values()), strict=True)), WrongDownloads()
    with ExitStack() as stack:
        parts: list[tuple[Expected, Part]] = []
        for sheet in sheets:
            part = Part(sheet.name or sheet.id, folder / f"{names[sheet.id]}.csv", wrong_downloads)
            expected = await _fetch_sheet(fetch, sheet, stack.enter_context(part))
            if expected is not None:
                parts.append((expected, part))
        files = await in_thread(_commit, parts, fetch.checks)
    return with_flags(files, row_filter=fetch.row_filter, are_all=are_all)


async def _fetch_sheet(fetch: Fetch, sheet: Sheet, part: Part) -> Expected | None:
    attempts = fetch.context.caller.repeated(routes.DOWNLOAD, fetch.ids, on=TRANSIENT, unless=_is_final)
    missing, job, filtered, starts = 0, None, fetch.honours_filter, 0
    is_job_refused = False
    while True:
        async with attempts:
            try:
                if job is None:
                    expected = await _fetch_direct(fetch, sheet, part, filtered=filtered)
                    if not filtered:
                        fetch.context.kept(ClientState).honours_filter = False
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
    async with fetch.exchange(sheet, filtered=filtered) as answer:
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
    state = fetch.context.kept(ClientState)
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
