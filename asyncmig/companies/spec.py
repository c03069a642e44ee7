"""What one customer's migration is made from, and the record of how far it came."""

import hashlib
from collections import Counter
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import cast

import msgspec
from msgspec.structs import force_setattr

from asyncmig._core.arguments import checked_text
from asyncmig._io.paths import check_below
from asyncmig._io.threads import in_thread
from asyncmig.companies.catalog import check_external_id
from asyncmig.companies.connections import Connections, checked_connections
from asyncmig.companies.content import raise_unreadable
from asyncmig.companies.failures import LastFailure
from asyncmig.companies.lookup import checked_templates
from asyncmig.companies.outcome import ExportMode, ExportSummary, Failed, Outcome
from asyncmig.companies.uploads import Uploaded, digest_of, size_of
from asyncmig.companies.wire import Sheet, Source, Template
from asyncmig.errors import InvalidInput
from asyncmig.preflight import Checked
from asyncmig.preflight import check as check_files

__all__ = [
    "CheckedSpec",
    "ExportStep",
    "FileInput",
    "Record",
    "Spec",
    "check_different",
    "checked_spec",
    "each_spec",
    "export_key",
    "failed",
    "import_key",
    "read_inputs",
    "read_record",
]

_VERSION = 1
_UNREADABLE = 0


class Spec(msgspec.Struct, frozen=True, kw_only=True):
    """One customer: who, from which source, into which templates, and the files.

    `external_id` is your own id of the customer, and the one thing by which a migration is found again.
    """

    external_id: str
    name: str
    source: str
    """The source's id; a `Source` is taken as well."""
    files: tuple[Path, ...]
    """One path is taken as well, and texts are taken for paths."""
    template_ids: tuple[str, ...] | None = None
    """None: all templates. `Template`s are taken as well."""
    connections: Connections | None = None
    """Secrets of the destination: they go into the request that creates the company, and nowhere else. No repr and
    no journal has them; whoever encodes a spec has."""

    def __post_init__(self) -> None:
        """Take what is meant: one path or texts for `files`, a `Source`, `Template`s. `validate` judges the rest."""
        source, templates = cast(object, self.source), cast(object, self.template_ids)
        force_setattr(self, "files", _paths(self.files))
        if isinstance(source, Source):
            force_setattr(self, "source", source.id)
        if isinstance(templates, Sequence) and not isinstance(templates, str | bytes):
            ids = [
                each.id if isinstance(each, Template) else each
                for each in cast("Sequence[object]", templates)
            ]
            force_setattr(self, "template_ids", tuple(ids))

    def __repr__(self) -> str:
        return f"<Spec {self.external_id}: {self.name!r} from {self.source}, {len(self.files)} files>"

    def __rich_repr__(self) -> list[tuple[str, object]]:
        return [("external_id", self.external_id), ("name", self.name), ("source", self.source)]

    def check_values(self) -> None:
        """Raise `InvalidInput` for values that the API would refuse, without a look at the files."""
        check_external_id(self.external_id)
        checked_text("name", self.name)
        checked_text("source", self.source)
        if self.template_ids is not None:
            checked_templates(self.template_ids)
        if self.connections is not None:
            checked_connections(self.connections)
        if not self.files:
            raise InvalidInput("files", [], "there must be at least one")
        for path in cast("tuple[object, ...]", self.files):
            if not isinstance(path, Path):
                raise InvalidInput("files", path, "is not a path")

    def validate(self, *, root: Path | str | None = None) -> int:
        """Return the bytes of the files together; raise `InvalidInput` for what the API would refuse.

        `root`: a folder that all files must lie below, also once symbolic links are followed.
        """
        self.check_values()
        if root is not None:
            check_below(Path(root), self.files)
        return sum(size_of(path) for path in self.files)

    async def check(self, templates: Sequence[Template] = (), *, head: int | None = None) -> Checked:
        """Read the files and return what may be wrong with them, by those of `templates` that this customer gets.

        Sends nothing. For `head`, the bounds, and what without templates or the extra `check` is not judged, see
        `asyncmig.preflight.check`. Raises `InvalidInput` for what the API would refuse.
        """
        self.validate()
        wanted = self.template_ids
        chosen = [each for each in templates if wanted is None or each.id in wanted]
        return await check_files(self.files, chosen, head=head)


CheckedSpec = tuple[Spec, InvalidInput | None]
"""A spec, and what is wrong with its values, if anything is."""


def checked_spec(given: object, root: Path | str | None = None) -> CheckedSpec:
    """Return a spec with what is wrong with its values; of what is not a spec, as much as can be told."""
    if not isinstance(given, Spec):
        error = InvalidInput("spec", given, "is not a Spec")
        known = [getattr(given, name, "") for name in ("external_id", "name")]
        return Spec(external_id=_shown(known[0]), name=_shown(known[1]), source="", files=()), error
    try:
        given.check_values()
        if root is not None:
            check_below(Path(root), given.files)
    except InvalidInput as error:
        return given, error
    return given, None


async def each_spec(specs: object) -> AsyncIterator[object]:
    """Yield from any iterable, also from an async one. Raises `InvalidInput` for what is neither."""
    shown: object = specs
    if isinstance(specs, AsyncIterable):
        async for spec in cast("AsyncIterable[object]", specs):
            yield spec
    elif isinstance(specs, Iterable) and not isinstance(specs, str | bytes | Mapping):
        for spec in cast("Iterable[object]", specs):
            yield spec
    else:
        raise InvalidInput("specs", shown, "must be an iterable of specs, or an async one")


def failed(spec: Spec, error: InvalidInput) -> Failed:
    """Return the outcome of a spec that cannot be migrated; nothing of it is in the journal."""
    return Failed(
        external_id=_shown(spec.external_id),
        name=_shown(spec.name),
        error=_shown(str(error)),
        step="checking",
    )


def _shown(value: object) -> str:
    """Return a value as text that UTF-8 can carry."""
    return str(value).encode(errors="replace").decode()


def _paths(files: object) -> tuple[Path, ...]:
    """Return one path, or several, as a tuple; what is not a path stays as it is, for `validate` to refuse."""
    one: object = files
    is_one = isinstance(files, str | PathLike) or not isinstance(files, Iterable)
    given = (one,) if is_one else cast("Iterable[object]", files)
    return tuple(cast(Path, Path(each) if isinstance(each, str) else each) for each in given)


def check_different(specs: Sequence[Spec]) -> None:
    """Raise `InvalidInput` for two specs of one customer: one of them would not be migrated."""
    for external_id, count in Counter(spec.external_id for spec in specs).items():
        if count > 1:
            reason = f"is the external id of {count} specs: give one spec with all files of the customer"
            raise InvalidInput("external_id", external_id, reason)


class FileInput(msgspec.Struct, frozen=True, kw_only=True):
    """A file as it was when its migration began."""

    path: str
    size: int
    sha256: str


class ExportStep(msgspec.Struct, frozen=True, kw_only=True):
    """One export to the destination: written before it is started, and after each change."""

    mode: ExportMode
    idempotency_key: str
    run_id: str | None = None
    started_at: float = 0.0
    """Wall-clock time at which the run was first known."""
    result: ExportSummary | None = None


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """How far one migration came: what the journal holds of it. Written before and after each change."""

    version: int = _VERSION
    external_id: str
    name: str
    source: str
    template_ids: tuple[str, ...] | None = None
    epoch: int = 0
    """Counts the imports of this company that were begun on purpose."""
    files: tuple[FileInput, ...] = ()
    creating: bool = False
    """The request that creates the company may have been sent, and its answer was not written down."""
    company_id: str | None = None
    sheets: tuple[Sheet, ...] = ()
    uploads: tuple[Uploaded, ...] = ()
    uploaded_at: float = 0.0
    """Wall-clock time of the first of `uploads`."""
    import_body: str | None = None
    """The exact body that starts the import; set before it is sent first."""
    run_id: str | None = None
    started_at: float = 0.0
    """Wall-clock time at which the run was first known."""
    adopted: bool = False
    """A person said which company it is: what was imported into it before must be looked at first."""
    foreign: bool = False
    """Rows may be there that this import has not brought (somebody else's, or of one that was rejected or canceled):
    its row counts say nothing about the whole."""
    retried: int = 0
    """How often an import or export that failed was begun again, since the files last changed."""
    exported_again: int = 0
    """How often the exports of the present import were begun again."""
    rejected: bool = False
    """We rejected what its import proposed, or were about to."""
    decided: str = ""
    """The mark of the park that was decided last, or was about to be: a read that lags may show it again."""
    decided_at: float = 0.0
    """Wall-clock time of that."""
    exports: tuple[ExportStep, ...] = ()
    last_failure: LastFailure | None = None
    """The last failed attempt that was told."""
    outcome: Outcome | None = None

    @property
    def begun(self) -> bool:
        """Whether its import may have begun."""
        return not self.is_readable or self.import_body is not None or self.run_id is not None

    @property
    def is_readable(self) -> bool:
        """Whether the journal's bytes could be decoded; if not, `outcome` says why; do not overwrite them."""
        return self.version != _UNREADABLE

    def changed_files(self, files: Iterable[FileInput]) -> list[str]:
        """Return the names of files whose content is not what it was, or that came or went."""
        before = {(Path(file.path).name, file.sha256) for file in self.files}
        return sorted({name for name, _ in before ^ {(Path(file.path).name, file.sha256) for file in files}})

    def relocated(self, files: Iterable[FileInput]) -> "Record":
        """Return it with the places where the same files are now; their order stays, for uploads go by it."""
        places = {(Path(file.path).name, file.sha256): file.path for file in files}
        return msgspec.structs.replace(
            self,
            files=tuple(
                msgspec.structs.replace(file, path=places[Path(file.path).name, file.sha256])
                for file in self.files
            ),
        )


class _Ids(msgspec.Struct, kw_only=True):
    """What is shown of a record that cannot be decoded as a whole."""

    name: str = ""
    company_id: str | None = None
    run_id: str | None = None


def read_record(external_id: str, state: bytes | None) -> Record:
    """Return the record that a journal holds for a customer; a new one if `state` is None.

    A state that this version cannot decode gives a stand-in that is not `is_readable`, and whose outcome is `Failed`
    with the reason.
    """
    if state is None:
        return Record(external_id=external_id, name="", source="")
    try:
        record = msgspec.json.decode(state, type=Record)
    except (ValueError, TypeError, RecursionError) as error:
        return _stand_in(external_id, state, str(error))
    if record.version != _VERSION:
        return _stand_in(external_id, state, f"record version {record.version}, this one knows {_VERSION}")
    return record


def _stand_in(external_id: str, state: bytes, reason: str) -> Record:
    try:
        ids = msgspec.json.decode(state, type=_Ids)
    except (ValueError, TypeError, RecursionError):
        ids = _Ids()
    outcome = Failed(
        external_id=external_id,
        name=ids.name,
        company_id=ids.company_id,
        run_id=ids.run_id,
        error=f"this version of asyncmig cannot read the customer's record in the journal ({reason}); the record "
        "was left as it is, and nothing was sent: use the version that wrote it, or restore a copy of the journal",
        step="checking",
    )
    return Record(
        version=_UNREADABLE,
        external_id=external_id,
        name=ids.name,
        source="",
        company_id=ids.company_id,
        run_id=ids.run_id,
        outcome=outcome,
    )


async def read_inputs(paths: Iterable[Path]) -> tuple[FileInput, ...]:
    """Return size and SHA-256 of each file. Raises `InvalidInput` for one that is missing or empty."""
    return tuple([await in_thread(_read_input, path) for path in paths])


def _read_input(path: Path) -> FileInput:
    size = size_of(path)
    try:
        digest = digest_of(path)
    except OSError as error:
        raise_unreadable(str(path), error)
    return FileInput(path=str(path), size=size, sha256=digest)


def import_key(record: Record) -> str:
    """Return the idempotency key of an import: the same for the same input, whichever process asks."""
    return _derived(record.external_id, "import", str(record.epoch), *(file.sha256 for file in record.files))


def export_key(record: Record, mode: ExportMode) -> str:
    """Return the idempotency key of an export: the same for the same import, also when the journal was lost."""
    return _derived(record.external_id, f"export {mode}", str(record.run_id), str(record.exported_again))


def _derived(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
