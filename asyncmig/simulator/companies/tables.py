"""Parse uploads, map them to templates, validate them, and patch them.

A file whose headers fit no template goes to a sheet of its own with every column and cell unchanged. A file that
fits a template gets the template's columns; headers that are neither a column's name nor a synonym are dropped.
"""

import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

__all__ = [
    "Column",
    "Flaw",
    "Schema",
    "Table",
    "Unreadable",
    "apply_action",
    "find_flaws",
    "read_csv",
    "to_table",
]

csv.field_size_limit(2**31 - 1)


class Unreadable(Exception):
    """The bytes are no CSV text in UTF-8."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column of a template. `pattern`: its strict rule; `link`: the (template id, column) that has its values."""

    name: str
    synonyms: tuple[str, ...] = ()
    required: bool = False
    unique: bool = False
    pattern: str | None = None
    link: tuple[str, str] | None = None
    fallback: str | None = None
    """The value that a patch proposes for a bad cell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Schema:
    """A template."""

    id: str
    name: str
    columns: tuple[Column, ...]


@dataclass(slots=True, kw_only=True)
class Table:
    """A sheet with its rows. A table without a schema keeps every column."""

    sheet_id: str
    name: str
    schema: Schema | None
    header: list[str]
    rows: list[list[str]] = field(default_factory=list[list[str]])


@dataclass(frozen=True, slots=True, kw_only=True)
class Flaw:
    """All bad cells of one kind in one column: rows by their index."""

    sheet_id: str
    column: str
    kind: str
    """required, unique, strict or link."""
    rows: tuple[int, ...]


def read_csv(name: str, content: bytes) -> tuple[list[str], list[list[str]]]:
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


def _places(schema: Schema, header: Sequence[str]) -> list[int | None]:
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
    header: list[str], records: Iterable[list[str]], schemas: Iterable[Schema]
) -> tuple[Schema | None, list[str], list[list[str]]]:
    """Map records to the template that fits best: all its required columns, and more than half of all."""
    best: tuple[int, Schema | None, list[int | None]] = (0, None, [])
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


def find_flaws(tables: Sequence[Table]) -> list[Flaw]:
    """Return every kind of bad cell, in the order of sheets and columns."""
    by_schema = {table.schema.id: table for table in tables if table.schema}
    flaws: list[Flaw] = []
    for table in tables:
        for place, column in enumerate(table.schema.columns if table.schema else ()):
            cells = [row[place] for row in table.rows]
            for kind, rows in _bad(column, cells, by_schema):
                flaws.append(Flaw(sheet_id=table.sheet_id, column=column.name, kind=kind, rows=rows))
    return flaws


def _bad(
    column: Column, cells: Sequence[str], by_schema: Mapping[str, Table]
) -> Iterable[tuple[str, tuple[int, ...]]]:
    checks: dict[str, list[int]] = {"required": [], "unique": [], "strict": [], "link": []}
    seen: set[str] = set()
    targets = _targets(column, by_schema)
    for n, cell in enumerate(cells):
        if not cell:
            if column.required:
                checks["required"].append(n)
            continue
        if column.unique and cell in seen:
            checks["unique"].append(n)
        seen.add(cell)
        if column.pattern is not None and not re.fullmatch(column.pattern, cell):
            checks["strict"].append(n)
        if targets is not None and cell not in targets:
            checks["link"].append(n)
    return [(kind, tuple(rows)) for kind, rows in checks.items() if rows]


def _targets(column: Column, by_schema: Mapping[str, Table]) -> set[str] | None:
    if column.link is None or (target := by_schema.get(column.link[0])) is None:
        return None
    place = target.header.index(column.link[1])
    return {row[place] for row in target.rows}


def apply_action(table: Table, flaw: Flaw, action: Mapping[str, str]) -> None:
    """Apply one action of a patch to the rows of a flaw."""
    place = table.header.index(flaw.column)
    match action["action"]:
        case "set_value":
            for n in flaw.rows:
                table.rows[n][place] = action["value"]
        case "delete_invalid_rows" | "dedup_keep_first":
            gone = set(flaw.rows)
            table.rows = [row for n, row in enumerate(table.rows) if n not in gone]
        case _:
            pass


def bad_rows(flaws: Iterable[Flaw]) -> Counter[str]:
    """Return the number of rows with at least one bad cell, by sheet."""
    rows: dict[str, set[int]] = {}
    for flaw in flaws:
        rows.setdefault(flaw.sheet_id, set()).update(flaw.rows)
    return Counter({sheet: len(numbers) for sheet, numbers in rows.items()})
