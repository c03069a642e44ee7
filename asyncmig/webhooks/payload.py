"""Decodes a webhook: one batch of an export, flat or nested, or an event of an unknown kind.

The fields determine the form, and not the version, because there may be new versions. A webhook with rows of an
unknown form is refused, so that no row is lost. Optional fields may be null or absent, and numbers may be text.
"""

from collections.abc import Mapping
from typing import cast

import msgspec

from asyncmig._core.arguments import checked_call
from asyncmig._core.decode import Unreadable, convert
from asyncmig._core.decode import decode as decode_json
from asyncmig.errors import WebhookRefused

__all__ = ["Batch", "Event", "Origin", "OtherEvent", "Row", "SheetRows", "decode"]

_Object = dict[str, object]
_ROWS = ("batch", "sheets", "data")
"""The fields from which nothing may be dropped."""


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One row: its cells by column, and its errors."""

    values: Mapping[str, object]
    errors: tuple[object, ...] = ()
    """The errors as they arrived, because their form is not documented."""
    index: int | None = None
    """The row's number in its sheet; None if the body has none."""
    children: Mapping[str, tuple["Row", ...]] = {}
    """The child rows by sheet; only in a nested export."""


class SheetRows(msgspec.Struct, frozen=True, kw_only=True):
    """The rows of one sheet."""

    name: str = ""
    id: str | None = None
    """None in a nested export."""
    row_count: int | None = None
    """The row count as the batch states it. Whether it counts the batch or the sheet is not documented."""
    start_row_index: int | None = None
    end_row_index: int | None = None
    rows: tuple[Row, ...] = ()


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """Where an export comes from."""

    event: str | None = None
    """`workbook.production.export` or `workbook.preview.export`; None if the body does not contain it."""
    version: str | None = None
    workbook_id: str | None = None
    external_id: str | None = None
    """Your id of the customer."""
    company_name: str | None = None
    nested: bool = False
    """Whether rows have children."""


class Batch(Origin, frozen=True, kw_only=True):
    """One batch of an export."""

    message_id: str
    """The `svix-id`. It is the same in every delivery of an event."""
    export_id: str
    """`batch.id`. It is the same in all batches of an export."""
    index: int
    """The batch's index in the export. Whether it counts from 0 or 1 is not documented."""
    total: int
    """The number of batches of the export."""
    size: int | None = None
    timestamp: str | None = None
    root_sheets: tuple[str, ...] = ()
    sheets: tuple[SheetRows, ...] = ()
    body: bytes
    """The body as it arrived."""

    def __repr__(self) -> str:  # rows are a customer's data and do not belong in a log
        return f"<Batch {self.index} of {self.total} of export {self.export_id}: {len(self.body)} bytes>"


class OtherEvent(msgspec.Struct, frozen=True, kw_only=True):
    """An event that is not a batch of an export, or that has an unknown form. Respond to it with 2xx."""

    message_id: str
    event: str | None = None
    version: str | None = None
    payload: Mapping[str, object]

    def __repr__(self) -> str:
        return f"<OtherEvent {self.event}, version {self.version}: {self.message_id}>"


Event = Batch | OtherEvent
"""A decoded webhook: a batch of an export, or another event."""


class _Place(msgspec.Struct, frozen=True):
    id: str
    index: int
    total: int
    size: int | None = None
    timestamp: str | None = None


class _Head(msgspec.Struct, frozen=True):
    version: str | None = None
    event: str | None = None
    type: str | None = None
    event_type: str | None = None
    workbook_id: str | None = None
    external_id: str | None = None
    company_name: str | None = None
    root_sheets: tuple[str, ...] = ()


class _FlatSheet(msgspec.Struct, frozen=True):
    id: str | None = None
    name: str = ""
    row_count: int | None = None
    start_row_index: int | None = None
    end_row_index: int | None = None
    data: object = None


@checked_call
def decode(body: bytes, *, message_id: str = "") -> Event:
    """Decode a webhook without verifying its signature; `receive` does both.

    Raises `WebhookRefused` with the place in the body that cannot be decoded.
    """
    try:
        return _event(body, message_id)
    except Unreadable as error:
        raise WebhookRefused("body", f"cannot be decoded: {error}") from error
    except RecursionError:
        raise WebhookRefused("body", "cannot be decoded: too deeply nested") from None


def _event(body: bytes, message_id: str) -> Event:
    payload = decode_json(body, _Object, whole=_ROWS)
    head = convert(payload, _Head)
    event = head.event or head.event_type or head.type
    nested = _is_nested(payload, head)
    if payload.get("batch") is None or nested is None:
        return OtherEvent(message_id=message_id, event=event, version=head.version, payload=payload)
    place = convert(payload["batch"], _Place, "$.batch")
    _check_place(place)
    if nested:
        found = _by_sheet(payload.get("data"), "$.data")
        sheets = tuple(SheetRows(name=name, rows=rows) for name, rows in found.items())
    else:
        sheets = _flat(payload.get("sheets"))
    return Batch(
        message_id=message_id,
        export_id=place.id,
        index=place.index,
        total=place.total,
        size=place.size,
        timestamp=place.timestamp,
        event=event,
        version=head.version,
        workbook_id=head.workbook_id,
        external_id=head.external_id,
        company_name=head.company_name,
        nested=nested,
        root_sheets=head.root_sheets,
        sheets=sheets,
        body=body,
    )


def _is_nested(payload: _Object, head: _Head) -> bool | None:
    """Return whether a body is nested; None if it is neither flat nor nested.

    An empty export may have no field but the version from which the form follows.
    """
    if payload.get("sheets") is not None:
        return False
    if payload.get("data") is not None or payload.get("export_mode") == "nested":
        return True
    return {"1": False, "2": True}.get((head.version or "").partition(".")[0])


def _check_place(place: _Place) -> None:
    if not place.id:
        raise WebhookRefused("$.batch.id", "is empty")
    if place.total < 1:
        raise WebhookRefused("$.batch.total", f"is {place.total}: an export has at least one batch")
    if not 0 <= place.index <= place.total:
        raise WebhookRefused("$.batch.index", f"is {place.index} of {place.total}")


def _flat(value: object) -> tuple[SheetRows, ...]:
    sheets: list[SheetRows] = []
    for n, each in enumerate(_list(value, "$.sheets")):
        sheet = convert(each, _FlatSheet, f"$.sheets[{n}]")
        known = {name: getattr(sheet, name) for name in sheet.__struct_fields__ if name != "data"}
        sheets.append(SheetRows(**known, rows=_rows(sheet.data, f"$.sheets[{n}].data", nested=False)))
    return tuple(sheets)


def _by_sheet(value: object, path: str) -> dict[str, tuple[Row, ...]]:
    if not isinstance(value, dict | None):
        raise Unreadable(f"an object was expected at {path}")
    sheets = cast("_Object", value or {})
    return {name: _rows(rows, f"{path}.{name}", nested=True) for name, rows in sheets.items()}


def _list(value: object, path: str) -> list[object]:
    if not isinstance(value, list | None):
        raise Unreadable(f"an array was expected at {path}")
    return cast("list[object]", value or [])


def _rows(value: object, path: str, *, nested: bool) -> tuple[Row, ...]:
    return tuple(_row(each, f"{path}[{n}]", nested=nested) for n, each in enumerate(_list(value, path)))


def _row(value: object, path: str, *, nested: bool) -> Row:
    """Separate the cells of a row from its metadata.

    A field with the name of a metadata field and another type is a cell: columns may have any name.
    """
    if not isinstance(value, dict):
        raise Unreadable(f"an object was expected at {path}")
    cells = cast("_Object", value)
    errors, index, children = cells.get("errors"), _whole(cells.get("row_index")), cells.get("children")
    metadata = {"errors"} if isinstance(errors, list | None) else set[str]()
    metadata |= {"row_index"} if index is not None or cells.get("row_index") is None else set()
    metadata |= {"children"} if nested else set()
    return Row(
        values={name: cell for name, cell in cells.items() if name not in metadata},
        errors=tuple(cast("list[object]", errors or [])) if "errors" in metadata else (),
        index=index,
        children=_by_sheet(children, f"{path}.children") if nested else {},
    )


def _whole(value: object) -> int | None:
    try:
        return msgspec.convert(value, int, strict=False)
    except msgspec.ValidationError:
        return None
