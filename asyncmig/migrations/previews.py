"""The preview of a run: a sample of what an execution would import, and the cells in it that break a rule.

The contract leaves the shape of invalid cells open. Every common form is understood. Row and column numbers stay as
the server sent them, because it does not say whether it counts from 0 or 1, or whether it counts the header.
"""

import asyncio
from collections.abc import Mapping
from typing import cast

from msgspec import Struct

from asyncmig._core.lifecycle import HasStatus
from asyncmig._io.call import Call
from asyncmig._io.context import SessionContext
from asyncmig.customers.catalog import CatalogueItem
from asyncmig.customers.previews import InvalidCell, Preview, PreviewSheet
from asyncmig.errors import NotFound
from asyncmig.migrations import routes
from asyncmig.migrations.wire import Sheet

__all__ = ["PREVIEW_LOOKS", "SECONDS_BETWEEN_LOOKS", "InvalidCell", "Preview", "PreviewSheet", "read_preview"]

PREVIEW_LOOKS, SECONDS_BETWEEN_LOOKS = 3, 15.5
"""Looks, and seconds between them, before a 404 is believed."""
_ROW = ("row", "rowIndex", "rowNumber", "row_index", "row_number")
_COLUMN = ("column", "columnName", "column_name", "field")
_INDEX = ("colIndex", "columnIndex", "col_index", "column_index", "col")
_REASON = ("message", "reason", "error")


class _SheetBody(Struct, frozen=True, kw_only=True):
    template: Sheet | None = None
    rows: object = None
    invalid_cells: object = None


class _PreviewBody(HasStatus, frozen=True, kw_only=True):
    """The response to the request for the preview."""

    status: str = "awaiting_approval"
    templates: tuple[Sheet, ...] = ()
    sheets: tuple[_SheetBody, ...] = ()


async def read_preview(context: SessionContext, migration_id: str, query: Mapping[str, str]) -> Preview:
    """Return the preview. Raises `NotFound` once three looks over 30 s have found none."""
    call = Call(endpoint=routes.PREVIEW, ids={"id": migration_id}, query=query)
    for look in range(1, PREVIEW_LOOKS + 1):
        try:
            body = await context.caller.call(call, _PreviewBody)
        except NotFound:
            if look == PREVIEW_LOOKS:
                raise
            await asyncio.sleep(SECONDS_BETWEEN_LOOKS)
        else:
            templates, sheets = map(_item, body.templates), map(_sheet_of, body.sheets)
            return Preview(templates=tuple(templates), sheets=tuple(sheets))
    raise AssertionError


def _sheet_of(body: _SheetBody) -> PreviewSheet:
    header, *rows = [tuple(map(_text, _list(row))) for row in _list(body.rows)] or [()]
    return PreviewSheet(
        sheet=_item(body.template or Sheet(id="")),
        header=header,
        rows=tuple(rows),
        invalid_cells=tuple(_cell_of(each) for each in _list(body.invalid_cells)),
    )


def _item(sheet: Sheet) -> CatalogueItem:
    """Return a sheet as every API generation knows it: a journal may contain the preview."""
    return CatalogueItem(id=sheet.id, name=sheet.name)


def _cell_of(value: object) -> InvalidCell:
    """Return an invalid cell in any shape. One that cannot be read still counts."""
    if isinstance(value, str):
        return InvalidCell(reason=value)
    if not isinstance(value, dict):
        return InvalidCell()
    fields = cast("Mapping[str, object]", value)
    column = _first(fields, _COLUMN)
    index = _number(_first(fields, _INDEX))
    return InvalidCell(
        row=_number(_first(fields, _ROW)),
        column=column if isinstance(column, str) else None,
        column_index=_number(column) if index is None and not isinstance(column, str) else index,
        reason=None if (reason := _first(fields, _REASON)) is None else _text(reason),
    )


def _first(fields: Mapping[str, object], names: tuple[str, ...]) -> object:
    return next((fields[name] for name in names if fields.get(name) is not None), None)


def _list(value: object) -> list[object]:
    if isinstance(value, dict):  # rows by number, or cells by place
        return list(cast("dict[str, object]", value).values())
    return cast("list[object]", value) if isinstance(value, list) else []


def _number(value: object) -> int | None:
    if isinstance(value, str) and value.strip().isascii() and value.strip().isdigit():
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _text(value: object) -> str:
    return "" if value is None else value if isinstance(value, str) else str(value)
