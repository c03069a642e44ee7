"""The spec of a customer: everything that its migration needs."""

import re
from collections import Counter
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import ClassVar, NamedTuple, Protocol, cast

import msgspec
from msgspec.structs import force_setattr

from asyncmig._core.arguments import check_fields, checked_text, flaw_of, plain_text
from asyncmig._core.secrets import HidesSecrets
from asyncmig.customers.catalog import CatalogueItem
from asyncmig.customers.files import size_of
from asyncmig.customers.outcome import Failed
from asyncmig.customers.paths import check_below
from asyncmig.errors import InvalidInput

__all__ = [
    "CheckedSpec",
    "Connections",
    "HasNames",
    "LiveSource",
    "ResolvedSpec",
    "Spec",
    "check_different",
    "check_external_id",
    "checked_spec",
    "checked_templates",
    "each_spec",
    "failed",
]


Connections = Mapping[str, object]
"""Secrets by kind, as the API generation defines them: `{"destination": Destination(...)}` in "companies"."""
_EXTERNAL_ID = re.compile(r"[A-Za-z0-9_-]{1,255}")


def check_external_id(external_id: object) -> str:
    """Return `external_id`, or raise `InvalidInput` if the API would refuse it."""
    if not isinstance(external_id, str) or not _EXTERNAL_ID.fullmatch(external_id):
        raise InvalidInput("external_id", external_id, "must be 1 to 255 of A-Z, a-z, 0-9, _ and -")
    return cast(str, plain_text(external_id))


def checked_templates(templates: object, field: str = "template_ids") -> tuple[str, ...]:
    """Return the ids of templates, given as ids or `Template`s. Raises `InvalidInput` that names `field`."""
    shown: object = templates
    given = cast("Sequence[object]", templates) if isinstance(templates, Sequence) else ()
    if isinstance(templates, str | bytes) or not given:
        raise InvalidInput(field, shown, "must be a sequence of ids, and not empty")
    ids = [each.id if isinstance(each, CatalogueItem) else each for each in given]
    for each in ids:
        if flaw := flaw_of(each):
            raise InvalidInput(field, given, f"must be a sequence of ids: {each!r} {flaw}")
    return tuple(cast("list[str]", map(plain_text, ids)))


class LiveSource(HidesSecrets, frozen=True, kw_only=True):
    """A live connection to the system that the customer comes from, instead of files or in addition to them.

        LiveSource(source_key="salesforce", config={"region": "eu"}, credentials={"token": os.environ["CRM_TOKEN"]})

    Raises `InvalidInput` for a value of the wrong type. `credentials` are secrets: no repr, error, log, event or
    journal contains them.
    """

    _SHOWN: ClassVar = ("source_key", "profile_id", "config")

    source_key: str
    """The kind of the system, in lower case."""
    config: Mapping[str, object] = {}
    """Settings that are not secret."""
    credentials: Mapping[str, object] = {}
    profile_id: str | None = None
    """None: the default profile."""

    def __post_init__(self) -> None:
        check_fields(self)
        if checked_text("source_key", self.source_key) != self.source_key.lower():
            raise InvalidInput("source_key", self.source_key, "must be in lower case")


class Spec(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One customer: its id and name, its source, its templates and its files.

    `external_id` is your own id of the customer. A migration is found again by this id only.
    """

    external_id: str
    name: str
    source: str = ""
    """The source: its id, its name, or a `Source`. In the generation "companies" a UUID is an id; any other text is
    looked up when the migration of a new customer begins, with one request for all customers of a session. Empty: no
    source, which the generation "companies" refuses."""
    files: tuple[Path, ...]
    """Paths, as `Path` or text; a single path is also accepted."""
    templates: tuple[str, ...] | None = None
    """The templates: ids, names or `Template`s, looked up like the source; None: all templates of the account."""
    connections: Connections | None = None
    """Secrets of the system that the rows are exported to, for a generation that exports. No repr and no journal
    contains them, but an encoded spec does."""
    connection: LiveSource | None = None
    """A live connection to the customer's source, for a generation that can read one; then `files` may be empty. An
    encoded spec contains its credentials."""

    def __post_init__(self) -> None:
        """Convert a single path, paths as text, a `Source` and `Template`s. `validate` checks the values."""
        source, templates = cast(object, self.source), cast(object, self.templates)
        force_setattr(self, "external_id", plain_text(self.external_id))
        force_setattr(self, "name", plain_text(self.name))
        force_setattr(self, "source", source.id if isinstance(source, CatalogueItem) else plain_text(source))
        force_setattr(self, "files", _paths(self.files))
        if isinstance(templates, Sequence) and not isinstance(templates, str | bytes):
            ids = [
                each.id if isinstance(each, CatalogueItem) else plain_text(each)
                for each in cast("Sequence[object]", templates)
            ]
            force_setattr(self, "templates", tuple(ids))

    def __repr__(self) -> str:
        source = self.source or "no source"
        return f"<Spec {self.external_id}: {self.name!r} from {source}, {len(self.files)} files>"

    def __rich_repr__(self) -> list[tuple[str, object]]:
        return [("external_id", self.external_id), ("name", self.name), ("source", self.source)]

    def check_values(self) -> None:
        """Raise `InvalidInput` for values that the API would refuse. The files are not read."""
        check_external_id(self.external_id)
        checked_text("name", self.name)
        if self.source != "":
            checked_text("source", self.source)
        if self.templates is not None:
            checked_templates(self.templates, "templates")
        if self.connections is not None and not isinstance(cast(object, self.connections), Mapping):
            raise InvalidInput("connections", "***", "must be a mapping")
        if self.connection is not None and not isinstance(cast(object, self.connection), LiveSource):
            raise InvalidInput("connection", "***", "must be a LiveSource")
        if not self.files and self.connection is None:
            raise InvalidInput("files", [], "there must be at least one")
        seen = set[Path]()
        for path in self.files:
            if not isinstance(cast(object, path), Path):
                raise InvalidInput("files", path, "is not a path")
            if path in seen:
                raise InvalidInput("files", str(path), "is given twice: its rows would be imported twice")
            seen.add(path)

    def validate(self, *, root: Path | str | None = None) -> int:
        """Return the total size of the files in bytes. Raises `InvalidInput` for values that the API would refuse.

        `root`: a folder that must contain all files, after symbolic links are resolved.
        """
        self.check_values()
        if root is not None:
            check_below(Path(root), self.files)
        return sum(size_of(path) for path in self.files)


class HasNames(Protocol):
    """A customer with the names or ids of its source and templates: a `Spec`, or a line of a manifest."""

    @property
    def source(self) -> str: ...
    @property
    def templates(self) -> tuple[str, ...] | None: ...


class ResolvedSpec(NamedTuple):
    """A spec with the values that the API takes, and an error for each value that was not found."""

    spec: Spec
    faults: tuple[InvalidInput, ...]


CheckedSpec = tuple[Spec, InvalidInput | None]
"""A spec, and the error in its values; None if they are correct."""


def checked_spec(given: object, root: Path | str | None = None) -> CheckedSpec:
    """Return a spec and the error in its values. For another object, the spec has its id and name, if it has any."""
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
    """Yield the items of an iterable or async iterable. Raises `InvalidInput` for another object."""
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
    """Return the outcome of a spec with wrong values. It is not written to the journal."""
    return Failed(
        external_id=_shown(spec.external_id),
        name=_shown(spec.name),
        error=_shown(str(error)),
        step="checking",
    )


def _shown(value: object) -> str:
    """Return a value as text that can be encoded in UTF-8."""
    return str(value).encode(errors="replace").decode()


def _paths(files: object) -> tuple[Path, ...]:
    """Return one path, or several, as a tuple. Other objects stay as they are, and `validate` refuses them."""
    one: object = files
    is_one = isinstance(files, str | PathLike) or not isinstance(files, Iterable)
    given = (one,) if is_one else cast("Iterable[object]", files)
    return tuple(cast(Path, Path(each) if isinstance(each, str) else each) for each in given)


def check_different(specs: Sequence[Spec]) -> None:
    """Raise `InvalidInput` for two specs with the same external id: only one of them would be migrated."""
    for external_id, count in Counter(spec.external_id for spec in specs).items():
        if count > 1:
            reason = f"is the external id of {count} specs: give one spec with all files of the customer"
            raise InvalidInput("external_id", external_id, reason)
