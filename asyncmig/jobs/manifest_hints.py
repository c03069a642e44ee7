"""What is really wrong with a manifest that cannot be read as it is: one sentence instead of four missing columns."""

import os
import re
from collections.abc import Iterable, Sequence
from urllib.parse import unquote

from asyncmig._core.invisible import invisible_in_name, named_characters, trimmed

__all__ = ["LARGEST", "column_name", "header_fault", "not_a_manifest", "path_hint"]

LARGEST = 64 * 1024 * 1024
_FORMATS = (
    (b"PK\x03\x04", "a ZIP archive or an Excel workbook"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Excel workbook"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"%PDF-", "a PDF"),
    (b"{\\rtf", "a text with formats (RTF)"),
    (b"SQLite format 3\0", "a database"),
)
_SEPARATORS = {";": "';'", "\t": "tabs", "|": "'|'", "\uff0c": "'\uff0c'"}
_QUOTED = re.compile(
    r"""'(.+)'|"(.+)"|`(.+)`|[\u2018\u201a](.+)[\u2018\u2019]|[\u201c-\u201e](.+)[\u201c\u201d]"""
)
_SEP = re.compile(r"sep=(.?)", re.IGNORECASE | re.DOTALL)
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
_WINDOWS = re.compile(r"[A-Za-z]:[\\/]|\\\\")
_VARIABLE = re.compile(r"\$\w|\$\{|%\w+%")


def not_a_manifest(content: bytes) -> str | None:
    """Return why these bytes cannot be a manifest, for what people hand over by mistake."""
    if len(content) > LARGEST:
        return f"is larger than {LARGEST // 2**20} MB: is it one of the customers' files?"
    if not content.strip():
        return "is empty"
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "is UTF-16: save it as UTF-8"
    for magic, name in _FORMATS:
        if content.startswith(magic):
            return f"is {name}: save it as CSV (UTF-8)"
    if b"\0" in content:
        return "has NUL bytes, as UTF-16 without a byte order mark has: save it as UTF-8"
    return None


def column_name(text: str, known: Iterable[str]) -> str:
    """Return a column's name without regard to case, invisible characters, and what stands for a space in it."""
    plain = trimmed(text).casefold()
    folded = re.sub(r"[\W_]+", "_", "".join(each for each in plain if not invisible_in_name(each)))
    spaced = re.sub(r"[\W_]+", "_", plain)
    return next((each for each in (folded, spaced) if each in known), plain)


def header_fault(header: Sequence[str], known: Sequence[str]) -> str | None:
    """Return what is wrong with a first line that lacks columns of `known`, if it is one thing."""
    line = ",".join(header)
    if sep := _SEP.fullmatch(line.strip(" ")):
        given = sep[1] or ","
        return f"begins with 'sep={given}': remove this line, and separate the columns by ','"
    for separator, words in _SEPARATORS.items():
        if _known_in(line.split(separator), known) >= 2:
            return f"separates its columns by {words}: they must be separated by ','"
    if len(header) == 1 and _known_in(line.split(","), known) >= 2:
        return "has each line in quotes, as one cell: remove the quotes around the lines"
    if _known_in(header, known):
        return None
    start = trimmed(line)[:1]
    if start == "[" or (start == "#" and "[[" in line):
        return "looks like TOML: give it a name that ends in .toml"
    if start in ("<", "{"):
        return f"looks like {'HTML or XML' if start == '<' else 'JSON'}: save it as CSV (UTF-8)"
    return f"has no header: the first line must name the columns {', '.join(known)}"


def _known_in(names: Iterable[str], known: Sequence[str]) -> int:
    return len({column_name(name, known) for name in names} & set(known))


def path_hint(part: str) -> str:
    """Return what is probably wrong with a path that leads to no file, or nothing."""
    if quoted := _QUOTED.fullmatch(part):
        return f"; it has quotes around it: write {next(filter(None, quoted.groups()))}"
    if part.lower().startswith("file:"):
        return f"; it is a URL: write its path, {unquote(part.partition(':')[2].removeprefix('//'))}"
    if _URL.match(part):
        return "; it is a URL: download the file, and write its path"
    if part.startswith("~"):
        return "; '~' does not stand for a home folder here: write the whole path"
    if os.sep != "\\" and _WINDOWS.match(part):
        return "; it is a path of a Windows computer, and this is none"
    if os.sep != "\\" and "\\" in part:
        return "; folders are separated by '/': write " + part.replace("\\", "/")
    if _VARIABLE.search(part):
        return "; variables are not replaced here: write the whole path"
    if found := invisible_in_name(part):
        return f"; it has invisible or look-alike characters ({named_characters(set(found))})"
    return ""
