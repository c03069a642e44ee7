"""A sheet during its download: a temporary file, its rows, and whether it can be the complete sheet."""

import glob
import hashlib
import os
import shutil
import uuid
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Self, final

from asyncmig.customers.outcome import Downloaded
from asyncmig.errors import AsyncmigError, NoAnswer, TruncatedDownload
from asyncmig.transfers.bound import Bound, Counted
from asyncmig.transfers.csv_records import RecordCounter, RowCount
from asyncmig.transfers.recount import Recounter

__all__ = ["CHUNK", "Part", "Repeats", "may_take"]


CHUNK = 256 * 1024
"""Bytes that are read at a time."""
_SAME = 8
"""Number of downloads that were wrong in the same way after which another one is unlikely to differ."""
_TOO_MUCH = 2
"""The same for downloads that stopped because there were too many rows or bytes."""


@final
class Repeats:
    """Distinguishes a download that is wrong in the same way every time from one that another attempt may correct."""

    __slots__ = ("_times",)

    def __init__(self) -> None:
        self._times: Counter[tuple[str, bytes]] = Counter()

    def came_before(self, name: str, digest: bytes) -> bool:
        """Return whether the same bytes of this sheet were wrong before."""
        return (name, digest) in self._times

    def wrong(self, error: TruncatedDownload, digest: bytes) -> TruncatedDownload:
        """Record wrong bytes and return the error. The error is final after eight occurrences."""
        return self._noted(error, digest, _SAME)

    def too_much(self, name: str, reason: str) -> TruncatedDownload:
        """Return the error for a download that stopped. It is final the second time."""
        return self._noted(TruncatedDownload(name, reason), b"", _TOO_MUCH)

    def _noted(self, error: TruncatedDownload, digest: bytes, most: int) -> TruncatedDownload:
        self._times[error.name, digest] += 1
        error.is_final = self._times[error.name, digest] >= most
        return error


@final
class Part:
    """A temporary file that is renamed to its final name only when it is complete.

    Its name is unique: a process that was paused, and whose customer another process took over, must not write
    into the other's file. Files left by a killed process are removed.
    """

    __slots__ = (
        "_bound",
        "_cleared",
        "_free",
        "_most_rows",
        "_part",
        "_repeats",
        "_size",
        "_tail",
        "file",
        "found",
        "path",
        "records",
        "sheet",
    )

    def __init__(self, sheet: str, path: Path, repeats: Repeats) -> None:
        self.sheet: str = sheet
        self.path: Path = path
        self._repeats = repeats
        self._part = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        for left in self.path.parent.glob(f"{glob.escape(self.path.name)}.{'?' * 32}.part"):
            with suppress(OSError):
                left.unlink()
        self._free = may_take(self.path.parent)
        self.file: FileIO = self._part.open("xb", buffering=0)
        try:
            self.restart(None)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        try:
            with self.naming():
                self.file.close()
        finally:
            self._part.unlink(missing_ok=True)

    def restart(self, most_rows: int | None) -> None:
        """Discard what was written. `most_rows`: the largest possible number of rows, if known."""
        with self.naming():
            self.file.seek(0)
            self.file.truncate()
        self.records: RecordCounter = RecordCounter()
        self._size, self._tail = 0, b""
        self.found: RowCount | None = None
        """The count that is consistent with the complete sheet, after the check."""
        self._most_rows, self._cleared = most_rows, 0
        # A recount notices a row up to a chunk later; without the slack it would not confirm what this finds.
        self._bound = Bound(rows=most_rows, size=self._free, slack=CHUNK)

    @contextmanager
    def naming(self) -> Generator[None]:
        """Add the name of this file to errors of the disk."""
        try:
            yield
        except OSError as error:
            error.filename = error.filename or str(self._part)
            raise

    def count(self, chunk: bytes) -> bool:
        """Count bytes that were written. Return whether they may be too many; then call `check_bound`."""
        self.records.feed(chunk)
        self._size += len(chunk)
        self._tail = (self._tail + chunk[-4:])[-4:]
        return bool(self._bound.exceeded(len(chunk), [self.records.rows])) and self._size > self._cleared

    def check_bound(self) -> None:
        """Count the rows in every reading. Raises `TruncatedDownload` if each has too many. Blocks."""
        bound, counter = Bound(rows=self._most_rows, size=self._free), Recounter()
        for chunk in self._chunks():
            counter.feed(chunk)
            if reason := bound.exceeded(len(chunk), [count.rows for count in counter.counts()]):
                raise self._repeats.too_much(self.sheet, reason)
        self._cleared = 2 * self._size

    def check(self, check: Callable[[Counted], RowCount]) -> None:
        """Raise `TruncatedDownload` unless the file can be the complete sheet. Blocks.

        `check`: returns the count that is consistent with the complete sheet, or raises `TruncatedDownload`.
        """
        try:
            self.found = check(self.records)
        except TruncatedDownload:
            counter, digest = self.recounted()
            counter.believes_unclosed = self._repeats.came_before(self.sheet, digest)
            try:
                self.found = check(counter)
            except TruncatedDownload as error:
                raise self._repeats.wrong(error, digest) from None

    @property
    def ends_with_line_end(self) -> bool:
        """Whether the last line is ended, also in UTF-16 and UTF-32; true for no bytes at all."""
        return not self._size or self._tail.rstrip(b"\0").endswith(b"\n")

    def check_unended_line(self) -> None:
        """Raise `TruncatedDownload` unless the same bytes came before: the last cell may be cut short. Blocks."""
        _, digest = self.recounted()
        if not self._repeats.came_before(self.sheet, digest):
            raise self._repeats.wrong(TruncatedDownload(self.sheet, "its last line has no line end"), digest)

    def broken_off(self, error: NoAnswer) -> AsyncmigError:
        """Return the error for a body that broke off; it is final once the same bytes came eight times. Blocks."""
        if not self._size:
            return error
        _, digest = self.recounted()
        found = self._repeats.wrong(TruncatedDownload(self.sheet, f"it broke off: {error.reason}"), digest)
        return found if found.is_final else error

    def recounted(self) -> tuple[Recounter, bytes]:
        """Return the counter of all readings, and the SHA-256 of the file. Blocks."""
        counter, digest = Recounter(), hashlib.sha256()
        for chunk in self._chunks():
            counter.feed(chunk)
            digest.update(chunk)
        return counter, digest.digest()

    def _chunks(self) -> Generator[bytes]:
        with self.naming(), self._part.open("rb", buffering=0) as file:
            while chunk := file.read(CHUNK):
                yield chunk

    def commit(self) -> Downloaded:
        """Sync the file and rename it to its final name. Blocks."""
        assert self.found is not None
        with self.naming():
            os.fsync(self.file.fileno())
        self._part.replace(self.path)
        return Downloaded(sheet=self.sheet, path=str(self.path), rows=self.found.rows, size=self._size)


def may_take(folder: Path) -> int:
    """Return how many bytes a download may use there: nine tenths of the free space."""
    return shutil.disk_usage(folder).free * 9 // 10
