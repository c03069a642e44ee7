"""Decide a parked import of a journal, also long after its fleet has ended.

A run can ask different questions with the same ids later, and another person may decide while this one reads the
questions. So a decision contains the questions that the person saw. The run is read before the decision is sent, and
the decision is sent only if the run still asks exactly those questions. The intent is in the journal before the
request is sent.
"""

import asyncio

import msgspec

from asyncmig._io.context import SessionContext
from asyncmig._io.failures import Owner, OwnerScope
from asyncmig.companies.catalog import Companies
from asyncmig.companies.import_run import ImportRun, mark_of
from asyncmig.companies.wire import ImportState
from asyncmig.companies.workflow.record import API, Record, keeper_of
from asyncmig.customers.decisions import Approve, Decision, Reject, checked_decision
from asyncmig.customers.failures import wall_clock
from asyncmig.customers.outcome import Delivered, Failed, Outcome, Parked, Pending, Reviewed, Unknown
from asyncmig.customers.questions import NeedsAttention, check_answers
from asyncmig.errors import Conflict, InvalidInput, NoAnswer
from asyncmig.journal import JournalPort
from asyncmig.records.record_keeper import RecordKeeper

__all__ = ["SUPPORTED", "cancel", "decide_parked", "look", "reject_run", "send_decision"]

SUPPORTED = (Approve, Reject)
"""The decisions of this API generation."""

_PATIENCE = 60.0
"""Seconds after which a server that does not answer counts as unavailable."""


async def look(context: SessionContext, record: Record) -> NeedsAttention | None:
    """Return what the run of a record asks now; None if it asks nothing.

    Raises as reading a run does, and `NoAnswer` after a minute without an answer.
    """
    with OwnerScope(Owner(record.external_id)):
        run = _run(context, record)
        await _read(run)
    return run.needs_attention


async def decide_parked(
    context: SessionContext,
    journal: JournalPort,
    external_id: str,
    decision: Decision,
    *,
    shown: NeedsAttention,
    allow_destructive: bool = False,
) -> Reviewed:
    """Send a decision about the questions in `shown` and record it; the next `migrate` continues from there.

    Nothing is sent if the run now asks something else: the journal then has the new questions. Raises
    `InvalidInput` for a customer that is not parked, answers that were not offered, or an approval that destroys rows
    (or may) without `allow_destructive`; `CustomerHeld`; `UnknownOutcome` if the response was lost.
    """
    checked_decision(decision, SUPPORTED, API)
    if isinstance(decision, Approve):
        if shown.is_destructive and not allow_destructive:
            reason = f"what is proposed for {external_id} destroys rows, or may"
            raise InvalidInput("allow_destructive", False, reason)
        check_answers(shown, decision.answers or {})
    async with await journal.claim(external_id) as claim:
        with OwnerScope(Owner(external_id)):
            keeper = keeper_of(context, claim)
            await keeper.responses.catch_up()
            return await _decide(context, keeper, decision, shown)


async def _decide(
    context: SessionContext, keeper: RecordKeeper[Record], decision: Decision, shown: NeedsAttention
) -> Reviewed:
    record = keeper.record
    if not isinstance(record.outcome, Parked):
        raise InvalidInput("external_id", record.external_id, "is not parked: there is nothing to decide")
    run = _run(context, record)
    state = await _read(run)
    if run.needs_attention != shown:
        return await _not_as_shown(keeper, run, state)
    return await _decided(keeper, run, decision)


async def _decided(keeper: RecordKeeper[Record], run: ImportRun, decision: Decision) -> Reviewed:
    """Send a decision about what the run asked when it was read last, and record the result."""
    shown = run.needs_attention
    try:
        await send_decision(keeper, run, decision)
    except Conflict:  # somebody else was faster, and the run was read since
        if run.needs_attention == shown or run.state is None:
            raise
        return await _not_as_shown(keeper, run, run.state)
    await keeper.keep("decided", outcome=None)
    return "sent"


async def cancel(
    context: SessionContext, journal: JournalPort, external_id: str, *, reject_parked: bool = False
) -> Outcome:
    """Record that a customer is canceled, and return its outcome; see `Generation.cancel`.

    The API generation has no request that cancels a run: a run in progress goes on. `reject_parked` rejects the
    proposal of a parked run, which ends it.
    """
    async with await journal.claim(external_id) as claim:
        with OwnerScope(Owner(external_id)):
            keeper = keeper_of(context, claim)
            await keeper.responses.catch_up()
            if claim.state is None:
                reason = "is not in the journal: there is nothing to cancel"
                raise InvalidInput("external_id", external_id, reason)
            return await _cancel(context, keeper, reject_parked=reject_parked)


async def _cancel(context: SessionContext, keeper: RecordKeeper[Record], *, reject_parked: bool) -> Outcome:
    outcome = keeper.record.outcome
    if not keeper.record.is_readable and isinstance(outcome, Failed):
        raise InvalidInput("external_id", keeper.record.external_id, outcome.error)
    if isinstance(outcome, Delivered | Failed | Unknown):
        return outcome
    is_rejected = reject_parked and isinstance(outcome, Parked)
    if is_rejected:
        await reject_run(context, keeper)
    goes_on = keeper.record.run_id is not None and not is_rejected
    where = ", and the run continues at the server" if goes_on else ""
    error = f"canceled: this client stopped its work{where}; the next call continues"
    canceled = Pending(**keeper.outcome_fields(), error=error, reason="canceled")
    await keeper.keep("pending", outcome=canceled)
    keeper.tell("pending", canceled.error)
    return canceled


async def reject_run(context: SessionContext, keeper: RecordKeeper[Record]) -> None:
    """Reject what the run of a record asks, if it asks anything."""
    run = _run(context, keeper.record)
    await _read(run)
    while run.needs_attention is not None:  # others may decide at the same time, and the run may ask again
        if await _decided(keeper, run, Reject()) != "changed":
            return


async def send_decision(keeper: RecordKeeper[Record], run: ImportRun, decision: Decision) -> None:
    """Write a decision about what a run asks to the journal, and send it. Raises as `ImportRun.approve` does."""
    shown = run.needs_attention
    assert shown is not None
    await keeper.write(
        "decide",
        shown=shown,
        decision=decision,
        rejected=isinstance(decision, Reject),
        decided=mark_of(shown),
        decided_at=wall_clock(),
    )
    if isinstance(decision, Approve):
        await run.approve(decision.answers, rank=keeper.rank)
    else:
        await run.reject(rank=keeper.rank)


async def _read(run: ImportRun) -> ImportState:
    """Read a run for a person who waits. The time is limited, because polls are repeated during an outage."""
    try:
        async with asyncio.timeout(_PATIENCE):
            return await run.read()
    except TimeoutError as error:
        reason = f"the run could not be read within {_PATIENCE:g} s"
        raise NoAnswer(run.ENDPOINT.method, run.ENDPOINT.template, reason) from error


async def _not_as_shown(keeper: RecordKeeper[Record], run: ImportRun, state: ImportState) -> Reviewed:
    """Record that the run now asks something else, or nothing."""
    attention = run.needs_attention
    if attention is None:
        await keeper.keep("decided elsewhere", outcome=None)
        return "gone"
    parked = keeper.record.outcome
    assert isinstance(parked, Parked)
    outcome = msgspec.structs.replace(parked, attention=attention, report=state.report)
    await keeper.keep("parked", outcome=outcome)
    return "changed"


def _run(context: SessionContext, record: Record) -> ImportRun:
    if record.company_id is None or record.run_id is None:
        raise InvalidInput("external_id", record.external_id, "has no import yet: there is nothing to decide")
    return Companies(context).open(record.company_id).imports.open(record.run_id)
