"""Read a manifest, the list of customers to migrate: a CSV file with a line per customer, or a TOML file.

    external_id,name,source,templates,files
    acme-001,Acme Inc,HubSpot,Contacts;Deals,acme/*.csv

`source` and `templates` are names or ids. `files` are paths or globs, relative to the folder of the manifest. `;`
separates the items of a list. Empty `templates` mean all templates. An empty `source` means none, where the API
generation allows it. All faults of the file are reported at once.
`manifest_formats` describes TOML.
"""

import os
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, cast, final

import msgspec

from asyncmig import generations
from asyncmig._core.arguments import checked_call, flaw_of
from asyncmig._core.invisible import trimmed
from asyncmig.customers.paths import FileId, file_id
from asyncmig.customers.spec import LiveSource, ResolvedSpec, Spec, check_external_id
from asyncmig.errors import InvalidInput
from asyncmig.generations import Generation
from asyncmig.jobs.manifest_files import FileFinder, NotAnInput, path_hint
from asyncmig.jobs.manifest_formats import (
    Cells,
    ManifestFault,
    ParsedManifest,
    load_toml,
    parse_manifest,
    read_text,
)
from asyncmig.jobs.outputs import Outputs, OwnFiles

__all__ = [
    "Customer",
    "InvalidManifest",
    "Manifest",
    "ManifestFault",
    "credentials_in",
    "read_defaults",
    "read_manifest",
]

_CONNECTION_FIELDS: Final = ("source_key", "config", "credentials", "profile_id")


class InvalidManifest(InvalidInput):
    """The manifest has faults; `faults` has all of them. No request was sent."""

    def __init__(self, path: str, faults: tuple[ManifestFault, ...]) -> None:
        super().__init__("manifest", path, f"{len(faults)} fault{'s' * (len(faults) != 1)}")
        self.args: tuple[object, ...] = (path, faults)
        self.path = path
        self.faults = faults

    def __str__(self) -> str:
        return "\n".join(f"{self.path}: {fault}" for fault in self.faults)


@dataclass(frozen=True, slots=True, kw_only=True)
class Customer:
    """One customer of a manifest. `source` and `templates` are names or ids as written."""

    line: int
    external_id: str
    name: str
    source: str
    templates: tuple[str, ...]
    """Empty: all templates."""
    files: tuple[Path, ...]
    connection: LiveSource | None = None
    """The live connection to the source, which TOML can describe; then `files` may be empty."""

    def spec(self) -> Spec:
        """Return the spec, with source and templates as written: the migration looks up their names."""
        return Spec(
            external_id=self.external_id,
            name=self.name,
            source=self.source,
            templates=self.templates or None,
            files=self.files,
            connection=self.connection,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The customers to migrate. `ignored`: columns that the manifest format does not define."""

    path: Path
    customers: tuple[Customer, ...]
    ignored: tuple[str, ...] = ()
    defaults: Mapping[str, object] = field(default_factory=dict[str, object])
    """The `[defaults]` of a TOML manifest as written."""
    excluded: Mapping[Path, str] = field(default_factory=dict[Path, str])
    """Files that a glob matches and that are not inputs, with the reason: "the manifest", "a report", ..."""
    protected: tuple[Path, ...] = ()
    """The files of `excluded` that no sheet may replace: they are in the output folder of a customer that has not
    begun, so they cannot be delivered sheets."""

    def specs(self) -> tuple[Spec, ...]:
        """Return the spec of each customer."""
        return tuple(customer.spec() for customer in self.customers)

    def check_names(self, resolved: Iterable[ResolvedSpec]) -> None:
        """Raise `InvalidManifest` for the faults of some of the customers, with each unknown name once."""
        lines = {customer.external_id: customer.line for customer in self.customers}
        found: dict[tuple[str, object], tuple[str, list[int]]] = {}
        for spec, faults in resolved:
            for fault in faults:
                _, where = found.setdefault((fault.field, fault.value), (fault.reason, []))
                where.append(lines[spec.external_id])
        if found:
            raise InvalidManifest(
                str(self.path),
                tuple(
                    ManifestFault(line=where[0], field=field, reason=f"{name!r} {reason}{_also(where[1:])}")
                    for (field, name), (reason, where) in found.items()
                ),
            )


@checked_call
def read_manifest(
    path: Path | str,
    *,
    begun: Container[str] = (),
    outputs: Outputs | None = None,
    root: Path | str | None = None,
    api: str = generations.DEFAULT,
) -> Manifest:
    """Read and check a manifest and the files that it names; UTF-8, with or without a byte order mark.

    `begun`: external ids of customers whose import has begun; they continue even if their files no longer exist.
    `outputs`: where the run writes. Globs leave out the manifest, journals, reports and delivered sheets; a path that
    names one of them is a fault. `root`: a folder that all inputs must lie below, after symbolic links are resolved.
    `api`: the API generation, which may refuse values.

    Raises `InvalidManifest` with all faults at once: missing columns, invalid or repeated external ids, missing or
    empty files, globs that match no file, bytes that are not CSV or TOML.
    """
    path = Path(path)
    if root is not None and not Path(root).is_dir():
        raise InvalidInput("root", str(root), "is not a folder")
    text = read_text(path)
    if isinstance(text, ManifestFault):
        raise InvalidManifest(str(path), (text,))
    parsed = parse_manifest(path, text)
    own = OwnFiles(path, outputs or Outputs(), [_text(cells, "external_id") for _, cells in parsed.rows])
    checker = _Checker(
        parsed,
        FileFinder(path.parent, own, None if root is None else Path(root), begun),
        begun,
        generations.find(api),
    )
    customers = tuple(
        [
            checker.customer(line, cells, parsed.connections.get(index))
            for index, (line, cells) in enumerate(parsed.rows)
        ]
    )
    if checker.faults:
        raise InvalidManifest(str(path), tuple(sorted(checker.faults, key=lambda fault: fault.line or 0)))
    return Manifest(
        path=path,
        customers=customers,
        ignored=parsed.ignored,
        defaults=parsed.defaults,
        excluded=checker.finder.excluded,
        protected=tuple(checker.finder.protected),
    )


def read_defaults(path: Path) -> Mapping[str, object]:
    """Return the `[defaults]` of a manifest; empty if it has none or does not exist.

    Raises `InvalidManifest` if its name ends in `.toml` and it cannot be parsed. The manifest may list no customers.
    """
    if path.suffix.casefold() != ".toml" or not path.exists():
        return {}
    text = read_text(path)
    content = text if isinstance(text, ManifestFault) else load_toml(text)
    if isinstance(content, ManifestFault):
        raise InvalidManifest(str(path), (content,))
    defaults = content.get("defaults")
    return cast("dict[str, object]", defaults) if isinstance(defaults, dict) else {}


@final
class _Checker:
    """Checks the values of each customer, and collects the faults."""

    __slots__ = ("_begun", "_generation", "_seen", "faults", "finder")

    def __init__(
        self, parsed: ParsedManifest, finder: FileFinder, begun: Container[str], generation: Generation
    ) -> None:
        self.finder, self._begun, self._generation = finder, begun, generation
        self.faults: list[ManifestFault] = list(parsed.faults)
        self._seen: dict[str, int] = {}

    def customer(self, line: int, cells: Cells, connection: Mapping[str, object] | None) -> Customer:
        name, source, external_id = (_text(cells, field) for field in ("name", "source", "external_id"))
        for field_name, text in (("name", name), ("source", source or "none")):
            if flaw := flaw_of(text):
                self._fault(line, field_name, f"{text!r} {flaw}" if text else flaw)
        self._check_external_id(line, external_id)
        begun, files = external_id in self._begun, _parts(cells.get("files", ""))
        if not files and connection is None:
            self._fault(line, "files", "is empty: name at least one file")
        customer = Customer(
            line=line,
            external_id=external_id,
            name=name,
            source=source,
            templates=_parts(cells.get("templates", "")),
            files=self._files(line, files, begun=begun),
            connection=None if connection is None else self._connection(line, connection),
        )
        try:
            self._generation.check(customer.spec())
        except InvalidInput as error:
            self._fault(line, error.field, f"{error.value!r} {error.reason}" if error.value else error.reason)
        return customer

    def _fault(self, line: int, field: str, reason: str) -> None:
        self.faults.append(ManifestFault(line=line, field=field, reason=reason))

    def _check_external_id(self, line: int, external_id: str) -> None:
        try:
            check_external_id(external_id)
        except InvalidInput as error:
            self._fault(line, "external_id", f"{external_id!r} {error.reason}")
            return
        first = self._seen.setdefault(external_id, line)
        if first != line:
            self._fault(line, "external_id", f"{external_id!r} is already on line {first}")

    def _connection(self, line: int, table: Mapping[str, object]) -> LiveSource | None:
        connection = _read_connection(table)
        if isinstance(connection, LiveSource):
            return connection
        for fault in connection:
            self._fault(line, fault.field, f"{fault.value!r} {fault.reason}" if fault.value else fault.reason)
        return None

    def _files(self, line: int, parts: Sequence[str], *, begun: bool) -> tuple[Path, ...]:
        """Return the input files. A file that is named twice, also by links, is imported once."""
        found: dict[FileId | Path, Path] = {}
        for part in parts:
            try:
                for path in self.finder.find(part):
                    found.setdefault(file_id(path) or path, path)
            except InvalidInput as error:
                if begun and "\0" not in part and not isinstance(error, NotAnInput):
                    path = self.finder.path_of(part)
                    found[path] = path  # the migration reports that it is missing
                else:
                    self._fault(line, "files", f"{error.value!r}: {error.reason}{path_hint(part)}")
        return tuple(found.values())


def _also(lines: Sequence[int]) -> str:
    if not lines:
        return ""
    more = f" and {len(lines) - 5} more" if len(lines) > 5 else ""
    return f" (also on line {', '.join(map(str, lines[:5]))}{more})"


def _text(cells: Cells, name: str) -> str:
    value = cells.get(name, "")
    return trimmed(value) if isinstance(value, str) else ""


def _parts(cell: str | Sequence[str]) -> tuple[str, ...]:
    """Return the items of a CSV cell, which `;` separates, or of a TOML list, whose items may contain `;`."""
    parts = cell.split(";") if isinstance(cell, str) else cell
    return tuple(name for part in parts if (name := trimmed(part)))


# Live connections


def _read_connection(table: Mapping[str, object]) -> LiveSource | list[InvalidInput]:
    """Return a connection, or all that is wrong with it. No error contains the value of an environment variable."""
    if faults := list(_connection_faults(table)):
        return faults
    variable = cast("str | None", table.get("credentials"))
    try:
        return LiveSource(
            source_key=cast(str, table["source_key"]),
            config=cast("Mapping[str, object]", table.get("config", {})),
            credentials={} if variable is None else _credentials(variable),
            profile_id=cast("str | None", table.get("profile_id")),
        )
    except InvalidInput as error:
        return [InvalidInput(f"connection.{error.field}", error.value, error.reason)]


def _connection_faults(table: Mapping[str, object]) -> Iterator[InvalidInput]:
    for name, value in table.items():
        field = f"connection.{name}"
        if name not in _CONNECTION_FIELDS:  # the value may be a secret
            yield InvalidInput(field, "***", f"is unknown; there are {', '.join(_CONNECTION_FIELDS)}")
        elif name == "config":
            if not isinstance(value, dict):
                yield InvalidInput(field, value, "must be a table")
        elif name == "credentials" and not isinstance(value, str):
            yield InvalidInput(
                field, "***", "must be the name of an environment variable, not the credentials"
            )
        elif not isinstance(value, str):
            yield InvalidInput(field, value, "must be a string")
    if "source_key" not in table:
        yield InvalidInput("connection.source_key", None, "is missing")


def credentials_in(variable: str, *, field: str, only: str | None = None) -> dict[str, object]:
    """Return the credentials in an environment variable: a JSON object, or the text of the field `only`.

    Raises `InvalidInput` about `field` that shows no value.
    """
    text = os.environ.get(variable, "")
    if not text.strip():
        raise InvalidInput(field, variable, "this environment variable is not set")
    if only is not None and not text.lstrip().startswith("{"):
        return {only: text}
    try:
        content = msgspec.json.decode(text, type=dict[str, object])
    except (ValueError, RecursionError):
        reason = 'this environment variable must hold a JSON object, such as {"token": "..."}'
        raise InvalidInput(field, variable, reason) from None
    if not content:
        raise InvalidInput(field, variable, "this environment variable holds no field")
    return content


def _credentials(variable: str) -> dict[str, object]:
    if not variable.isidentifier():
        reason = "must be the name of an environment variable, not the credentials"
        raise InvalidInput("credentials", "***", reason)
    return credentials_in(variable, field="credentials")
