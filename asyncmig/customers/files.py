"""The files of a customer: sizes and errors while reading them, safe names and atomic writes of new ones."""

import os
import re
import secrets
import stat
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, NoReturn, Protocol

import msgspec

from asyncmig.errors import InvalidInput, is_temporary

__all__ = [
    "NOT_IMPORTED_AGAIN",
    "FileInput",
    "FilesChanged",
    "check_utf8",
    "customer_folder",
    "file_names",
    "files_in_words",
    "raise_unreadable",
    "safe_name",
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
        found = path.stat()
    except OSError as error:
        raise_unreadable(str(path), error)
    if not stat.S_ISREG(found.st_mode):
        raise InvalidInput("files", str(path), "is not a file")
    if found.st_size == 0:
        raise InvalidInput("files", str(path), "is empty")
    return found.st_size


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


# Names: a sheet that the server calls `../x` or `CON` cannot leave its folder

_FORBIDDEN = frozenset('<>:"/\\|?*')
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Unicode categories of control characters, invisible characters, and halves of surrogate pairs."""
_JOINERS = frozenset("\u200c\u200d")
"""Joiners, which words of some languages and some emoji contain."""
_DEVICES = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|com[0-9¹²³]|lpt[0-9¹²³])(\s*\..*)?", re.IGNORECASE)
_LONGEST = 120


def check_utf8(field: str, path: object) -> None:
    """Raise `InvalidInput` for a path or name that is not UTF-8: the API, journals and reports cannot hold it."""
    text = str(path)
    try:
        text.encode()
    except UnicodeEncodeError:
        shown = text.encode(errors="replace").decode()
        raise InvalidInput(field, shown, "this name is not UTF-8: rename it") from None


def safe_name(name: str, *, longest: int = _LONGEST) -> str:
    """Return `name` changed to a valid file name on Linux, macOS and Windows, in Unicode's form NFC.

    It has at most `longest` bytes of UTF-8, and is never empty.
    """
    composed = unicodedata.normalize("NFC", "".join(map(_safe, name)))
    clean = composed.strip(" .").encode()[:longest].decode("utf-8", "ignore").strip(" .") or "_"
    return f"_{clean}"[:longest] if _DEVICES.fullmatch(clean) else clean


def _safe(character: str) -> str:
    is_unseen = unicodedata.category(character) in _UNSEEN and character not in _JOINERS
    return "_" if is_unseen or character in _FORBIDDEN else character


def customer_folder(out: Path, external_id: str) -> Path:
    """Return the folder below `out` for a customer's sheets. Each external id has a folder of its own.

    Windows reserves `con`, so its folder is `_con`; the folder of `_con` is `__con`.
    """
    is_reserved = _DEVICES.fullmatch(external_id.lstrip("_"))
    return out / (f"_{external_id}" if is_reserved else safe_name(external_id, longest=255))


def file_names(names: Iterable[str]) -> list[str]:
    """Return a safe name for each of `names`. No two of them are the same file on any file system.

    Some file systems ignore case, or the difference between composed and decomposed characters. Of names that are
    equal on such a system, the first in alphabetical order is kept, and the others get a number. So the result does
    not depend on the order of `names`, unless two are identical.
    """
    wanted = list(names)
    order = sorted(range(len(wanted)), key=lambda place: wanted[place])
    found: dict[int, str] = {}
    taken: set[str] = set()
    for place in order:
        clean = safe_name(wanted[place])
        if (key := _folded(clean)) not in taken:
            taken.add(key)
            found[place] = clean
    for place in order:
        if place in found:
            continue
        clean, number = safe_name(wanted[place]), 2
        while (key := _folded(f"{clean}-{number}")) in taken:
            number += 1
        taken.add(key)
        found[place] = f"{clean}-{number}"
    return [found[place] for place in range(len(wanted))]


def _folded(name: str) -> str:
    """Return a key that is the same for names that are equal on some file system (Unicode, 3.13, D146)."""
    visible = "".join(each for each in name if each not in _JOINERS)
    once = unicodedata.normalize("NFKD", visible).casefold()
    return unicodedata.normalize("NFKD", once).casefold()
