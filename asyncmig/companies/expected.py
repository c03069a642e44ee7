"""Tell a whole download from one that was cut short.

A proxy may cut a body short and still answer 200 with a length that agrees. So the records that came are counted and
compared with what the completed import reported; that is only right for a company that has had a single import.
"""

from collections.abc import Sequence
from typing import Literal, final

from asyncmig.companies.records import RecordCounter
from asyncmig.companies.wire import ImportReport, Sheet
from asyncmig.errors import TruncatedDownload

__all__ = ["Expected", "RowFilter"]

RowFilter = Literal["valid", "all"]
_ALL = "all sheets"


@final
class Expected:
    """How many rows must come, as far as a report says it."""

    __slots__ = ("_filter", "_report")

    def __init__(self, report: ImportReport | None, row_filter: RowFilter) -> None:
        self._report, self._filter = report, row_filter

    def is_exact(self, sheets: Sequence[Sheet]) -> bool:
        """Return whether a download of all of `sheets` that lacks a row would be noticed."""
        report = self._report
        if report is None or self.total is not None:
            return report is not None
        counts = [self._reported(sheet.name, by_id) for sheet in sheets for by_id in (sheet, None)]
        counted = bool(counts) and None not in counts  # in an archive sheets are told by their names
        return counted and (self._filter == "all" or report.invalid_rows == 0)

    @property
    def total(self) -> int | None:
        """The rows of all sheets together that the report has brought; None where it does not say."""
        report = self._report
        if report is None or report.inserted is None or self._filter == "all":
            return report.inserted if report else None
        return None if report.invalid_rows is None else report.inserted - report.invalid_rows

    def check(self, name: str, sheet: Sheet | None, records: RecordCounter) -> None:
        """Raise `TruncatedDownload` unless what came can be the whole sheet; `name` is what the download calls it."""
        if records.cut:
            raise TruncatedDownload(name, "it ends inside a record")
        expected = self._rows(name, sheet)
        if expected is not None and not records.may_be(*expected):
            raise _wrong(name, records.rows, *expected)

    def check_sum(self, sheets: Sequence[RecordCounter]) -> None:
        """Compare the rows of all sheets together with what the same report inserted."""
        expected = self.total
        if expected is None:
            return
        fewest = sum(records.rows for records in sheets)
        if not fewest <= expected <= fewest + sum(records.blank for records in sheets):
            raise _wrong(_ALL, fewest, expected, expected)

    def _rows(self, name: str, sheet: Sheet | None) -> tuple[int, int] | None:
        """Return the fewest and the most rows that a sheet can have, or None where the report does not say.

        With `filter=all` both are its `rowCount`. With `filter=valid` the invalid rows of all sheets, which are one
        number, may all lie in this one; and those that do not fit into the others must.
        """
        report, rows = self._report, self._reported(name, sheet)
        if report is None or rows is None or self._filter == "all":
            return None if rows is None else (rows, rows)
        invalid, inserted = report.invalid_rows, report.inserted
        if invalid is None:
            return 0, rows
        surely = 0 if inserted is None else max(0, invalid - max(0, inserted - rows))
        return max(0, rows - invalid), max(0, rows - surely)

    def _reported(self, name: str, sheet: Sheet | None) -> int | None:
        counts = [
            count.rows
            for count in (self._report.per_sheet if self._report else ())
            if (count.template_name == name if sheet is None else count.sheet_id == sheet.id)
        ]
        return counts[0] if len(counts) == 1 else None


def _wrong(name: str, came: int, fewest: int, most: int) -> TruncatedDownload:
    reported = str(most) if fewest == most else f"{fewest} to {most}"
    return TruncatedDownload(name, f"{came} rows came, {reported} were reported")
