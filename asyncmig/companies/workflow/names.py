"""Look up the ids of sources and templates that a spec gives by name."""

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import final

from asyncmig._io.context import SessionContext
from asyncmig._io.shared_read import SharedRead
from asyncmig.companies import routes
from asyncmig.companies.catalog import Companies
from asyncmig.customers.catalog import CatalogueItem
from asyncmig.customers.names import HasNames, ReadItems, ResolvedSpec, find_item, resolve_spec
from asyncmig.customers.spec import Spec
from asyncmig.errors import NotFound

__all__ = ["catalogue_requests", "differs", "resolve"]

_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_Items = Sequence[CatalogueItem] | None


@final
class _Lists:
    """The lists of the account, as the session read them last."""

    __slots__ = ("sources", "templates")

    def __init__(self) -> None:
        self.sources, self.templates = SharedRead[_Items](), SharedRead[_Items]()


async def resolve(context: SessionContext, specs: Iterable[Spec]) -> list[ResolvedSpec]:
    """Return the specs with ids; see `Generation.resolve`. A UUID is an id; any other text is looked up."""
    companies, lists = Companies(context), context.kept(_Lists)
    source = partial(_id_of, "source", _reader(lists.sources, companies.sources))
    template = partial(_id_of, "templates", _reader(lists.templates, companies.templates))
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
    return wanted if _ID.fullmatch(wanted) else (await find_item(field, wanted, read)).id


def differs(source: str, templates: Sequence[str] | None, spec: Spec) -> bool:
    """Return whether a spec has another source or other templates than these ids. Names are not compared."""
    pairs = [((source,), (spec.source,)), (templates or (), spec.templates or ())]
    return any(tuple(old) != new and all(map(_ID.fullmatch, (*old, *new))) for old, new in pairs)


def catalogue_requests(customers: Iterable[HasNames]) -> Mapping[str, int]:
    """Return the requests, by endpoint, that `resolve` sends for these customers."""
    known = list(customers)
    requests = {
        routes.LIST_SOURCES.key: any(not _ID.fullmatch(each.source) for each in known),
        routes.LIST_TEMPLATES.key: any(
            not _ID.fullmatch(name) for each in known for name in each.templates or ()
        ),
    }
    return {endpoint: 1 for endpoint, is_needed in requests.items() if is_needed}
