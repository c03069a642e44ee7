"""How a list is paged: the contract says that it is, and not how."""

from collections.abc import Mapping, Sequence

from asyncmig.simulator.messages import Json

__all__ = ["paged"]


def paged(items: Sequence[Json], query: Mapping[str, str], *, how: str, field: str, number: int) -> object:
    """Return one page of `items`, or all: `how` and `field` as in `Variants`; `number` counts the requests."""
    if how == "none":
        return {field: items} if field else items
    asked = query.get("cursor") or query.get("offset") or query.get("page") or ""
    position = int(asked) - (how == "page") if asked.isdigit() else 0
    field = field or "imports"
    return {field: items[position : position + 1], **_next(position, len(items), how, number)}


def _next(position: int, count: int, how: str, number: int) -> Json:
    """Return what the page says of the one after it."""
    last = position + 1 >= count
    match how:
        case "cursor":
            return {"next_cursor": None if last else str(position + 1)}
        case "url":
            address = f"https://elsewhere.invalid/api/v1/imports?cursor={position + 1}&limit=1"
            return {"links": {"next": None if last else address}}
        case "page":
            return {"pagination": {"page": position + 1, "total_pages": count}}
        case "offset":
            return {"offset": position, "limit": 1, "total": count}
        case "repeats":
            return {"next": f"again-{number}", "has_more": True}
        case _:
            return {"has_more": not last}
