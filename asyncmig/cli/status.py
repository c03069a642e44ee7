"""`asyncmig status`, `show` and `watch`: what the journal knows, also while another process writes it."""

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from functools import partial

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from asyncmig._io.event_loop import run_all
from asyncmig._io.failures import Owner, working_for
from asyncmig.cli.live_view import STYLES
from asyncmig.cli.options import spoken
from asyncmig.cli.output import SCHEMA, clean, counted, is_unread, print_line, say
from asyncmig.cli.settings import ConnectionSettings, Options, open_session
from asyncmig.customers.failures import words_of as failure_words
from asyncmig.customers.outcome import Delivered, Failed, Parked
from asyncmig.customers.report import ImportReport
from asyncmig.customers.status import CustomerRecord
from asyncmig.errors import InvalidInput
from asyncmig.events import AttemptFailed
from asyncmig.events import Event as Happening
from asyncmig.jobs.status import (
    CustomerStatus,
    LogEntry,
    follow,
    read_records,
    read_statuses,
    status_of,
    timeline,
    words_of,
)
from asyncmig.journal import Event, JournalPlace, open_journal
from asyncmig.session import Session

__all__ = [
    "CustomerHistory",
    "follow_journal",
    "follow_runs",
    "how_to_go_on",
    "print_standings",
    "print_story",
    "read_story",
    "running",
    "standings_of",
]


async def standings_of(place: JournalPlace) -> list[CustomerStatus]:
    """Return how the customers of a journal stand. Raises `JournalError`."""
    async with open_journal(place, read_only=True) as journal:
        return await read_statuses(journal, str(place))


def print_standings(data: Console, standings: Sequence[CustomerStatus]) -> None:
    """Print a line for each customer, and how many stand how."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for column in ("customer", "outcome", "step", "changed (UTC)"):
        table.add_column(column, no_wrap=True)
    table.add_column("why, or who is at it")
    for each in standings:
        table.add_row(
            Text(clean(each.external_id)),
            Text(each.outcome, STYLES[each.outcome]),
            Text("" if each.outcome == "delivered" else each.step),
            Text(clean(each.changed_at or "")[:19].replace("T", " ")),
            Text(clean(_why(each))),
        )
    data.print(table)
    counts = Counter(each.outcome for each in standings)
    say(
        data,
        f"\n{counted(len(standings), 'customer')}: {', '.join(f'{n:,} {name}' for name, n in counts.items())}",
    )


def _why(each: CustomerStatus) -> str:
    if not each.held_by:
        return each.error or ""
    failure = each.last_failure
    trouble = f"; {failure.words}" if failure is not None and not failure.is_over else ""
    return f"under way: {each.held_by}{trouble}"


class CustomerHistory:
    """All that a journal knows of one customer."""

    def __init__(self, record: CustomerRecord, stands: CustomerStatus, happenings: list[LogEntry]) -> None:
        self.record: CustomerRecord = record
        self.standing: CustomerStatus = stands
        self.happenings: list[LogEntry] = happenings


async def read_story(place: JournalPlace, external_id: str) -> CustomerHistory:
    """Return what the journal knows of a customer. Raises `InvalidInput` if that is nothing, `JournalError`."""
    external_id = external_id.strip()
    async with open_journal(place, read_only=True) as journal:
        records, activity = await read_records(journal, str(place)), await journal.activity()
        record = records.get(external_id)
        if record is None:
            raise InvalidInput(
                "external_id", external_id, f"is not in the journal {place}; see: asyncmig status"
            )
        happenings = list(timeline(await journal.events(external_id), record.api))
    return CustomerHistory(record, status_of(record, activity.get(external_id)), happenings)


def print_story(data: Console, story: CustomerHistory) -> None:
    """Print how the customer stands, what happened when, and what came out."""
    record, stands = story.record, story.standing
    say(data, f"{record.external_id}  {clean(record.name, 100)}: {stands.outcome}", STYLES[stands.outcome])
    for name, text in _facts(story):
        say(data, f"  {name:<9}{clean(text, 1000)}")
    data.print()
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("time (UTC)", no_wrap=True)
    table.add_column("after", justify="right", no_wrap=True)
    table.add_column("what", no_wrap=True)
    table.add_column("")
    for each in story.happenings:
        waited = spoken(each.waited) if each.waited else ""
        table.add_row(
            clean(each.at)[:23].replace("T", " "), waited, Text(clean(each.kind)), Text(clean(each.words))
        )
    data.print(table)


def _facts(story: CustomerHistory) -> Iterator[tuple[str, str]]:
    record, stands = story.record, story.standing
    if stands.held_by:
        yield "at it", stands.held_by
    if "company" in record.ids:
        yield "company", record.ids["company"]
    if "run" in record.ids:
        yield (
            "run",
            record.ids["run"] + (f" ({record.status.detail})" if record.status.detail else ""),
        )
    if stands.error:
        yield "why", stands.error
    if stands.last_failure:
        at = datetime.fromtimestamp(stands.last_failure.at, UTC)
        yield "failure", f"{at:%Y-%m-%d %H:%M:%S} UTC  {stands.last_failure.words}"
    for file in record.files:
        yield "input", f"{file.path} ({file.size:,} bytes)"
    outcome = record.outcome
    if isinstance(outcome, Delivered | Failed | Parked) and outcome.report:
        yield from _report(outcome.report)
    if isinstance(outcome, Delivered):
        for downloaded in outcome.files:
            yield "file", f"{downloaded.path} ({counted(downloaded.rows, 'row')}, {downloaded.size:,} bytes)"


def _report(report: ImportReport) -> Iterator[tuple[str, str]]:
    if report.inserted is not None:
        flagged = f", {report.invalid_rows:,} of them with a bad cell" if report.invalid_rows else ""
        yield "imported", f"{counted(report.inserted, 'row')}{flagged}"
    for sheet in report.per_sheet:
        if sheet.rows is not None:
            yield "", f"{sheet.template_name or sheet.sheet_id}: {counted(sheet.rows, 'row')}"


async def follow_journal(place: JournalPlace, data: Console, *, as_json: bool) -> None:
    """Print each new event of a journal, until no process uses it. Raises `JournalError`."""
    async with open_journal(place, read_only=True) as journal:
        known = await journal.events()
        async for event in follow(journal, after=known[-1].seq if known else 0):
            _print(data, event, as_json=as_json)
            if is_unread():
                return


def _print(data: Console, event: Event, *, as_json: bool) -> None:
    if as_json:
        named = {"time": event.at, "external_id": event.external_id, "kind": event.kind}
        print_line({"schema": SCHEMA, **named, "words": words_of(event)})
        return
    line = f"{event.at[11:19]}  {clean(event.kind, 30):<9}  {event.external_id}  {clean(words_of(event))}"
    say(data, line.rstrip(), STYLES.get(event.kind, ""))


def how_to_go_on(
    standings: Sequence[CustomerStatus], options: Options | None, queue: str | None
) -> Iterator[str]:
    """Yield how all of them stand, and the commands that go on from there, as far as they are known."""
    counts = Counter(each.outcome for each in standings)
    yield f"{counted(len(standings), 'customer')}: {', '.join(f'{n:,} {name}' for name, n in counts.items())}."
    if options is None:
        return
    if counts["pending"]:
        yield "Nobody works on those that are pending. To go on:"
        yield f"  {options.command(queue=queue)}"
    if counts["parked"]:
        yield "To answer what the parked ones ask:"
        yield f"  {options.about_journal('review')}"


async def running(place: JournalPlace) -> list[CustomerRecord]:
    """Return the customers of a journal whose imports may still run at the server. Raises `JournalError`."""
    async with open_journal(place, read_only=True) as journal:
        records = await read_records(journal, str(place))
    return [record for record in records.values() if "run" in record.ids and _may_run(record)]


def _may_run(record: CustomerRecord) -> bool:
    return record.outcome is None or record.outcome.__struct_config__.tag == "pending"


async def follow_runs(
    place: JournalPlace,
    records: Sequence[CustomerRecord],
    reach: ConnectionSettings,
    data: Console,
    *,
    as_json: bool,
) -> None:
    """Print how runs change at the server, until each has ended or parked; nothing is written or fetched.

    Raises `InvalidInput` without a key, and `AuthError` for one that is refused.
    """
    async with open_session(reach, place) as session:
        with session.events.subscribe(partial(_print_failure, data, as_json)):
            await run_all(partial(_follow_run, session, record, data, as_json) for record in records)


def _print_failure(data: Console, as_json: bool, event: Happening) -> None:
    """Print a read that failed and is repeated."""
    if not isinstance(event, AttemptFailed):
        return
    if as_json:
        print_line({"schema": SCHEMA, "external_id": event.external_id, "failure": failure_words(event)})
    else:
        say(data, f"{'retrying':<15}  {event.external_id}  {clean(failure_words(event))}", "yellow")


async def _follow_run(session: Session, record: CustomerRecord, data: Console, as_json: bool) -> None:
    with working_for(Owner(record.external_id)):
        run = session.watch(record.ids["run"], record.ids["company"])
        async for state in run.updates():
            if as_json:
                print_line({"schema": SCHEMA, "external_id": record.external_id, "run": state})
            else:
                words = state.error or state.progress_message or ""
                say(data, f"{clean(state.status, 30):<15}  {record.external_id}  {clean(words)}".rstrip())
            if run.needs_attention is not None or is_unread():
                return
