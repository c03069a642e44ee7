"""`asyncmig status` and `asyncmig show`: what the journal knows, also while another process writes it."""

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from asyncmig.cli.amounts import spoken
from asyncmig.cli.progress import STYLES
from asyncmig.cli.terminal import clean, counted, say
from asyncmig.companies.outcome import Delivered, Failed, Parked
from asyncmig.companies.spec import Record
from asyncmig.companies.wire import ImportReport
from asyncmig.errors import InvalidInput
from asyncmig.journal import Journal
from asyncmig.status import Happening, Standing, read_records, read_standings, standing, timeline

__all__ = ["Story", "print_standings", "print_story", "read_story", "standings_of"]


async def standings_of(path: Path) -> list[Standing]:
    """Return how the customers of a journal stand. Raises `JournalError`."""
    async with Journal(path, read_only=True) as journal:
        return await read_standings(journal, str(path))


def print_standings(data: Console, standings: Sequence[Standing]) -> None:
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


def _why(each: Standing) -> str:
    if not each.held_by:
        return each.error or ""
    failure = each.last_failure
    trouble = f"; {failure.words}" if failure is not None and not failure.is_over else ""
    return f"under way: {each.held_by}{trouble}"


class Story:
    """All that a journal knows of one customer."""

    def __init__(self, record: Record, stands: Standing, happenings: list[Happening]) -> None:
        self.record: Record = record
        self.standing: Standing = stands
        self.happenings: list[Happening] = happenings


async def read_story(path: Path, external_id: str) -> Story:
    """Return what the journal knows of a customer. Raises `InvalidInput` if that is nothing, `JournalError`."""
    external_id = external_id.strip()
    async with Journal(path, read_only=True) as journal:
        records, activity = await read_records(journal, str(path)), await journal.activity()
        record = records.get(external_id)
        if record is None:
            raise InvalidInput(
                "external_id", external_id, f"is not in the journal {path}; see: asyncmig status"
            )
        happenings = list(timeline(await journal.events(external_id)))
    return Story(record, standing(record, activity.get(external_id)), happenings)


def print_story(data: Console, story: Story) -> None:
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


def _facts(story: Story) -> Iterator[tuple[str, str]]:
    record, stands = story.record, story.standing
    if stands.held_by:
        yield "at it", stands.held_by
    if record.company_id:
        yield "company", record.company_id
    if record.run_id:
        yield (
            "run",
            record.run_id + (f" (import number {record.epoch + 1} of this company)" if record.epoch else ""),
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
