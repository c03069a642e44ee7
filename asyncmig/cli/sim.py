"""`asyncmig sim`: serve a simulated API on loopback."""

import asyncio
import ssl
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Annotated, TypeVar

import msgspec
import typer
from rich.console import Console

from asyncmig._core.limits import Rate
from asyncmig.cli.connection import run_at
from asyncmig.cli.interrupts import handling_signals
from asyncmig.cli.options import DEFAULT_RATE, JsonOption, rate_option
from asyncmig.cli.output import SCHEMA, data_console, is_unread, print_line, say, words_console
from asyncmig.errors import InvalidInput
from asyncmig.jobs.outputs import check_replaceable
from asyncmig.session import Scope
from asyncmig.simulator import (
    FAULTS,
    PROFILES,
    SCHEMAS,
    SOURCES,
    VARIANTS,
    Faults,
    RunDurations,
    Variants,
    World,
    migrations,
    serve,
)

__all__ = ["SimOptions", "new_world", "parse_faults", "sim", "world_of"]

V = TypeVar("V", Variants, migrations.Variants)
_SHARE = 0.05
"""The rate of a fault for which none is given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SimOptions:
    """The options of `asyncmig sim`."""

    port: Annotated[
        int, typer.Option(min=0, max=65535, metavar="N", help="Port on loopback; 0 selects a free one.")
    ] = 0
    seed: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            help="Seed for ids and for durations of imports. It is also part of the API key.",
        ),
    ] = 1
    speed: Annotated[
        float, typer.Option(min=0.01, metavar="FACTOR", help="Run the clock this many times as fast.")
    ] = 1.0
    pace: Annotated[
        float,
        typer.Option(
            min=0.0,
            metavar="FACTOR",
            help="Make imports take this many times as long on that clock: 0.1 makes them ten times shorter.",
        ),
    ] = 1.0
    api: Annotated[str, typer.Option(metavar="companies|migrations", help="The API generation to serve.")] = (
        "companies"
    )
    limits: Annotated[
        str | None,
        typer.Option(
            metavar="LIMITS",
            help="The limits with --api migrations: by-class, per-minute, per-endpoint, per-key, or numbers such as "
            "agent=50/1h,runs=5.",
        ),
    ] = None
    rate: Annotated[Rate, rate_option(None)] = DEFAULT_RATE
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
            help="File to write all requests to, one JSON object per line. The last line is the verdict.",
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
    asked: Iterable[str], seed: int, variants: V, known: Collection[str], given: Mapping[str, float] = {}
) -> tuple[Faults, V]:
    """Return the faults and variants that `NAME[:RATE]` arguments select, in addition to `given`.

    `variants`: those of a usual server. `known`: the names of variants.

    Raises `InvalidInput` for an unknown name and for a rate outside of 0 to 1.
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
    for name, rate in wanted.items():
        if name not in FAULTS:
            variants = variants.having(name, rate)
    return faults, variants


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
    return RunDurations(queued=usual.queued * pace, base=usual.base * pace, per_row=usual.per_row * pace)


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
    goes_wrong = PROFILES[options.profile].goes_wrong
    faults, variants = parse_faults(options.fault or (), options.seed, Variants(), VARIANTS, goes_wrong)
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
    faults, variants = parse_faults(
        options.fault or (), options.seed, migrations.Variants(), migrations.VARIANTS
    )
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


def sim(options: SimOptions, as_json: JsonOption = False) -> None:
    """Serve a simulated API on loopback until Ctrl-C.

    Prints a line that sets the base URL and the API key, to paste into another terminal. At its end, it prints which
    rules of the API the clients broke.
    """
    run_at(options.speed, _serve(options, data_console(), words_console(), as_json=as_json))


async def _serve(options: SimOptions, data: Console, words: Console, *, as_json: bool) -> None:
    """Serve until SIGINT, SIGTERM or SIGHUP."""
    (world, faults), tls = world_of(options), _tls(options)
    if isinstance(world, migrations.World):  # its time stamps are those of the present
        world.epoch = datetime.now(UTC).timestamp() - asyncio.get_running_loop().time()
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
            clients = "" if options.speed == 1 else f" Give its clients --speed {options.speed:g}."
            say(words, f"The simulator runs until Ctrl-C.{clients}", "dim")
            await interrupted.wait()
        verdict = world.verdict(asyncio.get_running_loop().time())
        if options.ledger is not None:
            lines = [{"type": "request", **asdict(entry)} for entry in world.ledger.entries]
            lines.append({"type": "verdict", **asdict(verdict)})
            options.ledger.write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
        if as_json:
            print_line({"schema": SCHEMA, "requests": len(world.ledger.entries), "verdict": verdict})
            return
        over = world.ledger.over_the_limit
        say(words, f"{len(world.ledger.entries):,} requests received, {over:,} of them over the limit.")
        say(words, f"Verdict on the clients: {verdict}.")
