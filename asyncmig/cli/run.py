"""`asyncmig run`: migrate the customers of a manifest with a fleet or a queue, and write the reports."""

import asyncio
import logging
from collections.abc import Generator, Mapping, Sequence
from contextlib import aclosing, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import final

import msgspec
from rich.console import Console

from asyncmig import generations
from asyncmig.cli.charts import Timeline
from asyncmig.cli.connection import ServerWatch, check_generation, open_session
from asyncmig.cli.html_report import NOTES_OF_RUN, ReportPage, preview_links, write_page
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
from asyncmig.cli.json_output import Budget, EventPrinter, ReportFile, read_outcomes
from asyncmig.cli.last_run import remember, remember_queued
from asyncmig.cli.live_view import LiveView
from asyncmig.cli.output import counted, is_unread
from asyncmig.cli.queue import WORKERS_OWN, follow, option_overrides, queue_url
from asyncmig.cli.settings import Display, Options
from asyncmig.cli.summary import RunResult
from asyncmig.customers.outcome import Failed, Outcome
from asyncmig.customers.spec import Spec
from asyncmig.customers.status import CustomerRecord, CustomerStatus, is_new
from asyncmig.errors import (
    AuthError,
    JournalError,
    NoAnswer,
    QueueUnavailable,
    ServerError,
    SessionClosed,
    UnexpectedReply,
)
from asyncmig.events import Event
from asyncmig.jobs.fleet import Fleet
from asyncmig.jobs.manifest import Manifest
from asyncmig.jobs.status import read_records
from asyncmig.journal import DatabaseJournal, JournalPlace, open_journal
from asyncmig.session import Session, context_of

__all__ = ["drive"]

_log = logging.getLogger("asyncmig")


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
    session = open_session(options, options.journal, api_key)
    # Workers have a journal of their own.
    opened = open_journal(options.journal) if wanted.queue is None else nullcontext()
    async with opened as journal, session:
        report = ReportFile(options.out, manifest, session, options.api)
        records = before = await _records(journal, options.journal)
        statuses = statuses_of(records) if journal or records else read_outcomes(options.out)
        selected = select(wanted.selection, manifest, statuses)
        report.begin(records)
        say_removed(manifest, records, words)
        check_folders(options.out, manifest)
        if wanted.remembered:
            remember(options.manifest, options, queue=wanted.queue)
        manifest = only(manifest, selected)
        files = {customer.external_id: len(customer.files) for customer in manifest.customers}
        progress = LiveView(session, words, files, options, display)
        progress.known(report.rows)
        recorder = _Recorder(session, options)
        with (
            recorder.following(),
            Interrupts(session, words) as interrupts,
            session.events.subscribe(watch := ServerWatch(session, options.api, interrupts)),
            stopping_on_failure(interrupts),
        ):
            feed = _feed(display, interrupts)
            if feed is not None:
                feed.begin(len(manifest.customers))
            with progress.following(), session.events.subscribe(feed.note) if feed else nullcontext():
                work = _Work(
                    manifest, options, wanted, session, journal, records, report, progress, feed, interrupts
                )
                reason = await work.run()
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


@final
@dataclass(slots=True)
class _Work:
    """The part of `drive` that may be interrupted."""

    manifest: Manifest
    options: Options
    wanted: RunRequest
    session: Session
    journal: DatabaseJournal | None
    records: Mapping[str, CustomerRecord]
    report: ReportFile
    progress: LiveView
    feed: EventPrinter | None
    interrupts: Interrupts
    failures: int = 0
    is_connected: bool = False
    """Whether the workers' queue was reached."""

    async def run(self) -> str | None:
        """Return why the fleet ended early, or None."""
        try:
            with self._at_most():
                specs = await self._specs()
                await (self._fleet(specs) if self.wanted.queue is None else self._queue(specs))
            return self.interrupts.reason
        except (AuthError, JournalError, QueueUnavailable) as error:
            return str(error)
        except SessionClosed as error:
            return self.interrupts.reason or str(error)
        except (NoAnswer, ServerError, UnexpectedReply) as error:
            await check_generation(self.session, self.options.api)
            return f"the catalogue could not be read: {error}"
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self.interrupts.count < 2 or task is None:
                raise
            task.uncancel()
            return "interrupted"

    @contextmanager
    def _at_most(self) -> Generator[None]:
        """Drain the fleet when `--max-duration` has passed."""
        limit = self.options.max_duration
        if limit is None:
            yield
            return
        reason = f"it took {limit}, as long as --max-duration allows"
        timer = asyncio.get_running_loop().call_later(limit.seconds, self.interrupts.stop, reason)
        try:
            yield
        finally:
            timer.cancel()

    async def _specs(self) -> tuple[Spec, ...]:
        """Return the specs, with ids for customers with nothing on the server yet. Raises `InvalidManifest`."""
        generation, specs = generations.find(self.options.api), self.manifest.specs()
        new = [spec for spec in specs if is_new(self.records.get(spec.external_id), generation.name)]
        resolved = await generation.resolve(context_of(self.session), new)
        self.manifest.check_names(resolved)
        known = {spec.external_id: spec for spec, _ in resolved}
        return tuple(known.get(spec.external_id, spec) for spec in specs)

    async def _fleet(self, specs: Sequence[Spec]) -> None:
        """Migrate the customers in this process."""
        assert self.journal is not None
        options = self.options
        async with Fleet(
            self.session,
            api=options.api,
            journal=self.journal,
            to=options.out,
            concurrency=options.concurrency,
            when_held=options.when_held,
            when_no_run_slot="return",
            options=options.migration_options(retry_failed=self.wanted.selection is not None),
            protected=self.wanted.protected,
        ) as fleet:
            self.interrupts.fleet = fleet
            async for outcome in fleet.run(specs):
                self._take(outcome)
            await self.interrupts.settled()
            self.interrupts.fleet = None  # later signals have nothing to drain

    async def _queue(self, specs: Sequence[Spec]) -> None:
        """Submit the customers to workers, and collect the outcomes until the run ends."""
        options, wanted = self.options, self.wanted
        assert wanted.queue is not None
        overrides = option_overrides(options, wanted.given, retry_failed=wanted.selection is not None)

        def connected() -> None:
            remember_queued(options.journal, [spec.external_id for spec in specs])
            self.is_connected = True

        url, over = queue_url(wanted.queue), self.interrupts.over
        following = follow(url, specs, overrides, api=options.api, over=over, on_connected=connected)
        async with aclosing(following) as outcomes:
            async for outcome in outcomes:
                self._take(outcome)

    def _take(self, outcome: Outcome) -> None:
        """Report an outcome, and end the fleet at `--stop-after-failures`, which counts failures of this run only."""
        row = self.report.add(outcome)
        self.progress.ended(row)
        if self.feed is not None:
            self.feed.outcome(row)
        before = self.records.get(outcome.external_id)
        known = before.outcome if before else None
        if not isinstance(outcome, Failed) or msgspec.structs.replace(outcome, notes=()) == known:
            return
        self.failures += 1
        if self.failures == self.options.stop_after_failures:
            failed = counted(self.failures, "customer")
            self.interrupts.stop(f"{failed} failed, as many as --stop-after-failures allows")


@final
class _Recorder:
    """Collects what the HTML report of a run needs; without `options.report` it does nothing."""

    __slots__ = ("_loop", "_options", "_session", "_timeline")

    def __init__(self, session: Session, options: Options) -> None:
        self._session, self._options, self._loop = session, options, asyncio.get_running_loop()
        limits = options.all_limits
        rate = limits.key or limits.endpoint
        self._timeline = Timeline(began=self._loop.time(), window=rate.window)

    @contextmanager
    def following(self) -> Generator[None]:
        """Record the events of the session until the block ends."""
        if self._options.report is None:
            yield
            return
        with self._session.events.subscribe(self._note):
            yield
        self._timeline.end(self._loop.time())

    def _note(self, event: Event) -> None:
        self._timeline.note(event, by=asyncio.current_task())

    def write(self, rows: Sequence[CustomerStatus], budget: Budget, reason: str | None) -> None:
        """Write the report. If it cannot be written, log a warning: the migrations are not affected."""
        options, place = self._options, self._options.report
        if place is None:
            return
        limits = options.all_limits
        is_named = bool(limits.budgets and generations.find(options.api).endpoints)
        clock = (
            f"The clock ran {options.speed:g} times as fast as the wall clock. All times are of that clock, so a "
            "delay of this computer counts this many times as well."
        )
        try:
            page = ReportPage(
                title=options.manifest.name,
                previews=preview_links(options.out, rows, place),
                rows=rows,
                timeline=self._timeline,
                budget=budget,
                rate=None if is_named else limits.key or limits.endpoint,
                by_key=limits.key is not None,
                reason=reason,
                notes=NOTES_OF_RUN if options.speed == 1 else (clock, *NOTES_OF_RUN),
            )
            write_page(place, page)
        except OSError as error:
            _log.warning("%s cannot be written: %s", place, error)
