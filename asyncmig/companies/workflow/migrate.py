"""Migrate one customer from CSV to CSV, in steps that can be resumed.

check → create company → upload → start import → wait → (decide → wait)* → deliver

The journal holds the intent, with the exact body, before each request that changes the server, and the response
after it. A migration that was killed or cancelled anywhere continues when it is called again with the same
arguments: it repeats only requests that are safe to repeat.
"""

import asyncio
import contextlib
import logging
from functools import partial
from pathlib import Path
from typing import TypeGuard, cast, final

import msgspec

from asyncmig._core.retry import TRANSIENT
from asyncmig._io.context import SessionContext
from asyncmig._io.failures import OwnerScope
from asyncmig.companies import routes
from asyncmig.companies.company import Company
from asyncmig.companies.import_run import ImportRun
from asyncmig.companies.imports import import_body
from asyncmig.companies.uploads import upload
from asyncmig.companies.wire import ImportState
from asyncmig.companies.workflow.adoption import look_first
from asyncmig.companies.workflow.creation import Creation, refuses_account, unknown
from asyncmig.companies.workflow.decisions import SUPPORTED, reject_run, send_decision
from asyncmig.companies.workflow.delivery import Delivery
from asyncmig.companies.workflow.names import differs
from asyncmig.companies.workflow.record import API, Record, import_key, keeper_of, with_spec
from asyncmig.customers.decisions import Approve, Decision, Reject, checked_decision
from asyncmig.customers.failures import wall_clock
from asyncmig.customers.files import NOT_IMPORTED_AGAIN, FileInput, FilesChanged
from asyncmig.customers.options import MigrationOptions, Turn
from asyncmig.customers.outcome import (
    Delivered,
    Failed,
    Outcome,
    Parked,
    Pending,
    PendingReason,
    Unknown,
)
from asyncmig.customers.paths import Inputs, check_below
from asyncmig.customers.questions import check_answers
from asyncmig.customers.spec import Spec
from asyncmig.errors import (
    ApiError,
    AuthError,
    Conflict,
    InvalidInput,
    JournalError,
    RunError,
    SessionClosed,
    UnknownOutcome,
)
from asyncmig.journal import ClaimPort
from asyncmig.records.policy import ask_function
from asyncmig.records.record import check_apart, read_inputs
from asyncmig.records.record_keeper import RecordKeeper
from asyncmig.steps import OutcomeName

__all__ = ["migrate_customer", "nothing_ran"]

_log = logging.getLogger("asyncmig")
_UPLOADS_KEEP = 1800.0
"""Wall-clock seconds after which the files of an import that was not started are uploaded again."""
_LOOK_AGAIN = 10.0
"""Seconds between requests for the active import, if its id is unknown."""
_DECISIONS = 8
"""How often the server may refuse a decision with 409 while the run still asks the same questions."""
_NOTHING_RAN = frozenset({"", "starting"})
"""The steps of failures before the run started. Earlier versions recorded an empty step."""


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
    progress = keeper_of(context, claim, retry_seconds=options.retry_seconds)
    if not progress.record.name:
        progress.record = with_spec(progress.record, spec)
    try:
        await progress.responses.catch_up()
        with OwnerScope(progress.owner()):
            return await _Migration(context, spec, progress, to, options, inputs, turn).run()
    except JournalError as error:
        if not (progress.responses.unwritten and progress.responses.must_end):
            raise
        return Pending(**progress.outcome_fields(), error=str(error), reason="interrupted")


@final
class _Migration:
    """The steps of one call, from the input files to the delivered sheets."""

    __slots__ = (
        "_context",
        "_creation",
        "_delivery",
        "_files",
        "_inputs",
        "_options",
        "_progress",
        "_retry_failed",
        "_spec",
        "_to",
        "_turn",
    )

    def __init__(
        self,
        context: SessionContext,
        spec: Spec,
        progress: RecordKeeper[Record],
        to: Path,
        options: MigrationOptions,
        inputs: Inputs,
        turn: Turn | None,
    ) -> None:
        self._spec, self._options, self._to, self._inputs = spec, options, to, inputs
        self._context, self._turn = context, turn
        self._progress = progress
        self._creation = Creation(context, spec, self._progress)
        self._delivery = Delivery(self._progress, to, options)
        self._retry_failed = options.retry_failed and isinstance(self._progress.record.outcome, Failed)
        self._files: tuple[FileInput, ...] | None = None
        """The present input files; None if they cannot be read."""

    async def run(self) -> Outcome:
        """Run the remaining steps, and record the outcome."""
        progress = self._progress
        while True:
            try:
                progress.begin("checking")
                await self._take_input()
                outcome = self._finished() or await self._steps()
            except FilesChanged as error:
                progress.tell("failed", str(error))
                return Failed(**progress.outcome_fields(), error=str(error), step="checking")
            except UnknownOutcome as error:
                outcome = Unknown(
                    **progress.outcome_fields(), error=str(error), sent=error.sent, advice=error.advice
                )
            except (AuthError, SessionClosed, OSError, *TRANSIENT) as error:
                outcome = Pending(**progress.outcome_fields(), error=str(error), reason=_reason(error))
            except (InvalidInput, ApiError) as error:
                outcome = Failed(**progress.outcome_fields(), error=str(error), step=progress.step)
            except JournalError:
                raise
            except Exception as error:
                _log.exception("the migration of %s crashed", progress.record.external_id)
                outcome = Pending(
                    **progress.outcome_fields(), error=f"{type(error).__name__}: {error}", reason="crashed"
                )
            if outcome != progress.record.outcome:
                await progress.keep(_kind(outcome), outcome=outcome)
            if not await self._begin_again(outcome):
                break
        if progress.notes:
            outcome = msgspec.structs.replace(outcome, notes=tuple(progress.notes))
        progress.tell(_kind(outcome), getattr(outcome, "error", ""))
        return outcome

    async def _steps(self) -> Outcome:
        if self._turn is not None:
            await self._turn()
        company = await self._creation.company()
        company.guard(self._inputs.check)
        record = self._progress.record
        run = (
            await look_first(company, self._progress)
            if record.adopted and not record.import_requested
            else None
        )
        if run is None:
            await self._upload(company)
            run = await self._run(company)
        try:
            end = await self._to_the_end(run)
            return await self._delivery.deliver(company, end.report) if isinstance(end, ImportState) else end
        except RunError as error:
            failed = Failed(
                **self._progress.outcome_fields(),
                error=error.text or str(error),
                step=self._progress.step,
                report=run.state.report if run.state else None,
                status=run.state.status if run.state else None,
            )
            return await self._delivery.salvage(company, failed)

    # The input, and the recorded state

    async def _take_input(self) -> None:
        """Compare the files with the recorded ones. If a failed import had other files, a new import begins."""
        progress, spec = self._progress, self._spec
        record, self._files = progress.record, None
        if record.company_id and record.name != spec.name:
            self._progress.note(f"the company was created as {record.name!r} and keeps that name")
        if record.company_id and differs(record.source, record.template_ids, spec):
            self._progress.note(
                "the company was created with another source or other templates, and keeps them"
            )
        try:
            files = self._files = await read_inputs(spec.files, self._check_input)
        except InvalidInput as error:
            if not record.import_requested:
                raise
            self._progress.note(f"{error}; its import had started and continues without it")
            return
        changed = ", ".join(record.changed_files(files)) if record.files else ""
        if record.import_requested and changed:
            await self._take_changed(files, changed)
        elif changed or not record.files:
            await progress.write("input", files=files, uploads=())
        else:
            progress.record = record.relocated(files)
        if not progress.record.company_id:
            progress.record = with_spec(progress.record, spec)

    def _check_input(self) -> None:
        """Raise `InvalidInput` for wrong values of the spec, and for files in the output folder. Blocks."""
        self._spec.validate(root=self._options.root)
        check_apart(self._spec.files, self._to)

    async def _take_changed(self, files: tuple[FileInput, ...], changed: str) -> None:
        """Import changed files, note that they are not imported, or raise `FilesChanged`."""
        outcome, choice = self._progress.record.outcome, self._options.if_changed
        if nothing_ran(outcome):
            await self._new_epoch(files, changed, retried=0)
        elif choice == "ignore" or not isinstance(outcome, Delivered | Parked):
            self._progress.note(f"{NOT_IMPORTED_AGAIN}: {changed}")
            _log.warning("%s: %s: %s", self._spec.external_id, NOT_IMPORTED_AGAIN, changed)
        elif choice == "refuse":
            reason = "changed since the import began; the customer keeps its outcome: restore them, or import again"
            raise FilesChanged("files", changed, reason)
        else:
            if isinstance(outcome, Parked):
                await reject_run(self._context, self._progress)
            await self._new_epoch(files, changed, retried=0)

    async def _begin_again(self, outcome: Outcome) -> bool:
        """Start a failed import or export again, if the options ask for it. Return whether it was."""
        record = self._progress.record
        rejected = record.rejected and self._options.may_reject
        wanted = self._retry_failed or record.retried < self._options.retries
        if not record.import_requested or not wanted or rejected or self._files is None:
            return False
        self._retry_failed = False
        if nothing_ran(outcome):
            await self._new_epoch(self._files, "a retry was requested", retried=record.retried + 1)
            return True
        if isinstance(outcome, Failed) and outcome.step == "running":
            self._progress.note(
                "not imported again: the end of its run was not read, and it may have completed"
            )
        if isinstance(outcome, Failed) and outcome.step == "exporting":
            self._progress.note(
                "exported again: only the natural key of the destination's writer prevents duplicate records"
            )
            await self._progress.write(
                "export again",
                exports=(),
                retried=record.retried + 1,
                exported_again=record.exported_again + 1,
                outcome=None,
            )
            return True
        return False

    async def _new_epoch(self, files: tuple[FileInput, ...], reason: str, *, retried: int) -> None:
        record = self._progress.record
        self._progress.note(f"imported again, for {reason}")
        failed = record.outcome if isinstance(record.outcome, Failed) else None
        clean = failed and failed.status == "failed" and failed.report is None and not record.rejected
        await self._progress.write(
            "new epoch",
            epoch=record.epoch + 1,
            has_other_rows=record.has_other_rows or not clean,
            retried=retried,
            files=files,
            uploads=(),
            import_body=None,
            run_id=None,
            adopted=False,
            rejected=False,
            decided="",
            exports=(),
            exported_again=0,
            outcome=None,
        )

    def _finished(self) -> Outcome | None:
        """Return the recorded outcome if no work is left, or None."""
        record = self._progress.record
        outcome = record.outcome
        if self._delivery.is_done(outcome) or (
            record.import_requested and nothing_ran(outcome) and self._delivery.is_salvaged(outcome)
        ):
            return outcome
        return None

    # The steps

    async def _upload(self, company: Company) -> None:
        progress = self._progress
        if progress.record.import_requested:
            return
        if progress.record.uploads and wall_clock() - progress.record.uploaded_at > _UPLOADS_KEEP:
            await progress.write("uploads expired", uploads=())
        for file in progress.record.files[len(progress.record.uploads) :]:
            progress.begin("uploading", Path(file.path).name)
            if self._options.root is not None:  # a link may have changed since
                check_below(Path(self._options.root), [Path(file.path)])
            uploaded = await progress.retry_while_away(
                partial(upload, self._context, company.id, Path(file.path), rank=progress.rank)
            )
            if uploaded.sha256 != file.sha256:
                raise InvalidInput("files", file.path, "changed while it was being migrated: run again")
            await progress.keep(
                "uploaded",
                uploads=(*progress.record.uploads, uploaded),
                uploaded_at=progress.record.uploaded_at if progress.record.uploads else wall_clock(),
            )

    async def _run(self, company: Company) -> ImportRun:
        record = self._progress.record
        if record.run_id is not None:
            now = wall_clock()
            run = company.imports.open(record.run_id, age=now - record.started_at, group=self._group())
            if record.decided:
                run.note_decision(record.decided, age=max(0.0, now - record.decided_at))
            return run
        self._progress.begin("starting")
        doubtful = record.import_body is not None
        if record.import_body is None:
            body = import_body(import_key(record), record.uploads)
            await self._progress.write("start", import_body=body.decode())
        run = await self._start(company, doubtful=doubtful)
        await self._progress.keep("started", run_id=run.id, started_at=wall_clock(), import_body=None)
        return run

    async def _start(self, company: Company, *, doubtful: bool) -> ImportRun:
        """Start the import. After a 409, read the active import to find the reason.

        If the response to our start was lost, the active import is ours, because this process holds the customer.
        Otherwise another client started it, and its end is awaited. If no import is active, either the key was used
        for another import, or that import has just ended: one more request decides.
        """
        progress = self._progress
        assert progress.record.import_body is not None
        body = progress.record.import_body.encode()
        idle, group = 0, self._group()
        while True:
            try:
                return await progress.retry_while_away(
                    partial(company.imports.post, body, rank=progress.rank, group=group)
                )
            except Conflict as error:
                conflict = error
            active = await progress.retry_while_away(partial(company.imports.recover, rank=progress.rank))
            if active is None:
                idle += 1
                if idle > 1:
                    raise unknown(routes.START_IMPORT, conflict) from conflict
                continue
            if active.id and (doubtful or conflict.after_doubt):
                return active
            if not (doubtful or conflict.after_doubt):
                await progress.keep("waits for another import", has_other_rows=True)
            await self._outlast(company, active)

    async def _outlast(self, company: Company, active: ImportRun) -> None:
        """Wait for the end of an import that is not ours, or whose id is unknown."""
        self._progress.begin("starting", "waits for another import of this company")
        if active.id:
            with contextlib.suppress(RunError):
                await active.wait(through_parks=True)
            await asyncio.sleep(_LOOK_AGAIN)  # the list of active imports may lag behind the reads
            return
        look = partial(company.imports.active, rank=self._progress.rank)
        while await self._progress.retry_while_away(look) is not None:  # noqa: ASYNC110 - the server's
            await asyncio.sleep(_LOOK_AGAIN)

    async def _to_the_end(self, run: ImportRun) -> ImportState | Parked | Pending:
        """Wait for the run and decide its questions. Return its end state, or an outcome if it stops earlier."""
        progress, refused = self._progress, 0
        while True:
            progress.begin("running", run.id)
            state = await run.wait()
            attention = run.needs_attention
            if attention is None:
                return state
            parked = Parked(**progress.outcome_fields(), attention=attention, report=state.report)
            decision = await self._decision(parked)
            if isinstance(decision, Parked | Pending):
                return decision
            if run.needs_attention is None:
                continue  # another client has decided meanwhile
            progress.begin("deciding", type(decision).__name__.lower())
            try:
                await send_decision(progress, run, decision)
            except Conflict as error:
                refused += 1
                if refused == _DECISIONS:
                    return Pending(**progress.outcome_fields(), error=str(error), reason="interrupted")
            else:
                refused = 0
                await progress.keep("decided", outcome=None)

    async def _decision(self, parked: Parked) -> Decision | Parked | Pending:
        """Return the decision; `Parked` if there is none or a wrong one, `Pending` if the policy's function fails."""
        policy = self._options.decide
        if callable(policy):
            return await ask_function(policy, parked, self._progress.outcome_fields(), _check_fits)
        if policy == "reject":
            return Reject()
        is_safe = not parked.attention.is_destructive
        return Approve() if policy == "approve" or (policy == "approve_safe" and is_safe) else parked

    def _group(self) -> int:
        """Return the poll group of the run: the number of digits of its size. Runs of a group take about
        equally long.
        """
        return len(str(sum(file.size for file in self._progress.record.files)))


def _reason(error: Exception) -> PendingReason:
    """Return why a migration that stopped with `error` has not ended."""
    if isinstance(error, AuthError):
        return "key_refused"
    if refuses_account(error):
        return "account_refused"
    return "server_away" if isinstance(error, TRANSIENT) else "interrupted"


def _check_fits(parked: Parked, decision: Decision) -> None:
    """Raise `InvalidInput` for a decision that this generation lacks, or for answers that were not offered."""
    checked_decision(decision, SUPPORTED, API)
    if isinstance(decision, Approve):
        check_answers(parked.attention, decision.answers or {})


def nothing_ran(outcome: Outcome | None) -> TypeGuard[Failed]:
    """Return whether an import failed and may be started again.

    A run whose end was not read may still complete, whatever the server answered.
    """
    if not isinstance(outcome, Failed):
        return False
    return outcome.step in _NOTHING_RAN or (outcome.step == "running" and outcome.status is not None)


def _kind(outcome: Outcome) -> OutcomeName:
    return cast("OutcomeName", outcome.__struct_config__.tag)
