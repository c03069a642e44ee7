"""The files of a customer: their size, and what an error in reading one means."""

from pathlib import Path
from typing import NoReturn

import msgspec

from asyncmig.customers.file_names import check_utf8
from asyncmig.errors import InvalidInput, is_temporary

__all__ = ["FileInput", "raise_unreadable", "size_of"]


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


class FileInput(msgspec.Struct, frozen=True, kw_only=True):
    """A file as it was when its migration began."""

    path: str
    size: int
    sha256: str
