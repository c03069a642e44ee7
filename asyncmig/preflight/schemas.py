"""Compiles the patterns and JSON Schemas by which cells are checked; needs the extra `check`.

They come from the server, so they must not block the client, and must not make it send requests. Therefore RE2
evaluates patterns in linear time, references to other documents are refused, and the number of references that the
check of one cell follows is limited.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol, cast, final

__all__ = ["JsonSchema", "Pattern", "compiled_pattern", "compiled_schema"]

_LONGEST_SCHEMA, _LONGEST_CELL = 100_000, 1_000_000
"""The most characters of a schema, and of a cell."""
_MOST_REFERENCES = 1_000
"""The most references that the check of one cell follows."""
_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")
_UNCHECKED = ("patternProperties",)
"""Keywords that the library evaluates with backtracking regular expressions. A schema with one is not checked."""


class Pattern(Protocol):
    """The methods of a pattern that are used. Its package, google-re2, has no type hints."""

    def fullmatch(self, text: bytes, /) -> object | None: ...
    def search(self, text: bytes, /) -> object | None: ...


def compiled_pattern(pattern: str) -> Pattern | str:
    """Return the pattern compiled by RE2, which needs linear time, or the reason why it cannot be checked."""
    try:
        re2 = import_module("re2")
    except ImportError:
        return "is not checked (pip install 'asyncmig[check]')"
    options = re2.Options()
    options.log_errors = False
    compiled: Callable[[str, object], Pattern] = re2.compile
    try:
        return compiled(pattern, options)
    except (re2.error, UnicodeError) as error:
        reason = error.args[0] if error.args else error
        reason = reason.decode("utf-8", "replace") if isinstance(reason, bytes) else reason
        return f"cannot be checked here ({reason})"


class _Validator(Protocol):
    """The method of a validator that is used. Its package, jsonschema, has no type hints."""

    def iter_errors(self, value: object, /) -> Iterator[object]: ...


class _TooMuch(Exception):
    """The check of a cell follows too many references."""


@final
@dataclass(slots=True)
class JsonSchema:
    """A JSON Schema by which cells are checked."""

    validator: _Validator
    references_left: list[int]
    """One number, shared with the keywords: how many references the check of the current cell may still follow."""
    failure: str | None = None
    """Why a cell could not be checked, of the last such cell; None if every cell could be checked."""

    def matches(self, cell: str) -> bool:
        """Return whether a cell contains JSON that the schema allows. True if that cannot be determined."""
        if len(cell) > _LONGEST_CELL:
            self.failure = f"the cell has more than {_LONGEST_CELL:,} characters"
            return True
        self.references_left[0] = _MOST_REFERENCES
        try:
            value: object = json.loads(cell, parse_constant=_refuse)
            return next(self.validator.iter_errors(value), None) is None
        except json.JSONDecodeError:
            return False
        except RecursionError:
            self.failure = "it is nested too deeply"
        except Exception as error:  # for a malformed schema, the library raises errors of several packages
            self.failure = _first_line(error)
        return True


def _refuse(constant: str) -> object:
    raise json.JSONDecodeError(f"{constant} is not JSON", constant, 0)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:100]


def compiled_schema(schema: object) -> JsonSchema | str:
    """Return the schema, or the reason why it cannot be used."""
    try:
        validators, referencing = import_module("jsonschema.validators"), import_module("referencing")
    except ImportError:
        return "is not checked (pip install 'asyncmig[check]')"
    if not isinstance(schema, Mapping):
        return "cannot be checked here (it is not an object)"
    patterns: dict[str, Pattern] = {}
    try:
        text = json.dumps(schema)
        reason = _reason_against(cast("Mapping[str, object]", schema), patterns)
    except RecursionError:
        return "cannot be checked here (it is nested too deeply)"
    if len(text) > _LONGEST_SCHEMA:
        return f"cannot be checked here (it has more than {_LONGEST_SCHEMA:,} characters)"
    if reason is not None:
        return f"cannot be checked here ({reason})"
    budget = [0]
    known: Any = validators.validator_for(schema, default=validators.Draft202012Validator)  # type: ignore[explicit-any]
    try:
        known.check_schema(schema)
        keywords = _keywords(known.VALIDATORS, patterns, budget)
        kind = validators.extend(known, keywords)
        return JsonSchema(kind(schema, registry=referencing.Registry()), budget)
    except Exception as error:  # for a malformed schema, the library raises errors of several packages
        return f"cannot be checked here ({_first_line(error)})"


def _reason_against(value: object, patterns: dict[str, Pattern]) -> str | None:
    """Return why a schema cannot be checked, or None. Adds its compiled patterns to `patterns`."""
    if isinstance(value, list):
        found = (_reason_against(each, patterns) for each in cast("list[object]", value))
        return next((reason for reason in found if reason), None)
    if not isinstance(value, Mapping):
        return None
    for name, inner in cast("Mapping[str, object]", value).items():
        if name in _UNCHECKED:
            return name
        if name in _REFERENCES and isinstance(inner, str) and not inner.startswith("#"):
            return "it refers to another document"
        if name == "pattern" and isinstance(inner, str):
            pattern = compiled_pattern(inner)
            if isinstance(pattern, str):
                return f"its pattern {pattern}"
            patterns[inner] = pattern
        if reason := _reason_against(inner, patterns):
            return reason
    return None


_Keyword = Callable[[object, object, object, object], Iterable[object] | None]
"""The implementation of a keyword. Its arguments are the validator, the keyword's value, the instance and the
schema."""


def _keywords(
    known: Mapping[str, _Keyword], patterns: Mapping[str, Pattern], budget: list[int]
) -> dict[str, _Keyword]:
    """Return the implementations of keywords that replace those of the library."""

    def pattern(validator: object, value: object, instance: object, schema: object) -> Iterator[object]:
        found = patterns.get(value) if isinstance(value, str) else None
        if found is None or not isinstance(instance, str):
            return
        if not found.search(instance.encode("utf-8", "replace")):
            yield _mismatch("pattern")

    def unique(validator: object, value: object, instance: object, schema: object) -> Iterator[object]:
        if value and isinstance(instance, list):  # the library would compare each item with each other item
            texts = {json.dumps(each, sort_keys=True) for each in cast("list[object]", instance)}
            if len(texts) < len(cast("list[object]", instance)):
                yield _mismatch("uniqueItems")

    def counted(keyword: _Keyword) -> _Keyword:
        def follow(validator: object, value: object, instance: object, schema: object) -> Iterator[object]:
            budget[0] -= 1
            if budget[0] < 0:
                raise _TooMuch(f"it follows more than {_MOST_REFERENCES:,} references")
            yield from keyword(validator, value, instance, schema) or ()

        return follow

    references = {name: counted(known[name]) for name in _REFERENCES if name in known}
    return {"pattern": pattern, "uniqueItems": unique, **references}


def _mismatch(keyword: str) -> object:
    return import_module("jsonschema.exceptions").ValidationError(keyword)
