"""Link rules: each value of a cell must also be a value in a column of another sheet.

The long form of a rule has paths into cells that contain JSON text, and maps that replace values. The API does not
define them further. A cell in which a path leads nowhere is therefore not checked.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast, final

from asyncmig.customers.catalog import ColumnSpec, Link

__all__ = ["LinkRule", "LinkTarget", "link_rules"]

Values = Mapping[str, str]


@final
@dataclass(frozen=True, slots=True)
class LinkTarget:
    """A column to which links point: the id of its template, and its name."""

    template_id: str
    column_name: str
    key_path: str = ""
    """The path of the value in a cell with JSON text; empty for the whole cell."""
    key_map: Values = field(default_factory=dict[str, str], compare=False)
    key_map_text: str = ""

    def keys(self, cell: str) -> Sequence[str]:
        """Return the values with which other cells can link to this cell."""
        return [self.key_map.get(value, value) for value in _values(cell, self.key_path) or ()]


@final
@dataclass(frozen=True, slots=True)
class LinkRule:
    """The rule that each value of a cell must be in one of the columns `targets`."""

    targets: tuple[LinkTarget, ...]
    value_path: str
    value_map: Values

    def values(self, cell: str) -> Sequence[str] | None:
        """Return the values of a cell; None if its path leads nowhere in the cell."""
        found = _values(cell, self.value_path)
        return None if found is None else [self.value_map.get(value, value) for value in found]


def link_rules(column: ColumnSpec, *, enforces_all: bool) -> list[LinkRule]:
    """Return the link rules of a column that the server enforces; see `TemplateRules.enforces_all`."""
    if column.rule != "link" and not enforces_all:
        return []
    return [_rule(link) for link in column.links]


def _rule(link: Link) -> LinkRule:
    key_map = _map(link.key_map)
    targets = tuple(
        LinkTarget(
            slug, link.column_name or "", link.key_path or "", key_map, json.dumps(key_map, sort_keys=True)
        )
        for slug in _templates(link.template_id or "")
    )
    return LinkRule(targets, link.value_path or "", _map(link.value_map))


def _templates(template_id: str) -> list[str]:
    """Return the templates of a link. A link may have several, and a discriminator in each row chooses one."""
    if template_id.startswith("["):
        try:
            slugs: object = json.loads(template_id)
        except ValueError:
            return [template_id]
        if isinstance(slugs, list):
            return [str(slug) for slug in cast("list[object]", slugs)]
    return [template_id]


def _map(value: object) -> dict[str, str]:
    if not isinstance(value, Mapping):
        return {}
    return {name: _text(each) for name, each in cast("Mapping[str, object]", value).items()}


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _values(cell: str, path: str) -> list[str] | None:
    if not path:
        return [cell]
    try:
        value: object = json.loads(cell)
    except (ValueError, RecursionError):
        return None
    names = [name for name in path.removeprefix("$").replace("/", ".").split(".") if name]
    found = list(_at(value, names))
    return [_text(each).strip() for each in found if each is not None] if found else None


def _at(value: object, names: Sequence[str]) -> Iterator[object]:
    """Yield the values at a path. In a list, the path continues in each item."""
    if isinstance(value, list):
        for item in cast("list[object]", value):
            yield from _at(item, names)
    elif not names:
        yield value
    elif isinstance(value, dict) and names[0] in value:
        yield from _at(cast("dict[str, object]", value)[names[0]], names[1:])
