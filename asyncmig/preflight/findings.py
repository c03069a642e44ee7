"""The findings of a check, as structs that encode to JSON."""

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
    "link",
]
"""The kinds of findings."""

_MOST_SAMPLES = 5
_LONGEST_VALUE = 80


class Sample(Struct, frozen=True, kw_only=True):
    """One place of a finding. `line`: the line, from 1, on which its row begins; `value`: its first 80 characters."""

    line: int
    value: str = ""


class Finding(Struct, frozen=True, kw_only=True):
    """One possible fault. `text`: a sentence about it; `count`: the number of rows or cells with it."""

    kind: Kind
    text: str
    count: int = 1
    column: str | None = None
    """The template's column whose rule is broken."""
    samples: tuple[Sample, ...] = ()
    """The first five places."""


class HeaderMatch(Struct, frozen=True, kw_only=True):
    """One header of the file. `column`: the template's column with this name, ignoring case and punctuation. `near`:
    a column with a similar name if none has the same; its rules are not checked.
    """

    header: str
    column: str | None = None
    near: str | None = None


class CheckedFile(Struct, frozen=True, kw_only=True):
    """The properties of one file. None means unknown, because it is not text."""

    path: str
    size: int
    """Bytes."""
    encoding: str | None = None
    """Python's name of the encoding; `utf-8-sig` is UTF-8 with a byte order mark. A finding says if it is a guess."""
    delimiter: str | None = None
    rows: int | None = None
    """Rows read, without the header and blank lines."""
    complete: bool = False
    """Whether all rows were read."""
    template: str | None = None
    """The name of the template whose columns the headers resemble most; None if they resemble none."""
    headers: tuple[HeaderMatch, ...] = ()
    warnings: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()
    """What was not checked, and why."""


class Checked(Struct, frozen=True, kw_only=True):
    """The results of all files of a customer."""

    files: tuple[CheckedFile, ...]

    @property
    def warnings(self) -> int:
        """Return the number of warnings."""
        return sum(len(file.warnings) for file in self.files)


def number_of(count: int, noun: str) -> str:
    """Return `1 row` or `2,000 rows`."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


@final
class FindingCounter:
    """Counts faults of one kind and keeps the first few places."""

    __slots__ = ("count", "samples")

    def __init__(self) -> None:
        self.count: int = 0
        self.samples: list[Sample] = []

    def add(self, line: int, value: str = "", *, count: int = 1) -> None:
        """Count one more place."""
        self.count += count
        if len(self.samples) < _MOST_SAMPLES:
            self.samples.append(Sample(line=line, value=value[:_LONGEST_VALUE]))

    def finding(self, kind: Kind, text: str, column: str | None = None) -> Finding:
        """Return the finding. `text` continues with "in 2 rows"."""
        text = f"{text} in {number_of(self.count, 'row')}"
        return Finding(kind=kind, text=text, count=self.count, column=column, samples=tuple(self.samples))
