"""A sheet while it comes: a file beside its place, the rows in it, and whether it can be the whole sheet."""

import glob
import hashlib
import os
import shutil
import uuid
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Self, final

from asyncmig.companies.csv_records import RecordCounter, RowCount
from asyncmig.companies.expected import Bound, Expected
from asyncmig.companies.recount import Recounter
from asyncmig.companies.wire import Sheet
from asyncmig.customers.outcome import Downloaded
from asyncmig.errors import TruncatedDownload

__all__ = ["CHUNK", "Part", "Repeats", "may_take"]


CHUNK = 256 * 1024
_SAME = 8
"""After so many downloads that were wrong in the same way, another one is unlikely to differ."""
_TOO_MUCH = 2
"""The same for downloads that were stopped, because more came than there can be."""


@final
class Repeats:
    """Tells a download that comes wrong in the same way again and again from one that another attempt may mend."""

    __slots__ = ("_times",)

    def __init__(self) -> None:
        self._times: Counter[tuple[str, bytes]] = Counter()

    def came_before(self, name: str, digest: bytes) -> bool:
        """Return whether these bytes of this sheet were wrong before."""
        return (name, digest) in self._times

    def wrong(self, error: TruncatedDownload, digest: bytes) -> TruncatedDownload:
        """Take note of bytes that are wrong, and return the error; it is final once they came eight times."""
        return self._noted(error, digest, _SAME)

    def too_much(self, name: str, reason: str) -> TruncatedDownload:
        """Return the error for a download that was stopped; it is final the second time."""
        return self._noted(TruncatedDownload(name, reason), b"", _TOO_MUCH)

    def _noted(self, error: TruncatedDownload, digest: bytes, most: int) -> TruncatedDownload:
        self._times[error.name, digest] += 1
        error.is_final = self._times[error.name, digest] >= most
        return error


@final
class Part:
    """A file that is written beside its place, and takes it only when it is whole.

    Its name is its own: a process that was paused for so long that another one took over must not write into
    what that one delivers. What a process that was killed has left is removed.
    """

    __slots__ = (
        "_bound",
        "_cleared",
        "_free",
        "_most_rows",
        "_part",
        "_repeats",
        "_size",
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
        """Forget what was written. `most_rows`: how many rows there can be, if that is known."""
        with self.naming():
            self.file.seek(0)
            self.file.truncate()
        self.records: RecordCounter = RecordCounter()
        self._size = 0
        self.found: RowCount | None = None
        """The count by which it can be the whole sheet, once that was checked."""
        self._most_rows, self._cleared = most_rows, 0
        # A recount notices a row up to a chunk later; without the slack it would not confirm what this finds.
        self._bound = Bound(rows=most_rows, size=self._free, slack=CHUNK)

    @contextmanager
    def naming(self) -> Generator[None]:
        """Let an error of the disk say that it is about this file."""
        try:
            yield
        except OSError as error:
            error.filename = error.filename or str(self._part)
            raise

    def count(self, chunk: bytes) -> bool:
        """Take note of bytes that are written; return whether they may be too many: then `check_bound`."""
        self.records.feed(chunk)
        self._size += len(chunk)
        return bool(self._bound.exceeded(len(chunk), [self.records.rows])) and self._size > self._cleared

    def check_bound(self) -> None:
        """Count what is written in every way; raise `TruncatedDownload` if it is too much in each. Blocks."""
        bound, counter = Bound(rows=self._most_rows, size=self._free), Recounter()
        for chunk in self._chunks():
            counter.feed(chunk)
            if reason := bound.exceeded(len(chunk), [count.rows for count in counter.counts()]):
                raise self._repeats.too_much(self.sheet, reason)
        self._cleared = 2 * self._size

    def check(self, expected: Expected, sheet: Sheet | None) -> None:
        """Raise `TruncatedDownload` unless what is written can be the whole sheet. Blocks."""
        try:
            self.found = expected.check(self.sheet, sheet, self.records)
        except TruncatedDownload:
            counter, digest = self.recounted()
            counter.believes_unclosed = self._repeats.came_before(self.sheet, digest)
            try:
                self.found = expected.check(self.sheet, sheet, counter)
            except TruncatedDownload as error:
                raise self._repeats.wrong(error, digest) from None

    def recounted(self) -> tuple[Recounter, bytes]:
        """Return what counted the rows in every way, and the SHA-256 of what is written. Blocks."""
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
        """Bring it to disk and put it in place. Blocks."""
        assert self.found is not None
        with self.naming():
            os.fsync(self.file.fileno())
        self._part.replace(self.path)
        return Downloaded(sheet=self.sheet, path=str(self.path), rows=self.found.rows, size=self._size)


def may_take(folder: Path) -> int:
    """Return how many bytes a download may take there: nine tenths of what is free now."""
    return shutil.disk_usage(folder).free * 9 // 10
