"""The simulator as a process. It prints its address, and then its ledger's verdict for each line that it reads."""

import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

from asyncmig.simulator import SCHEMAS, SOURCES, RunDurations, World, fast_loop, migrations, serve
from asyncmig.simulator.server.ledger import Entry


def lost_companies(entries: Sequence[Entry]) -> int:
    """Return the number of created companies that no later request names.

    The client does not know the id of such a company: the reply to the creation was lost, as with a killed worker.
    """
    created = sum(entry.endpoint == "POST /companies" and entry.status == 201 for entry in entries)
    return created - len({entry.ids["id"] for entry in entries if "id" in entry.ids})


def world_of(api: str, limits: str) -> World | migrations.World:
    if api == "companies":
        return World(key="sim-key", sources=SOURCES, schemas=SCHEMAS, seed=1, pace=RunDurations(sigma=0.2))
    pace = RunDurations(queued=1.0, base=10.0, per_row=0.0, sigma=0.2)
    return migrations.World(key="sim-key", seed=1, pace=pace, limits=migrations.Limits.parse(limits))


async def main() -> None:
    world = world_of(*sys.argv[2:4])
    async with serve(world) as serving:
        loop = asyncio.get_running_loop()
        print(json.dumps({"base_url": serving.base_url, "key": world.key}), flush=True)  # noqa: T201 - to its parent
        while await loop.run_in_executor(None, sys.stdin.readline):
            entries = [entry for entry in world.ledger.entries if entry.status != 429]
            verdict = asdict(world.verdict(loop.time()))
            took = max(entry.at for entry in entries) - min(entry.at for entry in entries) if entries else 0.0
            reply = {
                **verdict,
                "requests": len(entries),
                "imports": world.ledger.requests["POST /companies/{id}/imports"],
                "took": took,
                "lost_companies": lost_companies(entries),
            }
            print(json.dumps(reply), flush=True)  # noqa: T201 - to its parent


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=lambda: fast_loop(float(sys.argv[1]))) as runner:
        runner.run(main())
