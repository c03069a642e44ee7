"""Decode what a preview API sends: ignore what is not known, never stumble over what is optional.

msgspec decodes the documented form in one step. If that fails, a second, slower reading keeps what it
can: an optional field of a new shape counts as absent, text that arrives as something else is kept as
its JSON, an item of a list of which nothing is required stands there without any of its fields. What is
required and cannot be understood is an error that names the field. Both readings are bounded: by the number
of values in the body, and by the number of conversions.
"""

import contextlib
from collections.abc import Collection
from functools import cache
from typing import NamedTuple, TypeVar, cast, final, get_args, get_origin

import msgspec

from asyncmig._core.repair import Unreadable, repaired

__all__ = ["Unreadable", "convert", "decode", "decode_documented"]

T = TypeVar("T")
_MOST_VALUES = 1_000_000
_MOST_CONVERSIONS = 20_000


def decode(body: bytes, kind: type[T], whole: Collection[str] = ()) -> T:
    """Return `body` as `kind`; raise `Unreadable` if it cannot be.

    `whole`: fields of the outermost object in which nothing may be left out.
    """
    if body.count(b",") > _MOST_VALUES:
        raise Unreadable(f"more than {_MOST_VALUES} values")
    with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _decode(body, kind)
    try:
        return _decode(repaired(body, whole), kind)
    except (msgspec.DecodeError, RecursionError) as error:
        raise Unreadable(f"not JSON: {error}") from None


def decode_documented(body: bytes, kind: type[T]) -> T | None:
    """Return `body` as `kind` if it has the documented form, otherwise None: `decode` may still understand it."""
    with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return msgspec.json.decode(body, type=kind, strict=False)
    return None


def _decode(body: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=kind, strict=False)
    except msgspec.ValidationError:
        return convert(msgspec.json.decode(body), kind)


def convert(value: object, kind: type[T], path: str = "$") -> T:
    """Return decoded JSON as `kind`, field by field where the whole does not convert; raise `Unreadable`.

    After 20,000 conversions only what converts as a whole is kept.
    """
    return _Conversion().convert(value, kind, path)


class _Field(NamedTuple):
    name: str
    encoded: str
    required: bool
    kind: type


@cache
def _fields(kind: type[msgspec.Struct]) -> tuple[_Field, ...]:
    return tuple(
        _Field(field.name, field.encode_name, field.required, _without_none(field.type))
        for field in msgspec.structs.fields(kind)
    )


@final
class _Conversion:
    """One conversion of a whole body: counts its parts."""

    __slots__ = ("_count",)

    def __init__(self) -> None:
        self._count = 0

    @property
    def _is_exhausted(self) -> bool:
        return self._count > _MOST_CONVERSIONS

    def convert(self, value: object, kind: type[T], path: str) -> T:
        self._count += 1
        try:
            return msgspec.convert(value, kind, strict=False)
        except msgspec.ValidationError as error:
            if self._is_exhausted:
                raise Unreadable(f"{error} (in {path}, after {_MOST_CONVERSIONS} conversions)") from None
            converted = self._piecewise(value, kind, path, error)
        assert isinstance(converted, get_origin(kind) or kind)
        return cast("T", converted)

    def _piecewise(self, value: object, kind: type, path: str, error: msgspec.ValidationError) -> object:
        if kind is str and not isinstance(value, str) and value is not None:
            return msgspec.json.encode(value).decode()
        if get_origin(kind) is tuple and isinstance(value, list):
            item = get_args(kind)[0]
            items = cast("list[object]", value)
            return tuple(self._item(each, item, f"{path}[{n}]") for n, each in enumerate(items))
        if isinstance(value, dict) and get_origin(kind) is None and issubclass(kind, msgspec.Struct):
            return self._struct(cast("dict[object, object]", value), kind, path)
        raise Unreadable(f"{error} (in {path})") from None

    def _item(self, value: object, kind: type[object], path: str) -> object:
        try:
            return self.convert(value, kind, path)
        except Unreadable:
            if not self._is_exhausted and get_origin(kind) is None and issubclass(kind, msgspec.Struct):
                with contextlib.suppress(Unreadable):
                    return self._struct({}, kind, path)
            raise

    def _struct(self, value: dict[object, object], kind: type[msgspec.Struct], path: str) -> msgspec.Struct:
        found: dict[str, object] = {}
        for field in _fields(kind):
            if field.encoded not in value:
                if field.required:
                    raise Unreadable(f"required field missing: {path}.{field.encoded}")
                continue
            try:
                found[field.name] = self.convert(value[field.encoded], field.kind, f"{path}.{field.encoded}")
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
