"""`asyncmig sim`: the simulator for a client in another process, and the worlds that the commands serve."""

import asyncio
import contextlib
import signal

from rich.console import Console

from asyncmig.cli.options import Rate
from asyncmig.cli.terminal import say
from asyncmig.simulator.app import serve
from asyncmig.simulator.data import SCHEMAS, SOURCES
from asyncmig.simulator.limits import SlidingLog
from asyncmig.simulator.world import World

__all__ = ["new_world", "serve_until_interrupted"]


def new_world(*, seed: int, rate: Rate) -> World:
    """Return a simulated account with the generator's sources and templates; its key is made from the seed."""
    return World(
        key=f"sim-key-{seed}",
        sources=SOURCES,
        schemas=SCHEMAS,
        seed=seed,
        limit=lambda: SlidingLog(rate.limit, rate.window),
    )


async def serve_until_interrupted(
    world: World, *, port: int, speed: float, data: Console, words: Console
) -> None:
    """Serve a world on loopback until Ctrl-C or SIGTERM; print what a client needs, to be pasted into a shell."""
    interrupted = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(NotImplementedError):
            loop.add_signal_handler(number, interrupted.set)
    async with serve(world, port=port) as serving:
        say(data, f"export VERN_BASE_URL={serving.base_url} VERN_API_KEY={world.key}")
        data.file.flush()
        clients = "" if speed == 1 else f", for clients with --speed {speed:g}"
        say(words, f"The simulator serves until Ctrl-C{clients}.", "dim")
        await interrupted.wait()
    ledger = world.ledger
    say(words, f"{len(ledger.entries):,} requests came, {ledger.over_the_limit:,} of them over the limit.")
