"""`asyncmig sim`: serve a simulated API to clients in other processes."""

import asyncio
import ssl
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Annotated

import msgspec
import typer
from rich.console import Console

from asyncmig.cli.interrupts import handling_signals
from asyncmig.cli.options import DEFAULT_RATE, Rate, rate_option
from asyncmig.cli.output import is_unread, say
from asyncmig.errors import InvalidInput
from asyncmig.jobs.outputs import check_replaceable
from asyncmig.session import Scope
from asyncmig.simulator.companies.data import SCHEMAS, SOURCES
from asyncmig.simulator.companies.profiles import PROFILES
from asyncmig.simulator.companies.variants import VARIANTS, Variants
from asyncmig.simulator.companies.world import World
from asyncmig.simulator.server.app import serve
from asyncmig.simulator.server.faults import FAULTS, Faults
from asyncmig.simulator.server.ledger import Verdict

__all__ = ["SimOptions", "new_world", "parse_faults", "serve_until_interrupted", "world_of"]

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
