"""The ZIP archive of all sheets: read the server's, or build one while the sheets arrive."""

import zipfile
from collections.abc import Generator
from contextlib import contextmanager
from io import RawIOBase
from typing import IO, TYPE_CHECKING, final

from asyncmig.companies.expected import ALL_SHEETS
from asyncmig.errors import TruncatedDownload
from asyncmig.transfers.part import CHUNK

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

__all__ = ["LONGEST_END", "ZipOutput", "chunks_of", "is_whole_end", "open_archive"]

LONGEST_END = 22 + 65_535
"""The largest size, in bytes, of the record that ends an archive (APPNOTE.TXT, 4.3.16)."""
_ZIP64_RECORDS = 76
"""The least size, in bytes, of the two records that precede the last one in a ZIP64 archive (4.3.14, 4.3.15)."""
_LARGEST_DIRECTORY = 4 * 1024 * 1024
"""Largest size, in bytes, of an archive's directory, which is read into memory. 40,000 members fit."""


def open_archive(file: IO[bytes], *, most_sheets: int) -> tuple[zipfile.ZipFile, list[zipfile.ZipInfo]]:
    """Return an archive and its members that are sheets. Blocks.

    Raises `TruncatedDownload` for a damaged archive, for more than `most_sheets`, and for a directory that is too
    large for memory.
    """
    with _damage_reported():
        _check_directory(file)
        archive = zipfile.ZipFile(file)
        entries = [
            entry
            for entry in archive.infolist()
            if entry.filename.lower().endswith(".csv") and not entry.filename.startswith("__MACOSX/")
        ]
        if len(entries) > most_sheets:
            raise ValueError(f"it has {len(entries)} sheets")
        return archive, entries


def chunks_of(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Generator[bytes]:
    """Yield the content of a member. Blocks. Raises `TruncatedDownload` if it is damaged."""
    with _damage_reported(), archive.open(entry) as source:
        while chunk := source.read(CHUNK):
            yield chunk


@contextmanager
def _damage_reported() -> Generator[None]:
    try:
        yield
    except Exception as error:  # `zipfile` raises a dozen kinds for a damaged archive, few of them documented
        raise TruncatedDownload(ALL_SHEETS, f"not a whole ZIP archive ({error})") from error


def _check_directory(file: IO[bytes]) -> None:
    """Raise `ValueError` for a directory that is too large, because `zipfile` reads all of it into memory."""
    size = file.seek(0, 2)
    start = file.seek(max(0, size - LONGEST_END - _ZIP64_RECORDS))
    tail = file.read(size - start)
    at = tail.rfind(b"PK\x05\x06")
    if at < 0:
        return
    directory = int.from_bytes(tail[at + 12 : at + 16], "little")
    if at >= _ZIP64_RECORDS and tail[at - 20 :].startswith(b"PK\x06\x07"):
        directory = int.from_bytes(tail[at - 36 : at - 28], "little")
    if directory > _LARGEST_DIRECTORY:
        raise ValueError(f"its directory has {directory} bytes")


def is_whole_end(tail: bytes, size: int) -> bool:
    """Return whether an archive of `size` bytes can end with `tail`, its last `LONGEST_END` bytes.

    At the end stands a record that gives the place of the directory; both must lie inside of the archive.
    """
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) - at < 22:
        return False
    length, start, comment = (
        int.from_bytes(tail[at + begin : at + end], "little") for begin, end in ((12, 16), (16, 20), (20, 22))
    )
    if at + 22 + comment != len(tail):
        return False
    is_zip64 = 0xFFFF_FFFF in (length, start) and tail[:at][-20:].startswith(b"PK\x06\x07")
    return is_zip64 or start + length + 22 + comment <= size


@final
class ZipOutput(RawIOBase):
    """A write-only file for `zipfile`. `taken` returns what was written, so that it can be passed on at once."""

    def __init__(self) -> None:
        self._held = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: "ReadableBuffer", /) -> int:
        before = len(self._held)
        self._held += memoryview(data)
        return len(self._held) - before

    def taken(self) -> bytes:
        """Return the bytes written since the last call."""
        taken, self._held = bytes(self._held), bytearray()
        return taken
