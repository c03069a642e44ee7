"""Find a source, template or sheet by its id or its name."""

from collections.abc import Sequence
from typing import Protocol, TypeVar

from asyncmig._core.arguments import checked_text
from asyncmig.customers.template_rules import CatalogueItem
from asyncmig.errors import InvalidInput

__all__ = ["called", "named", "source_id"]


class _Listed(Protocol):
    @property
    def id(self) -> str: ...
    @property
    def name(self) -> str: ...


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
    raise InvalidInput(field, wanted, f"is not known; there are {sorted(each.name for each in among)}")


def source_id(field: str, source: object) -> str:
    """Return the id of a source that is given by its id or as a `Source`. Raises `InvalidInput`."""
    return checked_text(field, source.id if isinstance(source, CatalogueItem) else source)


def called(name: str, among: Sequence[_Named]) -> list[_Named]:
    """Return those of this name; if there are none, those whose name differs only in upper and lower case."""
    return [each for each in among if each.name == name] or [
        each for each in among if each.name.casefold() == name.casefold()
    ]
