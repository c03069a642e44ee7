"""What an import did, as the server reports it."""

from msgspec import Struct, field

__all__ = ["ImportReport", "SheetCount"]


class SheetCount(Struct, frozen=True, kw_only=True):
    """How many rows one sheet got."""

    template_name: str | None = field(name="templateName", default=None)
    sheet_id: str | None = field(name="sheetId", default=None)
    rows: int | None = field(name="rowCount", default=None)


class ImportReport(Struct, frozen=True, kw_only=True):
    """What an import did. While a run is parked, `inserted` counts valid rows only."""

    inserted: int | None = None
    per_sheet: tuple[SheetCount, ...] = field(name="perSheet", default=())
    invalid_rows: int | None = field(name="invalidCellCount", default=None)
    """Rows with at least one bad cell, whatever the field's name in the API suggests."""
