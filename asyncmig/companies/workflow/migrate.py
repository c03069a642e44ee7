"""Migrate one customer from CSV to CSV, in steps that can be resumed.

check → create company → upload → start import → wait → (decide → wait)* → deliver

The journal holds the intent, with the exact body, before each request that changes the server, and the response
after it. A migration that was killed or cancelled anywhere continues when it is called again with the same
arguments: it repeats only requests that are safe to repeat.
"""

from collections.abc import Sequence
from functools import partial
from typing import TypeGuard, final

import msgspec

from asyncmig._core.retry import TRANSIENT
from asyncmig._io.context import SessionContext
from asyncmig.companies.company import Company, known_sheets
from asyncmig.companies.expected import Expected
from asyncmig.companies.exports import ExportRun, in_stages, summary_of
from asyncmig.companies.import_run import ImportRun
from asyncmig.companies.wire import ImportState
from asyncmig.companies.workflow.decisions import check_fits, reject_run, send_decision
from asyncmig.companies.workflow.preparation import Preparation, differs, refuses_account
from asyncmig.companies.workflow.record import ExportStep, Record, export_key
from asyncmig.customers.files import FileInput, FilesChanged
from asyncmig.customers.options import MigrationCall
from asyncmig.customers.outcome import (
    Delivered,
    Downloaded,
    ExportMode,
    ExportSummary,
    Failed,
    ImportReport,
    Outcome,
    Parked,
    Pending,
    PendingReason,
)
from asyncmig.customers.status import wall_clock
from asyncmig.errors import BadRequest, Conflict, NotFound, RunError, UnknownOutcome
from asyncmig.journal import ClaimPort
from asyncmig.records.decisions import decide_by_policy
from asyncmig.records.record import are_in, is_delivered
from asyncmig.records.record_keeper import RecordKeeper, seconds_since
from asyncmig.records.workflow import Workflow

__all__ = ["CustomerMigration", "nothing_ran", "refused_change"]

_DECISIONS = 8
"""How often the server may refuse a decision with 409 while the run still asks the same questions."""
_DOWNLOADS = 8
"""The maximum number of repeats of a download whose completeness cannot be checked."""
_NOTHING_RAN = frozenset({"", "starting"})
"""The steps of failures before the run started. Earlier versions recorded an empty step."""
_REFUSED = (BadRequest, Conflict, NotFound)


@final
class CustomerMigration(Workflow[Record]):
    """The steps of one call, from the input files to the delivered sheets."""

    __slots__ = ("_preparation",)

    def __init__(self, context: SessionContext, claim: ClaimPort, call: MigrationCall) -> None:
        keeper = RecordKeeper(context, claim, Record, retry_seconds=call.options.retry_seconds)
        super().__init__(context, keeper, call)
        self._preparation = Preparation(context, call.spec, keeper, call.options.root)

    async def _steps(self) -> Outcome:
        company = await self._preparation.company()
        company.guard(self._inputs.check)
        run = await self._preparation.run(company)
        try:
            end = await self._to_the_end(run)
            return await self._deliver(company, end.report) if isinstance(end, ImportState) else end
        except RunError as error:
            failed = Failed(
                **self._keeper.outcome_fields(),
                error=error.text or str(error),
                step=self._keeper.step,
                report=run.state.report if run.state else None,
                status=run.state.status if run.state else None,
            )
            return await self._salvage(company, failed)

    # The input, and the recorded state

    async def _take_input(self) -> None:
        """Compare the files with the recorded ones. If a failed import had other files, a new import begins."""
        keeper, spec = self._keeper, self._spec
        record = keeper.record
        if record.company_id and record.name != spec.name:
            keeper.note(f"the company was created as {record.name!r} and keeps that name")
        if record.company_id and differs(record.source, record.template_ids, spec):
            keeper.note("the company was created with another source or other templates, and keeps them")
        files = await self._read_files()
        if files is None:
            return
        changed = ", ".join(record.changed_files(files)) if record.files else ""
        if record.has_started and changed:
            await self._take_changed(files, changed)
        elif changed or not record.files:
            await keeper.write("input", files=files, uploads=())
        else:
            keeper.record = record.relocated(files)
        if not keeper.record.company_id:
            keeper.record = keeper.record.with_spec(spec)

    async def _take_changed(self, files: tuple[FileInput, ...], changed: str) -> None:
        """Import changed files, note that they are not imported, or raise `FilesChanged`."""
        outcome, choice = self._keeper.record.outcome, self._options.if_changed
        if nothing_ran(outcome):
            await self._new_epoch(files, changed, retried=0)
        elif choice == "ignore" or not isinstance(outcome, Delivered | Parked):
            self._note_not_imported(changed)
        elif choice == "refuse" and (refused := refused_change(self._keeper.record, files)):
            raise refused
        else:
            if isinstance(outcome, Parked):
                await reject_run(self._context, self._keeper)
            await self._new_epoch(files, changed, retried=0)

    async def _begin_again(self, outcome: Outcome) -> bool:
        """Start a failed import or export again, if the options ask for it. Return whether it was."""
        record = self._keeper.record
        rejected = record.rejected and self._options.may_reject
        wanted = self._retry_failed or record.retried < self._options.retries
        if not record.has_started or not wanted or rejected or self._files is None:
            return False
        self._retry_failed = False
        if nothing_ran(outcome):
            await self._new_epoch(self._files, "a retry was requested", retried=record.retried + 1)
            return True
        if isinstance(outcome, Failed) and outcome.step == "running":
            self._keeper.note(
                "not imported again: the end of its run was not read, and it may have completed"
            )
        if isinstance(outcome, Failed) and outcome.step == "exporting":
            self._keeper.note(
                "exported again: only the natural key of the destination's writer prevents duplicate records"
            )
            await self._keeper.write(
                "export again",
                exports=(),
                retried=record.retried + 1,
                exported_again=record.exported_again + 1,
                outcome=None,
            )
            return True
        return False

    async def _new_epoch(self, files: tuple[FileInput, ...], reason: str, *, retried: int) -> None:
        record = self._keeper.record
        self._keeper.note(f"imported again, for {reason}")
        failed = record.outcome if isinstance(record.outcome, Failed) else None
        clean = failed and failed.status == "failed" and failed.report is None and not record.rejected
        await self._keeper.write(
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
        record, options = self._keeper.record, self._options
        outcome = record.outcome
        if is_delivered(outcome, self._to, options.row_filter):
            return outcome if {each.mode for each in outcome.exports}.issuperset(options.exports) else None
        if record.has_started and nothing_ran(outcome) and are_in(self._to, outcome.files):
            return outcome if outcome.files or not self._salvages(outcome) else None
        return None

    async def _to_the_end(self, run: ImportRun) -> ImportState | Parked | Pending:
        """Wait for the run and decide its questions. Return its end state, or an outcome if it stops earlier."""
        keeper, refused = self._keeper, 0
        while True:
            keeper.begin("running", run.id)
            state = await run.wait()
            attention = run.needs_attention
            if attention is None:
                return state
            parked = Parked(**keeper.outcome_fields(), attention=attention, report=state.report)
            is_safe = not attention.is_destructive
            decision = await decide_by_policy(self._options.decide, parked, check_fits, is_safe=is_safe)
            if isinstance(decision, Parked | Pending):
                return decision
            if run.needs_attention is None:
                continue  # another client has decided meanwhile
            keeper.begin("deciding", type(decision).__name__.lower())
            try:
                await send_decision(keeper, run, decision)
            except Conflict as error:
                refused += 1
                if refused == _DECISIONS:
                    return Pending(**keeper.outcome_fields(), error=str(error), reason="interrupted")
            else:
                refused = 0
                await keeper.keep("decided", outcome=None)

    def _pending_reason(self, error: Exception) -> PendingReason | None:
        return "account_refused" if refuses_account(error) else super()._pending_reason(error)

    # The delivery

    async def _deliver(self, company: Company, report: ImportReport | None) -> Outcome:
        """Download and verify the sheets; then export to the destination, if the options ask for it."""
        keeper = self._keeper
        keeper.begin("downloading")
        if not company.sheets:  # of an adopted company: no create response listed them
            company.sheets = tuple(known_sheets((), report))
        files = await self._download(company, report)
        try:
            reason = await self._export(company)
        except (RunError, *_REFUSED) as error:
            reason = f"the destination export failed: {getattr(error, 'text', '') or error}"
        exports = self._exported()
        if reason:
            return Failed(
                **keeper.outcome_fields(),
                error=reason,
                step=keeper.step,
                report=report,
                files=tuple(files),
                exports=exports,
            )
        return Delivered(
            **keeper.outcome_fields(),
            files=tuple(files),
            row_filter=self._options.row_filter,
            report=report,
            exports=exports,
        )

    async def _salvage(self, company: Company, failed: Failed) -> Failed:
        """Download what the server still returns of a rejected import, if the options ask for it."""
        if not self._salvages(failed):
            return failed
        self._keeper.tell("downloading", "what is left of the rejected import")
        try:
            files = await self._download(company, None)
        except _REFUSED as error:
            self._keeper.note(f"nothing is left of the rejected import: {error}")
            return failed
        return msgspec.structs.replace(failed, files=tuple(files))

    def _salvages(self, failed: Failed) -> bool:
        """Return whether the options ask for the rows of this import, which was rejected by us or in the dashboard.

        Other failed imports have no report.
        """
        was_rejected = self._keeper.record.rejected or failed.report is not None
        return self._options.deliver_rejected and failed.step == "running" and was_rejected

    async def _download(self, company: Company, report: ImportReport | None) -> list[Downloaded]:
        """Download the rows that `report` counts, and those of other imports of the company.

        A proxy may truncate a download. If the report does not say how many rows to expect, the download is repeated
        until two results are equal, not smaller than any before, and have at least the reported rows.
        """
        row_filter = self._options.row_filter
        alone = None if self._keeper.record.has_other_rows else report
        fewest, largest = Expected(report, row_filter).total or 0, 0  # other imports may have added more
        files: list[Downloaded] = []
        for repeat in range(1 + _DOWNLOADS):
            before, attempts = files, self._keeper.while_away()
            while True:
                async with attempts:
                    files = await company.download(
                        to=self._to, filter=row_filter, report=alone, rank=self._keeper.rank
                    )
                    break
            if not repeat and Expected(alone, row_filter).is_exact(company.sheets):
                return files
            largest = max(largest, _size(files))
            if repeat and files == before and _size(files) == largest and _rows(files) >= fewest:
                return files
        self._keeper.note(
            f"the sheets may have been cut short: at last {_rows(files)} rows came, in {_size(files)} bytes; "
            f"at least {fewest} rows were reported, and {largest} bytes came at most"
        )
        return files

    async def _export(self, company: Company) -> str | None:
        """Make the missing exports. Return why the last one was not started, or None."""
        stopped = await in_stages(self._options.exports, partial(self._exported_once, company))
        if stopped is None:
            self._keeper.notes += [each.trouble for each in self._exported() if not each.reported]
        return stopped

    async def _exported_once(self, company: Company, mode: ExportMode) -> ExportSummary:
        self._keeper.begin("exporting", mode)
        step = next((each for each in self._keeper.record.exports if each.mode == mode), None)
        if step is None:
            key = export_key(self._keeper.record, mode)
            step = ExportStep(mode=mode, idempotency_key=key)
            await self._keeper.write("export", exports=self._with(step))
        if step.run_id is None:
            run = await self._keeper.retry_while_away(partial(_started, company, step, self._keeper.rank))
            step = msgspec.structs.replace(step, run_id=run.id, started_at=wall_clock())
            await self._keeper.keep("export started", exports=self._with(step))
        if step.result is None:
            assert step.run_id is not None
            run = company.exports.open(step.run_id, age=seconds_since(step.started_at))
            state = await run.wait()
            step = msgspec.structs.replace(step, result=summary_of(mode, run.id, state.report))
            await self._keeper.keep("exported", exports=self._with(step))
        assert step.result is not None
        return step.result

    def _with(self, step: ExportStep) -> tuple[ExportStep, ...]:
        return (*(each for each in self._keeper.record.exports if each.mode != step.mode), step)

    def _exported(self) -> tuple[ExportSummary, ...]:
        return tuple(step.result for step in self._keeper.record.exports if step.result is not None)


def refused_change(record: Record, files: Sequence[FileInput]) -> FilesChanged | None:
    """Return the error for changed files of a delivered or parked customer; None if there are none."""
    changed = ", ".join(record.changed_files(files)) if record.files and record.has_started else ""
    if not changed or not isinstance(record.outcome, Delivered | Parked):
        return None
    reason = "changed since the import began; the customer keeps its outcome: restore them, or import again"
    return FilesChanged("files", changed, reason)


def nothing_ran(outcome: Outcome | None) -> TypeGuard[Failed]:
    """Return whether an import failed and may be started again.

    A run whose end was not read may still complete, whatever the server answered.
    """
    if not isinstance(outcome, Failed):
        return False
    return outcome.step in _NOTHING_RAN or (outcome.step == "running" and outcome.status is not None)


async def _started(company: Company, step: ExportStep, rank: float) -> ExportRun:
    try:
        return await company.exports.start(mode=step.mode, idempotency_key=step.idempotency_key, rank=rank)
    except UnknownOutcome as error:
        if isinstance(error.__cause__, TRANSIENT):
            raise error.__cause__ from error  # the journal has the idempotency key
        raise


def _size(files: list[Downloaded]) -> int:
    return sum(file.size for file in files)


def _rows(files: list[Downloaded]) -> int:
    return sum(file.rows for file in files)
