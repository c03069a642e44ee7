"""Ids that people type or paste: trimmed, extracted from a dashboard's URL, and refused if unsafe in a path."""

from itertools import pairwise
from urllib.parse import urlsplit

from asyncmig.errors import InvalidInput

__all__ = ["COMPANY", "EXPORT", "IMPORT", "SHEET", "checked_id"]

COMPANY = ("companies",)
IMPORT = ("imports", "runs")
EXPORT = ("exports", "runs")
SHEET = ("sheets",)
"""For each kind of id: the path segments of a dashboard's URL that stand before the id."""
_FORBIDDEN = frozenset("/\\?#%")
_DOTS = frozenset({".", ".."})
_LONGEST = 255


def checked_id(field: str, value: object, kind: tuple[str, ...]) -> str:
    """Return the id in `value`, which may have spaces around it or be a URL of the dashboard.

    `kind`: one of the constants of this module. Raises `InvalidInput` naming `field` for a value that could change
    the route of a request. The error never contains a URL, because a URL may contain a token.
    """
    if not isinstance(value, str):
        raise InvalidInput(field, value, "must be a str")
    text = value.strip()
    if "://" in text:
        text = _from_url(field, text, kind)
    if not text:
        raise InvalidInput(field, value, "is empty")
    if len(text) > _LONGEST:
        raise InvalidInput(field, f"{text[:40]}...", f"is longer than {_LONGEST} characters")
    if text in _DOTS or " " in text or not text.isprintable() or _FORBIDDEN & set(text):
        reason = (
            "is not an id: it must not be . or .., nor have spaces, control characters or any of / \\ ? # %"
        )
        raise InvalidInput(field, text, reason)
    return text


def _from_url(field: str, url: str, kind: tuple[str, ...]) -> str:
    """Return the segment after the kind's name, in the path or in a fragment that looks like a path."""
    try:
        parts = urlsplit(url)
    except ValueError:
        segments = []
    else:
        segments = [*parts.path.split("/"), *parts.fragment.split("/")]
    for name, following in pairwise(segments):
        if name in kind and following:
            return following
    raise InvalidInput(field, "(a URL)", f"has no /{kind[0]}/ID in its path: give the id alone")
