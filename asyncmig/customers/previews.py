"""A preview: a sample of what a run would import, and the cells in it that break a rule."""

from msgspec import Struct

from asyncmig.customers.catalog import CatalogueItem

__all__ = ["InvalidCell", "Preview", "PreviewSheet"]


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
