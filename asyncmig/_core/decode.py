"""Decode what a preview API sends: ignore what is not known, never stumble over what is optional.

msgspec decodes the documented form in one step. If that fails, a second, slower reading keeps what it
can: an optional field of a new shape counts as absent, text that arrives as something else is kept as
its JSON, an item of a list of which nothing is required stands there without any of its fields. What is
required and cannot be understood is an error that names the field.
"""

import contextlib
import re
from typing import TypeVar, cast, get_args, get_origin

import msgspec

__all__ = ["Unreadable", "convert", "decode"]

T = TypeVar("T")
_ESCAPE = re.compile(r"\\(?:u[dD][89abAB]..\\u[dD][c-fC-F]..|(u[dD][89a-fA-F]..)|.)")
"""An escape of a JSON string; the group is half of a surrogate pair that stands alone."""


class Unreadable(ValueError):
    """The body is not JSON, or a required field is missing or of the wrong kind; the text names it."""


def decode(body: bytes, kind: type[T]) -> T:
    """Return `body` as `kind`; raise `Unreadable` if it cannot be."""
    try:
        try:
            return _decode(body, kind)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return _decode(_mended(body), kind)
    except (msgspec.DecodeError, RecursionError) as error:
        raise Unreadable(f"not JSON: {error}") from None


def _decode(body: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=kind, strict=False)
    except msgspec.ValidationError:
        return convert(msgspec.json.decode(body), kind)


def _mended(body: bytes) -> bytes:
    """Return JSON without what is no text in it: a byte order mark, half a character where a server cut one."""
    text = body.decode("utf-8-sig", "replace")
    return _ESCAPE.sub(lambda found: "\\ufffd" if found[1] else found[0], text).encode()


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
        return tuple(_item(each, item, f"{path}[{n}]") for n, each in enumerate(items))
    if isinstance(value, dict) and get_origin(kind) is None and issubclass(kind, msgspec.Struct):
        return _struct(cast("dict[object, object]", value), kind, path)
    raise Unreadable(f"{error} (in {path})") from None


def _item(value: object, kind: type[object], path: str) -> object:
    try:
        return convert(value, kind, path)
    except Unreadable:
        if get_origin(kind) is None and issubclass(kind, msgspec.Struct):
            with contextlib.suppress(Unreadable):
                return _struct({}, kind, path)
        raise


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
