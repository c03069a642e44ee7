"""The simulator in a process of its own: prints where it is, and its ledger's verdict for each line that it reads."""

import asyncio
import json
import sys
from dataclasses import asdict

from asyncmig.simulator import SCHEMAS, SOURCES, RunDurations, World, serve
from asyncmig.simulator.server.clock import fast_loop


async def main() -> None:
    world = World(key="sim-key", sources=SOURCES, schemas=SCHEMAS, seed=1, pace=RunDurations(sigma=0.2))
    async with serve(world) as serving:
        loop = asyncio.get_running_loop()
        print(json.dumps({"base_url": serving.base_url, "key": world.key}), flush=True)  # noqa: T201 - to its parent
        while await loop.run_in_executor(None, sys.stdin.readline):
            entries = [entry for entry in world.ledger.entries if entry.status != 429]
            verdict = asdict(world.verdict(loop.time()))
            took = max(entry.at for entry in entries) - min(entry.at for entry in entries) if entries else 0.0
            told = {**verdict, "requests": len(entries), "took": took}
            print(json.dumps(told), flush=True)  # noqa: T201 - to its parent


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=lambda: fast_loop(float(sys.argv[1]))) as runner:
        runner.run(main())
