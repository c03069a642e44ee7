"""Make strict JSON of what a server sends instead, where its meaning is clear.

- NaN, Infinity and numbers that no float holds become null.
- A value that is nested deeper than 100 levels becomes null: decoders are recursive, and it would hide all others.
- Halves of characters, broken UTF-8, raw control characters and unknown escapes in a text are replaced or escaped.
- A byte order mark, UTF-16 and what follows the end of an object or array are taken off.

One pass over the tokens, without recursion; its work is bounded.
"""

import json
import re
from collections.abc import Collection
from typing import cast

__all__ = ["Unreadable", "repaired"]

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
_NOT_FINITE = re.compile(r"[+-]?(?:nan|inf(?:inity)?|\d\.#[a-z]+\d*)", re.IGNORECASE)
"""As Python, JavaScript, C and old versions of Visual C++ print it."""
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?")
_LONGEST_NUMBER = 400


class Unreadable(ValueError):
    """The body is not JSON, or a required field is missing or of the wrong kind; the text names it."""


def repaired(body: bytes, whole: Collection[str] = ()) -> bytes:
    """Return strict JSON; what cannot be repaired stays, for the decoder to refuse.

    `whole`: fields of the outermost object in which nothing may be left out. Raises `Unreadable` for one of them that
    is nested too deeply, for a second document after the first, and for more than a million tokens.
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
    """Refuse a second document: nobody can tell which of them is meant."""
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
