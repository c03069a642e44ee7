"""What a name or an id stands for among sources, templates or sheets."""

from collections.abc import Sequence
from typing import TypeVar

from asyncmig.companies.wire import Sheet, Source, Template
from asyncmig.errors import InvalidInput

__all__ = ["find", "named"]

_Named = TypeVar("_Named", Source, Template, Sheet)


def named(field: str, wanted: str, among: Sequence[_Named]) -> _Named:
    """Return the source, template or sheet that `wanted` names, by id or by name.

    Raises `InvalidInput` naming `field` if there is none, or more than one of that name.
    """
    found = [each for each in among if each.id == wanted] or [each for each in among if each.name == wanted]
    if len(found) == 1:
        return found[0]
    if found:
        ids = [each.id for each in found]
        raise InvalidInput(field, wanted, f"is the name of {len(ids)} of them: use an id of {ids}")
    raise InvalidInput(field, wanted, f"is not known; there are {sorted(each.name for each in among)}")


def find(field: str, wanted: str, among: Sequence[_Named]) -> str:
    """Return the id of what `wanted` names; see `named`."""
    return named(field, wanted, among).id
