"""Decide a parked import that is recorded in a journal, also long after its fleet has ended.

Question ids can be the same in every park, and another person may decide between the look and the answer. So a
decision names the questions that the person saw, the run is read before the decision is sent, and the decision is
sent only if the run still asks exactly those questions. As with `migrate`, the journal has the intent before the
request is sent.
"""

import asyncio

import msgspec

from asyncmig._io.context import SessionContext
from asyncmig._io.failures import Owner, working_for
from asyncmig.companies.catalog import Companies
from asyncmig.companies.import_run import ImportRun, checked_answers, mark_of
from asyncmig.companies.wire import ImportState
from asyncmig.companies.workflow.answers import Answers
from asyncmig.companies.workflow.record import Record
from asyncmig.companies.workflow.record_keeper import wall_clock
from asyncmig.customers.outcome import Decision, Parked, Reviewed
from asyncmig.customers.questions import NeedsAttention
from asyncmig.errors import Conflict, InvalidInput, NoAnswer
from asyncmig.journal import ClaimPort, JournalPort

__all__ = ["decide_parked", "look"]

_PATIENCE = 60.0
"""Seconds after which a server that does not answer counts as away."""


async def look(context: SessionContext, record: Record) -> NeedsAttention | None:
    """Return what the run of a record asks now; None if it asks nothing.

    Raises as reading a run does, and `NoAnswer` after a minute without an answer.
    """
    with working_for(Owner(record.external_id)):
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
    (or may) without `allow_destructive`; `CustomerHeld`; `UnknownOutcome` if the
    response was lost.
    """
    if decision.approve and shown.is_destructive and not allow_destructive:
        raise InvalidInput(
            "allow_destructive", False, f"what is proposed for {external_id} destroys rows, or may"
        )
    if decision.approve and decision.answers:
        checked_answers(shown, decision.answers)
    async with await journal.claim(external_id) as claim:
        with working_for(Owner(external_id)):
            return await _decide(context, claim, external_id, decision, shown)


async def _decide(
    context: SessionContext, claim: ClaimPort, external_id: str, decision: Decision, shown: NeedsAttention
) -> Reviewed:
    answers = Answers(context, claim)
    await answers.catch_up()
    record = answers.record
    if not isinstance(record.outcome, Parked):
        raise InvalidInput("external_id", external_id, "is not parked: there is nothing to decide")
    run = _run(context, record)
    state = await _read(run)
    if run.needs_attention != shown:
        return await _not_as_shown(answers, record, run, state)
    record = msgspec.structs.replace(
        record, rejected=not decision.approve, decided=mark_of(shown), decided_at=wall_clock()
    )
    detail = msgspec.json.encode({"shown": shown, "decision": decision})
    await claim.write("decide", detail, msgspec.json.encode(record))
    try:
        await (run.approve(decision.answers) if decision.approve else run.reject())
    except Conflict:  # somebody else was faster, and the run was read since
        if run.needs_attention == shown or run.state is None:
            raise
        return await _not_as_shown(answers, record, run, run.state)
    await answers.keep("decided", b"{}", msgspec.structs.replace(record, outcome=None))
    return "sent"


async def _read(run: ImportRun) -> ImportState:
    """Read a run, for somebody who sits there and waits: polling alone would outlast any outage."""
    try:
        async with asyncio.timeout(_PATIENCE):
            return await run.read()
    except TimeoutError as error:
        reason = f"the run could not be read within {_PATIENCE:g} s"
        raise NoAnswer(run.ENDPOINT.method, run.ENDPOINT.template, reason) from error


async def _not_as_shown(answers: Answers, record: Record, run: ImportRun, state: ImportState) -> Reviewed:
    """Write down that the run now asks something else, or nothing."""
    attention = run.needs_attention
    if attention is None:
        await answers.keep("decided elsewhere", b"{}", msgspec.structs.replace(record, outcome=None))
        return "gone"
    assert isinstance(record.outcome, Parked)
    outcome = msgspec.structs.replace(record.outcome, attention=attention, report=state.report)
    detail = msgspec.json.encode({"outcome": outcome})
    await answers.keep("parked", detail, msgspec.structs.replace(record, outcome=outcome))
    return "changed"


def _run(context: SessionContext, record: Record) -> ImportRun:
    if record.company_id is None or record.run_id is None:
        raise InvalidInput("external_id", record.external_id, "has no import yet: there is nothing to decide")
    return Companies(context).open(record.company_id).imports.open(record.run_id)
