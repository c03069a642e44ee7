"""A preview: a sample of what a run would import, and where the flagged cells (those that break a rule) lie in it.

The API does not say whether it counts rows from 0 or 1, whether it counts the header, and whether it counts columns
from 0 or 1. A server counts in one way, so all flagged cells of a preview decide together. A way of counting that
places cells outside of the tables loses. Among the others, the one wins whose cells fit their messages best.
"""

from typing import NamedTuple

from msgspec import Struct

from asyncmig._core.invisible import trimmed
from asyncmig.customers.catalog import CatalogueItem

__all__ = ["FlaggedCell", "FlaggedCells", "InvalidCell", "Preview", "PreviewSheet", "find_flagged_cells"]

_STARTS = ((1, 0), (1, 1), (0, 0), (0, 1), (2, 0), (2, 1))
"""The number of the first row below the header, and of the first column; the first pair that fits best is used."""
_EMPTY_WORDS = ("empty", "required", "missing", "blank")


class InvalidCell(Struct, frozen=True, kw_only=True):
    """A cell of the sample that breaks a rule. Fields that the server did not send are None."""

    row: int | None = None
    """As the server counts: from 0 or 1, with or without the header."""
    column: str | None = None
    """The name of the column."""
    column_index: int | None = None
    """As the server counts, if it sent no name."""
    reason: str | None = None


class PreviewSheet(Struct, frozen=True, kw_only=True):
    """A sample of one sheet."""

    sheet: CatalogueItem
    header: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    """The sampled rows, without the header."""
    invalid_cells: tuple[InvalidCell, ...] = ()


class Preview(Struct, frozen=True, kw_only=True):
    """A sample of what an execution would import."""

    sheets: tuple[PreviewSheet, ...] = ()
    templates: tuple[CatalogueItem, ...] = ()
    """All sheets of the workbook; `sheets` may have fewer."""
    version: str = ""
    """Which preview of the migration this is: its run, and the last event of the thread. Two samples of one preview
    may have different rows. Empty if it was not looked up, or if the thread does not show it."""

    @property
    def invalid_cells(self) -> int:
        """The number of cells in the sample that break a rule. Rows outside of the sample are not counted."""
        return sum(len(sheet.invalid_cells) for sheet in self.sheets)


class FlaggedCell(NamedTuple):
    """A flagged cell of one sheet."""

    row: int | None
    """Index into the rows of the sheet; None if the cell lies outside of the sample, or the server does not say."""
    column: int | None
    """Index into the header; None if there is no such column, or the server does not say."""
    message: str
    """Why the cell is flagged; empty if the server does not say."""


class FlaggedCells(NamedTuple):
    """The flagged cells of a preview."""

    sheets: tuple[tuple[FlaggedCell, ...], ...]
    """For each sheet of the preview, one for each of its `invalid_cells`, in their order."""
    is_guess: bool
    """Whether another way of counting rows fits as well, so that a mark may be one row away from its cell."""


def find_flagged_cells(preview: Preview) -> FlaggedCells:
    """Return where the flagged cells of a preview lie."""
    columns = [_by_name(sheet) for sheet in preview.sheets]
    placed = {
        (first_row, first_column): tuple(
            tuple(_placed(sheet, cell, names, first_row, first_column) for cell in sheet.invalid_cells)
            for sheet, names in zip(preview.sheets, columns, strict=True)
        )
        for first_row, first_column in _STARTS
    }
    scores = {start: _score(preview, cells) for start, cells in placed.items()}
    best = max(_STARTS, key=scores.__getitem__)  # the first of equals
    rows = any(cell.row is not None for sheet in placed[best] for cell in sheet)
    rivals = any(scores[start] == scores[best] and start[0] != best[0] for start in _STARTS)
    return FlaggedCells(sheets=placed[best], is_guess=rows and rivals)


def _by_name(sheet: PreviewSheet) -> dict[str, int]:
    """Return the index of each column by its name, and by its name without regard to case; the first one wins."""
    named: dict[str, int] = {}
    for index, name in enumerate(sheet.header):
        named.setdefault(name, index)
    for index, name in enumerate(sheet.header):
        named.setdefault(trimmed(name).casefold(), index)
    return named


def _placed(
    sheet: PreviewSheet, cell: InvalidCell, names: dict[str, int], first_row: int, first_column: int
) -> FlaggedCell:
    row = None if cell.row is None else cell.row - first_row
    if cell.column is not None:
        column = names.get(cell.column, names.get(trimmed(cell.column).casefold()))
    else:
        column = None if cell.column_index is None else cell.column_index - first_column
    return FlaggedCell(
        row=row if row is not None and 0 <= row < len(sheet.rows) else None,
        column=column if column is not None and 0 <= column < len(sheet.header) else None,
        message=cell.reason or "",
    )


def _score(preview: Preview, placed: tuple[tuple[FlaggedCell, ...], ...]) -> tuple[int, int]:
    """Return how many rows and columns were found, and how many cells fit their messages."""
    found = fitting = 0
    for sheet, cells in zip(preview.sheets, placed, strict=True):
        for cell in cells:
            found += (cell.row is not None) + (cell.column is not None)
            fitting += _fits(sheet, cell)
    return found, fitting


def _fits(sheet: PreviewSheet, cell: FlaggedCell) -> bool:
    """Return whether the message quotes the cell's value, or says of an empty cell that it is empty."""
    if cell.row is None or cell.column is None:
        return False
    row = sheet.rows[cell.row]
    value = row[cell.column].strip() if cell.column < len(row) else ""
    if not value:
        return any(word in cell.message.casefold() for word in _EMPTY_WORDS)
    return value in cell.message
