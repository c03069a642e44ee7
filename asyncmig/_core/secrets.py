"""Keeps secrets out of reprs and errors: a base class of structs with secrets, and the texts of a JSON value."""

from collections.abc import Iterator, Mapping
from typing import ClassVar, cast

import msgspec
from msgspec import Struct

from asyncmig.errors import InvalidInput

__all__ = ["HidesSecrets", "json_secrets", "secrets_of"]


class HidesSecrets(Struct, frozen=True, kw_only=True):
    """A struct whose repr shows only the fields in `_SHOWN`."""

    _SHOWN: ClassVar[tuple[str, ...]] = ()

    def __rich_repr__(self) -> list[tuple[str, object]]:
        return [(name, getattr(self, name)) for name in self._SHOWN]

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.__rich_repr__())})"
        )


def secrets_of(value: object) -> Iterator[str]:
    """Yield every text and number inside a JSON value, as text."""
    if isinstance(value, Mapping):
        for each in cast("Mapping[str, object]", value).values():
            yield from secrets_of(each)
    elif isinstance(value, list | tuple):
        for each in cast("list[object]", value):
            yield from secrets_of(each)
    elif isinstance(value, str | int | float) and not isinstance(value, bool):
        yield str(value)


def json_secrets(field: str, secrets: Mapping[str, object]) -> dict[str, object]:
    """Return secrets as JSON values. Raises `InvalidInput`, which shows no value, if that is not possible."""
    try:
        return msgspec.json.decode(msgspec.json.encode(secrets), type=dict[str, object])
    except (TypeError, ValueError, OverflowError, msgspec.MsgspecError, RecursionError):
        raise InvalidInput(field, "***", "cannot be written as JSON") from None  # the reason may quote it
