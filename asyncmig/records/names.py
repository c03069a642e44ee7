"""Replace the names of sources and templates in specs by the values that the API takes.

The names are looked up in the account's lists, which a session reads once for all customers.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from contextvars import Context
from functools import partial
from typing import Generic, TypeVar, final

import msgspec

from asyncmig._core.endpoint import Endpoint
from asyncmig.customers.catalog import CatalogueItem, named
from asyncmig.customers.spec import HasNames, ResolvedSpec, Spec
from asyncmig.errors import InvalidInput, NotFound

__all__ = ["NameLists", "list_requests", "resolve_spec"]

ReadItems = Callable[[float], Awaitable[Sequence[CatalogueItem] | None]]
"""Returns the account's sources or templates as they were at most so many seconds ago; None if the server does not
list them."""
_KEPT = 3600.0
"""Seconds for which a list of the account is used."""
_RECHECK = 60.0
"""Seconds after which a list is read again for a name that it lacks."""
ListItems = Callable[[], Awaitable[Sequence[CatalogueItem]]]
"""Requests a list of the account. Raises `NotFound` if the server has no such list."""
IsId = Callable[[str], bool]
"""Whether the API takes a value as it is, so that it need not be looked up."""
_Items = Sequence[CatalogueItem] | None


T = TypeVar("T")


@final
class SharedRead(Generic[T]):
    """Keeps the last result of a read. Tasks that ask at the same time share one read, and its failure."""

    __slots__ = ("_at", "_kept", "_task", "_waiting")

    def __init__(self) -> None:
        self._kept: tuple[T] | None = None
        self._at = 0.0
        self._task: asyncio.Task[T] | None = None
        self._waiting = 0

    async def get(self, read: Callable[[], Awaitable[T]], *, max_age: float) -> T:
        """Return the kept result if it is at most `max_age` seconds old, or else what `read` returns now.

        Raises what `read` raises. The read is cancelled if all tasks that wait for it are.
        """
        loop = asyncio.get_running_loop()
        if self._kept is not None and loop.time() - self._at <= max_age:
            return self._kept[0]
        if self._task is None:
            # In an empty context, because the read belongs to no customer and to no step of one.
            self._task = loop.create_task(self._read(read), context=Context())
        task = self._task
        self._waiting += 1
        try:
            return await asyncio.shield(task)
        finally:
            self._waiting -= 1
            if not self._waiting:
                task.cancel()

    async def _read(self, read: Callable[[], Awaitable[T]]) -> T:
        try:
            value = await read()
        finally:
            self._task = None
        self._kept, self._at = (value,), asyncio.get_running_loop().time()
        return value


class NameLists:
    """The lists of an account as the session read them last. Each API generation has a subclass of its own."""

    __slots__ = ("_sources", "_templates")

    def __init__(self) -> None:
        self._sources, self._templates = SharedRead[_Items](), SharedRead[_Items]()

    async def resolve(
        self, specs: Iterable[Spec], sources: ListItems, templates: ListItems, *, is_id: IsId
    ) -> list[ResolvedSpec]:
        """Return the specs with ids; see `Generation.resolve`."""
        source = partial(_id_of, "source", _reader(self._sources, sources), is_id)
        template = partial(_id_of, "templates", _reader(self._templates, templates), is_id)
        return [await resolve_spec(spec, source, template) for spec in specs]


def _reader(shared: SharedRead[_Items], listed: ListItems) -> ReadItems:
    async def read() -> _Items:
        with suppress(NotFound):
            return await listed()
        return None

    return lambda max_age: shared.get(read, max_age=max_age)


async def _id_of(field: str, read: ReadItems, is_id: IsId, wanted: str) -> str:
    return wanted if is_id(wanted) else (await _find_item(field, wanted, read)).id


async def _find_item(field: str, wanted: str, read: ReadItems) -> CatalogueItem:
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


def list_requests(
    customers: Iterable[HasNames], *, sources: Endpoint, templates: Endpoint, is_id: IsId
) -> Mapping[str, int]:
    """Return the requests, by endpoint, that `NameLists.resolve` sends for these customers."""
    known = list(customers)
    needed = {
        sources.key: any(not is_id(each.source) for each in known),
        templates.key: any(not is_id(name) for each in known for name in each.templates or ()),
    }
    return {endpoint: 1 for endpoint, is_needed in needed.items() if is_needed}
