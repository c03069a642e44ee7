"""What a run waits for, in the terms that every API generation shares, and which decisions fit it."""

from asyncmig.customers.decisions import Answer, Approve, Cancel, Change, Credentials, Decision, Reject
from asyncmig.customers.previews import Preview
from asyncmig.customers.questions import NeedsAttention, Option, Question, check_answers
from asyncmig.errors import InvalidInput
from asyncmig.migrations import wire
from asyncmig.migrations.answers import CredentialsNeeded, Questions

__all__ = ["SUPPORTED", "attention_of", "check_fits", "marks_of"]

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


def marks_of(attention: NeedsAttention) -> set[str]:
    """Return what identifies each question, and each request for credentials, whatever its id is.

    Ids of questions may start again in the next block, or be new although the question is the same.
    """
    if attention.credentials is not None:
        return {f"credentials {attention.credentials.connection_id}"}
    return {
        "\n".join([question.prompt or "", *(option.label or option.id for option in question.options)])
        for question in attention.questions
    }


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
