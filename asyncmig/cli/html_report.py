"""The HTML report: one file without scripts and without references to other hosts.

`page_of_journal` makes it from a journal. `run --report` makes it from the events of its session.
"""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from html import escape
from importlib import resources
from importlib.metadata import version
from itertools import accumulate
from pathlib import Path
from statistics import median
from typing import final
from urllib.parse import quote

from asyncmig._core.limits import Rate
from asyncmig.cli.charts import KINDS, Timeline, axis, counts_of, delays, fleet, plain, requests
from asyncmig.cli.json_output import Budget, reported
from asyncmig.cli.output import counted, spoken
from asyncmig.cli.summary import blocking_words, by_reason, reason
from asyncmig.customers.files import write_whole
from asyncmig.customers.preview_page import html_page, preview_page
from asyncmig.customers.status import CustomerStatus
from asyncmig.errors import InvalidInput
from asyncmig.events import MigrationChanged
from asyncmig.jobs.outputs import check_replaceable
from asyncmig.jobs.status import OUTCOMES, read_records, status_of
from asyncmig.journal import JournalEvent, JournalPlace, open_journal
from asyncmig.steps import STEP_AFTER

__all__ = [
    "NOTES_OF_RUN",
    "ReportPage",
    "check_place",
    "page_of_journal",
    "preview_links",
    "render",
    "write_page",
]

_MOST_OPEN = 60
"""Up to this number of customers, the table of all customers is unfolded."""
_MOST_NAMED = 12
_COLUMNS = (
    ("", "customer"),
    ("", "outcome"),
    ("n", "rows in"),
    ("n wide", "bad"),
    ("n", "rows out"),
    ("n wide", "files"),
    ("n", "took"),
    ("", "why, and notes"),
)
"""Class and name of each column; columns of the class `wide` are hidden on a phone."""
_ABOUT_BUDGETS = (
    "A request takes a slot of each budget that it charges. “In use” counts the slots that were taken at the end of "
    "the run, also by earlier runs."
)
_NOTES_OF_JOURNAL = (
    "This report was made from the journal alone. Times are wall-clock times of commits; only “took” is the run's.",
    "The time between two runs of the command is part of the step that came before it.",
    "The journal does not record requests, 429s and waits for the limit. They are part of the step that waited.",
    "It does not record when a run parked or ended, or when a download began. All of that is part of “running”.",
)
NOTES_OF_RUN = (
    "The charts show only this run of the command.",
    "Waits for the limit are those of a customer's own requests, with the pauses after a 429.",
    "Only the server knows when an import ended: the time since the last poll before it counts as not noticed.",
    "“Rows in” is what the server says it imported; “rows out” is what the downloaded files contain.",
)


def _written_now() -> str:
    return f"Written {datetime.now(UTC):%Y-%m-%d %H:%M} UTC by asyncmig {version('asyncmig')}"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ReportPage:
    """The content of the report."""

    title: str
    """The name of the manifest or the journal."""
    written: str = field(default_factory=_written_now)
    """When the page was written, and by which version."""
    rows: Sequence[CustomerStatus]
    timeline: Timeline
    budget: Budget | None = None
    """The requests; None if they were not counted."""
    rate: Rate | None = Rate()  # noqa: RUF009 - it is frozen
    """The limit of each endpoint, or of all together; None if endpoints charge named budgets."""
    by_key: bool = False
    """Whether all endpoints share one limit."""
    reason: str | None = None
    """Why the run ended early; None if it did not."""
    notes: Sequence[str] = ()
    """Notes on how the figures were measured."""
    previews: Mapping[str, str] = field(default_factory=dict[str, str])
    """The relative URL of each customer's preview, by external id."""


def render(page: ReportPage) -> str:
    """Return the report as HTML."""
    style = resources.files("asyncmig.cli").joinpath("page.css").read_text(encoding="utf-8")
    notes = "".join(f"<li>{plain(note, 500)}</li>" for note in page.notes)
    foot = f'<footer class="about">How to read this<ul>{notes}</ul></footer>'
    body = [_head(page), *_sections(page), foot]
    return html_page(f"Migration report: {plain(page.title, 100)}", style, body)


def _head(page: ReportPage) -> str:
    early = f'<p class="warn">Not finished: {plain(page.reason)}</p>' if page.reason else ""
    figures = "".join(
        f"<div><dt>{name}</dt><dd>{figure}<small>{words or '&#160;'}</small></dd></div>"
        for name, figure, words in _figures(page)
    )
    return (
        f'<header><h1>Migration of {plain(page.title, 100)}</h1><p class="soft">{plain(page.written)}</p>{early}'
        f'<dl class="figures">{figures}</dl></header>'
    )


def _figures(page: ReportPage) -> Iterator[tuple[str, str, str]]:
    """Yield the main figures: a name, the figure, and a remark."""
    done = [row for row in page.rows if row.outcome == "delivered"]
    inserted = sum(row.rows.inserted or 0 for row in done)
    flagged = sum(row.rows.flagged or 0 for row in done)
    files = [file for row in done for file in row.files]
    yield "customers delivered", f"{len(done):,}", f"of {len(page.rows):,}"
    yield "rows in", f"{inserted:,}", f"imported, {flagged:,} with a bad cell"
    yield "rows out", f"{sum(file.rows for file in files):,}", f"in {counted(len(files), 'file')}"
    yield "took", spoken(page.timeline.length), ""
    if budget := page.budget:
        share = f"{budget.polls / budget.requests:.0%} of them polls" if budget.requests else ""
        yield "requests", f"{budget.requests:,}", share
        yield "answered 429", f"{budget.refused:,}", f"{'' if budget.refused else 'never '}over the limit"
        if slots := budget.run_slots:
            waits = slots.get("waits_for_person", 0)
            words = f"of {slots['limit']}" + (f", {waits} waiting for a person" if waits else "")
            yield "run slots taken", f"{slots.get('in_progress', 0) + slots.get('others', 0)}", words


def _sections(page: ReportPage) -> Iterator[str]:
    timeline, budget = page.timeline, page.budget
    yield _section("Outcomes", "", _outcomes(page.rows) + _reasons(page.rows))
    about = "One bar for each customer; those that started first are on top. Point at a bar to see its times."
    yield _section("The fleet over time", about, _legend(page) + fleet(timeline, page.rows))
    if timeline.sent:
        each = "minute" if timeline.bin == 60 else spoken(timeline.bin)
        yield _section(f"Requests in each {each}", _about_rates(page), _rates(page))
    if budget is not None and len(budget.limits) > 1:
        yield _section("Budgets", _ABOUT_BUDGETS, _budgets(budget))
    if timeline.noticed:
        chart = f'<div class="narrow">{delays(timeline.noticed)}</div>'
        yield _section("How soon an end was noticed", _about_delays(timeline.noticed), chart)
    yield _section("Customers", "", _customers(page))


def _section(title: str, about: str, inside: str) -> str:
    words = f'<p class="about">{about}</p>' if about else ""
    return f"<section><h2>{title}</h2>{words}{inside}</section>"


def _table(columns: Sequence[tuple[str, str]], lines: str) -> str:
    heads = "".join(f'<th class="{kind}">{name}</th>' for kind, name in columns)
    return f'<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>{lines}</tbody></table></div>'


def _budgets(budget: Budget) -> str:
    """Return a table of the budgets, and of the run slots if any was used."""
    lines = [
        ("all requests" if name == "*" else name, use.rate, f"{use.used:,}", f"{use.requests:,}", use.refused)
        for name, use in budget.limits.items()
    ]
    if slots := budget.run_slots:
        taken = slots.get("in_progress", 0) + slots.get("others", 0)
        lines.append(("run slots", str(slots["limit"]), f"{taken:,}", "", slots.get("refused", 0)))
    rows = "".join(
        f'<tr><td class="id">{plain(name, 120)}</td><td class="n">{plain(limit)}</td><td class="n">{used}</td>'
        f'<td class="n">{sent}</td><td class="n">{refused:,}</td></tr>'
        for name, limit, used, sent, refused in lines
    )
    heads = (("", "budget"), ("n", "limit"), ("n", "in use"), ("n", "requests"), ("n", "429s"))
    return _table(heads, rows)


def _outcomes(rows: Sequence[CustomerStatus]) -> str:
    counts = Counter(row.outcome for row in rows)
    there = [outcome for outcome in OUTCOMES if counts[outcome]]
    parts = "".join(f'<i class="{each}" style="flex:{counts[each]}"></i>' for each in there)
    words = "".join(
        f'<li class="{each}"><i></i><span><b>{counts[each]:,}</b> {each}</span></li>' for each in there
    )
    return f'<div class="share" aria-hidden="true">{parts}</div><ul class="legend">{words}</ul>'


def _reasons(rows: Sequence[CustomerStatus]) -> str:
    groups = [group for group in by_reason(rows) if group[0].outcome != "delivered"]
    if not groups:
        return ""
    blocking = f'<p class="warn">{plain(words)}</p>' if (words := blocking_words(rows)) else ""
    lines = ""
    for group in groups:
        names = (f'<span class="id">{plain(row.external_id, 60)}</span>' for row in group[:_MOST_NAMED])
        more = ", … (all are in the table below)" if len(group) > _MOST_NAMED else ""
        lines += (
            f'<tr>{_kind(group[0])}<td class="n">{len(group):,}</td>'
            f'<td class="why">{plain(reason(group[0]))}<small>{", ".join(names)}{more}</small></td></tr>'
        )
    return blocking + _table((("", "outcome"), ("n", "customers"), ("all", "why, and who")), lines)


def _kind(row: CustomerStatus) -> str:
    return f'<td class="kind {row.outcome}"><i></i><span>{row.outcome}</span></td>'


def _legend(page: ReportPage) -> str:
    seen = page.timeline.kinds
    items = "".join(
        f'<li class="k-{kind}"><i></i><span>{words}</span></li>'
        for kind, words in KINDS.items()
        if kind in seen
    )
    if any(row.outcome == "failed" for row in page.rows):
        items += '<li class="failed"><i></i><span>failed, at the end of its bar</span></li>'
    return f'<ul class="legend">{items}</ul>'


def _about_rates(page: ReportPage) -> str:
    if page.rate is None:
        return "Requests that were answered 429 are red. The limits are those of the budgets below."
    rate = f"{page.rate.limit:,} {'a minute' if page.rate.window == 60 else f'in {spoken(page.rate.window)}'}"
    scope = "for all of them together" if page.by_key else "for each endpoint"
    return (
        f"The dashed line is the limit: {rate} {scope}. Requests that were answered 429 are red. "
        "During a shaded time, nothing was sent because of a 429."
    )


def _rates(page: ReportPage) -> str:
    sent = page.timeline.sent
    ranked = sorted(sent, key=lambda name: -sent[name].total())
    figures = "".join(_rate(page, name) for name in (["*"] if page.by_key else []) + ranked)
    return f'<div class="rates">{figures}</div>'


def _rate(page: ReportPage, endpoint: str) -> str:
    timeline, is_all = page.timeline, endpoint == "*"
    rate = page.rate if is_all or not page.by_key else None
    limit = rate.limit * timeline.bin / rate.window if rate else None
    words = [f"{counts_of(timeline.sent, endpoint).total():,} sent"]
    if refused := counts_of(timeline.refused, endpoint).total():
        words.append(f"{refused:,} answered 429")
    if held := sum(hold.end - hold.start for hold in timeline.holds.get(endpoint, ())):
        words.append(f"held for {spoken(held)}")
    if longest := timeline.longest_waits.get(endpoint):
        words.append(f"longest wait {spoken(longest)}")
    name = "all requests" if is_all else plain(endpoint, 120)
    return (
        f"<figure><figcaption><code>{name}</code><small>{' · '.join(words)}</small></figcaption>"
        f'<div class="plot">{requests(timeline, endpoint, limit)}{axis(timeline.length)}</div></figure>'
    )


def _about_delays(noticed: Sequence[float]) -> str:
    ranked = sorted(noticed)
    late = ranked[int(len(ranked) * 0.9)]
    return (
        f"Half of {counted(len(ranked), 'run')} were noticed within {spoken(median(ranked))} of their end, "
        f"90% within {spoken(late)}, all within {spoken(ranked[-1])}. "
        "These are upper bounds, measured from the last poll at which the run was still in progress."
    )


def _customers(page: ReportPage) -> str:
    ranked = sorted(page.rows, key=lambda row: row.outcome == "delivered")
    lines = (_customer(row, page.previews.get(row.external_id)) for row in ranked)
    table = _table(_COLUMNS, "".join(lines))
    if len(ranked) <= _MOST_OPEN:
        return table
    return f"<details><summary>All {len(ranked):,}, those not delivered first</summary>{table}</details>"


def _customer(row: CustomerStatus, preview: str | None) -> str:
    why = () if row.outcome == "delivered" else (row.error or "",)
    rows = sum(file.rows for file in row.files) if row.files else None
    figures = (row.rows.inserted, row.rows.flagged, rows, len(row.files) or None)
    cells = [*("" if figure is None else f"{figure:,}" for figure in figures), spoken(row.seconds)]
    numbers = (
        f'<td class="{kind}">{cell}</td>' for (kind, _), cell in zip(_COLUMNS[2:-1], cells, strict=True)
    )
    link = f'<small><a href="{escape(preview)}">preview</a></small>' if preview else ""
    return (
        f'<tr><td class="id">{plain(row.external_id, 60)}<small>{plain(row.name, 60)}</small>{link}</td>{_kind(row)}'
        f'{"".join(numbers)}<td class="why">{"<br/>".join(map(plain, filter(None, (*why, *row.notes))))}</td></tr>'
    )


async def page_of_journal(place: JournalPlace, *, out: Path | None = None, page: Path = Path()) -> ReportPage:
    """Return the report of a journal, also while another process writes it. Raises `JournalError`.

    `out`: the folder with the previews. `page`: where the report is written, for its links.
    """
    async with open_journal(place, read_only=True) as journal:
        records, events = await read_records(journal), await journal.events()
    folder = Path.cwd() if place.path is None else place.path.parent
    rows = [reported(status_of(record), folder) for record in records.values()]
    return ReportPage(
        title=str(place) if place.path is None else place.path.name,
        rows=rows,
        previews=preview_links(out, rows, page),
        timeline=_timeline(events),
        notes=_NOTES_OF_JOURNAL,
    )


def _timeline(events: Sequence[JournalEvent]) -> Timeline:
    # In order even where the wall clock was set back.
    times = list(accumulate((datetime.fromisoformat(event.at).timestamp() for event in events), max))
    timeline = Timeline(began=min(times, default=0.0))
    for at, event in zip(times, events, strict=True):
        if step := STEP_AFTER.get(event.kind):
            timeline.note(MigrationChanged(at=at, external_id=event.external_id, step=step))
    timeline.end(max(times, default=0.0))
    return timeline


def check_place(path: Path | None) -> None:
    """Raise `InvalidInput` for a report that cannot be written at `path`, or would replace another file."""
    if path is None:
        return
    if path.is_dir() or not path.parent.is_dir():
        reason = "is a folder" if path.is_dir() else "lies in a folder that does not exist"
        raise InvalidInput("report", str(path), f"{reason}: name a file")
    check_replaceable("report", path, "a report in HTML")


def write_page(path: Path, page: ReportPage) -> None:
    """Write a page atomically. Raises `OSError`."""
    write_whole(path, render(page).encode())


def preview_links(out: Path | None, rows: Iterable[CustomerStatus], page: Path) -> Mapping[str, str]:
    """Return the relative URL of each customer's preview, by external id, for the report at `page`."""
    folder = page.absolute().parent
    previews = {row.external_id: preview_page(out, row.external_id) for row in rows}
    return {
        name: quote(Path(os.path.relpath(preview, folder)).as_posix())
        for name, preview in previews.items()
        if preview is not None
    }
