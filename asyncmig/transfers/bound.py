"""Detects a download with more rows or bytes than possible, because such a body may never end."""

from collections.abc import Sequence
from typing import Protocol, final

from asyncmig.transfers.csv_records import RowCount

__all__ = ["LONGEST_RECORD", "Bound", "Counted"]

_MIB = 1024 * 1024
LONGEST_RECORD = 16 * _MIB
"""Largest record, in bytes. Spreadsheets allow 32,767 characters in a cell, so 500 full cells fit."""


class Counted(Protocol):
    """Anything that has counted the rows of a sheet."""

    def counts(self) -> Sequence[RowCount]:
        """Return the result of each way of counting, the most likely first."""
        ...


@final
class Bound:
    """Detects a body that is too large while it arrives.

    It is too large if it has more rows than were reported, in every way of counting; 16 MiB (plus `slack` bytes)
    without a new row; or more than `size` bytes.
    """

    __slots__ = ("_came", "_counts", "_grown_at", "_longest", "_rows", "_size")

    def __init__(self, *, rows: int | None, size: int | None = None, slack: int = 0) -> None:
        self._rows, self._size, self._longest = rows, size, LONGEST_RECORD + slack
        self._came = self._grown_at = 0
        self._counts: tuple[int, ...] = ()

    def exceeded(self, size: int, rows: Sequence[int] = ()) -> str | None:
        """Count `size` more bytes, and return the reason why the body is too large, or None.

        `rows`: all rows so far in each way of counting; empty if rows cannot be counted.
        """
        self._came += size
        if rows:
            if tuple(rows) != self._counts:
                self._counts, self._grown_at = tuple(rows), self._came
            if self._rows is not None and min(rows) > self._rows:
                return f"it has more rows than the {self._rows} that were reported"
            if self._came - self._grown_at > self._longest:
                return f"no row ended within {LONGEST_RECORD // _MIB} MiB"
        if self._size is not None and self._came > self._size:
            return f"it has more than {self._size} bytes"
        return None
