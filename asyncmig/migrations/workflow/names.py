"""Look up the sources and templates that a spec names: an unknown one would cost one of a few creates in an hour."""

from collections.abc import Iterable, Mapping
from typing import final

from asyncmig._io.context import SessionContext
from asyncmig.customers.names import HasNames, ResolvedSpec
from asyncmig.customers.spec import Spec
from asyncmig.migrations import routes
from asyncmig.migrations.catalog import Migrations
from asyncmig.records.names import NameLists, list_requests

__all__ = ["catalogue_requests", "resolve"]


@final
class _Lists(NameLists):
    __slots__ = ()


def _is_absent(text: str) -> bool:
    """Return whether there is nothing to look up: a migration may have no source."""
    return not text


async def resolve(context: SessionContext, specs: Iterable[Spec]) -> list[ResolvedSpec]:
    """Return the specs with source names as the server lists them, and with slugs; see `Generation.resolve`."""
    migrations = Migrations(context)
    lists = context.kept(_Lists)
    return await lists.resolve(specs, migrations.sources, migrations.templates, is_id=_is_absent)


def catalogue_requests(customers: Iterable[HasNames]) -> Mapping[str, int]:
    """Return the requests, by endpoint, that `resolve` sends for these customers."""
    return list_requests(
        customers, sources=routes.LIST_SOURCES, templates=routes.LIST_TEMPLATES, is_id=_is_absent
    )
