"""Detects a download that is larger than it can be, because such a body may never end."""

from collections.abc import Sequence
from typing import Protocol, final

from asyncmig.transfers.csv_records import RowCount

__all__ = ["LONGEST_RECORD", "Bound", "Counted"]

_MIB = 1024 * 1024
LONGEST_RECORD = 16 * _MIB
"""The largest record, in bytes: 500 cells of the 32,767 characters that spreadsheets allow."""


class Counted(Protocol):
    """The rows of a sheet, counted."""

    def counts(self) -> Sequence[RowCount]:
        """Return the result of each way to count, the most likely first."""
        ...


@final
class Bound:
    """Detects a body that is too large, while it arrives.

    A body is too large in three cases: it has more than `rows` rows in every way to count; no new row ends within 16
    MiB plus `slack` bytes; or it has more than `size` bytes.
    """

    __slots__ = ("_counts", "_grown_at", "_longest", "_received", "_rows", "_size")

    def __init__(self, *, rows: int | None, size: int | None = None, slack: int = 0) -> None:
        self._rows, self._size, self._longest = rows, size, LONGEST_RECORD + slack
        self._received = self._grown_at = 0
        self._counts: tuple[int, ...] = ()

    def exceeded(self, size: int, rows: Sequence[int] = ()) -> str | None:
        """Count `size` more bytes, and return why the body is too large; None if it is not.

        `rows`: the number of rows so far in each way to count; empty if rows cannot be counted.
        """
        self._received += size
        if rows:
            if tuple(rows) != self._counts:
                self._counts, self._grown_at = tuple(rows), self._received
            if self._rows is not None and min(rows) > self._rows:
                return f"it has more rows than the {self._rows} that were reported"
            if self._received - self._grown_at > self._longest:
                return f"no row ended within {LONGEST_RECORD // _MIB} MiB"
        if self._size is not None and self._received > self._size:
            return f"it has more than {self._size} bytes"
        return None
