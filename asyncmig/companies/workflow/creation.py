"""Create a customer's company exactly once. A create request whose response was lost cannot be looked up."""

import asyncio
from collections.abc import Coroutine
from functools import partial
from typing import TypeVar, final

import anyio

from asyncmig._core.endpoint import Endpoint
from asyncmig._core.retry import TRANSIENT
from asyncmig._io.context import SessionContext
from asyncmig.companies import routes
from asyncmig.companies.catalog import Companies
from asyncmig.companies.company import Company
from asyncmig.companies.workflow.names import resolve
from asyncmig.companies.workflow.record import Record, with_spec
from asyncmig.customers.spec import Spec
from asyncmig.errors import ApiError, BadRequest, Conflict, UnexpectedReply, UnknownOutcome
from asyncmig.records.record_keeper import RecordKeeper

__all__ = ["Creation", "refuses_account", "unknown"]

T = TypeVar("T")
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

    __slots__ = ("_context", "_progress", "_spec")

    def __init__(self, context: SessionContext, spec: Spec, progress: RecordKeeper[Record]) -> None:
        self._context, self._spec, self._progress = context, spec, progress

    async def company(self) -> Company:
        """Return the company of the record, or create it.

        Raises `UnknownOutcome` if it is unknown whether a company with this external id is ours.
        """
        companies, record = Companies(self._context), self._progress.record
        if record.company_id is not None:
            return companies.open(record.company_id, external_id=record.external_id, sheets=record.sheets)
        await self._resolve()
        self._progress.begin("creating")
        doubtful = record.create_sent
        if not doubtful:
            await self._progress.write("create", create_sent=True)
        return await _with_grace(self._provision(doubtful=doubtful))

    async def _resolve(self) -> None:
        """Replace names in the record by ids. Raises `InvalidInput` for a name that the account does not have."""
        find = partial(resolve, self._context, [self._spec])
        (found,) = await self._progress.retry_while_away(find)
        if found.faults:
            raise found.faults[0]
        self._progress.record = with_spec(self._progress.record, found.spec)

    async def _provision(self, *, doubtful: bool) -> Company:
        try:
            company = await self._progress.retry_while_away(self._create)
        except (Conflict, BadRequest) as error:
            if doubtful or isinstance(error, Conflict):
                raise unknown(routes.CREATE_COMPANY, error) from error
            await self._progress.keep("refused", create_sent=False)
            raise
        except UnexpectedReply as error:
            if refuses_account(error) and not (doubtful or error.after_doubt):
                await self._progress.keep("refused", create_sent=False)
            raise
        await self._progress.keep(
            "created",
            create_sent=False,
            company_id=company.id,
            sheets=company.sheets,
            adopted=not company.is_new,  # a lost journal may have recorded an import of it
        )
        return company

    async def _create(self) -> Company:
        record = self._progress.record
        try:
            return await Companies(self._context).create(
                name=record.name,
                source=record.source,
                external_id=record.external_id,
                template_ids=record.template_ids,
                connections=self._spec.connections,
                rank=self._progress.rank,
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


def unknown(endpoint: Endpoint, error: ApiError) -> UnknownOutcome:
    """Return the error for a refusal that an earlier attempt of ours may have caused."""
    return UnknownOutcome(endpoint.method, endpoint.template, str(error), "", endpoint.advice)
