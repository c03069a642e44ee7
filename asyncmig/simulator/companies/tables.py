"""Sheets of templates: validate and patch their rows, and write them as CSV."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from asyncmig.simulator.server.messages import Json
from asyncmig.simulator.server.tables import Rows, csv_text

__all__ = ["Column", "Flaw", "Schema", "Table", "apply_action", "bad_rows", "find_flaws", "to_csv"]


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

    def describe(self) -> Json:
        """Return the template as the API shows it."""
        columns = [
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
            for column in self.columns
        ]
        return {"id": self.id, "name": self.name, "description": None, "columns": columns}


@dataclass(slots=True, kw_only=True, eq=False)
class Table:
    """A sheet with its rows. A table without a schema keeps every column."""

    sheet_id: str
    name: str
    schema: Schema | None
    header: list[str]
    rows: Rows = field(default_factory=list[list[str]])

    @classmethod
    def of(cls, schema: Schema, *, sheet_id: str) -> "Table":
        """Return an empty sheet of a template."""
        header = [column.name for column in schema.columns]
        return cls(sheet_id=sheet_id, name=schema.name, schema=schema, header=header)


@dataclass(frozen=True, slots=True, kw_only=True)
class Flaw:
    """All bad cells of one kind in one column: rows by their index."""

    sheet_id: str
    column: str
    kind: str
    """required, unique, strict or link."""
    rows: tuple[int, ...]


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
    if action["action"] == "set_value":
        for n in flaw.rows:
            table.rows[n] = [*table.rows[n][:place], action["value"], *table.rows[n][place + 1 :]]
    elif action["action"] in ("delete_invalid_rows", "dedup_keep_first"):
        gone = set(flaw.rows)
        table.rows = [row for n, row in enumerate(table.rows) if n not in gone]


def bad_rows(flaws: Iterable[Flaw]) -> Counter[str]:
    """Return the number of rows with at least one bad cell, by sheet."""
    rows: dict[str, set[int]] = {}
    for flaw in flaws:
        rows.setdefault(flaw.sheet_id, set()).update(flaw.rows)
    return Counter({sheet: len(numbers) for sheet, numbers in rows.items()})


def to_csv(tables: Sequence[Table], table: Table, *, only_valid: bool) -> bytes:
    """Return one sheet of a company as CSV; its links go to the other sheets."""
    bad: set[int] = set()
    if only_valid:
        bad = {n for flaw in find_flaws(tables) if flaw.sheet_id == table.sheet_id for n in flaw.rows}
    rows = [row for n, row in enumerate(table.rows) if n not in bad]
    return csv_text(table.header, rows).encode()
