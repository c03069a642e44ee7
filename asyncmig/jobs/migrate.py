"""Migrate one customer, alone or in a fleet: claim it in the journal, and run the workflow of its API generation.

Before the first migration of a session, the journal tells which runs of earlier processes may still hold a run slot
of the account. A journal in PostgreSQL also shares the run slots of all processes that use it.
"""

import asyncio
import logging
from collections.abc import Mapping
from contextvars import Context
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, Unpack, final

import msgspec

from asyncmig import generations
from asyncmig._core.arguments import checked_call, checked_path
from asyncmig._io.context import SessionContext
from asyncmig._io.threads import in_thread
from asyncmig.customers.files import FilesChanged, check_utf8, customer_folder
from asyncmig.customers.options import MigrationCall, MigrationKeywords, MigrationOptions, combined
from asyncmig.customers.outcome import Delivered, Outcome, Parked, Pending, PendingReason
from asyncmig.customers.paths import Inputs, keys_of
from asyncmig.customers.spec import Spec, failed
from asyncmig.customers.status import CustomerRecord
from asyncmig.errors import CustomerHeld, InvalidInput, JournalError
from asyncmig.generations import Generation
from asyncmig.jobs.instructions import KnownCustomer, Work, fulfil, read_known, take_up
from asyncmig.jobs.turns import Turns
from asyncmig.journal import ClaimPort, DatabaseJournal, Instruction, JournalPort
from asyncmig.session import Session, context_of

__all__ = [
    "CustomerTask",
    "FleetParts",
    "WhenHeld",
    "adopt",
    "check_unchanged",
    "migrate",
    "migrate_claimed",
    "pending",
    "recover_run_slots",
]

_log = logging.getLogger("asyncmig")
WhenHeld = Literal["wait", "return"]
"""What a fleet does with a customer that another live process holds."""


@checked_call
async def migrate(
    session: Session,
    spec: Spec,
    *,
    journal: JournalPort,
    to: Path | str,
    api: str = generations.DEFAULT,
    options: MigrationOptions | None = None,
    **keywords: Unpack[MigrationKeywords],
) -> Outcome:
    """Migrate one customer and write its sheets to `to/SHEET.csv`. A later call continues where this one ended.

    `options`: a `MigrationOptions`; its fields can also be given as keywords, which take precedence:
    `migrate(session, spec, journal=journal, to="out", decide="approve_safe", retries=1)`. `api`: the API generation.

    A delivered customer is not migrated again. A file of the spec that lies in `to` is refused, because a sheet could
    replace it. Raises `InvalidInput` for wrong options, and for changed files that `if_changed="refuse"` refuses;
    `JournalError` if the journal cannot be used, and its
    subclass `CustomerHeld` if another process works on this customer. Every other fault is an `Outcome`.
    """
    options = combined(options, keywords)
    check_utf8("to", to)
    generation = generations.find(api)
    generations.check_options(generation, options)
    folder = checked_path("to", to)
    spec, refused = generations.check_spec(generation, spec)
    if refused is not None:
        return failed(spec, refused)
    if options.if_changed == "refuse":
        await check_unchanged(generation, spec, journal)
    instruction = await take_up(journal, spec.external_id)
    call = MigrationCall(spec=spec, to=folder, options=options, inputs=Inputs())
    outcome = await migrate_claimed(generation, context_of(session), journal, call)
    await fulfil(journal, spec.external_id, instruction, outcome)
    return outcome


@checked_call
async def adopt(
    journal: JournalPort, external_id: str, company_id: str, *, api: str = generations.DEFAULT
) -> str:
    """Link a customer to its company when the response to the create request, or the journal, was lost.

    The next `migrate` continues from there: it waits for a running import of the company, delivers a completed one
    without repeating it, reports a failed one as failed (`retries` starts it again), and starts one if there is none.
    `company_id` may have spaces around it, or be a URL of the dashboard. `api`: the API generation.

    Returns the id of the company. Raises `InvalidInput` for a value that is not an id, if the journal has another
    company for the customer, or if the generation has nothing to adopt; `CustomerHeld` if a process works on the
    customer.
    """
    return await generations.find(api).adopt(journal, external_id, company_id)


async def check_unchanged(generation: Generation, spec: Spec, journal: JournalPort) -> None:
    """Raise `InvalidInput` for files that `if_changed="refuse"` refuses; `JournalError`."""
    state = await journal.state(spec.external_id)
    record = None if state is None else generations.read(spec.external_id, state)
    if record is None or record.api != generation.name or not isinstance(record.outcome, Delivered | Parked):
        return
    try:
        await generation.check_unchanged(spec, record)
    except FilesChanged:
        raise
    except InvalidInput as error:  # the migration needs files that cannot be read only if no run has started
        _log.debug("%s: %s", spec.external_id, error)


async def migrate_claimed(
    generation: Generation, context: SessionContext, journal: JournalPort, call: MigrationCall
) -> Outcome:
    """Claim a customer, migrate it, and release the claim.

    An unexpected exception becomes a `Pending` outcome. Raises `JournalError`, and `CustomerHeld` if another process
    works on the customer.
    """
    # `migrate` and fleets have checked the spec. A worker has not: the spec of its job comes from a queue.
    spec, refused = generations.check_spec(generation, call.spec)
    if refused is not None:
        return failed(spec, refused)
    outcome: Outcome | None = None
    try:
        await recover_run_slots(context, generation, journal)
        keys = call.inputs.keys_of(spec.files)
        if keys is None:
            keys = await in_thread(keys_of, spec.files)
        with call.inputs.holding(keys):
            async with await journal.claim(spec.external_id) as claim:
                outcome = _refused_record(generation, context, spec, claim) or await generation.migrate(
                    context, claim, call
                )
    except JournalError as error:
        if outcome is None:
            raise
        _log.warning("%s: the claim was not released; the journal retries that: %s", spec.external_id, error)
    except Exception as error:
        _log.exception("%s: the migration crashed", spec.external_id)
        return pending(spec, f"{type(error).__name__}: {error}", "crashed")
    assert outcome is not None
    return outcome


def _refused_record(
    generation: Generation, context: SessionContext, spec: Spec, claim: ClaimPort
) -> Outcome | None:
    """Return the outcome of a customer whose journal record `generation` must not continue; None if it may.

    Reports a run of the customer that may be in progress.
    """
    if claim.state is None:
        return None
    api = generations.api_of(claim.state)
    if api != generation.name:
        reason = (
            f"the journal has this customer under the API generation {api!r}, and this call uses "
            f"{generation.name!r}: continue with api={api!r}, or use another external id or journal"
        )
        return failed(spec, InvalidInput("external_id", spec.external_id, reason))
    record = generations.read(spec.external_id, claim.state)
    if record.run_slot is not None:
        context.runs.seen(record.run_slot)
    if record.is_readable or record.outcome is None:
        return None
    return msgspec.structs.replace(record.outcome, name=record.name or spec.name)


def pending(
    spec: Spec, error: str, reason: PendingReason, *, ids: Mapping[str, str] | None = None
) -> Pending:
    """Return the outcome of a customer whose migration has not ended in this call."""
    return Pending(external_id=spec.external_id, name=spec.name, error=error, reason=reason, ids=ids or {})


@final
class _Recovered:
    """What one session has recovered."""

    __slots__ = ("journals", "lock")

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.journals: list[tuple[JournalPort, Mapping[str, str]]] = []


async def recover_run_slots(
    context: SessionContext, generation: Generation, journal: JournalPort
) -> Mapping[str, str]:
    """Report the runs that may be in progress, so that no start exceeds the limit of runs.

    Return the ids under which they hold run slots, by external id. The journal is read once for each session, and not
    at all for a generation whose runs have no limit. Raises `JournalError`.
    """
    if all(endpoint.run_order is None for endpoint in generation.endpoints.values()):
        return {}
    recovered = context.kept(_Recovered)
    async with recovered.lock:
        for known, runs in recovered.journals:
            if known is journal:
                return runs
        if isinstance(journal, DatabaseJournal) and (store := journal.run_slots(context.account)):
            context.runs.share(store)
        # In a thread, because a journal may have ten thousand records.
        records = await in_thread(_in_progress, generation, await journal.states())
        for run, record in records.values():
            if isinstance(record.outcome, Parked):
                context.runs.waits_for_person(run, partial(generation.questions, context, record))
            else:
                context.runs.seen(run)
        in_progress = {external_id: run for external_id, (run, _) in records.items()}
        recovered.journals.append((journal, in_progress))
        return in_progress


def _in_progress(
    generation: Generation, states: Mapping[str, bytes]
) -> dict[str, tuple[str, CustomerRecord]]:
    """Return the records of this generation whose run may be in progress, each with the id of its run slot."""
    found: dict[str, tuple[str, CustomerRecord]] = {}
    for external_id, state in states.items():
        if generations.api_of(state) == generation.name:
            record = generations.read(external_id, state)
            if record.run_slot is not None:
                found[external_id] = record.run_slot, record
    return found


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class FleetParts:
    """What the customers of a fleet share."""

    generation: Generation
    context: SessionContext
    journal: JournalPort
    to: Path
    options: MigrationOptions
    inputs: Inputs
    when_held: WhenHeld


@final
class CustomerTask:
    """One customer from its submission to its outcome. It has a task only while it is recorded or migrated."""

    __slots__ = (
        "_fleet",
        "_has_waited",
        "_instruction",
        "_known",
        "_place",
        "_recorded",
        "_turns",
        "context",
        "future",
        "held",
        "is_canceled",
        "is_recorded",
        "spec",
        "task",
    )

    def __init__(
        self,
        fleet: FleetParts,
        spec: Spec,
        instruction: Instruction | None,
        *,
        context: Context,
        turns: Turns | None = None,
        is_recorded: bool,
        known: KnownCustomer | None = None,
    ) -> None:
        """`instruction`: what the journal has about the customer, or gets now unless `is_recorded`.

        `context`: its tasks run in copies of it. `turns`: the order of the customers that begin together. `known`:
        what the journal has of a customer that continues without a spec of the caller.
        """
        self._fleet, self._turns = fleet, turns
        self._place = 0 if turns is None else turns.place()
        self._instruction, self._known = instruction, known
        self._has_waited = False
        self._recorded: asyncio.Future[None] | None = None
        self.spec: Spec = spec
        self.context: Context = context
        self.future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self.is_recorded: bool = is_recorded or instruction is None
        """Whether the journal has the instruction. From then on, a cancel instruction in the journal is a
        newer one."""
        self.is_canceled: bool = False
        """Whether the work was stopped; then the code that stopped it sets the result of `future`."""
        self.held: Pending | None = None
        """The outcome while another process holds the customer."""
        self.task: asyncio.Task[Outcome | None] | None = None

    def is_other(self, spec: Spec) -> bool:
        """Return whether `spec` differs from the one under way, in the fields of that one that the journal has."""
        if self._known is None:
            return self.spec != spec
        kept, given = Work.of(self.spec, "").spec, Work.of(spec, "").spec
        assert kept is not None
        assert given is not None
        if self._known.work.spec is not None:
            return kept != given
        # The record of a migration that has begun has ids where a spec may have names.
        return (kept.name, kept.files) != (given.name, given.files)

    async def record(self) -> None:
        """Return when the journal has the customer. Raises `JournalError`."""
        if self._instruction is None:
            self._instruction = Work.of(self.spec, self._fleet.generation.name).wanted("run")
            await self._fleet.journal.instruct(self.spec.external_id, self._instruction)
        elif not self.is_recorded:
            if self._recorded is None:
                self._recorded = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._recorded)

    async def write(self) -> None:
        """Write the instruction to the journal. Raises `JournalError`."""
        assert self._instruction is not None
        await self._fleet.journal.instruct(self.spec.external_id, self._instruction)
        self.is_recorded = True
        if self._recorded is not None and not self._recorded.done():
            self._recorded.set_result(None)

    async def run(self) -> Outcome | None:
        """Migrate the customer, and delete the instruction. Raises `JournalError`.

        Returns None if the fleet waits for another process that holds the customer; then `held` is set.
        """
        fleet, spec, options = self._fleet, self.spec, self._fleet.options
        outcome = await self._ended_elsewhere() if self._has_waited else None
        if outcome is None:
            if self._known is not None and self._known.wanted == "retry":
                options = replace(options, retry_failed=True)
            to = customer_folder(fleet.to, spec.external_id)
            try:
                call = MigrationCall(spec=spec, to=to, options=options, inputs=fleet.inputs, turn=self._come)
                outcome = await migrate_claimed(fleet.generation, fleet.context, fleet.journal, call)
            except CustomerHeld as error:
                self.held = outcome = pending(spec, str(error), "held")
                self._end_turn()
                self._has_waited = True
                if fleet.when_held == "wait":
                    return None
        await fulfil(fleet.journal, spec.external_id, self._instruction, outcome)
        return outcome

    def end(self, outcome: Outcome | None, error: BaseException | None) -> None:
        """Set the outcome or the error in the futures; without either, cancel them."""
        self._end_turn()
        if self._recorded is not None and not self._recorded.done():
            if isinstance(error, JournalError):
                self._recorded.set_exception(error)
                self._recorded.exception()  # not everybody waits for it
            else:
                self._recorded.cancel()
        if self.is_canceled or self.future.done():
            return
        if outcome is not None:
            self.future.set_result(outcome)
        elif error is not None:
            self.future.set_exception(error)
            if isinstance(error, JournalError):
                self.future.exception()  # `run` raises the first one; the others need not be retrieved
        else:
            self.future.cancel()

    async def _come(self) -> None:
        if self._turns is not None:
            await self._turns.come(self._place)

    def _end_turn(self) -> None:
        if self._turns is not None:
            self._turns.end(self._place)

    async def _ended_elsewhere(self) -> Outcome | None:
        """Return the outcome that another process has reached for a customer that this fleet only continues.

        That process may have delivered the sheets to a folder of another host.
        """
        if self._known is None:
            return None
        known = await read_known(self._fleet.journal, self.spec.external_id)
        outcome = None if known.record is None else known.record.outcome
        return None if known.instruction is not None or isinstance(outcome, Pending) else outcome
