"""Rules that answer the questions of a run without a person: a pattern of the question's text, and the answer.

The rules come from a TOML file of the operator, one `[[answer]]` table for each rule:

```toml
[[answer]]
question = "date format"      # a regular expression, searched anywhere in the question's text
choose = "Day first"          # the label of an offered option; the text of a question without options

[[answer]]
question = "^Which currency"
text = "EUR"                  # free text, where the question allows it
source = "HubSpot"            # only for customers of this source
```

The first rule that matches a question applies. The questions of a run are answered together or not at all.
"""

import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

from msgspec import Struct

from asyncmig._core.arguments import check_fields, checked_call, checked_path
from asyncmig._core.invisible import BYTE_ORDER_MARK, trimmed
from asyncmig.customers.questions import Custom, Question
from asyncmig.errors import InvalidInput, is_temporary

__all__ = ["AnswerRule", "answers_by_rules", "checked_rules", "parse_answer_rules", "read_answer_rules"]

_LARGEST = 1024 * 1024
"""Bytes of a file with rules."""


class AnswerRule(Struct, frozen=True, kw_only=True):
    """How to answer each question whose text contains a match of a pattern. Raises `InvalidInput`."""

    question: str
    """A regular expression (`re`), searched anywhere in the question's text."""
    choose: str | None = None
    """The label of the option to choose, without regard to case and to spaces at its ends. A question without options
    gets it as text."""
    text: str | None = None
    """The answer as free text, instead of `choose`."""
    source: str | None = None
    """The name of a source: the rule applies to its customers only. None: to all customers."""

    def __post_init__(self) -> None:
        """Raise `InvalidInput` for a wrong value."""
        check_fields(self)
        given = {name: cast("str | None", getattr(self, name)) for name in self.__struct_fields__}
        for name, value in given.items():
            if value is not None and not trimmed(value):
                raise InvalidInput(name, value, "is empty")
        if self.choose is not None and self.text is not None:
            raise InvalidInput("text", self.text, f"cannot be combined with choose={self.choose!r}: give one")
        if self.choose is None and self.text is None:
            raise InvalidInput("choose", None, "is missing: give choose or text")
        try:
            re.compile(self.question)
        except (re.error, RecursionError, OverflowError) as error:
            raise InvalidInput("question", self.question, f"is not a regular expression ({error})") from None

    def matches(self, question: Question, source: str | None = None) -> bool:
        """Return whether this rule answers a question of a customer of `source` (a name)."""
        if self.source is not None and _folded(self.source) != _folded(source or ""):
            return False
        return re.search(self.question, question.prompt or "") is not None


def answers_by_rules(
    rules: Sequence[AnswerRule], questions: Sequence[Question], *, source: str | None = None
) -> dict[str, str | Custom]:
    """Return an answer to each of `questions`, by question id: the label of an option as offered, or `Custom` text.

    `source`: the name of the customer's source; None or "" if it has none.

    Raises `InvalidInput` if any question has no rule, or if its rule gives an answer that the question does not
    offer. Then none of the answers may be sent, because the server may guess the missing ones.
    """
    if not questions:
        raise InvalidInput("answers", [], "the run shows no question that a rule could answer")
    answers: dict[str, str | Custom] = {}
    for question in questions:
        if question.id in answers:
            reason = "is the id of several questions: an answer cannot distinguish them"
            raise InvalidInput("answers", question.id, reason)
        rule = next((each for each in rules if each.matches(question, source)), None)
        if rule is None:
            raise InvalidInput("answers", question.prompt or "", "no rule matches this question")
        answers[question.id] = _answer(rule, question)
    return answers


def _answer(rule: AnswerRule, question: Question) -> str | Custom:
    wanted = rule.choose if rule.choose is not None else cast(str, rule.text)
    if not question.options:
        return Custom(wanted)
    labels = [option.label or option.id for option in question.options]
    found = [label for label in labels if label == wanted] or [
        label for label in labels if _folded(label) == _folded(wanted)
    ]
    if len(set(found)) == 1:
        return found[0]
    if found:
        reason = f"the choice {wanted!r} of its rule means several of its options: {found}"
    elif rule.text is None:
        reason = f"the choice {wanted!r} of its rule is not among its options, {labels}"
    elif not question.allow_custom:
        reason = f"its rule gives the text {wanted!r}, and it takes only its options, {labels}"
    else:
        return Custom(wanted)
    raise InvalidInput("answers", question.prompt or "", reason)


def _folded(text: str) -> str:
    return trimmed(text).casefold()


@checked_call
def read_answer_rules(path: Path | str) -> tuple[AnswerRule, ...]:
    """Read the rules in a TOML file. Raises `InvalidInput` with every fault of the file.

    Raises `OSError` if reading may succeed later.
    """
    path = checked_path("answers", path)
    try:
        if path.exists() and not path.is_file():  # reading a FIFO would wait for a writer
            raise InvalidInput("answers", str(path), "is not a file")
        with path.open("rb") as file:
            content = file.read(_LARGEST + 1)
        if len(content) > _LARGEST:
            raise InvalidInput("answers", str(path), f"is larger than {_LARGEST // 2**20} MB")
        return parse_answer_rules(content.decode(), str(path))
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise InvalidInput(
            "answers", str(path), f"line {line} is not UTF-8: save the file as UTF-8"
        ) from None
    except OSError as error:
        if is_temporary(error):
            raise
        raise InvalidInput("answers", str(path), f"cannot be read: {error.strerror}") from error


def parse_answer_rules(text: str, path: str = "answers.toml") -> tuple[AnswerRule, ...]:
    """Return the rules in a TOML text. `path`: the name of its file, for errors.

    Raises `InvalidInput` that names each wrong entry (counted from 1), its field and its value.
    """
    try:
        content: dict[str, object] = tomllib.loads(text.lstrip(BYTE_ORDER_MARK).replace("\r\n", "\n"))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise InvalidInput("answers", path, f"is not TOML ({error})") from None
    entries = content.pop("answer", [])
    faults = [f"{name}: is unknown, because there is only [[answer]]" for name in content]
    tables = cast("list[object]", entries) if isinstance(entries, list) else None
    if tables is None:
        faults.append("answer: must be tables: [[answer]]")
    elif not tables and not faults:
        faults.append("has no rule: there is no [[answer]]")
    rules = list[AnswerRule]()
    for number, table in enumerate(tables or (), 1):
        try:
            rules.append(_rule(table))
        except InvalidInput as error:
            faults.append(f"entry {number}: {error}")
    if faults:
        raise InvalidInput("answers", path, "; ".join(faults))
    return tuple(rules)


def checked_rules(rules: Sequence[object]) -> tuple[AnswerRule, ...]:
    """Return rules that are given as `AnswerRule` or as mappings. Raises `InvalidInput` for other objects."""
    return tuple(rule if isinstance(rule, AnswerRule) else _rule(rule) for rule in rules)


def _rule(table: object) -> AnswerRule:
    if not isinstance(table, Mapping):
        raise InvalidInput("answers", table, "is neither an AnswerRule nor a table with its fields")
    given = cast("Mapping[str, object]", table)
    for name, value in given.items():
        if name not in AnswerRule.__struct_fields__:
            raise InvalidInput(
                name, value, f"is unknown; there are {', '.join(AnswerRule.__struct_fields__)}"
            )
        if value is not None and not isinstance(value, str):
            raise InvalidInput(name, value, "must be a string")
    if "question" not in given:
        raise InvalidInput("question", None, "is missing")
    return AnswerRule(**cast("dict[str, str]", given))
