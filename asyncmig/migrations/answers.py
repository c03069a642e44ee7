"""What is known before an answer is sent to a blocked run, and the checks of answers and credentials."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import ClassVar

from asyncmig._core.secrets import HidesSecrets, json_secrets
from asyncmig.customers.questions import Custom
from asyncmig.errors import InvalidInput
from asyncmig.migrations.wire import AnswerBody, Question, RunState

__all__ = ["AnswerNoted", "AnswerPoint", "checked_answers", "checked_secrets"]


class AnswerPoint(HidesSecrets, frozen=True, kw_only=True):
    """What was known before an answer. With it, another process can find out whether the answer was accepted."""

    shown: RunState
    """The block that is answered."""
    after: int
    """The last sequence of the thread; -1 without events."""

    _SHOWN: ClassVar = ("after",)


AnswerNoted = Callable[[AnswerPoint], Awaitable[None]]
"""Called before an answer is sent, for example to write the point to a journal; again after a 429."""


def checked_secrets(field: str, secrets: Mapping[str, object]) -> dict[str, object]:
    """Return credentials as JSON values. Raises `InvalidInput`, which shows no value, for others."""
    if not secrets:
        raise InvalidInput(field, "***", "is empty")
    return json_secrets(field, secrets)


def checked_answers(
    asked: Sequence[Question], answers: Mapping[str, str | Custom] | str
) -> tuple[AnswerBody, ...]:
    """Return the answers to send: one for each question. Raises `InvalidInput` for others."""
    ids = [question.id for question in asked]
    if not asked:
        raise InvalidInput(
            "answers", answers, "the run is blocked and shows no questions; only a person can help"
        )
    if isinstance(answers, str):
        if len(asked) > 1:
            raise InvalidInput("answers", answers, f"a plain text cannot answer {len(ids)} questions: {ids}")
        answers = {ids[0]: answers}
    for question_id in answers:
        if question_id not in ids:
            raise InvalidInput("answers", question_id, f"is not a question of this run, which asks {ids}")
    if len(set(ids)) < len(ids):
        raise InvalidInput(
            "answers", ids, "several questions have the same id: an answer cannot distinguish them"
        )
    if missing := [each for each in ids if each not in answers]:
        raise InvalidInput("answers", missing, "have no answer: the server may guess it")
    return tuple(AnswerBody(id=each.id, value=_value(each, answers[each.id])) for each in asked)


def _value(question: Question, choice: str | Custom) -> str:
    """Return the text to send: the label of an option, or free text."""
    field, labels = f"answers[{question.id!r}]", [option.label or option.id for option in question.options]
    text = choice.text if isinstance(choice, Custom) else choice
    if not text.strip():
        raise InvalidInput(field, text, "is empty")
    if text in labels or not labels:
        return text
    if isinstance(choice, Custom):
        if not question.allow_custom:
            raise InvalidInput(field, text, f"this question takes only its options: {labels}")
        return text
    by_id = [label for option, label in zip(question.options, labels, strict=True) if option.id == text]
    if len(by_id) != 1:
        hint = "; use Custom(...) for your own text" if question.allow_custom else ""
        raise InvalidInput(field, text, f"is not one of {labels}{hint}")
    return by_id[0]
