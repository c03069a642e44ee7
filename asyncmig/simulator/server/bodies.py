"""Read request bodies. Anything that does not follow the contract is a 400."""

from typing import TypeVar

import msgspec

__all__ = ["Malformed", "read"]

T = TypeVar("T")


class Malformed(Exception):
    """The body does not follow the contract."""


def read(body: bytes, kind: type[T], *, may_be_empty: bool = False) -> T:
    """Return `body` as `kind`, with every text non-empty. Raises `Malformed` with the server's message."""
    try:
        value = msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Malformed(str(error)) from None
    for name in getattr(kind, "__struct_fields__", ()):
        if getattr(value, name) == "" and not may_be_empty:
            raise Malformed(f"{name} is required")
    return value
