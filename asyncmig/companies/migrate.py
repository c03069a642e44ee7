"""One customer from CSV to CSV, as steps that can be repeated.

check → create company → upload → start import → wait → (decide → wait)* → deliver

Before each request that changes the server the journal holds the intent, with the exact body; after it, the
outcome. So a migration that was killed or cancelled anywhere is called again with the same arguments, repeats
only what is repeatable, and ends in the same place.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import TypedDict, TypeVar, final

import anyio
import msgspec

from asyncmig._core.endpoint import Endpoint
from asyncmig.companies import routes
from asyncmig.companies.catalog import Company, check_external_id
from asyncmig.companies.downloads import RowFilter
from asyncmig.companies.imports import ImportRun, import_body
from asyncmig.companies.outcome import (
    Decision,
    Delivered,
    Failed,
    Outcome,
    Parked,
    Pending,
    Policy,
    Unknown,
)
from asyncmig.companies.spec import Record, Spec, derived_key, read_inputs
from asyncmig.companies.wire import ImportState
from asyncmig.errors import (
    ApiError,
    AuthError,
    BadRequest,
    Conflict,
    InvalidInput,
    NoAnswer,
    RunError,
    ServerError,
    SessionClosed,
    TruncatedDownload,
    UnexpectedReply,
    UnknownOutcome,
)
from asyncmig.events import MigrationChanged
from asyncmig.journal import ClaimPort, JournalPort
from asyncmig.session import Session

__all__ = ["adopt", "migrate"]

T = TypeVar("T")
_TRANSIENT = (NoAnswer, ServerError, UnexpectedReply, TruncatedDownload)
_PATIENCE = 900.0
"""Seconds for which a step that is harmless to repeat outlasts a server that is away."""
_UPLOADS_KEEP = 1800.0
"""Wall-clock seconds after which uploads of an import that was never started are made again."""
_LOOK_AGAIN = 10.0
"""Seconds between looks at an import that has no id to be polled by."""
_GRACE = 5.0
"""Seconds that a cancelled migration waits for the answer to the creation of its company."""
_DECISIONS = 8
"""How often a decision may be refused as "already decided" while the run still asks the same."""


async def migrate(
    session: Session,
    spec: Spec,
    *,
    journal: JournalPort,
    to: Path,
    decide: Policy = "park",
    row_filter: RowFilter = "valid",
    repeat_failed: bool = False,
) -> Outcome:
    """Migrate one customer; its sheets come to `to/SHEET.csv`. Call it again to go on where it ended.

    `decide`: what happens when the run parks. `"park"` stops there; `"approve_safe"` approves a patch that destroys
    no rows, and stops at any other; or your own coroutine. `repeat_failed`: import again what failed before.

    What is delivered is not done again. Raises `JournalError` (`CompanyHeld` if another process works on this
    customer); everything else that can go wrong is an `Outcome`.
    """
    async with await journal.claim(spec.external_id) as claim:
        return await _Migration(session, spec, claim, to, decide, row_filter, repeat_failed).run()


@final
class _Migration:
    """The steps, and the record that they keep."""

    def __init__(
        self,
        session: Session,
        spec: Spec,
        claim: ClaimPort,
        to: Path,
        decide: Policy,
        row_filter: RowFilter,
        repeat_failed: bool,
    ) -> None:
        self._session, self._spec, self._claim = session, spec, claim
        self._to = to
        self._decide: Policy = decide
        self._filter: RowFilter = row_filter
        self._repeat_failed = repeat_failed
        self._started = asyncio.get_running_loop().time()
        self._notes: list[str] = []
        self._rank = 0.0
        record = msgspec.json.decode(claim.state, type=Record) if claim.state else _unnamed(spec.external_id)
        if not record.name:
            record = msgspec.structs.replace(
                record, name=spec.name, source=spec.source, template_ids=spec.template_ids
            )
        self._record = record

    async def run(self) -> Outcome:
        """Run the steps that are left, and write down what they came to."""
        outcome = await self._outcome()
        if outcome != self._record.outcome:
            await self._write(_kind(outcome), outcome=outcome)
        if self._notes:
            outcome = msgspec.structs.replace(outcome, notes=tuple(self._notes))
        self._tell(_kind(outcome), getattr(outcome, "error", ""))
        return outcome

    async def _outcome(self) -> Outcome:
        try:
            self._tell("checking")
            await self._take_input()
            return self._finished() or await self._steps()
        except UnknownOutcome as error:
            return Unknown(**self._who(), error=str(error), sent=error.sent)
        except (AuthError, SessionClosed, OSError, *_TRANSIENT) as error:
            return Pending(**self._who(), error=str(error))
        except (InvalidInput, ApiError) as error:
            return Failed(**self._who(), error=str(error))

    async def _steps(self) -> Outcome:
        company = await self._company()
        if self._record.adopted and not self._record.begun:
            await self._look_first(company)
        await self._upload(company)
        run = await self._run(company)
        try:
            return await self._to_the_end(company, run)
        except RunError as error:
            report = run.state.report if run.state else None
            return Failed(**self._who(), error=error.text or str(error), report=report)

    # What is given, and what there is already

    async def _take_input(self) -> None:
        """Compare the files with those of the record; a failed import of other files is a new epoch."""
        record, spec = self._record, self._spec
        spec_changed = (record.name, record.source, record.template_ids) != (
            spec.name,
            spec.source,
            spec.template_ids,
        )
        if spec_changed and record.company_id:
            self._notes.append(f"the company was created as {record.name!r}, and stays as it was created")
        begun, failed = record.begun, isinstance(record.outcome, Failed)
        try:
            spec.check()
            files = await read_inputs(spec.files)
        except InvalidInput as error:
            if not begun:
                raise
            self._notes.append(f"{error}; its import had begun, and goes on without it")
            return
        self._rank = -float(sum(file.size for file in files))
        changed = ", ".join(record.changed_files(files)) if record.files else ""
        if begun and not failed:
            if changed:
                self._notes.append(f"changed since the import began, and not imported again: {changed}")
        elif begun and (changed or self._repeat_failed):
            self._notes.append(f"imported again, for {changed or 'it was asked for'}")
            await self._write(
                "new epoch",
                epoch=record.epoch + 1,
                files=files,
                uploads=(),
                import_body=None,
                run_id=None,
                adopted=False,
                outcome=None,
            )
        elif not begun and (changed or not record.files or spec_changed):
            await self._write("input", files=files, uploads=() if changed else record.uploads)
            if not record.company_id:
                self._record = msgspec.structs.replace(
                    self._record, name=spec.name, source=spec.source, template_ids=spec.template_ids
                )

    def _finished(self) -> Outcome | None:
        """Return an outcome that more work would not change: files as they are wanted, or a failed import."""
        outcome = self._record.outcome
        if isinstance(outcome, Delivered):
            paths = [Path(file.path) for file in outcome.files]
            there = all(path.parent == self._to and path.exists() for path in paths)
            return outcome if there and outcome.row_filter == self._filter else None
        if isinstance(outcome, Failed) and self._record.begun:
            return outcome
        return None

    # The steps

    async def _company(self) -> Company:
        companies, record = self._session.companies, self._record
        if record.company_id is not None:
            return companies.open(record.company_id, external_id=record.external_id, sheets=record.sheets)
        self._tell("creating")
        doubtful = record.creating
        if not doubtful:
            await self._write("create", creating=True)
        return await _to_its_answer(self._provision(doubtful=doubtful))

    async def _provision(self, *, doubtful: bool) -> Company:
        try:
            company = await self._patiently(self._create)
        except (Conflict, BadRequest) as error:
            if doubtful or isinstance(error, Conflict):
                raise _unknown(routes.CREATE_COMPANY, error) from error
            await self._write("refused", creating=False)
            raise
        await self._write("created", creating=False, company_id=company.id, sheets=company.sheets)
        return company

    async def _create(self) -> Company:
        record = self._record
        try:
            return await self._session.companies.create(
                name=record.name,
                source=record.source,
                external_id=record.external_id,
                template_ids=record.template_ids,
                rank=self._rank,
            )
        except UnknownOutcome as error:
            if isinstance(error.__cause__, _TRANSIENT):
                raise error.__cause__ from error  # no answer yet, and the external id makes a repeat harmless
            raise

    async def _look_first(self, company: Company) -> None:
        """Find the import that an adopted company has had: the one that runs, or the newest that completed."""
        self._tell("starting", "looks for an earlier import")
        states = await self._patiently(partial(_list, company))
        running = [state for state in states if state.status not in routes.IMPORT.terminal]
        for state in running or [state for state in states if state.status == "completed"]:
            run_id = state.run_id or state.id
            if run_id is None:
                reason = (
                    f"the company has an import that is {state.status}, and the server does not say its id"
                )
                endpoint = routes.START_IMPORT
                raise UnknownOutcome(endpoint.method, endpoint.template, reason, "", endpoint.advice)
            self._notes.append(f"the company had an import that is {state.status}; it was not repeated")
            await self._write("found", run_id=run_id, started_at=_wall_clock(), foreign=True)
            return

    async def _upload(self, company: Company) -> None:
        if self._record.begun:
            return
        if self._record.uploads and _wall_clock() - self._record.uploaded_at > _UPLOADS_KEEP:
            await self._write("uploads expired", uploads=())
        for file in self._record.files[len(self._record.uploads) :]:
            self._tell("uploading", Path(file.path).name)
            uploaded = await self._patiently(partial(company.upload, Path(file.path), rank=self._rank))
            if uploaded.sha256 != file.sha256:
                raise InvalidInput("files", file.path, "changed while it was being migrated: run again")
            await self._write(
                "uploaded",
                uploads=(*self._record.uploads, uploaded),
                uploaded_at=self._record.uploaded_at if self._record.uploads else _wall_clock(),
            )

    async def _run(self, company: Company) -> ImportRun:
        record = self._record
        if record.run_id is not None:
            age = _wall_clock() - record.started_at
            return company.imports.open(record.run_id, age=age, group=self._group())
        self._tell("starting")
        doubtful = record.import_body is not None
        if record.import_body is None:
            body = import_body(derived_key(record, "import"), record.uploads)
            await self._write("start", import_body=body.decode())
        run = await self._start(company, doubtful=doubtful)
        await self._write("started", run_id=run.id, started_at=_wall_clock())
        return run

    async def _start(self, company: Company, *, doubtful: bool) -> ImportRun:
        """Start the import; tell a 409 apart by looking at what is active.

        After a lost answer an active import is ours: this process holds the company. Otherwise it is somebody
        else's, which is waited for. With nothing active the key was used for something else, or that import
        has just ended: one more try tells.
        """
        assert self._record.import_body is not None
        body = self._record.import_body.encode()
        idle, group = 0, self._group()
        while True:
            try:
                return await self._patiently(
                    partial(company.imports.post, body, rank=self._rank, group=group)
                )
            except Conflict as error:
                conflict = error
            active = await self._patiently(company.imports.recover)
            if active is None:
                idle += 1
                if idle > 1:
                    raise _unknown(routes.START_IMPORT, conflict) from conflict
                continue
            if active.id and (doubtful or conflict.after_doubt):
                return active
            if not (doubtful or conflict.after_doubt):
                await self._write("waits for another import", foreign=True)
            await self._outlast(company, active)

    async def _outlast(self, company: Company, active: ImportRun) -> None:
        """Wait until an import that is not known by its id, or not ours, has ended."""
        self._tell("starting", "waits for another import of this company")
        if active.id:
            with contextlib.suppress(RunError):
                await active.wait(through_parks=True)
            return
        while await self._patiently(company.imports.active) is not None:  # noqa: ASYNC110 - the server's, not ours
            await asyncio.sleep(_LOOK_AGAIN)

    async def _to_the_end(self, company: Company, run: ImportRun) -> Outcome:
        refused = 0
        while True:
            self._tell("running", run.id)
            state = await run.wait()
            if run.needs_attention is None:
                return await self._deliver(company, state)
            parked = Parked(**self._who(), attention=run.needs_attention, report=state.report)
            decision = await self._decision(parked)
            if decision is None:
                return parked
            self._tell("deciding", "approve" if decision.approve else "reject")
            await self._write("decide", shown=run.needs_attention, decision=decision)
            try:
                await (run.approve(decision.answers) if decision.approve else run.reject())
            except Conflict:
                refused += 1
                if refused == _DECISIONS:
                    raise
            else:
                refused = 0
                await self._write("decided")

    async def _decision(self, parked: Parked) -> Decision | None:
        if callable(self._decide):
            return await self._decide(parked)
        if self._decide == "reject":
            return Decision(approve=False)
        safe = not parked.attention.is_destructive
        return (
            Decision(approve=True)
            if self._decide == "approve" or (self._decide == "approve_safe" and safe)
            else None
        )

    async def _deliver(self, company: Company, state: ImportState) -> Outcome:
        self._tell("downloading")
        single = self._record.epoch == 0 and not self._record.foreign
        files = await self._patiently(
            partial(
                company.download,
                to=self._to,
                filter=self._filter,
                report=state.report if single else None,
                rank=self._rank,
            )
        )
        return Delivered(**self._who(), files=tuple(files), row_filter=self._filter, report=state.report)

    # What every step needs

    def _group(self) -> int:
        """Return the class of runs that take about as long: the order of magnitude of the bytes."""
        return len(str(sum(file.size for file in self._record.files)))

    async def _patiently(self, step: Callable[[], Awaitable[T]]) -> T:
        """Repeat a step that is harmless to repeat until the server is back."""
        loop = asyncio.get_running_loop()
        until = loop.time() + _PATIENCE
        while True:
            try:
                return await step()
            except _TRANSIENT:
                if loop.time() >= until:
                    raise

    async def _write(self, kind: str, **changes: object) -> None:
        """Write an event to the journal, and the record as it now is."""
        known = Record.__struct_fields__
        record = msgspec.structs.replace(
            self._record, **{name: value for name, value in changes.items() if name in known}
        )
        await self._claim.write(kind, msgspec.json.encode(changes), msgspec.json.encode(record))
        self._record = record

    def _tell(self, step: str, detail: str = "") -> None:
        event = MigrationChanged(
            at=asyncio.get_running_loop().time(),
            external_id=self._spec.external_id,
            company_id=self._record.company_id,
            run_id=self._record.run_id,
            step=step,
            detail=detail,
        )
        self._session.events.emit(event)

    def _who(self) -> "_Who":
        """Return what every outcome says."""
        return {
            "external_id": self._record.external_id,
            "name": self._record.name,
            "company_id": self._record.company_id,
            "run_id": self._record.run_id,
            "seconds": asyncio.get_running_loop().time() - self._started,
        }


class _Who(TypedDict):
    external_id: str
    name: str
    company_id: str | None
    run_id: str | None
    seconds: float


async def adopt(journal: JournalPort, external_id: str, company_id: str) -> None:
    """Write down which company a customer is whose creation was never answered, or whose journal was lost.

    The next `migrate` goes on from there: an import of the company that runs is waited for, one that completed is
    delivered and not repeated, and without any the import is started. Raises `InvalidInput` if the journal knows
    another company for the customer, `CompanyHeld` if a process works on it.
    """
    check_external_id(external_id)
    if not company_id.strip():
        raise InvalidInput("company_id", company_id, "is empty")
    async with await journal.claim(external_id) as claim:
        record = msgspec.json.decode(claim.state, type=Record) if claim.state else _unnamed(external_id)
        if record.company_id not in (None, company_id):
            raise InvalidInput(
                "company_id", company_id, f"is not the one that the journal has: {record.company_id}"
            )
        adopted = msgspec.structs.replace(
            record, company_id=company_id, creating=False, adopted=True, outcome=None
        )
        await claim.write(
            "adopt", msgspec.json.encode({"company_id": company_id}), msgspec.json.encode(adopted)
        )


def _unnamed(external_id: str) -> Record:
    """Return the record of a customer of whom only the id is known; its spec fills in the rest."""
    return Record(external_id=external_id, name="", source="")


async def _list(company: Company) -> list[ImportState]:
    return [state async for state in company.imports.list()]


async def _to_its_answer(step: Coroutine[object, object, T]) -> T:
    """Run a step whose outcome nobody could find out later; cancelled, it may still take `_GRACE` to its answer."""
    task = asyncio.ensure_future(step)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        with anyio.CancelScope(shield=True):
            await asyncio.wait([task], timeout=_GRACE)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)  # what it came to is in the journal
        raise


def _kind(outcome: Outcome) -> str:
    return str(outcome.__struct_config__.tag)


def _unknown(endpoint: Endpoint, error: ApiError) -> UnknownOutcome:
    return UnknownOutcome(endpoint.method, endpoint.template, str(error), "", endpoint.advice)


def _wall_clock() -> float:
    return time.time()  # noqa: TID251 - a journal outlives the loop's clock
