"""Safe file names from names that the server chose: a sheet called `../x` or `CON` cannot leave its folder."""

import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from asyncmig.errors import InvalidInput

__all__ = ["check_utf8", "customer_folder", "file_names", "safe_name"]

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
