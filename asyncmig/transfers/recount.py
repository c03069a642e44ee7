"""Counts the records of a CSV in each way in which it can be understood.

Programs understand some CSV files in different ways, and a run's report does not say how its number of rows was
counted. There are two questions with two answers each:

- A quote in the middle of a cell (`6" pipe`): it is text, or it opens a quoted part as at the start of a cell.
- A carriage return without a line feed: it is text, or it ends a line. In a file without line feeds it always ends
  one.

The records are counted once as long as both answers about quotes give the same result, and from then on separately.
Each chunk is split at its quotes, the text outside of quoted cells is joined with one quote for each cell, and the
lines of that text are counted. The counts are exact. `RecordCounter` counts in only one way, but several times as
fast.
"""

import codecs
import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import final

from asyncmig.transfers.csv_records import RowCount, wide_decoder

__all__ = ["Recounter"]

_BOM = b"\xef\xbb\xbf"
_LAST = itemgetter(slice(-1, None))
_BEFORE_A_CELL = frozenset({b",", b"\n", b"\r"})
_BEFORE_A_QUOTE = _BEFORE_A_CELL | {b""}
"""The bytes that can precede a quote that opens a cell. No byte: the quote is the second one of a doubled quote."""
_LONGEST = 64 * 1024
"""The longest line, in bytes, whose cells are counted, and the most bytes of an open cell that are kept."""
_WAYS = ((True, False), (True, True), (False, False), (False, True))
"""Whether a quote in the middle of a cell is text, and whether a lone CR ends a line. The most likely way is
first."""


@final
@dataclass(slots=True)
class _Lines:
    """Counts lines, and separately those without content."""

    filled: int = 0
    blank: int = 0
    begun: bool = False
    """Whether the current line has content so far."""

    def take(self, lines: Sequence[bytes], *, ended: bool) -> None:
        """Count lines. `ended`: whether the last one is complete."""
        complete = len(lines) - (not ended)
        blank = lines.count(b"") - (complete > 0 and self.begun and not lines[0])
        self.blank += blank
        self.filled += complete - blank
        self.begun = not ended or (self.begun and not complete)


class _Quotes:
    """Counts the records of a CSV by one rule for quotes. Subclasses define the rule."""

    __slots__ = ("_any", "_commas", "_header", "_last", "_lf", "_line", "_open", "_spans", "_tail")

    def __init__(self) -> None:
        self._open = False
        """Whether the position is inside a quoted cell."""
        self._last = b","
        """The last byte that was read; at the start, a byte after which a cell may begin."""
        self._lf, self._any = _Lines(), _Lines()
        """Lines that end with LF or CRLF, and lines that may also end with a lone CR."""
        self._header: int | None = None
        """The number of cells of the header, once it is complete; 0 if the header is too long."""
        self._commas = self._line = 0
        """The number of commas, and of bytes, outside of quotes since the last LF."""
        self._spans = False
        """Whether a quoted cell of the current record contains a line end."""
        self._tail = b""
        """The bytes of the current quoted cell so far."""

    def feed(self, parts: Sequence[bytes]) -> None:
        """Count the next chunk. `parts`: its text, split at the quotes."""
        outside, ends_open = parts[self._open :: 2], self._open ^ (len(parts) % 2 == 0)
        self._note_inside(parts, ends_open=ends_open)
        self._count(b'"'.join([*outside, b""] if ends_open and outside else outside))

    def _note_inside(self, parts: Sequence[bytes], *, ends_open: bool) -> None:
        """Update the state of quoted cells. `ends_open`: whether the chunk ends inside a quoted cell."""
        last = parts[-1]
        if ends_open:
            self._tail = ((self._tail if len(parts) == 1 else b"") + last)[:_LONGEST]
        was_open = ends_open
        for part in reversed(parts):
            if b"\n" in part:
                self._spans = was_open
                break
            was_open = not was_open
        self._open = ends_open
        if last or len(parts) > 1:
            self._last = last[-1:] or b'"'

    def _count(self, text: bytes) -> None:
        """Count the lines of the text outside of quoted cells. One quote stands for each quoted cell."""
        if not text:
            return
        lines, ended = text.splitlines(), text.endswith((b"\n", b"\r"))
        if text.count(b"\n") == len(lines) - (not ended):
            self._lf.take(lines, ended=ended)
        else:  # a CR without an LF
            *complete, rest = text.split(b"\n")
            complete = [line.strip(b"\r") for line in complete]  # a CR does not count as content
            goes_on = bool(rest.strip(b"\r"))
            self._lf.take([*complete, rest] if goes_on else complete, ended=not goes_on)
        self._any.take(lines, ended=ended)
        at = text.rfind(b"\n")
        if at < 0:
            self._commas += text.count(b",")
            self._line += len(text)
            return
        if self._header is None:
            end = text.index(b"\n")
            self._header = 1 + self._commas + text.count(b",", 0, end) if self._line + end < _LONGEST else 0
        self._commas, self._line = text.count(b",", at + 1), len(text) - at - 1

    @property
    def _is_short(self) -> bool:
        """Whether the last line has fewer cells than the header. False if that cannot be determined."""
        is_known = self._header is not None and self._lf.begun and not self._spans and self._line < _LONGEST
        return is_known and 1 + self._commas < (self._header or 0)

    def count(self, *, lone_return_ends: bool) -> RowCount:
        is_lf = self._lf.filled + self._lf.blank > 0 and not lone_return_ends
        lines = self._lf if is_lf else self._any
        records = lines.filled + (lines.begun or self._open)
        return RowCount(max(0, records - 1), lines.blank, self._open or self._is_short)

    def unclosed(self) -> RowCount | None:
        """Return the count if the last quote, which was never closed, is text; None if it cannot be text.

        It can be text if each line since then has as many cells as the header.
        """
        if not self._open or self._header is None or len(self._tail) >= _LONGEST:
            return None
        lines = self._tail.removesuffix(b"\n").split(b"\n")
        cells = [1 + line.count(b",") for line in lines]
        cells[0] += self._commas
        if set(cells) != {self._header}:
            return None
        return RowCount(max(0, self._lf.filled + len(lines) - 1), self._lf.blank, cut=False)


@final
class _Parity(_Quotes):
    """Rule: each quote opens or closes a quoted part."""

    __slots__ = ()

    def is_clear(self, parts: Sequence[bytes]) -> bool:
        """Return whether both rules give the same result: each opening quote is at the start of a cell, or
        doubled."""
        ends = parts[self._open : -1 : 2]
        if not ends:
            return True
        if not self._open and not ends[0] and self._last not in _BEFORE_A_CELL and self._last != b'"':
            return False
        return _BEFORE_A_QUOTE.issuperset(map(_LAST, ends))

    def forked(self) -> "_CellStart":
        """Return a copy that continues with the other rule."""
        other = _CellStart()
        for name in _Quotes.__slots__:
            setattr(other, name, copy.copy(getattr(self, name)))
        return other


@final
class _CellStart(_Quotes):
    """Rule: a quote opens a quoted cell only at the start of a cell; elsewhere it is text."""

    __slots__ = ()

    def feed(self, parts: Sequence[bytes]) -> None:
        """Count the next chunk, after its quotes that are text were replaced."""
        super().feed(list(self._regular(parts)))

    def _regular(self, parts: Sequence[bytes]) -> Iterator[bytes]:
        is_open, last, held = self._open, self._last, b""
        for part in parts[:-1]:
            last = part[-1:] or last
            if is_open or last in _BEFORE_A_CELL or (last == b'"' and not part):
                yield held + part
                held, is_open, last = b"", not is_open, b'"'
            else:  # another byte stands for a quote that is text
                held += part + b"'"
                last = b"'"
        yield held + parts[-1]


@final
class Recounter:
    """Counts the records of a CSV in UTF-8, UTF-16 or UTF-32. The counts do not depend on how it is split into
    chunks."""

    __slots__ = ("_cell_start", "_decoder", "_held", "_parity", "_started", "accepts_open_quote")

    def __init__(self) -> None:
        self.accepts_open_quote: bool = False
        """Whether `counts` also counts with a quote that is never closed as text.

        A file that was cut short looks the same. So this is only for bytes that have arrived more than once.
        """
        self._parity = _Parity()
        self._cell_start: _CellStart | None = None
        """The second rule for quotes; None as long as both rules give the same result."""
        self._held = b""
        """A CR that an LF may follow; at the start, bytes that are too few to determine the encoding."""
        self._started = False
        self._decoder: codecs.IncrementalDecoder | None = None
        """The decoder of UTF-16 or UTF-32; None for UTF-8."""

    def feed(self, chunk: bytes) -> None:
        """Count the next bytes."""
        if not self._started:
            chunk, self._held = self._held + chunk, b""
            if len(chunk) < 4:
                self._held = chunk
                return
            self._started = True
            self._decoder = wide_decoder(chunk)
            chunk = chunk.removeprefix(_BOM)
        if self._decoder is not None:
            chunk = self._decoder.decode(chunk).encode().removeprefix(_BOM)
        chunk, self._held = self._held + chunk, b""
        if chunk.endswith(b"\r"):
            chunk, self._held = chunk[:-1], b"\r"
        if chunk:
            self._read(chunk.split(b'"') if b'"' in chunk else [chunk])

    def _read(self, parts: Sequence[bytes]) -> None:
        if self._cell_start is None and not self._parity.is_clear(parts):
            self._cell_start = self._parity.forked()
        self._parity.feed(parts)
        if self._cell_start is not None:
            self._cell_start.feed(parts)

    def counts(self) -> tuple[RowCount, ...]:
        """Return the result of each way to count, always in the same order, the most likely first."""
        cell_start, parity = self._at_end()
        counts = [
            (cell_start if quotes_are_text else parity).count(lone_return_ends=lone_return_ends)
            for quotes_are_text, lone_return_ends in _WAYS
        ]
        if self._decoder is not None and self._decoder.getstate()[0]:  # the file ends inside a character
            counts = [replace(count, cut=True) for count in counts]
        if self.accepts_open_quote:
            found = (cell_start.unclosed(), parity.unclosed())
            counts += [count for count in found if count is not None]
        return tuple(counts)

    def _at_end(self) -> tuple[_Quotes, _Quotes]:
        """Return both counters in their state after the last byte."""
        last = self
        if self._held:
            last = copy.deepcopy(self)
            held = last._held if last._started else last._held.removeprefix(_BOM)
            last._read(held.split(b'"'))
        return last._cell_start or last._parity, last._parity
