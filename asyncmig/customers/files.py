"""The files of a customer: their sizes, errors while reading them, and atomic writes of new ones."""

import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NoReturn, Protocol

import msgspec

from asyncmig.customers.file_names import check_utf8
from asyncmig.errors import InvalidInput, is_temporary

__all__ = [
    "NOT_IMPORTED_AGAIN",
    "FileInput",
    "FilesChanged",
    "files_in_words",
    "raise_unreadable",
    "size_of",
    "write_whole",
]

NOT_IMPORTED_AGAIN: Final = "changed since the import began, and not imported again"
"""How the note about changed files of a customer begins; their names follow."""


class FilesChanged(InvalidInput):
    """Files have changed since their import, which the option `if_changed` refuses. The recorded outcome stays."""


def size_of(path: Path) -> int:
    """Return the size of a file in bytes.

    Raises `InvalidInput` if it is missing, unreadable or empty, or if its name is not UTF-8; `OSError` if the failure
    is temporary.
    """
    check_utf8("files", path)
    if "\0" in str(path):
        raise InvalidInput("files", str(path), "is not a path")
    try:
        size, is_file = path.stat().st_size, path.is_file()
    except OSError as error:
        raise_unreadable(str(path), error)
    if not is_file:
        raise InvalidInput("files", str(path), "is not a file")
    if size == 0:
        raise InvalidInput("files", str(path), "is empty")
    return size


def raise_unreadable(name: str, error: OSError | ValueError) -> NoReturn:
    """Raise the exception for an input file that cannot be read because of `error`.

    It is `error` itself if the failure is temporary (see `is_temporary`), and otherwise `InvalidInput`.
    """
    if isinstance(error, OSError) and is_temporary(error):
        error.filename = error.filename or name
        raise error
    raise InvalidInput(
        "files", name, getattr(error, "strerror", None) or f"cannot be read: {error}"
    ) from error


class FileInput(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """An input file as it was when the migration began."""

    path: str
    size: int
    sha256: str


class _Sent(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def size(self) -> int: ...


def files_in_words(files: Sequence[FileInput | _Sent]) -> str:
    """Return the names of the first files, and the size of all: `a.csv, b.csv (1,024 bytes)`."""
    names = [Path(file.path).name if isinstance(file, FileInput) else file.name for file in files]
    size = sum(file.size for file in files)
    return f"{', '.join(names[:3])}{', ...' if len(names) > 3 else ''} ({size:,} bytes)" if names else ""


def write_whole(path: Path, content: bytes) -> None:
    """Write a file atomically: write a new file beside it, and rename it. A link at `path` is replaced, not followed.

    Raises `OSError`, after which the old file is unchanged.
    """
    part = path.with_name(f"{path.name[:50]}.{secrets.token_hex(8)}.part")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(part, flags, 0o666)  # minus the umask, like any other file
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
