"""Decode what a preview API sends: ignore what is not known, never stumble over what is optional.

msgspec decodes the documented form in one step. If that fails, a second, slower reading keeps what it
can: an optional field of a new shape counts as absent, text that arrives as something else is kept as
its JSON. What is required and cannot be understood is an error that names the field.
"""

from typing import TypeVar, cast, get_args, get_origin

import msgspec

__all__ = ["Unreadable", "convert", "decode"]

T = TypeVar("T")


class Unreadable(ValueError):
    """The body is not JSON, or a required field is missing or of the wrong kind; the text names it."""


def decode(body: bytes, kind: type[T]) -> T:
    """Return `body` as `kind`; raise `Unreadable` if it cannot be."""
    try:
        try:
            return msgspec.json.decode(body, type=kind, strict=False)
        except msgspec.ValidationError:
            return convert(msgspec.json.decode(body), kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Unreadable(f"not JSON: {error}") from None


def convert(value: object, kind: type[T], path: str = "$") -> T:
    """Return decoded JSON as `kind`, field by field where the whole does not convert; raise `Unreadable`."""
    try:
        return msgspec.convert(value, kind, strict=False)
    except msgspec.ValidationError as error:
        converted = _piecewise(value, kind, path, error)
    assert isinstance(converted, get_origin(kind) or kind)
    return cast("T", converted)


def _piecewise(value: object, kind: type, path: str, error: msgspec.ValidationError) -> object:
    if kind is str and not isinstance(value, str) and value is not None:
        return msgspec.json.encode(value).decode()
    if get_origin(kind) is tuple and isinstance(value, list):
        item = get_args(kind)[0]
        items = cast("list[object]", value)
        return tuple(convert(each, item, f"{path}[{n}]") for n, each in enumerate(items))
    if isinstance(value, dict) and get_origin(kind) is None and issubclass(kind, msgspec.Struct):
        return _struct(cast("dict[object, object]", value), kind, path)
    raise Unreadable(f"{error} (in {path})") from None


def _struct(value: dict[object, object], kind: type[msgspec.Struct], path: str) -> msgspec.Struct:
    found: dict[str, object] = {}
    for field in msgspec.structs.fields(kind):
        name = field.encode_name
        if name not in value:
            if field.required:
                raise Unreadable(f"required field missing: {path}.{name}")
            continue
        try:
            found[field.name] = convert(value[name], _without_none(field.type), f"{path}.{name}")
        except Unreadable:
            if field.required:
                raise
    return kind(**found)


def _without_none(kind: object) -> type:
    """Return X of `X | None`: null for an optional field is its default, like absence."""
    plain = [each for each in get_args(kind) if each is not type(None)]
    chosen = plain[0] if len(plain) == 1 and get_origin(kind) is not tuple else kind
    assert isinstance(chosen, type) or get_origin(chosen) is not None
    return chosen  # type: ignore[return-value]
