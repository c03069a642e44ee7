"""What the server answers: the catalogue, pages of a list, sheets as CSV and ZIP."""

import csv
import gzip
import io
import zipfile
from collections.abc import Iterable, Mapping, Sequence

from asyncmig.simulator.companies.tables import Schema, Table, find_flaws
from asyncmig.simulator.server.messages import Json, Reply

__all__ = ["archive_reply", "csv_reply", "describe_sources", "describe_templates", "paged"]


def describe_sources(sources: Mapping[str, str]) -> list[Json]:
    """Return the reply to the request for sources."""
    return [{"id": each, "name": name, "logo_url": None} for each, name in sources.items()]


def describe_templates(schemas: Iterable[Schema]) -> list[Json]:
    """Return the reply to the request for templates."""
    return [_describe(schema) for schema in schemas]


def _describe(schema: Schema) -> Json:
    return {
        "id": schema.id,
        "name": schema.name,
        "description": None,
        "columns": [
            {
                "name": column.name,
                "description": "",
                "required": column.required,
                "unique": column.unique,
                "desiredRule": "strict" if column.pattern else "link" if column.link else "none",
                "strictRule": column.pattern,
                "linkRule": [{"templateId": column.link[0], "columnName": column.link[1]}]
                if column.link
                else None,
            }
            for column in schema.columns
        ],
    }


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


def archive_reply(tables: Sequence[Table], *, only_valid: bool) -> Reply:
    """Return a ZIP of all sheets of a company."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as content:
        for place, table in enumerate(tables):
            same = sum(other.name == table.name for other in tables[:place])
            name = f"{table.name} ({same + 1})" if same else table.name
            content.writestr(f"{name}.csv", _render(tables, table, only_valid))
    return Reply(status=200, body=archive.getvalue(), content_type="application/zip")


def csv_reply(tables: Sequence[Table], table: Table, *, only_valid: bool, compressed: bool) -> Reply:
    """Return one sheet of a company; its links go to the others."""
    content = _render(tables, table, only_valid)
    if not compressed:
        return Reply(status=200, body=content, content_type="text/csv")
    body = gzip.compress(content, mtime=0)
    return Reply(status=200, body=body, content_type="text/csv", headers={"Content-Encoding": "gzip"})


def _render(tables: Sequence[Table], table: Table, only_valid: bool) -> bytes:
    bad: set[int] = set()
    if only_valid:
        bad = {n for flaw in find_flaws(tables) if flaw.sheet_id == table.sheet_id for n in flaw.rows}
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(table.header)
    writer.writerows(row for n, row in enumerate(table.rows) if n not in bad)
    return text.getvalue().encode()
