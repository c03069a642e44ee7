"""Replace the names of sources and templates in specs by the values that the API takes.

The names are looked up in the account's lists, which a session reads once for all customers.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from contextvars import Context
from typing import final

import msgspec

from asyncmig._core.endpoint import Endpoint
from asyncmig.customers.catalog import CatalogueItem, named
from asyncmig.customers.spec import HasNames, ResolvedSpec, Spec
from asyncmig.errors import InvalidInput, NotFound

__all__ = ["NameLists", "list_requests", "resolve_spec"]

ListItems = Callable[[], Awaitable[Sequence[CatalogueItem]]]
"""Requests a list of the account. Raises `NotFound` if the server has no such list."""
IsId = Callable[[str], bool]
"""Whether the API takes a value as it is, so that it need not be looked up."""
_KEPT = 3600.0
"""Seconds for which a list of the account is used."""
_RECHECK = 60.0
"""Seconds after which a list is read again for a name that it lacks."""


@final
class AccountList:
    """The sources or the templates of an account, as they were read last.

    Tasks that ask at the same time share one request, and its failure.
    """

    __slots__ = ("_at", "_items", "_task", "_waiting")

    def __init__(self) -> None:
        self._items: Sequence[CatalogueItem] | None = None
        """None if the server does not list them."""
        self._at = -math.inf
        self._task: asyncio.Task[None] | None = None
        self._waiting = 0

    async def find(self, field: str, wanted: str, request: ListItems) -> CatalogueItem:
        """Return the source or template with the id or name `wanted`.

        Raises `InvalidInput` naming `field` if there is none, if several have the name, or if the server does not
        list them; and what `request` raises.
        """
        await self._read(request, max_age=_KEPT)
        if self._items is not None:
            with suppress(InvalidInput):
                return named(field, wanted, self._items)
            await self._read(request, max_age=_RECHECK)
        if self._items is None:
            raise InvalidInput(field, wanted, "is not an id, and this server does not list names: use the id")
        return named(field, wanted, self._items)

    async def _read(self, request: ListItems, *, max_age: float) -> None:
        """Read the list, unless it was read at most `max_age` seconds ago.

        Raises what `request` raises. The request is cancelled if all tasks that wait for it are.
        """
        loop = asyncio.get_running_loop()
        if loop.time() - self._at <= max_age:
            return
        if self._task is None:
            # In an empty context, because the request belongs to no customer and to no step of one.
            self._task = loop.create_task(self._request(request), context=Context())
        task = self._task
        self._waiting += 1
        try:
            await asyncio.shield(task)
        finally:
            self._waiting -= 1
            if not self._waiting:
                task.cancel()
                self._task = None  # a task that calls meanwhile must not wait for a cancelled one

    async def _request(self, request: ListItems) -> None:
        try:
            self._items = await request()
        except NotFound:
            self._items = None
        self._at = asyncio.get_running_loop().time()


class NameLists:
    """The lists of an account as the session read them last. Each API generation has a subclass of its own."""

    __slots__ = ("_sources", "_templates")

    def __init__(self) -> None:
        self._sources, self._templates = AccountList(), AccountList()

    async def resolve(
        self, specs: Iterable[Spec], sources: ListItems, templates: ListItems, *, is_id: IsId
    ) -> list[ResolvedSpec]:
        """Return the specs with ids; see `Generation.resolve`."""

        async def source(wanted: str) -> str:
            return wanted if is_id(wanted) else (await self._sources.find("source", wanted, sources)).id

        async def template(wanted: str) -> str:
            return (
                wanted if is_id(wanted) else (await self._templates.find("templates", wanted, templates)).id
            )

        return [await resolve_spec(spec, source, template) for spec in specs]


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
