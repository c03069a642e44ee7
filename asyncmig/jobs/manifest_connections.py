"""Read the `[company.connection]` of a manifest: a live connection, with credentials from the environment."""

import os
from collections.abc import Iterator, Mapping
from typing import Final, cast

import msgspec

from asyncmig.customers.spec import LiveSource
from asyncmig.errors import InvalidInput

__all__ = ["credentials_in", "read_connection"]

_FIELDS: Final = ("source_key", "config", "credentials", "profile_id")


def read_connection(table: Mapping[str, object]) -> LiveSource | list[InvalidInput]:
    """Return a connection, or all that is wrong with it. No error contains the value of an environment variable."""
    if faults := list(_faults(table)):
        return faults
    variable = cast("str | None", table.get("credentials"))
    try:
        return LiveSource(
            source_key=cast(str, table["source_key"]),
            config=cast("Mapping[str, object]", table.get("config", {})),
            credentials={} if variable is None else _credentials(variable),
            profile_id=cast("str | None", table.get("profile_id")),
        )
    except InvalidInput as error:
        return [InvalidInput(f"connection.{error.field}", error.value, error.reason)]


def _faults(table: Mapping[str, object]) -> Iterator[InvalidInput]:
    for name, value in table.items():
        field = f"connection.{name}"
        if name not in _FIELDS:  # the value may be a secret
            yield InvalidInput(field, "***", f"is unknown; there are {', '.join(_FIELDS)}")
        elif name == "config":
            if not isinstance(value, dict):
                yield InvalidInput(field, value, "must be a table")
        elif name == "credentials" and not isinstance(value, str):
            yield InvalidInput(
                field, "***", "must be the name of an environment variable, not the credentials"
            )
        elif not isinstance(value, str):
            yield InvalidInput(field, value, "must be a string")
    if "source_key" not in table:
        yield InvalidInput("connection.source_key", None, "is missing")


def credentials_in(variable: str, *, field: str, only: str | None = None) -> dict[str, object]:
    """Return the credentials in an environment variable: a JSON object, or the text of the field `only`.

    Raises `InvalidInput` about `field` that shows no value.
    """
    text = os.environ.get(variable, "")
    if not text.strip():
        raise InvalidInput(field, variable, "this environment variable is not set")
    if only is not None and not text.lstrip().startswith("{"):
        return {only: text}
    try:
        content = msgspec.json.decode(text, type=dict[str, object])
    except (ValueError, RecursionError):
        reason = 'this environment variable must hold a JSON object, such as {"token": "..."}'
        raise InvalidInput(field, variable, reason) from None
    if not content:
        raise InvalidInput(field, variable, "this environment variable holds no field")
    return content


def _credentials(variable: str) -> dict[str, object]:
    if not variable.isidentifier():
        reason = "must be the name of an environment variable, not the credentials"
        raise InvalidInput("credentials", "***", reason)
    return credentials_in(variable, field="credentials")
