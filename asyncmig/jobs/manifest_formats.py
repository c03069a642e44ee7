"""The two formats of a manifest, CSV and TOML: from bytes to the cells of each customer, with every fault.

Faults name the cause, not the symptom: a file with `;` between its columns gets one sentence about that, not four
missing columns.

In TOML each customer is a `[[company]]` table, and `[defaults]` holds settings of the command line:

    [defaults]
    decide = "approve-safe"

    [[company]]
    external_id = "acme-001"
    name = "Acme Inc"
    source = "HubSpot"
    templates = ["Contacts", "Deals"]
    files = ["acme/*.csv"]

A customer of the API generation "migrations" may have no source. Instead of files, or besides them, it may have a
live connection to its source. Its credentials are in an environment variable, as a JSON object:

    [company.connection]
    source_key = "salesforce"
    config = { region = "eu" }
    credentials = "ACME_CREDENTIALS"
"""

import csv
import difflib
import io
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, cast

from asyncmig._core.invisible import BYTE_ORDER_MARK, invisible_in_name, trimmed
from asyncmig.errors import is_temporary

__all__ = ["Cells", "ManifestFault", "ParsedManifest", "load_toml", "parse_manifest", "read_text"]

Cells = Mapping[str, str | Sequence[str]]
"""The values of one customer by column; a list only in TOML."""
REQUIRED: Final = ("external_id", "name", "source", "files")
COLUMNS: Final = (*REQUIRED, "templates")
_CONNECTION: Final = "connection"
_LARGEST = 64 * 1024 * 1024
"""Bytes."""
_FORMATS = (
    (b"PK\x03\x04", "a ZIP archive or an Excel workbook"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Excel workbook"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"%PDF-", "a PDF"),
    (b"{\\rtf", "an RTF document"),
    (b"SQLite format 3\0", "a database"),
)
_SEPARATORS = {";": "';'", "\t": "tabs", "|": "'|'", "\uff0c": "'\uff0c'"}
_SEP = re.compile(r"sep=(.?)", re.IGNORECASE | re.DOTALL)
_SEP_COMMA = (["sep=", ""], ["sep=,"])
"""The first line with which Excel declares that commas separate the columns."""
_COMPANY_HEADER = re.compile(r"^[ \t]*\[\[[ \t]*company[ \t]*\]\]", re.MULTILINE)
_TOML_LINE = re.compile(r"at line (\d+)")
_NO_RECORD: tuple[int, list[str]] = (1, [])


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestFault:
    """One fault of a manifest. `line`: its line from 1; None if it concerns the whole file."""

    line: int | None = None
    field: str = "manifest"
    reason: str

    def __str__(self) -> str:
        where = "" if self.line is None else f"line {self.line}: "
        return f"{where}{self.field}: {self.reason}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedManifest:
    """The content of a manifest before the values are checked."""

    rows: tuple[tuple[int, Cells], ...] = ()
    """Each customer that has all required columns: its line and its cells."""
    connections: Mapping[int, Mapping[str, object]] = field(default_factory=dict[int, Mapping[str, object]])
    """The `[company.connection]` of TOML as written, by the index of the customer in `rows`."""
    ignored: tuple[str, ...] = ()
    """Columns that the manifest format does not define."""
    defaults: Mapping[str, object] = field(default_factory=dict[str, object])
    """The `[defaults]` of TOML as written."""
    faults: tuple[ManifestFault, ...] = ()


def read_text(path: Path) -> str | ManifestFault:
    """Return the text of a manifest, or why the file is not one. Raises `OSError` if reading may succeed later."""
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST + 1)
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and is_temporary(error):
            raise
        return ManifestFault(reason=getattr(error, "strerror", None) or "is not a path")
    if reason := _other_format(content):
        return ManifestFault(reason=reason)
    try:
        text = content.decode().lstrip(BYTE_ORDER_MARK)  # two marks where files were concatenated
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        reason = f"is not UTF-8 (byte 0x{content[error.start]:02x}): save it as UTF-8"
        return ManifestFault(line=line, reason=reason)
    return text


def parse_manifest(path: Path, text: str) -> ParsedManifest:
    """Parse the text of a manifest: TOML if the name ends in `.toml`, CSV otherwise."""
    if not trimmed(text):
        return ParsedManifest(faults=(ManifestFault(reason="is empty"),))
    return _parse_toml(text) if path.suffix.casefold() == ".toml" else _parse_csv(text)


def _other_format(content: bytes) -> str | None:
    """Return why these bytes are not a manifest: files that people choose by mistake."""
    if len(content) > _LARGEST:
        return f"is larger than {_LARGEST // 2**20} MB: is it one of the customers' files?"
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "is UTF-16: save it as UTF-8"
    for magic, name in _FORMATS:
        if content.startswith(magic):
            return f"is {name}: save it as CSV (UTF-8)"
    if b"\0" in content:
        return "contains NUL bytes, like UTF-16 without a byte order mark: save it as UTF-8"
    return None


# CSV


def _parse_csv(text: str) -> ParsedManifest:
    faults: list[ManifestFault] = []
    records = _records(text, faults)
    header_line, header = next(records, _NO_RECORD)
    if header and [cell.strip().casefold() for cell in header] in _SEP_COMMA:
        header_line, header = next(records, _NO_RECORD)
    columns = [] if faults else _columns(header_line, header, faults)
    rows = tuple([_row(line, row, columns, faults) for line, row in records] if columns else [])
    if columns and not rows and not faults:
        faults.append(ManifestFault(reason="lists no customers, only a header"))
    ignored = tuple(name for name in columns if name and name not in COLUMNS)
    return ParsedManifest(rows=rows, ignored=ignored, faults=tuple(faults))


def _records(text: str, faults: list[ManifestFault]) -> Iterator[tuple[int, list[str]]]:
    """Yield each record that is not blank, with the line on which it begins."""
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    while True:
        line = rows.line_num + 1
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            reason = f"is not CSV from here on ({error})"
            faults.append(ManifestFault(line=line, reason=reason))
            return
        if any(cell.strip() for cell in row):
            yield line, row


def _columns(line: int, header: list[str], faults: list[ManifestFault]) -> list[str]:
    """Return the name of each column; an empty list, with faults, if the header cannot be used."""
    columns = [_column_name(name) for name in header]
    missing = [name for name in REQUIRED if name not in columns]
    if missing and (reason := _header_fault(header)):
        faults.append(ManifestFault(line=line, reason=reason))
        return []
    for name in missing:
        near = difflib.get_close_matches(name, set(columns).difference(COLUMNS), n=1)
        hint = f"; is {near[0]!r} meant for it?" if near else ""
        faults.append(ManifestFault(line=line, field=name, reason=f"this column is missing{hint}"))
    doubled = sorted({name for name in columns if name in COLUMNS and columns.count(name) > 1})
    reason = "this column appears twice"
    faults += [ManifestFault(line=line, field=name, reason=reason) for name in doubled]
    return [] if missing or doubled else columns


def _row(
    line: int, row: list[str], columns: list[str], faults: list[ManifestFault]
) -> tuple[int, Mapping[str, str]]:
    if len(row) > len(columns) and any(cell.strip() for cell in row[len(columns) :]):
        reason = f"has {len(row)} cells where the header has {len(columns)}"
        faults.append(ManifestFault(line=line, reason=reason))
    return line, dict(zip(columns, row, strict=False))


def _column_name(text: str) -> str:
    """Return the name of a column without regard to case, invisible characters and the character between words."""
    plain = trimmed(text).casefold()
    folded = re.sub(r"[\W_]+", "_", "".join(each for each in plain if not invisible_in_name(each)))
    spaced = re.sub(r"[\W_]+", "_", plain)
    return next((each for each in (folded, spaced) if each in COLUMNS), plain)


def _header_fault(header: Sequence[str]) -> str | None:
    """Return the one cause for which a first line lacks columns; None if columns are simply missing."""
    line = ",".join(header)
    if sep := _SEP.fullmatch(line.strip(" ")):
        return f"begins with 'sep={sep[1] or ','}': remove this line, and separate the columns with ','"
    for separator, words in _SEPARATORS.items():
        if _known_in(line.split(separator)) >= 2:
            return f"separates its columns with {words}: use ','"
    if len(header) == 1 and _known_in(line.split(",")) >= 2:
        return "has each line in quotes, as one cell: remove the quotes around the lines"
    if _known_in(header):
        return None
    start, rest = trimmed(line)[:1], trimmed(line)[1:].lstrip()
    if start in ("<", "{") or (start == "[" and rest[:1] in ("", "{")):
        return f"looks like {'HTML or XML' if start == '<' else 'JSON'}: save it as CSV (UTF-8)"
    if start == "[" or (start == "#" and "[[" in line):
        return "looks like TOML: give it a name that ends in .toml"
    return f"has no header: the first line must name the columns {', '.join(COLUMNS)}"


def _known_in(names: Iterable[str]) -> int:
    return len({_column_name(name) for name in names} & set(COLUMNS))


# TOML


def load_toml(text: str) -> dict[str, object] | ManifestFault:
    """Return the content of a manifest in TOML, or why it is not TOML."""
    try:
        return cast("dict[str, object]", tomllib.loads(text))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        found = _TOML_LINE.search(str(error))
        line = int(found[1]) if found else None
        return ManifestFault(line=line, reason=f"is not TOML ({error})")


def _parse_toml(text: str) -> ParsedManifest:
    content = load_toml(text)
    if isinstance(content, ManifestFault):
        return ParsedManifest(faults=(content,))
    defaults, tables = _table(content.pop("defaults", {})), _tables(content.pop("company", []))
    found_faults = [
        ManifestFault(field=name, reason="is unknown: there are [[company]] and [defaults]")
        for name in content
    ]
    if defaults is None:
        found_faults.append(ManifestFault(field="defaults", reason="must be a table: [defaults]"))
    if tables is None:
        found_faults.append(ManifestFault(field="company", reason="must be tables: [[company]]"))
    lines = _company_lines(text, len(tables or ()))
    companies = list(zip(lines, tables or (), strict=True))
    for line, table in companies:
        found_faults += _wrong_types(line, table)
    for line, table in companies:
        found_faults += [
            ManifestFault(line=line, field=name, reason="is missing") for name in _missing(table)
        ]
    if not companies and not found_faults:
        found_faults.append(ManifestFault(reason="lists no customers: there is no [[company]]"))
    complete = [(line, table) for line, table in companies if not _missing(table)]
    ignored = {name: None for _, table in companies for name in table if name not in (*COLUMNS, _CONNECTION)}
    return ParsedManifest(
        rows=tuple((line, _cells(table)) for line, table in complete),
        connections={
            index: connection
            for index, (_, table) in enumerate(complete)
            if (connection := _table(table.get(_CONNECTION))) is not None
        },
        ignored=tuple(ignored),
        defaults=defaults or {},
        faults=tuple(found_faults),
    )


def _missing(table: Mapping[str, object]) -> list[str]:
    """Return the required values that a customer lacks; one with a connection needs no files.

    The source may be absent, unless another name looks like a misspelled one.
    """
    optional = {"files"} if _CONNECTION in table else set[str]()
    if not difflib.get_close_matches("source", table.keys() - {*COLUMNS, _CONNECTION}):
        optional.add("source")
    return [name for name in REQUIRED if name not in table and name not in optional]


def _list(value: object) -> list[object] | None:
    return cast("list[object]", value) if isinstance(value, list) else None


def _table(value: object) -> dict[str, object] | None:
    return cast("dict[str, object]", value) if isinstance(value, dict) else None


def _tables(value: object) -> list[dict[str, object]] | None:
    tables = [_table(each) for each in _list(value) or [None]] if value != [] else []
    known = [table for table in tables if table is not None]
    return known if len(known) == len(tables) else None


def _company_lines(text: str, count: int) -> list[int]:
    """Return the line on which each company begins; the TOML parser does not report it."""
    found = [text.count("\n", 0, match.start()) + 1 for match in _COMPANY_HEADER.finditer(text)]
    return found if len(found) == count else [1] * count  # a header inside a string of several lines


def _cells(table: Mapping[str, object]) -> Cells:
    return {
        name: value if isinstance(value, str) else [str(each) for each in _list(value) or ()]
        for name, value in table.items()
    }


def _wrong_types(line: int, table: Mapping[str, object]) -> Iterator[ManifestFault]:
    for name, value in table.items():
        if name == _CONNECTION:
            if not isinstance(value, dict):
                yield ManifestFault(line=line, field=name, reason="must be a table: [company.connection]")
            continue
        lists = name in ("templates", "files")
        if not isinstance(value, str) and not (lists and _are_strings(value)):
            reason = f"must be {'a list of strings' if lists else 'a string'}: {value!r}"
            yield ManifestFault(line=line, field=name, reason=reason)


def _are_strings(value: object) -> bool:
    values = _list(value)
    return values is not None and all(isinstance(each, str) for each in values)
