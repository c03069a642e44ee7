"""Replace the names of sources and templates in specs by the values that the API takes."""

from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple, Protocol

import msgspec

from asyncmig.customers.catalog import CatalogueItem, named
from asyncmig.customers.spec import Spec
from asyncmig.errors import InvalidInput

__all__ = ["HasNames", "ReadItems", "ResolvedSpec", "find_item", "resolve_spec"]

ReadItems = Callable[[float], Awaitable[Sequence[CatalogueItem] | None]]
"""Returns the account's sources or templates as they were at most so many seconds ago; None if the server does not
list them."""
_KEPT = 3600.0
"""Seconds for which a list of the account is used."""
_RECHECK = 60.0
"""Seconds after which a list is read again for a name that it lacks."""


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
