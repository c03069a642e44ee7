"""The part of a journal record that all API generations have in common: customer, input files, last outcome."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Self, TypeGuard

import msgspec

from asyncmig._core.endpoint import Endpoint
from asyncmig._io.threads import in_thread
from asyncmig.customers.files import FileInput, raise_unreadable, size_of
from asyncmig.customers.outcome import Delivered, Downloaded, Outcome, RowFilter
from asyncmig.customers.paths import entries, file_id
from asyncmig.customers.spec import Spec
from asyncmig.customers.status import (
    CustomerRecord,
    CustomerStatus,
    LastFailure,
    MigrationProgress,
    status_of_outcome,
    unreadable_outcome,
)
from asyncmig.errors import InvalidInput
from asyncmig.steps import Progress
from asyncmig.transfers.uploads import digest_of

__all__ = [
    "BaseRecord",
    "are_in",
    "check_apart",
    "customer_record",
    "is_delivered",
    "read_inputs",
]

_UNREADABLE = 0
"""As a `version`: a stand-in for a record that this version cannot read."""


class _RecordTag(msgspec.Struct, kw_only=True):
    version: int = 1
    api: str = "companies"


class BaseRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The fields that the records of all API generations have. A generation adds the state of its migration.

    Fields that have their default are not written to the journal.
    """

    API: ClassVar[str]
    """The API generation whose records these are."""
    VERSION: ClassVar[int] = 1
    """The version of the record's format. Records of another version are not read."""
    RESOURCE: ClassVar[str]
    """The kind of resource that a customer has on the server, such as `company`: `company_id` has its id."""
    DOWNLOAD: ClassVar[Endpoint]
    """The endpoint that the events of a repeated step name if the error names none."""
    PUT_BYTES: ClassVar[Endpoint]
    """The endpoint that uploads bytes. Each of its requests has a URL of its own."""

    version: int = 1
    api: str
    """The API generation that wrote the record."""
    external_id: str
    name: str
    source: str
    template_ids: tuple[str, ...] | None = None
    files: tuple[FileInput, ...] = ()
    """The input files, as they were when the migration began."""
    epoch: int = 0
    """The number of earlier runs that this customer's migration has given up."""
    retried: int = 0
    """How often a failed run was started again since the files last changed."""
    last_failure: LastFailure | None = None
    """The last failed attempt that was reported."""
    outcome: Outcome | None = None
    """The outcome of the last call of `migrate`; None while a call runs."""

    @classmethod
    def read(cls, external_id: str, state: bytes | None) -> Self:
        """Return the record that a journal holds for a customer; a new one if `state` is None.

        A state that this version cannot use gives a stand-in: it is not `is_readable`, and its outcome is `Failed`
        with the reason.
        """
        new = cls(api=cls.API, external_id=external_id, name="", source="")
        if state is None:
            return new
        try:
            tag, record = msgspec.json.decode(state, type=_RecordTag), msgspec.json.decode(state, type=cls)
        except (ValueError, TypeError, RecursionError) as error:
            reason = str(error)
        else:
            if (tag.api, tag.version) == (cls.API, cls.VERSION):
                return record
            reason = f"record version {tag.version}, this one knows {cls.VERSION}"
            if tag.api != cls.API:
                reason = f"it belongs to the API generation {tag.api!r}, not to {cls.API!r}"
        shown = {name for name in ("name", f"{cls.RESOURCE}_id", "run_id") if name in cls.__struct_fields__}
        try:
            known = msgspec.json.decode(state, type=dict[str, object])
        except (ValueError, TypeError, RecursionError):
            known = {}
        texts = {name: known[name] for name in shown if isinstance(known.get(name), str)}
        record = msgspec.structs.replace(new, version=_UNREADABLE, **texts)
        outcome = unreadable_outcome(external_id, reason, name=record.name, ids=record.ids)
        return msgspec.structs.replace(record, outcome=outcome)

    @property
    def is_readable(self) -> bool:
        """Whether the journal's bytes could be decoded. If not, `outcome` has the reason, and they must be kept."""
        return self.version != _UNREADABLE

    @property
    def ids(self) -> Mapping[str, str]:
        """The server's ids that are known, by kind."""
        raise NotImplementedError

    @property
    def has_started(self) -> bool:
        """Whether a run may have started, so that missing input files do not matter."""
        raise NotImplementedError

    @property
    def step(self) -> Progress:
        """The step that the migration has reached."""
        raise NotImplementedError

    @property
    def detail(self) -> str:
        """What the generation adds to the step, for people."""
        return ""

    @property
    def bytes_sent(self) -> Iterable[int]:
        """The size of each file that was uploaded."""
        raise NotImplementedError

    @property
    def sheet_names(self) -> Mapping[str, str]:
        """The names of the sheets, by id."""
        raise NotImplementedError

    @property
    def run_slot(self) -> str | None:
        """The id under which a run may hold a run slot; None if none is in progress."""
        return None

    def with_spec(self, spec: Spec) -> Self:
        """Return the record with the name, source and templates of `spec`."""
        return msgspec.structs.replace(
            self, name=spec.name, source=spec.source or "", template_ids=spec.templates
        )

    def changed_files(self, files: Iterable[FileInput]) -> list[str]:
        """Return the names of files that were added, removed or changed."""
        before = {(Path(file.path).name, file.sha256) for file in self.files}
        return sorted({name for name, _ in before ^ {(Path(file.path).name, file.sha256) for file in files}})

    def relocated(self, files: Iterable[FileInput]) -> Self:
        """Return the record with the present paths of the same files. Uploads refer to their order, so it stays."""
        places = {(Path(file.path).name, file.sha256): file.path for file in files}
        return msgspec.structs.replace(
            self,
            files=tuple(
                msgspec.structs.replace(file, path=places[Path(file.path).name, file.sha256])
                for file in self.files
            ),
        )


def customer_record(record: BaseRecord) -> CustomerRecord:
    """Return the part of a record that is independent of the API generation."""
    outcome = record.outcome
    if outcome is None:
        status = CustomerStatus(external_id=record.external_id, name=record.name)
    else:
        status = status_of_outcome(outcome)
    return CustomerRecord(
        status=msgspec.structs.replace(
            status,
            api=record.api,
            name=record.name,
            step=record.step,
            detail=record.detail,
            ids={**status.ids, **record.ids},
            last_failure=record.last_failure,
            progress=MigrationProgress.of_uploads(record.files, record.bytes_sent),
        ),
        outcome=outcome,
        is_readable=record.is_readable,
        has_started=record.has_started,
        source=record.source,
        templates=record.template_ids,
        files=record.files,
        run_slot=record.run_slot,
        sheets=record.sheet_names,
        details=record,
    )


def are_in(folder: Path, files: Iterable[Downloaded]) -> bool:
    """Return whether delivered files are in a folder now."""
    return all(path.parent == folder and path.exists() for path in (Path(file.path) for file in files))


def is_delivered(outcome: Outcome | None, folder: Path, row_filter: RowFilter) -> TypeGuard[Delivered]:
    """Return whether the sheets with these rows were delivered to a folder, and still are there."""
    return (
        isinstance(outcome, Delivered) and outcome.row_filter == row_filter and are_in(folder, outcome.files)
    )


async def read_inputs(
    paths: Sequence[Path], check: Callable[[], object] | None = None
) -> tuple[FileInput, ...]:
    """Return size and SHA-256 of each file. Raises `InvalidInput` for one that is missing or empty.

    `check`: called in a thread before the first file is read; it may raise.
    """
    if check is not None and not paths:
        await in_thread(check)
    return tuple([await in_thread(_read_input, path, None if n else check) for n, path in enumerate(paths)])


def _read_input(path: Path, check: Callable[[], object] | None) -> FileInput:
    if check is not None:
        check()
    size = size_of(path)
    try:
        digest = digest_of(path)
    except OSError as error:
        raise_unreadable(str(path), error)
    return FileInput(path=str(path), size=size, sha256=digest)


def check_apart(files: Iterable[Path], to: Path) -> None:
    """Raise `InvalidInput` for a file in the output folder: a sheet could replace it. Blocks."""
    folder = file_id(to)
    for path in files:
        if folder is not None and folder in [file_id(os.path.dirname(each)) for each in entries(path)]:
            reason = f"lies in {to}, where sheets are delivered: choose another folder"
            raise InvalidInput("files", str(path), reason)
