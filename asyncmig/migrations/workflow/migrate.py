"""Migrate one customer, in steps that can be resumed.

check → create → upload → generate ⇄ answer → preview → approve → execute ⇄ answer → deliver

The journal holds the intent before each request that changes the server, and the response after it. A migration that
was killed or cancelled anywhere continues when it is called again with the same arguments. Nothing is executed or
generated twice: a start that may have been sent is looked up on the server before it is sent again.
"""

import logging
from pathlib import Path
from typing import cast, final

import msgspec

from asyncmig._core.retry import TRANSIENT
from asyncmig._io.context import SessionContext
from asyncmig._io.failures import OwnerScope
from asyncmig._io.threads import in_thread
from asyncmig.customers.files import NOT_IMPORTED_AGAIN, FileInput, FilesChanged
from asyncmig.customers.options import MigrationOptions, Turn
from asyncmig.customers.outcome import Failed, Outcome, Pending, PendingReason, Unknown
from asyncmig.customers.paths import Inputs
from asyncmig.customers.spec import Spec
from asyncmig.errors import (
    ApiError,
    AuthError,
    InvalidInput,
    JournalError,
    NoRunSlot,
    NotFound,
    RunError,
    SessionClosed,
    UnknownOutcome,
)
from asyncmig.journal import ClaimPort
from asyncmig.migrations.runs import Run
from asyncmig.migrations.workflow.delivery import Delivery
from asyncmig.migrations.workflow.operations import Operations
from asyncmig.migrations.workflow.permit import WorkPermit, is_refusal
from asyncmig.migrations.workflow.preparation import Preparation
from asyncmig.migrations.workflow.record import Record, keeper_of, with_spec
from asyncmig.migrations.workflow.run_driver import RunDriver
from asyncmig.records.record import check_apart, read_inputs
from asyncmig.records.record_keeper import RecordKeeper
from asyncmig.steps import OutcomeName

__all__ = ["migrate_customer"]

_log = logging.getLogger("asyncmig")


async def migrate_customer(
    context: SessionContext,
    spec: Spec,
    claim: ClaimPort,
    to: Path,
    options: MigrationOptions,
    inputs: Inputs,
    turn: Turn | None = None,
) -> Outcome:
    """Migrate the customer of a claim, or continue the migration that its journal record describes.

    `inputs`: the files of migrations that run at the same time; no sheet may replace them. `turn`: awaited after the
    files were read and before the first request. Raises `JournalError`.
    """
    keeper = keeper_of(context, claim, retry_seconds=options.retry_seconds)
    if not keeper.record.name:
        keeper.record = with_spec(keeper.record, spec)
    try:
        await keeper.responses.catch_up()
        with OwnerScope(keeper.owner()):
            return await _Migration(context, spec, keeper, to, options, inputs, turn).run()
    except JournalError as error:
        if not (keeper.responses.unwritten and keeper.responses.must_end):
            raise
        return Pending(**keeper.outcome_fields(), error=str(error), reason="interrupted")


@final
class _Migration:
    """The steps of one customer's migration."""

    def __init__(
        self,
        context: SessionContext,
        spec: Spec,
        keeper: RecordKeeper[Record],
        to: Path,
        options: MigrationOptions,
        inputs: Inputs,
        turn: Turn | None,
    ) -> None:
        self._context, self._spec, self._keeper = context, spec, keeper
        self._to, self._options, self._inputs, self._turn = to, options, inputs, turn
        self._operations = Operations(context, keeper)
        self._preparation = Preparation(context, spec, keeper, self._operations, options)
        self._driver = RunDriver(context, keeper, self._operations, to, options)
        self._delivery = Delivery(context, keeper, to, options)
        self._retry_failed = options.retry_failed and isinstance(keeper.record.outcome, Failed)
        self._files: tuple[FileInput, ...] | None = None
        """The present input files; None if they cannot be read."""

    async def run(self) -> Outcome:
        """Run the remaining steps, and record the outcome."""
        keeper = self._keeper
        while True:
            try:
                keeper.begin("checking")
                await self._take_input()
                outcome = self._finished() or await self._steps()
            except JournalError:
                raise
            except FilesChanged as error:
                keeper.tell("failed", str(error))
                return Failed(**keeper.outcome_fields(), error=str(error), step="checking")
            except Exception as error:
                outcome = self._outcome_of(error)
            outcome = self._noted(outcome)
            if outcome != keeper.record.outcome:
                await keeper.keep(_kind(outcome), outcome=outcome)
            if not await self._begin_again(outcome):
                break
        outcome = self._noted(outcome)
        keeper.tell(_kind(outcome), getattr(outcome, "error", ""))
        return outcome

    def _noted(self, outcome: Outcome) -> Outcome:
        """Return the outcome with all notes."""
        notes = dict.fromkeys((*outcome.notes, *self._keeper.record.remarks, *self._keeper.notes))
        return msgspec.structs.replace(outcome, notes=tuple(notes))

    def _outcome_of(self, error: Exception) -> Outcome:
        """Return the outcome of a customer whose steps ended with an error."""
        keeper, fields = self._keeper, self._keeper.outcome_fields()
        if isinstance(error, UnknownOutcome):
            return Unknown(**fields, error=str(error), sent=error.sent, advice=error.advice)
        if isinstance(error, ApiError) and is_refusal(error):
            self._context.kept(WorkPermit).refuse(error)
            return Pending(**fields, error=str(error), reason="account_refused")
        if isinstance(error, (AuthError, SessionClosed, OSError, NoRunSlot, *TRANSIENT)):
            return Pending(**fields, error=str(error), reason=_reason(error))
        if isinstance(error, InvalidInput | ApiError | RunError):
            return Failed(**fields, error=str(error), step=keeper.step)
        _log.error("the migration of %s crashed", keeper.record.external_id, exc_info=error)
        return Pending(**fields, error=f"{type(error).__name__}: {error}", reason="crashed")

    async def _steps(self) -> Outcome:
        if self._turn is not None:
            await self._turn()
        keeper, preparation = self._keeper, self._preparation
        await preparation.create()
        self._operations.migration.guard(self._inputs.check)
        if keeper.record.report is None:
            run = None
            if keeper.record.existed and keeper.record.operation is None:
                run = await preparation.look_first()
            if run is None or not await self._is_executed(run):
                await preparation.upload()
            ended = await self._driver.to_the_end(reads_live=preparation.reads_live)
            if ended is not None:
                return ended
        assert keeper.record.report is not None
        return await self._delivery.deliver(self._operations.migration, keeper.record.report)

    async def _is_executed(self, run: Run) -> bool:
        """Return whether an earlier run of an existing migration has been executed, so that files come too late."""
        if not run.id:
            return False
        try:
            state = await self._keeper.retry_while_away(run.read)
        except NotFound:
            await self._keeper.keep("refused", operation=None)
            return False
        return state.status == "completed" and state.report is not None

    # The input, and the recorded state

    async def _take_input(self) -> None:
        """Compare the files with the recorded ones. A file that was uploaded cannot be replaced."""
        keeper, spec = self._keeper, self._spec
        record, self._files = keeper.record, None
        if record.migration_id and record.name != spec.name:
            keeper.note(f"the migration was created as {record.name!r} and keeps that name")
        try:
            spec.validate(root=self._options.root)
            await in_thread(check_apart, spec.files, self._to)
            files = self._files = await read_inputs(spec.files)
        except InvalidInput as error:
            if not record.has_started:
                raise
            keeper.note(f"{error}; its run had started and continues without it")
            return
        changed = record.changed_files(files) if record.files else []
        if record.report is not None and changed:
            self._take_changed(", ".join(changed))
        elif changed and record.upload_sent:
            await self._take_added(record, files)
        elif changed or (not record.files and files):
            await keeper.write("input", files=files, retried=0)
        elif not changed:
            keeper.record = record.relocated(files)
        if not keeper.record.migration_id:
            keeper.record = with_spec(keeper.record, spec)

    def _take_changed(self, changed: str) -> None:
        """Note that changed files of an executed run are not imported, or raise `FilesChanged`."""
        if self._options.if_changed == "ignore":
            self._keeper.note(f"{NOT_IMPORTED_AGAIN}: {changed}")
            _log.warning("%s: %s: %s", self._spec.external_id, NOT_IMPORTED_AGAIN, changed)
            return
        reason = "changed since the import began, and this API cannot replace files; the customer keeps its outcome"
        raise FilesChanged("files", changed, reason)

    async def _take_added(self, record: Record, files: tuple[FileInput, ...]) -> None:
        """Record files that are new. A file that was uploaded and has changed since is noted, or refused."""
        known, given = {_mark_of(file) for file in record.files}, {_mark_of(file) for file in files}
        lost = {name for name, _ in known - given}
        replaced = ", ".join(sorted(lost))
        if replaced and self._options.if_changed == "ignore" and record.run_goes_on:
            self._keeper.note(f"{NOT_IMPORTED_AGAIN}: {replaced}")
            _log.warning("%s: %s: %s", self._spec.external_id, NOT_IMPORTED_AGAIN, replaced)
        elif replaced:
            reason = (
                "changed since they were uploaded, and this API can neither replace nor remove files: restore them, "
                "or use another external id; the customer keeps its outcome"
            )
            raise FilesChanged("files", replaced, reason)
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
        return outcome if is_failed or self._delivery.is_done(outcome) else None

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


def _mark_of(file: FileInput) -> tuple[str, str]:
    return Path(file.path).name, file.sha256


def _reason(error: Exception) -> PendingReason:
    """Return why a migration that stopped with `error` has not ended."""
    if isinstance(error, AuthError):
        return "key_refused"
    if isinstance(error, NoRunSlot):
        return "no_run_slot"
    return "server_away" if isinstance(error, TRANSIENT) else "interrupted"


def _kind(outcome: Outcome) -> OutcomeName:
    return cast("OutcomeName", outcome.__struct_config__.tag)
