"""The gate against servers that count in ways that nobody documented."""

import asyncio
from collections.abc import Callable
from random import Random
from statistics import mean

import pytest
from gateload import Load

from asyncmig import Gate, Lane
from asyncmig.simulator.limits import FixedWindow, RateLimit, SlidingCounter, SlidingLog, TokenBucket

pytestmark = pytest.mark.looptime
Server = Callable[[Random], RateLimit]
DOCUMENTED: dict[str, Server] = {
    "fixed": lambda rng: FixedWindow(100, phase=rng.uniform(0, 60)),
    "fixed, rejects count": lambda rng: FixedWindow(100, phase=rng.uniform(0, 60), count_rejects=True),
    "sliding": lambda rng: SlidingLog(100),
    "sliding, rejects count": lambda rng: SlidingLog(100, count_rejects=True),
    "bucket of 100": lambda rng: TokenBucket(100, burst=100),
}


async def burst(make: Server, count: int, seed: int, **latency: float) -> tuple[float, int]:
    """Make `count` calls at once; return the seconds until the last is done, and the 429s."""
    rng = Random(seed)
    load, gate, began = Load(make(rng), rng, **latency), Gate(rng=rng), asyncio.get_running_loop().time()
    await asyncio.gather(*(load.call(gate) for _ in range(count)))
    return asyncio.get_running_loop().time() - began, load.refused


@pytest.mark.parametrize("count", [50, 100, 300, 1000])
@pytest.mark.parametrize("name", DOCUMENTED)
async def test_where_the_limit_is_the_documented_one_nothing_is_refused(name: str, count: int) -> None:
    took, refused = await burst(DOCUMENTED[name], count, seed=count)
    assert refused == 0
    assert took <= 60.3 * ((count - 1) // 100) + 4.0


async def test_a_lone_burst_of_a_hundred_is_done_at_once() -> None:
    assert (await burst(DOCUMENTED["sliding"], 100, seed=1))[0] < 3.0


@pytest.mark.parametrize("name", DOCUMENTED)
async def test_slow_and_scattered_answers_change_nothing(name: str) -> None:
    assert (await burst(DOCUMENTED[name], 500, seed=2, median=1.0, sigma=1.0))[1] == 0


@pytest.mark.parametrize(
    ("make", "bound", "ratio", "most_refused"),
    [
        (lambda rng: TokenBucket(100, burst=10), 594.0, 1.03, 4.0),
        (lambda rng: SlidingLog(80), 720.0, 1.07, 20.0),
        (lambda rng: SlidingLog(80, count_rejects=True), 720.0, 1.15, 25.0),
        (lambda rng: SlidingCounter(100), 540.0, 1.15, 8.0),
    ],
    ids=["bucket of 10", "true limit 80", "true limit 80, rejects count", "sliding counter"],
)
async def test_a_server_that_is_stricter_is_learnt(
    make: Server, bound: float, ratio: float, most_refused: float
) -> None:
    runs = [await burst(make, 1000, seed) for seed in range(4)]
    assert mean(refused for _, refused in runs) <= most_refused
    assert mean(took for took, _ in runs) <= bound * ratio


@pytest.mark.parametrize("rejects", [False, True])
async def test_three_processes_that_do_not_know_of_one_another_all_end(rejects: bool) -> None:
    rng = Random(4)
    load = Load(SlidingLog(100, count_rejects=rejects), rng)
    gates = [Gate(rng=Random(n)) for n in range(3)]
    async with asyncio.timeout(4 * 3600):
        await asyncio.gather(*(load.call(gate) for gate in gates for _ in range(150)))
    assert len(load.done_at) == 450


async def test_a_neighbour_that_leaves_gives_its_share_back() -> None:
    rng = Random(5)
    server = SlidingLog(100)
    load, gate, neighbour = Load(server, rng), Gate(rng=rng), Gate(limit=60, rng=Random(6))
    await asyncio.gather(
        *(load.call(gate) for _ in range(600)), *(Load(server, rng).call(neighbour) for _ in range(120))
    )
    load.done_at.clear()
    began = asyncio.get_running_loop().time()
    await asyncio.gather(*(load.call(gate) for _ in range(1000)))
    assert asyncio.get_running_loop().time() - began < 1000 * 0.6 * 1.25
    assert gate.statistics().slots > 80


async def test_polls_leave_the_budget_to_work_and_are_not_starved() -> None:
    rng = Random(7)
    load, gate = Load(SlidingLog(100), rng), Gate(rng=rng)
    at: dict[Lane, list[float]] = {lane: [] for lane in Lane}

    async def one(lane: Lane) -> None:
        await load.call(gate, lane)
        at[lane].append(asyncio.get_running_loop().time())

    await asyncio.gather(*(one(lane) for lane in Lane for _ in range(200)))
    assert load.refused == 0
    assert max(at[Lane.DECIDE]) < max(at[Lane.WORK]) < max(at[Lane.POLL])
    assert sum(when < max(at[Lane.WORK]) for when in at[Lane.POLL]) in range(19, 24)
