"""The files of a customer: their size, what an error in reading one means, and how a new one is written."""

import os
import secrets
from pathlib import Path
from typing import NoReturn

import msgspec

from asyncmig.customers.file_names import check_utf8
from asyncmig.errors import InvalidInput, is_temporary

__all__ = ["FileInput", "raise_unreadable", "size_of", "write_whole"]


def size_of(path: Path) -> int:
    """Return the bytes of a file; raise `InvalidInput` if it is missing, unreadable, empty, or not named in UTF-8.

    Raises `OSError` for what may pass, as `raise_unreadable` does.
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
    """Raise what it means that an input cannot be read; call it where `error` is caught.

    That is `error` itself if it may pass (see `is_temporary`): the input is not to blame. Otherwise `InvalidInput`.
    """
    if isinstance(error, OSError) and is_temporary(error):
        error.filename = error.filename or name
        raise error
    raise InvalidInput(
        "files", name, getattr(error, "strerror", None) or f"cannot be read: {error}"
    ) from error


class FileInput(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A file as it was when its migration began."""

    path: str
    size: int
    sha256: str


def write_whole(path: Path, content: bytes) -> None:
    """Write a file atomically: write a new file beside it, then rename. A link at `path` is replaced, not followed.

    Raises `OSError`; then the old file is unchanged.
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
