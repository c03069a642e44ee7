"""The commands. Each parses its options, calls the library and prints the result."""

import asyncio
import logging
import os
import sys
from collections.abc import Coroutine
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, TypeVar, cast

import msgspec
import typer
from rich.console import Console
from typer.core import TyperArgument, TyperCommand, TyperOption

from asyncmig import generations
from asyncmig.cli.check import CheckOptions, check_manifest
from asyncmig.cli.connection import ConnectionSettings
from asyncmig.cli.demo import DemoOptions, play, print_demo
from asyncmig.cli.doctor import examine, print_findings
from asyncmig.cli.exit_codes import DELIVERED, PARKED, RESUMABLE, UNWRITTEN, code_of, report_error
from asyncmig.cli.html_report import check_place, page_of_journal, write_page, written_now
from asyncmig.cli.inputs import UNFINISHED, RunRequest, read_inputs, say_excluded
from asyncmig.cli.journal import journal_app, write_adoption
from asyncmig.cli.last_run import LastRun, from_last_run, from_last_run_if_any, options_of, recall_if_any
from asyncmig.cli.options import (
    DEFAULT_JOURNAL,
    ApiOption,
    ExternalId,
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
    counted,
    data_console,
    guarded,
    is_interactive,
    is_unread,
    print_line,
    report_failure,
    say,
    say_steps,
    words_console,
)
from asyncmig.cli.plan import print_plan, read_plan
from asyncmig.cli.review import DecisionFlags, Reviewer, parked_records, print_all
from asyncmig.cli.run import drive
from asyncmig.cli.settings import Display, ManifestArgument, Options, Settings, given, places_of, print_config
from asyncmig.cli.sim import SimOptions, serve_until_interrupted
from asyncmig.cli.status import (
    Listing,
    follow_journal,
    follow_runs,
    how_to_continue,
    print_budgets,
    print_history,
    print_list,
    print_status,
    read_budgets,
    read_history,
    running,
    statuses_of_journal,
)
from asyncmig.cli.summary import print_summary
from asyncmig.errors import AsyncmigError, InvalidInput
from asyncmig.jobs.manifest import read_manifest
from asyncmig.journal import JournalPlace
from asyncmig.simulator.server.clock import fast_loop

__all__ = ["app", "run_app"]

T = TypeVar("T")


class Command(TyperCommand):
    """A command whose errors and help suit asyncmig's options.

    An error about a value names its origin, if that is not the command line. The help breaks lines only between
    words: click also breaks `by-class` at the hyphen.
    """

    def parse_args(self, ctx: "typer.Context", args: list[str]) -> list[str]:  # type: ignore[override]  # click's own
        """Parse the arguments. An error names the variable or the `[defaults]` that a wrong value comes from."""
        try:
            return super().parse_args(ctx, args)
        except typer.BadParameter as error:
            if (option := error.param) is not None:
                source = ctx.get_parameter_source(option.name)
                origin = source and _ORIGINS.get(source.name, "").format(option.envvar)
                error.message = f"{error.message.rstrip('.')} (from {origin})" if origin else error.message
            raise

    def get_help(self, ctx: object) -> str:
        """Return the help. While click wraps the texts, another character stands for each hyphen."""
        self.help: str | None = (self.help or "").replace("-", _HYPHEN)
        for each in self.params:
            if isinstance(each, TyperArgument | TyperOption) and each.help:
                each.help = each.help.replace("-", _HYPHEN)
        return super().get_help(cast("typer.Context", ctx)).replace(_HYPHEN, "-")


_HYPHEN = "\ue000"
_ORIGINS = {"ENVIRONMENT": "{}", "DEFAULT_MAP": "[defaults] of the manifest"}
"""The origin of a value, by click's name of its source; `{}`: the environment variable."""
app: typer.Typer = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_show_locals=False,  # a local variable may be the API key
    help="Drive hundreds of customer data migrations at once through a rate-limited Migration API.",
)
app.add_typer(journal_app, name="journal")
LastRunJournal = Annotated[JournalPlace, journal_option(from_last_run_if_any)]


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


@app.command(
    cls=Command,
    epilog="Example: asyncmig run customers.csv --out out --journal fleet.db   (the same command again resumes)",
)
@dataclass_options
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


@app.command(cls=Command, epilog="Example: asyncmig retry --journal fleet.db --select status:failed")
@dataclass_options
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


@app.command(cls=Command, epilog="Example: asyncmig check customers.csv --templates templates.json")
@dataclass_options
def check(
    context: typer.Context, manifest: ManifestArgument, options: CheckOptions, as_json: JsonOption = False
) -> None:
    """Check the files of a manifest and print warnings.

    Nothing is created. Warnings do not change the exit code: the server decides which files it accepts. If
    VERN_API_KEY is set, one request reads the templates.
    """
    words, data = words_console(), data_console()
    outputs, root = places_of(context)
    customers = read_manifest(manifest, outputs=outputs, root=root, api=options.api)
    say_excluded(customers, words)
    raise typer.Exit(run_at(1.0, check_manifest(customers, options, data, words, as_json=as_json)))


@app.command(cls=Command, epilog="Example: asyncmig config customers.toml")
@dataclass_options
def config(context: typer.Context, options: Options, as_json: JsonOption = False) -> None:
    """Print each setting of `run` and where its value comes from.

    The API key is not printed, only whether it is set.
    """
    print_config(data_console(), context, options, as_json=as_json)


@app.command(cls=Command, epilog="Example: asyncmig status --journal fleet.db --list --outcome failed,parked")
@dataclass_options
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
    statuses = listing.of(asyncio.run(statuses_of_journal(journal)))
    if as_json and not budgets:
        for each in statuses:
            print_line({"schema": SCHEMA, **msgspec.structs.asdict(each)})
        return
    if listing.is_given and not budgets:
        print_list(data_console(), statuses)
        return
    last = recall_if_any(journal)
    options = options_of(last)
    used = read_budgets(journal, options, statuses)
    if budgets:
        print_budgets(data_console(), used, as_json=as_json)
        return
    command = options.command(queue=last.queue) if options and last else None
    print_status(data_console(), statuses, command, journal, used)


@app.command(cls=Command, epilog="Example: asyncmig show acme-001 --journal fleet.db")
def show(
    external_id: ExternalId, journal: JournalOption = DEFAULT_JOURNAL, as_json: JsonOption = False
) -> None:
    """Print the history of one customer.

    The history contains its status, ids, files and report, and each entry of the journal with its time.
    """
    print_history(data_console(), asyncio.run(read_history(journal, external_id)), as_json=as_json)


@app.command(cls=Command, epilog="Example: asyncmig report --journal fleet.db --report report.html")
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
    write_page(page, asyncio.run(page_of_journal(journal, written_now(), out=out, page=page)))
    if as_json:
        print_line({"schema": SCHEMA, "report": str(page)})
    else:
        say(words_console(), f"Wrote {page}.")


@app.command(cls=Command, epilog="Example: asyncmig watch --journal fleet.db")
@dataclass_options
def watch(
    context: typer.Context,
    journal: LastRunJournal = DEFAULT_JOURNAL,
    as_json: JsonOption = False,
    *,
    reach: ConnectionSettings,
) -> None:
    """Follow the run of another process until it ends.

    Then, if VERN_API_KEY is set, follow the imports that still run at the server, until each has ended or needs a
    decision.
    """
    data, words = data_console(), words_console()
    run_at(1.0, follow_journal(journal, data, as_json=as_json))
    left = [] if is_unread() else run_at(1.0, running(journal))
    if left and os.environ.get("VERN_API_KEY"):
        count = counted(len(left), "import")
        say(words, f"No process uses {journal}; {count} may still run at the server:", "dim")
        run_at(reach.speed, follow_runs(journal, left, reach, data, as_json=as_json))
    statuses = run_at(1.0, statuses_of_journal(journal))
    last: LastRun | None = context.obj
    say_steps(words, how_to_continue(statuses, last.command() if last else None, journal))
    raise typer.Exit(code_of(each.outcome for each in statuses))


@app.command(cls=Command, epilog="Example: asyncmig review acme-001 --approve --answer fq0=a")
@dataclass_options
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
    records = run_at(1.0, parked_records(journal, names))
    words, data = words_console(), data_console()
    last: LastRun | None = context.obj
    out = last.options().out if last is not None else None
    if not records:
        say(words, f"No customer is parked in {journal}.")
        return
    if not verdict.is_given and (as_json or not is_interactive()):
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


@app.command(cls=Command, epilog="Example: asyncmig demo --customers 40 --seed 1")
@dataclass_options
def demo(options: DemoOptions, as_json: JsonOption = False) -> None:
    """Migrate generated customers through a simulator, offline.

    Their files contain the usual faults. The demo takes less than a minute. The exit code is 0 if every customer
    ended as planned, otherwise 1.
    """
    played = run_at(options.speed, play(options, words_console()))
    raise typer.Exit(0 if print_demo(data_console(), played, as_json=as_json) else 1)


@app.command(
    cls=Command,
    epilog="Example: asyncmig adopt acme-001 0a6ff0c5-1b7e-4e0e-9d2a-3f1c5b7d9e11 --journal fleet.db",
)
def adopt(
    external_id: ExternalId,
    company_id: Annotated[
        str,
        typer.Argument(
            metavar="COMPANY_ID",
            help="The company's id, or its URL in the dashboard; with --api migrations, the migration's id.",
        ),
    ],
    journal: JournalOption = DEFAULT_JOURNAL,
    api: ApiOption = generations.DEFAULT,
    as_json: JsonOption = False,
) -> None:
    """Link a customer to a company that exists on the server.

    Use it when the response to the request that created the company was lost. The next run continues with that
    company.
    """
    name = external_id.strip()
    ids = run_at(1.0, write_adoption(journal, name, company_id, api))
    if as_json:
        print_line({"schema": SCHEMA, "external_id": name, "ids": ids})
    else:
        linked = ", ".join(f"{kind} {each}" for kind, each in ids.items())
        say(words_console(), f"{name} is now linked to {linked}. Run again to continue.")


@app.command(cls=Command, epilog="Example: asyncmig doctor --journal fleet.db --out out")
@dataclass_options
def doctor(
    journal: JournalOption = DEFAULT_JOURNAL,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder that the run will write to.")] = Path(
        "out"
    ),
    api: ApiOption = generations.DEFAULT,
    as_json: JsonOption = False,
    *,
    reach: ConnectionSettings,
) -> None:
    """Check what a run needs, and print the result of each check.

    Checks the folders, the journal, the server, the API key, the clock and the limits. Sends one request.
    """
    findings = print_findings(examine(reach, journal, out, api), data_console(), as_json=as_json)
    raise typer.Exit(run_at(reach.speed, findings))


@app.command(
    cls=Command,
    epilog="Example: asyncmig sim --speed 60   (then asyncmig run ... --speed 60 in another terminal)",
)
@dataclass_options
def sim(options: SimOptions, as_json: JsonOption = False) -> None:
    """Serve a simulated API on loopback until Ctrl-C.

    Prints a line that sets the base URL and the API key, to paste into another terminal. At its end, it prints which
    rules of the API the clients broke.
    """
    run_at(options.speed, serve_until_interrupted(options, data_console(), words_console(), as_json=as_json))


def run_at(speed: float, main: Coroutine[object, object, T]) -> T:
    """Run `main` on an event loop whose clock runs `speed` times as fast as the wall clock."""
    with asyncio.Runner(loop_factory=None if speed == 1 else lambda: fast_loop(speed)) as runner:
        return runner.run(main)


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
