"""Reads the records of a CSV file with their line numbers. The memory is bounded for any content."""

import csv
from collections.abc import Iterator
from typing import TextIO, final

from asyncmig._core.invisible import BYTE_ORDER_MARK

__all__ = ["BrokenOff", "Records", "sniff"]

_SNIFFED = 4096
"""The number of characters from which the delimiter is guessed."""
_LONGEST_RECORD = 4 * 1024 * 1024
_DELIMITERS = ",;\t|"  # the first one is the default


class BrokenOff(Exception):
    """The file cannot be read from the line `line` on, because of `reason`."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(line, reason)
        self.line = line
        self.reason = reason


def sniff(file: TextIO) -> str:
    """Return the delimiter of a file.

    Only the first 4,096 characters are used, because `csv.Sniffer` needs quadratic time.
    """
    sample = file.read(_SNIFFED).lstrip("\r\n")
    file.seek(0)
    header = next(iter(sample.splitlines()), "")
    try:
        delimiter = csv.Sniffer().sniff(sample, _DELIMITERS).delimiter
    except csv.Error:
        delimiter = ""
    return delimiter if delimiter and delimiter in header else max(_DELIMITERS, key=header.count)


@final
class Records:
    """Iterates over pairs of a line number and a record. A blank line is an empty record.

    Raises `BrokenOff` for a record with more than 4 Mi characters, and for a cell over `csv.field_size_limit()`.
    """

    __slots__ = ("_complete", "_delimiter", "_file", "_line", "_pending", "_size", "is_marked")

    def __init__(self, file: TextIO, delimiter: str) -> None:
        self._file, self._delimiter = file, delimiter
        self._line = self._size = 0
        self._pending: list[str] = []
        self._complete = False
        self.is_marked: bool = False
        """Whether the line of the last record begins with a byte order mark."""

    def __iter__(self) -> Iterator[tuple[int, list[str]]]:
        line = 1
        try:
            for record in csv.reader(self._lines(), delimiter=self._delimiter):
                self._complete = True
                yield line, record
                line = self._line + 1
        except csv.Error as error:
            raise BrokenOff(line, str(error)) from error

    def _lines(self) -> Iterator[str]:
        """Yield lines. The first line that the reader requests after a complete record begins a new record."""
        while text := self._file.readline(_LONGEST_RECORD):
            if self._complete:
                self._pending, self._size, self._complete = [], 0, False
            if not self._pending:
                self.is_marked = text.startswith(BYTE_ORDER_MARK)
            self._line += 1
            self._size += len(text)
            self._pending.append(text)
            if self._size >= _LONGEST_RECORD:
                first = self._line - len(self._pending) + 1
                raise BrokenOff(first, "it has more than 4 million characters: a quote may never be closed")
            yield text

    def open_quote(self) -> bool:
        """Return whether the last record has a quoted cell that is open at the end of the file."""
        return len(list(csv.reader([*self._pending, "x"], delimiter=self._delimiter))) == 1
