"""`asyncmig sim` serves a simulated API; `asyncmig demo` migrates generated customers through one."""

import asyncio
import shutil
import ssl
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Annotated

import msgspec
import typer
from rich.console import Console

from asyncmig.cli.interrupts import handling_signals
from asyncmig.cli.options import DEFAULT_RATE, Rate, rate_option
from asyncmig.cli.output import clean, is_unread, say
from asyncmig.cli.run import RunResult, drive
from asyncmig.cli.settings import Options
from asyncmig.cli.summary import figures, print_figures, print_outcomes
from asyncmig.customers.status import CustomerStatus
from asyncmig.errors import InvalidInput
from asyncmig.jobs.manifest import read_manifest
from asyncmig.jobs.outputs import check_folder, check_replaceable
from asyncmig.journal import JournalPlace
from asyncmig.session import Scope
from asyncmig.simulator.companies.data import SCHEMAS, SOURCES, Plan, generate
from asyncmig.simulator.companies.profiles import PROFILES
from asyncmig.simulator.companies.variants import VARIANTS, Variants
from asyncmig.simulator.companies.world import World
from asyncmig.simulator.server.app import serve
from asyncmig.simulator.server.faults import FAULTS, Faults
from asyncmig.simulator.server.ledger import Ledger, Verdict

__all__ = [
    "SimOptions",
    "demo_options",
    "deviations",
    "new_world",
    "parse_faults",
    "play",
    "prepare",
    "print_demo",
    "serve_until_interrupted",
    "world_of",
]


_SHARE = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class SimOptions:
    """The options of `asyncmig sim`."""

    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on loopback; 0 selects a free one.")] = 0
    seed: Annotated[
        int, typer.Option(min=0, help="Seed for ids and durations of runs; it is also part of the API key.")
    ] = 1
    speed: Annotated[float, typer.Option(min=0.01, help="Run the clock this many times faster.")] = 1.0
    rate: Annotated[Rate, rate_option("The limit.")] = DEFAULT_RATE
    scope: Annotated[
        Scope, typer.Option(help="What the limit applies to: each endpoint, or the whole API key.")
    ] = "endpoint"
    profile: Annotated[
        str, typer.Option(help=f"The kind of server: {', '.join(PROFILES)}.", metavar="NAME")
    ] = "calm"
    fault: Annotated[
        list[str] | None,
        typer.Option(
            help="A fault to inject, NAME or NAME:RATE (0 to 1); repeatable. An unknown name prints the list."
        ),
    ] = None
    ledger: Annotated[
        Path | None,
        typer.Option(help="File for all requests, one JSON object per line; the last line is the verdict."),
    ] = None
    cert: Annotated[
        Path | None,
        typer.Option(
            help="Certificate chain (PEM) for localhost, to serve https. Clients trust it with SSL_CERT_FILE."
        ),
    ] = None
    cert_key: Annotated[
        Path | None, typer.Option(help="Private key (PEM) of --cert, if it is in another file.")
    ] = None


def parse_faults(
    asked: Iterable[str], seed: int, given: Mapping[str, float] | None = None
) -> tuple[Faults, Variants]:
    """Return the faults that `NAME[:RATE]` arguments select, in addition to `given`.

    Raises `InvalidInput` for an unknown name and for a rate outside of 0 to 1.
    """
    wanted = dict(given or {})
    for each in asked:
        name, _, text = each.partition(":")
        try:
            rate = float(text) if text else _SHARE
        except ValueError:
            rate = -1.0
        if not 0 <= rate <= 1:
            raise InvalidInput("--fault", each, "the rate must be a number from 0 to 1")
        if name not in FAULTS and name not in VARIANTS:
            raise InvalidInput("--fault", name, f"is not known; there are {', '.join([*FAULTS, *VARIANTS])}")
        wanted[name] = rate
    wanted = {name: rate for name, rate in wanted.items() if rate}  # a rate of 0 disables a fault
    variants = Variants()
    for name in wanted.keys() - FAULTS.keys():
        variants = variants.having(name, wanted[name])
    return Faults({name: rate for name, rate in wanted.items() if name in FAULTS}, rng=Random(seed)), variants


def new_world(
    *,
    seed: int,
    rate: Rate,
    scope: Scope = "endpoint",
    profile: str = "calm",
    variants: Variants | None = None,
) -> World:
    """Return a simulated account with the sources and templates of the demo; its API key contains the seed."""
    limit = PROFILES[profile].limit
    return World(
        key=f"sim-key-{seed}",
        sources=SOURCES,
        schemas=SCHEMAS,
        seed=seed,
        variants=variants,
        scope=scope,
        limit=lambda: limit(rate.limit, rate.window),
    )


def world_of(options: SimOptions) -> tuple[World, Faults]:
    """Return the account and the faults that the options select. Raises `InvalidInput` for unknown names."""
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


async def serve_until_interrupted(options: SimOptions, data: Console, words: Console) -> None:
    """Serve on loopback until SIGINT, SIGTERM or SIGHUP; print the client's environment as a shell command."""
    (world, faults), tls = world_of(options), _tls(options)
    if options.ledger is not None:
        if options.ledger.is_file():
            check_replaceable("--ledger", options.ledger, "a ledger")
        options.ledger.write_bytes(b"")  # fail at once if it cannot be written
    interrupted = asyncio.Event()
    with handling_signals(interrupted.set, interrupted.set):
        async with serve(world, port=options.port, faults=faults, tls=tls) as serving:
            say(data, f"export VERN_BASE_URL={serving.base_url} VERN_API_KEY={world.key}")
            data.file.flush()
            if is_unread():
                return
            clients = "" if options.speed == 1 else f", for clients with --speed {options.speed:g}"
            say(words, f"The simulator serves until Ctrl-C{clients}.", "dim")
            await interrupted.wait()
        verdict = world.verdict(asyncio.get_running_loop().time())
        if options.ledger is not None:
            _write_ledger(options.ledger, world, verdict)
        _print_verdict(words, world, verdict)


def _write_ledger(path: Path, world: World, verdict: Verdict) -> None:
    lines = [{"type": "request", **asdict(entry)} for entry in world.ledger.entries]
    lines.append({"type": "verdict", **asdict(verdict)})
    path.write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))


def _print_verdict(words: Console, world: World, verdict: Verdict) -> None:
    ledger = world.ledger
    say(
        words, f"{len(ledger.entries):,} requests received, {ledger.over_the_limit:,} of them over the limit."
    )
    sins = {name.replace("_", " "): count for name, count in asdict(verdict).items() if count}
    said = ", ".join(f"{n} {name}" for name, n in sins.items()) or "no violations"
    say(words, f"The ledger's verdict: {said}.")


_MARK = ".asyncmig-demo"
_OWN = ("customers.csv", "cust-*", "out", "fleet.db*", "report.html")
_MOST_SHOWN = 10


def prepare(folder: Path, *, customers: int, seed: int) -> list[Plan]:
    """Generate the customers in `folder`, replacing those of an earlier demo; return the expected result of each.

    Raises `InvalidInput` for a folder with other content.
    """
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
    return generate(folder, customers=customers, seed=seed)


def demo_options(folder: Path, *, speed: float) -> Options:
    """Return the options of the demo's run."""
    return Options(
        manifest=folder / "customers.csv",
        out=folder / "out",
        journal=JournalPlace(str(folder / "fleet.db")),
        report=folder / "report.html",
        decide="approve",
        speed=speed,
    )


async def play(world: World, options: Options, words: Console) -> RunResult:
    """Serve `world` on loopback and run the fleet against it, in one process and on one clock."""
    async with serve(world) as serving:
        return await drive(
            read_manifest(options.manifest),
            options.at(serving.base_url),
            words,
            api_key=world.key,
        )


def deviations(plans: Sequence[Plan], ended: RunResult, world: World) -> list[str]:
    """Return the differences from the plan in outcomes, reasons and row counts."""
    rows = {company.external_id: company for company in ended.report.customers}
    return [fault for plan in plans for fault in _faults(plan, rows[plan.external_id], world)]


def _faults(plan: Plan, company: CustomerStatus, world: World) -> Iterator[str]:
    if company.outcome != plan.outcome:
        yield f"{plan.external_id}: {company.outcome} ({company.error}), expected {plan.outcome}"
    elif plan.reason not in (company.error or ""):
        yield f"{plan.external_id}: failed with {company.error!r}, expected {plan.reason!r}"
    elif plan.outcome == "delivered":
        planned = plan.valid_after_patch if world.parked(plan.external_id) else plan.valid
        for file in company.files:
            if file.rows != planned.get(file.sheet, 0):
                yield (
                    f"{plan.external_id}: {file.rows} rows of {file.sheet}, "
                    f"expected {planned.get(file.sheet, 0)}"
                )
        for sheet in planned.keys() - {file.sheet for file in company.files}:
            yield f"{plan.external_id}: no file of {sheet}"


def print_demo(
    data: Console, ended: RunResult, options: Options, plans: Sequence[Plan], world: World
) -> bool:
    """Print the result and the differences from the plan; return whether there are none."""
    if ended.reason:
        say(
            data, f"The demo did not finish ({clean(ended.reason)}). The next demo starts from the beginning."
        )
        return False
    faults = deviations(plans, ended, world)
    print_outcomes(data, ended, options)
    print_figures(
        data,
        [
            ("read", f"{sum(plan.rows_in for plan in plans):,} rows{_asked(plans, world)}"),
            *figures(ended),
            ("noticed", _noticed(world.ledger)),
            ("planned", _verdict(faults, len(plans))),
        ],
    )
    for fault in faults[:_MOST_SHOWN]:
        say(data, f"  {clean(fault)}", "red")
    data.print()
    for line in _next_steps(options):
        say(data, line)
    return not faults


def _asked(plans: Sequence[Plan], world: World) -> str:
    asked = sum(world.parked(plan.external_id) for plan in plans)
    return f"; {asked:,} imports asked how to handle bad rows, and the proposal was approved" if asked else ""


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
