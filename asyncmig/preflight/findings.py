"""The findings of a check, as structs that can be encoded as JSON."""

from dataclasses import dataclass, field
from typing import Literal, final

from msgspec import Struct

__all__ = [
    "Checked",
    "CheckedFile",
    "Finding",
    "FindingCounter",
    "HeaderMatch",
    "Kind",
    "Sample",
    "number_of",
]

Kind = Literal[
    "encoding",
    "not_text",
    "nul",
    "delimiter",
    "line_ends",
    "no_header",
    "header_empty",
    "header_twice",
    "header_many",
    "header_invisible",
    "mark",
    "invisible",
    "no_rows",
    "rows_short",
    "rows_long",
    "rows_blank",
    "quote_open",
    "broken_off",
    "no_template",
    "column_missing",
    "required",
    "unique",
    "strict",
    "strict_in_part",
    "schema",
    "link",
]
"""The kinds of findings."""

_MOST_SAMPLES = 5
_LONGEST_VALUE = 80


class Sample(Struct, frozen=True, kw_only=True):
    """One row in which a fault was found."""

    line: int
    """The number of the line on which the row begins, from 1."""
    value: str = ""
    """The first 80 characters of the cell."""


class Finding(Struct, frozen=True, kw_only=True):
    """One possible fault of a file."""

    kind: Kind
    text: str
    """A description for people."""
    count: int = 1
    """The number of rows or cells with the fault."""
    column: str | None = None
    """The column of the template whose rule is broken."""
    samples: tuple[Sample, ...] = ()
    """The first five rows with the fault."""


class HeaderMatch(Struct, frozen=True, kw_only=True):
    """One header of the file, and the column of the template that matches it."""

    header: str
    column: str | None = None
    """The column with the same name, ignoring case, accents and punctuation."""
    near: str | None = None
    """A column with a similar name, if no column has the same name. Its rules are not checked."""


class CheckedFile(Struct, frozen=True, kw_only=True):
    """The result for one file. The encoding, the delimiter and the rows are None if the file is not text."""

    path: str
    size: int
    """Bytes."""
    encoding: str | None = None
    """Python's name of the encoding; `utf-8-sig` is UTF-8 with a byte order mark. If it was guessed, there is a
    warning."""
    delimiter: str | None = None
    rows: int | None = None
    """The number of rows read, without the header and blank lines."""
    complete: bool = False
    """Whether all rows were read."""
    template: str | None = None
    """The name of the template whose columns the headers resemble most; None if they resemble no template."""
    headers: tuple[HeaderMatch, ...] = ()
    warnings: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()
    """Texts about what was not checked, with the reasons."""


class Checked(Struct, frozen=True, kw_only=True):
    """The results for all files of a customer."""

    files: tuple[CheckedFile, ...]

    @property
    def warnings(self) -> int:
        """The number of warnings of all files."""
        return sum(len(file.warnings) for file in self.files)


def number_of(count: int, noun: str) -> str:
    """Return `1 row` or `2,000 rows`."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


@final
@dataclass(slots=True)
class FindingCounter:
    """Counts the faults of one kind, and keeps the first five rows."""

    count: int = 0
    samples: list[Sample] = field(default_factory=list[Sample])

    def add(self, line: int, value: str = "", *, count: int = 1) -> None:
        """Count faults in one more row."""
        self.count += count
        if len(self.samples) < _MOST_SAMPLES:
            self.samples.append(Sample(line=line, value=value[:_LONGEST_VALUE]))

    def finding(self, kind: Kind, text: str, column: str | None = None) -> Finding:
        """Return the finding. The number of rows, such as " in 2 rows", is appended to `text`."""
        text = f"{text} in {number_of(self.count, 'row')}"
        return Finding(kind=kind, text=text, count=self.count, column=column, samples=tuple(self.samples))
