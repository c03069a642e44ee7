"""The command line: it registers every command, and has `run`, `retry`, `report` and `review` itself.

A command parses its options, calls the library and prints the result.
"""

import asyncio
import logging
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, ParamSpec

import typer
from rich.console import Console

from asyncmig.cli.check import check
from asyncmig.cli.connection import ConnectionSettings, run_at
from asyncmig.cli.decisions import DecisionFlags
from asyncmig.cli.demo import demo
from asyncmig.cli.doctor import doctor
from asyncmig.cli.exit_codes import DELIVERED, PARKED, RESUMABLE, UNWRITTEN, report_error
from asyncmig.cli.html_report import check_place, page_of_journal, write_page
from asyncmig.cli.inputs import UNFINISHED, RunRequest, print_plan, read_inputs, read_plan
from asyncmig.cli.journal import adopt, journal_app
from asyncmig.cli.last_run import LastRun, LastRunJournal, from_last_run, recall_if_any
from asyncmig.cli.options import (
    DEFAULT_JOURNAL,
    Command,
    JournalOption,
    JsonOption,
    QueueOption,
    ReportOption,
    SelectOption,
    dataclass_options,
    journal_option,
)
from asyncmig.cli.output import (
    SCHEMA,
    ConsoleHandler,
    data_console,
    guarded,
    is_interactive,
    print_line,
    report_failure,
    say,
    say_steps,
    words_console,
)
from asyncmig.cli.review import Reviewer, parked_records, print_all
from asyncmig.cli.run import drive
from asyncmig.cli.settings import Display, Options, Settings, config, given
from asyncmig.cli.sim import sim
from asyncmig.cli.status import show, status
from asyncmig.cli.summary import print_summary
from asyncmig.cli.watch import watch
from asyncmig.errors import AsyncmigError, InvalidInput
from asyncmig.journal import JournalPlace

__all__ = ["app", "run_app"]

P = ParamSpec("P")

app: typer.Typer = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_show_locals=False,  # a local variable may be the API key
    help="Drive hundreds of customer data migrations at once through a rate-limited Migration API.",
)
app.add_typer(journal_app, name="journal")


def _print_version(wanted: bool) -> None:
    if wanted:
        say(data_console(), f"asyncmig {version('asyncmig')}")
        raise typer.Exit


@app.callback()
def _commands(
    _version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Parse the options before the command."""


def run(
    context: typer.Context,
    options: Options,
    display: Display,
    select: SelectOption = None,
    queue: QueueOption = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Check everything and print what the run would do. Sends nothing.")
    ] = False,
) -> None:
    """Migrate every customer of a manifest, or resume.

    The API key is read from the environment variable VERN_API_KEY. Other settings can also come from the environment
    (--out is ASYNCMIG_OUT) or from [defaults] in a TOML manifest. The exit code is 0 if every customer is delivered,
    and 75 if the same command continues the rest.
    """
    if plan:
        if queue is not None:
            raise InvalidInput(
                "--plan", True, "cannot be used with --queue: this process does not have the workers' journal"
            )
        planned = asyncio.run(read_plan(read_inputs(options, words_console()), options, select))
        print_line(planned) if display.as_json else print_plan(data_console(), planned, options)
        return
    _drive(options, display, RunRequest(selection=select, queue=queue, given=given(context)))


def retry(
    context: typer.Context,
    journal: Annotated[JournalPlace, journal_option(from_last_run)] = DEFAULT_JOURNAL,
    *,
    settings: Settings,
    display: Display,
    select: SelectOption = UNFINISHED,
    queue: QueueOption = None,
) -> None:
    """Repeat the last run for customers that are not delivered.

    The settings are those of the last run of the journal. Failed customers are imported again.
    """
    last: LastRun = context.obj
    request = RunRequest(selection=select, remembered=False, queue=queue or last.queue, given=given(context))
    _drive(Options.of(last.path(), settings), display, request)


def _drive(options: Options, display: Display, wanted: RunRequest) -> None:
    words, data = words_console(), data_console()
    manifest = read_inputs(options, words_console())
    files = [file for customer in manifest.customers for file in customer.files]
    answers = [options.answers] if options.answers else []
    wanted = replace(wanted, protected=[manifest.path, *answers, *files, *manifest.protected])
    ended = run_at(options.speed, drive(manifest, options, words, wanted=wanted, display=display))
    if not (display.quiet and ended.exit_code == DELIVERED):
        print_summary(words if display.as_json else data, ended, options)
    report_failure(words, "the summary could not be printed: ")
    raise typer.Exit(ended.exit_code)


def report(
    journal: JournalOption = DEFAULT_JOURNAL,
    report: ReportOption = Path("report.html"),
    as_json: JsonOption = False,
) -> None:
    """Write an HTML report from a journal.

    The report shows outcomes, reasons, and the steps of each customer over time. `run --report FILE` writes a report
    that also shows requests, waits for the limit, and how soon the ends of imports were noticed.
    """
    page = report or Path("report.html")
    check_place(page)
    last = recall_if_any(journal)
    out = last.options().out if last is not None else None
    write_page(page, asyncio.run(page_of_journal(journal, out=out, page=page)))
    if as_json:
        print_line({"schema": SCHEMA, "report": str(page)})
    else:
        say(words_console(), f"Wrote {page}.")


def review(
    context: typer.Context,
    external_ids: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="EXTERNAL_ID", help="Your ids of the customers; the default is all parked customers."
        ),
    ] = None,
    journal: LastRunJournal = DEFAULT_JOURNAL,
    wait: Annotated[
        bool,
        typer.Option(
            "--wait",
            help="After the decisions, repeat the last run for these customers, until they are delivered.",
        ),
    ] = False,
    as_json: JsonOption = False,
    *,
    verdict: DecisionFlags,
    reach: ConnectionSettings,
) -> None:
    """Show what parked imports ask, and decide.

    At a terminal, it shows the customers one by one and asks. An option such as --approve or --reject decides
    without a prompt, for the customers that are named. Without a terminal, it prints the questions and the commands
    that decide.
    """
    names = external_ids or []
    verdict.check(names)
    records = asyncio.run(parked_records(journal, names))
    words, data = words_console(), data_console()
    last: LastRun | None = context.obj
    out = last.options().out if last is not None else None
    if not records:
        say(words, f"No customer is parked in {journal}.")
        return
    if not verdict.given and (as_json or not is_interactive()):
        print_all(data, records, journal, out, as_json=as_json)
        raise typer.Exit(PARKED)
    reviewer = Reviewer(journal, reach, verdict, words, out)
    run_at(reach.speed, reviewer.run(records))
    wait = wait and bool(reviewer.decided) and last is not None
    say_steps(words, reviewer.next_steps(last, wait=wait))
    if wait and last is not None:
        selection = ",".join(reviewer.decided)
        request = RunRequest(selection=selection, remembered=False, queue=last.queue)
        _drive(last.options(), Display(), request)
    raise typer.Exit(PARKED if reviewer.left else DELIVERED)


def _register(command: Callable[P, None], example: str) -> None:
    app.command(cls=Command, epilog=f"Example: asyncmig {example}")(dataclass_options(command))


_register(run, "run customers.csv --out out --journal fleet.db   (the same command again resumes)")
_register(retry, "retry --journal fleet.db --select status:failed")
_register(check, "check customers.csv --templates templates.json")
_register(config, "config customers.toml")
_register(status, "status --journal fleet.db --list --outcome failed,parked")
_register(show, "show acme-001 --journal fleet.db")
_register(report, "report --journal fleet.db --report report.html")
_register(watch, "watch --journal fleet.db")
_register(review, "review acme-001 --approve --answer fq0=a")
_register(demo, "demo --customers 40 --seed 1")
_register(adopt, "adopt acme-001 0a6ff0c5-1b7e-4e0e-9d2a-3f1c5b7d9e11 --journal fleet.db")
_register(doctor, "doctor --journal fleet.db --out out")
_register(sim, "sim --speed 60   (then asyncmig run ... --speed 60 in another terminal)")


def run_app() -> None:
    """Run the command line; print expected errors as one line each, without a traceback."""
    with guarded():
        words = words_console()
        code = _run_command(words)
        if report_failure(words):
            code = UNWRITTEN
    sys.exit(code)


def _run_command(words: Console) -> int:
    warnings, log = ConsoleHandler(words), logging.getLogger("asyncmig")
    log.addHandler(warnings)
    try:
        app()
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else DELIVERED
    except KeyboardInterrupt:
        return RESUMABLE
    except (AsyncmigError, OSError, BaseExceptionGroup) as error:
        return report_error(error, words)
    finally:
        log.removeHandler(warnings)
    return DELIVERED
