"""Migrate one customer, in steps that can be resumed.

check → create → upload → generate ⇄ answer → preview → approve → execute ⇄ answer → deliver

The journal holds the intent before each request that changes the server, and the response after it. A migration that
was killed or cancelled anywhere continues when it is called again with the same arguments. Nothing is executed or
generated twice: a start that may have been sent is looked up on the server before it is sent again.
"""

import asyncio
import logging
from functools import partial
from pathlib import Path
from typing import cast, final

import msgspec

from asyncmig._core.retry import TRANSIENT
from asyncmig._io.context import SessionContext
from asyncmig._io.failures import OwnerScope
from asyncmig._io.threads import in_thread
from asyncmig.customers.answer_rules import answers_by_rules
from asyncmig.customers.decisions import (
    Answer,
    Approve,
    Cancel,
    Change,
    Credentials,
    Decision,
    Reject,
)
from asyncmig.customers.failures import wall_clock
from asyncmig.customers.files import NOT_IMPORTED_AGAIN, FileInput, FilesChanged
from asyncmig.customers.options import MigrationOptions, Turn
from asyncmig.customers.outcome import Failed, Outcome, Parked, Pending, PendingReason, Unknown
from asyncmig.customers.paths import Inputs
from asyncmig.customers.preview_page import write_preview
from asyncmig.customers.previews import Preview
from asyncmig.customers.questions import NeedsAttention, check_answers
from asyncmig.customers.spec import Spec
from asyncmig.errors import (
    ApiError,
    AuthError,
    BadRequest,
    Conflict,
    InvalidInput,
    JournalError,
    NoRunSlot,
    NotFound,
    RunError,
    SessionClosed,
    UnknownOutcome,
)
from asyncmig.journal import ClaimPort
from asyncmig.migrations import routes
from asyncmig.migrations.operation import block_of
from asyncmig.migrations.runs import Run
from asyncmig.migrations.wire import Report
from asyncmig.migrations.workflow.attention import attention_of, marks_of
from asyncmig.migrations.workflow.delivery import Delivery
from asyncmig.migrations.workflow.operations import Operations
from asyncmig.migrations.workflow.permit import WorkPermit, is_refusal
from asyncmig.migrations.workflow.preparation import Preparation
from asyncmig.migrations.workflow.record import OperationRecord, Record, digest_of, read_record, with_spec
from asyncmig.records.policy import ask_function
from asyncmig.records.record import check_apart, read_inputs
from asyncmig.records.record_keeper import RecordKeeper
from asyncmig.steps import OutcomeName

__all__ = ["SUPPORTED", "check_fits", "keeper_of", "may_start_again", "migrate_customer"]

SUPPORTED = (Approve, Reject, Answer, Credentials, Change, Cancel)
"""The decisions of this API generation."""
_FITTING: dict[str, tuple[type[Decision], ...]] = {
    "preview": (Approve, Change, Reject, Cancel),
    "questions": (Answer, Reject, Cancel),
    "credentials": (Credentials, Reject, Cancel),
}
_log = logging.getLogger("asyncmig")
_REFUSALS = 8
"""How often in a row an answer may be refused although the run still waits for it."""
_REGENERATED = 2
"""How often in a row a preview that can no longer be executed is made anew."""


def keeper_of(
    context: SessionContext, claim: ClaimPort, *, retry_seconds: float = 900.0
) -> RecordKeeper[Record]:
    """Return the keeper of a claim's record."""
    return RecordKeeper(
        context,
        claim,
        read_record,
        endpoint=routes.DOWNLOAD,
        uploads=routes.PUT_BYTES.template,
        retry_seconds=retry_seconds,
    )


def check_fits(attention: NeedsAttention, decision: Decision) -> None:
    """Raise `InvalidInput` for a decision that does not fit what a run waits for, or that was not offered."""
    fitting = _FITTING.get(attention.kind, ())
    if not isinstance(decision, fitting):
        names = ", ".join(case.__name__ for case in fitting)
        kind = type(decision).__name__
        raise InvalidInput("decision", kind, f"does not fit a run that waits for {attention.kind}: {names}")
    if isinstance(decision, Approve) and decision.answers:
        raise InvalidInput("answers", decision.answers, "cannot be given with the approval of a preview")
    if isinstance(decision, Answer):
        check_answers(attention, decision.answers)
        if not attention.questions:
            raise InvalidInput("answers", decision.answers, "the run shows no question")


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
            ended = await self._to_the_end()
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
        known = {Path(file.path).name: file.sha256 for file in record.files}
        given = {Path(file.path).name: file.sha256 for file in files}
        replaced = ", ".join(sorted(name for name, digest in known.items() if given.get(name) != digest))
        if replaced and self._options.if_changed == "ignore" and record.run_goes_on:
            self._keeper.note(f"{NOT_IMPORTED_AGAIN}: {replaced}")
            _log.warning("%s: %s: %s", self._spec.external_id, NOT_IMPORTED_AGAIN, replaced)
        elif replaced:
            reason = (
                "changed since they were uploaded, and this API can neither replace nor remove files: restore them, "
                "or use another external id; the customer keeps its outcome"
            )
            raise FilesChanged("files", replaced, reason)
        added = [file for file in files if Path(file.path).name not in known]
        if not added:
            return
        await self._keeper.write("input", files=(*record.files, *added), retried=0)
        if isinstance(record.outcome, Failed) and record.outcome.status and may_start_again(record):
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
        if not may_start_again(record):
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
            outcome=None,
        )

    # The run

    async def _to_the_end(self) -> Outcome | None:
        """Run the operations up to the report of an execution; return an outcome if it stops earlier."""
        keeper, refused = self._keeper, 0
        while True:
            run = await self._run()
            operation = self._operation()
            if keeper.record.cancel in ("rejected", "canceled"):
                return await self._canceled(run, keeper.record.cancel)
            keeper.begin("running", operation.kind or "")
            try:
                result = await run.wait()
            except RunError as error:
                return await self._failed(run, error)
            finally:
                await self._operations.note_id(run)
            if isinstance(result, Report):
                await self._executed(result, operation)
                return None
            attention = attention_of(result)
            if isinstance(result, Preview) and await self._previewed(result, operation):
                continue
            step = await self._decided(run, attention)
            if step is None:
                refused = 0
                continue
            if isinstance(step, Conflict):
                refused += 1
                if refused < _REFUSALS:
                    continue
                return Pending(**keeper.outcome_fields(), error=str(step), reason="interrupted")
            return step

    async def _run(self) -> Run:
        """Return the run of the journal; start `generate` if there is none."""
        operation, live = self._keeper.record.operation, self._preparation.reads_live
        if operation is None:
            return await self._operations.start("generate", reads_live=live)
        if operation.run_id is not None:
            return await self._operations.run()
        assert operation.kind is not None  # an earlier process may have sent this start
        live = live if operation.kind == "generate" else None
        return await self._operations.start(operation.kind, operation.message, reads_live=live)

    async def _executed(self, report: Report, operation: OperationRecord) -> None:
        if operation.kind != "execute":
            self._keeper.note("it was executed by another client")
        over = msgspec.structs.replace(self._operation(), is_over=True)
        plain = msgspec.structs.replace(report, coverage=None)
        await self._keeper.keep("executed", operation=over, report=plain, decision=None)

    async def _previewed(self, preview: Preview, operation: OperationRecord) -> bool:
        """Record a preview, and write it to the folder. Return whether it must be made anew, for new files."""
        keeper = self._keeper
        digest = digest_of(attention_of(preview))
        if keeper.record.previewed != digest or not operation.is_over:
            name, external_id = keeper.record.name, keeper.record.external_id
            await in_thread(partial(write_preview, self._to, preview, name=name, external_id=external_id))
            over = msgspec.structs.replace(self._operation(), is_over=True)
            await keeper.keep(
                "previewed",
                operation=over,
                previewed=digest,
                blocked_at=0.0,
                invalid_cells=preview.invalid_cells,
            )
        record, with_files = keeper.record, keeper.record.generated_with
        if with_files is None:  # somebody else's run has not read the files that are new
            is_old = record.existed and any(file.is_new for file in record.uploads)
        else:
            is_old = with_files < len(record.uploads)
        if not is_old:
            return False
        keeper.note("generated anew, because files were added")
        await keeper.keep("refused", operation=None, previewed=None, decision=None)
        return True

    async def _failed(self, run: Run, error: RunError) -> Outcome:
        """Return the outcome of a run that failed or was canceled; for an execution, with what it has written."""
        keeper, operation, state = self._keeper, self._operation(), run.state
        text = (state.error if state else None) or error.text or str(error)
        written: int | None = 0
        if operation.kind not in ("generate", "update"):
            written = await self._rows_written(run)
            if written:
                text += f"; the log says that {written} rows were written"
            elif written is None:
                text += "; the log does not say whether rows were written"
        status = "failed" if state is None else state.status
        outcome = Failed(**keeper.outcome_fields(), error=text, step="running", status=status)
        over = msgspec.structs.replace(operation, is_over=True)
        await keeper.keep("failed", operation=over, rows_written=written, outcome=outcome, blocked_at=0.0)
        return outcome

    async def _rows_written(self, run: Run) -> int | None:
        """Return how many rows the failed run has written; None if the log does not say so."""
        try:
            log = await self._operations.migration.log()
        except (ApiError, *TRANSIENT):
            return None
        outcomes = [entry.outcome for entry in log.runs if entry.run_id == run.id and entry.outcome]
        return outcomes[-1].rows_written if outcomes else None

    def _operation(self) -> OperationRecord:
        operation = self._keeper.record.operation
        assert operation is not None
        return operation

    # Decisions

    async def _decided(self, run: Run, attention: NeedsAttention) -> Outcome | Conflict | None:
        """Decide what the run waits for, and carry it out. Return an outcome if it stops here.

        A `Conflict` means that an answer was refused although the run was read before.
        """
        keeper = self._keeper
        parked = Parked(**keeper.outcome_fields(), attention=attention)
        decision = await self._decision(parked)
        if isinstance(decision, Parked) and attention.kind != "preview":
            await self._operations.waits()
            return await self._waited(run, decision)
        if isinstance(decision, Parked | Pending):
            return decision
        try:
            return await self._carry_out(run, decision, attention)
        except BadRequest as error:
            if isinstance(decision, Answer | Credentials):
                return msgspec.structs.replace(parked, refused=str(error))
            raise
        except Conflict as error:
            if isinstance(decision, Answer | Credentials):
                return error
            if keeper.record.regenerated >= _REGENERATED:
                raise
            keeper.note(f"generated anew, because the preview could not be executed: {error.text}")
            await keeper.keep(
                "refused", operation=None, previewed=None, regenerated=keeper.record.regenerated + 1
            )
            return None
        except InvalidInput as error:
            is_gone = error.field == "run"  # it asks nothing any more
            return None if is_gone else msgspec.structs.replace(parked, refused=str(error))

    async def _carry_out(self, run: Run, decision: Decision, attention: NeedsAttention) -> Outcome | None:
        match decision:
            case Approve():
                await self._operations.start("execute")
            case Change(message=message):
                await self._operations.start("update", message)
            case Answer():
                await self._operations.answer(run, decision, attention)
            case Credentials():
                await self._operations.submit(run, decision, attention)
            case Reject() | Cancel():
                return await self._canceled(run, "rejected" if isinstance(decision, Reject) else "canceled")
        return None

    async def _decision(self, parked: Parked) -> Decision | Parked | Pending:
        """Return what the journal, the rules or the policy decide: `Parked` if none of them does."""
        record, attention, policy = self._keeper.record, parked.attention, self._options.decide
        digest = digest_of(attention)
        if record.decision is not None and record.decided_for == digest:
            return record.decision
        is_again = bool(marks_of(attention) & set(self._operation().answered))
        if is_again and attention.kind != "preview":
            what = (
                "credentials were rejected"
                if attention.kind == "credentials"
                else "the run asks the same again"
            )
            return msgspec.structs.replace(parked, refused=f"{what} after an accepted answer")
        if attention.kind == "questions" and self._options.answers:
            try:
                answers = answers_by_rules(self._options.answers, attention.questions, source=record.source)
                return Answer(answers)
            except InvalidInput as error:
                first = attention.questions[0].prompt if attention.questions else None
                refused = error.reason if error.value == first else str(error)  # it is part of `Parked.error`
                parked = msgspec.structs.replace(parked, refused=refused)
        if callable(policy):
            decision = await ask_function(policy, parked, self._keeper.outcome_fields(), self._check)
        elif policy == "reject":
            return Reject()
        elif attention.preview is not None and (
            policy == "approve" or (policy == "approve_safe" and not attention.preview.invalid_cells)
        ):
            decision = Approve()
        else:
            return parked
        if isinstance(decision, Approve | Change):
            await self._keeper.write("decide", decision=decision, decided_for=digest)
        return decision

    def _check(self, parked: Parked, decision: Decision) -> None:
        check_fits(parked.attention, decision)

    async def _waited(self, run: Run, parked: Parked) -> Outcome | None:
        """Wait for a person while the run may stay blocked, then cancel it. Return None if it goes on."""
        keeper, patience = self._keeper, self._options.cancel_blocked_after
        migration_id = self._operations.migration.id
        if patience is None:
            self._context.runs.waits_for_person(migration_id, partial(_read, run))
            return parked
        if not keeper.record.blocked_at:
            await keeper.keep("blocked", blocked_at=wall_clock())
        keeper.tell("deciding", f"waits for a person, at most {patience:.0f} s: {parked.error}")
        left = keeper.record.blocked_at + patience - wall_clock()
        shown = run.state
        try:
            async with asyncio.timeout(max(0.0, left)):
                async for state in run.updates():
                    if shown is None or block_of(state) != block_of(shown):
                        await keeper.keep("decided elsewhere", blocked_at=0.0)
                        return None
        except TimeoutError:
            pass
        state = await self._operations.cancel(run, "slot")
        if state.status != "canceled":
            await keeper.keep("canceled", cancel="", blocked_at=0.0)
            return None  # it has gone on meanwhile
        note = f"its run was canceled after {patience:.0f} s to release the run slot: the next call generates anew"
        outcome = msgspec.structs.replace(parked, ids={"migration": migration_id}, notes=(note,))
        keeper.note(note)
        await keeper.keep(
            "canceled",
            operation=None,
            cancel="",
            previewed=None,
            blocked_at=0.0,
            epoch=keeper.record.epoch + 1,
        )
        return outcome

    async def _canceled(self, run: Run, why: str) -> Outcome | None:
        """Cancel the run, and return what became of it."""
        keeper = self._keeper
        state = await self._operations.cancel(run, "rejected" if why == "rejected" else "canceled")
        if state.status == "completed" and state.report is not None:
            keeper.note("it was executed before it could be canceled")
            await keeper.keep("canceled", cancel="")
            return None
        text = f"{why} by the policy or by a person"
        if state.status not in ("canceled", "failed"):
            text += f"; the server keeps its run as {state.status}, and nothing is imported"
        over = msgspec.structs.replace(self._operation(), is_over=True)
        await keeper.keep("canceled", operation=over, rows_written=0)
        return Failed(**keeper.outcome_fields(), error=text, step="deciding", status="canceled")


async def _read(run: Run) -> object:
    return await run.read()


def may_start_again(record: Record) -> bool:
    """Return whether the customer's run may be started anew: it has written nothing."""
    return record.report is None and record.rows_written == 0


def _reason(error: Exception) -> PendingReason:
    """Return why a migration that stopped with `error` has not ended."""
    if isinstance(error, AuthError):
        return "key_refused"
    if isinstance(error, NoRunSlot):
        return "no_run_slot"
    return "server_away" if isinstance(error, TRANSIENT) else "interrupted"


def _kind(outcome: Outcome) -> OutcomeName:
    return cast("OutcomeName", outcome.__struct_config__.tag)
