"""What a large fleet costs, and that it grows in proportion: python benchmarks/scale.py [--sizes 1000 3000 10000]

Each size in a process of its own: all customers at once on a virtual clock, the simulator in the same process, a
journal on disk (which is not waited for), and a limit that grows with the fleet, so that each size has as many
requests a customer. Columns: seconds of CPU; resident memory at its highest, less what there was before the fleet, of
client and simulator together, and what of it the client's own code has allocated (by tracemalloc, in a second
run, at the smallest size only); the journal's bytes; how long the loop was busy in one turn, in CPU time and without
what threads do when the clock is a real one (a service that shares the loop waits so long), at worst and at 99.9 %.
"""

import argparse
import asyncio
import json
import os
import resource
import sqlite3
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from urllib.parse import parse_qsl, urlsplit

import looptime

from asyncmig import Delivered, Fleet, Journal, Session, Spec, Timeouts
from asyncmig.simulator import SCHEMAS, SOURCES, Reply, Request, RunDurations, World
from asyncmig.simulator.server.limits import SlidingLog

KEY = "a-key-for-the-benchmark"
elsewhere = 0.0
"""Seconds spent so far on what runs in threads when the clock is a real one: files, and the journal."""
REQUESTS = 12
"""Requests a customer that the limit allows in a minute."""
ROWS = "Email,First Name,Last Name\n" + "".join(f"p{n}@x.org,A,B\n" for n in range(10))


@dataclass(slots=True)
class Answered:
    """An answer of the simulator, as a transport gives it."""

    reply: Reply

    @property
    def status(self) -> int:
        return self.reply.status

    @property
    def headers(self) -> Mapping[str, str]:
        return {"Content-Type": self.reply.content_type, **self.reply.headers}

    async def chunks(self) -> AsyncIterator[bytes]:
        yield self.reply.body


class InProcess:
    """A transport that calls a world in this process, a tenth of a second away."""

    def __init__(self, world: World) -> None:
        self._world = world
        world.storage_url = "https://storage.test"

    @asynccontextmanager
    async def exchange(
        self, method: str, url: str, *, headers: Mapping[str, str], body: object, timeouts: Timeouts
    ) -> AsyncIterator[Answered]:
        parts = urlsplit(url)
        content = body if isinstance(body, bytes) else b"".join([c async for c in body]) if body else b""  # type: ignore[attr-defined]
        request = Request(
            method=method,
            path=parts.path,
            query=dict(parse_qsl(parts.query)),
            headers={name.lower(): value for name, value in headers.items()},
            body=content,
        )
        await asyncio.sleep(0.05)
        handle = self._world.storage if parts.netloc == "storage.test" else self._world.handle
        reply = handle(request, asyncio.get_running_loop().time())
        await asyncio.sleep(0.05)
        yield Answered(reply)

    async def aclose(self) -> None:
        pass


@contextmanager
def away() -> Iterator[None]:
    global elsewhere
    began = time.thread_time()
    try:
        yield
    finally:
        elsewhere += time.thread_time() - began


class Inline(ThreadPoolExecutor):
    """Runs what it is given at once: a virtual clock would race with threads."""

    def submit(self, function: Callable[..., object], /, *args: object, **kwargs: object) -> "Future[object]":  # type: ignore[override]
        future: Future[object] = Future()
        with away():
            try:
                future.set_result(function(*args, **kwargs))
            except BaseException as error:
                future.set_exception(error)
        return future


class Unsynced(sqlite3.Connection):
    """A connection that does not wait for the disk."""

    def execute(self, sql: str, parameters: object = ()) -> sqlite3.Cursor:  # type: ignore[override]
        with away():
            return super().execute(sql.replace("synchronous=FULL", "synchronous=OFF"), parameters)  # type: ignore[arg-type]


def connect(uri: str) -> sqlite3.Connection:
    return sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False, factory=Unsynced)


def timed_loop(turns: list[float]) -> asyncio.AbstractEventLoop:
    """Return a virtual loop that notes how long each of its turns takes."""
    loop = looptime.new_event_loop(noop_cycles=0)
    loop.set_default_executor(Inline(1))
    run_once = loop._run_once

    def turn() -> None:
        began, before = time.thread_time(), elsewhere
        run_once()
        turns.append(time.thread_time() - began - (elsewhere - before))

    loop._run_once = turn
    return loop


async def drive(customers: int, folder: Path, memory: Callable[[], float]) -> dict[str, float]:
    file = folder / "contacts.csv"
    file.write_text(ROWS, encoding="utf-8")
    source = next(iter(SOURCES))
    specs = [Spec(external_id=f"c{n}", name=f"c{n}", source=source, files=(file,)) for n in range(customers)]
    world = World(
        key=KEY, sources=SOURCES, schemas=SCHEMAS[1:2], limit=lambda: SlidingLog(10**9), pace=RunDurations()
    )
    highest = before = memory()
    async with (
        Session(
            KEY,
            "https://api.test/api/v1",
            transport=InProcess(world),
            limit=REQUESTS * customers,
            rng=Random(1),
        ) as session,
        Journal(folder / "fleet.db", threaded=False, connect=connect) as journal,
        Fleet(session, journal=journal, to=folder / "out", concurrency=customers) as fleet,
    ):
        ended = 0
        async for outcome in fleet.run(specs):
            assert isinstance(outcome, Delivered), outcome
            ended += 1
            if ended % (customers // 20) == 0:
                highest = max(highest, memory())
    return {
        "customers": customers,
        "memory": (highest - before) / customers,
        "requests": len(world.ledger.entries) / customers,
        "virtual": asyncio.get_running_loop().time(),
        "refused": world.ledger.over_the_limit,
    }


def resident() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def allocated() -> float:
    """Return the bytes that code outside the simulator and this file holds."""
    others = [tracemalloc.Filter(False, f"*/{name}") for name in ("simulator/*", "scale.py")]
    return float(
        sum(each.size for each in tracemalloc.take_snapshot().filter_traces(others).statistics("filename"))
    )


def one(customers: int, traced: bool) -> None:
    turns: list[float] = []
    os.fsync = lambda file: None
    if traced:
        tracemalloc.start()
    with tempfile.TemporaryDirectory() as folder:
        began = time.process_time()
        with asyncio.Runner(loop_factory=lambda: timed_loop(turns)) as runner:
            result = runner.run(drive(customers, Path(folder), allocated if traced else resident))
        result["journal"] = (Path(folder) / "fleet.db").stat().st_size / customers
        result["cpu"] = time.process_time() - began
    turns.sort()
    result["worst"], result["lag"] = turns[-1], turns[int(len(turns) * 0.999)]
    print(json.dumps(result))


def measured(customers: int, *, traced: bool = False) -> dict[str, float]:
    """Measure one size in a process of its own."""
    command = [sys.executable, __file__, "--one", str(customers), *(["--traced"] if traced else [])]
    ended = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    result: dict[str, float] = json.loads(ended.stdout)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 3000, 10_000])
    parser.add_argument("--quick", action="store_true", help="100 and 300 customers")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--traced", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        one(asked.one, asked.traced)
        return
    sizes = [100, 300] if asked.quick else asked.sizes
    print(
        "| customers | CPU, s | CPU, ms a customer | memory, kB a customer | journal, kB a customer "
        "| requests a customer | busy at worst, ms | at 99.9 %, ms |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for size in sizes:
        got = measured(size)
        print(
            f"| {size:,} | {got['cpu']:.1f} | {1000 * got['cpu'] / size:.1f} | {got['memory'] / 1000:.1f} "
            f"| {got['journal'] / 1000:.1f} | {got['requests']:.1f} | {1000 * got['worst']:.0f} "
            f"| {1000 * got['lag']:.1f} |",
            flush=True,
        )
    share = measured(sizes[0], traced=True)["memory"] / 1000
    print(f"\nOf the memory, {share:.1f} kB a customer are the client's own ({sizes[0]:,} customers).")


if __name__ == "__main__":
    main()
