"""Count the records of a CSV while it streams by, to tell a whole file from one that was cut short."""

from typing import final

__all__ = ["RecordCounter"]


@final
class RecordCounter:
    """Counts records (not lines: a quoted cell may hold line ends) of CSV as RFC 4180 has it.

    A blank line may be an empty record of a sheet with one column, or nothing: both counts are kept.
    """

    __slots__ = ("_filled", "_in_quotes", "_line", "_return", "blank")

    def __init__(self) -> None:
        self._filled = 0
        self.blank: int = 0
        self._in_quotes = self._line = self._return = False

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes."""
        if self._return and chunk.startswith(b"\n"):
            chunk = chunk[1:]  # the second half of a CRLF that fell between two chunks
        self._return = chunk.endswith(b"\r")
        *lines, rest = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        for line in lines:
            self._take(line)
            if not self._in_quotes:
                if self._line:
                    self._filled += 1
                else:
                    self.blank += 1
                self._line = False
        self._take(rest)

    def _take(self, text: bytes) -> None:
        self._line = self._line or bool(text)
        if text.count(b'"') % 2:
            self._in_quotes = not self._in_quotes

    @property
    def cut(self) -> bool:
        """Whether what came ends inside a quoted cell."""
        return self._in_quotes

    @property
    def rows(self) -> int:
        """Records without the header, not counting blank lines."""
        return max(0, self._filled + self._line - 1)

    def may_be(self, rows: int) -> bool:
        """Return whether the file can have `rows` records below its header."""
        return self.rows <= rows <= self.rows + self.blank
