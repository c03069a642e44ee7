"""Create a migration's company, once: the one request that nobody can look up when its answer is lost."""

import asyncio
from collections.abc import Coroutine
from typing import TypeVar, final

import anyio

from asyncmig._core.endpoint import Endpoint
from asyncmig._io.context import SessionContext
from asyncmig.companies import routes
from asyncmig.companies.catalog import Companies
from asyncmig.companies.company import Company
from asyncmig.companies.workflow.record_keeper import TRANSIENT, RecordKeeper
from asyncmig.customers.spec import Spec
from asyncmig.errors import ApiError, BadRequest, Conflict, UnknownOutcome

__all__ = ["Creation", "unknown"]

T = TypeVar("T")
_GRACE = 5.0
"""Seconds that a cancelled migration waits for the answer to the creation of its company."""


@final
class Creation:
    """The company of one migration: the one that the journal has, or a new one."""

    __slots__ = ("_context", "_progress", "_spec")

    def __init__(self, context: SessionContext, spec: Spec, progress: RecordKeeper) -> None:
        self._context, self._spec, self._progress = context, spec, progress

    async def company(self) -> Company:
        """Return the company; create it where there is none.

        Raises `UnknownOutcome` where nobody can tell whether a company of this external id is ours.
        """
        companies, record = Companies(self._context), self._progress.record
        if record.company_id is not None:
            return companies.open(record.company_id, external_id=record.external_id, sheets=record.sheets)
        self._progress.begin("creating")
        doubtful = record.creating
        if not doubtful:
            await self._progress.write("create", creating=True)
        return await _to_its_answer(self._provision(doubtful=doubtful))

    async def _provision(self, *, doubtful: bool) -> Company:
        try:
            company = await self._progress.retry_while_away(self._create)
        except (Conflict, BadRequest) as error:
            if doubtful or isinstance(error, Conflict):
                raise unknown(routes.CREATE_COMPANY, error) from error
            await self._progress.keep("refused", creating=False)
            raise
        await self._progress.keep(
            "created",
            creating=False,
            company_id=company.id,
            sheets=company.sheets,
            adopted=not company.is_new,  # it may have had an import that a lost journal knew of
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
                raise error.__cause__ from error  # no answer yet, and the external id makes a repeat harmless
            raise


async def _to_its_answer(step: Coroutine[object, object, T]) -> T:
    """Run a step whose outcome nobody could find out later; cancelled, it may still take `_GRACE` to its answer."""
    task = asyncio.ensure_future(step)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        with anyio.CancelScope(shield=True):
            await asyncio.wait([task], timeout=_GRACE)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)  # what it came to is in the journal
        raise


def unknown(endpoint: Endpoint, error: ApiError) -> UnknownOutcome:
    """Return what to raise for a refusal that may be the echo of our own request."""
    return UnknownOutcome(endpoint.method, endpoint.template, str(error), "", endpoint.advice)
