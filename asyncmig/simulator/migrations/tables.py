"""Read uploaded files, map them to templates, and find the cells that break a rule."""

import importlib
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import cast

from asyncmig.simulator.server.messages import Json
from asyncmig.simulator.server.tables import Rows, Unreadable, read_csv, to_table

__all__ = [
    "XLSX_HINT",
    "Column",
    "Flaw",
    "Schema",
    "Sheet",
    "can_read",
    "coverage_of",
    "find_flaws",
    "read_rows",
    "to_sheets",
]

XLSX_HINT = "the simulator reads XLSX files only with openpyxl: pip install 'asyncmig[xlsx]'"


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column of a template, with the rules of the contract."""

    name: str
    description: str = ""
    required: bool = False
    unique: bool = False
    strict_rule: str | None = None
    """A regular expression; not anchored."""
    schema: Mapping[str, object] | None = None
    """A JSON Schema of the value. It wins over `strict_rule`."""
    link_rule: tuple[Mapping[str, object], ...] = ()
    synonyms: tuple[str, ...] = ()
    """Headers that the agent recognises. They are not part of the API."""

    def describe(self) -> Json:
        """Return the column as the API shows it."""
        rules = {"strictRule": self.strict_rule, "schema": self.schema, "linkRule": list(self.link_rule)}
        first = next((name for name, rule in rules.items() if rule), "none")
        return {
            "name": self.name,
            "description": self.description,
            "required": self.required,
            "unique": self.unique,
            "desiredRule": {"strictRule": "strict", "linkRule": "link"}.get(first, "none"),
            **{name: rule for name, rule in rules.items() if rule},
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Schema:
    """A template."""

    slug: str
    name: str
    columns: tuple[Column, ...]
    description: str | None = None
    archived: bool = False

    def describe(self) -> Json:
        """Return the template as the API shows it."""
        return {
            "slug": self.slug,
            "name": self.name,
            "description": self.description,
            "columns": [column.describe() for column in self.columns],
        }


@dataclass(slots=True, kw_only=True)
class Sheet:
    """The rows of one template."""

    schema: Schema
    rows: Rows = field(default_factory=list[list[str]])

    @property
    def header(self) -> list[str]:
        """The names of the columns."""
        return [column.name for column in self.schema.columns]


@dataclass(frozen=True, slots=True, kw_only=True)
class Flaw:
    """A cell that breaks a rule, by the indexes of its row and column."""

    slug: str
    row: int
    column: int
    reason: str


def _is_xlsx(name: str) -> bool:
    return name.lower().endswith(".xlsx")


def can_read(name: str) -> bool:
    """Return whether the simulator can handle a file of this name: XLSX needs openpyxl."""
    return not _is_xlsx(name) or find_spec("openpyxl") is not None


def read_rows(name: str, content: bytes) -> list[tuple[list[str], Rows]]:
    """Return header and records of each table in a CSV or XLSX file; nothing for other files.

    Raises `Unreadable`; for XLSX also if openpyxl is not installed.
    """
    if _is_xlsx(name):
        return _read_xlsx(name, content)
    return [read_csv(name, content)] if name.lower().endswith(".csv") else []


def _read_xlsx(name: str, content: bytes) -> list[tuple[list[str], Rows]]:
    if not can_read(name):
        raise Unreadable(f"{name}: {XLSX_HINT}")
    openpyxl = importlib.import_module("openpyxl")
    try:
        book = openpyxl.load_workbook(io.BytesIO(content), read_only=True, data_only=True)
        grids = [list(sheet.iter_rows(values_only=True)) for sheet in book.worksheets]
    except Exception as error:  # openpyxl raises errors of zipfile, XML and its own
        raise Unreadable(f"{name} is not an XLSX file: {error}") from None
    texts = [[["" if cell is None else str(cell) for cell in row] for row in grid] for grid in grids]
    filled = [[row for row in grid if any(row)] for grid in texts]
    return [(grid[0], grid[1:]) for grid in filled if grid]


def to_sheets(tables: Iterable[tuple[list[str], Rows]], schemas: Sequence[Schema]) -> list[Sheet]:
    """Return a sheet for each template. A table that fits none is left out."""
    sheets = {schema.slug: Sheet(schema=schema) for schema in schemas}
    for header, records in tables:
        schema, _, rows = to_table(header, records, schemas)
        if schema is not None:
            sheets[schema.slug].rows.extend(rows)
    return list(sheets.values())


def find_flaws(sheets: Sequence[Sheet]) -> list[Flaw]:
    """Return every bad cell, in the order of sheets, rows and columns; one reason for each cell."""
    by_slug = {sheet.schema.slug: sheet for sheet in sheets}
    flaws: list[Flaw] = []
    for sheet in sheets:
        seen: list[set[str]] = [set() for _ in sheet.schema.columns]
        links = [_link_targets(column, by_slug) for column in sheet.schema.columns]
        for row, cells in enumerate(sheet.rows):
            for place, (column, cell) in enumerate(zip(sheet.schema.columns, cells, strict=True)):
                reason = _flaw(column, cell.strip(), seen[place], links[place])
                if reason:
                    flaws.append(Flaw(slug=sheet.schema.slug, row=row, column=place, reason=reason))
    return flaws


def _flaw(column: Column, cell: str, seen: set[str], targets: set[str] | None) -> str | None:
    """Return why a cell is bad, or None. `seen`: earlier values of the column, to which this one is added."""
    if not cell:
        return f"{column.name} is required" if column.required else None
    key, known = cell.casefold(), cell.casefold() in seen
    seen.add(key)
    if column.unique and known:
        return f"{column.name} must be unique"
    if column.schema is not None:
        reason = _schema_flaw(column, cell)
        if reason is not None:
            return reason
    elif column.strict_rule is not None and not re.search(column.strict_rule, cell):
        return f"{column.name} does not match {column.strict_rule}"
    if targets is not None and not _linked(column, cell) <= targets:
        return f"{column.name} refers to a row that does not exist"
    return None


def _schema_flaw(column: Column, cell: str) -> str | None:
    """Return why the JSON text of a cell breaks the column's schema: types, enumerations and required fields."""
    try:
        value: object = json.loads(cell)
    except ValueError:
        return f"{column.name} is not JSON"
    return _mismatch(value, column.schema or {}, column.name)


_TYPES: Mapping[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
    "null": (type(None),),
}


def _mismatch(value: object, schema: Mapping[str, object], place: str) -> str | None:
    kinds = schema.get("type")
    names = cast("list[str]", kinds) if isinstance(kinds, list) else [str(kinds)] if kinds else []
    allowed = [kind for name in names for kind in _TYPES.get(name, ())]
    if allowed and (
        not isinstance(value, tuple(allowed)) or (isinstance(value, bool) and bool not in allowed)
    ):
        return f"{place} must be of type {names}"
    known = schema.get("enum")
    if isinstance(known, list) and value not in known:
        return f"{place} must be one of {known}"
    pattern = schema.get("pattern")
    if isinstance(value, str) and isinstance(pattern, str) and not re.search(pattern, value):
        return f"{place} does not match {pattern}"
    found: list[str | None] = []
    if isinstance(value, dict):
        entries = cast("Json", value)
        found = [
            f"{place}.{name} is required"
            for name in cast("list[str]", schema.get("required") or [])
            if name not in entries
        ]
        inner = cast("dict[str, Mapping[str, object]]", schema.get("properties") or {})
        found += [_mismatch(entries[n], inner[n], f"{place}.{n}") for n in inner.keys() & entries.keys()]
    items = schema.get("items")
    if isinstance(value, list) and isinstance(items, dict):
        found += [_mismatch(each, cast("Json", items), place) for each in cast("list[object]", value)]
    return next((reason for reason in found if reason), None)


def _link_targets(column: Column, by_slug: Mapping[str, Sheet]) -> set[str] | None:
    """Return the values that a cell may refer to; None if the column has no link to a sheet of this migration."""
    targets: set[str] | None = None
    for rule in column.link_rule:
        slugs = rule["templateId"]
        for slug in cast("list[str]", slugs) if isinstance(slugs, list) else [str(slugs)]:
            sheet = by_slug.get(slug)
            if sheet is not None and rule["columnName"] in sheet.header:
                place = sheet.header.index(str(rule["columnName"]))
                targets = (targets or set[str]()) | {row[place].strip() for row in sheet.rows}
    return targets


def _linked(column: Column, cell: str) -> set[str]:
    """Return the values by which a cell refers to other rows: itself, or those at the rule's `valuePath`."""
    rule = column.link_rule[0]
    value: object = cell
    path = rule.get("valuePath")
    if isinstance(path, str) and path:
        try:
            value = json.loads(cell)
        except ValueError:
            return {cell}
        for name in path.split("."):
            value = cast("Json", value).get(name) if isinstance(value, dict) else value
    mapping = cast("Json", rule.get("valueMap") or {})
    texts = {str(each) for each in (cast("list[object]", value) if isinstance(value, list) else [value])}
    return {str(mapping.get(each, each)) for each in texts}


def coverage_of(sheets: Sequence[Sheet]) -> list[Json]:
    """Return fill and distinct statistics of each column."""
    return [
        {
            "sheet": sheet.schema.name,
            "column": column,
            "filled": sum(bool(row[place].strip()) for row in sheet.rows),
            "distinct": len({row[place] for row in sheet.rows if row[place].strip()}),
            "rows": len(sheet.rows),
        }
        for sheet in sheets
        for place, column in enumerate(sheet.header)
    ]
