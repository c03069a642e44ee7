"""Decodes responses tolerantly: ignores unknown fields, and optional fields that are malformed.

`decode` first lets msgspec decode the documented form, in one step. If that fails, a second, slower pass keeps as
much as it can: an optional field of another shape counts as absent; a text field keeps any other JSON value as JSON
text; an item whose fields are all optional becomes an empty item. A required field that cannot be decoded is an error
that names it.

`repaired` turns a body that is not strict JSON into strict JSON where its meaning is clear:

- NaN, Infinity and numbers that no float can hold become null.
- A value nested deeper than 100 levels becomes null. Decoders are recursive, so that one such value would make the
  whole body undecodable.
- Lone surrogates, broken UTF-8, raw control characters and unknown escapes in a text are replaced or escaped.
- A byte order mark, UTF-16 and anything after the end of an object or array are removed.

The work is bounded by the number of values in the body and by the number of conversions; nothing here recurses.
"""

import contextlib
import json
import re
from collections.abc import Collection
from functools import cache
from typing import NamedTuple, TypeVar, cast, final, get_args, get_origin

import msgspec

__all__ = ["Unreadable", "convert", "decode", "decode_documented", "repaired"]


_DEEPEST = 100
_MOST_TOKENS = 1_000_000
_TOKEN = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[\]{}"]|[^\s\[\]{}",:]++', re.DOTALL)
_ODD = re.compile(r"[\\\x00-\x1f]")
_ESCAPE = re.compile(
    r"""(\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}   # a pair of surrogates
       | \\u(?![dD][89a-fA-F])[0-9a-fA-F]{4} | \\["\\/bfnrt])         # another escape of JSON
       | \\u[0-9a-fA-F]{4}                                            # a surrogate that stands alone
       | \\(.) | ([\x00-\x1f])""",
    re.DOTALL | re.VERBOSE,
)
_NOT_FINITE = re.compile(r"[+-]?(?:nan(?:\(\w*\))?|inf(?:inity)?|\d\.#[a-z]+\d*)", re.IGNORECASE)
"""NaN and infinity as Python, JavaScript, C and Visual C++ print them."""
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?")
_LONGEST_NUMBER = 400


class Unreadable(ValueError):
    """The body is not JSON, or a required field is missing or of the wrong kind; the text names it."""


def repaired(body: bytes, whole: Collection[str] = ()) -> bytes:
    """Return `body` as strict JSON. What cannot be repaired stays unchanged, and the decoder will refuse it.

    `whole`: fields of the outermost object from which nothing may be dropped. Raises `Unreadable` for one of them
    that is nested too deeply, for a second document after the first, and for more than a million tokens.
    """
    text = body.decode(json.detect_encoding(body), "replace").lstrip("\ufeff")
    pieces: list[str] = []
    copied = depth = 0
    name = field = ""
    for count, found in enumerate(_TOKEN.finditer(text)):
        part = found[0]
        new = part
        if count >= _MOST_TOKENS:
            raise Unreadable(f"not strict JSON, and has more than {_MOST_TOKENS} tokens")
        if part in "[{":
            depth += 1
            field = name if depth == 2 else field
            if depth == _DEEPEST + 1:
                if field in whole:
                    raise Unreadable(f"too deeply nested in $.{field}")
                pieces += (text[copied : found.start()], "null")
        elif part in "]}":
            depth -= 1
            copied = found.end() if depth == _DEEPEST else copied
            if depth == 0:
                _check_rest(text[found.end() :])
                text = text[: found.end()]
                break
        elif depth > _DEEPEST:
            continue
        elif part == '"':
            raise Unreadable("not JSON: it ends inside a text")
        else:
            new = _text(part) if part[0] == '"' else _word(part)
            name = part[1:-1] if depth == 1 and part[0] == '"' else name
        if new is not part:
            pieces += (text[copied : found.start()], new)
            copied = found.end()
    return "".join((*pieces, text[copied:])).encode()


def _check_rest(rest: str) -> None:
    """Raise `Unreadable` if a second document follows: it is unclear which of them is valid."""
    if rest.lstrip("\0 \t\r\n")[:1] in ("{", "["):
        raise Unreadable("several JSON documents in one body")


def _text(token: str) -> str:
    return _ESCAPE.sub(_escape, token) if _ODD.search(token) else token


def _escape(found: re.Match[str]) -> str:
    known, unknown, control = cast("tuple[str | None, str | None, str | None]", found.groups())
    if known:
        return known
    if unknown is None and control is None:
        return "\\ufffd"
    character = unknown or control or ""
    if character < " ":
        return f"\\u{ord(character):04x}"
    return "'" if character == "'" else f"\\\\{character}"


def _word(token: str) -> str:
    if _NOT_FINITE.fullmatch(token):
        return "null"
    if token[0] in "-0123456789" and _NUMBER.fullmatch(token):
        is_huge = len(token) > _LONGEST_NUMBER or abs(float(token)) == float("inf")
        return "null" if is_huge else token
    return token


T = TypeVar("T")
_MOST_VALUES = 1_000_000
_MOST_CONVERSIONS = 20_000


def decode(body: bytes, kind: type[T], whole: Collection[str] = ()) -> T:
    """Return `body` as `kind`. Raises `Unreadable` if that is not possible, and for more than a million values.

    `whole`: fields of the outermost object from which nothing may be dropped.
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
    """Return `body` as `kind` if it has the documented form; otherwise None. Then `decode` may still succeed."""
    try:
        return cast("T", _decoder(kind).decode(body))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


_decoders: dict[object, msgspec.json.Decoder[object]] = {}


def _decoder(kind: type[object]) -> msgspec.json.Decoder[object]:
    decoder = _decoders.get(kind)
    if decoder is None:
        decoder = _decoders[kind] = msgspec.json.Decoder(kind, strict=False)
    return decoder


def _decode(body: bytes, kind: type[T]) -> T:
    try:
        return cast("T", _decoder(kind).decode(body))
    except msgspec.ValidationError:
        return convert(msgspec.json.decode(body), kind)


def convert(value: object, kind: type[T], path: str = "$") -> T:
    """Return decoded JSON as `kind`. Where a value cannot be converted as a whole, its fields are converted one by
    one.

    After 20,000 conversions, values are only converted as a whole, so that the work is bounded. Raises `Unreadable`.
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
    """The conversion of one body. It counts the converted values."""

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
    """Return X of `X | None`: null means the default of an optional field, like its absence."""
    plain = [each for each in get_args(kind) if each is not type(None)]
    chosen = plain[0] if len(plain) == 1 and get_origin(kind) is not tuple else kind
    assert isinstance(chosen, type) or get_origin(chosen) is not None
    return chosen  # type: ignore[return-value]
