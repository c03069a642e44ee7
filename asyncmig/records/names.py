"""Look up names of sources and templates in the account's lists, which a session reads once for all customers."""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial

from asyncmig._core.endpoint import Endpoint
from asyncmig._io.shared_read import SharedRead
from asyncmig.customers.catalog import CatalogueItem
from asyncmig.customers.names import HasNames, ReadItems, ResolvedSpec, find_item, resolve_spec
from asyncmig.customers.spec import Spec
from asyncmig.errors import NotFound

__all__ = ["NameLists", "list_requests"]

ListItems = Callable[[], Awaitable[Sequence[CatalogueItem]]]
"""Requests a list of the account. Raises `NotFound` if the server has no such list."""
IsId = Callable[[str], bool]
"""Whether the API takes a value as it is, so that it need not be looked up."""
_Items = Sequence[CatalogueItem] | None


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
    return wanted if is_id(wanted) else (await find_item(field, wanted, read)).id


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
