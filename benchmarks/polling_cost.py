"""The cost of the poll schedule with 10,000 runs: time of a decision, memory of a waiting run, lag of the loop.

    python benchmarks/polling_cost.py

The lag is the longest one in the best of five seconds. It is compared with the lag of an idle loop: on a busy
machine, both are caused by the machine and not by the schedule.
"""

import asyncio
import gc
import time
import tracemalloc
from collections.abc import Callable
from contextlib import aclosing
from functools import partial
from random import Random
from statistics import fmean

from asyncmig._core.age_buckets import PolledRun
from asyncmig._core.lifecycle import Phase
from asyncmig._core.polls import PollSchedule
from asyncmig._io.gate import Gate, Slot
from asyncmig._io.poller import Poller, Reading
from asyncmig.companies.routes import IMPORT

__all__ = ["cost"]

PACE = 0.6


def decision_time(n: int = 10_000, calls: int = 3000) -> tuple[float, float]:
    """Return the seconds of `next` for `n` runs of all ages: the median, and the mean of the fastest nine tenths."""
    rng, schedule = Random(1), PollSchedule[int]()
    for run in range(n):
        started = -rng.uniform(0, 7000)
        polled = PolledRun(run, max(started, -rng.uniform(30, 900)), lifecycle=IMPORT, started=started)
        polled.last_seen = polled.answered_at
        schedule.add(polled, 0.0)
    now, spent = 60.0, list[float]()
    schedule.next_at(now)  # all runs pass their floor now, and not one by one
    for _ in range(calls):
        begun = time.perf_counter()
        run = schedule.next(now, pace=PACE)
        spent.append(time.perf_counter() - begun)
        assert run is not None
        phase = Phase.TERMINAL if rng.getrandbits(4) == 0 else Phase.ACTIVE
        schedule.observed(run, now, phase, sent=now)
        schedule.reschedule(run, now)
        now += PACE
    spent.sort()
    return spent[calls // 2], fmean(spent[: calls * 9 // 10])


async def size(
    make: Callable[[int], asyncio.Task[object]], n: int
) -> tuple[list[asyncio.Task[object]], float]:
    """Return `n` waiting tasks, and the bytes of one of them."""
    gc.collect()
    tracemalloc.start()
    tasks = [make(number) for number in range(n)]
    await asyncio.sleep(0.5)
    taken = tracemalloc.get_traced_memory()[0] / n
    tracemalloc.stop()
    return tasks, taken


async def lag() -> float:
    """Return the longest lag of the loop in the best of five seconds."""
    loop, worst = asyncio.get_running_loop(), list[float]()
    for _ in range(5):
        stop, longest = loop.time() + 1.0, 0.0
        while (begun := loop.time()) < stop:
            await asyncio.sleep(0.005)
            longest = max(longest, loop.time() - begun - 0.005)
        worst.append(longest)
    return min(worst)


async def alive(n: int = 10_000) -> tuple[float, float, float, float]:
    """Return the bytes of a waiting run with and without its task, and the lag of the loop without and with runs."""

    async def read(slot: Slot) -> Reading[None]:
        await asyncio.sleep(0.1)
        slot.answered(200)
        return Reading(status="running", progress=None, value=None)

    def watch(poller: Poller, gate: Gate, run: int) -> asyncio.Task[object]:
        started = asyncio.get_running_loop().time() - 60.0
        one = poller.watch(run, gate=gate, read=read, lifecycle=IMPORT, started=started)
        return asyncio.create_task(one.wait())

    idle = await lag()
    async with aclosing(Poller()) as poller:
        gate = Gate(limit=6000)  # as with a clock of 60 times the speed
        tasks, bare = await size(lambda _: asyncio.create_task(asyncio.Event().wait()), n)
        for task in tasks:
            task.cancel()
        waiting, whole = await size(partial(watch, poller, gate), n)
        await asyncio.sleep(1.0)
        busy = await lag()
    await asyncio.gather(*waiting, return_exceptions=True)
    return whole, whole - bare, idle, busy


def cost() -> list[tuple[str, bool]]:
    decision, mean = min(decision_time() for _ in range(5))
    whole, added, idle, busy = asyncio.run(alive())
    print(f"\ncost at 10,000 runs: a decision {decision * 1e6:.0f} us (mean {mean * 1e6:.0f} us);")
    print(f"  a waiting run {whole / 1000:.1f} kB with its task, {added / 1000:.1f} kB without;")
    print(f"  lag {busy * 1e3:.1f} ms (without runs {idle * 1e3:.1f} ms)")
    return [
        (f"a decision among 10,000 runs takes {decision * 1e6:.0f} us, at most 50", decision <= 50e-6),
        (f"a waiting run takes {whole / 1000:.1f} kB, at most 4", whole <= 4000),
        (f"the loop lags {busy * 1e3:.0f} ms, less than 50", busy < 0.05),
    ]


if __name__ == "__main__":
    for text, reached in cost():
        print(f"  {'reached' if reached else 'MISSED '}  {text}")
