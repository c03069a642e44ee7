"""File names for what a server names: a sheet called `../x` or `CON` cannot leave its folder."""

import re
from collections.abc import Iterable
from pathlib import Path

from asyncmig.errors import InvalidInput

__all__ = ["check_utf8", "customer_folder", "file_names", "safe_name"]

_FORBIDDEN = re.compile(r'[\x00-\x1f\x7f-\x9f<>:"/\\|?*\u2028\u2029\u202a-\u202e\u2066-\u2069]')
_DEVICES = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(\..*)?", re.IGNORECASE)
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
    """Return `name` fit to be a file's name on Linux, macOS and Windows (at most `longest` bytes, never empty)."""
    clean = (
        _FORBIDDEN.sub("_", name).strip(" .").encode("utf-8", "replace")[:longest].decode("utf-8", "ignore")
    )
    clean = clean.strip(" .") or "_"
    return f"_{clean}" if _DEVICES.fullmatch(clean) else clean


def customer_folder(out: Path, external_id: str) -> Path:
    """Return the folder below `out` that gets a customer's sheets."""
    return out / safe_name(external_id, longest=255)


def file_names(names: Iterable[str]) -> list[str]:
    """Return a safe name for each of `names`, all different also where case is not told apart."""
    taken: set[str] = set()
    result: list[str] = []
    for name in names:
        clean = candidate = safe_name(name)
        number = 2
        while candidate.casefold() in taken:
            candidate, number = f"{clean}-{number}", number + 1
        taken.add(candidate.casefold())
        result.append(candidate)
    return result
