"""`asyncmig run`: migrate the customers of a manifest with a fleet or a queue, and write the reports."""

import asyncio
from collections.abc import AsyncGenerator, Generator, Mapping
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import final

import msgspec
from rich.console import Console

from asyncmig import generations
from asyncmig.cli.connection import ServerWatch, check_generation, open_session
from asyncmig.cli.html_report import Recorder
from asyncmig.cli.inputs import (
    RunRequest,
    check_folders,
    check_run,
    known_customers,
    only,
    say_removed,
    select,
    statuses_of,
)
from asyncmig.cli.interrupts import Interrupts, stopping_on_failure
from asyncmig.cli.json_output import EventPrinter, ReportFile, read_outcomes
from asyncmig.cli.last_run import remember, remember_queued
from asyncmig.cli.live_view import LiveView
from asyncmig.cli.output import counted, is_unread
from asyncmig.cli.queue import WORKERS_OWN, follow, option_overrides, queue_url
from asyncmig.cli.settings import Display, Options
from asyncmig.cli.summary import RunResult
from asyncmig.customers.outcome import Failed, Outcome
from asyncmig.customers.spec import Spec
from asyncmig.customers.status import CustomerRecord, is_new
from asyncmig.errors import (
    AuthError,
    JournalError,
    NoAnswer,
    QueueUnavailable,
    ServerError,
    SessionClosed,
    UnexpectedReply,
)
from asyncmig.jobs.fleet import Fleet
from asyncmig.jobs.manifest import Manifest
from asyncmig.jobs.status import read_records
from asyncmig.journal import DatabaseJournal, JournalPlace, open_journal
from asyncmig.session import Session, context_of

__all__ = ["drive"]


async def drive(
    manifest: Manifest,
    options: Options,
    words: Console,
    *,
    wanted: RunRequest = RunRequest(),  # noqa: B008 - it is frozen
    display: Display = Display(),  # noqa: B008 - it is frozen
    api_key: str | None = None,
) -> RunResult:
    """Migrate the customers of a manifest, show the progress on `words`, and keep `report.json` up to date.

    `api_key`: `VERN_API_KEY` if not given. Raises `InvalidInput` for options and names that are wrong, before
    anything was created; `JournalError` and `OSError` if the journal or the folder cannot be opened.
    """
    await check_run(manifest, options, wanted, display, words)
    opened = open_session(options, options.journal, api_key)
    async with _opened_journal(options, wanted) as journal, opened as session:
        report = ReportFile(options.out, manifest, session, options.api)
        records = before = await _records(journal, options.journal)
        statuses = statuses_of(records) if journal or records else read_outcomes(options.out)
        selected = select(wanted.selection, manifest, statuses)
        report.begin(records)
        say_removed(manifest, records, words)
        check_folders(options.out, manifest)
        if wanted.remembered:
            remember(options.manifest, options, queue=wanted.queue)
        progress = LiveView(session, words, _files(manifest := only(manifest, selected)), options, display)
        progress.known(report.rows)
        recorder = Recorder(session, options)
        with (
            recorder.following(),
            Interrupts(session, words) as interrupts,
            session.events.subscribe(watch := ServerWatch(session, options.api, interrupts)),
            stopping_on_failure(interrupts),
        ):
            feed = _feed(display, interrupts)
            with progress.following(), _feeding(feed, session, len(manifest.customers)):
                work = _Work(manifest, options, session, journal, wanted)
                reason = await work.run(records, _Outlets(report, progress, feed), interrupts)
            try:
                records = await _records(journal, options.journal)
            except JournalError as error:
                reason = reason or str(error)
            last = report.end(records.values(), reason)
            await watch.check(journal, before)
        ended = RunResult(
            report=last,
            selected=selected,
            key_refused=watch.key_refused,
            reason=reason or report.trouble,
            queue=wanted.queue,
            is_recorded=wanted.queue is None or any(row.external_id in records for row in last.customers),
            connected=work.is_connected,
            explicit=frozenset(wanted.given) & WORKERS_OWN,
            unwritten=bool(report.trouble) or (display.as_json and is_unread()),
        )
        recorder.write(ended.customers, last.budget, ended.reason)
        if feed is not None:
            feed.end(ended.customers, exit_code=ended.exit_code, reason=ended.reason)
        return ended


@asynccontextmanager
async def _opened_journal(options: Options, wanted: RunRequest) -> AsyncGenerator[DatabaseJournal | None]:
    """Open the journal of this process; None with a queue, whose workers have one of their own."""
    if wanted.queue is not None:
        yield None
        return
    async with open_journal(options.journal) as journal:
        yield journal


async def _records(journal: DatabaseJournal | None, place: JournalPlace) -> Mapping[str, CustomerRecord]:
    """Return the records of a journal; those of a database also if only the workers write it."""
    if journal is not None:
        return await read_records(journal)
    return await known_customers(place) if place.path is None else {}


def _feed(display: Display, interrupts: Interrupts) -> EventPrinter | None:
    if not display.as_json:
        return None
    loop = asyncio.get_running_loop()
    abandoned = partial(interrupts.stop, "stdout was closed by its reader")
    return EventPrinter(clock=loop.time, requests=display.verbose, abandoned=abandoned)


@contextmanager
def _feeding(feed: EventPrinter | None, session: Session, customers: int) -> Generator[None]:
    if feed is None:
        yield
        return
    feed.begin(customers)
    with session.events.subscribe(feed.note):
        yield


@final
@dataclass(frozen=True, slots=True)
class _Outlets:
    """The outputs that receive each outcome."""

    report: ReportFile
    progress: LiveView
    feed: EventPrinter | None

    def tell(self, outcome: Outcome) -> None:
        row = self.report.add(outcome)
        self.progress.ended(row)
        if self.feed is not None:
            self.feed.outcome(row)


def _files(manifest: Manifest) -> dict[str, int]:
    return {customer.external_id: len(customer.files) for customer in manifest.customers}


@final
class _Work:
    """The part of `drive` that may be interrupted."""

    __slots__ = ("_failures", "_journal", "_manifest", "_options", "_session", "_wanted", "is_connected")

    def __init__(
        self,
        manifest: Manifest,
        options: Options,
        session: Session,
        journal: DatabaseJournal | None,
        wanted: RunRequest,
    ) -> None:
        self._manifest, self._options, self._wanted = manifest, options, wanted
        self._session, self._journal = session, journal
        self._failures = 0
        self.is_connected = False
        """Whether the workers' queue was reached."""

    async def run(
        self, records: Mapping[str, CustomerRecord], outlets: _Outlets, interrupts: Interrupts
    ) -> str | None:
        """Return why the fleet ended early, or None."""
        try:
            with self._at_most(interrupts):
                specs = await self._specs(records)
                work = self._fleet if self._wanted.queue is None else self._queue
                await work(specs, records, outlets, interrupts)
            return interrupts.reason
        except (AuthError, JournalError, QueueUnavailable) as error:
            return str(error)
        except SessionClosed as error:
            return interrupts.reason or str(error)
        except (NoAnswer, ServerError, UnexpectedReply) as error:
            await check_generation(self._session, self._options.api)
            return f"the catalogue could not be read: {error}"
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if interrupts.count < 2 or task is None:
                raise
            task.uncancel()
            return "interrupted"

    async def _fleet(
        self,
        specs: tuple[Spec, ...],
        records: Mapping[str, CustomerRecord],
        outlets: _Outlets,
        interrupts: Interrupts,
    ) -> None:
        """Migrate the customers in this process."""
        assert self._journal is not None
        options = self._options
        async with Fleet(
            self._session,
            api=options.api,
            journal=self._journal,
            to=options.out,
            concurrency=options.concurrency,
            when_held=options.when_held,
            when_no_run_slot="return",
            options=options.migration_options(retry_failed=self._wanted.selection is not None),
            protected=self._wanted.protected,
        ) as fleet:
            interrupts.fleet = fleet
            async for outcome in fleet.run(specs):
                self._take(outcome, records, outlets, interrupts)
            await interrupts.settled()
            interrupts.fleet = None  # later signals have nothing to drain

    async def _queue(
        self,
        specs: tuple[Spec, ...],
        records: Mapping[str, CustomerRecord],
        outlets: _Outlets,
        interrupts: Interrupts,
    ) -> None:
        """Submit the customers to workers, and collect the outcomes until the run ends."""
        assert self._wanted.queue is not None
        url, wanted = queue_url(self._wanted.queue), self._wanted
        overrides = option_overrides(self._options, wanted.given, retry_failed=wanted.selection is not None)

        def connected() -> None:
            remember_queued(self._options.journal, [spec.external_id for spec in specs])
            self.is_connected = True

        following = follow(
            url, specs, overrides, api=self._options.api, over=interrupts.over, on_connected=connected
        )
        async with aclosing(following) as outcomes:
            async for outcome in outcomes:
                self._take(outcome, records, outlets, interrupts)

    def _take(
        self,
        outcome: Outcome,
        records: Mapping[str, CustomerRecord],
        outlets: _Outlets,
        interrupts: Interrupts,
    ) -> None:
        outlets.tell(outcome)
        self._count(outcome, records.get(outcome.external_id), interrupts)

    @contextmanager
    def _at_most(self, interrupts: Interrupts) -> Generator[None]:
        """Drain the fleet when `--max-duration` has passed."""
        limit = self._options.max_duration
        if limit is None:
            yield
            return
        reason = f"it took {limit}, as long as --max-duration allows"
        timer = asyncio.get_running_loop().call_later(limit.seconds, interrupts.stop, reason)
        try:
            yield
        finally:
            timer.cancel()

    def _count(self, outcome: Outcome, before: CustomerRecord | None, interrupts: Interrupts) -> None:
        """Count a customer that failed in this run, for `--stop-after-failures`."""
        known = before.outcome if before else None
        if not isinstance(outcome, Failed) or msgspec.structs.replace(outcome, notes=()) == known:
            return
        self._failures += 1
        if self._failures == self._options.stop_after_failures:
            interrupts.stop(
                f"{counted(self._failures, 'customer')} failed, as many as --stop-after-failures allows"
            )

    async def _specs(self, records: Mapping[str, CustomerRecord]) -> tuple[Spec, ...]:
        """Return the specs, with ids for customers with nothing on the server yet. Raises `InvalidManifest`."""
        generation, specs = generations.find(self._options.api), self._manifest.specs()
        new = [spec for spec in specs if is_new(records.get(spec.external_id), generation.name)]
        resolved = await generation.resolve(context_of(self._session), new)
        self._manifest.check_names(resolved)
        known = {spec.external_id: spec for spec, _ in resolved}
        return tuple(known.get(spec.external_id, spec) for spec in specs)
