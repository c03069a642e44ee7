"""Create a customer's company exactly once, or continue with one that exists.

Sources and templates that the spec names are looked up first; a UUID is an id. A create request whose response was
lost cannot be looked up. An adopted company may have an import already, which must not be repeated.
"""

import asyncio
import re
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from functools import partial
from typing import TypeVar, final

import anyio

from asyncmig._core.endpoint import Endpoint
from asyncmig._core.retry import TRANSIENT
from asyncmig._io.context import SessionContext
from asyncmig.companies import routes
from asyncmig.companies.catalog import Companies
from asyncmig.companies.company import Company
from asyncmig.companies.import_run import ImportRun
from asyncmig.companies.wire import ImportState
from asyncmig.companies.workflow.record import Record
from asyncmig.customers.spec import HasNames, ResolvedSpec, Spec
from asyncmig.customers.status import wall_clock
from asyncmig.errors import ApiError, BadRequest, Conflict, UnexpectedReply, UnknownOutcome
from asyncmig.records.names import NameLists, list_requests
from asyncmig.records.record_keeper import RecordKeeper

__all__ = [
    "Creation",
    "catalogue_requests",
    "differs",
    "look_first",
    "refuses_account",
    "resolve",
    "unknown",
]

T = TypeVar("T")
_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_FORBIDDEN = 403
_STARTS = frozenset(
    (endpoint.method, endpoint.template)
    for endpoint in (routes.CREATE_COMPANY, routes.START_IMPORT, routes.START_EXPORT)
)
_GRACE = 5.0
"""Seconds for which a cancelled migration waits for the response to its create request."""


@final
class Creation:
    """Opens the company that the journal records, or creates it."""

    __slots__ = ("_context", "_keeper", "_spec")

    def __init__(self, context: SessionContext, spec: Spec, keeper: RecordKeeper[Record]) -> None:
        self._context, self._spec, self._keeper = context, spec, keeper

    async def company(self) -> Company:
        """Return the company of the record, or create it.

        Raises `UnknownOutcome` if it is unknown whether a company with this external id is ours.
        """
        companies, record = Companies(self._context), self._keeper.record
        if record.company_id is not None:
            return companies.open(record.company_id, external_id=record.external_id, sheets=record.sheets)
        await self._resolve()
        self._keeper.begin("creating")
        doubtful = record.create_sent
        if not doubtful:
            await self._keeper.write("create", create_sent=True)
        return await _with_grace(self._provision(doubtful=doubtful))

    async def _resolve(self) -> None:
        """Replace names in the record by ids. Raises `InvalidInput` for a name that the account does not have."""
        find = partial(resolve, self._context, [self._spec])
        (found,) = await self._keeper.retry_while_away(find)
        if found.faults:
            raise found.faults[0]
        self._keeper.record = self._keeper.record.with_spec(found.spec)

    async def _provision(self, *, doubtful: bool) -> Company:
        try:
            company = await self._keeper.retry_while_away(self._create)
        except (Conflict, BadRequest) as error:
            if doubtful or isinstance(error, Conflict):
                raise unknown(routes.CREATE_COMPANY, str(error)) from error
            await self._keeper.keep("refused", create_sent=False)
            raise
        except UnexpectedReply as error:
            if refuses_account(error) and not (doubtful or error.after_doubt):
                await self._keeper.keep("refused", create_sent=False)
            raise
        await self._keeper.keep(
            "created",
            create_sent=False,
            company_id=company.id,
            sheets=company.sheets,
            adopted=not company.is_new,  # a lost journal may have recorded an import of it
        )
        # A handle without the rest of the response, because a fleet keeps thousands of handles.
        return Company(
            self._context,
            company.id,
            external_id=self._keeper.record.external_id,
            sheets=company.sheets,
            is_new=company.is_new,
        )

    async def _create(self) -> Company:
        record = self._keeper.record
        try:
            return await Companies(self._context).create(
                name=record.name,
                source=record.source,
                external_id=record.external_id,
                template_ids=record.template_ids,
                connections=self._spec.connections,
                rank=self._keeper.rank,
            )
        except UnknownOutcome as error:
            if isinstance(error.__cause__, TRANSIENT):
                raise error.__cause__ from error  # the external id makes a repeat safe
            raise


async def _with_grace(step: Coroutine[object, object, T]) -> T:
    """Run a request whose outcome cannot be looked up later. If cancelled, wait `_GRACE` seconds for its response."""
    task = asyncio.ensure_future(step)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        with anyio.CancelScope(shield=True):
            await asyncio.wait([task], timeout=_GRACE)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)  # its outcome is in the journal
        raise


def refuses_account(error: Exception) -> bool:
    """Return whether the server says that the account may not start work: a 403, but not a page of a proxy.

    Uploads are left out: the storage answers 403 when a signed URL has expired.
    """
    return (
        isinstance(error, ApiError)
        and error.status == _FORBIDDEN
        and error.is_documented
        and (error.method, error.endpoint) in _STARTS
    )


def unknown(endpoint: Endpoint, reason: str) -> UnknownOutcome:
    """Return the error for a request of ours that an earlier attempt, or an earlier process, may have sent."""
    return UnknownOutcome(endpoint.method, endpoint.template, reason, "", endpoint.advice)


# Names of sources and templates


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


# An adopted company


async def look_first(company: Company, keeper: RecordKeeper[Record]) -> ImportRun | None:
    """Return an earlier import of an adopted company: the running one, the newest completed one, or a failed one."""
    keeper.begin("starting", "looks for an earlier import")
    states, is_cut = await keeper.retry_while_away(partial(_list, company, keeper.rank))
    running = [state for state in states if state.status not in routes.IMPORT.terminal]
    found = running or [state for state in states if state.status == "completed"]
    if is_cut and not found:
        raise unknown(
            routes.START_IMPORT,
            "the server does not give all imports of the company, and one may be among the others",
        )
    for state in found or states:
        run_id = state.run_id or state.id
        if run_id is None:
            raise unknown(
                routes.START_IMPORT,
                f"the company has an import that is {state.status}, and the server does not say its id",
            )
        keeper.note(f"the company had an import that is {state.status}; it was not repeated")
        epoch = max(keeper.record.epoch, len(states) - 1)  # each of them may have used an idempotency key
        await keeper.keep("found", run_id=run_id, started_at=wall_clock(), has_other_rows=True, epoch=epoch)
        return company.imports.found(state)
    return None


async def _list(company: Company, rank: float) -> tuple[list[ImportState], bool]:
    pages = [page async for page in company.imports.pages(rank=rank)]
    return [state for states, _ in pages for state in states], any(is_cut for _, is_cut in pages)
