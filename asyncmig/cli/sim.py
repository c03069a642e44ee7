"""`asyncmig sim` serves a simulated API; `asyncmig demo` migrates generated customers through one."""

import asyncio
import shutil
import ssl
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Annotated

import msgspec
import typer
from rich.console import Console

from asyncmig.cli.interrupts import handling_signals
from asyncmig.cli.options import DEFAULT_RATE, Rate, rate_option
from asyncmig.cli.output import SCHEMA, clean, is_unread, print_line, say, say_steps
from asyncmig.cli.run import RunResult, drive
from asyncmig.cli.settings import Options
from asyncmig.cli.summary import figures, print_figures, print_outcomes
from asyncmig.customers.status import CustomerStatus
from asyncmig.errors import InvalidInput
from asyncmig.jobs.manifest import read_manifest
from asyncmig.jobs.outputs import check_folder, check_replaceable
from asyncmig.journal import JournalPlace
from asyncmig.session import Scope
from asyncmig.simulator import migrations
from asyncmig.simulator.companies.data import SCHEMAS, SOURCES, Plan, generate
from asyncmig.simulator.companies.profiles import PROFILES
from asyncmig.simulator.companies.variants import VARIANTS, Variants
from asyncmig.simulator.companies.world import World
from asyncmig.simulator.server.app import serve
from asyncmig.simulator.server.durations import RunDurations
from asyncmig.simulator.server.faults import FAULTS, Faults
from asyncmig.simulator.server.ledger import Ledger, Verdict

__all__ = [
    "DemoOptions",
    "DemoResult",
    "SimOptions",
    "new_world",
    "parse_faults",
    "play",
    "print_demo",
    "serve_until_interrupted",
    "world_of",
]

_SHARE = 0.05
"""The rate of a fault for which none is given."""
_MARK = ".asyncmig-demo"
_OWN = ("customers.csv", "cust-*", "out", "fleet.db*", "report.html")
_MOST_SHOWN = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class SimOptions:
    """The options of `asyncmig sim`."""

    port: Annotated[
        int, typer.Option(min=0, max=65535, metavar="N", help="Port on loopback; 0 selects a free one.")
    ] = 0
    seed: Annotated[
        int,
        typer.Option(
            min=0, metavar="N", help="Seed for ids and durations of imports; it is also part of the API key."
        ),
    ] = 1
    speed: Annotated[
        float, typer.Option(min=0.01, metavar="FACTOR", help="Run the clock this many times faster.")
    ] = 1.0
    pace: Annotated[
        float,
        typer.Option(
            min=0.0,
            metavar="FACTOR",
            help="Imports take this many times as long on that clock: 0.1 makes them ten times as short.",
        ),
    ] = 1.0
    api: Annotated[str, typer.Option(metavar="companies|migrations", help="The API generation to serve.")] = (
        "companies"
    )
    limits: Annotated[
        str | None,
        typer.Option(
            metavar="LIMITS",
            help="With --api migrations: by-class, per-minute, per-endpoint, or numbers as in agent=50/1h,runs=5.",
        ),
    ] = None
    rate: Annotated[Rate, rate_option()] = DEFAULT_RATE
    scope: Annotated[
        Scope,
        typer.Option(
            metavar="endpoint|key", help="What the limit applies to: each endpoint, or the whole API key."
        ),
    ] = "endpoint"
    profile: Annotated[
        str, typer.Option(help=f"The kind of server: {', '.join(PROFILES)}.", metavar="NAME")
    ] = "calm"
    fault: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[:RATE]",
            help="A fault to inject, at a rate from 0 to 1 (default 0.05). Repeatable. "
            "An unknown name prints the list.",
        ),
    ] = None
    ledger: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="File for all requests, one JSON object per line; the last line is the verdict.",
        ),
    ] = None
    cert: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Certificate chain (PEM) for localhost, to serve https. Clients trust it with SSL_CERT_FILE.",
        ),
    ] = None
    cert_key: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Private key (PEM) of --cert, if it is in another file."),
    ] = None


def parse_faults(
    asked: Iterable[str], seed: int, given: Mapping[str, float] | None = None
) -> tuple[Faults, Variants]:
    """Return the faults and variants that `NAME[:RATE]` arguments select, in addition to `given`.

    Raises `InvalidInput` for an unknown name and for a rate outside of 0 to 1.
    """
    faults, chosen = _chosen(asked, seed, given or {}, VARIANTS)
    variants = Variants()
    for name, rate in chosen.items():
        variants = variants.having(name, rate)
    return faults, variants


def _chosen(
    asked: Iterable[str], seed: int, given: Mapping[str, float], known: Collection[str]
) -> tuple[Faults, dict[str, float]]:
    """Return the faults that `NAME[:RATE]` arguments select in addition to `given`, and the variants by rate.

    `known`: the names of the variants. Raises `InvalidInput` for an unknown name and for a rate outside of 0 to 1.
    """
    wanted = dict(given)
    for each in asked:
        name, _, text = each.partition(":")
        try:
            rate = float(text) if text else _SHARE
        except ValueError:
            rate = -1.0
        if not 0 <= rate <= 1:
            raise InvalidInput("--fault", each, "the rate must be a number from 0 to 1")
        if name not in FAULTS and name not in known:
            raise InvalidInput("--fault", name, f"is not known; there are {', '.join([*FAULTS, *known])}")
        wanted[name] = rate
    wanted = {name: rate for name, rate in wanted.items() if rate}  # a rate of 0 disables a fault
    faults = Faults({name: rate for name, rate in wanted.items() if name in FAULTS}, rng=Random(seed))
    return faults, {name: rate for name, rate in wanted.items() if name not in FAULTS}


def new_world(
    *,
    seed: int,
    rate: Rate,
    scope: Scope = "endpoint",
    profile: str = "calm",
    variants: Variants | None = None,
    pace: float = 1.0,
) -> World:
    """Return a simulated account with the sources and templates of the demo; its API key contains the seed.

    `pace`: imports take this many times as long.
    """
    limit = PROFILES[profile].limit
    return World(
        key=f"sim-key-{seed}",
        sources=SOURCES,
        schemas=SCHEMAS,
        seed=seed,
        variants=variants,
        scope=scope,
        pace=_durations(pace),
        limit=lambda: limit(rate.limit, rate.window),
    )


def _durations(pace: float) -> RunDurations:
    usual = RunDurations()
    return RunDurations(
        queued=usual.queued * pace,
        base=usual.base * pace,
        per_row=usual.per_row * pace,
        sigma=usual.sigma,
    )


def world_of(options: SimOptions) -> tuple[World | migrations.World, Faults]:
    """Return the account and the faults that the options select. Raises `InvalidInput` for unknown names."""
    if options.api == "migrations":
        return _migrations_world(options)
    if options.api != "companies":
        raise InvalidInput("--api", options.api, "must be companies or migrations")
    if options.limits is not None:
        raise InvalidInput("--limits", options.limits, "requires --api migrations; otherwise use --rate")
    if options.profile not in PROFILES:
        known = "; ".join(f"{name} ({profile.about})" for name, profile in PROFILES.items())
        raise InvalidInput("--profile", options.profile, f"is not known; there are {known}")
    faults, variants = parse_faults(options.fault or (), options.seed, PROFILES[options.profile].goes_wrong)
    world = new_world(
        seed=options.seed,
        rate=options.rate,
        scope=options.scope,
        profile=options.profile,
        variants=variants,
        pace=options.pace,
    )
    return world, faults


def _migrations_world(options: SimOptions) -> tuple[migrations.World, Faults]:
    """Return an account of the generation "migrations". Raises `InvalidInput` for options of the other one."""
    for name, value, usual in (
        ("--profile", options.profile, "calm"),
        ("--rate", str(options.rate), str(DEFAULT_RATE)),
        ("--scope", options.scope, "endpoint"),
    ):
        if value != usual:
            instead = "choose variants and faults with --fault" if name == "--profile" else "use --limits"
            raise InvalidInput(name, value, f"requires --api companies; with --api migrations, {instead}")
    faults, chosen = _chosen(options.fault or (), options.seed, {}, migrations.VARIANTS)
    variants = migrations.Variants()
    for name, share in chosen.items():
        variants = variants.having(name, share)
    try:
        limits = None if options.limits is None else migrations.Limits.parse(options.limits)
    except ValueError as error:
        raise InvalidInput("--limits", options.limits, str(error)) from error
    world = migrations.World(
        key=f"sim-key-{options.seed}",
        seed=options.seed,
        variants=variants,
        limits=limits,
        pace=_durations(options.pace),
    )
    return world, faults


def _tls(options: SimOptions) -> ssl.SSLContext | None:
    """Return the TLS context for https, or None. Raises `InvalidInput` for files that cannot be used."""
    if options.cert is None:
        if options.cert_key is not None:
            raise InvalidInput("--cert-key", str(options.cert_key), "requires --cert")
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(options.cert, options.cert_key)
    except OSError as error:  # ssl's errors are among them
        raise InvalidInput(
            "--cert", str(options.cert), f"cannot be used: {error.strerror or error}"
        ) from error
    return context


async def serve_until_interrupted(
    options: SimOptions, data: Console, words: Console, *, as_json: bool = False
) -> None:
    """Serve on loopback until SIGINT, SIGTERM or SIGHUP.

    Prints the client's environment as a shell command (or as JSON), and at the end what the ledger says.
    """
    (world, faults), tls = world_of(options), _tls(options)
    if isinstance(world, migrations.World):  # its time stamps are those of the present
        world.account.epoch = datetime.now(UTC).timestamp() - asyncio.get_running_loop().time()
    if options.ledger is not None:
        if options.ledger.is_file():
            check_replaceable("--ledger", options.ledger, "a ledger")
        options.ledger.write_bytes(b"")  # fail at once if it cannot be written
    interrupted = asyncio.Event()
    with handling_signals(interrupted.set, interrupted.set):
        async with serve(world, port=options.port, faults=faults, tls=tls) as serving:
            if as_json:
                print_line({"schema": SCHEMA, "base_url": serving.base_url, "api_key": world.key})
            else:
                say(data, f"export VERN_BASE_URL={serving.base_url} VERN_API_KEY={world.key}", wrap=False)
                data.file.flush()
            if is_unread():
                return
            clients = "" if options.speed == 1 else f", for clients with --speed {options.speed:g}"
            say(words, f"The simulator serves until Ctrl-C{clients}.", "dim")
            await interrupted.wait()
        verdict = world.verdict(asyncio.get_running_loop().time())
        if options.ledger is not None:
            _write_ledger(options.ledger, world, verdict)
        if as_json:
            print_line({"schema": SCHEMA, "requests": len(world.ledger.entries), "verdict": verdict})
        else:
            _print_verdict(words, world, verdict)


def _write_ledger(path: Path, world: World | migrations.World, verdict: Verdict | migrations.Verdict) -> None:
    lines = [{"type": "request", **asdict(entry)} for entry in world.ledger.entries]
    lines.append({"type": "verdict", **asdict(verdict)})
    path.write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))


def _print_verdict(
    words: Console, world: World | migrations.World, verdict: Verdict | migrations.Verdict
) -> None:
    ledger = world.ledger
    say(
        words, f"{len(ledger.entries):,} requests received, {ledger.over_the_limit:,} of them over the limit."
    )
    sins = {name.replace("_", " "): count for name, count in asdict(verdict).items() if count}
    said = ", ".join(f"{n} {name}" for name, n in sins.items()) or "no violations"
    say(words, f"The ledger's verdict: {said}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """The options of `asyncmig demo`."""

    out: Annotated[
        Path,
        typer.Option(metavar="FOLDER", help="Folder to write; the files of an earlier demo are replaced."),
    ] = Path("asyncmig-demo")
    customers: Annotated[
        int, typer.Option(min=1, max=9999, metavar="N", help="How many customers to generate.")
    ] = 40
    seed: Annotated[
        int, typer.Option(min=0, metavar="N", help="The same seed generates the same customers.")
    ] = 1
    speed: Annotated[
        float, typer.Option(min=0.01, metavar="FACTOR", help="Run the clock this many times faster.")
    ] = 60.0


@dataclass(frozen=True, slots=True)
class DemoResult:
    """What the demo planned, and how its run ended."""

    options: Options
    plans: Sequence[Plan]
    world: World
    ended: RunResult

    def deviations(self) -> list[str]:
        """Return the differences from the plan in outcomes, reasons and row counts."""
        rows = {row.external_id: row for row in self.ended.report.customers}
        return [fault for plan in self.plans for fault in _faults(plan, rows[plan.external_id], self.world)]


async def play(demo: DemoOptions, words: Console) -> DemoResult:
    """Generate customers, serve a simulated API and run the fleet against it, in one process and on one clock.

    Raises `InvalidInput` for a folder with other content.
    """
    plans, world = _generate(demo), new_world(seed=demo.seed, rate=DEFAULT_RATE)
    say(words, f"{demo.customers:,} customers with messy files in {demo.out}/, and a simulator on loopback.")
    async with serve(world) as serving:
        options = Options(
            manifest=demo.out / "customers.csv",
            out=demo.out / "out",
            journal=JournalPlace(str(demo.out / "fleet.db")),
            report=demo.out / "report.html",
            decide="approve",
            speed=demo.speed,
            base_url=serving.base_url,
        )
        ended = await drive(read_manifest(options.manifest), options, words, api_key=world.key)
    return DemoResult(options, plans, world, ended)


def _generate(demo: DemoOptions) -> list[Plan]:
    """Generate the customers, replacing those of an earlier demo; return the expected result of each."""
    folder = demo.out
    check_folder("out", folder)
    if folder.exists():
        if any(folder.iterdir()) and not (folder / _MARK).is_file():
            raise InvalidInput(
                "out", str(folder), "is not empty and was not written by a demo: name another folder"
            )
        for pattern in _OWN:
            for path in folder.glob(pattern):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _MARK).write_text(
        "Written by `asyncmig demo`, which replaces this folder's content each time.\n", encoding="utf-8"
    )
    return generate(folder, customers=demo.customers, seed=demo.seed)


def _faults(plan: Plan, row: CustomerStatus, world: World) -> Iterator[str]:
    if row.outcome != plan.outcome:
        yield f"{plan.external_id}: {row.outcome} ({row.error}), expected {plan.outcome}"
    elif plan.reason not in (row.error or ""):
        yield f"{plan.external_id}: failed with {row.error!r}, expected {plan.reason!r}"
    elif plan.outcome == "delivered":
        planned = plan.valid_after_patch if world.parked(plan.external_id) else plan.valid
        for file in row.files:
            if file.rows != planned.get(file.sheet, 0):
                yield (
                    f"{plan.external_id}: {file.rows} rows of {file.sheet}, "
                    f"expected {planned.get(file.sheet, 0)}"
                )
        for sheet in planned.keys() - {file.sheet for file in row.files}:
            yield f"{plan.external_id}: no file of {sheet}"


def print_demo(data: Console, result: DemoResult, *, as_json: bool) -> bool:
    """Print the result and the differences from the plan; return whether there are none."""
    ended, options = result.ended, result.options
    faults = [] if ended.reason else result.deviations()
    as_planned = not faults and not ended.reason
    if as_json:
        outcomes = Counter(row.outcome for row in ended.customers)
        verdict = {"as_planned": as_planned, "reason": ended.reason, "differences": faults}
        print_line({"schema": SCHEMA, **verdict, "outcomes": outcomes, "budget": ended.report.budget})
        return as_planned
    if ended.reason:
        reason = clean(ended.reason)
        say(data, f"The demo did not finish ({reason}). The next demo starts from the beginning.")
        return False
    data.print()
    print_outcomes(data, ended.customers, f"{options.out}/report.json")
    asked = sum(result.world.parked(plan.external_id) for plan in result.plans)
    parked = (
        f"; {asked:,} imports asked how to handle bad rows, and the proposal was approved" if asked else ""
    )
    figures_of_demo = [
        ("read", f"{sum(plan.rows_in for plan in result.plans):,} rows{parked}"),
        *figures(ended),
        ("noticed", _noticed(result.world.ledger)),
        ("planned", _verdict(faults, len(result.plans))),
    ]
    print_figures(data, figures_of_demo)
    for fault in faults[:_MOST_SHOWN]:
        say(data, f"  {clean(fault)}", "red")
    data.print()
    say_steps(data, _next_steps(options))
    return not faults


def _noticed(ledger: Ledger) -> str:
    delays = list(ledger.detection.values())
    if not delays:
        return "no import ended"
    return f"the end of an import after {fmean(delays):.1f} s on average, {max(delays):.1f} s at most"


def _verdict(faults: Sequence[str], customers: int) -> str:
    if not faults:
        return f"all {customers:,} customers ended as planned: outcomes, reasons and row counts"
    return f"{len(faults):,} differences from the plan:"


def _next_steps(options: Options) -> Iterator[str]:
    speed = "" if options.speed == 1 else f" --speed {options.speed:g}"
    yield f"For a report with charts, open {options.report} in a browser."
    yield f"See also {options.out}/report.json and {options.out}/cust-0001/. Next, try it with two processes:"
    yield f"  asyncmig sim{speed}    # in a second terminal; paste its first line here, then run"
    yield f"  asyncmig run {options.manifest}{speed}"
