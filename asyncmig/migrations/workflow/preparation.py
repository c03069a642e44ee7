"""Everything before the first run: create the migration, upload its files and save its live connection, each once.

Sources and templates that the spec names are looked up before the create request: an unknown name would cost one of a
few creates in an hour.
"""

import asyncio
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import final

import msgspec

from asyncmig._core.retry import TRANSIENT
from asyncmig._io.context import SessionContext
from asyncmig.customers.paths import check_below
from asyncmig.customers.spec import HasNames, LiveSource, ResolvedSpec, Spec
from asyncmig.customers.status import wall_clock
from asyncmig.errors import ApiError, Conflict, InvalidInput, NotFound, ServerError, UnknownOutcome
from asyncmig.migrations import routes
from asyncmig.migrations.catalog import Migrations
from asyncmig.migrations.log import LogRun, retry_after_of, status_of
from asyncmig.migrations.migration import Difference, Migration
from asyncmig.migrations.routes import READ_LOG
from asyncmig.migrations.runs import Run
from asyncmig.migrations.state import WorkPermit
from asyncmig.migrations.thread import thread_pages
from asyncmig.migrations.uploads import checked_items, upload_contents
from asyncmig.migrations.workflow.operations import Operations
from asyncmig.migrations.workflow.record import Record
from asyncmig.records.names import NameLists, list_requests
from asyncmig.records.record_keeper import RecordKeeper

__all__ = ["Preparation", "catalogue_requests", "resolve"]

_ADVICE = "Look at the migration in the provider's app. The next call reads the log again."
_NOTHING_RAN = frozenset({"awaiting_files", "ready"})
"""Statuses of a migration that has no preview and no execution yet; a run may be in progress."""
_OPERATIONS = frozenset({"generate", "update", "execute", "clarify", "reuse"})


@final
class Preparation:
    """Creates a customer's migration, uploads its files and saves its connection, as far as that is not done."""

    __slots__ = ("_context", "_keeper", "_operations", "_root", "_spec", "_status")

    def __init__(
        self,
        context: SessionContext,
        spec: Spec,
        keeper: RecordKeeper[Record],
        operations: Operations,
        root: Path | str | None,
    ) -> None:
        """`root`: the folder that the files must be below; None for any place."""
        self._context, self._spec, self._keeper = context, spec, keeper
        self._operations, self._root = operations, root
        self._status: str | None = None
        """The status of the migration when it was created or found."""

    async def create(self) -> None:
        """Create the migration, unless the journal has it. An existing one with this external id is ours, too."""
        keeper = self._keeper
        if keeper.record.migration_id is not None:
            return
        if not keeper.record.create_sent:
            (found,) = await keeper.retry_while_away(partial(resolve, self._context, [self._spec]))
            if found.faults:
                raise found.faults[0]
            keeper.record = keeper.record.with_spec(found.spec)
        keeper.begin("creating")
        if not keeper.record.create_sent:
            await keeper.write("create", create_sent=True)
        try:
            migration = await self._context.kept(WorkPermit).working(keeper.retry_while_away(self._post))
        except ApiError:
            await keeper.keep("refused", create_sent=False)
            raise
        self._status = migration.status
        await keeper.keep(
            "created",
            create_sent=False,
            migration_id=migration.id,
            created_at=wall_clock(),
            sheets=migration.sheets,
            existed=not migration.is_new and migration.status != "awaiting_files",
            remarks=tuple(map(_remark, migration.differences)),
        )

    async def _post(self) -> Migration:
        record = self._keeper.record
        try:
            return await Migrations(self._context).create(
                name=record.name,
                source=record.source or None,
                external_id=record.external_id,
                templates=record.template_ids,
                rank=self._keeper.rank,
            )
        except UnknownOutcome as error:
            if isinstance(error.__cause__, TRANSIENT):
                raise error.__cause__ from error  # the external id makes a repeat safe
            raise

    # An existing migration

    async def look_first(self) -> Run | None:
        """Return the last run of a migration that existed before; None if there is none, or its id is not known.

        While the log is not settled, the server does not name the run: a start is then refused with its id.
        """
        keeper, migration = self._keeper, self._operations.migration
        if self._status in _NOTHING_RAN:
            return None
        keeper.begin("starting", "looks for an earlier run")
        while True:
            try:
                log = await keeper.retry_while_away(migration.log)
            except Conflict as error:
                if status_of(error) in ("queued", "running"):
                    await asyncio.sleep(retry_after_of(error))
                    continue
                if not await self._has_preview(migration):
                    return None
                keeper.note("the migration had a preview; it was not generated anew")
                return await self._operations.found("")
            except NotFound:
                return None
            except ServerError as error:
                return await self._look_without_log(migration, error)
            break
        entry = _last(log.runs)
        if entry is not None and entry.status == "canceled":  # an earlier run may have been executed
            entry = _last([run for run in log.runs if run.outcome and run.outcome.rows_written])
        if entry is None:
            return None
        keeper.note(f"the migration had a run ({entry.kind}, {entry.status}); it was not repeated")
        return await self._operations.found(entry.run_id)

    async def _look_without_log(self, migration: Migration, error: ServerError) -> Run | None:
        """Do what `look_first` does from the thread and the preview, because the log is not available.

        Raises `UnknownOutcome` if an earlier run may have been executed.
        """
        kinds: list[str] = []
        with suppress(NotFound):
            async for page in thread_pages(self._context, migration.id):
                kinds += [event.type for event in page]
        if kinds and kinds[-1] == "preview":
            self._keeper.note("the migration had a preview; it was not generated anew")
            return await self._operations.found("")
        if not {"preview", "completed"} & set(kinds) and not await self._has_preview(migration):
            return None  # without a preview, nothing was executed
        reason = f"an earlier run may have been executed, and its log cannot be read: {error}"
        raise UnknownOutcome(READ_LOG.method, READ_LOG.template, reason, "", _ADVICE)

    async def _has_preview(self, migration: Migration) -> bool:
        try:
            await self._keeper.retry_while_away(migration.preview)
        except NotFound:
            return False
        return True

    # Files and connection

    async def upload(self) -> None:
        """Upload the files that have not arrived yet, and save the connection."""
        keeper, migration = self._keeper, self._operations.migration
        record = keeper.record
        files = [Path(file.path) for file in record.files]
        if len(record.uploads) < len(files):
            keeper.begin("uploading", f"{len(files)} files")
            if self._root is not None:  # a link may have changed since
                check_below(Path(self._root), files)
            earlier = record.earlier_files
            if record.existed and not record.upload_sent:
                listed = await keeper.retry_while_away(migration.files)
                earlier = tuple(file.storage_path for file in listed)
            await keeper.write("upload", upload_sent=True, earlier_files=earlier)

            async def noted(names: Mapping[str, str]) -> None:
                await keeper.keep("upload", sent_names=dict(names))

            upload = partial(
                upload_contents,
                self._context,
                migration.id,
                checked_items(files),
                noted=noted,
                since={**{file.storage_path: file.name for file in record.uploads}, **record.sent_names},
                rank=keeper.rank,
            )
            uploaded = await keeper.retry_while_away(upload)
            for file, there in zip(record.files, uploaded, strict=True):
                if there.sha256 is not None and there.sha256 != file.sha256:
                    raise InvalidInput("files", file.path, "changed while it was being migrated: run again")
            await keeper.keep("uploaded", uploads=tuple(uploaded), sent_names={})
        connection = self._spec.connection
        if connection is not None and keeper.record.connection != _mark_of(connection):
            await self._connect(migration, connection)

    async def _connect(self, migration: Migration, source: LiveSource) -> None:
        keeper = self._keeper
        keeper.begin("uploading", f"connection to {source.source_key}")
        await keeper.write("connect", connection=None)
        save = partial(
            migration.connection.save,
            source.source_key,
            profile_id=source.profile_id,
            config=source.config or None,
            credentials=source.credentials or None,
        )
        await keeper.retry_while_away(save)
        await keeper.keep("connected", connection=_mark_of(source))


def _last(runs: Sequence[LogRun]) -> LogRun | None:
    """Return the last run in a log, oldest first, that has an id and is of a known kind."""
    known = [run for run in runs if run.run_id and run.kind in _OPERATIONS]
    return known[-1] if known else None


def _remark(difference: Difference) -> str:
    found, wanted = (
        ", ".join(each) if isinstance(each, tuple) else each
        for each in (difference.found, difference.requested)
    )
    return f"the migration existed before, with another {difference.field}: {found!r} instead of {wanted!r}"


def _mark_of(source: LiveSource) -> str:
    """Return what changes if a connection must be saved again; its secrets are not part of it."""
    shown = msgspec.json.encode((source.source_key, source.profile_id, source.config), order="deterministic")
    return hashlib.sha256(shown).hexdigest()


# Names of sources and templates


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
