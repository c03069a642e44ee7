"""The API generation "companies" as an implementation of `Generation`."""

from collections.abc import AsyncIterator, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from types import MappingProxyType
from typing import Literal, cast, final

from asyncmig._core.endpoint import Endpoint
from asyncmig._io.context import SessionContext
from asyncmig.companies import routes
from asyncmig.companies.catalog import Companies
from asyncmig.companies.exports import checked_connections
from asyncmig.companies.wire import Template
from asyncmig.companies.workflow import decisions, preparation
from asyncmig.companies.workflow.migrate import CustomerMigration, nothing_ran, refused_change
from asyncmig.companies.workflow.record import Record, words_of
from asyncmig.customers.catalog import has_ids
from asyncmig.customers.decisions import Decision
from asyncmig.customers.options import MigrationCall, MigrationOptions
from asyncmig.customers.outcome import Outcome, Reviewed
from asyncmig.customers.questions import NeedsAttention
from asyncmig.customers.spec import HasNames, ResolvedSpec, Spec
from asyncmig.customers.status import CustomerRecord, RemainingWork, RunUpdate
from asyncmig.errors import InvalidInput, NotFound
from asyncmig.journal import ClaimPort, JournalEvent, JournalPort
from asyncmig.records.decisions import adopt_resource
from asyncmig.records.record import customer_record, is_delivered, read_inputs

__all__ = ["CompaniesGeneration"]

_STARTS_AT = {
    "waiting": 0,
    "checking": 0,
    "creating": 0,
    "uploading": 1,
    "starting": 2,
    "running": 3,
    "deciding": 3,
}
"""The index, in `requests_left`, of the first request that a step still has to send. Later steps only download."""


@final
class CompaniesGeneration:
    """The first generation of the API: one company for each customer's migration."""

    __slots__ = ()

    name: Literal["companies"] = "companies"
    supported_options: frozenset[str] = frozenset(field.name for field in fields(MigrationOptions)) - {
        "answers",
        "cancel_blocked_after",
    }
    supported_decisions: tuple[type[Decision], ...] = decisions.SUPPORTED
    probe: str = routes.LIST_SOURCES.key
    endpoints: Mapping[str, Endpoint] = MappingProxyType({})  # each of them has a budget of its own
    requests_before_run: Sequence[str] = (
        routes.CREATE_COMPANY.key,
        routes.CREATE_UPLOAD.key,
        routes.START_IMPORT.key,
    )

    def migrate(
        self, context: SessionContext, claim: ClaimPort, call: MigrationCall
    ) -> Coroutine[object, object, Outcome]:
        return CustomerMigration(context, claim, call).migrate()

    def check(self, spec: Spec) -> None:
        if not spec.source:
            raise InvalidInput("source", "", f"is empty: the API generation {self.name!r} needs one")
        if spec.connection is not None:
            reason = f"is not supported by the API generation {self.name!r}, which imports files only"
            raise InvalidInput("connection", spec.connection.source_key, reason)
        if spec.connections is not None:
            checked_connections(spec.connections)

    async def check_unchanged(self, spec: Spec, record: CustomerRecord) -> None:
        if refused := refused_change(cast(Record, record.details), await read_inputs(spec.files)):
            raise refused

    def read(self, external_id: str, state: bytes) -> CustomerRecord:
        return customer_record(Record.read(external_id, state))

    def recognizes(self, listed: object) -> bool | None:
        return has_ids(listed)

    def describe(self, event: JournalEvent) -> str:
        return words_of(event)

    async def resolve(self, context: SessionContext, specs: Sequence[Spec]) -> Sequence[ResolvedSpec]:
        return await preparation.resolve(context, specs)

    def catalogue_requests(self, customers: Iterable[HasNames]) -> Mapping[str, int]:
        return preparation.catalogue_requests(customers)

    async def template_rules(self, context: SessionContext) -> Sequence[Template] | None:
        with suppress(NotFound):
            return await Companies(context).templates()
        return None

    async def remaining(
        self, files: Sequence[Path], record: CustomerRecord | None, to: Path, options: MigrationOptions
    ) -> RemainingWork | None:
        known = None if record is None else cast(Record, record.details)
        if known is None or known.company_id is None:
            is_readable = known is None or known.is_readable
            return RemainingWork(step="creating", files=len(files)) if is_readable else None
        if not known.is_readable:
            return None
        if await _is_repeated(files, known, options):
            return RemainingWork(step="uploading", files=len(files), is_repeated=True)
        if not known.has_started:
            return RemainingWork(step="uploading", files=len(files) - len(known.uploads))
        if known.run_id is None:
            return RemainingWork(step="starting", files=0)
        if nothing_ran(known.outcome) or is_delivered(known.outcome, to, options.row_filter):
            return None
        return RemainingWork(step="running", files=0)

    def requests_left(self, work: RemainingWork) -> Mapping[str, int]:
        """Return the fewest requests, with one poll for the import and one archive of all sheets."""
        requests = (
            (routes.CREATE_COMPANY, 1),
            (routes.CREATE_UPLOAD, work.files),
            (routes.START_IMPORT, 1),
            (routes.READ_IMPORT, 1),
            (routes.DOWNLOAD, 1),
        )
        first = _STARTS_AT.get(work.step, len(requests) - 1)
        return {endpoint.key: count for endpoint, count in requests[first:] if count > 0}

    async def updates(self, context: SessionContext, record: CustomerRecord) -> AsyncIterator[RunUpdate]:
        run = Companies(context).open(record.ids["company"]).imports.open(record.ids["run"])
        async for state in run.updates():
            text, waits = state.error or state.progress_message or "", run.needs_attention is not None
            yield RunUpdate(status=state.status, text=text, waits_for_person=waits, state=state)

    async def questions(self, context: SessionContext, record: CustomerRecord) -> NeedsAttention | None:
        return await decisions.look(context, cast(Record, record.details))

    async def decide(
        self,
        context: SessionContext,
        journal: JournalPort,
        external_id: str,
        decision: Decision,
        *,
        shown: NeedsAttention,
        allow_destructive: bool = False,
    ) -> Reviewed:
        return await decisions.decide_parked(
            context, journal, external_id, decision, shown=shown, allow_destructive=allow_destructive
        )

    async def cancel(
        self, context: SessionContext, journal: JournalPort, external_id: str, *, reject_parked: bool = False
    ) -> Outcome:
        return await decisions.cancel(context, journal, external_id, reject_parked=reject_parked)

    async def adopt(self, journal: JournalPort, external_id: str, resource_id: str) -> str:
        return await adopt_resource(
            journal,
            external_id,
            resource_id,
            Record,
            segment="companies",
            adopted=True,
        )


async def _is_repeated(files: Sequence[Path], record: Record, options: MigrationOptions) -> bool:
    """Return whether a failed import is started again: as an option, or because a file has changed."""
    if not record.has_started or not nothing_ran(record.outcome):
        return False
    return (
        options.retry_failed
        or record.retried < options.retries
        or bool(record.changed_files(await read_inputs(files)))
    )
