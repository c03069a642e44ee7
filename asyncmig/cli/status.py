"""`asyncmig status` and `show`: what a journal says, also while another process writes it.

`status` also shows the use of budgets, by the send log and the last `report.json`.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Literal

import msgspec
import typer
from rich.console import Console
from rich.text import Text

from asyncmig import generations
from asyncmig._core.limits import BY_KEY, Rate
from asyncmig._io.send_log import SendLog
from asyncmig.cli.connection import timeouts_at
from asyncmig.cli.inputs import check_words
from asyncmig.cli.json_output import BudgetUse, read_report
from asyncmig.cli.last_run import options_of, recall_if_any
from asyncmig.cli.options import DEFAULT_JOURNAL, ExternalId, JournalOption, JsonOption
from asyncmig.cli.output import (
    SCHEMA,
    STYLES,
    clean,
    counted,
    data_console,
    print_line,
    print_table,
    say,
    say_steps,
    spoken,
)
from asyncmig.cli.settings import Options, Settings, about_journal
from asyncmig.cli.summary import how_to_continue, outcome_counts, print_outcomes, reason
from asyncmig.customers.outcome import Delivered, Failed, ImportReport, Parked
from asyncmig.customers.status import CustomerRecord, CustomerStatus
from asyncmig.errors import CustomerNotFound, InvalidInput
from asyncmig.jobs.status import OUTCOMES, LogEntry, read_record, read_statuses, status_of, timeline
from asyncmig.journal import JournalPlace, open_journal

__all__ = ["BudgetStatus", "Listing", "show", "status", "statuses_of_journal"]

_log = logging.getLogger("asyncmig")


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """Which customers `asyncmig status` lists, and in which order."""

    as_list: Annotated[bool, typer.Option("--list", help="Print a line for each customer.")] = False
    outcome: Annotated[
        str | None,
        typer.Option(
            metavar="OUTCOMES",
            help=f"List only customers with one of these outcomes, separated by commas: {', '.join(OUTCOMES)}.",
        ),
    ] = None
    sort: Annotated[
        Literal["changed", "id", "outcome"] | None,
        typer.Option(
            metavar="changed|id|outcome", help="List in this order; the default is changed: the latest last."
        ),
    ] = None

    @property
    def is_given(self) -> bool:
        """Whether a list is wanted instead of a summary."""
        return self.as_list or self.outcome is not None or self.sort is not None

    def of(self, statuses: Iterable[CustomerStatus]) -> list[CustomerStatus]:
        """Return the selected customers in order. Raises `InvalidInput` for a name that is not an outcome."""
        names = OUTCOMES if self.outcome is None else check_words("--outcome", self.outcome, OUTCOMES)
        keys: Mapping[str | None, Callable[[CustomerStatus], object]] = {
            "id": lambda status: status.external_id,
            "outcome": lambda status: (OUTCOMES.index(status.outcome), status.external_id),
        }
        key = keys.get(self.sort, lambda status: status.changed_at or "")
        return sorted((each for each in statuses if each.outcome in names), key=key)


def status(
    journal: JournalOption = DEFAULT_JOURNAL,
    as_json: JsonOption = False,
    *,
    budgets: Annotated[
        bool,
        typer.Option("--budgets", help="Print only how much of each budget is used, and how many run slots."),
    ] = False,
    listing: Listing,
) -> None:
    """Print how many customers ended how, and why.

    Also prints how much of each budget is used. Works while another process uses the journal. --outcome and --sort
    imply --list. --json prints one object per customer; with --budgets, one per budget.
    """
    data = data_console()
    statuses = listing.of(asyncio.run(statuses_of_journal(journal)))
    if as_json and not budgets:
        for each in statuses:
            print_line({"schema": SCHEMA, **msgspec.structs.asdict(each)})
        return
    if listing.is_given and not budgets:
        _print_list(data, statuses)
        return
    last = recall_if_any(journal)
    options = options_of(last)
    used = _read_budgets(journal, options, statuses)
    if budgets:
        _print_budgets(data, used, as_json=as_json)
        return
    if statuses:
        print_outcomes(data, statuses, about_journal(journal, "status", "--list"))
    for holder, count in Counter(each.held_by for each in statuses if each.held_by).items():
        say(data, f"\nIn use by {clean(holder)}: {counted(count, 'customer')}.")
    if used:
        data.print()
        _print_budgets(data, used)
    data.print()
    command = options.command(queue=last.queue) if options and last else None
    say_steps(data, how_to_continue(statuses, command, journal))


async def statuses_of_journal(place: JournalPlace) -> list[CustomerStatus]:
    """Return the status of each customer of a journal. Raises `JournalError`."""
    async with open_journal(place, read_only=True) as journal:
        return await read_statuses(journal)


def _print_list(data: Console, statuses: Sequence[CustomerStatus]) -> None:
    """Print a line for each customer, and how many have which outcome."""
    rows = [
        (
            each.external_id,
            Text(each.outcome, STYLES[each.outcome]),
            (each.changed_at or "")[:16].replace("T", " "),
            _why(each),
        )
        for each in statuses
    ]
    print_table(data, ("customer", "outcome", "changed (UTC)", "why"), rows)
    say(data, f"\n{outcome_counts(statuses)}.")


def _why(each: CustomerStatus) -> str:
    if each.held_by:
        return f"{reason(each)} (by {each.held_by})"
    return reason(each) or ("" if each.outcome == "delivered" else f"not finished: {each.step}")


class BudgetStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The present use of one budget, or of the run slots (`runs`)."""

    budget: str
    limit: int
    window: float | None = None
    """Seconds; None for the run slots."""
    used: int
    """The slots taken in the last window, by the send log; of run slots, those taken when the report was written."""
    requests: int | None = None
    """The requests that the last run sent; None for the run slots, and if no `report.json` can be read."""
    refused: int | None = None
    """The 429s of the last run; None if no `report.json` can be read."""
    is_assumed: bool = False
    """Whether the limit is the default one, because the settings of the last run are not known."""


def _read_budgets(
    place: JournalPlace, options: Options | None, statuses: Sequence[CustomerStatus]
) -> list[BudgetStatus]:
    """Return the use of each budget of a journal's last run, and of its run slots; empty before its first request.

    `options`: the settings of that run. None if they are not known, for example because a program wrote the journal:
    then the limits are the defaults of the API generation of `statuses`.
    """
    last = None
    if options is not None:
        with suppress(OSError, ValueError):
            last = read_report(options.out).budget
    settings = options or Settings(api=statuses[0].api if statuses else generations.DEFAULT)
    timeout = timeouts_at(settings.speed).total or 0.0
    ages = SendLog(place.beside("recent"), speed=settings.speed, timeout=timeout).ages()
    uses = last.limits if last else {}
    if not ages and not uses:
        return []
    try:
        limits, generation = settings.all_limits, generations.find(settings.api)
    except InvalidInput as error:  # the file with the settings was changed, or a later version wrote it
        _log.warning("the use of budgets is not shown: the settings of the last run have %s", error)
        return []
    named = limits.budgets if options is not None and generation.endpoints else ()
    found: list[BudgetStatus] = []
    for name in dict.fromkeys((*named, *sorted({*uses, *ages}))):
        other = limits.key if name == BY_KEY and limits.key is not None else limits.endpoint
        rate, use = limits.budgets.get(name, other), uses.get(name, BudgetUse()) if last else None
        found.append(
            BudgetStatus(
                budget=name,
                limit=rate.limit,
                window=rate.window,
                used=sum(age < rate.window for age in ages.get(name, ())),
                requests=use.requests if use else None,
                refused=use.refused if use else None,
                is_assumed=options is None,
            )
        )
    if last and (slots := last.run_slots):
        taken = slots.get("in_progress", 0) + slots.get("others", 0)
        limit, refused = slots.get("limit", 0), slots.get("refused", 0)
        found.append(BudgetStatus(budget="runs", limit=limit, used=taken, refused=refused))
    return found


def _print_budgets(data: Console, budgets: Sequence[BudgetStatus], *, as_json: bool = False) -> None:
    """Print a line for each budget; nothing if there are none."""
    if as_json:
        for each in budgets:
            print_line({"schema": SCHEMA, **msgspec.structs.asdict(each)})
        return
    if not budgets:
        return
    assumed = " (default limits, because the settings of the last run are not known)"
    is_assumed = any(each.is_assumed for each in budgets)
    say(data, f"Slots in use now{assumed if is_assumed else '; requests and 429s of the last run'}:")
    rows = [
        (
            str(each.limit if each.window is None else Rate(each.limit, each.window)),
            f"{each.used:,}",
            *("" if figure is None else f"{figure:,}" for figure in (each.requests, each.refused)),
            {BY_KEY: "all requests", "runs": "run slots"}.get(each.budget, each.budget),
        )
        for each in budgets
    ]
    heads = ("limit", "in use", "requests", "429s", "budget")
    print_table(data, heads, rows, right=heads[:-1])


def show(
    external_id: ExternalId, journal: JournalOption = DEFAULT_JOURNAL, as_json: JsonOption = False
) -> None:
    """Print the history of one customer.

    The history contains its status, ids, files and report, and each entry of the journal with its time.
    """
    data = data_console()
    record, customer, entries = asyncio.run(_history(journal, external_id.strip()))
    if as_json:
        report = getattr(record.outcome, "report", None)
        more = {"inputs": record.files, "report": report, "entries": entries}
        print_line({"schema": SCHEMA, **msgspec.structs.asdict(customer), **more})
        return
    head = f"{record.external_id}  {clean(record.name, 100)}: {customer.outcome}"
    say(data, head, STYLES[customer.outcome])
    for name, text in _facts(record, customer):
        say(data, f"  {name:<10} {clean(text, 1000)}")
    data.print()
    rows = [
        (each.at[:19].replace("T", " "), spoken(each.waited) if each.waited else "", each.kind, each.words)
        for each in entries
    ]
    print_table(data, ("time (UTC)", "after", "entry", ""), rows, right={"after"})


async def _history(
    place: JournalPlace, external_id: str
) -> tuple[CustomerRecord, CustomerStatus, list[LogEntry]]:
    """Return a customer's record, status and journal entries. Raises `CustomerNotFound`, `JournalError`."""
    async with open_journal(place, read_only=True) as journal:
        try:
            record = await read_record(journal, external_id)
        except CustomerNotFound:
            reason = f"is not in the journal {place}; see: {about_journal(place, 'status', '--list')}"
            raise CustomerNotFound("external_id", external_id, reason) from None
        activity = await journal.activity(external_id)
        entries = list(timeline(await journal.events(external_id), record.api))
    return record, status_of(record, activity.get(external_id)), entries


def _facts(record: CustomerRecord, status: CustomerStatus) -> Iterator[tuple[str, str]]:
    if status.held_by:
        yield "in use", f"by {status.held_by}"
    for kind, each in record.ids.items():
        yield kind, each + (f" ({record.status.detail})" if kind == "run" and record.status.detail else "")
    if status.error:
        yield "why", status.error
    if status.last_failure:
        at = datetime.fromtimestamp(status.last_failure.at, UTC)
        yield "failure", f"{at:%Y-%m-%d %H:%M:%S} UTC  {status.last_failure.words}"
    for file in record.files:
        yield "input", f"{file.path} ({file.size:,} bytes)"
    outcome = record.outcome
    if isinstance(outcome, Delivered | Failed | Parked) and outcome.report:
        yield from _report(outcome.report, "valid" if isinstance(outcome, Parked) else "imported")
    for sheet in status.files:
        flagged = "; with flagged rows" if sheet.flagged == "included" else ""
        yield "file", f"{sheet.path} ({counted(sheet.rows, 'row')}, {sheet.bytes:,} bytes{flagged})"
    for note in status.notes:
        yield "note", note


def _report(report: ImportReport, name: str) -> Iterator[tuple[str, str]]:
    """Yield the counts of a report. `name`: what they are, because a parked import counts only its valid rows."""
    if report.inserted is not None:
        of_them = "" if name == "valid" else "of them "
        flagged = f", {report.invalid_rows:,} {of_them}with a bad cell" if report.invalid_rows else ""
        yield name, f"{counted(report.inserted, 'row')}{flagged}"
    for sheet in report.per_sheet:
        if sheet.rows is not None:
            yield "", f"{sheet.template_name or sheet.sheet_id}: {counted(sheet.rows, 'row')}"
