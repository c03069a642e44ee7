"""The CPU time and memory of a slot, compared with aiolimiter."""

import asyncio
import gc
import time
import tracemalloc
from collections.abc import Awaitable, Callable
from random import Random

from aiolimiter import AsyncLimiter
from virtual import VirtualLoop

from asyncmig import Gate

__all__ = ["report"]

Use = Callable[[], Awaitable[None]]


def _ours(limit: int) -> Use:
    gate = Gate(limit=limit, rng=Random(1))

    async def use() -> None:
        async with gate.slot() as slot:
            slot.answered(200)

    return use


def _aiolimiter(limit: int) -> Use:
    limiter = AsyncLimiter(limit, 60)

    async def use() -> None:
        async with limiter:
            pass

    return use


def _uncontended(make: Callable[[int], Use], count: int = 50_000) -> float:
    """Return the acquisitions a second of one caller that never has to wait."""
    loop = VirtualLoop()

    async def go() -> float:
        use = make(100)
        began = time.perf_counter()
        for _ in range(count):
            loop.now += 0.7
            await use()
        return count / (time.perf_counter() - began)

    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(go())


def _crowd(make: Callable[[int], Use], count: int) -> tuple[float, float]:
    """Return the bytes of each of `count` waiting tasks, and the seconds until all of them have ended."""
    loop = VirtualLoop()

    async def go() -> tuple[float, float]:
        use = make(100)
        for _ in range(100):
            await use()
        gc.collect()
        tracemalloc.start()
        tasks = [loop.create_task(use()) for _ in range(count)]  # type: ignore[arg-type]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        held = tracemalloc.get_traced_memory()[0] / count
        tracemalloc.stop()
        began = time.perf_counter()
        await asyncio.wait(tasks)
        return held, time.perf_counter() - began

    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(go())


def report(*, waiters: int) -> None:
    """Print the comparison as a table."""
    gc.disable()
    fast = {name: max(_uncontended(make) for _ in range(3)) for name, make in _BOTH.items()}
    crowd = {name: _crowd(make, waiters) for name, make in _BOTH.items()}
    gc.enable()
    print("What it costs\n")
    print("| |", " | ".join(_BOTH), "| ratio |")
    print("|---|---|---|---|")
    (ours, theirs), (our_crowd, their_crowd) = fast.values(), crowd.values()
    print(f"| uncontended, µs a slot | {1e6 / ours:.2f} | {1e6 / theirs:.2f} | {theirs / ours:.2f} |")
    names = (f"{waiters:,} waiters: bytes each", f"{waiters:,} waiters: seconds to drain")
    for name, mine, other in zip(names, our_crowd, their_crowd, strict=True):
        print(f"| {name} | {mine:.4g} | {other:.4g} | {mine / other:.2f} |")


_BOTH: dict[str, Callable[[int], Use]] = {"asyncmig.Gate": _ours, "aiolimiter": _aiolimiter}
