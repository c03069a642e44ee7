"""Decide a parked import of a journal, also long after its fleet has ended.

A run can ask different questions with the same ids later, and another person may decide while this one reads the
questions. So a decision contains the questions that the person saw. The run is read before the decision is sent, and
the decision is sent only if the run still asks exactly those questions. The intent is in the journal before the
request is sent.
"""

from asyncmig._io.context import SessionContext
from asyncmig._io.failures import Owner
from asyncmig.companies.catalog import Companies
from asyncmig.companies.import_run import ImportRun
from asyncmig.companies.wire import ImportState
from asyncmig.companies.workflow.record import Record
from asyncmig.customers.decisions import Approve, Decision, Reject, checked_decision
from asyncmig.customers.outcome import Outcome, Parked, Reviewed
from asyncmig.customers.questions import NeedsAttention, check_answers
from asyncmig.customers.status import wall_clock
from asyncmig.errors import Conflict, InvalidInput
from asyncmig.journal import JournalPort
from asyncmig.records.decisions import answered_within, cancel_customer, keep_shown, parked_customer
from asyncmig.records.record_keeper import RecordKeeper

__all__ = ["SUPPORTED", "cancel", "check_fits", "decide_parked", "look", "reject_run", "send_decision"]

SUPPORTED = (Approve, Reject)
"""The decisions of this API generation."""

_PATIENCE = 60.0
"""Seconds after which a server that does not answer counts as unavailable."""


def check_fits(asked: NeedsAttention, decision: Decision) -> None:
    """Raise `InvalidInput` for a decision that this generation lacks, or for answers that were not offered."""
    checked_decision(decision, SUPPORTED, Record.API)
    if isinstance(decision, Approve):
        check_answers(asked, decision.answers or {})


async def look(context: SessionContext, record: Record) -> NeedsAttention | None:
    """Return what the run of a record asks now; None if it asks nothing.

    Raises as reading a run does, and `NoAnswer` after a minute without an answer.
    """
    with Owner(record.external_id):
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
    check_fits(shown, decision)
    if isinstance(decision, Approve) and shown.is_destructive and not allow_destructive:
        reason = f"what is proposed for {external_id} destroys rows, or may"
        raise InvalidInput("allow_destructive", False, reason)
    async with parked_customer(context, journal, external_id, Record) as keeper:
        run = _run(context, keeper.record)
        state = await _read(run)
        if run.needs_attention != shown:
            return await keep_shown(keeper, run.needs_attention, report=state.report)
        return await _decided(keeper, run, decision)


async def _decided(keeper: RecordKeeper[Record], run: ImportRun, decision: Decision) -> Reviewed:
    """Send a decision about what the run asked when it was read last, and record the result."""
    shown = run.needs_attention
    try:
        await send_decision(keeper, run, decision)
    except Conflict:  # somebody else was faster, and the run was read since
        if run.needs_attention == shown or run.state is None:
            raise
        return await keep_shown(keeper, run.needs_attention, report=run.state.report)
    await keeper.keep("decided", outcome=None)
    return "sent"


async def cancel(
    context: SessionContext, journal: JournalPort, external_id: str, *, reject_parked: bool = False
) -> Outcome:
    """Record that a customer is canceled, and return its outcome; see `Generation.cancel`.

    The API generation has no request that cancels a run: a run in progress continues. `reject_parked` rejects the
    proposal of a parked run, which ends it.
    """

    async def stop(keeper: RecordKeeper[Record]) -> str:
        is_rejected = reject_parked and isinstance(keeper.record.outcome, Parked)
        if is_rejected:
            await reject_run(context, keeper)
        goes_on = keeper.record.run_id is not None and not is_rejected
        where = ", and the run continues at the server" if goes_on else ""
        return f"canceled: this client stopped its work{where}; the next call continues"

    return await cancel_customer(context, journal, external_id, Record, stop)


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
        decided=shown.digest,
        decided_at=wall_clock(),
    )
    if isinstance(decision, Approve):
        await run.approve(decision.answers, rank=keeper.rank)
    else:
        await run.reject(rank=keeper.rank)


async def _read(run: ImportRun) -> ImportState:
    async with answered_within(_PATIENCE, run.ENDPOINT):
        return await run.read()


def _run(context: SessionContext, record: Record) -> ImportRun:
    if record.company_id is None or record.run_id is None:
        raise InvalidInput("external_id", record.external_id, "has no import yet: there is nothing to decide")
    return Companies(context).open(record.company_id).imports.open(record.run_id)
