"""Count the records of a CSV while it streams by, to tell a whole file from one that was cut short.

Records are not lines: a quoted cell (RFC 4180) may hold line ends. Whether a line end is inside of one is told by the
number of quotes before it, odd or even; so of each chunk only quotes and line ends are looked at, and what two quotes
with no line end between them do, they undo. That leaves a handful of bytes to a chunk, found at the speed of
`bytes.translate`; commas are kept as well, as the sign that a line is not blank.

A quote in the middle of a cell may mean something else, and a lone carriage return, too: see `recount`.
"""

from dataclasses import dataclass
from typing import final

__all__ = ["RecordCounter", "RowCount"]

_DROPPED = bytes(set(range(256)) - set(b',"\n'))
_NOTHING = (b"", b"\r")
_LONGEST = 64 * 1024
"""Bytes of a line whose cells are counted."""


@final
@dataclass(frozen=True, slots=True)
class RowCount:
    """What one way of counting found."""

    rows: int
    """Records without the header, not counting blank lines."""
    blank: int
    """Blank lines outside of quoted cells."""
    cut: bool
    """Whether it ends inside a record: in a quoted cell, or in a last line with fewer cells than the header."""

    def may_be(self, fewest: int, most: int) -> bool:
        """Return whether the file can have `fewest` to `most` rows: a blank line may be one, or nothing."""
        return self.rows <= most and fewest <= self.rows + self.blank


@final
class _Lines:
    """Counts the records that end with a line feed; a carriage return is no content."""

    __slots__ = ("_begun", "blank", "filled", "open")

    def __init__(self) -> None:
        self.filled = self.blank = 0
        self.open = False
        """Inside a quoted cell."""
        self._begun = False
        """The line has content so far."""

    def feed(self, chunk: bytes) -> None:
        marks = chunk.translate(None, _DROPPED)
        if b"\n\n" in marks or (marks.startswith(b"\n") and not self._begun):
            return self._feed_lines(chunk)  # some line may be blank, or only have no comma
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
    """Counts records of CSV whose lines end in LF or CRLF; or in CR, where no other line end comes.

    A blank line may be an empty record of a sheet with one column, or nothing: both counts are kept.
    """

    __slots__ = ("_cr", "_header", "_lf", "_rest")

    def __init__(self) -> None:
        self._header: int | None = None
        """Cells of the header, once it has come."""
        self._rest: bytes = b""
        """What came since the last LF; until the header is whole, all of it."""
        self._lf = _Lines()
        self._cr: _Lines | None = _Lines()
        """The same with CR for a line end, until an LF says that it is none."""

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes."""
        self._keep(chunk)
        self._lf.feed(chunk)
        if self._lf.filled or self._lf.blank:
            self._cr = None
        elif self._cr is not None:
            self._cr.feed(chunk.replace(b"\r", b"\n"))

    def _keep(self, chunk: bytes) -> None:
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
    def _lines(self) -> _Lines:
        return self._cr if self._cr is not None else self._lf

    @property
    def cut(self) -> bool:
        """Whether it ends inside a record: in a quoted cell, or in a last line with fewer cells than the header."""
        if self._lines.open or self._header is None or self._rest in _NOTHING:
            return self._lines.open
        is_a_record = len(self._rest) < _LONGEST and self._rest.count(b'"') % 2 == 0
        return is_a_record and _cells(self._rest) < self._header

    @property
    def rows(self) -> int:
        """Records without the header, not counting blank lines."""
        return max(0, self._lines.records - 1)

    @property
    def blank(self) -> int:
        """Blank lines outside of quoted cells."""
        return self._lines.blank

    def may_be(self, fewest: int, most: int) -> bool:
        """Return whether the file can have `fewest` to `most` records below its header."""
        return self.counts()[0].may_be(fewest, most)

    def counts(self) -> tuple[RowCount, ...]:
        """Return what was counted, in the only way that this knows."""
        return (RowCount(self.rows, self.blank, self.cut),)


def _first_end(text: bytes) -> int:
    """Return where the first line ends that is not inside of a quoted cell; -1 if none does."""
    at = 0
    for number, part in enumerate(text.split(b'"')):
        if number % 2 == 0 and b"\n" in part:
            return at + part.index(b"\n")
        at += len(part) + 1
    return -1


def _cells(record: bytes) -> int:
    return 1 + sum(part.count(b",") for part in record.split(b'"')[::2])
