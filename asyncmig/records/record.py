"""The common part of the journal records of all API generations: customer, input files, last outcome."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Self, TypeVar

import msgspec

from asyncmig._io.threads import in_thread
from asyncmig.customers.failures import LastFailure
from asyncmig.customers.files import FileInput, raise_unreadable, size_of
from asyncmig.customers.outcome import Failed, Outcome
from asyncmig.customers.paths import entries, file_id
from asyncmig.errors import InvalidInput
from asyncmig.transfers.uploads import digest_of

__all__ = ["BaseRecord", "check_apart", "decoded_record", "read_inputs", "unreadable_outcome"]


class BaseRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of every generation's record."""

    external_id: str
    name: str
    files: tuple[FileInput, ...] = ()
    """The input files, as they were when the migration began."""
    last_failure: LastFailure | None = None
    """The last failed attempt that was reported."""
    outcome: Outcome | None = None
    """The outcome of the last call of `migrate`; None while a call runs."""

    @property
    def ids(self) -> Mapping[str, str]:
        """The server's ids that are known, by kind."""
        raise NotImplementedError

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


R = TypeVar("R", bound=BaseRecord)


class _RecordTag(msgspec.Struct, kw_only=True):
    version: int = 1
    api: str = "companies"


def decoded_record(state: bytes, kind: type[R], *, api: str, version: int, stand_in: Callable[[str], R]) -> R:
    """Return the record in a journal state; `stand_in(reason)` for a state that this version cannot use."""
    try:
        tag, record = msgspec.json.decode(state, type=_RecordTag), msgspec.json.decode(state, type=kind)
    except (ValueError, TypeError, RecursionError) as error:
        return stand_in(str(error))
    if tag.api != api:
        return stand_in(f"it belongs to the API generation {tag.api!r}, not to {api!r}")
    if tag.version != version:
        return stand_in(f"record version {tag.version}, this one knows {version}")
    return record


def unreadable_outcome(external_id: str, name: str, ids: Mapping[str, str], reason: str) -> Failed:
    """Return the outcome of a customer whose record cannot be used."""
    return Failed(
        external_id=external_id,
        name=name,
        ids=ids,
        error=f"this version of asyncmig cannot read the customer's record in the journal ({reason}); the record "
        "was left as it is, and nothing was sent: use the version that wrote it, or restore a copy of the journal",
        step="checking",
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
