"""`asyncmig sim`: the simulator for a client in another process, and the worlds that the commands serve."""

import asyncio
import contextlib
import signal
from collections.abc import Iterable
from dataclasses import asdict
from random import Random

from rich.console import Console

from asyncmig.cli.amounts import Rate
from asyncmig.cli.terminal import say
from asyncmig.errors import InvalidInput
from asyncmig.simulator.app import serve
from asyncmig.simulator.data import SCHEMAS, SOURCES
from asyncmig.simulator.faults import FAULTS, Faults
from asyncmig.simulator.limits import SlidingLog
from asyncmig.simulator.variants import VARIANTS, Variants
from asyncmig.simulator.world import World

__all__ = ["new_world", "parse_faults", "serve_until_interrupted"]


_SHARE = 0.05


def parse_faults(asked: Iterable[str], seed: int) -> tuple[Faults, Variants]:
    """Return what `NAME[:RATE]` stand for; raise `InvalidInput` for a name or a rate that makes no sense."""
    rates, variants = dict[str, float](), Variants()
    for each in asked:
        name, _, text = each.partition(":")
        try:
            rate = float(text) if text else _SHARE
        except ValueError:
            rate = -1.0
        if not 0 <= rate <= 1:
            raise InvalidInput("--fault", each, "the rate must be a number from 0 to 1")
        if name in FAULTS:
            rates[name] = rate
        elif name in VARIANTS:
            variants = variants.having(name, rate)
        else:
            raise InvalidInput("--fault", name, f"is not known; there are {', '.join([*FAULTS, *VARIANTS])}")
    return Faults(rates, rng=Random(seed)), variants


def new_world(*, seed: int, rate: Rate, variants: Variants | None = None) -> World:
    """Return a simulated account with the generator's sources and templates; its key is made from the seed."""
    return World(
        key=f"sim-key-{seed}",
        sources=SOURCES,
        schemas=SCHEMAS,
        seed=seed,
        variants=variants,
        limit=lambda: SlidingLog(rate.limit, rate.window),
    )


async def serve_until_interrupted(
    world: World, *, port: int, speed: float, data: Console, words: Console, faults: Faults | None = None
) -> None:
    """Serve a world on loopback until Ctrl-C or SIGTERM; print what a client needs, to be pasted into a shell."""
    interrupted = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(NotImplementedError):
            loop.add_signal_handler(number, interrupted.set)
    async with serve(world, port=port, faults=faults) as serving:
        say(data, f"export VERN_BASE_URL={serving.base_url} VERN_API_KEY={world.key}")
        data.file.flush()
        clients = "" if speed == 1 else f", for clients with --speed {speed:g}"
        say(words, f"The simulator serves until Ctrl-C{clients}.", "dim")
        await interrupted.wait()
    verdict = world.verdict(loop.time())
    ledger = world.ledger
    say(words, f"{len(ledger.entries):,} requests came, {ledger.over_the_limit:,} of them over the limit.")
    sins = {name.replace("_", " "): count for name, count in asdict(verdict).items() if count}
    say(
        words,
        "The ledger's verdict: " + (", ".join(f"{n} {name}" for name, n in sins.items()) or "spotless") + ".",
    )
