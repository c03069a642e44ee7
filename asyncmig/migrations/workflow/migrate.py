"""Migrate one customer, in steps that can be resumed.

check → create → upload → generate ⇄ answer → preview → approve → execute ⇄ answer → deliver

The journal holds the intent before each request that changes the server, and the response after it. A migration that
was killed or cancelled anywhere continues when it is called again with the same arguments. Nothing is executed or
generated twice: a start that may have been sent is looked up on the server before it is sent again.
"""

import asyncio
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import final

import msgspec

from asyncmig._core.decode import Unreadable, decode
from asyncmig._io.context import SessionContext
from asyncmig._io.threads import in_thread
from asyncmig.customers.files import FileInput, FilesChanged, write_whole
from asyncmig.customers.options import MigrationCall
from asyncmig.customers.outcome import Delivered, Downloaded, Failed, ImportReport, Outcome, PendingReason
from asyncmig.errors import (
    ApiError,
    AuthError,
    BadRequest,
    NoAnswer,
    NoRunSlot,
    NotFound,
    SessionClosed,
)
from asyncmig.journal import ClaimPort
from asyncmig.migrations.downloads import find_sheets
from asyncmig.migrations.log import Log
from asyncmig.migrations.migration import Migration
from asyncmig.migrations.runs import Run
from asyncmig.migrations.state import WorkPermit, is_refusal
from asyncmig.migrations.workflow.operations import Operations
from asyncmig.migrations.workflow.preparation import Preparation
from asyncmig.migrations.workflow.record import Record
from asyncmig.migrations.workflow.run_driver import RunDriver
from asyncmig.records.record import is_delivered
from asyncmig.records.record_keeper import RecordKeeper
from asyncmig.records.workflow import Workflow

__all__ = ["CustomerMigration", "refused_change"]

_LOG_DATA, _LOG_TEXT = "log.json", "log.md"
_AWAY = 3
"""How often the log is requested while the server refuses it: it may not be available at all in the region."""
_BETWEEN = 10.0
"""Seconds between these requests."""
_LONGEST_WAIT = 600.0
"""Seconds for which a log that is not settled is waited for."""


@final
class CustomerMigration(Workflow[Record]):
    """The steps of one call, from the input files to the delivered sheets."""

    __slots__ = ("_driver", "_operations", "_preparation")

    def __init__(self, context: SessionContext, claim: ClaimPort, call: MigrationCall) -> None:
        keeper = RecordKeeper(context, claim, Record, retry_seconds=call.options.retry_seconds)
        super().__init__(context, keeper, call)
        self._operations = Operations(context, keeper)
        self._preparation = Preparation(context, call.spec, keeper, self._operations, call.options.root)
        self._driver = RunDriver(context, keeper, self._operations, call.to, call.options)

    def _with_notes(self, outcome: Outcome) -> Outcome:
        notes = dict.fromkeys((*outcome.notes, *self._keeper.record.remarks, *self._keeper.notes))
        return msgspec.structs.replace(outcome, notes=tuple(notes))

    def _pending_reason(self, error: Exception) -> PendingReason | None:
        if isinstance(error, ApiError) and is_refusal(error):
            self._context.kept(WorkPermit).refuse(error)
            return "account_refused"
        return "no_run_slot" if isinstance(error, NoRunSlot) else super()._pending_reason(error)

    async def _steps(self) -> Outcome:
        keeper, preparation = self._keeper, self._preparation
        await preparation.create()
        self._operations.migration.guard(self._inputs.check)
        if keeper.record.report is None:
            run = None
            if keeper.record.existed and keeper.record.operation is None:
                run = await preparation.look_first()
            if run is None or not await self._is_executed(run):
                await preparation.upload()
            reads_live = None if self._spec.connection is None else True  # None: the server's default
            ended = await self._driver.to_the_end(reads_live=reads_live)
            if ended is not None:
                return ended
        return await self._deliver(self._operations.migration)

    async def _is_executed(self, run: Run) -> bool:
        """Return whether an earlier run of an existing migration was executed, so that new files are too late."""
        if not run.id:
            return False
        try:
            state = await self._keeper.retry_while_away(run.read)
        except NotFound:
            await self._keeper.keep("refused", operation=None)
            return False
        return state.status == "completed" and state.report is not None

    # Delivery

    async def _deliver(self, migration: Migration) -> Delivered:
        """Download the sheets, each compared with the server's counts, and the log."""
        keeper, row_filter = self._keeper, self._options.row_filter
        report = keeper.record.report
        assert report is not None
        keeper.begin("downloading")
        names = {sheet.name for sheet in migration.sheets}
        added = any(count.rows and count.template_name not in names for count in report.per_sheet)
        if added or not migration.sheets:  # the run has other sheets, or no create response listed them
            find = partial(find_sheets, self._context, migration.id, report)
            found = (*migration.sheets, *await keeper.retry_while_away(find))
            migration.sheets = tuple({sheet.id: sheet for sheet in found}.values())
        download = partial(
            migration.download, to=self._to, filter=row_filter, by_slug=True, report=report, rank=keeper.rank
        )
        files = await keeper.retry_while_away(download)
        log = await self._deliver_log(migration)
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

    async def _deliver_log(self, migration: Migration) -> Log | None:
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
                    self._keeper.note(f"the log could not be read: {reason}")
                    return None
                attempt += 1
                await asyncio.sleep(_BETWEEN)
        await in_thread(_write_log, self._to, content, text)
        try:
            return decode(content, Log)
        except Unreadable:
            return None

    # The input, and the recorded state

    async def _take_input(self) -> None:
        """Compare the files with the recorded ones. A file that was uploaded cannot be replaced."""
        keeper, spec = self._keeper, self._spec
        record = keeper.record
        if record.migration_id and record.name != spec.name:
            keeper.note(f"the migration was created as {record.name!r} and keeps that name")
        files = await self._read_files()
        if files is None:
            return
        changed = record.changed_files(files) if record.files else []
        refused = refused_change(record, files)
        if refused is not None and not self._may_keep(record):
            raise refused
        if record.report is not None and changed:
            self._note_not_imported(", ".join(changed))
        elif changed and record.upload_sent:
            await self._take_added(record, files)
        elif changed or (not record.files and files):
            await keeper.write("input", files=files, retried=0)
        elif not changed:
            keeper.record = record.relocated(files)
        if not keeper.record.migration_id:
            keeper.record = keeper.record.with_spec(spec)

    def _may_keep(self, record: Record) -> bool:
        """Return whether changed files may stay as they were imported."""
        return self._options.if_changed == "ignore" and (record.report is not None or record.run_goes_on)

    async def _take_added(self, record: Record, files: tuple[FileInput, ...]) -> None:
        """Record files that are new. Note those that were uploaded and have changed since."""
        known, lost = {_mark_of(file) for file in record.files}, _lost(record, files)
        if lost:
            self._note_not_imported(", ".join(sorted(lost)))
        added = [file for file in files if (mark := _mark_of(file)) not in known and mark[0] not in lost]
        if not added:
            return
        await self._keeper.write("input", files=(*record.files, *added), retried=0)
        if isinstance(record.outcome, Failed) and record.outcome.status and record.may_start_again:
            await self._new_epoch(retried=0)

    def _finished(self) -> Outcome | None:
        """Return the recorded outcome if no work is left, or None."""
        outcome = self._keeper.record.outcome
        is_failed = isinstance(outcome, Failed) and outcome.status is not None
        return outcome if is_failed or is_delivered(outcome, self._to, self._options.row_filter) else None

    async def _begin_again(self, outcome: Outcome) -> bool:
        """Start a failed run again, if the options ask for it. Return whether it was."""
        record = self._keeper.record
        wanted = self._retry_failed or record.retried < self._options.retries
        is_run = isinstance(outcome, Failed) and outcome.status is not None
        if not is_run or not wanted or (record.cancel and self._options.may_reject) or self._files is None:
            return False
        self._retry_failed = False
        if not record.may_start_again:
            self._keeper.note("not run again: its execution has written rows, or may have")
            return False
        await self._new_epoch(retried=record.retried + 1)
        return True

    async def _new_epoch(self, *, retried: int) -> None:
        """Give the run up, so that `generate` is started again."""
        await self._keeper.write(
            "new epoch",
            epoch=self._keeper.record.epoch + 1,
            retried=retried,
            operation=None,
            previewed=None,
            decision=None,
            cancel="",
            regenerated=0,
            rows_written=None,
            existed=False,
            outcome=None,
        )


def refused_change(record: Record, files: Sequence[FileInput]) -> FilesChanged | None:
    """Return the error for changed files of a customer, which this API cannot replace; None if there are none."""
    if not record.files:
        return None
    if record.report is not None:
        changed = record.changed_files(files)
        reason = "changed since the import began, and this API cannot replace files; the customer keeps its outcome"
    else:
        changed = sorted(_lost(record, files)) if record.upload_sent else []
        reason = (
            "changed since they were uploaded, and this API can neither replace nor remove files: restore them, "
            "or use another external id; the customer keeps its outcome"
        )
    return FilesChanged("files", ", ".join(changed), reason) if changed else None


def _lost(record: Record, files: Sequence[FileInput]) -> set[str]:
    """Return the names of recorded files that are not there, or have another content."""
    return {
        name for name, _ in {_mark_of(file) for file in record.files} - {_mark_of(file) for file in files}
    }


def _mark_of(file: FileInput) -> tuple[str, str]:
    return Path(file.path).name, file.sha256


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
