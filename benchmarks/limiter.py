"""The gate compared with other limiters: makespan and 429s for several kinds of servers, and the cost of a slot.

    python benchmarks/limiter.py [--quick] [--slow] [--seeds N] [--only NAME]

Each client gets the same calls, server and latencies (median 0.15 s) on a virtual clock. After a 429 it does what
the contract says: it waits one to two seconds and tries again. A cell shows the ratio of the makespan to a bound,
and the 429s in brackets. The bound is the makespan of a client without latency that knows the state of the server
and sends as early as possible. With a sliding counter, sending as early as possible is not optimal, so a ratio may
be below 1. Needs the extra `[bench]`.
"""

import argparse
import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from statistics import mean

import limiter_cost
from limiter_clients import CLIENTS, Client
from virtual import run

from asyncmig.simulator.server.limits import FixedWindow, RateLimit, SlidingCounter, SlidingLog, TokenBucket

HOPELESS_429S = 2000
HOPELESS_SECONDS = 3 * 3600.0
SLOW = "throttled-py"
"""Wakes all waiting callers for each free slot. A thousand callers take two minutes. Only with `--slow`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A server and its load."""

    name: str
    server: Callable[[Random, bool], RateLimit]
    """Creates the server. The flag tells whether refused requests count, in cases that depend on it."""
    at_once: int = 1000
    later: int = 0
    """The number of calls that follow one by one, 1.2 a second."""
    processes: int = 1

    def arrivals(self) -> list[float]:
        return [0.0] * self.at_once + [n / 1.2 for n in range(self.later)]


def _phase(rng: Random) -> float:
    return rng.uniform(0.0, 60.0)


SERVERS: list[Case] = [
    Case(name="fixed window", server=lambda rng, _: FixedWindow(100, phase=_phase(rng))),
    Case(
        name="fixed, rejects count",
        server=lambda rng, r: FixedWindow(100, phase=_phase(rng), count_rejects=r),
    ),
    Case(name="sliding log", server=lambda rng, _: SlidingLog(100)),
    Case(name="sliding, rejects count", server=lambda rng, r: SlidingLog(100, count_rejects=r)),
    Case(name="sliding counter", server=lambda rng, _: SlidingCounter(100)),
    Case(name="bucket of 100", server=lambda rng, _: TokenBucket(100, burst=100)),
    Case(name="bucket of 10", server=lambda rng, _: TokenBucket(100, burst=10)),
    Case(
        name="bucket of 10, rejects count", server=lambda rng, r: TokenBucket(100, burst=10, count_rejects=r)
    ),
    Case(name="true limit 80", server=lambda rng, _: SlidingLog(80)),
    Case(name="true limit 80, rejects count", server=lambda rng, r: SlidingLog(80, count_rejects=r)),
]
LOADS: list[Case] = [
    Case(name="100 at once, sliding log", server=lambda rng, _: SlidingLog(100), at_once=100),
    Case(name="300 at once, sliding log", server=lambda rng, _: SlidingLog(100), at_once=300),
    Case(name="300, then 1.2/s, fixed", server=SERVERS[0].server, at_once=300, later=400),
    Case(name="300, then 1.2/s, bucket of 10", server=SERVERS[6].server, at_once=300, later=400),
    Case(name="3 processes, sliding log", server=lambda rng, _: SlidingLog(100), at_once=600, processes=3),
    Case(name="3 processes, rejects count", server=SERVERS[3].server, at_once=600, processes=3),
]


def bound(case: Case, seed: int) -> float:
    """Return when the last call ends for a client without latency that knows when the server accepts a request."""
    server, calls, now = case.server(Random(seed), False), sorted(case.arrivals(), reverse=True), 0.0
    while True:
        while calls[-1] <= now and server.allow(now):
            calls.pop()
            if not calls:
                return now
        now += 0.05


@dataclass(slots=True)
class Result:
    """The counts and times of one run."""

    done: int = 0
    refused: int = 0
    finished_at: float = 0.0
    began: float = field(default_factory=lambda: asyncio.get_running_loop().time())


async def _call(
    client: Client, server: RateLimit, at: float, median: float, rng: Random, result: Result
) -> None:
    loop = asyncio.get_running_loop()

    async def send() -> int:
        latency = median * rng.lognormvariate(0.0, 0.5)
        there = latency * rng.random()
        await asyncio.sleep(there)
        allowed = server.allow(loop.time())
        await asyncio.sleep(latency - there)
        return 200 if allowed else 429

    await asyncio.sleep(at)
    while await client.request(send) == 429:
        result.refused += 1
        if not client.holds:
            await asyncio.sleep(rng.uniform(1.0, 2.0))
    result.done += 1
    result.finished_at = loop.time()


async def _drive(case: Case, make: Callable[[Random], Client], seed: int) -> tuple[float | None, int]:
    """Return the makespan, or None if the run was stopped, and the number of 429s."""
    rng = Random(seed)
    server, clients, result = (
        case.server(Random(seed), True),
        [make(rng) for _ in range(case.processes)],
        Result(),
    )
    calls = [
        asyncio.create_task(_call(clients[n % len(clients)], server, at, 0.15, rng, result))
        for n, at in enumerate(case.arrivals())
    ]
    everything = asyncio.gather(*calls, return_exceptions=True)
    while not everything.done():
        await asyncio.wait([everything], timeout=60.0)
        late = asyncio.get_running_loop().time() - result.began > HOPELESS_SECONDS
        if not everything.done() and (late or result.refused > HOPELESS_429S):
            for call in calls:
                call.cancel()
            await everything
            return None, result.refused
    if failures := [each for each in everything.result() if isinstance(each, BaseException)]:
        raise failures[0]
    return result.finished_at - result.began, result.refused


def cell(case: Case, make: Callable[[Random], Client], seeds: int) -> str:
    """Return the mean ratio and the mean number of 429s of `seeds` runs."""
    runs = [run(_drive(case, make, seed)) for seed in range(seeds)]
    refused = mean(refused for _, refused in runs)
    if any(took is None for took, _ in runs):
        return f"never ends ({refused:.0f}+)"
    ratio = mean((took or 0.0) / max(1.0, bound(case, seed)) for seed, (took, _) in enumerate(runs))
    return f"{ratio:.2f} ({refused:.1f})" if 0 < refused < 10 else f"{ratio:.2f} ({refused:.0f})"


def table(cases: list[Case], clients: dict[str, Callable[[Random], Client]], seeds: int) -> None:
    """Print a table, one row for each client."""
    print("| |", " | ".join(case.name for case in cases), "|")
    print("|---|" + "---|" * len(cases))
    for name, make in clients.items():
        print(f"| {name} |", " | ".join(cell(case, make, seeds) for case in cases), "|", flush=True)
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--quick", action="store_true", help="two seeds, fewer waiters: half a minute; all: about two"
    )
    parser.add_argument(
        "--slow", action="store_true", help="also throttled-py, which takes two minutes a run"
    )
    parser.add_argument("--seeds", type=int, default=0, help="runs behind each number (default 5; quick: 2)")
    parser.add_argument("--only", default="", help="only clients whose name contains this")
    options = parser.parse_args()
    seeds = options.seeds or (2 if options.quick else 5)
    clients = {
        name: make
        for name, make in CLIENTS.items()
        if options.only in name and (name != SLOW or options.slow)
    }
    began = time.perf_counter()
    print(f"Makespan / bound (429s), 1,000 calls at once, mean of {seeds} runs\n")
    table(SERVERS, clients, seeds)
    print("Other loads\n")
    table(LOADS, clients, seeds)
    limiter_cost.report(waiters=20_000 if options.quick else 100_000)
    print(f"\n({time.perf_counter() - began:.0f} s)")


if __name__ == "__main__":
    main()
