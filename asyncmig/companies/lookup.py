"""Look up sources, templates and sheets by name or id."""

from collections.abc import Sequence
from typing import TypeVar

from asyncmig._core.arguments import checked_text
from asyncmig.companies.wire import Sheet, Source, Template
from asyncmig.errors import InvalidInput

__all__ = ["called", "named", "source_id"]

_Named = TypeVar("_Named", Source, Template, Sheet)


def named(field: str, wanted: str, among: Sequence[_Named]) -> _Named:
    """Return the source, template or sheet with the id or name `wanted`.

    Raises `InvalidInput` naming `field` if there is none, or if several have the name.
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
    """Return the id of a source, given by its id or as a `Source`. Raises `InvalidInput`."""
    return checked_text(field, source.id if isinstance(source, Source) else source)


def called(name: str, among: Sequence[_Named]) -> list[_Named]:
    """Return the items with exactly this name, or else those with this name in any case."""
    return [each for each in among if each.name == name] or [
        each for each in among if each.name.casefold() == name.casefold()
    ]
