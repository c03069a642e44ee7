"""Deliver an executed migration: its sheets, each compared with the server's counts, and its log."""

import asyncio
from functools import partial
from pathlib import Path

import msgspec

from asyncmig._core.decode import Unreadable, decode
from asyncmig._io.context import SessionContext
from asyncmig._io.threads import in_thread
from asyncmig.customers.files import write_whole
from asyncmig.customers.outcome import Delivered, Downloaded, ImportReport, RowFilter
from asyncmig.errors import ApiError, AuthError, BadRequest, NoAnswer, NotFound, SessionClosed
from asyncmig.migrations.downloads import find_sheets
from asyncmig.migrations.log import Log
from asyncmig.migrations.migration import Migration
from asyncmig.migrations.workflow.record import Record
from asyncmig.records.record_keeper import RecordKeeper

__all__ = ["deliver"]

_LOG_DATA, _LOG_TEXT = "log.json", "log.md"
_AWAY = 3
"""How often the log is requested while the server refuses it: it may not be available at all in the region."""
_BETWEEN = 10.0
"""Seconds between these requests."""
_LONGEST_WAIT = 600.0
"""Seconds for which a log that is not settled is waited for."""


async def deliver(
    context: SessionContext,
    keeper: RecordKeeper[Record],
    migration: Migration,
    folder: Path,
    row_filter: RowFilter,
) -> Delivered:
    """Download and verify the sheets and the log of an executed migration."""
    report = keeper.record.report
    assert report is not None
    keeper.begin("downloading")
    names = {sheet.name for sheet in migration.sheets}
    added = any(count.rows and count.template_name not in names for count in report.per_sheet)
    if added or not migration.sheets:  # the run has other sheets, or no create response listed them
        find = partial(find_sheets, context, migration.id, report)
        found = (*migration.sheets, *await keeper.retry_while_away(find))
        migration.sheets = tuple({sheet.id: sheet for sheet in found}.values())
    download = partial(
        migration.download, to=folder, filter=row_filter, by_slug=True, report=report, rank=keeper.rank
    )
    files = await keeper.retry_while_away(download)
    log = await _deliver_log(keeper, migration, folder)
    replaced = _replaced(log)
    for note in _notes(files):
        keeper.note(note)
    if replaced:
        keeper.note("the import replaced existing data of the workbook")
    return Delivered(
        **keeper.outcome_fields(),
        files=tuple(files),
        row_filter=row_filter,
        report=msgspec.convert(report, ImportReport, from_attributes=True),
        replaced_existing_data=replaced,
    )


async def _deliver_log(keeper: RecordKeeper[Record], migration: Migration, folder: Path) -> Log | None:
    """Write `log.json` and `log.md`, and return the log; None if the server does not give it."""
    attempt, content, text = 1, b"", ""
    while not content:
        try:
            async with asyncio.timeout(_LONGEST_WAIT):
                content, text = await _read_log(migration)
        except (AuthError, SessionClosed):
            raise
        except (ApiError, NoAnswer, TimeoutError) as error:
            if attempt == _AWAY or isinstance(error, TimeoutError):
                reason = str(error) or "another run of the migration is in progress"
                keeper.note(f"the log could not be read: {reason}")
                return None
            attempt += 1
            await asyncio.sleep(_BETWEEN)
    await in_thread(_write_log, folder, content, text)
    try:
        return decode(content, Log)
    except Unreadable:
        return None


def _write_log(folder: Path, content: bytes, text: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / _LOG_DATA, content)
    if text:
        write_whole(folder / _LOG_TEXT, text.encode())


async def _read_log(migration: Migration) -> tuple[bytes, str]:
    """Return the log as JSON, and as text; "" if the server has no text of it."""
    content = await migration.log_json(wait=True) or b"{}"
    try:
        return content, await migration.log_markdown(wait=True)
    except (BadRequest, NotFound):
        return content, ""


def _notes(files: list[Downloaded]) -> list[str]:
    """Return what the user should know about the files."""
    notes: list[str] = []
    flagged = [file.slug or file.sheet for file in files if file.flagged == "included"]
    unclear = [file.slug or file.sheet for file in files if file.flagged == "unknown" and file.rows]
    unverified = [file.slug or file.sheet for file in files if file.is_verified is False]
    if flagged:
        notes.append(f"with flagged rows, which the server does not separate: {', '.join(flagged)}")
    if unclear:
        notes.append(f"may contain flagged rows: {', '.join(unclear)}")
    if unverified:
        notes.append(f"not verified, because the server states no count of rows: {', '.join(unverified)}")
    return notes


def _replaced(log: Log | None) -> bool | None:
    """Return whether the last execution replaced existing data."""
    executed = (
        [run for run in log.runs if run.kind == "execute" or (run.outcome and run.outcome.rows_written)]
        if log
        else []
    )
    outcome = executed[-1].outcome if executed else None
    return outcome.replaced_existing_data if outcome else None
