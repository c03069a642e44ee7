"""Look up the sources and templates that a spec names: an unknown one would cost one of a few creates in an hour."""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import final

from asyncmig._io.context import SessionContext
from asyncmig._io.shared_read import SharedRead
from asyncmig.customers.catalog import CatalogueItem
from asyncmig.customers.names import HasNames, ReadItems, ResolvedSpec, find_item, resolve_spec
from asyncmig.customers.spec import Spec
from asyncmig.errors import NotFound
from asyncmig.migrations import routes
from asyncmig.migrations.catalog import Migrations

__all__ = ["catalogue_requests", "resolve"]

_Items = Sequence[CatalogueItem] | None


@final
class _Lists:
    """The lists of the account, as the session read them last."""

    __slots__ = ("sources", "templates")

    def __init__(self) -> None:
        self.sources, self.templates = SharedRead[_Items](), SharedRead[_Items]()


async def resolve(context: SessionContext, specs: Iterable[Spec]) -> list[ResolvedSpec]:
    """Return the specs with source names as the server lists them, and with slugs; see `Generation.resolve`."""
    migrations, lists = Migrations(context), context.kept(_Lists)
    source = partial(_id_of, "source", _reader(lists.sources, migrations.sources))
    template = partial(_id_of, "templates", _reader(lists.templates, migrations.templates))
    return [await resolve_spec(spec, source, template) for spec in specs]


def _reader(
    shared: SharedRead[_Items], listed: Callable[[], Awaitable[Sequence[CatalogueItem]]]
) -> ReadItems:
    async def read() -> _Items:
        with suppress(NotFound):
            return await listed()
        return None

    return lambda max_age: shared.get(read, max_age=max_age)


async def _id_of(field: str, read: ReadItems, wanted: str) -> str:
    return (await find_item(field, wanted, read)).id if wanted else wanted


def catalogue_requests(customers: Iterable[HasNames]) -> Mapping[str, int]:
    """Return the requests, by endpoint, that `resolve` sends for these customers."""
    known = list(customers)
    needed = {
        routes.LIST_SOURCES.key: any(each.source for each in known),
        routes.LIST_TEMPLATES.key: any(each.templates for each in known),
    }
    return {endpoint: 1 for endpoint, is_needed in needed.items() if is_needed}
