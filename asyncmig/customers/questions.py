"""What a parked run asks, and the answers that a person may give."""

from collections.abc import Mapping
from dataclasses import dataclass

from msgspec import Struct

from asyncmig.errors import InvalidInput

__all__ = ["Action", "Custom", "NeedsAttention", "Option", "Patch", "Question", "Target", "check_answers"]


_HARMLESS = frozenset({"set_value", "keep"})


class Option(Struct, frozen=True, kw_only=True):
    """One proposed answer to a question."""

    id: str
    label: str | None = None


class Target(Struct, frozen=True, kw_only=True):
    """What a question is about."""

    sheet_id: str | None = None
    column: str | None = None
    affected_count: int | None = None
    sample_values: tuple[str, ...] = ()
    error: str | None = None


class Question(Struct, frozen=True, kw_only=True):
    """What a person is asked while a run is parked."""

    id: str
    prompt: str | None = None
    context: str | None = None
    target: Target | None = None
    relevant_columns: tuple[str, ...] = ()
    options: tuple[Option, ...] = ()
    allow_custom: bool = False


class Action(Struct, frozen=True, kw_only=True):
    """One step of a proposed patch."""

    action: str | None = None
    """`set_value`, `keep`, `delete_invalid_rows` or `dedup_keep_first`; others may come."""
    sheet_id: str | None = None
    column: str | None = None
    value: str | None = None
    key_column: str | None = None

    @property
    def is_destructive(self) -> bool:
        """Whether it destroys rows, or may: an action that is not known counts as one that does."""
        return self.action not in _HARMLESS


class Patch(Struct, frozen=True, kw_only=True):
    """What an approval without answers applies as it is."""

    summary: str | None = None
    actions: tuple[Action, ...]

    @property
    def is_destructive(self) -> bool:
        """Whether any of its actions destroys rows, or may."""
        return any(action.is_destructive for action in self.actions)


class NeedsAttention(Struct, frozen=True, kw_only=True):
    """Why a run is parked: questions, and a patch that answers them unless somebody says otherwise."""

    questions: tuple[Question, ...] = ()
    proposed_patch: Patch | None = None

    @property
    def destructive(self) -> tuple[Action, ...]:
        """The actions of the patch that destroy rows, or may: they can concern rows that no question asked about."""
        patch = self.proposed_patch
        return tuple(action for action in patch.actions if action.is_destructive) if patch else ()

    @property
    def is_destructive(self) -> bool:
        """Whether approving it destroys rows, or may: a patch that cannot be read counts as one that does."""
        return self.proposed_patch is None or self.proposed_patch.is_destructive


@dataclass(frozen=True, slots=True)
class Custom:
    """An answer in one's own words, where a question allows it.

    await run.approve(answers={"fq0": Custom("unknown@example.com")})
    """

    text: str


def check_answers(asked: NeedsAttention, answers: Mapping[str, str | Custom]) -> None:
    """Check answers by question id: option ids or `Custom` texts.

    Raises `InvalidInput` for a question that was not asked, and for an answer that its question does not accept.
    """
    for question_id, choice in answers.items():
        _check_answer(_question(asked, question_id), choice)


def _check_answer(question: Question, choice: str | Custom) -> None:
    field = f"answers[{question.id!r}]"
    if isinstance(choice, Custom):
        if not question.allow_custom:
            raise InvalidInput(field, choice.text, "this question takes only its options")
        if not choice.text.strip():
            raise InvalidInput(field, choice.text, "is empty")
        return
    offered = [option.id for option in question.options]
    if choice not in offered:
        hint = "; use Custom(...) for your own text" if question.allow_custom else ""
        raise InvalidInput(field, choice, f"is not one of {offered}{hint}")


def _question(asked: NeedsAttention, question_id: str) -> Question:
    found = [question for question in asked.questions if question.id == question_id]
    if not found:
        ids = [question.id for question in asked.questions]
        raise InvalidInput("answers", question_id, f"is not a question of this run, which asks {ids}")
    if len(found) > 1:
        reason = f"is the id of {len(found)} questions: an answer cannot distinguish them"
        raise InvalidInput("answers", question_id, reason)
    return found[0]
