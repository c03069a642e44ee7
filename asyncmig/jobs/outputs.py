"""The files that a run of the command writes. They are never inputs, and they never replace an input."""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

import msgspec

from asyncmig.customers.files import customer_folder
from asyncmig.customers.paths import FolderLookup, file_id, is_same
from asyncmig.errors import InvalidInput

__all__ = ["Outputs", "OwnFiles", "check_folder", "check_replaceable"]

_SIDE_FILE: Final = re.compile(r"(?P<journal>.+?)(-(wal|shm|journal)|\.(recent|last)(\..+)?)")
"""Suffixes of the files beside a journal: files of SQLite, the send log, the settings of the last run."""
_CONTENT: Final[Mapping[str, re.Pattern[bytes]]] = {
    "a journal": re.compile(rb"SQLite format 3\0.{52}asmg", re.DOTALL),
    "a report in JSON": re.compile(rb'\s*\{\s*"schema"\s*:\s*\d+\s*,\s*"(companies|customers)"'),
    "a report in HTML": re.compile(rb"<!DOCTYPE html>.{0,400}<title>Migration report:", re.DOTALL),
    "a ledger": re.compile(rb'\{"type":"(request|verdict)"'),
}
"""The first bytes of files that asyncmig writes."""
_HEAD = 1024
_DELIVERED: Final = "where sheets are delivered: choose another place"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """The places where a run writes. `out`: the folder of `EXTERNAL_ID/SHEET.csv` and `report.json`."""

    out: Path | None = None
    journal: Path | None = None
    report: Path | None = None
    """The HTML report."""
    customers: frozenset[str] = frozenset()
    """External ids that have a folder below `out` and are not in the manifest."""
    delivered: tuple[Path, ...] = ()
    """Delivered sheets in other folders."""


@final
class OwnFiles:
    """Distinguishes the files of this run and of earlier runs from inputs."""

    __slots__ = ("_delivered", "_folders", "_journal", "_known", "_listed", "_manifest", "_owners", "_places")

    def __init__(self, manifest: Path, outputs: Outputs, external_ids: Iterable[str]) -> None:
        self._manifest, self._journal, out = manifest, outputs.journal, outputs.out
        self._listed = frozenset(external_ids)
        names = {*self._listed, *outputs.customers, *_reported(out)}
        self._owners = {} if out is None else {customer_folder(out, name): name for name in sorted(names)}
        self._folders = FolderLookup(self._owners)
        places = (
            ("out", "the report", None if out is None else out / "report.json"),
            ("report", "the report", outputs.report),
            ("journal", "the journal", outputs.journal),
        )
        self._places = [(field, what, path) for field, what, path in places if path is not None]
        """The field, a description and the path of each file that the options name."""
        named = [*((what, path) for _, what, path in self._places), ("the manifest", manifest)]
        self._known = {identity: what for what, path in named if (identity := file_id(path))}
        self._delivered = {identity for path in outputs.delivered if (identity := file_id(path))}

    def kind_of(self, path: Path) -> str | None:
        """Return what a file is if it cannot be an input, such as "the manifest"; None if it may be one."""
        identity = file_id(path)
        if identity is None:
            return None
        if what := self._known.get(identity):
            return what
        if folder := self._folders.above(path):
            return f"below {folder}, where sheets are delivered"
        if identity in self._delivered:
            return "a sheet that was delivered"
        return _written_by_us(path) or self._beside_journal(path)

    def owner_of(self, path: Path) -> str | None:
        """Return the customer whose output folder contains a file; None if there is none."""
        folder = self._folders.above(path)
        return None if folder is None else self._owners[folder]

    def _beside_journal(self, path: Path) -> str | None:
        side = _SIDE_FILE.fullmatch(path.name)
        if side is None:
            return None
        base = path.with_name(side["journal"])
        is_ours = self._journal is not None and is_same(base, self._journal)
        if is_ours or _written_by_us(base) == "a journal":
            return "a file of a journal"
        return None

    def check(self) -> None:
        """Raise `InvalidInput` for a place to write to that is the manifest, or two that are one file or folder.

        Also for one that lies where sheets are delivered, and for an existing file that asyncmig did not write.
        """
        self._check_folders()
        taken = [("the manifest", self._manifest)]
        for field, what, path in reversed(self._places):
            for named, other in taken:
                if is_same(path, other):
                    raise InvalidInput(field, str(path), f"is {named}: name another file")
            self._check_place(field, path)
            taken.append((what, path))
            if field == "journal":
                taken += [("a file of the journal", side) for side in _sides(path)]
        if folder := self._folders.above(self._manifest):
            raise InvalidInput("manifest", str(self._manifest), f"lies below {folder}, {_DELIVERED}")

    def _check_folders(self) -> None:
        for folder, other in self._folders.same.items():
            name = self._owners[folder]
            if name in self._listed:
                reason = f"and {self._owners[other]!r} would be one folder on this file system: {folder}"
                raise InvalidInput("external_id", name, reason)

    def _check_place(self, field: str, path: Path) -> None:
        if folder := self._folders.above(path):
            raise InvalidInput(field, str(path), f"lies below {folder}, {_DELIVERED}")
        if field == "journal":  # opening it tells whether it is one
            for side in _sides(path):
                if is_same(side, self._manifest):
                    raise InvalidInput(field, str(path), f"would replace the manifest, {self._manifest}")
        else:
            check_replaceable(field, path, f"a report in {'JSON' if field == 'out' else 'HTML'}")


def _sides(journal: Path) -> list[Path]:
    return [
        journal.parent / f"{journal.name}{end}" for end in ("-wal", "-shm", "-journal", ".recent", ".last")
    ]


class _Reported(msgspec.Struct):
    external_id: str


class _Report(msgspec.Struct):
    customers: tuple[_Reported, ...] = ()
    companies: tuple[_Reported, ...] = ()
    """Schema 1."""


def _reported(out: Path | None) -> list[str]:
    """Return the customers of the last report, whose sheets exist even if the journal was lost."""
    if out is None:
        return []
    try:
        report = msgspec.json.decode((out / "report.json").read_bytes(), type=_Report)
    except (OSError, msgspec.MsgspecError):
        return []
    return [each.external_id for each in (*report.customers, *report.companies)]


def check_folder(field: str, folder: Path) -> Path:
    """Return the folder, or the nearest one above it, that exists. Nothing is created.

    Raises `InvalidInput` naming `field` where a file stands in the place of a folder, or files cannot be made there.
    """
    above = (folder.absolute(), *folder.absolute().parents)
    try:
        place = next(each for each in above if os.path.lexists(each))
        if not place.is_dir():
            raise InvalidInput(field, str(folder), f"{place} is not a folder")
    except OSError as error:
        raise InvalidInput(field, str(folder), f"cannot be looked at: {error.strerror or error}") from error
    if not os.access(place, os.W_OK | os.X_OK):
        reason = f"{place} cannot be written: permission is denied, or the file system is read-only"
        raise InvalidInput(field, str(folder), reason)
    return place


def check_replaceable(field: str, path: Path, kind: str) -> None:
    """Raise `InvalidInput` for an existing file that is not `kind` as asyncmig writes it: it would be lost."""
    if not path.exists():
        return
    if not path.is_file():
        raise InvalidInput(field, str(path), "is not a file")
    if path.stat().st_size and _written_by_us(path) != kind:
        reason = f"exists, and is not {kind} that asyncmig wrote: it would be replaced; name another file"
        raise InvalidInput(field, str(path), reason)


def _written_by_us(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError:
        return None
    return next((what for what, pattern in _CONTENT.items() if pattern.match(head)), None)
