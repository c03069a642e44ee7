"""The operations on a customer's run, each with its intent in the journal before the request that changes something.

Another process continues from what the journal has: a start that may have been sent is looked up before it is sent
again, an answer is sent again only if the run still waits for it, and a cancel is harmless to repeat.
"""

import asyncio
import contextlib
from functools import partial
from typing import Literal, final

import msgspec

from asyncmig._core.retry import TRANSIENT
from asyncmig._io.context import SessionContext
from asyncmig.customers.decisions import Answer, Credentials
from asyncmig.customers.previews import Preview
from asyncmig.customers.questions import NeedsAttention
from asyncmig.customers.status import wall_clock
from asyncmig.errors import ApiError, BadRequest, Conflict, InvalidInput, NotFound, RunError, UnknownOutcome
from asyncmig.migrations.answers import AnswerPoint
from asyncmig.migrations.catalog import Migrations
from asyncmig.migrations.log import Log, retry_after_of, status_of
from asyncmig.migrations.migration import Migration
from asyncmig.migrations.operation import LAG, StartPoint, block_of
from asyncmig.migrations.routes import START_RUN
from asyncmig.migrations.runs import Run
from asyncmig.migrations.starts import Noted, active_run_id
from asyncmig.migrations.state import WorkPermit, is_refusal, state_of
from asyncmig.migrations.thread import BEGINNING, last_sequence
from asyncmig.migrations.wire import Kind, RunState
from asyncmig.migrations.workflow.record import OperationRecord, Record, SentAnswer, marks_of
from asyncmig.records.record_keeper import RecordKeeper, seconds_since

__all__ = ["Operations", "open_run", "with_version"]

_CANCELS, _BETWEEN_CANCELS = 10, 30.0
"""How often the cancel of a run that stays blocked is repeated, and the seconds between two cancels."""
_REFUSED = (BadRequest, Conflict, NotFound)
"""Definite refusals: the request has changed nothing."""
_OTHER_RUN = "a run that another client had started was in progress"


@final
class Operations:
    """The operations on one customer's run."""

    __slots__ = ("_context", "_keeper", "_migration", "_run")

    def __init__(self, context: SessionContext, keeper: RecordKeeper[Record]) -> None:
        self._context, self._keeper = context, keeper
        self._migration: Migration | None = None
        self._run: Run | None = None
        """The run of the operation in the journal, if this process follows it."""

    @property
    def migration(self) -> Migration:
        """The customer's migration, which exists."""
        record = self._keeper.record
        assert record.migration_id is not None
        if self._migration is None or self._migration.id != record.migration_id:
            self._migration = Migrations(self._context).open(
                record.migration_id, external_id=record.external_id, sheets=record.sheets
            )
            shared = state_of(self._context, record.migration_id)
            shared.created(asyncio.get_running_loop().time() - seconds_since(record.created_at))
        return self._migration

    @property
    def operation(self) -> OperationRecord:
        """The present operation, which exists."""
        operation = self._keeper.record.operation
        assert operation is not None
        return operation

    def changed(self, **changes: object) -> OperationRecord:
        """Return the present operation with changes."""
        return msgspec.structs.replace(self.operation, **changes)

    # Starts

    async def start(self, kind: Kind, message: str | None = None, *, reads_live: bool | None = None) -> Run:
        """Start an operation, or continue to start it.

        If the journal has the intent of this start without its response, the server is checked first. If another run
        of the migration is in progress, that one is returned. Raises as `Migration.generate`; after a definite
        refusal the journal has the operation before.
        """
        keeper = self._keeper
        before, decision = keeper.record.operation, keeper.record.decision
        keeper.begin("starting", kind)

        async def noted(point: StartPoint) -> None:
            operation = OperationRecord(kind=kind, message=message, point=point)
            with_files = {"generated_with": len(keeper.record.uploads)} if kind == "generate" else {}
            await keeper.write("start", operation=operation, decision=None, outcome=None, **with_files)

        try:
            send = partial(self._send, kind, message, reads_live, noted)
            run = await self._context.kept(WorkPermit).working(keeper.retry_while_away(send))
        except ApiError as error:
            run_id = active_run_id(error) if isinstance(error, Conflict) else None
            if run_id is None:
                log = await self._after_refusal(error, before)
                if log is None:
                    raise
                if kind == "generate":
                    return await self.start(kind, message, reads_live=reads_live)
                if decision is not None:  # it is for the old preview: that of the last run may be another one
                    await keeper.write("decide", decision=decision)
                return await self.found(log.runs[-1].run_id if log.runs else "")
            recovered = await self._recovered(run_id) if error.after_doubt and kind == "execute" else None
            if recovered is None:
                keeper.note(_OTHER_RUN)
                return await self.found(run_id, "waits for another import")
            run = recovered
        started = self.changed(run_id=run.id, is_acknowledged=run.is_acknowledged, started_at=wall_clock())
        await keeper.keep("started", operation=started)
        self._run = run
        return run

    async def _send(self, kind: Kind, message: str | None, reads_live: bool | None, noted: Noted) -> Run:
        """Send a start once; one that may have been sent before is looked up first."""
        operation, migration, rank = self._keeper.record.operation, self.migration, self._keeper.rank
        since = operation.point if operation is not None and operation.run_id is None else None
        try:
            if kind == "generate":
                return await migration.generate(
                    extract_via_api=reads_live, noted=noted, since=since, rank=rank
                )
            if kind == "execute":
                return await migration.execute(noted=noted, since=since, rank=rank)
            return await migration.update(message or "", noted=noted, since=since, rank=rank)
        except UnknownOutcome as error:
            if isinstance(error.__cause__, TRANSIENT):  # the server was away when it was checked
                raise error.__cause__ from error
            raise

    async def _recovered(self, run_id: str) -> Run | None:
        """Wait until another client's run has ended. Return the run that our unanswered start has begun, if any."""
        with contextlib.suppress(RunError):
            await self.migration.run(run_id).wait(through_parks=True)
        point = self.operation.point
        assert point is not None
        return await self._keeper.retry_while_away(partial(self.migration.recover, point))

    async def _after_refusal(self, error: ApiError, before: OperationRecord | None) -> Log | None:
        """Record that a start was refused: the run is as it was `before`.

        If a run is in progress that the refusal does not name, wait until it has ended, and return the log then.
        Returns None if there was no such run, or if the log does not tell.
        """
        if (error.method, error.endpoint) != (START_RUN.method, START_RUN.template):
            return None
        if isinstance(error, _REFUSED) or is_refusal(error):
            if before is not None and before.run_id is None and before.point is not None:
                run_id = before.point.run_id  # the journal has no operation before that start
                before = None if run_id is None else OperationRecord(kind=None, run_id=run_id, is_over=True)
            if self._keeper.record.operation != before:
                await self._keeper.keep("refused", operation=before)
            if before is None or before.is_over:
                self._context.runs.left(self.migration.id)
        if not isinstance(error, Conflict) or error.after_doubt:
            return None
        has_waited = False
        while True:
            try:
                log = await self.migration.log()
            except Conflict as not_settled:
                if status_of(not_settled) not in ("queued", "running"):
                    return None
                self._keeper.note(_OTHER_RUN)
                has_waited = True
                await asyncio.sleep(retry_after_of(not_settled))
            except (ApiError, *TRANSIENT):
                return None
            else:
                return log if has_waited else None

    async def found(self, run_id: str, entry: Literal["found", "waits for another import"] = "found") -> Run:
        """Record a run that another client or an earlier process started, and return it."""
        found = OperationRecord(kind=None, run_id=run_id, started_at=wall_clock())
        await self._keeper.keep(entry, operation=found, generated_with=None)
        return await self._open()

    # The run in the journal

    async def run(self) -> Run:
        """Return the run of the journal, followed from where it was left."""
        if self._run is not None and self._run.id == self.operation.run_id:
            return self._run
        return await self._open()

    async def _open(self) -> Run:
        self._run = run = open_run(self._context, self._keeper.record)
        answer = self.operation.answer
        if answer is not None and not answer.is_acknowledged:
            await self._find_answer(run, answer)
        return run

    async def note_id(self, run: Run) -> None:
        """Record the id of the run if the client has learnt another one: an execution may have a run of its own."""
        if self.operation.run_id is not None and run.id not in ("", self.operation.run_id):
            await self._keeper.keep("found", operation=self.changed(run_id=run.id))

    # Answers

    async def answer(self, run: Run, decision: Answer | Credentials, attention: NeedsAttention) -> None:
        """Send the answers or the credentials that a blocked run waits for. Raises as `Run.answer`.

        The journal has no values of credentials.
        """
        keeper, request = self._keeper, attention.credentials
        keeper.begin("deciding", "answer" if isinstance(decision, Answer) else "credentials")

        async def noted(point: AnswerPoint) -> None:
            sent = SentAnswer(point=point, marks=tuple(sorted(marks_of(attention))), at=wall_clock())
            answers = decision.answers if isinstance(decision, Answer) else None
            await keeper.write("answer", operation=self.changed(answer=sent), answers=answers or {})

        if isinstance(decision, Answer):
            await run.answer(decision.answers, noted=noted, rank=keeper.rank)
        else:
            await run.submit_credentials(
                decision.credentials,
                connection_id=request.connection_id if request else None,
                noted=noted,
                rank=keeper.rank,
            )
        await self._answered()

    async def waits(self) -> None:
        """Record that the run waits for something, after the answer that was sent last."""
        if self.operation.answer is not None:
            await self._keeper.keep("blocked", operation=self.changed(answer=None))

    async def _answered(self) -> None:
        sent = self.operation.answer
        assert sent is not None
        operation = self.changed(
            answer=msgspec.structs.replace(sent, is_acknowledged=True),
            answered=tuple(sorted({*self.operation.answered, *sent.marks})),
        )
        await self._keeper.keep("answered", operation=operation, blocked_at=0.0, outcome=None)

    async def _find_answer(self, run: Run, sent: SentAnswer) -> None:
        """Find out whether an answer that an earlier process may have sent was accepted, and record that.

        If the run still asks the same, the answer is sent once more: it may not have arrived.
        """
        await asyncio.sleep(max(0.0, LAG - seconds_since(sent.at)))  # a read may show an old state
        state = await self._keeper.retry_while_away(run.read)
        if block_of(state) == block_of(sent.point.shown):
            await self._keeper.keep("refused", operation=self.changed(answer=None))
            return
        await self._answered()
        run.note_answer(sent.point, age=seconds_since(sent.at))

    # Cancel

    async def cancel(self, run: Run, why: Literal["rejected", "canceled", "slot"]) -> RunState:
        """Cancel the run, and return what became of it."""
        if self._keeper.record.cancel != why:
            await self._keeper.write("cancel", cancel=why)
        self._keeper.begin("deciding", "cancel")
        state = await self._keeper.retry_while_away(run.cancel)
        for _ in range(_CANCELS):
            if state.status != "blocked":
                break
            await asyncio.sleep(_BETWEEN_CANCELS)
            state = await self._keeper.retry_while_away(run.cancel)
        return state


def open_run(context: SessionContext, record: Record) -> Run:
    """Return the run of a record, without a request."""
    operation = record.operation
    if record.migration_id is None or operation is None or operation.run_id is None:
        raise InvalidInput("external_id", record.external_id, "has no run yet: there is nothing to decide")
    age = seconds_since(operation.started_at) if operation.started_at else 0.0
    resumed = operation.resumed(asyncio.get_running_loop().time(), age)
    run = Run(context, record.migration_id, operation.run_id, resumed, age=age)
    if operation.answer is not None and operation.answer.is_acknowledged:
        run.note_answer(operation.answer.point, age=seconds_since(operation.answer.at))
    return run


async def with_version(context: SessionContext, record: Record, preview: Preview) -> Preview:
    """Return the preview of a record's run with its version; without one if the thread does not show it."""
    operation = record.operation
    assert record.migration_id is not None
    assert operation is not None
    after = operation.point.after if operation.point else BEGINNING
    last = await last_sequence(context, record.migration_id, after)
    version = f"{operation.run_id}:{last}" if last > after else ""
    return msgspec.structs.replace(preview, version=version)
