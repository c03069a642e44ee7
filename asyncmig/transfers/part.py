"""A sheet while it is downloaded: its temporary file, its number of rows, and the check that it is complete."""

import hashlib
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import final

from asyncmig.customers.outcome import Downloaded
from asyncmig.errors import AsyncmigError, NoAnswer, TruncatedDownload
from asyncmig.transfers.csv_records import RecordCounter, RowCount
from asyncmig.transfers.recount import Recounter

__all__ = ["CHUNK", "LONGEST_RECORD", "Bound", "Part", "WrongDownloads", "open_parts", "usable_bytes"]

CHUNK = 256 * 1024
"""The number of bytes that are read at a time."""
_MIB = 1024 * 1024
LONGEST_RECORD = 16 * _MIB
"""The largest record, in bytes: 500 cells of the 32,767 characters that spreadsheets allow."""
_TEMPORARY = re.compile(r"(.+)\.[0-9a-f]{32}\.part", re.DOTALL)
"""The name of a temporary file. The group is the final name."""
_SAME = 8
"""The number of downloads with the same wrong bytes after which another download is unlikely to differ."""
_STOPPED = 2
"""The same number for downloads that were stopped because they had too many rows or bytes."""


@final
class Bound:
    """Detects a body that is too large, while it arrives, because such a body may never end.

    A body is too large in three cases: it has more than `rows` rows in every way to count; no new row ends within 16
    MiB plus `slack` bytes; or it has more than `size` bytes.
    """

    __slots__ = ("_counts", "_grown_at", "_longest", "_received", "_rows", "_size")

    def __init__(self, *, rows: int | None, size: int | None = None, slack: int = 0) -> None:
        self._rows, self._size, self._longest = rows, size, LONGEST_RECORD + slack
        self._received = self._grown_at = 0
        self._counts: tuple[int, ...] = ()

    def exceeded(self, size: int, rows: Sequence[int] = ()) -> str | None:
        """Count `size` more bytes, and return why the body is too large; None if it is not.

        `rows`: the number of rows so far in each way to count; empty if rows cannot be counted.
        """
        self._received += size
        if rows:
            if tuple(rows) != self._counts:
                self._counts, self._grown_at = tuple(rows), self._received
            if self._rows is not None and min(rows) > self._rows:
                return f"it has more rows than the {self._rows} that were reported"
            if self._received - self._grown_at > self._longest:
                return f"no row ended within {LONGEST_RECORD // _MIB} MiB"
        if self._size is not None and self._received > self._size:
            return f"it has more than {self._size} bytes"
        return None


@final
class WrongDownloads:
    """Counts wrong downloads, to detect one that is wrong in the same way every time: another attempt will not
    help."""

    __slots__ = ("_same", "_times")

    def __init__(self, attempts: int = _SAME) -> None:
        """`attempts`: the most attempts of a download. If all of them, or eight, had the same wrong bytes, it is
        final."""
        self._same = max(2, min(_SAME, attempts))
        self._times: Counter[tuple[str, bytes]] = Counter()

    def came_before(self, name: str, digest: bytes) -> bool:
        """Return whether the same bytes of this sheet were wrong before."""
        return (name, digest) in self._times

    def wrong(self, error: TruncatedDownload, digest: bytes) -> TruncatedDownload:
        """Count wrong bytes and return the error."""
        return self._counted(error, digest, self._same)

    def stopped(self, name: str, reason: str) -> TruncatedDownload:
        """Return the error for a download that was stopped. It is final the second time."""
        return self._counted(TruncatedDownload(name, reason), b"", _STOPPED)

    def _counted(self, error: TruncatedDownload, digest: bytes, most: int) -> TruncatedDownload:
        self._times[error.name, digest] += 1
        error.is_final = self._times[error.name, digest] >= most
        return error


@final
class Part:
    """One sheet while it is downloaded: a temporary file that is renamed to its final name when it is complete.

    The name of the temporary file is unique. Otherwise a process that was suspended, and whose customer another
    process has taken over, could write into the other's file. `open_parts` opens it.
    """

    __slots__ = (
        "_bound",
        "_free",
        "_is_committed",
        "_most_rows",
        "_part",
        "_recount_above",
        "_size",
        "_tail",
        "_wrong_downloads",
        "file",
        "found",
        "path",
        "records",
        "sheet",
    )

    def __init__(self, sheet: str, path: Path, wrong_downloads: WrongDownloads) -> None:
        self.sheet: str = sheet
        self.path: Path = path
        self._wrong_downloads = wrong_downloads
        self._part = path.with_name(f"{path.name}.{os.urandom(16).hex()}.part")  # as in `_TEMPORARY`
        self._is_committed = False

    def open(self, free: int) -> None:
        """Create the temporary file, which may have `free` bytes. Blocks."""
        self._free = free
        self.file: FileIO = self._part.open("xb", buffering=0)
        self._begin(None)

    def close(self) -> None:
        """Close the file, and remove it unless it has its final name."""
        try:
            with self.named_errors():
                self.file.close()
        finally:
            if not self._is_committed:
                self._part.unlink(missing_ok=True)

    def restart(self, most_rows: int | None) -> None:
        """Discard what was written. `most_rows`: the largest possible number of rows; None if it is unknown."""
        if self._size:
            with self.named_errors():
                self.file.seek(0)
                self.file.truncate()
        self._begin(most_rows)

    def _begin(self, most_rows: int | None) -> None:
        self.records: RecordCounter = RecordCounter()
        self._size, self._tail = 0, b""
        self.found: RowCount | None = None
        """After `check`: the count that agrees with the report."""
        self._most_rows, self._recount_above = most_rows, 0
        # `check_bound` detects a row up to one chunk later. Without the slack it would not confirm an excess.
        self._bound = Bound(rows=most_rows, size=self._free, slack=CHUNK)

    @contextmanager
    def named_errors(self) -> Generator[None]:
        """Add the file's name to an `OSError` that has none."""
        try:
            yield
        except OSError as error:
            error.filename = error.filename or str(self._part)
            raise

    def count(self, chunk: bytes) -> bool:
        """Count bytes that were written. Return whether the body may be too large; then `check_bound` must be
        called."""
        self.records.feed(chunk)
        self._size += len(chunk)
        self._tail = (self._tail + chunk[-4:])[-4:]
        is_exceeded = self._bound.exceeded(len(chunk), [self.records.rows]) is not None
        return is_exceeded and self._size > self._recount_above

    def check_bound(self) -> None:
        """Raise `TruncatedDownload` if the body is too large in every way to count its rows. Blocks."""
        bound, counter = Bound(rows=self._most_rows, size=self._free), Recounter()
        for chunk in self._chunks():
            counter.feed(chunk)
            if reason := bound.exceeded(len(chunk), [count.rows for count in counter.counts()]):
                raise self._wrong_downloads.stopped(self.sheet, reason)
        self._recount_above = 2 * self._size

    def check(self, check: Callable[[Sequence[RowCount]], RowCount]) -> None:
        """Raise `TruncatedDownload` if the file cannot be the complete sheet. Blocks.

        `check`: returns the first of several counts of the rows that agrees with the report; raises
        `TruncatedDownload` if none does.
        """
        if self.is_plausible(check):
            return
        counter, digest = self.recounted()
        counter.accepts_open_quote = self._wrong_downloads.came_before(self.sheet, digest)
        try:
            self.found = check(counter.counts())
        except TruncatedDownload as error:
            raise self._wrong_downloads.wrong(error, digest) from None

    def is_plausible(self, check: Callable[[Sequence[RowCount]], RowCount]) -> bool:
        """Return whether the rows that were counted during the download agree with the report; see `check`."""
        try:
            self.found = check(self.records.counts())
        except TruncatedDownload:
            return False
        return True

    @property
    def is_empty(self) -> bool:
        """Whether no byte came, not even of a header."""
        return not self._size

    @property
    def ends_with_line_end(self) -> bool:
        """Whether the last line has a line end, also in UTF-16 and UTF-32. True for an empty file."""
        return not self._size or self._tail.rstrip(b"\0").endswith(b"\n")

    def check_unended_line(self) -> None:
        """Raise `TruncatedDownload` unless an earlier attempt got the same bytes: the last cell may be cut.
        Blocks."""
        _, digest = self.recounted()
        if not self._wrong_downloads.came_before(self.sheet, digest):
            reason = "it is empty" if self.is_empty else "its last line has no line end"
            raise self._wrong_downloads.wrong(TruncatedDownload(self.sheet, reason), digest)

    def broken_off(self, error: NoAnswer) -> AsyncmigError:
        """Return the error for a body that broke off. It is final if the same bytes have arrived eight times.
        Blocks."""
        if not self._size:
            return error
        _, digest = self.recounted()
        found = self._wrong_downloads.wrong(
            TruncatedDownload(self.sheet, f"it broke off: {error.reason}"), digest
        )
        return found if found.is_final else error

    def recounted(self) -> tuple[Recounter, bytes]:
        """Return the rows, counted in every way, and the SHA-256 of the file. Blocks."""
        counter, digest = Recounter(), hashlib.sha256()
        for chunk in self._chunks():
            counter.feed(chunk)
            digest.update(chunk)
        return counter, digest.digest()

    def _chunks(self) -> Generator[bytes]:
        with self.named_errors(), self._part.open("rb", buffering=0) as file:
            while chunk := file.read(CHUNK):
                yield chunk

    def commit(self) -> Downloaded:
        """Sync the file and rename it to its final name. Blocks."""
        assert self.found is not None
        with self.named_errors():
            os.fsync(self.file.fileno())
            self.file.close()
        self._part.replace(self.path)
        self._is_committed = True
        return Downloaded(sheet=self.sheet, path=str(self.path), rows=self.found.rows, size=self._size)


def open_parts(parts: Sequence[Part], stack: ExitStack) -> None:
    """Open the temporary files of sheets in one folder, which `stack` closes and removes. Blocks.

    Creates the folder, and removes temporary files of these sheets that killed processes have left there.
    """
    if not parts:
        return
    folder, names = parts[0].path.parent, {part.path.name for part in parts}
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        for name in os.listdir(folder):
            if (temporary := _TEMPORARY.fullmatch(name)) and temporary[1] in names:
                with suppress(OSError):
                    os.unlink(folder / name)
    free = usable_bytes(folder)
    for part in parts:
        part.open(free)
        stack.callback(part.close)


def usable_bytes(folder: Path) -> int:
    """Return the number of bytes that a download may use in a folder: nine tenths of the free space."""
    return shutil.disk_usage(folder).free * 9 // 10
