"""Decide about a parked customer that is recorded in a journal, also long after its fleet has ended.

A decision names what the person saw, and it is applied only if the run still waits for exactly that. Answers,
credentials and cancels are sent at once, because a blocked run keeps a run slot. The approval of a preview and a
change are written to the journal, and the next `migrate` starts the execution or the update: a start waits for a run
slot and for one of a few starts in an hour, and a person should not.
"""

from asyncmig._io.context import SessionContext
from asyncmig._io.failures import Owner
from asyncmig.customers.decisions import (
    Answer,
    Approve,
    Cancel,
    Change,
    Credentials,
    Decision,
    Reject,
    checked_decision,
)
from asyncmig.customers.outcome import Outcome, Reviewed
from asyncmig.customers.previews import Preview
from asyncmig.customers.questions import NeedsAttention, Option, Question, check_answers
from asyncmig.errors import Conflict, InvalidInput, RunError
from asyncmig.journal import JournalPort
from asyncmig.migrations import routes, wire
from asyncmig.migrations.answers import CredentialsNeeded, Questions
from asyncmig.migrations.runs import Run
from asyncmig.migrations.workflow.operations import Operations, open_run, with_version
from asyncmig.migrations.workflow.record import Record
from asyncmig.records.decisions import answered_within, cancel_customer, keep_shown, parked_customer
from asyncmig.records.record_keeper import RecordKeeper

__all__ = ["SUPPORTED", "attention_of", "cancel", "check_fits", "decide_parked", "look"]

_PATIENCE = 120.0
"""Seconds after which a server that does not answer counts as away."""


SUPPORTED = (Approve, Reject, Answer, Credentials, Change, Cancel)
"""The decisions of this API generation."""
_FITTING: dict[str, tuple[type[Decision], ...]] = {
    "preview": (Approve, Change, Reject, Cancel),
    "questions": (Answer, Reject, Cancel),
    "credentials": (Credentials, Reject, Cancel),
}


def attention_of(result: Questions | CredentialsNeeded | Preview) -> NeedsAttention:
    """Return what a person has to decide."""
    match result:
        case Preview():
            return NeedsAttention(kind="preview", preview=result)
        case CredentialsNeeded():
            return NeedsAttention(kind="credentials", credentials=result.request)
        case Questions():
            questions = tuple(map(_question, result.questions))
            return NeedsAttention(kind="questions", questions=questions, reason=result.reason)


def check_fits(attention: NeedsAttention, decision: Decision) -> None:
    """Raise `InvalidInput` for a decision that does not fit what a run waits for, or that was not offered."""
    fitting = _FITTING.get(attention.kind, ())
    if not isinstance(decision, fitting):
        names = ", ".join(case.__name__ for case in fitting)
        kind = type(decision).__name__
        raise InvalidInput("decision", kind, f"does not fit a run that waits for {attention.kind}: {names}")
    if isinstance(decision, Approve) and decision.answers:
        raise InvalidInput("answers", decision.answers, "cannot be given with the approval of a preview")
    if isinstance(decision, Answer):
        check_answers(attention, decision.answers)
        if not attention.questions:
            raise InvalidInput("answers", decision.answers, "the run shows no question")


def _question(question: wire.Question) -> Question:
    return Question(
        id=question.id,
        prompt=question.prompt,
        context=question.context,
        options=tuple(Option(id=option.id, label=option.label) for option in question.options),
        allow_custom=question.allow_custom,
    )


async def look(context: SessionContext, record: Record) -> NeedsAttention | None:
    """Return what the run of a record waits for now; None if it waits for nothing.

    Raises as reading a run does, and `NoAnswer` after two minutes without an answer.
    """
    with Owner(record.external_id):
        return await _attention(context, record, open_run(context, record))


async def _attention(context: SessionContext, record: Record, run: Run) -> NeedsAttention | None:
    """Return what the run of a record waits for now."""
    try:
        async with answered_within(_PATIENCE, routes.READ_RUN):
            if run.id:
                state = await run.read()
                if state.status not in ("blocked", "awaiting_approval"):
                    return None
            result = await run.wait(stream=False)
            if isinstance(result, Preview):
                result = await with_version(context, record, result)
    except RunError:
        return None
    return attention_of(result) if isinstance(result, Preview | Questions | CredentialsNeeded) else None


async def decide_parked(
    context: SessionContext,
    journal: JournalPort,
    external_id: str,
    decision: Decision,
    *,
    shown: NeedsAttention,
) -> Reviewed:
    """Send or record a decision about what was `shown`; the next `migrate` continues from there.

    Nothing is sent if the run now waits for something else: the journal then has that. Raises `InvalidInput` for a
    customer that is not parked, and for a decision that does not fit; `CustomerHeld`; `UnknownOutcome` if a response
    was lost.
    """
    checked_decision(decision, SUPPORTED, Record.API)
    check_fits(shown, decision)
    async with parked_customer(context, journal, external_id, Record) as keeper:
        return await _decide(context, keeper, decision, shown)


async def _decide(
    context: SessionContext, keeper: RecordKeeper[Record], decision: Decision, shown: NeedsAttention
) -> Reviewed:
    record = keeper.record
    if record.operation is None or record.operation.run_id is None:
        reason = "has no run any more: the next call starts one"
        raise InvalidInput("external_id", record.external_id, reason)
    operations = Operations(context, keeper)
    run = await operations.run()
    attention = await _attention(context, record, run)
    if attention is None or attention.digest != shown.digest:
        return await keep_shown(keeper, attention, refused="")
    try:
        match decision:
            case Answer() | Credentials():
                await operations.answer(run, decision, shown)
            case Approve() | Change():
                await keeper.write("decide", decision=decision, decided_for=shown.digest, outcome=None)
                return "recorded"
            case _:
                await operations.cancel(run, "rejected" if isinstance(decision, Reject) else "canceled")
                await keeper.keep("decided", outcome=None)
    except Conflict:  # somebody else was faster
        attention = await _attention(context, record, run)
        if attention is not None and attention.digest == shown.digest:
            raise
        return await keep_shown(keeper, attention, refused="")
    return "sent"


async def cancel(context: SessionContext, journal: JournalPort, external_id: str) -> Outcome:
    """Cancel a customer's run, and return its outcome; see `Generation.cancel`."""

    async def stop(keeper: RecordKeeper[Record]) -> str:
        record = keeper.record
        if record.operation is None or not record.operation.run_id or record.report is not None:
            return "canceled: the next call continues"
        operations = Operations(context, keeper)
        state = await operations.cancel(await operations.run(), "canceled")
        if state.status in ("canceled", "failed"):
            await keeper.keep("canceled", operation=None, cancel="", previewed=None, decision=None)
            return "canceled, with its run: the next call generates anew"
        await keeper.keep("canceled", cancel="")
        return f"canceled; its run is {state.status}: the next call continues with it"

    return await cancel_customer(context, journal, external_id, Record, stop)
