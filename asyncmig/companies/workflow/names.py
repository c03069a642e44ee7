"""The ids of sources and templates that a spec gives by name. A UUID is an id; any other text is looked up."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import final

from asyncmig._io.context import SessionContext
from asyncmig.companies import routes
from asyncmig.companies.catalog import Companies
from asyncmig.customers.names import HasNames, ResolvedSpec
from asyncmig.customers.spec import Spec
from asyncmig.records.names import NameLists, list_requests

__all__ = ["catalogue_requests", "differs", "resolve"]

_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


@final
class _Lists(NameLists):
    __slots__ = ()


def _is_id(text: str) -> bool:
    return _ID.fullmatch(text) is not None


async def resolve(context: SessionContext, specs: Iterable[Spec]) -> list[ResolvedSpec]:
    """Return the specs with ids; see `Generation.resolve`."""
    companies = Companies(context)
    lists = context.kept(_Lists)
    return await lists.resolve(specs, companies.sources, companies.templates, is_id=_is_id)


def differs(source: str, templates: Sequence[str] | None, spec: Spec) -> bool:
    """Return whether a spec has another source or other templates than these ids. Names are not compared."""
    pairs = [((source,), (spec.source,)), (templates or (), spec.templates or ())]
    return any(tuple(old) != new and all(map(_is_id, (*old, *new))) for old, new in pairs)


def catalogue_requests(customers: Iterable[HasNames]) -> Mapping[str, int]:
    """Return the requests, by endpoint, that `resolve` sends for these customers."""
    return list_requests(
        customers, sources=routes.LIST_SOURCES, templates=routes.LIST_TEMPLATES, is_id=_is_id
    )
