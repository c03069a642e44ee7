"""How many rows a downloaded sheet must have, and what its rows say about the row filter.

`X-Total-Records` is the number of rows in the body, and shows whether it is complete. The report of the executed run
has the rows of each sheet and the number of rows with a bad cell in all sheets together. A server that does not know
the row filter sends all rows. Then rows with bad cells cannot be separated, and the result says so.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final

from asyncmig.customers.outcome import Downloaded, Flagged
from asyncmig.errors import TruncatedDownload
from asyncmig.migrations.wire import Report, Sheet
from asyncmig.transfers.csv_records import RowCount

__all__ = ["Downloaded", "Expected", "Flagged", "RowFilter", "with_flags"]

RowFilter = Literal["valid", "all", "invalid"]
"""Which rows are asked for: without the rows that have a bad cell, all, or only those. Many servers send all rows in
any case."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """The rows that one sheet must have, as far as a response and a report say."""

    report: Report | None
    sheet: Sheet
    names: frozenset[str]
    """The names of all sheets of the migration."""
    total: int | None
    """The rows of the response, according to its header."""
    filtered: bool
    """Whether a row filter was sent, so that some rows may be missing."""
    row_filter: RowFilter = "valid"

    @property
    def reported(self) -> int | None:
        """The rows of the sheet according to the report, bad ones included; None if it does not say.

        The report has names, which may repeat, and may lack sheets without rows. Where it has the name of no sheet,
        its counts belong to unknown sheets.
        """
        report = self.report
        if report is None or not self.sheet.name:
            return None
        rows = [count.rows for count in report.per_sheet if count.template_name == self.sheet.name]
        if len(rows) == 1:
            return rows[0]
        listed = sum(count.rows or 0 for count in report.per_sheet)
        is_clear = all(count.template_name in self.names for count in report.per_sheet if count.rows)
        return 0 if not rows and is_clear and report.inserted == listed else None

    @property
    def fewest(self) -> int:
        """The least number of rows that the report allows."""
        rows, invalid = self.reported, self.report.invalid_rows if self.report else None
        if rows is None or (self.filtered and (invalid is None or self.row_filter == "invalid")):
            return 0
        return max(0, rows - (invalid or 0)) if self.filtered else rows

    def check(self, counts: Sequence[RowCount]) -> RowCount:
        """Return the first of `counts`, the results of each way to count, that the complete sheet can have.

        Raises `TruncatedDownload` if there is none.

        More rows than reported are possible: an earlier execution may have added some.
        """
        whole = [count for count in counts if not count.cut]
        if not whole:
            raise TruncatedDownload(self.sheet.name, "it ends inside a record")
        fitting = [count for count in whole if self.total is None or count.may_be(self.total, self.total)]
        if not fitting:
            raise TruncatedDownload(
                self.sheet.name, f"{whole[0].rows} rows arrived, and the response announced {self.total}"
            )
        enough = [count for count in fitting if count.rows + count.blank >= self.fewest]
        if not enough:
            raise TruncatedDownload(
                self.sheet.name, f"{fitting[0].rows} rows arrived, at least {self.fewest} were reported"
            )
        return enough[0]

    def is_verified(self, rows: int) -> bool:
        """Return whether a file with so many rows is known to be complete."""
        return self.total is not None or (self.reported is not None and rows == self.reported)


def with_flags(
    sheets: Sequence[tuple[Expected, Downloaded]], *, row_filter: RowFilter, are_all: bool
) -> list[Downloaded]:
    """Return the downloads with what their rows say together about bad cells. `are_all`: all sheets with rows."""
    of_filtered, of_others = _flagged(sheets, row_filter=row_filter, are_all=are_all)
    return [
        Downloaded(
            sheet=file.sheet,
            path=file.path,
            rows=file.rows,
            size=file.size,
            slug=expected.sheet.id,
            flagged="none" if file.rows == 0 else of_filtered if expected.filtered else of_others,
            is_verified=expected.is_verified(file.rows),
        )
        for expected, file in sheets
    ]


def _flagged(
    sheets: Sequence[tuple[Expected, Downloaded]], *, row_filter: RowFilter, are_all: bool
) -> tuple[Flagged, Flagged]:
    """Return whether bad cells are in the files that were requested with a row filter, and in the others."""
    report = sheets[0][0].report if sheets else None
    if report is None or report.invalid_rows is None:
        return "unknown", "unknown"
    if report.invalid_rows == 0:
        return "none", "none"
    filtered = [(expected, file.rows) for expected, file in sheets if expected.filtered]
    if row_filter != "valid" or not filtered:
        return "included", "included"
    left_out = [
        (expected, expected.reported - rows)
        for expected, rows in filtered
        if expected.reported is not None and expected.reported > rows
    ]
    if left_out:  # the server knows the filter; without a total, the file may be cut short
        if all(expected.total is None for expected, _ in left_out):
            return "unknown", "included"
        return "none", "none" if sum(rows for _, rows in left_out) == report.invalid_rows else "included"
    came = sum(file.rows for _, file in sheets)
    if (
        are_all
        and report.inserted is not None
        and came == report.inserted - report.invalid_rows
        and all(expected.total is not None for expected, _ in sheets)
    ):
        return "none", "none"
    is_whole = report.inserted is not None and came >= report.inserted
    has_all = all(expected.reported is not None for expected, _ in sheets)
    return "included" if are_all and (is_whole or has_all) else "unknown", "included"
