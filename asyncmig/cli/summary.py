"""The words at the end: what came out, what it cost, and what to type next."""

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


def print_summary(data: Console, ended: Ended, options: Options) -> None:
    """Print outcomes with their reasons, the figures, and the next command."""
    print_outcomes(data, ended, options)
    print_figures(data, figures(ended.report))
    data.print()
    for line in next_steps(ended, options):
        say(data, line)


def print_outcomes(data: Console, ended: Ended, options: Options) -> None:
    """Print how many customers ended how, and why."""
    data.print(_outcomes(ended.report.companies, str(options.out / "report.json")))


def print_figures(data: Console, lines: Sequence[tuple[str, str]]) -> None:
    """Print a name and a figure on each line."""
    for name, text in lines:
        say(data, f"{name:<11}{text}")


def figures(report: Report) -> list[tuple[str, str]]:
    """Return what moved and what it cost, as pairs of a name and a sentence."""
    companies, budget = report.companies, report.budget
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
        yield "Parked customers wait for a decision. To approve what the server proposes, unless it destroys rows:"
        yield f"  {options.command(decide='approve-safe')}"
    if "failed" in outcomes:
        yield "A failed customer is imported again once its files have changed. Mend them, then:"
        yield f"  {options.command()}"
    if outcomes <= {"delivered"}:
        yield f"Every customer is delivered: {options.out}/EXTERNAL_ID/SHEET.csv"


def _outcomes(companies: Sequence[CompanyRow], report_path: str) -> Table:
    groups: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for company in companies:
        reason = "" if company.outcome == "delivered" else clean(company.error or "")
        groups[company.outcome, reason].append(company.external_id)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("outcome", no_wrap=True)
    table.add_column("customers", justify="right")
    table.add_column("why")
    table.add_column("which")
    ranked = sorted(groups.items(), key=lambda group: (list(STYLES).index(group[0][0]), -len(group[1])))
    for (outcome, reason), ids in ranked[:_MOST_REASONS]:
        table.add_row(Text(outcome, STYLES[outcome]), str(len(ids)), Text(reason), Text(_some(outcome, ids)))
    if len(ranked) > _MOST_REASONS:
        rest = sum(len(ids) for _, ids in ranked[_MOST_REASONS:])
        table.add_row("...", str(rest), Text(f"more in {report_path}"), "")
    return table


def _some(outcome: str, ids: Sequence[str]) -> str:
    """Return a few of the ids; those delivered need none."""
    if outcome == "delivered":
        return ""
    return ", ".join(ids[:3]) + (", ..." if len(ids) > 3 else "")
