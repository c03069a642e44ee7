"""The HTML report of a journal alone: what its log tells about when which customer was at what."""

from collections.abc import Sequence
from datetime import datetime
from itertools import accumulate
from pathlib import Path

from asyncmig.cli.page import Page
from asyncmig.cli.report import CompanyRow, row_of
from asyncmig.cli.timeline import Timeline
from asyncmig.companies.workflow.record import Record
from asyncmig.customers.steps import STEP_AFTER
from asyncmig.events import MigrationChanged
from asyncmig.jobs.status import read_records
from asyncmig.journal import Event, Journal

__all__ = ["page_of_journal"]

_NOTES = (
    "Made from the journal alone: times are the wall clock's at each commit; only “took” is by the clock of the run.",
    "The time between two runs of the command counts for whatever came last.",
    "The journal does not know of requests, 429s and waits for the limit: those are in the step that waited.",
    "Nor does it know when a run parked, ended or was noticed, or a download began: that is all in “running”.",
)


async def page_of_journal(path: Path, written: str) -> Page:
    """Return the report of a journal, also while another process writes it. Raises `JournalError`."""
    async with Journal(path, read_only=True) as journal:
        records, events = await read_records(journal, str(path)), await journal.events()
    return Page(
        title=path.name,
        written=written,
        rows=[_row(record, path.parent) for record in records.values()],
        timeline=_timeline(events),
        notes=_NOTES,
    )


def _row(record: Record, folder: Path) -> CompanyRow:
    if record.outcome is not None:
        return row_of(record.outcome, folder)
    return CompanyRow(
        external_id=record.external_id,
        name=record.name,
        error="not finished",
        company_id=record.company_id,
        run_id=record.run_id,
    )


def _timeline(events: Sequence[Event]) -> Timeline:
    # In order even where the wall clock was set back.
    times = list(accumulate((datetime.fromisoformat(event.at).timestamp() for event in events), max))
    timeline = Timeline(began=min(times, default=0.0))
    for at, event in zip(times, events, strict=True):
        if step := STEP_AFTER.get(event.kind):
            timeline.note(MigrationChanged(at=at, external_id=event.external_id, step=step))
    timeline.end(max(times, default=0.0))
    return timeline
