"""Workers that share keys: duration of a fleet, cost of the shared window, and throughput with several keys.

    python benchmarks/workers.py               # needs `pip install '.[bench]'`; takes some minutes
    python benchmarks/workers.py --customers 24 --speed 10 --only one-key

One key: 1, 2 and 4 workers use one queue. The simulator, Redis and PostgreSQL run in separate processes. Seconds are
measured in the ledger of the simulator, from the first request to the last. The ratio is to one worker.

Cost: the slots a second through Redis if the limit delays no caller, the delay of timers on the same loop during
this time, and the number of Redis commands of an idle session.

Many keys: each key has its own budget. Each process gets a part of the keys, and each key has its own session and
its own simulated account. All windows are in one Redis. Seconds are real time, so they show the capacity of the
processes.
"""

import argparse
import asyncio
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, Self
from uuid import uuid4

import redis

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # the servers and doubles of the tests

from farm import Farm, customers
from inprocess import BASE_URL, InProcess
from servers import PostgresServer, RedisServer

from asyncmig import Delivered, Fleet, Gate, MemoryJournal, Session
from asyncmig.distributed.budget_store import SharedBudgets
from asyncmig.distributed.redis import RedisWindow
from asyncmig.distributed.saq import MigrationQueue
from asyncmig.distributed.shared_dispatcher import SharedDispatcher
from asyncmig.simulator import SCHEMAS, SOURCES, RunDurations, World, fast_loop

NEEDED = 18
"""The slots a second that one key needs: 100 a minute for each of eleven endpoints."""

SINS = ("over_the_limit", "duplicate_imports", "duplicate_companies", "unaccounted", "hasty_polls")


def one_key(servers: "Servers", folder: Path, *, count: int, speed: float) -> None:
    print(f"one key, {count} customers, clocks {speed:g} times as fast")
    first = None
    for workers in (1, 2, 4):
        place = folder / f"workers-{workers}"
        place.mkdir()
        verdict = asyncio.run(_one_key(servers, place, workers, count, speed))
        first = first or verdict["took"]
        wrong = {
            name: verdict[name]
            for name in ("over_the_limit", "duplicate_imports", "unaccounted")
            if verdict[name]
        }
        print(
            f"  {workers} workers: {verdict['took']:7.1f} s  {verdict['took'] / first:.2f} x  {wrong or 'clean'}",
            flush=True,
        )


async def _one_key(
    servers: "Servers", folder: Path, workers: int, count: int, speed: float
) -> dict[str, float]:
    with Farm(
        folder,
        speed=speed,
        queue=servers.redis.url,
        database=servers.postgres.url,
        window=servers.redis.url,
        name=f"bench_{uuid4().hex}",
        concurrency=count,
    ) as farm:
        specs = customers(folder / "in", count)
        farm.start(workers)
        await asyncio.sleep(2.0 + workers)  # the workers import their modules
        async with MigrationQueue(servers.redis.url, name=farm.name, heartbeat=10) as queue:
            outcomes = [outcome async for outcome in queue.run(specs)]
        if failed := [outcome for outcome in outcomes if not isinstance(outcome, Delivered)]:
            raise SystemExit(f"{len(failed)} were not delivered: {failed[:3]}\n{farm.log()[-2000:]}")
        return await asyncio.to_thread(farm.verdict)


def cost(url: str, *, seconds: float = 3.0) -> None:
    print(f"slots a second through Redis (one key needs {NEEDED})")
    for processes in (1, 2, 4):
        with multiprocessing.Pool(processes) as pool:
            results = pool.starmap(_acquire, [(url, f"cost-{processes}", seconds)] * processes)
        total, late = sum(rate for rate, _ in results), max(late for _, late in results)
        print(f"  {processes} processes: {total:6.0f}  timers at most {late * 1000:.1f} ms late", flush=True)
    print(f"commands to Redis in 5 s of a session that waits for nothing: {asyncio.run(_idle(url))}")


def _acquire(url: str, name: str, seconds: float) -> tuple[float, float]:
    return asyncio.run(_acquisitions(url, name, seconds))


async def _acquisitions(url: str, name: str, seconds: float) -> tuple[float, float]:
    """Take slots one after the other. Return the slots a second, and the longest delay of a timer in seconds."""
    window, loop = RedisWindow(url), asyncio.get_running_loop()
    shared = SharedBudgets(window=window, account=f"bench {uuid4().hex}", timeout=60.0)
    dispatcher = partial(SharedDispatcher, shared=shared)
    gates = [Gate(limit=10**6, name=f"{name} {n}", dispatcher=dispatcher) for n in range(8)]
    until, late, taken = loop.time() + seconds, 0.0, 0

    async def take(gate: Gate) -> None:
        nonlocal taken
        while loop.time() < until:
            async with gate.slot() as slot:
                slot.answered(200)
            taken += 1

    async def watch() -> None:
        nonlocal late
        while loop.time() < until:
            at = loop.time() + 0.01
            await asyncio.sleep(0.01)
            late = max(late, loop.time() - at)

    await asyncio.gather(watch(), *map(take, gates))
    await asyncio.gather(*(gate.aclose() for gate in gates))
    await window.aclose()
    return taken / seconds, late


async def _idle(url: str) -> int:
    world, client = _world(), redis.Redis.from_url(url)
    async with Session(world.key, BASE_URL, transport=InProcess(world), shared=RedisWindow(url)) as session:
        await session.companies.sources()
        await asyncio.sleep(0.5)
        before = client.info("stats")["total_commands_processed"]
        await asyncio.sleep(5.0)
        return int(client.info("stats")["total_commands_processed"]) - int(before) - 1  # without this command


def many_keys(url: str, folder: Path, *, keys: int, count: int) -> None:
    print(f"{keys} keys, {count} customers each")
    specs_folder, first = folder / "in", None
    customers(specs_folder, count)
    for processes in (1, 2, 4):
        began = time.perf_counter()
        parts = [range(part, keys, processes) for part in range(processes)]
        with multiprocessing.Pool(processes) as pool:
            spent = pool.starmap(_keys, [(url, part, str(folder), count, processes) for part in parts])
        took = time.perf_counter() - began
        first = first or took
        print(
            f"  {processes} processes: {took:6.1f} s  {first / took:.2f} x the capacity  {sum(spent)} refused",
            flush=True,
        )


def _keys(url: str, keys: Iterable[int], folder: str, count: int, run: int) -> int:
    """Run one fleet for each key at the same time, on a fast clock."""
    with asyncio.Runner(loop_factory=lambda: fast_loop(600.0)) as runner:
        return runner.run(_fleets(url, keys, Path(folder), count, run))


async def _fleets(url: str, keys: Iterable[int], folder: Path, count: int, run: int) -> int:
    specs = customers(folder / f"in-{run}-{uuid4().hex}", count)
    return sum(await asyncio.gather(*(_fleet(url, key, folder / f"out-{run}-{key}", specs) for key in keys)))


async def _fleet(url: str, key: int, to: Path, specs: list[Any]) -> int:
    world = _world()
    shared = RedisWindow(url, prefix=f"bench-{uuid4().hex}", timeout=10.0)
    wire = InProcess(world, rng=Random(key))
    async with (
        Session(world.key, BASE_URL, transport=wire, shared=shared, rng=Random(key)) as session,
        Fleet(session, journal=MemoryJournal(), to=to) as fleet,
    ):
        outcomes = [outcome async for outcome in fleet.run(specs)]
    assert all(isinstance(outcome, Delivered) for outcome in outcomes)
    return world.ledger.over_the_limit


def _world() -> World:
    return World(key="bench-key", sources=SOURCES, schemas=SCHEMAS, seed=1, pace=RunDurations(sigma=0.2))


class Servers:
    """A Redis server and a PostgreSQL server."""

    def __init__(self, folder: Path) -> None:
        self.redis, self.postgres = RedisServer(folder), PostgresServer()

    def __enter__(self) -> Self:
        self.redis.start()
        self.postgres.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.redis.stop()
        self.postgres.remove()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--customers", type=int, default=200)
    parser.add_argument("--speed", type=float, default=10.0)
    parser.add_argument("--keys", type=int, default=20)
    parser.add_argument("--only", choices=["one-key", "cost", "many-keys"])
    told = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, Servers(Path(name)) as servers:
        if told.only in (None, "one-key"):
            one_key(servers, Path(name), count=told.customers, speed=told.speed)
        if told.only in (None, "cost"):
            cost(servers.redis.url)
        if told.only in (None, "many-keys"):
            many_keys(servers.redis.url, Path(name), keys=told.keys, count=max(5, told.customers // 20))


if __name__ == "__main__":
    main()
