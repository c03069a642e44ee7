"""The API generation "migrations" as an implementation of `Generation`."""

from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from types import MappingProxyType
from typing import Literal, cast, final

from asyncmig._core.endpoint import Endpoint
from asyncmig._io.context import SessionContext
from asyncmig.customers.catalog import has_ids
from asyncmig.customers.decisions import Decision
from asyncmig.customers.options import MigrationCall, MigrationOptions
from asyncmig.customers.outcome import Delivered, Failed, Outcome, Reviewed
from asyncmig.customers.questions import NeedsAttention
from asyncmig.customers.spec import HasNames, ResolvedSpec, Spec
from asyncmig.customers.status import CustomerRecord, RemainingWork, RunUpdate
from asyncmig.errors import InvalidInput, NotFound
from asyncmig.journal import ClaimPort, JournalEvent, JournalPort
from asyncmig.migrations import routes
from asyncmig.migrations.catalog import Migrations
from asyncmig.migrations.uploads import check_limits
from asyncmig.migrations.wire import Template
from asyncmig.migrations.workflow import preparation
from asyncmig.migrations.workflow.decisions import SUPPORTED, cancel, decide_parked, look
from asyncmig.migrations.workflow.migrate import CustomerMigration, refused_change
from asyncmig.migrations.workflow.operations import open_run
from asyncmig.migrations.workflow.record import Record, words_of
from asyncmig.records.decisions import adopt_resource
from asyncmig.records.record import customer_record, is_delivered, read_inputs

__all__ = ["MigrationsGeneration"]

_GENERATE = f"{routes.GENERATE.key} (generate)"
_EXECUTE = f"{routes.START_RUN.key} (execute)"
_ENDPOINTS = {
    each.key: each
    for each in (
        routes.LIST_SOURCES,
        routes.LIST_TEMPLATES,
        routes.CREATE_MIGRATION,
        routes.LIST_FILES,
        routes.CREATE_UPLOADS,
        routes.READ_RUN,
        routes.PREVIEW,
        routes.DOWNLOAD,
        routes.READ_LOG,
        routes.SAVE_CONNECTION,
    )
}
_UPLOADS_AT_ONCE = 25


@final
class MigrationsGeneration:
    """The second generation of the API: one migration for each customer, prepared by an agent of the provider."""

    __slots__ = ()

    name: Literal["migrations"] = "migrations"
    supported_options: frozenset[str] = frozenset(field.name for field in fields(MigrationOptions)) - {
        "deliver_rejected",
        "export",
    }
    supported_decisions: tuple[type[Decision], ...] = SUPPORTED
    probe: str = routes.LIST_SOURCES.key
    endpoints: Mapping[str, Endpoint] = MappingProxyType(
        {**_ENDPOINTS, _GENERATE: routes.GENERATE, _EXECUTE: routes.START_RUN}
    )
    requests_before_run: Sequence[str] = (
        routes.CREATE_MIGRATION.key,
        routes.LIST_FILES.key,
        routes.CREATE_UPLOADS.key,
        _GENERATE,
    )

    def migrate(
        self,
        context: SessionContext,
        claim: ClaimPort,
        call: MigrationCall,
    ) -> Coroutine[object, object, Outcome]:
        return CustomerMigration(context, claim, call).migrate()

    def check(self, spec: Spec) -> None:
        if spec.connections is not None:
            reason = f"is not supported by the API generation {self.name!r}, which exports to no destination"
            raise InvalidInput("connections", "***", reason)
        check_limits(path.name for path in spec.files)

    async def check_unchanged(self, spec: Spec, record: CustomerRecord) -> None:
        if refused := refused_change(cast(Record, record.details), await read_inputs(spec.files)):
            raise refused

    def read(self, external_id: str, state: bytes) -> CustomerRecord:
        return customer_record(Record.read(external_id, state))

    def recognizes(self, listed: object) -> bool | None:
        found = has_ids(listed)
        return None if found is None else not found

    def describe(self, event: JournalEvent) -> str:
        return words_of(event)

    async def resolve(self, context: SessionContext, specs: Sequence[Spec]) -> Sequence[ResolvedSpec]:
        return await preparation.resolve(context, specs)

    def catalogue_requests(self, customers: Iterable[HasNames]) -> Mapping[str, int]:
        return preparation.catalogue_requests(customers)

    async def template_rules(self, context: SessionContext) -> Sequence[Template] | None:
        with suppress(NotFound):
            return await Migrations(context).templates()
        return None

    async def remaining(
        self, files: Sequence[Path], record: CustomerRecord | None, to: Path, options: MigrationOptions
    ) -> RemainingWork | None:
        known = None if record is None else cast(Record, record.details)
        if known is not None and not known.is_readable:
            return None
        if known is None or known.migration_id is None:
            return RemainingWork(step="creating", files=len(files))
        outcome = known.outcome
        if isinstance(outcome, Failed) and outcome.status is not None:
            wanted = options.retry_failed or known.retried < options.retries
            is_repeated = wanted and known.may_start_again
            return RemainingWork(step="starting", files=0, is_repeated=True) if is_repeated else None
        if isinstance(outcome, Delivered):
            if is_delivered(outcome, to, options.row_filter):
                return None
            return RemainingWork(step="downloading", files=0)
        if len(known.uploads) < len(files):
            return RemainingWork(step="uploading", files=len(files) - len(known.uploads))
        return RemainingWork(step=known.step, files=0)

    def requests_left(self, work: RemainingWork) -> Mapping[str, int]:
        """Return the fewest requests, with one poll for each operation and one sheet."""
        left: Counter[str] = Counter({routes.DOWNLOAD.key: 1, routes.READ_LOG.key: 2})
        if work.step in ("waiting", "checking", "creating"):
            left[routes.CREATE_MIGRATION.key] += 1
        if work.files:
            left[routes.LIST_FILES.key] += 1
            left[routes.CREATE_UPLOADS.key] += -(-work.files // _UPLOADS_AT_ONCE)
        if work.step in ("waiting", "checking", "creating", "uploading", "starting"):
            left[_GENERATE] += 1
        if work.step != "downloading":
            left[routes.READ_RUN.key] += 2
            left[routes.PREVIEW.key] += 1
            left[_EXECUTE] += 1
        return +left

    async def updates(self, context: SessionContext, record: CustomerRecord) -> AsyncIterator[RunUpdate]:
        async for state in open_run(context, cast(Record, record.details)).updates():
            waits = state.status in ("blocked", "awaiting_approval")
            text = state.error or state.message or ""
            yield RunUpdate(status=state.status, text=text, waits_for_person=waits, state=state)

    async def questions(self, context: SessionContext, record: CustomerRecord) -> NeedsAttention | None:
        return await look(context, cast(Record, record.details))

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
        return await decide_parked(context, journal, external_id, decision, shown=shown)

    async def cancel(
        self,
        context: SessionContext,
        journal: JournalPort,
        external_id: str,
        *,
        reject_parked: bool = False,
    ) -> Outcome:
        return await cancel(context, journal, external_id)

    async def adopt(self, journal: JournalPort, external_id: str, resource_id: str) -> str:
        return await adopt_resource(
            journal,
            external_id,
            resource_id,
            Record,
            segment="migrations",
            existed=True,
        )
