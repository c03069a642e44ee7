"""Reads the files of one customer, and checks them by the templates."""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Generic, TextIO, TypeVar, cast, final

from asyncmig._core.arguments import checked_call, checked_path
from asyncmig._core.invisible import BYTE_ORDER_MARK, invisible_in_name, invisible_in_prose, named_characters
from asyncmig._io.threads import in_thread
from asyncmig.customers.catalog import TemplateRules
from asyncmig.customers.files import raise_unreadable, size_of
from asyncmig.customers.spec import Spec
from asyncmig.errors import InvalidInput
from asyncmig.preflight.csv_file import BrokenOff, Probe, Records, probe, sniff
from asyncmig.preflight.findings import Checked, CheckedFile, Finding, FindingCounter, Kind, Sample, number_of
from asyncmig.preflight.headers import Fit, find_fit, header_findings
from asyncmig.preflight.rules import ColumnRules, LinkTarget, MemoryBound, Seen, Targets, targets_of

__all__ = ["check", "check_spec"]

T = TypeVar("T")
_ROWS_A_STEP = 2000
"""The number of rows that a thread reads before it can be cancelled."""
_MOST_REMEMBERED = 500_000
"""The most values that are remembered for unique rules, and for link rules. They need about 40 MB."""
_DELIMITERS = {";": "semicolons", "\t": "tabs", "|": "bars"}
_SHAPES: Mapping[Kind, str] = {
    "rows_short": "fewer cells than the header's {width:,}",
    "rows_long": "more cells than the header's {width:,}",
    "rows_blank": "nothing at all",
    "mark": "a byte order mark before the row, as in joined files,",
    "invisible": "invisible or look-alike characters ({invisible})",
}


@checked_call
async def check_spec(
    spec: Spec, templates: Sequence[TemplateRules] = (), *, head: int | None = None
) -> Checked:
    """Check the files of `spec` by those of `templates` that the spec names; see `check`.

    Sends no request. Raises `InvalidInput` for values and files that the API would refuse.
    """
    spec.validate()
    wanted = spec.templates
    return await check(
        spec.files, [each for each in templates if wanted is None or each.id in wanted], head=head
    )


@checked_call
async def check(
    files: Sequence[Path | str] | Path | str,
    templates: Sequence[TemplateRules] = (),
    *,
    head: int | None = None,
) -> Checked:
    """Check files that one customer imports together, and return the findings. Sends no request.

    - `templates`: the templates that the customer uses. Without templates, headers and cells are not checked.
    - `head`: the number of rows to read of each file (0: only the header); None reads all. The whole file is always
      searched for bytes that are not UTF-8. Link rules are checked only if all rows are read.

    Every finding is a warning and never an error: the server maps headers and validates cells itself, and its rules
    for duplicates and matches may differ.

    Three checks need the extra `check`: the guess of an encoding, strict rules (by RE2, in linear time), and cells
    with JSON by their schema (without requests for other documents). Without it, the result lists what was not
    checked.

    The memory is bounded: 4 Mi characters per record, 500,000 values (about 40 MB) for all unique rules, and as many
    for all link rules. The work runs in a thread, in short steps, and can be cancelled.

    Raises `InvalidInput` for a file that is missing, empty or unreadable.
    """
    if head is not None and head < 0:
        raise InvalidInput("head", head, "must not be negative")
    given = [files] if isinstance(files, Path | str) else files
    paths = [checked_path("files", each) for each in given]
    for template in cast("Sequence[object]", templates):
        if not isinstance(template, TemplateRules):
            raise InvalidInput("templates", template, "is not a TemplateRules")
    sizes = [size_of(path) for path in paths]
    opened = [await _in_steps(path, _open(path, templates)) for path in paths]
    targets = await _targets(opened, templates) if head is None else None
    bound = MemoryBound(_MOST_REMEMBERED)
    seen: dict[tuple[str, str], Seen] = {}

    def seen_in(template: TemplateRules, column: str) -> Seen:
        return seen.setdefault((template.id, column), Seen(bound))

    scans = [_Scan(file, size, targets, seen_in) for file, size in zip(opened, sizes, strict=True)]
    return Checked(files=tuple([await _in_steps(scan.file.path, scan.run(head)) for scan in scans]))


@dataclass(frozen=True, slots=True)
class _Done(Generic[T]):
    value: T


async def _in_steps(path: Path, steps: Generator[None, None, T]) -> T:
    """Run each step of a generator in a thread, and return its result.

    A cancellation ends it between two steps, and closes its file.
    """
    with closing(steps):
        try:
            while (done := await in_thread(_advance, steps)) is None:
                pass
        except OSError as error:
            raise_unreadable(str(path), error)
    return done.value


def _advance(steps: Generator[None, None, T]) -> _Done[T] | None:
    try:
        next(steps)
    except StopIteration as stop:
        return _Done(stop.value)
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    """A file whose header was read. `delimiter` is None if the file is not text or has no header."""

    path: Path
    probe: Probe
    delimiter: str | None = None
    fit: Fit = field(default_factory=Fit)
    width: int = 0
    warnings: tuple[Finding, ...] = ()

    def text(self) -> TextIO:
        return self.path.open(encoding=self.probe.codec, errors="replace", newline="")

    def place(self, template_id: str, column: str) -> int | None:
        """Return the position of a template's column in a record."""
        template = self.fit.template
        return self.fit.places.get(column) if template is not None and template.id == template_id else None


def _open(path: Path, templates: Sequence[TemplateRules]) -> Generator[None, None, _File]:
    """Determine the encoding, and read the header."""
    probed = yield from probe(path)
    file = _File(path=path, probe=probed)
    if probed.codec is None:
        return file
    with file.text() as text:
        delimiter = sniff(text)
        try:
            header = yield from _header(Records(text, delimiter))
        except BrokenOff as error:
            return replace(file, warnings=(_broken_off(error),))
        line_ends = text.newlines
    if header is None:
        return replace(file, warnings=(Finding(kind="no_header", text="has no header: every line is blank"),))
    fit = find_fit(header, templates, path.stem)
    warnings = (*_form(delimiter, line_ends), *header_findings(header), *fit.warnings)
    return replace(file, delimiter=delimiter, fit=fit, width=len(header), warnings=warnings)


def _header(records: Records) -> Generator[None, None, list[str] | None]:
    for number, (_, record) in enumerate(records):
        if record:
            return record
        if number % _ROWS_A_STEP == 0:
            yield
    return None


def _form(delimiter: str, line_ends: str | tuple[str, ...] | None) -> list[Finding]:
    findings: list[Finding] = []
    if delimiter != ",":
        name = _DELIMITERS[delimiter]
        text = f"cells seem to be separated by {name}; a server that expects commas sees one column"
        findings.append(Finding(kind="delimiter", text=text))
    if line_ends == "\r":
        text = "lines end in CR alone, as on an old Mac; a server that expects LF sees one line"
        findings.append(Finding(kind="line_ends", text=text))
    return findings


def _broken_off(error: BrokenOff) -> Finding:
    text = f"cannot be read from line {error.line:,}: {error.reason}"
    return Finding(kind="broken_off", text=text, samples=(Sample(line=error.line),))


async def _targets(files: Sequence[_File], templates: Sequence[TemplateRules]) -> Targets:
    """Return the values of the columns to which links point. They are read first, because links may be circular."""
    bound = MemoryBound(_MOST_REMEMBERED)
    targets: dict[LinkTarget, Seen] = {}
    for file in files:
        found = {
            target: place
            for target in targets_of(templates)
            if (place := file.place(target.template_id, target.column_name)) is not None
        }
        if found:
            columns = [
                (target, place, targets.setdefault(target, Seen(bound))) for target, place in found.items()
            ]
            await _in_steps(file.path, _collect(file, columns))
    return targets


def _collect(file: _File, columns: Sequence[tuple[LinkTarget, int, Seen]]) -> Generator[None, None, None]:
    assert file.delimiter is not None
    with file.text() as text:
        try:
            for number, (_, record) in enumerate(Records(text, file.delimiter)):
                for target, place, seen in columns:
                    if place < len(record) and (cell := record[place].strip()):
                        for key in target.keys(cell):
                            seen.add(key)
                if number % _ROWS_A_STEP == 0:
                    yield
        except BrokenOff:
            for _, _, seen in columns:
                seen.complete = False


@final
class _Scan:
    """Reads the rows of one file and checks them by the rules of its template."""

    def __init__(
        self, file: _File, size: int, targets: Targets | None, seen_in: Callable[[TemplateRules, str], Seen]
    ) -> None:
        self.file, self._size = file, size
        self._counters: dict[Kind, FindingCounter] = {kind: FindingCounter() for kind in _SHAPES}
        self._rules = [
            (
                place,
                ColumnRules(
                    column, seen_in(template, column.name), targets, enforces_all=template.enforces_all
                ),
            )
            for template in [file.fit.template]
            if template is not None
            for column in template.columns
            if (place := file.fit.places.get(column.name)) is not None
        ]
        self._exact = {place for place, rules in self._rules if rules.is_exact}
        self._invisible: set[str] = set()
        self._in_prose = FindingCounter()
        self._rows, self._complete = 0, False
        self._gap = self._gap_at = 0
        """The number of blank lines before the present row, and the number of the first of these lines."""
        self._ends: list[Finding] = []

    def run(self, head: int | None) -> Generator[None, None, CheckedFile]:
        """Read the rows, 2,000 in each step, and return the result. Blocks."""
        if self.file.delimiter is not None:
            with self.file.text() as text:
                records = Records(text, self.file.delimiter)
                try:
                    yield from self._read(records, head)
                except BrokenOff as error:
                    self._ends.append(_broken_off(error))
        return self._result()

    def _read(self, records: Records, head: int | None) -> Generator[None, None, None]:
        line, rows = 1, iter(records)
        next((record for _, record in rows if record), None)
        for number, (line, record) in enumerate(rows):
            if self._rows == head:
                return
            if records.is_marked:
                self._counters["mark"].add(line)
                record = [record[0].removeprefix(BYTE_ORDER_MARK), *record[1:]]
            self._take(line, record)
            if number % _ROWS_A_STEP == 0:
                yield
        self._complete = True
        if records.open_quote():
            text = (
                f"the row on line {line:,} has a quote that is never closed: the rest of the file is one cell"
            )
            self._ends.append(Finding(kind="quote_open", text=text, samples=(Sample(line=line),)))
        elif not self._rows:
            self._ends.append(Finding(kind="no_rows", text="has a header and no rows"))

    def _take(self, line: int, record: list[str]) -> None:
        if not any(map(str.strip, record)):
            self._gap, self._gap_at = self._gap + 1, self._gap_at if self._gap else line
            return
        self._rows += 1
        if self._gap:  # blank lines at the end of the file are not a fault
            self._counters["rows_blank"].add(self._gap_at, count=self._gap)
            self._gap = 0
        width = self.file.width
        if len(record) != width:
            self._counters["rows_short" if len(record) < width else "rows_long"].add(line)
        self._note_invisible(line, record)
        for place, rules in self._rules:
            rules.check(line, record[place].strip() if place < len(record) else "")

    def _note_invisible(self, line: int, record: list[str]) -> None:
        """Count the first cell of a row with invisible characters: as a warning if cells of its column are
        compared."""
        if all(map(str.isascii, record)):
            return
        for place, cell in enumerate(record):
            exact = place in self._exact
            if found := invisible_in_name(cell) if exact else invisible_in_prose(cell):
                self._invisible.update(found)
                (self._counters["invisible"] if exact else self._in_prose).add(line, cell)
                return

    def _notes(self) -> list[str]:
        if not self._in_prose.count:
            return []
        names, first = named_characters(self._invisible), self._in_prose.samples[0]
        rows = number_of(self._in_prose.count, "row")
        return [
            f"invisible or look-alike characters ({names}) in {rows}, first on line {first.line:,}: {first.value!a}"
        ]

    def _result(self) -> CheckedFile:
        file, fit = self.file, self.file.fit
        shapes = [
            self._counters[kind].finding(
                kind, text.format(width=file.width, invisible=named_characters(self._invisible))
            )
            for kind, text in _SHAPES.items()
            if self._counters[kind].count
        ]
        broken = [finding for _, rules in self._rules for finding in rules.findings()]
        return CheckedFile(
            path=str(file.path),
            size=self._size,
            encoding=file.probe.encoding,
            delimiter=file.delimiter,
            rows=None if file.delimiter is None else self._rows,
            complete=self._complete,
            template=fit.template.name if fit.template else None,
            headers=fit.headers,
            warnings=(*file.probe.warnings, *file.warnings, *self._ends, *shapes, *broken),
            notes=(
                *file.probe.notes,
                *self._notes(),
                *(note for _, rules in self._rules for note in rules.notes),
            ),
        )
