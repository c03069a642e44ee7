"""Tables of any API generation: parse uploads, map them to templates, and write sheets as CSV and ZIP.

A file that fits a template gets the template's columns; headers that are neither a column's name nor a synonym are
dropped.
"""

import csv
import io
import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol, TypeVar

__all__ = ["MANIFEST_HEADER", "Rows", "Unreadable", "csv_text", "read_csv", "to_table", "zip_bytes"]

csv.field_size_limit(2**31 - 1)
MANIFEST_HEADER = ("external_id", "name", "source", "templates", "files")
"""The columns of a manifest of generated customers."""
Rows = list[list[str]]
"""The cells of a table, without its header."""


class Unreadable(Exception):
    """The bytes are no CSV text in UTF-8."""


class ColumnLike(Protocol):
    """A column of a template."""

    @property
    def name(self) -> str: ...
    @property
    def synonyms(self) -> tuple[str, ...]: ...
    @property
    def required(self) -> bool: ...


class SchemaLike(Protocol):
    """A template."""

    @property
    def columns(self) -> Sequence[ColumnLike]: ...


S = TypeVar("S", bound=SchemaLike)


def read_csv(name: str, content: bytes) -> tuple[list[str], Rows]:
    """Return header and records of `content`. Blank lines are ignored. Raises `Unreadable`."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Unreadable(
            f"{name} is not UTF-8 text: byte 0x{content[error.start]:02x} at position {error.start}"
        ) from None
    try:
        records = [record for record in csv.reader(io.StringIO(text, newline="")) if record]
    except csv.Error as error:
        raise Unreadable(f"{name} is not CSV: {error}") from None
    if not records:
        raise Unreadable(f"{name} has no header")
    return records[0], records[1:]


def _plain(header: str) -> str:
    return re.sub(r"[^a-z0-9]", "", header.lower())


def _places(schema: SchemaLike, header: Sequence[str]) -> list[int | None]:
    """Return the position of each template column's cells in the file."""
    found = {_plain(text): place for place, text in reversed(list(enumerate(header)))}
    return [
        next(
            (found[known] for name in (column.name, *column.synonyms) if (known := _plain(name)) in found),
            None,
        )
        for column in schema.columns
    ]


def to_table(
    header: list[str], records: Iterable[list[str]], schemas: Iterable[S]
) -> tuple[S | None, list[str], Rows]:
    """Map records to the template that fits best: all its required columns, and more than half of all."""
    best: tuple[int, S | None, list[int | None]] = (0, None, [])
    for schema in schemas:
        places = _places(schema, header)
        hits = sum(place is not None for place in places)
        complete = all(p is not None for p, c in zip(places, schema.columns, strict=True) if c.required)
        if complete and hits * 2 > len(places) and hits > best[0]:
            best = hits, schema, places
    _, fitting, places = best
    if fitting is None:
        return None, header, list(records)
    rows = [
        [record[place].strip() if place is not None and place < len(record) else "" for place in places]
        for record in records
    ]
    return fitting, [column.name for column in fitting.columns], rows


def csv_text(header: Sequence[str], rows: Iterable[Sequence[str]], *, end: str = "\r\n") -> str:
    """Return a table as CSV."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator=end)
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


def zip_bytes(files: Mapping[str, bytes]) -> bytes:
    """Return a ZIP with these files. The same files give the same bytes."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return packed.getvalue()
