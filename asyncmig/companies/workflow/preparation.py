"""Take a customer to a running import: open or create its company, upload its files, start the import.

Sources and templates that the spec names are looked up first; a UUID is an id. A create request whose response was
lost cannot be looked up. An adopted company may have an import already, which must not be repeated.
"""

import asyncio
import contextlib
import re
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar, final

import anyio

from asyncmig._core.endpoint import Endpoint
from asyncmig._core.retry import TRANSIENT
from asyncmig._io.context import SessionContext
from asyncmig.companies import routes
from asyncmig.companies.catalog import Companies
from asyncmig.companies.company import Company
from asyncmig.companies.import_run import ImportRun
from asyncmig.companies.imports import import_body
from asyncmig.companies.uploads import upload
from asyncmig.companies.wire import ImportState
from asyncmig.companies.workflow.record import Record, import_key
from asyncmig.customers.paths import check_below
from asyncmig.customers.spec import HasNames, ResolvedSpec, Spec
from asyncmig.customers.status import wall_clock
from asyncmig.errors import (
    ApiError,
    BadRequest,
    Conflict,
    InvalidInput,
    RunError,
    UnexpectedReply,
    UnknownOutcome,
)
from asyncmig.records.names import NameLists, list_requests
from asyncmig.records.record_keeper import RecordKeeper, seconds_since

__all__ = ["Preparation", "catalogue_requests", "differs", "refuses_account", "resolve"]

T = TypeVar("T")
_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_FORBIDDEN = 403
_STARTS = frozenset(
    (endpoint.method, endpoint.template)
    for endpoint in (routes.CREATE_COMPANY, routes.START_IMPORT, routes.START_EXPORT)
)
_GRACE = 5.0
"""Seconds for which a cancelled migration waits for the response to its create request."""
_UPLOADS_KEEP = 1800.0
"""Wall-clock seconds after which the files of an import that was not started are uploaded again."""
_LOOK_AGAIN = 10.0
"""Seconds between requests for the active import, if its id is unknown."""


@final
class Preparation:
    """The steps of a migration until its import runs."""

    __slots__ = ("_context", "_keeper", "_root", "_spec")

    def __init__(
        self, context: SessionContext, spec: Spec, keeper: RecordKeeper[Record], root: Path | str | None
    ) -> None:
        """`root`: the folder that must contain the files; see `MigrationOptions`."""
        self._context, self._spec, self._keeper, self._root = context, spec, keeper, root

    async def company(self) -> Company:
        """Return the company of the record, or create it.

        Raises `UnknownOutcome` if it is unknown whether a company with this external id is ours.
        """
        keeper = self._keeper
        if keeper.record.company_id is None:
            await self._resolve()
            keeper.begin("creating")
            doubtful = keeper.record.create_sent
            if not doubtful:
                await keeper.write("create", create_sent=True)
            await _with_grace(self._create(doubtful=doubtful))
        record = keeper.record
        assert record.company_id is not None
        # A handle without the rest of the create response, because a fleet keeps thousands of handles.
        return Company(self._context, record.company_id, external_id=record.external_id, sheets=record.sheets)

    async def _resolve(self) -> None:
        """Replace names in the record by ids. Raises `InvalidInput` for a name that the account does not have."""
        find = partial(resolve, self._context, [self._spec])
        (found,) = await self._keeper.retry_while_away(find)
        if found.faults:
            raise found.faults[0]
        self._keeper.record = self._keeper.record.with_spec(found.spec)

    async def _create(self, *, doubtful: bool) -> None:
        try:
            company = await self._keeper.retry_while_away(self._request_company)
        except (Conflict, BadRequest) as error:
            if doubtful or isinstance(error, Conflict):
                raise _unknown(routes.CREATE_COMPANY, str(error)) from error
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

    async def _request_company(self) -> Company:
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

    async def run(self, company: Company) -> ImportRun:
        """Return the import: an earlier one of an adopted company, the recorded one, or a new one."""
        record, run = self._keeper.record, None
        if record.adopted and not record.has_started:
            run = await self._earlier_run(company)
        if run is None:
            await self._upload(company)
            run = await self._recorded_or_new_run(company)
        return run

    async def _earlier_run(self, company: Company) -> ImportRun | None:
        """Return an earlier import of an adopted company: the running, the newest completed, or a failed one."""
        keeper = self._keeper
        keeper.begin("starting", "looks for an earlier import")
        states, is_cut = await keeper.retry_while_away(partial(_list, company, keeper.rank))
        running = [state for state in states if state.status not in routes.IMPORT.terminal]
        found = running or [state for state in states if state.status == "completed"]
        if is_cut and not found:
            reason = "the server does not give all imports of the company, and one may be among the others"
            raise _unknown(routes.START_IMPORT, reason)
        for state in found or states:
            run_id = state.run_id or state.id
            if run_id is None:
                reason = (
                    f"the company has an import that is {state.status}, and the server does not say its id"
                )
                raise _unknown(routes.START_IMPORT, reason)
            keeper.note(f"the company had an import that is {state.status}; it was not repeated")
            epoch = max(keeper.record.epoch, len(states) - 1)  # each of them may have used an idempotency key
            await keeper.keep(
                "found", run_id=run_id, started_at=wall_clock(), has_other_rows=True, epoch=epoch
            )
            return company.imports.found(state)
        return None

    async def _upload(self, company: Company) -> None:
        keeper = self._keeper
        if keeper.record.has_started:
            return
        if keeper.record.uploads and wall_clock() - keeper.record.uploaded_at > _UPLOADS_KEEP:
            await keeper.write("uploads expired", uploads=())
        for file in keeper.record.files[len(keeper.record.uploads) :]:
            keeper.begin("uploading", Path(file.path).name)
            if self._root is not None:  # a link may have changed since
                check_below(Path(self._root), [Path(file.path)])
            uploaded = await keeper.retry_while_away(
                partial(upload, self._context, company.id, Path(file.path), rank=keeper.rank)
            )
            if uploaded.sha256 != file.sha256:
                raise InvalidInput("files", file.path, "changed while it was being migrated: run again")
            await keeper.keep(
                "uploaded",
                uploads=(*keeper.record.uploads, uploaded),
                uploaded_at=keeper.record.uploaded_at if keeper.record.uploads else wall_clock(),
            )

    async def _recorded_or_new_run(self, company: Company) -> ImportRun:
        keeper, record = self._keeper, self._keeper.record
        # Runs of about the same size take about equally long.
        group = len(str(sum(file.size for file in record.files)))
        if record.run_id is not None:
            run = company.imports.open(record.run_id, age=seconds_since(record.started_at), group=group)
            if record.decided:
                run.note_decision(record.decided, age=seconds_since(record.decided_at))
            return run
        keeper.begin("starting")
        body, doubtful = record.import_body, record.import_body is not None
        if body is None:
            body = import_body(import_key(record), record.uploads).decode()
            await keeper.write("start", import_body=body)
        start = partial(company.imports.post, body.encode(), rank=keeper.rank, group=group)
        run = await self._start(company, start, doubtful=doubtful)
        await keeper.keep("started", run_id=run.id, started_at=wall_clock(), import_body=None)
        return run

    async def _start(
        self, company: Company, start: Callable[[], Awaitable[ImportRun]], *, doubtful: bool
    ) -> ImportRun:
        """Start the import. After a 409, read the active import to find the reason.

        If the response to our start was lost, the active import is ours, because this process holds the customer.
        Otherwise another client started it, and its end is awaited. If no import is active, either the key was used
        for another import, or that import has just ended: one more request decides.
        """
        keeper, idle = self._keeper, 0
        while True:
            try:
                return await keeper.retry_while_away(start)
            except Conflict as error:
                conflict = error
            active = await keeper.retry_while_away(partial(company.imports.recover, rank=keeper.rank))
            if active is None:
                idle += 1
                if idle > 1:
                    raise _unknown(routes.START_IMPORT, str(conflict)) from conflict
                continue
            if active.id and (doubtful or conflict.after_doubt):
                return active
            if not (doubtful or conflict.after_doubt):
                await keeper.keep("waits for another import", has_other_rows=True)
            await self._outlast(company, active)

    async def _outlast(self, company: Company, active: ImportRun) -> None:
        """Wait for the end of an import that is not ours, or whose id is unknown."""
        self._keeper.begin("starting", "waits for another import of this company")
        if active.id:
            with contextlib.suppress(RunError):
                await active.wait(through_parks=True)
            await asyncio.sleep(_LOOK_AGAIN)  # the list of active imports may lag behind the reads
            return
        look = partial(company.imports.active, rank=self._keeper.rank)
        while await self._keeper.retry_while_away(look) is not None:  # noqa: ASYNC110 - the server's
            await asyncio.sleep(_LOOK_AGAIN)


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


async def _list(company: Company, rank: float) -> tuple[list[ImportState], bool]:
    pages = [page async for page in company.imports.pages(rank=rank)]
    return [state for states, _ in pages for state in states], any(is_cut for _, is_cut in pages)


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


def _unknown(endpoint: Endpoint, reason: str) -> UnknownOutcome:
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
