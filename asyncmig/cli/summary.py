"""The summary of a run: outcomes with reasons, requests, and the commands that continue."""

from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from asyncmig.cli.live_view import STYLES
from asyncmig.cli.output import clean, counted, say
from asyncmig.cli.report import by_reason, reason
from asyncmig.cli.run import RunResult
from asyncmig.cli.settings import DecideChoice, Options
from asyncmig.customers.status import CustomerStatus

__all__ = ["figures", "next_steps", "print_figures", "print_outcomes", "print_summary", "print_undelivered"]

_MOST_REASONS = 20
_MOST_NAMED = 3


def print_summary(data: Console, ended: RunResult, options: Options) -> None:
    """Print outcomes with their reasons, who is not delivered, the figures, and the next command."""
    print_outcomes(data, ended, options)
    print_undelivered(data, ended)
    print_figures(data, figures(ended))
    data.print()
    for line in next_steps(ended, options):
        say(data, line)


def print_outcomes(data: Console, ended: RunResult, options: Options) -> None:
    """Print how many customers ended how, and why."""
    data.print()
    data.print(_outcomes(ended.customers, str(options.out / "report.json")))


def print_undelivered(data: Console, ended: RunResult) -> None:
    """Print each customer that is not delivered, unless the table of outcomes named them all."""
    groups = [group for group in by_reason(ended.customers) if _is_listed(group)]
    if len(groups) <= _MOST_REASONS and all(len(group) <= _MOST_NAMED for group in groups):
        return
    data.print()
    for group in groups:
        outcome, same = group[0].outcome, len({reason(row) for row in group}) == 1
        lines = [", ".join(row.external_id for row in group)] if same else _each(group)
        for line in lines:
            say(data, f"{outcome:>9}  {line}", STYLES[outcome])


def _each(group: Sequence[CustomerStatus]) -> list[str]:
    return [f"{row.external_id}  {reason(row)}" for row in group]


def _is_listed(group: Sequence[CustomerStatus]) -> bool:
    """Return whether a group is to be listed; `asyncmig status` lists what an interrupt left behind."""
    return group[0].outcome not in ("delivered", "pending")


def print_figures(data: Console, lines: Sequence[tuple[str, str]]) -> None:
    """Print a name and a figure on each line."""
    data.print()
    for name, text in lines:
        say(data, f"{name:<11}{text}")


def figures(ended: RunResult) -> list[tuple[str, str]]:
    """Return rows and requests of the run, as pairs of a name and a sentence."""
    budget = ended.report.budget
    companies = [company for company in ended.customers if company.outcome == "delivered"]
    inserted = sum(company.rows.inserted or 0 for company in companies)
    flagged = sum(company.rows.flagged or 0 for company in companies)
    files = [file for company in companies for file in company.files]
    share = f", {budget.polls / budget.requests:.0%} of them polls" if budget.requests else ""
    return [
        ("imported", f"{inserted:,} rows, {flagged:,} of them with a bad cell"),
        ("delivered", f"{sum(file.rows for file in files):,} rows in {len(files):,} files"),
        ("requests", f"{budget.requests:,}{share}; {budget.refused:,} answered 429 (over the limit)"),
    ]


def next_steps(ended: RunResult, options: Options) -> Iterator[str]:
    """Yield the next steps, each with its command."""
    outcomes = {company.outcome for company in ended.customers}

    def again(text: str, decide: DecideChoice | None = None, select: str | None = None) -> Iterator[str]:
        explicit = ended.explicit if ended.queue else ()
        yield f"{text}:"
        yield f"  {options.command(decide, queue=ended.queue, select=select, explicit=explicit)}"

    def look(text: str, command: str, *words: str) -> Iterator[str]:
        yield f"{text}:"
        yield f"  {options.about_journal(command, *words)}"

    if ended.key_refused:
        yield from again("The API key was refused. Set a valid one in VERN_API_KEY, then continue")
    elif "pending" in outcomes:
        why = f" ({clean(ended.reason)})" if ended.reason else ""
        yield from again(f"Not finished{why}. {_where_it_continues(ended)}")
    if "parked" in outcomes:
        yield "Parked customers wait for a decision."
        if ended.is_recorded:
            yield from look("To look at what each asks, and to answer", "review")
        else:
            yield "What each asks is in the workers' journal: give its database as --journal, also to later runs."
        if options.decide == "park":
            yield from again(
                "Or, to approve what the server proposes, unless it destroys rows", "approve-safe"
            )
        elif options.decide == "approve-safe":
            yield from again(
                "What the server proposes destroys rows, or may. To approve it all the same", "approve"
            )
    if "unknown" in outcomes:
        yield "The outcome of some requests is unknown; the reason says how to check."
        if ended.is_recorded:
            unknown = next(row.external_id for row in ended.customers if row.outcome == "unknown")
            yield from look("To see the customer's history", "show", unknown)
        else:
            yield "If a company has to be adopted, that must be written to the workers' journal."
    if "failed" in outcomes:
        yield from again(
            "A failed customer is imported again when its files have changed. Correct them, then"
        )
        if ended.is_recorded:
            yield from look("Or, to import them again as they are", "retry", "--select", "status:failed")
        else:
            yield from again("Or, to import them again as they are", select="status:failed")
    if not ended.customers:
        yield "No customer is selected: there is nothing to do."
    elif outcomes <= {"delivered"}:
        which = "Every customer" if ended.selected is None else "Every selected customer"
        if ended.queue:
            where = f". The sheets are where the workers write; {options.out}/report.json lists them."
        else:
            where = f": {options.out}/EXTERNAL_ID/SHEET.csv"
        yield f"{which} is delivered{where}"
    if others := len(ended.report.customers) - len(ended.customers):
        text = f"Not selected: {counted(others, 'customer')}."
        yield from look(f"{text} To see their status", "status") if ended.is_recorded else (text,)


def _where_it_continues(ended: RunResult) -> str:
    if not ended.queue:
        return "Imports continue at the server. To continue here"
    if ended.connected:
        return "The workers go on with what was submitted. To follow it"
    return "This run submitted nothing to the workers. To submit it"


def _outcomes(companies: Sequence[CustomerStatus], report_path: str) -> Table:
    """Return a table of outcomes; reasons that differ by numbers only are one row, with the first one's words."""
    ranked = by_reason(companies)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("outcome", no_wrap=True)
    table.add_column("customers", justify="right")
    table.add_column("why")
    table.add_column("which")
    for group in ranked[:_MOST_REASONS]:
        outcome = group[0].outcome
        table.add_row(
            Text(outcome, STYLES[outcome]), f"{len(group):,}", Text(reason(group[0])), Text(_some(group))
        )
    if len(ranked) > _MOST_REASONS:
        rest = sum(map(len, ranked[_MOST_REASONS:]))
        table.add_row("...", f"{rest:,}", Text(f"for more reasons, see {report_path}"), "")
    return table


def _some(group: Sequence[CustomerStatus]) -> str:
    """Return a few of the ids; those delivered need none."""
    if group[0].outcome == "delivered":
        return ""
    return ", ".join(clean(company.external_id) for company in group[:_MOST_NAMED]) + (
        ", ..." if len(group) > _MOST_NAMED else ""
    )
