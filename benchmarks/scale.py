"""The cost of large fleets, which is proportional to their size: python benchmarks/scale.py [--sizes 1000 3000 10000]

The client runs on a virtual clock, with a journal on disk that is not synced. The limit grows with the fleet, so
that each size allows the same number of requests for each customer. The simulator runs in a separate process, so
that the figures include only the client. Each fleet also runs in a separate process. Three fleets run all customers
at once: one runs to its end, one is drained and one is cancelled. A fourth fleet has the default concurrency and is
drained. Two more fleets are traced, which slows them down. They show only the memory of their customers.

Columns: CPU seconds of the fleet that runs to its end; allocated memory of a customer that waits to start and of one
that runs; bytes of the journal; CPU time of one turn of the loop. A service on the same loop waits for this time. It
does not include work that runs in threads with a real clock, or the exchange with the simulator. It is shown as the
maximum and as the 99.9 % quantile of all turns of a fleet, as the maximum with the default concurrency, and as the
maximum in each phase. "start" ends when the first customer has ended. "exit" begins when the last one has ended.
"gc" is the longest pause for garbage collection. The pause is a part of its turn. Objects that existed before the
fleet are frozen, so the collection does not visit them.
"""

import argparse
import asyncio
import gc
import json
import multiprocessing
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
import tracemalloc
from array import array
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal, cast
from urllib.parse import parse_qsl, urlsplit

import looptime

from asyncmig import Delivered, Fleet, Journal, Session, Spec, Timeouts
from asyncmig.journal import writer
from asyncmig.simulator import SCHEMAS, SOURCES, Reply, Request, RunDurations, World
from asyncmig.simulator.server.limits import SlidingLog

KEY = "a-key-for-the-benchmark"
REQUESTS = 12
"""The requests that the limit allows each customer in a minute."""
DEFAULT_CONCURRENCY = 500
ROWS = "Email,First Name,Last Name\n" + "".join(f"p{n}@x.org,A,B\n" for n in range(10))
Phase = Literal["start", "steady", "drain", "cancel", "exit"]
PHASES: tuple[Phase, ...] = ("start", "steady", "drain", "cancel", "exit")
End = Literal["complete", "drain", "cancel", "trace"]


class Meter:
    """Measures the CPU time of each turn of the loop by phase, without work outside of the client's loop."""

    def __init__(self) -> None:
        self.phase: Phase = "start"
        self.turns: defaultdict[Phase, array[float]] = defaultdict(lambda: array("d"))
        self.elsewhere = self.wire = 0.0
        """CPU seconds so far of work that runs in threads with a real clock, and of exchanges with the simulator."""
        self.pause, self._collecting = 0.0, 0.0
        gc.callbacks.append(self._collected)
        self._calls, self._cost = 0, 0.0
        began = time.thread_time()
        for _ in range(1000):
            time.thread_time()
        self._cost = (time.thread_time() - began) / 1000

    def now(self) -> float:
        """Return the CPU seconds of this thread, without the time of these calls, which may be long."""
        self._calls += 1
        return time.thread_time() - self._calls * self._cost

    def cpu(self) -> float:
        """Return the CPU seconds of this process, without these calls and the exchanges with the simulator."""
        return time.process_time() - self._calls * self._cost - self.wire

    @contextmanager
    def away(self) -> Generator[None]:
        began = self.now()
        try:
            yield
        finally:
            self.elsewhere += self.now() - began

    def _collected(self, when: str, _: dict[str, int]) -> None:
        if when == "start":
            self._collecting = self.now()
        else:
            self.pause = max(self.pause, self.now() - self._collecting)

    def loop(self) -> asyncio.AbstractEventLoop:
        """Return a virtual loop that records the CPU time of each turn."""
        loop: Any = looptime.new_event_loop(noop_cycles=0)
        loop.set_default_executor(Inline(1))
        run_once = loop._run_once

        def turn() -> None:
            began, before = self.now(), self.elsewhere + self.wire
            run_once()
            if not tracemalloc.is_tracing():
                self.turns[self.phase].append(self.now() - began - self.elsewhere - self.wire + before)

        loop._run_once = turn
        return cast("asyncio.AbstractEventLoop", loop)


meter = Meter()


def simulate(pipe: Connection) -> None:
    """Answer requests until the pipe is closed."""
    world = World(
        key=KEY, sources=SOURCES, schemas=SCHEMAS[1:2], limit=lambda: SlidingLog(10**9), pace=RunDurations()
    )
    world.storage_url = "https://storage.test"
    while (asked := pipe.recv()) is not None:
        request, host, now = asked
        pipe.send((world.storage if host == "storage.test" else world.handle)(request, now))
    pipe.send((len(world.ledger.entries), world.ledger.over_the_limit))


@dataclass(slots=True)
class Answered:
    """An answer of the simulator with the interface of a transport's response."""

    reply: Reply

    @property
    def status(self) -> int:
        return self.reply.status

    @property
    def headers(self) -> Mapping[str, str]:
        return {"Content-Type": self.reply.content_type, **self.reply.headers}

    async def chunks(self) -> AsyncIterator[bytes]:
        yield self.reply.body


class Wire:
    """A transport to the process of the simulator, with a latency of a tenth of a second."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    @asynccontextmanager
    async def exchange(
        self, method: str, url: str, *, headers: Mapping[str, str], body: object, timeouts: Timeouts
    ) -> AsyncGenerator[Answered]:
        content = body if isinstance(body, bytes) else b"".join([c async for c in body]) if body else b""  # type: ignore[attr-defined]
        await asyncio.sleep(0.05)
        began = meter.now()
        parts = urlsplit(url)
        request = Request(
            method=method,
            path=parts.path,
            query=dict(parse_qsl(parts.query)),
            headers={name.lower(): value for name, value in headers.items()},
            body=content,
        )
        self._pipe.send((request, parts.netloc, asyncio.get_running_loop().time()))
        reply = self._pipe.recv()
        meter.wire += meter.now() - began
        await asyncio.sleep(0.05)
        yield Answered(reply)

    async def aclose(self) -> None:
        pass


class Inline(ThreadPoolExecutor):
    """Runs each function at once in the calling thread, because a virtual clock does not wait for threads."""

    def submit(self, function: Callable[..., object], /, *args: object, **kwargs: object) -> "Future[object]":  # type: ignore[override]
        future: Future[object] = Future()
        with meter.away():
            try:
                future.set_result(function(*args, **kwargs))
            except BaseException as error:
                future.set_exception(error)
        return future


class Unsynced(sqlite3.Connection):
    """A connection that does not wait for the disk."""

    def execute(self, sql: str, parameters: object = ()) -> sqlite3.Cursor:  # type: ignore[override]
        return super().execute(sql.replace("synchronous=FULL", "synchronous=OFF"), parameters)  # type: ignore[arg-type]


def connect(uri: str) -> sqlite3.Connection:
    return sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False, factory=Unsynced)


def allocated() -> float:
    """Return the allocated bytes of this process, or 0 if they are not traced."""
    if not tracemalloc.is_tracing():
        return 0.0
    gc.collect()
    return float(tracemalloc.get_traced_memory()[0])


async def drive(
    customers: int, concurrency: int, end: End, folder: Path, pipe: Connection
) -> dict[str, float]:
    """Run a fleet until it ends. `end`: drain or cancel it when a twentieth of its concurrency has ended."""
    file = folder / "contacts.csv"
    source = next(iter(SOURCES))
    # A generator, so that the memory of the specs is measured.
    specs = (Spec(external_id=f"c{n}", name=f"c{n}", source=source, files=(file,)) for n in range(customers))
    before, memory, ended = allocated(), 0.0, 0
    meter.phase = "start"
    async with (
        Session(
            KEY, "https://api.test/api/v1", transport=Wire(pipe), limit=REQUESTS * concurrency
        ) as session,
        Journal(folder / "fleet.db", lease=1e6, connect=connect) as journal,
        Fleet(session, journal=journal, to=folder / "out", concurrency=concurrency) as fleet,
    ):
        async for outcome in fleet.run(specs):
            ended += 1
            if meter.phase == "start":
                meter.phase = "steady"
            if ended == max(1, concurrency // 20):
                memory = allocated() - before
                if end == "drain":
                    meter.phase = "drain"
                    await fleet.drain()
                elif end != "complete":
                    meter.phase = "cancel"
                    break
            assert isinstance(outcome, Delivered) or end == "drain", outcome
        if meter.phase != "cancel":
            meter.phase = "exit"
    return {"memory": memory, "virtual": asyncio.get_running_loop().time()}


def one(customers: int, concurrency: int, end: End) -> None:
    """Measure one fleet, after a small fleet that loads modules and allocates shared objects."""
    os.fsync = lambda file: None
    writer._one_thread = lambda: Inline(1)  # pyright: ignore[reportPrivateUsage]
    processes = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["XDG_STATE_HOME"] = name
        result: dict[str, float] = {}
        for number, (size, at_once) in enumerate(((50, 50), (customers, concurrency))):
            (folder / f"{number}").mkdir()
            (folder / f"{number}/contacts.csv").write_text(ROWS, encoding="utf-8")
            pipe, theirs = processes.Pipe()
            simulator = processes.Process(target=simulate, args=(theirs,), daemon=True)
            simulator.start()
            meter.turns.clear()
            gc.collect()
            gc.freeze()
            meter.pause = 0.0
            if number and end == "trace":
                tracemalloc.start()
            began = meter.cpu()
            with asyncio.Runner(loop_factory=meter.loop) as runner:
                result = runner.run(
                    drive(size, at_once, "cancel" if not number else end, folder / f"{number}", pipe)
                )
            result["cpu"] = meter.cpu() - began
            pipe.send(None)
            result["requests"], result["refused"] = pipe.recv()
        result["journal"] = sum(each.stat().st_size for each in folder.glob("1/fleet.db*"))
    everything = sorted(seconds for turns in meter.turns.values() for seconds in turns) or [0.0]
    result |= {phase: max(meter.turns.get(phase, (0.0,))) for phase in PHASES}
    result |= {"99.9": everything[int(len(everything) * 0.999)], "gc": meter.pause}
    print(json.dumps(result))


def measured(customers: int, concurrency: int, end: End) -> dict[str, float]:
    """Measure one fleet in a separate process."""
    command = [sys.executable, __file__, "--one", str(customers), str(concurrency), end]
    ended = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    result: dict[str, float] = json.loads(ended.stdout)
    assert not result["refused"], result
    return result


def row(size: int) -> str:
    whole, drained, cancelled = (measured(size, size, end) for end in ("complete", "drain", "cancel"))
    few = min(DEFAULT_CONCURRENCY, size // 2)
    waits = measured(size, few, "drain")
    running = measured(size, size, "trace")["memory"] / size
    waiting = (measured(size, few, "trace")["memory"] - few * running) / (size - few)
    fleets = (whole, drained, cancelled, waits)
    phases = {phase: max(each[phase] for each in fleets) for phase in PHASES}
    cells = [
        f"{size:,}",
        f"{whole['cpu']:.1f}",
        f"{1000 * whole['cpu'] / size:.1f}",
        f"{waiting / 1000:.1f}",
        f"{running / 1000:.1f}",
        f"{whole['journal'] / 1000 / size:.1f}",
        f"{whole['requests'] / size:.1f}",
        f"{1000 * max(phases.values()):.0f}",
        f"{1000 * max(each['99.9'] for each in fleets):.1f}",
        f"{1000 * max(waits[phase] for phase in PHASES):.0f}",
        *(f"{1000 * phases[phase]:.0f}" for phase in PHASES),
        f"{1000 * max(each['gc'] for each in fleets):.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 3000, 10_000])
    parser.add_argument("--quick", action="store_true", help="100 and 300 customers")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        one(int(asked.one[0]), int(asked.one[1]), cast(End, asked.one[2]))
        return
    columns = [
        "customers",
        "CPU, s",
        "CPU, ms a customer",
        "waiting, kB a customer",
        "running, kB a customer",
        "journal, kB a customer",
        "requests a customer",
        "busy at worst, ms",
        "at 99.9 %, ms",
        "with 500 at once, ms",
        *PHASES,
        "gc",
    ]
    print(f"| {' | '.join(columns)} |")
    print("|---" * len(columns), "|", sep="")
    for size in [100, 300] if asked.quick else asked.sizes:
        print(row(size), flush=True)


if __name__ == "__main__":
    main()
