"""The words at the end: what came out, what it cost, and what to type next."""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from asyncmig.cli.options import Options
from asyncmig.cli.progress import STYLES
from asyncmig.cli.report import CompanyRow, Report
from asyncmig.cli.run import Ended
from asyncmig.cli.terminal import clean, say

__all__ = ["figures", "next_steps", "print_figures", "print_outcomes", "print_summary"]

_MOST_REASONS = 20
_NUMBER = re.compile(r"0x[0-9a-f]+|\d+|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def print_summary(data: Console, ended: Ended, options: Options) -> None:
    """Print outcomes with their reasons, the figures, and the next command."""
    print_outcomes(data, ended, options)
    print_figures(data, figures(ended.report))
    data.print()
    for line in next_steps(ended, options):
        say(data, line)


def _about_parked(options: Options) -> Iterator[str]:
    if options.decide == "park":
        yield "Parked customers wait for a decision. To approve what the server proposes, unless it destroys rows:"
        yield f"  {options.command(decide='approve-safe')}"
    elif options.decide == "approve-safe":
        yield "What the server proposes for the parked customers destroys rows, or may. To approve it all the same:"
        yield f"  {options.command(decide='approve')}"


def print_outcomes(data: Console, ended: Ended, options: Options) -> None:
    """Print how many customers ended how, and why."""
    data.print()
    data.print(_outcomes(ended.report.companies, str(options.out / "report.json")))


def print_figures(data: Console, lines: Sequence[tuple[str, str]]) -> None:
    """Print a name and a figure on each line."""
    data.print()
    for name, text in lines:
        say(data, f"{name:<11}{text}")


def figures(report: Report) -> list[tuple[str, str]]:
    """Return what moved and what it cost, as pairs of a name and a sentence."""
    budget = report.budget
    companies = [company for company in report.companies if company.outcome == "delivered"]
    inserted = sum(company.rows.inserted or 0 for company in companies)
    flagged = sum(company.rows.flagged or 0 for company in companies)
    files = [file for company in companies for file in company.files]
    share = f", {budget.polls / budget.requests:.0%} of them polls" if budget.requests else ""
    return [
        ("imported", f"{inserted:,} rows, {flagged:,} of them with a bad cell"),
        ("delivered", f"{sum(file.rows for file in files):,} rows in {len(files):,} files"),
        ("requests", f"{budget.requests:,}{share}; {budget.refused:,} answered 429 (over the limit)"),
    ]


def next_steps(ended: Ended, options: Options) -> Iterator[str]:
    """Yield what can be done now, each with the command to type."""
    outcomes = {company.outcome for company in ended.report.companies}
    if ended.key_refused:
        yield "The API key was refused. With a good one in VERN_API_KEY, go on:"
        yield f"  {options.command()}"
    elif "pending" in outcomes:
        reason = f" ({clean(ended.reason)})" if ended.reason else ""
        yield f"Not finished{reason}. What was begun at the server goes on there; to go on here:"
        yield f"  {options.command()}"
    if "parked" in outcomes:
        yield from _about_parked(options)
    if "failed" in outcomes:
        yield "A failed customer is imported again once its files have changed. Mend them, then:"
        yield f"  {options.command()}"
    if outcomes <= {"delivered"}:
        yield f"Every customer is delivered: {options.out}/EXTERNAL_ID/SHEET.csv"


def _outcomes(companies: Sequence[CompanyRow], report_path: str) -> Table:
    """Return a table of outcomes; reasons that differ by numbers only are one row, with the first one's words."""
    groups: defaultdict[tuple[str, str], list[CompanyRow]] = defaultdict(list)
    for company in companies:
        groups[company.outcome, _NUMBER.sub("#", _reason(company))].append(company)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("outcome", no_wrap=True)
    table.add_column("customers", justify="right")
    table.add_column("why")
    table.add_column("which")
    ranked = sorted(groups.values(), key=lambda group: (list(STYLES).index(group[0].outcome), -len(group)))
    for group in ranked[:_MOST_REASONS]:
        outcome = group[0].outcome
        table.add_row(
            Text(outcome, STYLES[outcome]), f"{len(group):,}", Text(_reason(group[0])), Text(_some(group))
        )
    if len(ranked) > _MOST_REASONS:
        rest = sum(map(len, ranked[_MOST_REASONS:]))
        table.add_row("...", f"{rest:,}", Text(f"for more reasons, see {report_path}"), "")
    return table


def _reason(company: CompanyRow) -> str:
    return "" if company.outcome == "delivered" else clean(company.error or "")


def _some(group: Sequence[CompanyRow]) -> str:
    """Return a few of the ids; those delivered need none."""
    if group[0].outcome == "delivered":
        return ""
    return ", ".join(company.external_id for company in group[:3]) + (", ..." if len(group) > 3 else "")
