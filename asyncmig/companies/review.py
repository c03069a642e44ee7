"""Check a person's answers to a parked import against its questions."""

import hashlib
from collections.abc import Mapping

import msgspec

from asyncmig.companies.wire import Answer
from asyncmig.customers.questions import Custom, NeedsAttention, Question
from asyncmig.errors import InvalidInput

__all__ = ["checked_answers", "mark_of"]


def mark_of(shown: NeedsAttention) -> str:
    """Return the mark that identifies one park of a run: the SHA-256 of its questions."""
    return hashlib.sha256(msgspec.json.encode(shown)).hexdigest()


def checked_answers(shown: NeedsAttention, answers: Mapping[str, str | Custom]) -> tuple[Answer, ...]:
    """Return the answers to send. Raises `InvalidInput` for an unknown question, and for an answer that it does not
    accept.
    """
    return tuple(_answer(_question(shown, question_id), choice) for question_id, choice in answers.items())


def _answer(question: Question, choice: str | Custom) -> Answer:
    field = f"answers[{question.id!r}]"
    if isinstance(choice, Custom):
        if not question.allow_custom:
            raise InvalidInput(field, choice.text, "this question takes only its options")
        if not choice.text.strip():
            raise InvalidInput(field, choice.text, "is empty")
        return Answer(question_id=question.id, custom=choice.text)
    offered = [option.id for option in question.options]
    if choice not in offered:
        hint = "; use Custom(...) for your own text" if question.allow_custom else ""
        raise InvalidInput(field, choice, f"is not one of {offered}{hint}")
    return Answer(question_id=question.id, option_id=choice)


def _question(shown: NeedsAttention, question_id: str) -> Question:
    asked = [question for question in shown.questions if question.id == question_id]
    if len(asked) == 1:
        return asked[0]
    if asked:
        raise InvalidInput(
            "answers", question_id, f"is the id of {len(asked)} questions: an answer cannot distinguish them"
        )
    raise InvalidInput(
        "answers",
        question_id,
        f"is not a question of this run, which asks {[question.id for question in shown.questions]}",
    )
