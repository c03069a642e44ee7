"""What a run waits for, in the terms that every API generation shares."""

from asyncmig.customers.previews import Preview
from asyncmig.customers.questions import NeedsAttention, Option, Question
from asyncmig.migrations import wire
from asyncmig.migrations.tracker import CredentialsNeeded, Questions

__all__ = ["attention_of", "marks_of"]


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


def _question(question: wire.Question) -> Question:
    return Question(
        id=question.id,
        prompt=question.prompt,
        context=question.context,
        options=tuple(Option(id=option.id, label=option.label) for option in question.options),
        allow_custom=question.allow_custom,
    )
