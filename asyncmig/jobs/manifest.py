"""Read the list of customers to migrate: a CSV file with a line a customer, or TOML with a table for each.

    external_id,name,source,templates,files
    acme-001,Acme Inc,HubSpot,Contacts;Deals,acme/*.csv

`source` and `templates` are names or ids, `files` paths or globs below the manifest's own folder; both lists are
joined by `;`. Empty `templates` stand for all. Every fault of the whole file is found before any is reported.
For TOML see `_manifest_toml`.
"""

import csv
import difflib
import glob
import io
import re
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar, final

from asyncmig._core.arguments import checked_call, flaw_of
from asyncmig._core.invisible import MARK, trimmed
from asyncmig.companies.lookup import named
from asyncmig.companies.wire import Source, Template
from asyncmig.customers.files import size_of
from asyncmig.customers.paths import check_below
from asyncmig.customers.spec import Spec, check_external_id
from asyncmig.errors import InvalidInput, is_temporary
from asyncmig.jobs.manifest_hints import LARGEST, column_name, header_fault, not_a_manifest, path_hint
from asyncmig.jobs.manifest_toml import Cells
from asyncmig.jobs.manifest_toml import parse as parse_toml
from asyncmig.jobs.outputs import Outputs, OwnFiles

__all__ = ["Customer", "Fault", "InvalidManifest", "Manifest", "read_defaults", "read_manifest"]

_Named = TypeVar("_Named", Source, Template)
_REQUIRED = ("external_id", "name", "source", "files")
_COLUMNS = (*_REQUIRED, "templates")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_NOTHING: tuple[int, list[str]] = (1, [])
_SEP_COMMA = (["sep=", ""], ["sep=,"])
"""A first line by which Excel says that columns are separated by commas."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing that is wrong. `line`: of the file, from 1; None if it concerns the whole."""

    line: int | None
    field: str
    reason: str

    def __str__(self) -> str:
        where = "" if self.line is None else f"line {self.line}: "
        return f"{where}{self.field}: {self.reason}"


class InvalidManifest(InvalidInput):
    """The manifest has faults: all of them are in `faults`. No request was spent on it."""

    def __init__(self, path: str, faults: tuple[Fault, ...]) -> None:
        super().__init__("manifest", path, f"{len(faults)} fault{'s' * (len(faults) != 1)}")
        self.args: tuple[object, ...] = (path, faults)
        self.path = path
        self.faults = faults

    def __str__(self) -> str:
        return "\n".join(f"{self.path}: {fault}" for fault in self.faults)


@dataclass(frozen=True, slots=True, kw_only=True)
class Customer:
    """One line of the manifest; `source` and `templates` as they were written, names or ids."""

    line: int
    external_id: str
    name: str
    source: str
    templates: tuple[str, ...]
    """Empty: all templates."""
    files: tuple[Path, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The customers to migrate. `ignored`: columns of the file that mean nothing here."""

    path: Path
    customers: tuple[Customer, ...]
    ignored: tuple[str, ...] = ()
    defaults: Mapping[str, object] = field(default_factory=dict[str, object])
    """What the file asks for besides: the `[defaults]` of TOML, as they stand there."""
    excluded: Mapping[Path, str] = field(default_factory=dict[Path, str])
    """Files that a glob matches and that are no inputs, each with what it is: "the manifest", "a report", ..."""
    protected: tuple[Path, ...] = ()
    """Those of `excluded` that no sheet may replace: they lie where a customer's sheets will come to for the first
    time, and so are nothing that was delivered."""

    @property
    def names_templates(self) -> bool:
        """Whether any customer asks for templates by name or id."""
        return any(customer.templates for customer in self.customers)

    def specs(
        self, sources: Sequence[Source] | None, templates: Sequence[Template] | None
    ) -> tuple[Spec, ...]:
        """Return what to migrate, with the ids of sources and templates in place of their names.

        None for a catalogue that the server does not offer: then ids are taken as they are. Raises
        `InvalidManifest` with every name that is not known, each once.
        """
        names = _Names(sources, templates)
        specs = tuple(names.spec(customer) for customer in self.customers)
        if names.faults:
            raise InvalidManifest(str(self.path), names.faults)
        return specs


@checked_call
def read_manifest(
    path: Path | str,
    *,
    begun: Container[str] = (),
    outputs: Outputs | None = None,
    root: Path | str | None = None,
) -> Manifest:
    """Read and check a manifest and the files that it names; UTF-8, with or without a BOM.

    `begun`: customers whose import has begun, by external id: it goes on without files that are gone since.
    `outputs`: where the run writes. Globs leave out the manifest, journals, reports and delivered sheets; to name one
    of them as an input is a fault. `root`: a folder that all inputs must lie below, symbolic links followed.

    Raises `InvalidManifest` with all faults at once: columns that are missing, ids that are malformed or stand on
    two lines, files that are missing or empty, globs that match nothing, bytes that are no CSV.
    """
    path = Path(path)
    if root is not None and not Path(root).is_dir():
        raise InvalidInput("root", str(root), "is not a folder")
    reader = _Reader(path, begun, outputs or Outputs(), None if root is None else Path(root))
    manifest = reader.read()
    if reader.faults:
        raise InvalidManifest(str(path), tuple(sorted(reader.faults, key=lambda fault: fault.line or 0)))
    return manifest


def read_defaults(path: Path) -> Mapping[str, object]:
    """Return the `[defaults]` of a manifest, none where it has none or cannot be read: `read_manifest` says why."""
    if path.suffix.casefold() != ".toml":
        return {}
    return parse_toml(_Reader(path).text() or "").defaults


class _NotAnInput(InvalidInput):
    """A file is named that a run writes, or the manifest, or one outside of the root."""


@final
class _Reader:
    """One pass over one file, which keeps the faults that it meets."""

    __slots__ = (
        "_begun",
        "_excluded",
        "_folder",
        "_outputs",
        "_path",
        "_protected",
        "_root",
        "_seen",
        "faults",
    )

    def __init__(
        self,
        path: Path,
        begun: Container[str] = (),
        outputs: Outputs = Outputs(),  # noqa: B008 - it is frozen
        root: Path | None = None,
    ) -> None:
        self._path, self._folder, self._root = path, path.parent, root
        self._begun, self._outputs = begun, outputs
        self._seen: dict[str, int] = {}
        self._excluded: dict[Path, str] = {}
        self._protected: list[Path] = []
        self.faults: list[Fault] = []

    def read(self) -> Manifest:
        text = self.text()
        return self._toml(text or "") if self._path.suffix.casefold() == ".toml" else self._csv(text)

    def _toml(self, text: str) -> Manifest:
        content = parse_toml(text)
        for fault in content.faults:
            self._fault(*fault)
        complete: list[tuple[int, Cells]] = []
        for line, cells in content.companies:
            for name in _REQUIRED:
                if name not in cells:
                    self._fault(line, name, "is missing")
            if cells.keys() >= set(_REQUIRED):
                complete.append((line, cells))
        customers = self._customers(complete)
        if not content.companies and not self.faults:
            self._fault(None, "manifest", "lists no customers: there is no [[company]]")
        names = {name: None for _, cells in content.companies for name in cells if name not in _COLUMNS}
        return Manifest(
            path=self._path,
            customers=customers,
            ignored=tuple(names),
            defaults=content.defaults,
            excluded=self._excluded,
            protected=tuple(self._protected),
        )

    def _csv(self, text: str | None) -> Manifest:
        records = self._records(text) if text is not None else iter(())
        header_line, header = next(records, _NOTHING)
        if header and [cell.strip().casefold() for cell in header] in _SEP_COMMA:
            header_line, header = next(records, _NOTHING)
        columns = self._columns(header_line, header) if not self.faults else None
        customers = self._customers([self._cells(*record, columns) for record in records] if columns else [])
        if columns and not customers and not self.faults:
            self._fault(None, "manifest", "lists no customers, only a header")
        return Manifest(
            path=self._path,
            customers=customers,
            ignored=tuple(name for name in columns or () if name and name not in _COLUMNS),
            excluded=self._excluded,
            protected=tuple(self._protected),
        )

    def _fault(self, line: int | None, field: str, reason: str) -> None:
        self.faults.append(Fault(line=line, field=field, reason=reason))

    def text(self) -> str | None:
        """Return what the file holds, or None if it cannot be a manifest."""
        try:
            with self._path.open("rb") as file:
                content = file.read(LARGEST + 1)
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and is_temporary(error):
                raise
            self._fault(None, "manifest", getattr(error, "strerror", None) or "is not a path")
            return None
        if reason := not_a_manifest(content):
            self._fault(None, "manifest", reason)
            return None
        try:
            text = content.decode().lstrip(MARK)  # two of them where files were joined
        except UnicodeDecodeError as error:
            line = _line_of(content, error.start)
            self._fault(
                line, "manifest", f"is not UTF-8 (byte 0x{content[error.start]:02x}): save it as UTF-8"
            )
            return None
        if not trimmed(text):
            self._fault(None, "manifest", "is empty")
            return None
        return text

    def _records(self, text: str) -> Iterator[tuple[int, list[str]]]:
        """Yield each record that is not blank, with the line on which it begins."""
        rows = csv.reader(io.StringIO(text, newline=""), strict=True)
        while True:
            line = rows.line_num + 1
            try:
                row = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                self._fault(line, "manifest", f"is not CSV from here on ({error})")
                return
            if any(cell.strip() for cell in row):
                yield line, row

    def _columns(self, line: int, header: list[str]) -> list[str] | None:
        columns = [column_name(name, _COLUMNS) for name in header]
        missing = [name for name in _REQUIRED if name not in columns]
        if missing and (reason := header_fault(header, _COLUMNS)):
            self._fault(line, "manifest", reason)
            return None
        for name in missing:
            near = difflib.get_close_matches(name, set(columns).difference(_COLUMNS), n=1)
            hint = f"; is {near[0]!r} meant for it?" if near else ""
            self._fault(line, name, f"this column is missing{hint}")
        doubled = sorted({name for name in columns if name in _COLUMNS and columns.count(name) > 1})
        for name in doubled:
            self._fault(line, name, "this column is there twice")
        return None if missing or doubled else columns

    def _cells(self, line: int, row: list[str], columns: list[str]) -> tuple[int, Cells]:
        if len(row) > len(columns) and any(cell.strip() for cell in row[len(columns) :]):
            self._fault(line, "manifest", f"has {len(row)} cells where the header has {len(columns)}")
        return line, dict(zip(columns, row, strict=False))

    def _customers(self, rows: Sequence[tuple[int, Cells]]) -> tuple[Customer, ...]:
        """Return the customers of all rows: where each one's sheets go decides what is no input of the others."""
        external_ids = [_text(cells, "external_id") for _, cells in rows]
        own = OwnFiles(self._path, self._outputs, external_ids)
        return tuple([self._customer(line, cells, own) for line, cells in rows])

    def _customer(self, line: int, cells: Cells, own: OwnFiles) -> Customer:
        name, source, external_id = (_text(cells, field) for field in ("name", "source", "external_id"))
        for field_name, text in (("name", name), ("source", source)):
            if flaw := flaw_of(text):
                self._fault(line, field_name, f"{text!r} {flaw}" if text else flaw)
        external_id = self._external_id(line, external_id)
        return Customer(
            line=line,
            external_id=external_id,
            name=name,
            source=source,
            templates=_parts(cells.get("templates", "")),
            files=self._files(line, _parts(cells.get("files", "")), own, begun=external_id in self._begun),
        )

    def _external_id(self, line: int, external_id: str) -> str:
        try:
            check_external_id(external_id)
        except InvalidInput as error:
            self._fault(line, "external_id", f"{external_id!r} {error.reason}")
            return external_id
        first = self._seen.setdefault(external_id, line)
        if first != line:
            self._fault(line, "external_id", f"{external_id!r} stands on line {first} already")
        return external_id

    def _files(self, line: int, parts: Sequence[str], own: OwnFiles, *, begun: bool) -> tuple[Path, ...]:
        if not parts:
            self._fault(line, "files", "is empty: name at least one file")
        found: dict[Path, None] = {}
        for part in parts:
            try:
                found.update(dict.fromkeys(self._expand(part, own)))
            except InvalidInput as error:
                if begun and "\0" not in part and not isinstance(error, _NotAnInput):
                    found[self._folder / part] = None  # the migration says that it is gone
                else:
                    self._fault(line, "files", f"{error.value!r}: {error.reason}{path_hint(part)}")
        return tuple(found)

    def _expand(self, part: str, own: OwnFiles) -> list[Path]:
        """Return the inputs that a path or a glob names; a file that is really called `a[1].csv` is that file."""
        if "\0" in part:
            raise InvalidInput("files", part, "is not a path")
        path = self._folder / part
        if not glob.has_magic(part) or path.is_file():
            self._check_root(part, [path])
            size_of(path)
            if what := own.kind_of(path):
                raise _NotAnInput("files", part, f"is {what}, and cannot be an input")
            return [path]
        matches = sorted(glob.glob(part, root_dir=self._folder, recursive=True))
        found = {file: own.kind_of(file) for file in map(self._folder.joinpath, matches) if file.is_file()}
        excluded = {file: what for file, what in found.items() if what is not None}
        files = [file for file in found if file not in excluded]
        if not files:
            but = (
                f", but for {next(iter(excluded))}, which is {next(iter(excluded.values()))}"
                if excluded
                else ""
            )
            raise InvalidInput("files", part, f"matches no file{but}")
        self._check_root(part, files)
        for file in files:
            size_of(file)
        for file in excluded.keys() - self._excluded.keys():
            owner = own.owner_of(file)
            if owner is not None and owner not in self._begun:
                self._protected.append(file)
        self._excluded.update(excluded)
        return files

    def _check_root(self, part: str, files: Sequence[Path]) -> None:
        if self._root is None:
            return
        try:
            check_below(self._root, files)
        except InvalidInput as error:
            raise _NotAnInput("files", part, error.reason) from error


@final
class _Names:
    """Puts ids in the place of names, and remembers each one that it cannot."""

    __slots__ = ("_sources", "_templates", "_unknown")

    def __init__(self, sources: Sequence[Source] | None, templates: Sequence[Template] | None) -> None:
        self._sources = _id_as_it_is if sources is None else partial(_find, sources)
        self._templates = _id_as_it_is if templates is None else partial(_find, templates)
        self._unknown: dict[tuple[str, str], tuple[str, list[int]]] = {}

    def spec(self, customer: Customer) -> Spec:
        source = self._id(customer.line, "source", self._sources, customer.source)
        wanted = [self._id(customer.line, "templates", self._templates, name) for name in customer.templates]
        return Spec(
            external_id=customer.external_id,
            name=customer.name,
            source=source,
            template_ids=tuple(dict.fromkeys(wanted)) or None,
            files=customer.files,
        )

    def _id(self, line: int, field: str, look_up: Callable[[str, str], str], name: str) -> str:
        try:
            return look_up(field, name)
        except InvalidInput as error:
            self._unknown.setdefault((field, name), (error.reason, []))[1].append(line)
            return name

    @property
    def faults(self) -> tuple[Fault, ...]:
        return tuple(
            Fault(line=lines[0], field=field, reason=f"{name!r} {reason}{_also(lines[1:])}")
            for (field, name), (reason, lines) in self._unknown.items()
        )


def _find(among: Sequence[_Named], field: str, name: str) -> str:
    return named(field, name, among).id


def _id_as_it_is(field: str, name: str) -> str:
    if _UUID.fullmatch(name):
        return name
    raise InvalidInput(field, name, "is no id, and this server does not list names: write the id instead")


def _also(lines: Sequence[int]) -> str:
    if not lines:
        return ""
    more = f" and {len(lines) - 5} more" if len(lines) > 5 else ""
    return f" (also on line {', '.join(map(str, lines[:5]))}{more})"


def _text(cells: Cells, name: str) -> str:
    value = cells.get(name, "")
    return trimmed(value) if isinstance(value, str) else ""


def _parts(cell: str | Sequence[str]) -> tuple[str, ...]:
    """Return the parts of a cell that joins them by `;`, or of a list, whose parts may hold a `;`."""
    parts = cell.split(";") if isinstance(cell, str) else cell
    return tuple(name for part in parts if (name := trimmed(part)))


def _line_of(content: bytes, position: int) -> int:
    return content.count(b"\n", 0, position) + 1
