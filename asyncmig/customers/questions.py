"""The questions of a parked run, and the answers to them."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, cast

import msgspec
from msgspec import Struct

from asyncmig.customers.previews import Preview, PreviewSheet
from asyncmig.errors import InvalidInput

__all__ = [
    "Action",
    "AttentionKind",
    "CredentialRequest",
    "Custom",
    "Guidance",
    "GuidanceLink",
    "NeedsAttention",
    "Option",
    "Patch",
    "Question",
    "Target",
    "check_answers",
]


_HARMLESS = frozenset({"set_value", "keep"})


class Option(Struct, frozen=True, kw_only=True):
    """An answer that a question offers."""

    id: str
    label: str | None = None


class Target(Struct, frozen=True, kw_only=True):
    """The sheet, column and cells that a question is about."""

    sheet_id: str | None = None
    column: str | None = None
    affected_count: int | None = None
    sample_values: tuple[str, ...] = ()
    error: str | None = None


class Question(Struct, frozen=True, kw_only=True):
    """A question of a parked run."""

    id: str
    prompt: str | None = None
    context: str | None = None
    target: Target | None = None
    relevant_columns: tuple[str, ...] = ()
    options: tuple[Option, ...] = ()
    allow_custom: bool = False


class Action(Struct, frozen=True, kw_only=True):
    """An action of a proposed patch."""

    action: str | None = None
    """`set_value`, `keep`, `delete_invalid_rows` or `dedup_keep_first`; others may come."""
    sheet_id: str | None = None
    column: str | None = None
    value: str | None = None
    key_column: str | None = None

    @property
    def is_destructive(self) -> bool:
        """Whether the action destroys rows, or may: an unknown action counts as destructive."""
        return self.action not in _HARMLESS


class Patch(Struct, frozen=True, kw_only=True):
    """The changes that an approval without answers applies."""

    summary: str | None = None
    actions: tuple[Action, ...]

    @property
    def is_destructive(self) -> bool:
        """Whether an action of the patch destroys rows, or may."""
        return any(action.is_destructive for action in self.actions)


class GuidanceLink(Struct, frozen=True, kw_only=True):
    """A page that explains where credentials come from."""

    label: str | None = None
    url: str | None = None


class Guidance(Struct, frozen=True, kw_only=True):
    """How a person gets the credentials."""

    summary: str | None = None
    steps: tuple[str, ...] = ()
    links: tuple[GuidanceLink, ...] = ()


class CredentialRequest(Struct, frozen=True, kw_only=True):
    """Which credentials a run waits for."""

    connection_id: str | None = None
    source_key: str | None = None
    source_name: str | None = None
    reason: str | None = None
    guidance: Guidance | None = None
    schema: object = None
    """The fields: `{field: {type, secret?}}`, or a JSON Schema. It never has values."""

    @property
    def fields(self) -> tuple[str, ...]:
        """The names of all fields that `schema` mentions, of every way to sign in."""
        return tuple(dict.fromkeys(_field_names(self.schema)))


def _field_names(schema: object) -> list[str]:
    if not isinstance(schema, dict):
        return []
    parts = cast("dict[str, object]", schema)
    ways = [
        way for name in ("oneOf", "anyOf", "allOf") for way in cast("list[object]", parts.get(name) or [])
    ]
    properties = parts.get("properties")
    if not ways and not isinstance(properties, dict):
        return [name for name, rule in parts.items() if isinstance(rule, dict)]
    own = list(cast("dict[str, object]", properties)) if isinstance(properties, dict) else []
    return own + [name for way in ways for name in _field_names(way)]


AttentionKind = Literal["patch", "questions", "credentials", "preview"]
"""What a parked run waits for: a decision about a patch, answers, credentials, or the approval of a preview."""


class NeedsAttention(Struct, frozen=True, kw_only=True):
    """Why a run is parked, and what a person needs to know to decide."""

    questions: tuple[Question, ...] = ()
    proposed_patch: Patch | None = None
    """What an approval without answers does, for the kind `patch`."""
    kind: AttentionKind = "patch"
    credentials: CredentialRequest | None = None
    """Which credentials the run waits for."""
    preview: Preview | None = None
    """A sample of what an approval would import."""
    reason: str | None = None
    """Why the run waits, as the server says. Without questions, only the server's operator can help."""

    @property
    def digest(self) -> str:
        """A digest of what the run waits for, so that a decision is never applied to something else.

        Of a preview with a `version`, it does not cover the rows of the sample and their flagged cells.
        """
        shown, preview = self, self.preview
        if preview is not None and preview.version:
            sheets = tuple(PreviewSheet(sheet=each.sheet, header=each.header) for each in preview.sheets)
            shown = msgspec.structs.replace(self, preview=msgspec.structs.replace(preview, sheets=sheets))
        return hashlib.sha256(msgspec.json.encode(shown)).hexdigest()

    @property
    def destructive(self) -> tuple[Action, ...]:
        """The actions of the patch that destroy rows, or may. They can affect rows that no question is about."""
        patch = self.proposed_patch
        return tuple(action for action in patch.actions if action.is_destructive) if patch else ()

    @property
    def is_destructive(self) -> bool:
        """Whether an approval destroys rows, or may: a patch that cannot be read counts as destructive."""
        if self.kind != "patch":
            return False
        return self.proposed_patch is None or self.proposed_patch.is_destructive


@dataclass(frozen=True, slots=True)
class Custom:
    """An answer as free text, for a question that allows it.

    await run.approve(answers={"fq0": Custom("unknown@example.com")})
    """

    text: str


def check_answers(asked: NeedsAttention, answers: Mapping[str, str | Custom]) -> None:
    """Check answers, by question id: ids of options, or `Custom` texts.

    Where a run waits for answers (the kind `questions`), the label of an option is accepted as well, any text answers
    a question without options, and every question needs an answer.

    Raises `InvalidInput` for a question that was not asked, and for an answer that its question does not accept.
    """
    waits = asked.kind == "questions"
    for question_id, choice in answers.items():
        _check_answer(_question(asked, question_id), choice, accepts_labels=waits)
    if missing := [question.id for question in asked.questions if waits and question.id not in answers]:
        raise InvalidInput("answers", missing, "have no answer: the server may guess it")


def _check_answer(question: Question, choice: str | Custom, *, accepts_labels: bool) -> None:
    field = f"answers[{question.id!r}]"
    text = choice.text if isinstance(choice, Custom) else choice
    if (
        accepts_labels
        and text.strip()
        and (not question.options or text in [option.label for option in question.options])
    ):
        return
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
