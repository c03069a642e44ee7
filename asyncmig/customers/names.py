"""Find sources and templates by name, and replace the names in specs by the values that the API takes."""

from collections.abc import Awaitable, Callable, Sequence
from difflib import get_close_matches
from typing import NamedTuple, Protocol, TypeVar

import msgspec

from asyncmig._core.arguments import checked_text
from asyncmig.customers.catalog import CatalogueItem
from asyncmig.customers.spec import Spec
from asyncmig.errors import InvalidInput

__all__ = ["HasNames", "ReadItems", "ResolvedSpec", "called", "find_item", "named", "resolve_spec"]

ReadItems = Callable[[float], Awaitable[Sequence[CatalogueItem] | None]]
"""Returns the account's sources or templates as they were at most so many seconds ago; None if the server does not
list them."""
_KEPT = 3600.0
"""Seconds for which a list of the account is used."""
_RECHECK = 60.0
"""Seconds after which a list is read again for a name that it lacks."""


class _Listed(Protocol):
    @property
    def id(self) -> str: ...
    @property
    def name(self) -> str: ...


_FEW = 20
"""How many names an error lists in full."""
_Named = TypeVar("_Named", bound=_Listed)


def named(field: str, wanted: str, among: Sequence[_Named]) -> _Named:
    """Return the one of `among` whose id or name is `wanted`.

    Raises `InvalidInput` naming `field` if there is none, or more than one of that name.
    """
    checked_text(field, wanted)
    found = [each for each in among if each.id == wanted] or called(wanted, among)
    if len(found) == 1:
        return found[0]
    if found:
        ids = [each.id for each in found]
        raise InvalidInput(field, wanted, f"is the name of {len(ids)} of them: use an id of {ids}")
    raise InvalidInput(
        field, wanted, f"is not known; {_offer(wanted, sorted({each.name for each in among}))}"
    )


def _offer(wanted: str, names: Sequence[str]) -> str:
    """Return the names that `wanted` may stand for: all of a few, the most similar ones of many."""
    if len(names) <= _FEW:
        return f"there are {list(names)}"
    folded = {name.casefold(): name for name in names}
    near = [folded[each] for each in get_close_matches(wanted.casefold(), folded, n=5)]
    return (
        f"there are {len(names)}, and the most similar are {near}"
        if near
        else f"none of {len(names)} is similar"
    )


def called(name: str, among: Sequence[_Named]) -> list[_Named]:
    """Return those of this name; if there are none, those whose name differs only in upper and lower case."""
    return [each for each in among if each.name == name] or [
        each for each in among if each.name.casefold() == name.casefold()
    ]


class HasNames(Protocol):
    """A customer with the names or ids of its source and templates: a `Spec`, or a line of a manifest."""

    @property
    def source(self) -> str: ...
    @property
    def templates(self) -> tuple[str, ...] | None: ...


class ResolvedSpec(NamedTuple):
    """A spec with the values that the API takes, and an error for each value that was not found."""

    spec: Spec
    faults: tuple[InvalidInput, ...]


async def find_item(field: str, wanted: str, read: ReadItems) -> CatalogueItem:
    """Return the source or template with the id or name `wanted`.

    Raises `InvalidInput` naming `field` if there is none, if several have the name, or if the server does not list
    them; and what `read` raises.
    """
    for age in (_KEPT, _RECHECK):
        items = await read(age)
        if items is None:
            reason = "is not an id, and this server does not list names: use the id"
            raise InvalidInput(field, wanted, reason)
        try:
            return named(field, wanted, items)
        except InvalidInput:
            if age == _RECHECK:
                raise
    raise AssertionError


async def resolve_spec(
    spec: Spec, source: Callable[[str], Awaitable[str]], template: Callable[[str], Awaitable[str]]
) -> ResolvedSpec:
    """Return `spec` with the values that `source` and `template` return for its own.

    An `InvalidInput` that they raise becomes a fault, and the value stays.
    """
    faults: list[InvalidInput] = []

    async def found(look_up: Callable[[str], Awaitable[str]], value: str) -> str:
        try:
            return await look_up(value)
        except InvalidInput as error:
            faults.append(error)
            return value

    changed = msgspec.structs.replace(
        spec,
        source=await found(source, spec.source),
        templates=None
        if spec.templates is None
        else tuple(dict.fromkeys([await found(template, each) for each in spec.templates])),
    )
    return ResolvedSpec(changed, tuple(faults))
