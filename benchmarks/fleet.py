"""A whole fleet with one budget for the key: python benchmarks/fleet.py [--customers 300] [--seeds 3]

The full stack runs on a virtual clock. Client and simulator communicate over loopback in one process, and the clock
jumps from timer to timer. All requests of the key share 100 requests a minute (`scope="key"`).

Rows: asyncmig; asyncmig without lanes and ranks (first come, first served); and a client that is written by hand
with aiohttp, one `AsyncLimiter(100, 60)` for all requests, a semaphore, retries, and `while True: sleep(2)`.
Durations either grow with the size of the files, so that a client can start the longest run first, or do not depend
on it.

The lower bound of the makespan is that of a scheduler that knows every duration and polls each run once, at its end.
Customer i needs a_i requests until its import is started, runs for d_i, and then needs b_i requests (one read, its
downloads). Each request takes one slot: `LIMIT` slots at once, then `LIMIT` a minute. For any x, take the customers
with d_i >= x. When the last of them is started, all their a_i requests have been sent, and at least x passes until
its b_i requests can be sent. So no schedule ends before

    max over x of  slot(sum of a_i over d_i >= x) + x + b,  and  slot(sum of all a_i + b_i),

where slot(n) is the time of the n-th request (Jackson's rule for one machine with delivery times, 1955).
"""

import argparse
import asyncio
import csv
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from statistics import mean

import aiohttp
import looptime
from aiolimiter import AsyncLimiter

from asyncmig import Fleet, Gate, MemoryJournal, Session, Slot, Spec
from asyncmig.simulator import SCHEMAS, SOURCES, Plan, RunDurations, World, generate, serve
from asyncmig.simulator.companies import runs
from asyncmig.simulator.server.limits import SlidingLog

LIMIT, WINDOW, SPACING = 100, 60.0, 0.6
KEY = "a-key-for-the-benchmark"
Done = Callable[[], None]
Client = Callable[[list[Spec], str, Path, Done], Awaitable[None]]


@dataclass(frozen=True, kw_only=True)
class Durations(RunDurations):
    """Durations that depend only on seed and rows, so that they are the same for every client."""

    seed: int = 0

    def draw(self, rows: int, rng: Random) -> tuple[float, float]:
        return super().draw(rows, Random(f"{self.seed}/{rows}"))


@dataclass
class Result:
    makespan: float
    completion: float
    refused: int
    polls: float


async def ours(specs: list[Spec], url: str, out: Path, done: Done) -> None:
    async with (
        Session(KEY, url, scope="key", rng=Random(1)) as session,
        Fleet(session, journal=MemoryJournal(), to=out, decide="approve") as fleet,
    ):
        async for _ in fleet.run(specs):
            done()


async def first_come_first_served(specs: list[Spec], url: str, out: Path, done: Done) -> None:
    """Run asyncmig without lanes and ranks."""
    slot = Gate.slot

    def plain(gate: Gate, *, ticket: int | None = None, **_: object) -> Slot:
        return slot(gate, ticket=ticket)

    Gate.slot = plain  # type: ignore[method-assign, assignment]
    try:
        await ours(specs, url, out, done)
    finally:
        Gate.slot = slot  # type: ignore[method-assign]


class VirtualLimiter(AsyncLimiter):
    """aiolimiter for a virtual clock. Otherwise a timer that fires slightly early is set again without end."""

    def _leak(self) -> None:
        super()._leak()
        self._level = max(0.0, self._level - 1e-9)


async def by_hand(specs: list[Spec], url: str, out: Path, done: Done, *, at_once: int = 50) -> None:
    """Use a limiter, a semaphore, retries and sleep(2), as code without asyncmig does."""
    limiter, places = VirtualLimiter(LIMIT, WINDOW), asyncio.Semaphore(at_once)
    key = {"x-api-key": KEY}
    async with aiohttp.ClientSession() as http:

        async def call(method: str, path: str, body: object = None) -> dict[str, object]:
            while True:
                async with limiter, http.request(method, url + path, json=body, headers=key) as response:
                    if response.status != 429:
                        return await response.json(content_type=None) if path[-4:] != ".csv" else {}
                await asyncio.sleep(2)

        async def one(spec: Spec) -> None:
            async with places:
                body = {"name": spec.name, "source": spec.source, "external_id": spec.external_id}
                made = await call("POST", "/companies", body)
                base = f"/companies/{made['company']['id']}"  # type: ignore[index]
                refs = []
                for path in spec.files:
                    content = path.read_bytes()
                    asked = {"name": path.name, "content_type": "text/csv", "size": len(content)}
                    target = await call("POST", f"{base}/uploads", asked)
                    headers = {"Content-Type": "text/csv"}
                    async with http.put(str(target["upload_url"]), data=content, headers=headers):
                        pass
                    refs.append({"name": path.name, "upload_ref": target["upload_ref"]})
                started = {"files": refs, "idempotency_key": spec.external_id}
                run = await call("POST", f"{base}/imports", started)
                while True:
                    state = await call("GET", f"{base}/imports/{run['run_id']}")
                    if state["status"] in ("completed", "failed", "canceled"):
                        break
                    await asyncio.sleep(2)
                if state["status"] == "completed":
                    await call("GET", f"{base}/export.csv")
                done()

        await asyncio.gather(*(one(spec) for spec in specs))


def bound(specs: list[Spec], plans: list[Plan], pace: Durations) -> float:
    """Return the lower bound of the makespan, which the docstring of this module derives."""
    jobs = []
    for spec, plan in zip(specs, plans, strict=True):
        delivered = plan.outcome == "delivered"
        jobs.append(
            (sum(pace.draw(plan.rows_in if delivered else 0, Random())), len(spec.files) + 2, 1 + delivered)
        )
    jobs.sort(reverse=True)
    best = slot(sum(before + after for _, before, after in jobs))
    sent = 0
    for duration, before, after in jobs:
        sent += before
        best = max(best, slot(sent) + duration + slot(after))
    return best


def slot(number: int) -> float:
    """Return when the n-th request can be sent: `LIMIT` requests at once, then `LIMIT` in each window."""
    return WINDOW * ((number - 1) // LIMIT)


async def measure(client: Client, specs: list[Spec], pace: Durations, folder: Path) -> Result:
    world = World(
        key=KEY,
        sources=SOURCES,
        schemas=SCHEMAS,
        seed=pace.seed,
        scope="key",
        pace=pace,
        limit=lambda: SlidingLog(LIMIT, WINDOW),
    )
    loop = asyncio.get_running_loop()
    began, ends = loop.time(), []
    async with serve(world) as serving:
        await client(specs, serving.base_url, folder, lambda: ends.append(loop.time() - began))
    ledger = world.ledger
    return Result(loop.time() - began, mean(ends), ledger.over_the_limit, ledger.poll_share)


def read(folder: Path) -> list[Spec]:
    ids = {name: each for each, name in SOURCES.items()}
    with (folder / "customers.csv").open(encoding="utf-8", newline="") as file:
        return [
            Spec(
                external_id=row["external_id"],
                name=row["name"],
                source=ids[row["source"]],
                files=tuple(sorted((folder / row["external_id"]).glob("*.csv"))),
            )
            for row in csv.DictReader(file)
        ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--customers", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="60 customers, one seed")
    asked = parser.parse_args()
    customers, seeds = (60, 1) if asked.quick else (asked.customers, asked.seeds)
    runs.PARKS_ABOVE = 1.0  # runs ask for no decisions: they would change the comparison
    print(f"{customers} customers, one budget of {LIMIT} requests a minute, mean of {seeds} seeds\n")
    print("| durations | client | makespan, s | / bound | mean completion, s | polls | 429s |")
    print("|---|---|---|---|---|---|---|")
    clients: list[tuple[str, Client]] = [
        ("ours", ours),
        ("ours, first come first served", first_come_first_served),
        ("by hand, behind aiolimiter", by_hand),
        ("by hand, 150 at once", partial(by_hand, at_once=150)),
    ]
    for title, per_row, base, sigma in (("grow with size", 6.0, 60.0, 0.1), ("unknown", 0.0, 500.0, 0.6)):
        for name, client in clients:
            row(title, name, client, customers, seeds, (per_row, base, sigma))


def row(
    title: str, name: str, client: Client, customers: int, seeds: int, shape: tuple[float, float, float]
) -> None:
    results, bounds = [], []
    for seed in range(seeds):
        pace = Durations(per_row=shape[0], base=shape[1], sigma=shape[2], seed=seed)
        with tempfile.TemporaryDirectory() as folder:
            plans = generate(Path(folder), customers=customers, seed=seed)
            specs = read(Path(folder))
            bounds.append(bound(specs, plans, pace))
            loop = looptime.new_event_loop()
            try:
                results.append(loop.run_until_complete(measure(client, specs, pace, Path(folder) / "out")))
            finally:
                loop.close()
    makespan = mean(result.makespan for result in results)
    print(
        f"| {title} | {name} | {makespan:.0f} | {makespan / mean(bounds):.2f} "
        f"| {mean(r.completion for r in results):.0f} | {mean(r.polls for r in results):.0%} "
        f"| {mean(r.refused for r in results):.0f} |",
        flush=True,
    )


if __name__ == "__main__":
    main()
