"""Drive a customer's run from `generate` to the report of its execution: wait, answer, approve, cancel.

What the run waits for is decided by what a person has recorded in the journal, by the rules for answers, or by the
policy, in this order. If none of them decides, the customer parks.
"""

import asyncio
from functools import partial
from pathlib import Path
from typing import Final, final

import msgspec

from asyncmig._core.retry import TRANSIENT
from asyncmig._io.context import SessionContext
from asyncmig._io.threads import in_thread
from asyncmig.customers.answer_rules import answers_by_rules
from asyncmig.customers.decisions import Answer, Approve, Cancel, Change, Credentials, Decision, Reject
from asyncmig.customers.options import MigrationOptions
from asyncmig.customers.outcome import Failed, Outcome, Parked, Pending
from asyncmig.customers.preview_page import PREVIEW_DATA, write_preview
from asyncmig.customers.previews import Preview
from asyncmig.customers.questions import NeedsAttention
from asyncmig.customers.status import wall_clock
from asyncmig.errors import (
    ApiError,
    BadRequest,
    Conflict,
    InvalidInput,
    NotFound,
    RunCanceled,
    RunError,
    RunFailed,
)
from asyncmig.migrations.log import LogRun
from asyncmig.migrations.operation import block_of
from asyncmig.migrations.routes import READ_RUN
from asyncmig.migrations.runs import Result, Run
from asyncmig.migrations.wire import Report, RunState
from asyncmig.migrations.workflow.decisions import attention_of, check_fits
from asyncmig.migrations.workflow.operations import Operations, with_version
from asyncmig.migrations.workflow.record import Record, marks_of
from asyncmig.records.decisions import decide_by_policy
from asyncmig.records.record_keeper import RecordKeeper, seconds_since

__all__ = ["RunDriver"]

_REFUSALS: Final = 8
"""How often in a row an answer may be refused although the run still waits for it."""
_PREPARING: Final = frozenset({"generate", "update", "clarify"})
"""Operations that write no rows."""
_REGENERATED: Final = 2
"""How often in a row a preview that can no longer be executed is generated again."""


@final
class RunDriver:
    """Drives the run of one customer. `folder` gets the preview."""

    __slots__ = ("_context", "_folder", "_keeper", "_operations", "_options")

    def __init__(
        self,
        context: SessionContext,
        keeper: RecordKeeper[Record],
        operations: Operations,
        folder: Path,
        options: MigrationOptions,
    ) -> None:
        self._context, self._keeper, self._operations = context, keeper, operations
        self._folder, self._options = folder, options

    async def to_the_end(self, *, reads_live: bool | None) -> Outcome | None:
        """Run the operations up to the report of an execution; return an outcome if it stops earlier.

        `reads_live`: whether `generate` reads the live connection; None is the server's default.
        """
        keeper, operations, refused = self._keeper, self._operations, 0
        while True:
            run = await self._run(reads_live)
            if keeper.record.cancel in ("rejected", "canceled"):
                ended = await self._canceled(run, keeper.record.cancel)
                if ended is not None:
                    return ended
            keeper.begin("running", operations.operation.kind or "")
            result = await self._result(run)
            await operations.note_id(run)
            if isinstance(result, RunError):
                # A process that was interrupted may have canceled the run to release its slot.
                if keeper.record.cancel == "slot" and isinstance(result, RunCanceled):
                    await self._release()
                    continue
                return await self._failed(run, result)
            if isinstance(result, Report):
                result = await self._preview_instead(run) or result
            if isinstance(result, Report):
                await self._executed(result)
                return None
            if isinstance(result, Preview) and self._may_be_shown():
                versioned = partial(with_version, self._context, keeper.record, result)
                result = await keeper.retry_while_away(versioned)
            attention = attention_of(result)
            if isinstance(result, Preview) and await self._previewed(result):
                continue
            step = await self._decided(run, attention)
            if step is None:
                refused = 0
                continue
            if isinstance(step, Conflict):
                refused += 1
                if refused < _REFUSALS:
                    continue
                self._keeps_slot(run, attention)
                return Pending(**keeper.outcome_fields(), error=str(step), reason="interrupted")
            return step

    async def _result(self, run: Run) -> Result | RunError:
        """Wait until the operation has ended or the run is blocked."""
        try:
            return await run.wait()
        except RunError as error:
            return error
        except NotFound as error:
            is_run = error.endpoint == READ_RUN.template
            if not is_run or self._operations.operation.kind not in ("generate", "update"):
                raise
            return RunFailed(run.id, f"the server has deleted the run: {error.text}")

    def _may_be_shown(self) -> bool:
        """Return whether a person may see the preview, or has decided about it."""
        decides_alone = (
            self._options.decide in ("approve", "reject") and self._operations.operation.kind != "execute"
        )
        return self._keeper.record.decision is not None or not decides_alone

    async def _run(self, live: bool | None) -> Run:
        """Return the run of the journal; start `generate` if there is none."""
        operation = self._keeper.record.operation
        if operation is None:
            return await self._operations.start("generate", reads_live=live)
        if operation.run_id is not None:
            return await self._operations.run()
        assert operation.kind is not None  # an earlier process may have sent this start
        live = live if operation.kind == "generate" else None
        return await self._operations.start(operation.kind, operation.message, reads_live=live)

    async def _preview_instead(self, run: Run) -> Preview | None:
        """Return the preview of a completed run that was not executed: another client may have sent a clarify."""
        is_executed = self._operations.operation.kind == "execute"
        if is_executed or run.state is None or run.state.report is not None:
            return None
        if any(entry.outcome for entry in await self._logged(run)):
            return None
        try:
            return await self._keeper.retry_while_away(self._operations.migration.preview)
        except NotFound:
            return None

    async def _executed(self, report: Report) -> None:
        keeper, with_files = self._keeper, self._keeper.record.generated_with
        if self._operations.operation.kind != "execute":
            keeper.note("it was executed by another client")
        if with_files is not None and (late := keeper.record.uploads[with_files:]):
            names = ", ".join(file.name for file in late)
            keeper.note(f"not imported, because added after the preview was made: {names}")
        plain = msgspec.structs.replace(report, coverage=None)
        over = self._operations.changed(is_over=True)
        await keeper.keep("executed", operation=over, report=plain, decision=None)

    async def _previewed(self, preview: Preview) -> bool:
        """Record a preview, and write it to the folder. Return whether it must be made anew, for new files."""
        keeper = self._keeper
        digest = attention_of(preview).digest
        is_new = keeper.record.previewed != digest or not self._operations.operation.is_over
        if is_new or not await in_thread((self._folder / PREVIEW_DATA).exists):
            name, external_id = keeper.record.name, keeper.record.external_id
            await in_thread(partial(write_preview, self._folder, preview, name=name, external_id=external_id))
        if is_new:
            await keeper.keep(
                "previewed",
                operation=self._operations.changed(is_over=True),
                previewed=digest,
                blocked_at=0.0,
                invalid_cells=preview.invalid_cells,
            )
        record, with_files = keeper.record, keeper.record.generated_with
        if with_files is None:  # somebody else's run has not read the files that are new
            is_old = record.existed and any(
                file.is_new
                or (record.earlier_files is not None and file.storage_path not in record.earlier_files)
                for file in record.uploads
            )
        else:
            is_old = with_files < len(record.uploads)
        if not is_old:
            return False
        keeper.note("generated anew, because files were added")
        await keeper.keep("refused", operation=None, previewed=None, decision=None)
        return True

    async def _failed(self, run: Run, error: RunError) -> Outcome:
        """Return the outcome of a run that failed or was canceled; for an execution, with what it has written."""
        keeper, operation, state = self._keeper, self._operations.operation, run.state
        text = (state.error if state else None) or error.text or str(error)
        is_prepared = operation.kind in ("generate", "update")
        written: int | None = 0
        if operation.is_over or not is_prepared:  # another client may have executed the preview
            written = await self._rows_written(run)
            if written:
                text += f"; the log says that {written} rows were written"
            elif written is None and not is_prepared:
                text += "; the log does not say whether rows were written"
            elif written is None:
                written = 0
        status = "failed" if state is None else state.status
        outcome = Failed(**keeper.outcome_fields(), error=text, step="running", status=status)
        over = self._operations.changed(is_over=True)
        await keeper.keep("failed", operation=over, rows_written=written, outcome=outcome, blocked_at=0.0)
        return outcome

    async def _rows_written(self, run: Run) -> int | None:
        """Return how many rows the failed run has written; None if the log does not say so."""
        entries = await self._logged(run)
        outcomes = [entry.outcome for entry in entries if entry.outcome]
        if entries and not outcomes and run.kind is None and {entry.kind for entry in entries} <= _PREPARING:
            return 0
        return outcomes[-1].rows_written if outcomes else None

    async def _logged(self, run: Run) -> list[LogRun]:
        """Return what the log has about the run; nothing if the log cannot be read."""
        try:
            log = await self._operations.migration.log()
        except (ApiError, *TRANSIENT):
            return []
        return [entry for entry in log.runs if run.id and entry.run_id == run.id]

    # Decisions

    async def _decided(self, run: Run, attention: NeedsAttention) -> Outcome | Conflict | None:
        """Decide what the run waits for, and carry it out. Return an outcome if it stops here.

        A `Conflict` means that an answer was refused although the run was read before.
        """
        keeper = self._keeper
        parked = Parked(**keeper.outcome_fields(), attention=attention)
        decision = await self._decision(parked)
        if isinstance(decision, Parked):
            return await self._parked(run, decision)
        if isinstance(decision, Pending):
            self._keeps_slot(run, attention)
            return decision
        try:
            return await self._carry_out(run, decision, attention)
        except BadRequest as error:
            if isinstance(decision, Answer | Credentials):
                return await self._parked(run, msgspec.structs.replace(parked, refused=str(error)))
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
            if error.field == "run":  # it asks nothing any more
                return None
            return await self._parked(run, msgspec.structs.replace(parked, refused=str(error)))

    async def _carry_out(self, run: Run, decision: Decision, attention: NeedsAttention) -> Outcome | None:
        match decision:
            case Approve():
                await self._operations.start("execute")
            case Change(message=message):
                await self._operations.start("update", message)
            case Answer() | Credentials():
                await self._operations.answer(run, decision, attention)
            case Reject() | Cancel():
                return await self._canceled(run, "rejected" if isinstance(decision, Reject) else "canceled")
        return None

    async def _decision(self, parked: Parked) -> Decision | Parked | Pending:
        """Return what the journal, the rules or the policy decide: `Parked` if none of them does."""
        record, attention, policy = self._keeper.record, parked.attention, self._options.decide
        digest = attention.digest
        if record.decision is not None and record.decided_for == digest:
            return record.decision
        is_again = bool(marks_of(attention) & set(self._operations.operation.answered))
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
        if (
            attention.kind == "preview"
            and self._operations.operation.kind == "execute"
            and policy != "reject"
        ):
            refused = "its execution ended with a preview, and may have written rows"
            return msgspec.structs.replace(parked, refused=refused)
        preview = attention.preview
        decision = await decide_by_policy(
            policy,
            parked,
            check_fits,
            may_approve=preview is not None,
            is_safe=preview is not None and not preview.invalid_cells,
        )
        if isinstance(decision, Approve | Change):
            await self._keeper.write("decide", decision=decision, decided_for=digest)
        return decision

    def _keeps_slot(self, run: Run, attention: NeedsAttention) -> None:
        """Report that a blocked run keeps its slot until a person continues it."""
        if attention.kind != "preview":
            self._context.runs.waits_for_person(self._operations.migration.id, run.read)

    async def _parked(self, run: Run, parked: Parked) -> Outcome | None:
        """Leave the run to a person. Return None if the run continues.

        A blocked run keeps its run slot. If it may not stay blocked, wait for a person for that long, then cancel it.
        """
        keeper, patience = self._keeper, self._options.cancel_blocked_after
        migration_id = self._operations.migration.id
        if parked.attention.kind == "preview":
            return parked
        await self._operations.waits()
        if patience is None or self._operations.operation.kind == "execute":
            self._keeps_slot(run, parked.attention)
            if patience is not None:
                keeper.note("an execution is not canceled to release its run slot: it may have written rows")
            return parked
        if not keeper.record.blocked_at:
            await keeper.keep("blocked", blocked_at=wall_clock())
        keeper.tell("deciding", f"waits for a person, at most {patience:.0f} s: {parked.error}")
        left = patience - seconds_since(keeper.record.blocked_at)
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
        if state.status == "blocked":  # the next call continues to cancel it
            note = "the server was asked to cancel its run, and still shows it as blocked"
            return msgspec.structs.replace(parked, notes=(note,))
        if state.status != "canceled":
            await keeper.keep("canceled", cancel="", blocked_at=0.0)
            return None  # it has gone on meanwhile
        note = f"its run was canceled after {patience:.0f} s to release the run slot: the next call generates anew"
        outcome = msgspec.structs.replace(parked, ids={"migration": migration_id}, notes=(note,))
        keeper.note(note)
        await self._release()
        return outcome

    async def _release(self) -> None:
        """Record that the run was canceled to release its slot, so that `generate` is started anew."""
        await self._keeper.keep(
            "canceled",
            operation=None,
            cancel="",
            previewed=None,
            blocked_at=0.0,
            epoch=self._keeper.record.epoch + 1,
        )

    async def _canceled(self, run: Run, why: str) -> Outcome | None:
        """Cancel the run, and return what became of it."""
        keeper = self._keeper
        if run.id:
            state = await self._operations.cancel(run, "rejected" if why == "rejected" else "canceled")
        else:  # only its preview is known, and nothing is in progress
            await keeper.write("cancel", cancel=why)
            state = RunState(status="awaiting_approval")
        if state.status == "completed" and state.report is not None:
            keeper.note("it was executed before it could be canceled")
            await keeper.keep("canceled", cancel="")
            return None
        text = f"{why} by the policy or by a person"
        if state.status not in ("canceled", "failed"):
            text += f"; the server keeps its run as {state.status}, and nothing is imported"
        await keeper.keep("canceled", operation=self._operations.changed(is_over=True), rows_written=0)
        return Failed(**keeper.outcome_fields(), error=text, step="deciding", status="canceled")
