"""Read one page of a list whose shape is not documented: its items, and the query for the next page.

The contract says only "paginated". So the items are the list that the reply is or contains, and the next page is
taken from any of the common forms: a token, a number, a URL (only its query is used: nothing is sent to an
address that a reply names), or counters. Nothing is guessed: if a reply says that there is more but not how to
request it, `cut` is True.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import cast
from urllib.parse import parse_qsl, urlsplit

__all__ = ["Page", "read_page"]

_ITEMS = ("imports", "runs", "items", "data", "results")
_AROUND = ("pagination", "paging", "page_info", "pageInfo", "meta", "links", "_links")
_TOKENS = {
    "next_cursor": "cursor",
    "nextCursor": "cursor",
    "next_page_token": "page_token",
    "nextPageToken": "pageToken",
    "next_token": "next_token",
    "nextToken": "nextToken",
    "next_page": "page",
    "nextPage": "page",
    "next_offset": "offset",
    "nextOffset": "offset",
    "end_cursor": "cursor",
    "endCursor": "cursor",
    "cursor": "cursor",
}
"""Fields that name the next page, and the query parameter for it."""
_MORE = ("has_more", "hasMore", "has_next", "hasNext", "has_next_page", "hasNextPage")
_PAGES = ("total_pages", "totalPages", "pages", "page_count", "last_page")
_LONGEST = 4096
_LINK = re.compile(r'<([^<>]*)>[^<>]*;\s*rel="?next\b', re.IGNORECASE)
"""The target of a `Link` header that names the next page (RFC 8288)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """The items of a page, as JSON objects."""

    items: tuple[Mapping[str, object], ...]
    next: Mapping[str, str] | None
    """The query for the next page; None on the last page."""
    cut: bool
    """Whether there is more, but the reply does not say how to request it."""
    total: int | None
    """The number of items on all pages, if the reply says so."""


def read_page(reply: object, link: str = "") -> Page:
    """Return the page in `reply` (decoded JSON). `link`: the `Link` header."""
    leads = _LINK.search(link[:_LONGEST])
    linked = _query_of(leads[1]) if leads else None
    if isinstance(reply, list):
        return Page(items=_objects(cast("list[object]", reply)), next=linked, cut=False, total=None)
    whole = _object(reply)
    places = [whole, *(_object(whole[name]) for name in _AROUND if name in whole)]
    more = next(
        (place[name] for place in places for name in _MORE if isinstance(place.get(name), bool)), None
    )
    following = None if more is False else next((query for p in places if (query := _next(p))), linked)
    total = next((n for place in places if (n := _number(place.get("total"))) is not None), None)
    return Page(items=_items(whole), next=following, cut=more is True and following is None, total=total)


def _object(value: object) -> dict[str, object]:
    return cast("dict[str, object]", value) if isinstance(value, dict) else {}


def _objects(values: Iterable[object]) -> tuple[Mapping[str, object], ...]:
    return tuple(cast("Mapping[str, object]", value) for value in values if isinstance(value, dict))


def _items(whole: Mapping[str, object]) -> tuple[Mapping[str, object], ...]:
    """Return the list under a common name, or the only list in the reply."""
    lists = {name: cast("list[object]", value) for name, value in whole.items() if isinstance(value, list)}
    for name in _ITEMS:
        if name in lists:
            return _objects(lists[name])
    return _objects(next(iter(lists.values()))) if len(lists) == 1 else ()


def _next(place: Mapping[str, object]) -> dict[str, str] | None:
    following = place.get("next")
    following = _object(following).get("href", following)
    if isinstance(following, str) and "?" in following:
        return _query_of(following)
    if _is_token(following):
        return {"page" if _number(following) is not None else "cursor": str(following)}
    for name, parameter in _TOKENS.items():
        if _is_token(token := place.get(name)):
            return {parameter: str(token)}
        if name in place:
            return None  # it says that there is none; a `cursor` beside it is where this page began
    return next(_counted(place), None)


def _is_token(value: object) -> bool:
    return (isinstance(value, str) and 0 < len(value) <= _LONGEST) or _number(value) is not None


def _query_of(url: str) -> dict[str, str] | None:
    try:
        return dict(parse_qsl(urlsplit(url[:_LONGEST]).query)) or None
    except ValueError:
        return None


def _number(value: object) -> int | None:
    """Return a whole number, also from text."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 16:
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _counted(place: Mapping[str, object]) -> Iterator[dict[str, str]]:
    """Yield the next page if counters say that there is one."""
    page, offset, limit, total = (_number(place.get(name)) for name in ("page", "offset", "limit", "total"))
    last = next((n for name in _PAGES if (n := _number(place.get(name))) is not None), None)
    if page is not None and last is not None and page < last:
        yield {"page": str(page + 1)}
    if offset is not None and limit and total is not None and offset + limit < total:
        yield {"offset": str(offset + limit), "limit": str(limit)}
