"""Migrate one customer from CSV to CSV, in steps that can be resumed.

check → create company → upload → start import → wait → (decide → wait)* → deliver

The journal holds the intent, with the exact body, before each request that changes the server, and the response
after it. A migration that was killed or cancelled anywhere continues when it is called again with the same
arguments: it repeats only requests that are safe to repeat.
"""

import asyncio
import contextlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TypeGuard, final

from asyncmig._io.context import SessionContext
from asyncmig.companies import routes
from asyncmig.companies.company import Company
from asyncmig.companies.import_run import ImportRun
from asyncmig.companies.imports import import_body
from asyncmig.companies.uploads import upload
from asyncmig.companies.wire import ImportState
from asyncmig.companies.workflow.creation import Creation, differs, look_first, refuses_account, unknown
from asyncmig.companies.workflow.decisions import SUPPORTED, reject_run, send_decision
from asyncmig.companies.workflow.delivery import Delivery
from asyncmig.companies.workflow.record import API, Record, import_key, keeper_of
from asyncmig.customers.decisions import Approve, Decision, checked_decision
from asyncmig.customers.files import FileInput, FilesChanged
from asyncmig.customers.options import MigrationCall
from asyncmig.customers.outcome import Delivered, Failed, Outcome, Parked, Pending, PendingReason
from asyncmig.customers.paths import check_below
from asyncmig.customers.questions import NeedsAttention, check_answers
from asyncmig.customers.status import wall_clock
from asyncmig.errors import Conflict, InvalidInput, RunError
from asyncmig.journal import ClaimPort
from asyncmig.records.decisions import decide_by_policy
from asyncmig.records.workflow import Workflow

__all__ = ["CustomerMigration", "nothing_ran", "refused_change"]

_UPLOADS_KEEP = 1800.0
"""Wall-clock seconds after which the files of an import that was not started are uploaded again."""
_LOOK_AGAIN = 10.0
"""Seconds between requests for the active import, if its id is unknown."""
_DECISIONS = 8
"""How often the server may refuse a decision with 409 while the run still asks the same questions."""
_NOTHING_RAN = frozenset({"", "starting"})
"""The steps of failures before the run started. Earlier versions recorded an empty step."""


@final
class CustomerMigration(Workflow[Record]):
    """The steps of one call, from the input files to the delivered sheets."""

    __slots__ = ("_creation", "_delivery")

    def __init__(self, context: SessionContext, claim: ClaimPort, call: MigrationCall) -> None:
        keeper = keeper_of(context, claim, retry_seconds=call.options.retry_seconds)
        super().__init__(context, keeper, call)
        self._creation = Creation(context, call.spec, keeper)
        self._delivery = Delivery(keeper, call.to, call.options)

    async def _steps(self) -> Outcome:
        company = await self._creation.company()
        company.guard(self._inputs.check)
        record = self._keeper.record
        run = (
            await look_first(company, self._keeper)
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
                **self._keeper.outcome_fields(),
                error=error.text or str(error),
                step=self._keeper.step,
                report=run.state.report if run.state else None,
                status=run.state.status if run.state else None,
            )
            return await self._delivery.salvage(company, failed)

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
        if record.import_requested and changed:
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
        if not record.import_requested or not wanted or rejected or self._files is None:
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
        record = self._keeper.record
        outcome = record.outcome
        if self._delivery.is_done(outcome) or (
            record.import_requested and nothing_ran(outcome) and self._delivery.is_salvaged(outcome)
        ):
            return outcome
        return None

    # The steps

    async def _upload(self, company: Company) -> None:
        keeper = self._keeper
        if keeper.record.import_requested:
            return
        if keeper.record.uploads and wall_clock() - keeper.record.uploaded_at > _UPLOADS_KEEP:
            await keeper.write("uploads expired", uploads=())
        for file in keeper.record.files[len(keeper.record.uploads) :]:
            keeper.begin("uploading", Path(file.path).name)
            if self._options.root is not None:  # a link may have changed since
                check_below(Path(self._options.root), [Path(file.path)])
            uploaded = await keeper.retry_while_away(
                partial(upload, self._context, company.id, Path(file.path), rank=keeper.rank)
            )
            if uploaded.sha256 != file.sha256:
                raise InvalidInput("files", file.path, "changed while it was being migrated: run again")
            await keeper.keep(
                "uploaded",
                uploads=(*keeper.record.uploads, uploaded),
                uploaded_at=keeper.record.uploaded_at if keeper.record.uploads else wall_clock(),
            )

    async def _run(self, company: Company) -> ImportRun:
        record = self._keeper.record
        if record.run_id is not None:
            now = wall_clock()
            run = company.imports.open(record.run_id, age=now - record.started_at, group=self._group())
            if record.decided:
                run.note_decision(record.decided, age=max(0.0, now - record.decided_at))
            return run
        self._keeper.begin("starting")
        doubtful = record.import_body is not None
        if record.import_body is None:
            body = import_body(import_key(record), record.uploads)
            await self._keeper.write("start", import_body=body.decode())
        run = await self._start(company, doubtful=doubtful)
        await self._keeper.keep("started", run_id=run.id, started_at=wall_clock(), import_body=None)
        return run

    async def _start(self, company: Company, *, doubtful: bool) -> ImportRun:
        """Start the import. After a 409, read the active import to find the reason.

        If the response to our start was lost, the active import is ours, because this process holds the customer.
        Otherwise another client started it, and its end is awaited. If no import is active, either the key was used
        for another import, or that import has just ended: one more request decides.
        """
        keeper = self._keeper
        assert keeper.record.import_body is not None
        body = keeper.record.import_body.encode()
        idle, group = 0, self._group()
        while True:
            try:
                return await keeper.retry_while_away(
                    partial(company.imports.post, body, rank=keeper.rank, group=group)
                )
            except Conflict as error:
                conflict = error
            active = await keeper.retry_while_away(partial(company.imports.recover, rank=keeper.rank))
            if active is None:
                idle += 1
                if idle > 1:
                    raise unknown(routes.START_IMPORT, str(conflict)) from conflict
                continue
            if active.id and (doubtful or conflict.after_doubt):
                return active
            if not (doubtful or conflict.after_doubt):
                await keeper.keep("waits for another import", has_other_rows=True)
            await self._outlast(company, active)

    async def _outlast(self, company: Company, active: ImportRun) -> None:
        """Wait for the end of an import that is not ours, or whose id is unknown."""
        self._keeper.begin("starting", "waits for another import of this company")
        if active.id:
            with contextlib.suppress(RunError):
                await active.wait(through_parks=True)
            await asyncio.sleep(_LOOK_AGAIN)  # the list of active imports may lag behind the reads
            return
        look = partial(company.imports.active, rank=self._keeper.rank)
        while await self._keeper.retry_while_away(look) is not None:  # noqa: ASYNC110 - the server's
            await asyncio.sleep(_LOOK_AGAIN)

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
            decision = await decide_by_policy(
                self._options.decide,
                parked,
                _check_fits,
                is_safe=not attention.is_destructive,
            )
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

    def _group(self) -> int:
        """Return the poll group of the run: the number of digits of its size. Runs of a group take about
        equally long.
        """
        return len(str(sum(file.size for file in self._keeper.record.files)))


def _check_fits(asked: NeedsAttention, decision: Decision) -> None:
    """Raise `InvalidInput` for a decision that this generation lacks, or for answers that were not offered."""
    checked_decision(decision, SUPPORTED, API)
    if isinstance(decision, Approve):
        check_answers(asked, decision.answers or {})


def refused_change(record: Record, files: Sequence[FileInput]) -> FilesChanged | None:
    """Return the error for changed files of a delivered or parked customer; None if there are none."""
    changed = ", ".join(record.changed_files(files)) if record.files and record.import_requested else ""
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
