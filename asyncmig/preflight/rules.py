"""Checks cells by the rules of a template's columns.

The long form of a link rule has paths into cells that contain JSON text, and maps that replace values. The API does
not define them further. A cell in which a path leads nowhere is therefore not checked.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import cast, final

from asyncmig.customers.catalog import ColumnSpec, TemplateRules
from asyncmig.preflight.findings import Finding, FindingCounter, Kind
from asyncmig.preflight.schemas import JsonSchema, Pattern, compiled_pattern, compiled_schema

__all__ = ["ColumnRules", "LinkTarget", "MemoryBound", "Seen", "Targets", "targets_of"]

_WORDS: Mapping[Kind, str] = {
    "required": "is required, and empty",
    "unique": "must be unique, and a value is repeated",
    "strict": "does not match the rule {pattern}",
    "strict_in_part": "matches the rule {pattern} only in part, which the server may accept,",
    "schema": "is not JSON that its schema allows",
    "link": "has a value that the linked column does not have,",
}


@final
@dataclass(slots=True)
class MemoryBound:
    """The number of values that may still be remembered, by several `Seen` together."""

    left: int


@final
@dataclass(slots=True, eq=False)
class Seen:
    """Remembers values by 64-bit hashes. Among a million values, the probability of a collision is 1 in 37
    million."""

    bound: MemoryBound
    complete: bool = True
    """Whether all values were remembered."""
    _hashes: set[int] = field(default_factory=set[int])

    def __contains__(self, value: str) -> bool:
        return hash(value) in self._hashes

    def add(self, value: str) -> bool:
        """Remember `value` within the limit. Return whether it was seen before."""
        number = hash(value)
        if number in self._hashes:
            return True
        if self.bound.left:
            self.bound.left -= 1
            self._hashes.add(number)
        else:
            self.complete = False
        return False


@final
@dataclass(frozen=True, slots=True)
class LinkTarget:
    """A column to which links point: the id of its template, and its name."""

    template_id: str
    column_name: str
    key_path: str
    """The path of the value in a cell with JSON text; empty for the whole cell."""
    key_map: Mapping[str, str] = field(hash=False)

    def keys(self, cell: str) -> Sequence[str]:
        """Return the values with which other cells can link to this cell."""
        return [self.key_map.get(value, value) for value in _values(cell, self.key_path) or ()]


@final
@dataclass(frozen=True, slots=True)
class LinkRule:
    """The rule that each value of a cell must be in one of the columns `targets`."""

    targets: tuple[LinkTarget, ...]
    value_path: str
    value_map: Mapping[str, str]

    def values(self, cell: str) -> Sequence[str] | None:
        """Return the values of a cell; None if its path leads nowhere in the cell."""
        found = _values(cell, self.value_path)
        return None if found is None else [self.value_map.get(value, value) for value in found]


def _link_rules(column: ColumnSpec, *, enforces_all: bool) -> list[LinkRule]:
    """Return the link rules of a column that the server enforces; see `TemplateRules.enforces_all`."""
    if column.rule != "link" and not enforces_all:
        return []
    rules: list[LinkRule] = []
    for link in column.links:
        column_name, key_path, key_map = link.column_name or "", link.key_path or "", _map(link.key_map)
        templates = _templates(link.template_id or "")
        targets = tuple(LinkTarget(each, column_name, key_path, key_map) for each in templates)
        rules.append(LinkRule(targets, link.value_path or "", _map(link.value_map)))
    return rules


def _templates(template_id: str) -> list[str]:
    """Return the templates of a link. A link may have several, and a discriminator in each row chooses one."""
    with suppress(ValueError, RecursionError):
        slugs: object = json.loads(template_id)
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


Targets = Mapping[LinkTarget, Seen]
"""The values of each column to which links point and which a file has."""


def targets_of(templates: Sequence[TemplateRules]) -> set[LinkTarget]:
    """Return the columns to which links point."""
    return {
        target
        for template in templates
        for column in template.columns
        for rule in _link_rules(column, enforces_all=template.enforces_all)
        for target in rule.targets
    }


_Rule = Callable[[str], Kind | None]
"""Returns the kind of finding for a cell that is not blank, or None."""


def _unlinked(rules: Sequence[tuple[LinkRule, Sequence[Seen]]], cell: str) -> Kind | None:
    """Check a cell by link rules. It is enough that all its values satisfy one of them."""
    for rule, targets in rules:
        values = rule.values(cell)
        if values is None or all(any(value in target for target in targets) for value in values):
            return None
    return "link"


def _mismatched(pattern: Pattern, cell: str) -> Kind | None:
    """Check a cell by a pattern.

    A partial match is a kind of its own: the API does not define whether the pattern must match the whole cell.
    """
    text = cell.encode("utf-8", "replace")
    if pattern.fullmatch(text):
        return None
    return "strict_in_part" if pattern.search(text) else "strict"


@final
class ColumnRules:
    """Checks the cells of one column by its rules. `notes` lists the rules that are not checked."""

    __slots__ = ("_column", "_counters", "_rules", "_schema", "_unique", "notes")

    def __init__(
        self, column: ColumnSpec, seen: Seen, targets: Targets | None, *, enforces_all: bool = False
    ) -> None:
        """`enforces_all`: see `TemplateRules.enforces_all`."""
        self._column, self._unique = column, seen
        self._rules: list[_Rule] = []
        self._schema: JsonSchema | None = None
        self._counters: dict[Kind, FindingCounter] = {kind: FindingCounter() for kind in _WORDS}
        self.notes: list[str] = []
        if column.unique:
            self._rules.append(lambda cell: "unique" if seen.add(cell) else None)
        if column.schema is not None:
            self._add_schema(column.schema)
        elif column.pattern and (column.rule == "strict" or enforces_all):
            self._add_strict(column.pattern)
        if links := _link_rules(column, enforces_all=enforces_all):
            self._add_link(links, targets)

    @property
    def is_exact(self) -> bool:
        """Whether cells are compared with other cells or a pattern, so that invisible characters change the
        result."""
        return bool(self._rules)

    def _add_strict(self, pattern: str) -> None:
        compiled = compiled_pattern(pattern)
        if isinstance(compiled, str):
            self.notes.append(f"{self._column.name}: the strict rule {_short(pattern)} {compiled}")
        else:
            self._rules.append(partial(_mismatched, compiled))

    def _add_schema(self, schema: object) -> None:
        compiled = compiled_schema(schema)
        if isinstance(compiled, str):
            self.notes.append(f"{self._column.name}: the schema {compiled}")
        else:
            self._schema = compiled
            self._rules.append(lambda cell: None if compiled.matches(cell) else "schema")

    def _add_link(self, links: Sequence[LinkRule], targets: Targets | None) -> None:
        name = self._column.name
        if targets is None:
            self.notes.append(f"{name}: the link rule is not checked, because not all rows are read")
            return
        found = [targets.get(target) for rule in links for target in rule.targets]
        if all(seen is not None and seen.complete for seen in found):
            rules = [(rule, [targets[target] for target in rule.targets]) for rule in links]
            self._rules.append(partial(_unlinked, rules))
        elif any(seen is not None and not seen.complete for seen in found):
            self.notes.append(
                f"{name}: the link rule is not checked, because not all values that it points to are known"
            )
        else:
            self.notes.append(f"{name}: the link rule is not checked: no file has the column it points to")

    def check(self, line: int, cell: str) -> None:
        """Check the cell of one row by every rule. `cell` is stripped of white space."""
        if not cell:
            if self._column.required:
                self._counters["required"].add(line)
            return
        for rule in self._rules:
            if kind := rule(cell):
                self._counters[kind].add(line, cell)

    def findings(self) -> list[Finding]:
        """Return a finding for each broken rule."""
        if self._column.unique and not self._unique.complete:
            self.notes.append(f"{self._column.name}: too many values to find every duplicate")
        if self._schema is not None and self._schema.failure is not None:
            self.notes.append(
                f"{self._column.name}: some cells cannot be checked by the schema ({self._schema.failure})"
            )
        name, pattern = self._column.name, _short(self._column.pattern or "")
        return [
            counter.finding(kind, f"{name}: {_WORDS[kind].format(pattern=pattern)}", column=name)
            for kind, counter in self._counters.items()
            if counter.count
        ]


def _short(pattern: str) -> str:
    return pattern if len(pattern) <= 60 else f"{pattern[:59]}…"
