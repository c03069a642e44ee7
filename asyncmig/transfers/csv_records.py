"""Counts the records of a CSV while it streams, to detect a file that was cut short.

Records are not lines: a quoted cell (RFC 4180) may contain line ends. A line end is inside a quoted cell if the
number of quotes before it is odd. So only the quotes and line ends of a chunk are needed, and two quotes without a
line end between them can be ignored. `bytes.translate` removes all other bytes quickly. Commas are kept, because they
show that a line is not blank.

A quote in the middle of a cell, and a carriage return without a line feed, can be understood in two ways: see
`recount`.
"""

import codecs
import json
from dataclasses import dataclass
from typing import final

__all__ = ["RecordCounter", "RowCount", "wide_decoder"]

_DROPPED = bytes(set(range(256)) - set(b',"\n'))
_NOTHING = (b"", b"\r")
_LONGEST = 64 * 1024
"""The longest line, in bytes, whose cells are counted."""


def wide_decoder(beginning: bytes) -> codecs.IncrementalDecoder | None:
    """Return a decoder for a text in UTF-16 or UTF-32; None for any other encoding.

    `beginning`: the first bytes of the text; at least 4, unless the text is shorter.
    """
    encoding = json.detect_encoding(beginning)
    return None if encoding.startswith("utf-8") else codecs.getincrementaldecoder(encoding)("replace")


@final
@dataclass(frozen=True, slots=True)
class RowCount:
    """The result of one way to count."""

    rows: int
    """The number of records, without the header and blank lines."""
    blank: int
    """The number of blank lines outside of quoted cells."""
    cut: bool
    """Whether the file ends inside a record: in a quoted cell, or in a last line with fewer cells than the header."""

    def may_be(self, fewest: int, most: int) -> bool:
        """Return whether the file can have `fewest` to `most` rows. A blank line may count as a row or not."""
        return self.rows <= most and fewest <= self.rows + self.blank


@final
@dataclass(slots=True)
class _Records:
    """Counts the records that end with a line feed. A carriage return does not count as content."""

    filled: int = 0
    blank: int = 0
    open: bool = False
    """Whether the position is inside a quoted cell."""
    _begun: bool = False
    """Whether the current line has content so far."""

    def feed(self, chunk: bytes) -> None:
        marks = chunk.translate(None, _DROPPED)
        if b"\n\n" in marks or (marks.startswith(b"\n") and not self._begun):
            return self._feed_lines(chunk)  # a line may be blank, or have no comma
        inside_out = [marks]
        if b'"' in marks:
            inside_out = marks.translate(None, b",").replace(b'""', b"").split(b'"')
        self.filled += sum(part.count(b"\n") for part in inside_out[self.open :: 2])
        self.open ^= len(inside_out) % 2 == 0
        last = chunk.rfind(b"\n")
        self._begun = self.open or (self._begun and last < 0) or chunk[last + 1 :] not in _NOTHING
        return None

    def _feed_lines(self, chunk: bytes) -> None:
        *lines, rest = chunk.split(b"\n")
        if lines and not self.open and b'"' not in chunk:
            blank = lines.count(b"") + lines.count(b"\r") - (self._begun and lines[0] in _NOTHING)
            self.blank += blank
            self.filled += len(lines) - blank
            self._begun, lines = False, []
        for line in lines:
            self._take(line)
            if not self.open:
                self.filled += self._begun
                self.blank += not self._begun
                self._begun = False
        self._take(rest)

    def _take(self, text: bytes) -> None:
        self._begun = self._begun or text not in _NOTHING
        if text.count(b'"') % 2:
            self.open = not self.open

    @property
    def records(self) -> int:
        return self.filled + self._begun


@final
class RecordCounter:
    """Counts records of a CSV whose lines end in LF or CRLF, or in CR if there is no other line end.

    A blank line may be an empty record of a sheet with one column, or no record, so it is counted separately. A sheet
    in UTF-16 or UTF-32 counts as cut; `Recounter` can read it.
    """

    __slots__ = ("_beginning", "_cr", "_header", "_lf", "_rest")

    def __init__(self) -> None:
        self._beginning = b""
        self._header: int | None = None
        """The number of cells of the header, once it is complete."""
        self._rest: bytes = b""
        """The bytes since the last LF; all bytes until the header is complete."""
        self._lf = _Records()
        self._cr: _Records | None = _Records()
        """The same with CR as the line end; None after an LF has shown that CR is not the line end."""

    def feed(self, chunk: bytes) -> None:
        """Count the next bytes."""
        if len(self._beginning) < 4:
            self._beginning = (self._beginning + chunk)[:4]
        self._keep(chunk)
        self._lf.feed(chunk)
        if self._lf.filled or self._lf.blank:
            self._cr = None
        elif self._cr is not None:
            self._cr.feed(chunk.replace(b"\r", b"\n"))

    def _keep(self, chunk: bytes) -> None:
        """Count the cells of the header, and keep the bytes of the last line."""
        if self._header is None:
            chunk = self._rest + chunk
            end = _first_end(chunk)
            self._header = _cells(chunk[:end]) if end >= 0 else 0 if len(chunk) > _LONGEST else None
            if self._header is None:
                self._rest = chunk
                return
            self._rest = b""
        end = chunk.rfind(b"\n")
        rest = chunk[end + 1 :] if end >= 0 else self._rest + chunk
        self._rest = rest[:_LONGEST]

    @property
    def _lines(self) -> _Records:
        return self._cr if self._cr is not None else self._lf

    @property
    def cut(self) -> bool:
        """Whether the CSV ends inside a record: in a quoted cell, or in a last line with fewer cells than the
        header."""
        if self._lines.open or self._header is None or self._rest in _NOTHING:
            return self._lines.open
        is_a_record = len(self._rest) < _LONGEST and self._rest.count(b'"') % 2 == 0
        return is_a_record and _cells(self._rest) < self._header

    @property
    def rows(self) -> int:
        """The number of records, without the header and blank lines."""
        return max(0, self._lines.records - 1)

    @property
    def blank(self) -> int:
        """Blank lines outside of quoted cells."""
        return self._lines.blank

    def counts(self) -> tuple[RowCount, ...]:
        """Return the only count of this class, which counts in one way."""
        return (RowCount(self.rows, self.blank, self.cut or wide_decoder(self._beginning) is not None),)


def _first_end(text: bytes) -> int:
    """Return the position of the first line end outside of quoted cells, or -1."""
    at = 0
    for number, part in enumerate(text.split(b'"')):
        if number % 2 == 0 and b"\n" in part:
            return at + part.index(b"\n")
        at += len(part) + 1
    return -1


def _cells(record: bytes) -> int:
    return 1 + sum(part.count(b",") for part in record.split(b'"')[::2])
