"""Bodies with rows: the preview, and sheets as CSV."""

import csv
import io
from collections.abc import Mapping, Sequence

from asyncmig.simulator.migrations.account import Account
from asyncmig.simulator.migrations.migration import Migration
from asyncmig.simulator.migrations.tables import Sheet, find_flaws
from asyncmig.simulator.server.messages import Json, Refusal

__all__ = ["chosen_columns", "csv_of", "fields_of", "preview_of"]

_SAMPLE = 20


def chosen_columns(
    sheet: Sheet, fields: Sequence[str] | None, *, omit_empty: bool, has_coverage: bool = True
) -> list[int]:
    """Return the positions of the columns that a request selects. Raises `Refusal`."""
    places = list(range(len(sheet.header)))
    if fields:
        for name in fields:
            if name not in sheet.header:
                raise Refusal(400, f"unknown_field: {name}", fields={"code": "unknown_field"})
        places = [sheet.header.index(name) for name in fields]
    if omit_empty:
        if not has_coverage:
            raise Refusal(409, "coverage_unavailable", fields={"code": "coverage_unavailable"})
        places = [place for place in places if any(row[place].strip() for row in sheet.rows)]
        if not places:
            raise Refusal(409, "Every column is empty")
    return places


def fields_of(query: Mapping[str, str]) -> list[str] | None:
    """Return the names in `?fields`."""
    names = [name for name in query.get("fields", "").split(",") if name]
    return names or None


def preview_of(
    account: Account, migration: Migration, sheets: Sequence[Sheet], query: Mapping[str, str]
) -> Json:
    """Return a sample of what would be imported."""
    variants = account.variants
    flaws = find_flaws(sheets)
    shown: list[Json] = []
    for sheet in sheets:
        size = min(_SAMPLE, len(sheet.rows))
        drawn = (
            account.rng.sample(range(len(sheet.rows)), size) if variants.sample == "drawn" else range(size)
        )
        row_numbers = {row: number for number, row in enumerate(drawn)}
        sample = Sheet(schema=sheet.schema, rows=[sheet.rows[row] for row in drawn])
        places = chosen_columns(
            sample,
            fields_of(query),
            omit_empty=query.get("omit_empty") == "true" and bool(sample.rows),
        )
        header = [sheet.header[place] for place in places]
        cells: list[Json] = [
            {
                variants.cell_row: row_numbers[flaw.row] + variants.first_row,
                variants.cell_column: places.index(flaw.column)
                if variants.cell_column == "colIndex"
                else sheet.header[flaw.column],
                variants.cell_reason: flaw.reason,
            }
            for flaw in flaws
            if flaw.slug == sheet.schema.slug and flaw.row in row_numbers and flaw.column in places
        ]
        shown.append(
            {
                "template": {"slug": sheet.schema.slug, "name": sheet.schema.name},
                "rows": [header, *([row[place] for place in places] for row in sample.rows)],
                "invalid_cells": cells,
            }
        )
    return {
        "status": "awaiting_approval",
        "templates": [{"slug": schema.slug, "name": schema.name} for schema in migration.schemas],
        "sheets": shown,
    }


def csv_of(sheet: Sheet, places: Sequence[int], rows: Sequence[Sequence[str]]) -> bytes:
    """Return some columns and rows of a sheet as CSV with a header."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow([sheet.header[place] for place in places])
    writer.writerows([row[place] for place in places] for row in rows)
    return text.getvalue().encode()
