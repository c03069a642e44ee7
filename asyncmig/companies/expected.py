"""The number of rows that a download must have, to detect one that was cut short.

A proxy may cut a body short and still send status 200 with a matching length. So the records of a download are
counted and compared with the report of the completed import. This is valid only for a company with a single
import.

More rows than reported are wrong as well, and such a body may never end. So each body is limited while it
arrives: see `Bound`.
"""

from collections.abc import Sequence
from typing import final

from asyncmig.companies.wire import Sheet
from asyncmig.customers.outcome import ImportReport, RowFilter
from asyncmig.errors import TruncatedDownload
from asyncmig.transfers.csv_records import RowCount
from asyncmig.transfers.part import LONGEST_RECORD

__all__ = ["ALL_SHEETS", "Expected"]

ALL_SHEETS = "all sheets"
"""The name of all sheets together in errors."""
_ROW_IN_ARCHIVE = 1024 * 1024
"""Average bytes that a row may take in an archive. Its rows cannot be counted while it arrives."""


@final
class Expected:
    """The number of rows that a download must have according to a report. Unknown numbers are not checked."""

    __slots__ = ("_filter", "_report")

    def __init__(self, report: ImportReport | None, row_filter: RowFilter) -> None:
        self._report, self._filter = report, row_filter

    def is_exact(self, sheets: Sequence[Sheet]) -> bool:
        """Return whether a missing row would be detected in a download of all `sheets`."""
        report = self._report
        if report is None or self.total is not None:
            return report is not None
        counts = [self._reported(sheet.name, by_id) for sheet in sheets for by_id in (sheet, None)]
        counted = bool(counts) and None not in counts  # in an archive, sheets have only names
        return counted and (self._filter == "all" or report.invalid_rows == 0)

    @property
    def total(self) -> int | None:
        """The rows of all sheets together according to the report; None if it does not say."""
        report = self._report
        if report is None or report.inserted is None or self._filter == "all":
            return report.inserted if report else None
        return None if report.invalid_rows is None else report.inserted - report.invalid_rows

    def check(self, name: str, sheet: Sheet | None, counts: Sequence[RowCount]) -> RowCount:
        """Return the first of `counts`, the results of each way to count the rows, that agrees with the report.

        `name`: the name of the download in errors. Raises `TruncatedDownload` if there is none.
        """
        expected = self._rows(name, sheet)
        whole = [count for count in counts if not count.cut]
        if not whole:
            raise TruncatedDownload(name, "it ends inside a record")
        fitting = [count for count in whole if expected is None or count.may_be(*expected)]
        if not fitting:
            assert expected is not None
            raise _wrong(name, whole[0].rows, *expected)
        return fitting[0]

    def check_sum(self, sheets: Sequence[RowCount]) -> None:
        """Compare the rows of all sheets together with what the same report inserted."""
        expected = self.total
        if expected is None:
            return
        fewest = sum(count.rows for count in sheets)
        if not fewest <= expected <= fewest + sum(count.blank for count in sheets):
            raise _wrong(ALL_SHEETS, fewest, expected, expected)

    def most_rows(self, name: str, sheet: Sheet | None) -> int | None:
        """Return the largest possible number of rows of a sheet; None if the report does not say."""
        expected = self._rows(name, sheet)
        inserted = self._report.inserted if self._report else None
        return inserted if expected is None else expected[1]

    def most_in_archive(self, sheets: int) -> int | None:
        """Return the largest possible size in bytes of an archive of so many sheets; None if the report does not
        say.
        """
        inserted = self._report.inserted if self._report else None
        return None if inserted is None else sheets * LONGEST_RECORD + inserted * _ROW_IN_ARCHIVE

    def _rows(self, name: str, sheet: Sheet | None) -> tuple[int, int] | None:
        """Return the smallest and the largest possible number of rows of a sheet, or None if the report does not
        say.

        With `filter=all`, both are its `rowCount`. With `filter=valid`, the report has one number of invalid rows
        for all sheets: all of them may be in this sheet, and those that do not fit into the other sheets must be.
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
    return TruncatedDownload(name, f"{came} rows arrived, {reported} were reported")
