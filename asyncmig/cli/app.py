"""The commands. Each parses its options, calls the library and prints the result."""

import asyncio
import logging
import os
import sys
from collections.abc import Coroutine
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec
import typer
from rich.console import Console

from asyncmig.cli.check import CheckOptions, check_manifest
from asyncmig.cli.doctor import examine, print_findings
from asyncmig.cli.exit_codes import (
    DELIVERED,
    PARKED,
    RESUMABLE,
    UNWRITTEN,
    code_of,
    report_error,
)
from asyncmig.cli.html_report import check_place, page_of_journal, write_page, written_now
from asyncmig.cli.journal import journal_app
from asyncmig.cli.last_run import LastRun, check_journal, from_last_run, from_last_run_if_any
from asyncmig.cli.options import Rate, dataclass_options
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
    words_console,
)
from asyncmig.cli.plan import UNFINISHED, print_plan, print_plan_as_json, read_inputs, read_plan, say_excluded
from asyncmig.cli.review import DecisionFlags, Reviewer, parked_records, print_all
from asyncmig.cli.run import RunRequest, drive
from asyncmig.cli.settings import (
    DEFAULT_JOURNAL,
    BaseUrlOption,
    ConnectionSettings,
    Display,
    JournalOption,
    ManifestArgument,
    Options,
    Settings,
    given,
    journal_option,
    places_of,
    print_config,
)
from asyncmig.cli.sim import (
    SimOptions,
    demo_options,
    new_world,
    play,
    prepare,
    print_demo,
    serve_until_interrupted,
)
from asyncmig.cli.status import (
    follow_journal,
    follow_runs,
    how_to_go_on,
    print_standings,
    print_story,
    read_story,
    running,
    standings_of,
)
from asyncmig.cli.summary import print_summary
from asyncmig.errors import AsyncmigError, InvalidInput
from asyncmig.jobs.manifest import read_manifest
from asyncmig.jobs.migrate import adopt as adopt_company
from asyncmig.journal import JournalPlace, open_journal
from asyncmig.simulator.server.clock import fast_loop

__all__ = ["app", "run_app"]

T = TypeVar("T")
app: typer.Typer = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_show_locals=False,  # a local variable may be the API key
    help="Drive hundreds of customer data migrations at once through a rate-limited Migration API.",
)
app.add_typer(journal_app, name="journal")
SelectOption = Annotated[
    str | None,
    typer.Option(
        help="Only these customers: status:failed,parked,unknown,pending or external ids, separated by commas."
    ),
]

QueueOption = Annotated[
    str | None,
    typer.Option(
        help="Let workers migrate the customers: the queue's URL, or an environment variable with it. The workers "
        "write the sheets, and use their own values of --decide, --filter and --retries unless given."
    ),
]


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
    epilog="Example: asyncmig run customers.csv --out out --journal fleet.db   (the same command again resumes)"
)
@dataclass_options
def run(
    context: typer.Context,
    options: Options,
    display: Display,
    select: SelectOption = None,
    queue: QueueOption = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Check everything and print what the run would do; send nothing.")
    ] = False,
) -> None:
    """Migrate every customer of MANIFEST. The environment variable VERN_API_KEY has the API key.

    Each setting can also be set as ASYNCMIG_NAME in the environment, or in the [defaults] of a TOML manifest.
    """
    if plan:
        if queue is not None:
            raise InvalidInput(
                "--plan", True, "cannot be used with --queue: this process does not have the workers' journal"
            )
        planned = asyncio.run(read_plan(read_inputs(options, words_console()), options, select))
        print_plan_as_json(planned) if display.as_json else print_plan(data_console(), planned, options)
        return
    _drive(options, display, RunRequest(selection=select, queue=queue, given=given(context)))


@app.command(epilog="Example: asyncmig retry --journal fleet.db --select status:failed")
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
    """Repeat the last run of a journal for customers that are not delivered; failed ones are imported again."""
    last: LastRun = context.obj
    options = Options.of(last.path(), settings)
    again = queue or last.queue
    _drive(
        options, display, RunRequest(selection=select, remembered=False, queue=again, given=given(context))
    )


def _drive(options: Options, display: Display, wanted: RunRequest) -> None:
    words, data = words_console(), data_console()
    manifest = read_inputs(options, words_console())
    files = [file for customer in manifest.customers for file in customer.files]
    protected = [manifest.path, *files, *manifest.protected]
    wanted = replace(wanted, protected=protected)
    ended = run_at(options.speed, drive(manifest, options, words, wanted=wanted, display=display))
    if not (display.quiet and ended.exit_code == DELIVERED):
        print_summary(words if display.as_json else data, ended, options)
    report_failure(words, "the summary could not be printed: ")
    raise typer.Exit(ended.exit_code)


@app.command(epilog="Example: asyncmig check customers.csv --templates templates.json")
def check(
    context: typer.Context,
    manifest: ManifestArgument,
    head: Annotated[
        int | None, typer.Option(min=0, help="Rows to read of each file; the default is all.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object for each customer.")] = False,
    templates: Annotated[
        Path | None,
        typer.Option(help="JSON file with the response of GET /templates; by default they are requested."),
    ] = None,
    base_url: BaseUrlOption = None,
) -> None:
    """Check the files of every customer of MANIFEST, and print warnings; nothing is created.

    Exits 0 even with warnings, because the server decides. If VERN_API_KEY is set, one request reads the templates.
    """
    options = CheckOptions(templates=templates, head=head, json=json, base_url=base_url)
    words, data = words_console(), data_console()
    outputs, root = places_of(context)
    customers = read_manifest(manifest, outputs=outputs, root=root)
    say_excluded(customers, words)
    raise typer.Exit(run_at(1.0, check_manifest(customers, options, data, words)))


@app.command(epilog="Example: asyncmig config customers.toml")
@dataclass_options
def config(context: typer.Context, options: Options) -> None:
    """Print each setting of `run` and where its value comes from. The API key is never printed."""
    print_config(data_console(), context, options)


JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")]


@app.command(epilog="Example: asyncmig status --journal fleet.db --json")
def status(journal: JournalOption = DEFAULT_JOURNAL, as_json: JsonOption = False) -> None:
    """Print the status of each customer of a journal, also while another process uses it."""
    standings = asyncio.run(standings_of(journal))
    if as_json:
        for each in standings:
            print_line({"schema": SCHEMA, **msgspec.structs.asdict(each)})
    else:
        print_standings(data_console(), standings)


@app.command(epilog="Example: asyncmig show acme-001 --journal fleet.db")
def show(
    external_id: Annotated[str, typer.Argument(help="Your own id of the customer.")],
    journal: JournalOption = DEFAULT_JOURNAL,
) -> None:
    """Print the history of one customer from the journal: events with times, reports and files."""
    print_story(data_console(), asyncio.run(read_story(journal, external_id)))


@app.command(epilog="Example: asyncmig report --journal fleet.db --to report.html")
def report(
    journal: JournalOption = DEFAULT_JOURNAL,
    to: Annotated[Path, typer.Option(help="HTML file to write.")] = Path("report.html"),
) -> None:
    """Write an HTML report from a journal: outcomes, reasons, and a chart of the steps over time.

    `run --report FILE` also shows requests, waits for the limit, and how soon the ends of imports were noticed.
    """
    check_place(to)
    write_page(to, asyncio.run(page_of_journal(journal, written_now())))
    say(words_console(), f"Wrote {to}.")


@app.command(epilog="Example: asyncmig watch --journal fleet.db")
@dataclass_options
def watch(
    context: typer.Context,
    journal: Annotated[JournalPlace, journal_option(from_last_run_if_any)] = DEFAULT_JOURNAL,
    as_json: JsonOption = False,
    *,
    reach: ConnectionSettings,
) -> None:
    """Print the events of a journal that another process uses, until no process uses it.

    If VERN_API_KEY is set, imports that still run at the server are then followed until each has ended or needs a
    decision.
    """
    data, words = data_console(), words_console()
    run_at(1.0, follow_journal(journal, data, as_json=as_json))
    left = [] if is_unread() else run_at(1.0, running(journal))
    if left and os.environ.get("VERN_API_KEY"):
        say(
            words,
            f"No process uses {journal}; {counted(len(left), 'import')} may still run at the server:",
            "dim",
        )
        run_at(reach.speed, follow_runs(journal, left, reach, data, as_json=as_json))
    standings = run_at(1.0, standings_of(journal))
    last: LastRun | None = context.obj
    for line in how_to_go_on(standings, last.options() if last else None, last and last.queue):
        say(words, line)
    raise typer.Exit(code_of(each.outcome for each in standings))


@app.command(epilog="Example: asyncmig review acme-001 --approve --answer fq0=a")
@dataclass_options
def review(
    context: typer.Context,
    external_ids: Annotated[
        list[str] | None,
        typer.Argument(metavar="EXTERNAL_ID", help="Customers; the default is all parked ones."),
    ] = None,
    journal: Annotated[JournalPlace, journal_option(from_last_run_if_any)] = DEFAULT_JOURNAL,
    wait: Annotated[
        bool, typer.Option("--wait", help="After the decisions, run until these customers are delivered.")
    ] = False,
    as_json: JsonOption = False,
    *,
    verdict: DecisionFlags,
    reach: ConnectionSettings,
) -> None:
    """Decide about parked imports, one by one at the terminal, or with --approve or --reject.

    Without these options and without a terminal, it prints the questions.
    """
    names = external_ids or []
    verdict.check(names)
    records = run_at(1.0, parked_records(journal, names))
    words, data = words_console(), data_console()
    if not records:
        say(words, f"No customer is parked in {journal}.")
        return
    if not verdict.is_given and (as_json or not is_interactive()):
        print_all(data, records, as_json=as_json)
        raise typer.Exit(PARKED)
    reviewer = Reviewer(journal, reach, verdict, words)
    run_at(reach.speed, reviewer.run(records))
    _after_review(reviewer, context.obj, wait=wait)


def _after_review(reviewer: Reviewer, last: LastRun | None, *, wait: bool) -> None:
    words = words_console()
    if reviewer.left:
        say(words, f"Still parked: {', '.join(reviewer.left)}.", "yellow")
    if not reviewer.decided or last is None:
        raise typer.Exit(PARKED if reviewer.left else DELIVERED)
    options = last.options()
    if wait:
        selection = ",".join(reviewer.decided)
        _drive(options, Display(), RunRequest(selection=selection, remembered=False, queue=last.queue))
    say(words, "What was decided goes on at the server. To fetch what comes out:")
    say(words, f"  {options.command(queue=last.queue)}")
    raise typer.Exit(PARKED if reviewer.left else DELIVERED)


@app.command(epilog="Example: asyncmig demo --customers 40 --seed 1")
def demo(
    out: Annotated[
        Path, typer.Option(help="Folder to write; the files of an earlier demo are replaced.")
    ] = Path("asyncmig-demo"),
    customers: Annotated[int, typer.Option(min=1, max=9999, help="How many customers to generate.")] = 40,
    seed: Annotated[int, typer.Option(min=0, help="The same seed generates the same customers.")] = 1,
    speed: Annotated[float, typer.Option(min=0.01, help="Run the clock this many times faster.")] = 60.0,
) -> None:
    """Migrate generated customers with messy files through a simulator, offline, in less than a minute.

    Exits 0 if every customer ended as planned, 1 if not.
    """
    words, data = words_console(), data_console()
    options, world = demo_options(out, speed=speed), new_world(seed=seed, rate=Rate())
    plans = prepare(out, customers=customers, seed=seed)
    say(words, f"{customers:,} customers with messy files in {out}/, and a simulator on loopback.")
    ended = run_at(speed, play(world, options, words))
    as_planned = print_demo(data, ended, options, plans, world)
    raise typer.Exit(0 if as_planned else 1)


@app.command(
    epilog="Example: asyncmig adopt acme-001 0a6ff0c5-1b7e-4e0e-9d2a-3f1c5b7d9e11 --journal fleet.db"
)
def adopt(
    external_id: Annotated[str, typer.Argument(help="Your own id of the customer.")],
    company_id: Annotated[str, typer.Argument(help="The company's id, or its URL in the dashboard.")],
    journal: JournalOption = DEFAULT_JOURNAL,
) -> None:
    """Link a customer to its company when the response to the create request was lost.

    The next run continues with that company."""
    adopted = run_at(1.0, write_adoption(journal, external_id, company_id))
    say(words_console(), f"{external_id.strip()} is now linked to company {adopted}. Run again to continue.")


async def write_adoption(place: JournalPlace, external_id: str, company_id: str) -> str:
    await check_journal(place)
    async with open_journal(place) as journal:
        return await adopt_company(journal, external_id, company_id)


@app.command(epilog="Example: asyncmig doctor --journal fleet.db --out out")
@dataclass_options
def doctor(
    journal: JournalOption = DEFAULT_JOURNAL,
    out: Annotated[Path, typer.Option(help="Folder that a run would write to.")] = Path("out"),
    *,
    reach: ConnectionSettings,
) -> None:
    """Check what a run needs: API key, server, clock, folders, journal, limit. Sends one request."""
    raise typer.Exit(run_at(reach.speed, print_findings(examine(reach, journal, out), data_console())))


@app.command(
    epilog="Example: asyncmig sim --speed 60   (then asyncmig run ... --speed 60 in another terminal)"
)
@dataclass_options
def sim(options: SimOptions) -> None:
    """Serve a simulated API on loopback until Ctrl-C; print its base URL and key, ready to paste.

    At the end it prints the rule violations of its clients.
    """
    run_at(options.speed, serve_until_interrupted(options, data_console(), words_console()))


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
