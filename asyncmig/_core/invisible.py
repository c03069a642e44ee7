"""Finds characters that are invisible or look like a space: with them, two different texts may look equal."""

import re
import unicodedata

__all__ = ["BYTE_ORDER_MARK", "invisible_in_name", "invisible_in_prose", "named_characters", "trimmed"]

BYTE_ORDER_MARK = "\ufeff"
_FORMAT = (
    "\u00ad\u034f\u061c\u115f\u1160\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff"
)
"""Soft hyphen, zero-width space, direction marks, byte order mark and similar characters."""
_JOINERS = "\u200c\u200d"
"""Zero-width joiners: needed in words of some scripts and in emoji, meaningless between ASCII characters."""
_SPACES = "\u00a0\u2000-\u200a\u202f\u205f\u3000"
"""Characters that look like a space. They are usual inside a sentence, but not at its ends."""
_ANY = re.compile(f"[{_FORMAT}{_JOINERS}{_SPACES}]")
_IN_PROSE = re.compile(
    f"[{_FORMAT}]|(?<![^\\x00-\\x7f])[{_JOINERS}]|[{_JOINERS}](?![^\\x00-\\x7f])|\\A[{_SPACES}]|[{_SPACES}]\\Z"
)
_ENDS = re.compile(rf"\A[\s{_FORMAT}{_JOINERS}]+|[\s{_FORMAT}{_JOINERS}]+\Z")


def invisible_in_name(text: str) -> list[str]:
    """Return the invisible and space-like characters of a name, or of a value that is compared."""
    return [] if text.isascii() else _ANY.findall(text)


def invisible_in_prose(text: str) -> list[str]:
    """Return the invisible characters of a text for people, without those that its language needs."""
    return [] if text.isascii() else _IN_PROSE.findall(text)


def trimmed(text: str) -> str:
    """Return `text` without spaces and invisible characters at its ends."""
    return _ENDS.sub("", text)


def named_characters(characters: set[str]) -> str:
    """Return the names of characters: `U+200B ZERO WIDTH SPACE, U+FEFF BYTE ORDER MARK`."""
    names = {BYTE_ORDER_MARK: "BYTE ORDER MARK"}  # Unicode's name is that of its other, obsolete use
    return ", ".join(
        f"U+{ord(each):04X} {names.get(each) or unicodedata.name(each, '(a control)')}"
        for each in sorted(characters)
    )
