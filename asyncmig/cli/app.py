"""The commands: parse, call, print. Exit codes stand in the README, one meaning each."""

import asyncio
import logging
import sys
from collections.abc import Coroutine
from enum import StrEnum
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from asyncmig.cli.check import CheckOptions, check_manifest
from asyncmig.cli.demo import demo_options, play, prepare, print_demo
from asyncmig.cli.options import Options, Rate, parse_rate
from asyncmig.cli.run import RESUMABLE, USAGE, begun, drive
from asyncmig.cli.sim import new_world, parse_faults, serve_until_interrupted
from asyncmig.cli.summary import print_summary
from asyncmig.cli.terminal import ToConsole, clean, data_console, say, words_console
from asyncmig.companies.adoption import adopt as adopt_company
from asyncmig.errors import AsyncmigError
from asyncmig.journal import Journal
from asyncmig.manifest import InvalidManifest, read_manifest
from asyncmig.simulator.clock import fast_loop

__all__ = ["app", "run_app"]

T = TypeVar("T")
app: typer.Typer = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_show_locals=False,  # a local variable may be the API key
    help="Drive hundreds of customer data migrations at once through a rate-limited Migration API.",
)


class DecideOption(StrEnum):
    PARK = "park"
    APPROVE_SAFE = "approve-safe"
    APPROVE = "approve"
    REJECT = "reject"


class FilterOption(StrEnum):
    VALID = "valid"
    ALL = "all"


class ScopeOption(StrEnum):
    ENDPOINT = "endpoint"
    KEY = "key"


@app.callback()
def _commands() -> None:
    """Keep `run` a command of its own even while others come and go."""


@app.command(
    epilog="Example: asyncmig run customers.csv --out out --journal fleet.db   (the same line again resumes)"
)
def run(
    manifest: Annotated[
        Path, typer.Argument(help="CSV with the columns external_id, name, source, templates, files.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for EXTERNAL_ID/SHEET.csv and report.json.")] = Path(
        "out"
    ),
    journal: Annotated[Path, typer.Option(help="File that remembers how far it came.")] = Path("fleet.db"),
    decide: Annotated[
        DecideOption,
        typer.Option(
            help="What to do when an import asks: park (leave it), approve-safe (approve what destroys no rows)."
        ),
    ] = DecideOption.PARK,
    row_filter: Annotated[
        FilterOption,
        typer.Option("--filter", help="Rows to download: valid drops every row with a bad cell."),
    ] = FilterOption.VALID,
    scope: Annotated[
        ScopeOption, typer.Option(help="Whether the server counts its limit by endpoint or by key.")
    ] = ScopeOption.ENDPOINT,
    rate: Annotated[str, typer.Option(help="The limit.")] = "100/60s",
    concurrency: Annotated[int, typer.Option(min=1, help="Customers under way at once.")] = 500,
    speed: Annotated[
        float, typer.Option(min=0.01, help="Make the clock run so many times faster: for the simulator only.")
    ] = 1.0,
    base_url: Annotated[
        str | None, typer.Option(help="The API's whole prefix; VERN_BASE_URL if not given.")
    ] = None,
) -> None:
    """Migrate every customer of MANIFEST. VERN_API_KEY holds the API key."""
    options = Options(
        manifest=manifest,
        out=out,
        journal=journal,
        decide=decide.value,
        filter=row_filter.value,
        scope=scope.value,
        rate=parse_rate(rate),
        concurrency=concurrency,
        speed=speed,
        base_url=base_url,
    )
    words, data = words_console(), data_console()
    customers = read_manifest(manifest, begun=asyncio.run(begun(journal)))
    if customers.ignored:
        say(words, f"note: columns that mean nothing here: {clean(', '.join(customers.ignored))}", "dim")
    ended = run_at(speed, drive(customers, options, words))
    print_summary(data, ended, options)
    raise typer.Exit(ended.exit_code)


@app.command(epilog="Example: asyncmig check customers.csv --templates templates.json")
def check(
    manifest: Annotated[
        Path, typer.Argument(help="CSV with the columns external_id, name, source, templates, files.")
    ],
    head: Annotated[
        int | None, typer.Option(min=0, help="Rows to read of each file; all of them if not given.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object for each customer.")] = False,
    templates: Annotated[
        Path | None,
        typer.Option(help="JSON with the templates, as GET /templates answers; asked for if not given."),
    ] = None,
    base_url: Annotated[
        str | None, typer.Option(help="The API's whole prefix; VERN_BASE_URL if not given.")
    ] = None,
) -> None:
    """Read the files of every customer of MANIFEST, and warn of what may go wrong; nothing is created.

    Exits 0 whether or not there are warnings: the server decides. With VERN_API_KEY the templates are asked for,
    with one request.
    """
    options = CheckOptions(templates=templates, head=head, json=json, base_url=base_url)
    words, data = words_console(), data_console()
    customers = read_manifest(manifest)
    raise typer.Exit(run_at(1.0, check_manifest(customers, options, data, words)))


@app.command(epilog="Example: asyncmig demo --customers 40 --seed 1")
def demo(
    out: Annotated[Path, typer.Option(help="Folder to write; an earlier demo's is written anew.")] = Path(
        "asyncmig-demo"
    ),
    customers: Annotated[int, typer.Option(min=1, max=9999, help="How many customers to make up.")] = 40,
    seed: Annotated[int, typer.Option(help="The same seed makes the same customers.")] = 1,
    speed: Annotated[float, typer.Option(min=0.01, help="How many times faster the clock runs.")] = 60.0,
) -> None:
    """Migrate made-up customers with messy files through a simulator: offline, in well under a minute.

    Exits 0 if every customer ended as its generator planned, 1 if not.
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
    company_id: Annotated[str, typer.Argument(help="The company's id, as the dashboard shows it.")],
    journal: Annotated[Path, typer.Option(help="File that remembers how far it came.")] = Path("fleet.db"),
) -> None:
    """Say which company a customer is whose creation was never answered; the next run goes on from there."""
    run_at(1.0, write_adoption(journal, external_id, company_id))
    say(words_console(), f"{external_id} is company {clean(company_id)} from now on. Run again to go on.")


async def write_adoption(path: Path, external_id: str, company_id: str) -> None:
    async with Journal(path) as journal:
        await adopt_company(journal, external_id, company_id)


@app.command(
    epilog="Example: asyncmig sim --speed 60   (then asyncmig run ... --speed 60 in another terminal)"
)
def sim(
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port on loopback; 0 takes any that is free.")
    ] = 0,
    seed: Annotated[int, typer.Option(help="Draws ids and how long runs take, and names the key.")] = 1,
    speed: Annotated[float, typer.Option(min=0.01, help="How many times faster the clock runs.")] = 1.0,
    rate: Annotated[str, typer.Option(help="The limit of each endpoint.")] = "100/60s",
    fault: Annotated[
        list[str] | None,
        typer.Option(
            help="Something to go wrong, NAME or NAME:RATE; repeatable. A wrong name lists them all."
        ),
    ] = None,
) -> None:
    """Serve a simulated API on loopback until Ctrl-C; print its base URL and key, ready to paste."""
    faults, variants = parse_faults(fault or (), seed)
    world = new_world(seed=seed, rate=parse_rate(rate), variants=variants)
    run_at(
        speed,
        serve_until_interrupted(
            world, port=port, speed=speed, data=data_console(), words=words_console(), faults=faults
        ),
    )


def run_at(speed: float, main: Coroutine[object, object, T]) -> T:
    """Run `main` on a loop whose clock runs `speed` times as fast as the wall's."""
    with asyncio.Runner(loop_factory=None if speed == 1 else lambda: fast_loop(speed)) as runner:
        return runner.run(main)


def run_app() -> None:
    """Run the command that the arguments name; an error that has a sentence is that sentence, and no traceback."""
    words = words_console()
    warnings, log = ToConsole(words), logging.getLogger("asyncmig")
    log.addHandler(warnings)
    try:
        app()
    except InvalidManifest as error:
        for fault in error.faults:
            say(words, f"{clean(error.path)}: {clean(str(fault), 1000)}", "red")
    except (AsyncmigError, OSError) as error:
        say(words, f"Error: {clean(str(error), 1000)}", "red")
    except KeyboardInterrupt:
        sys.exit(RESUMABLE)
    finally:
        log.removeHandler(warnings)
    sys.exit(USAGE)
