"""Rows without a file: sent in the request if they are few, and as a CSV file otherwise.

Both forms have the same content: the text of a cell in the file is the text of its JSON value. Text stays as it
is (also `=1+1`: the server reads it, not a spreadsheet). Numbers are as in JSON; dates and times are ISO 8601;
booleans, lists and objects are JSON. None, and a column that a row lacks, is an empty cell. Whole numbers beyond
2 ** 53 are text in both forms, because a JSON reader may round them.
"""

import csv
import io
import math
from collections.abc import Iterable, Mapping
from datetime import date, datetime, time
from decimal import Decimal
from enum import Enum
from typing import cast
from uuid import UUID

import msgspec

from asyncmig.errors import InvalidInput

__all__ = ["Row", "checked_rows", "to_csv", "to_json"]

Row = dict[str, object]
"""A row as plain JSON values by column."""
_EXACT = 2**53


def checked_rows(rows: Iterable[Mapping[str, object]]) -> list[Row]:
    """Return `rows` as plain JSON values. Raises `InvalidInput` for invalid rows. Blocks: use a thread."""
    return [_checked_row(row, f"rows[{n}]") for n, row in enumerate(rows)]


def _checked_row(row: object, place: str) -> Row:
    if not isinstance(row, Mapping):
        raise InvalidInput(place, row, "must be a mapping, column by value")
    cells = cast("Mapping[object, object]", row)
    if not cells:
        raise InvalidInput(place, {}, "has no columns")
    return {_checked_name(name, place): _plain(value, f"{place}[{name!r}]") for name, value in cells.items()}


def _checked_name(name: object, place: str) -> str:
    if not isinstance(name, str) or not name.strip():
        raise InvalidInput(place, name, "is the name of a column; it must be text, and not empty")
    return _checked_text(name, place)


def _checked_text(text: str, place: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidInput(place, text, "has half of a surrogate pair, which UTF-8 cannot encode") from None
    return text


def _plain(value: object, place: str) -> object:
    """Return `value` as a plain JSON value. Raises `InvalidInput` if it has no JSON form."""
    match value:
        case Enum():
            return _plain(value.value, place)
        case None | bool():
            return value
        case str():
            return _checked_text(str.__str__(value), place)
        case int():
            return int(value) if -_EXACT <= value <= _EXACT else str(int(value))
        case float() | Decimal():
            if not math.isfinite(value):
                raise InvalidInput(place, value, "is not a number; for an empty cell use None")
            return float(value) if isinstance(value, float) else str(value)
        case datetime() | date() | time():
            return value.isoformat().replace("+00:00", "Z")
        case UUID():
            return str(value)
        case list() | tuple():
            return [_plain(each, place) for each in cast("list[object]", value)]
        case Mapping():
            fields = cast("Mapping[object, object]", value).items()
            return {_checked_name(name, place): _plain(each, place) for name, each in fields}
        case _:
            raise InvalidInput(place, value, f"is a {type(value).__name__}, which JSON does not have")


def to_json(rows: list[Row], *, most_rows: int, most_bytes: int) -> msgspec.Raw | None:
    """Return `rows` as JSON; None if there are more than `most_rows` or they take more than `most_bytes`."""
    if len(rows) > most_rows:
        return None
    encoded = msgspec.json.encode(rows)
    return msgspec.Raw(encoded) if len(encoded) <= most_bytes else None


def to_csv(rows: list[Row]) -> bytes:
    """Return `rows` as CSV (RFC 4180), with a header of all columns in the order in which they first appear.

    UTF-8 without a byte order mark. Every cell is quoted, so that none is trimmed, split or taken for a blank
    line.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO(newline="")
    writer = csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\r\n")
    writer.writerow(names)
    writer.writerows([_cell(row.get(name)) for name in names] for row in rows)
    return text.getvalue().encode()


def _cell(value: object) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
