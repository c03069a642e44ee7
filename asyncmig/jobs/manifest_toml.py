"""A manifest as TOML: a `[[company]]` for each customer, and `[defaults]` for what a command line would say.

[defaults]
decide = "approve-safe"

[[company]]
external_id = "acme-001"
name = "Acme Inc"
source = "HubSpot"
templates = ["Contacts", "Deals"]
files = ["acme/*.csv"]
"""

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

__all__ = ["Cells", "TomlManifest", "parse"]

Cells = Mapping[str, str | Sequence[str]]
"""What stands in one customer's place, by column."""
_HEADER = re.compile(r"^[ \t]*\[\[[ \t]*company[ \t]*\]\]", re.MULTILINE)
_LINE = re.compile(r"at line (\d+)")


@dataclass(frozen=True, slots=True)
class TomlManifest:
    """What was read; `faults` as line, field and reason."""

    companies: tuple[tuple[int, Cells], ...] = ()
    defaults: Mapping[str, object] = field(default_factory=dict[str, object])
    faults: tuple[tuple[int | None, str, str], ...] = ()


def parse(text: str) -> TomlManifest:
    """Read a manifest; what is wrong with it as a whole is in its `faults`."""
    try:
        content = cast("dict[str, object]", tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        line = _LINE.search(str(error))
        return TomlManifest(faults=((int(line[1]) if line else None, "manifest", f"is not TOML ({error})"),))
    defaults, companies = _table(content.pop("defaults", {})), _tables(content.pop("company", []))
    faults = [(None, name, "is unknown: there are [[company]] and [defaults]") for name in content]
    if defaults is None:
        faults.append((None, "defaults", "must be a table: [defaults]"))
    if companies is None:
        faults.append((None, "company", "must be tables: [[company]]"))
        companies = []
    read = tuple(zip(_lines(text, len(companies)), companies, strict=True))
    return TomlManifest(
        companies=tuple((line, _cells(table)) for line, table in read),
        defaults=defaults or {},
        faults=(*faults, *(fault for line, table in read for fault in _wrong(line, table))),
    )


def _list(value: object) -> list[object] | None:
    return cast("list[object]", value) if isinstance(value, list) else None


def _table(value: object) -> dict[str, object] | None:
    return cast("dict[str, object]", value) if isinstance(value, dict) else None


def _tables(value: object) -> list[dict[str, object]] | None:
    tables = [_table(each) for each in _list(value) or [None]] if value != [] else []
    known = [table for table in tables if table is not None]
    return known if len(known) == len(tables) else None


def _lines(text: str, count: int) -> list[int]:
    """Return the line on which each company begins: TOML's parser does not say."""
    found = [text.count("\n", 0, match.start()) + 1 for match in _HEADER.finditer(text)]
    return found if len(found) == count else [1] * count  # a header inside a text of several lines


def _cells(table: Mapping[str, object]) -> Cells:
    return {
        name: value if isinstance(value, str) else [str(each) for each in _list(value) or ()]
        for name, value in table.items()
    }


def _wrong(line: int, table: Mapping[str, object]) -> Iterator[tuple[int, str, str]]:
    for name, value in table.items():
        lists = name in ("templates", "files")
        if not isinstance(value, str) and not (lists and _are_texts(value)):
            yield line, name, f"must be {'a list of texts' if lists else 'a text'}: {value!r}"


def _are_texts(value: object) -> bool:
    texts = _list(value)
    return texts is not None and all(isinstance(each, str) for each in texts)
