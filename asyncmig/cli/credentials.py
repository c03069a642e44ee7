"""Credentials for a live source: from a person at the terminal, without echo, or from an environment variable."""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, cast

import msgspec

from asyncmig.customers.questions import CredentialRequest
from asyncmig.errors import InvalidInput
from asyncmig.jobs.manifest_connections import credentials_in

__all__ = ["CredentialField", "ask_credentials", "from_variable", "ways_of"]

Ask = Callable[[str], str]
"""Prompts a person, and returns a line. Raises `EOFError` and `KeyboardInterrupt`."""
_LITERALS = {"yes": True, "true": True, "no": False, "false": False}


class CredentialField(NamedTuple):
    """One value that a request for credentials names."""

    name: str
    kind: str
    """A type of JSON Schema; other values are text."""
    is_required: bool = False
    constant: object = None
    """The only value that is allowed; then nobody is asked for it."""
    about: str = ""


def ways_of(request: CredentialRequest) -> list[tuple[str, tuple[CredentialField, ...]]]:
    """Return the ways to sign in that a request offers: a title, and its fields. Mostly there is one."""
    is_mapping = isinstance(request.schema, Mapping)
    parts = cast("Mapping[str, object]", request.schema if is_mapping else {})
    ways = [
        cast("Mapping[str, object]", way)
        for name in ("oneOf", "anyOf")
        for way in cast("list[object]", parts.get(name) or [])
        if isinstance(way, Mapping)
    ]
    own = tuple(_fields(parts, is_plain=not ways and "properties" not in parts))
    if not ways:
        return [("", own)]
    return [
        (str(way.get("title") or f"way {number}"), (*own, *_fields(way, is_plain="properties" not in way)))
        for number, way in enumerate(ways, 1)
    ]


def _fields(schema: Mapping[str, object], *, is_plain: bool) -> Iterator[CredentialField]:
    """Yield the fields of a JSON Schema, or, if it `is_plain`, of a mapping from each field to its type."""
    rules = schema if is_plain else schema.get("properties")
    if not isinstance(rules, Mapping):
        return
    listed = schema.get("required")
    required = cast("list[object]", listed) if isinstance(listed, list) else []
    for name, rule in cast("Mapping[str, object]", rules).items():
        if isinstance(rule, Mapping):
            about = cast("Mapping[str, object]", rule)
            yield CredentialField(
                name=name,
                kind=str(about.get("type") or "string"),
                is_required=name in required,
                constant=about.get("const"),
                about=str(about.get("title") or about.get("description") or ""),
            )


def ask_credentials(
    fields: tuple[CredentialField, ...], ask: Ask, say: Callable[[str], None]
) -> dict[str, object] | None:
    """Ask for each field with `ask`, which must not echo. Returns None if a required one is left empty."""
    values: dict[str, object] = {field.name: field.constant for field in fields if field.constant is not None}
    for field in fields:
        if field.constant is not None:
            continue
        must = field.is_required or len(fields) == 1
        prompt = f"{field.name} ({'not shown' if must else 'not shown; Enter leaves it out'}): "
        while True:
            text = ask(prompt)
            if not text and must:
                return None
            try:
                if text:
                    values[field.name] = _value(field, text)
                break
            except ValueError:
                say(f"{field.name} must be of the type {field.kind}.")
    return values or None


def _value(field: CredentialField, text: str) -> object:
    """Return typed text as a value of the field's type. Raises `ValueError`."""
    match field.kind:
        case "boolean":
            if text.lower() not in _LITERALS:
                raise ValueError
            return _LITERALS[text.lower()]
        case "integer":
            return int(text)
        case "number":
            return float(text)
        case "object" | "array":
            return cast("object", msgspec.json.decode(text))
        case _:
            return text


def from_variable(variable: str, request: CredentialRequest | None) -> dict[str, object]:
    """Return the credentials in an environment variable: a JSON object, or the text of the only field.

    Raises `InvalidInput` that shows no value.
    """
    if not variable.isidentifier():
        reason = "must be the name of an environment variable, because other users can read command lines"
        raise InvalidInput("--credentials", "***", reason)
    fields = [field for _, fields in ways_of(request) for field in fields] if request else []
    only = fields[0].name if len(fields) == 1 else None
    return credentials_in(variable, field="--credentials", only=only)
