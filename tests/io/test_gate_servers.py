"""The gate against servers that count requests in different ways. For more seeds: `GATE_SEEDS=20 pytest ...`"""

import asyncio
import os
from collections.abc import Callable
from random import Random
from statistics import mean

import pytest
from gateload import Load, run

from asyncmig import Gate, Lane
from asyncmig.simulator.server.limits import FixedWindow, RateLimit, SlidingCounter, SlidingLog, TokenBucket

SEEDS = int(os.environ.get("GATE_SEEDS", "3"))
Server = Callable[[Random], RateLimit]
DOCUMENTED: dict[str, Server] = {
    "fixed": lambda rng: FixedWindow(100, phase=rng.uniform(0, 60)),
    "fixed, rejects count": lambda rng: FixedWindow(100, phase=rng.uniform(0, 60), count_rejects=True),
    "sliding": lambda rng: SlidingLog(100),
    "sliding, rejects count": lambda rng: SlidingLog(100, count_rejects=True),
    "bucket of 100": lambda rng: TokenBucket(100, burst=100),
}


async def _burst(make: Server, count: int, seed: int, **latency: float) -> tuple[float, int]:
    rng = Random(seed)
    load, gate, began = Load(make(rng), rng, **latency), Gate(rng=rng), asyncio.get_running_loop().time()
    await asyncio.gather(*(load.call(gate) for _ in range(count)))
    return asyncio.get_running_loop().time() - began, load.refused


def burst(make: Server, count: int, seed: int, **latency: float) -> tuple[float, int]:
    """Make `count` calls at once. Return the seconds until the last is done, and the number of 429s."""
    return run(_burst(make, count, seed, **latency))


def _server_for_bound(server: RateLimit) -> RateLimit:
    """Return the server whose bound applies.

    Calls as early as possible are not optimal for a sliding counter, and a fixed window accepts as many calls.
    """
    return FixedWindow(100) if isinstance(server, SlidingCounter) else server


def bound(server: RateLimit, count: int) -> float:
    """Return the earliest end of `count` calls without latency, for a client that knows when the server accepts."""
    now = 0.0
    while True:
        while server.allow(now):
            count -= 1
            if not count:
                return now
        now += 0.05


@pytest.mark.parametrize("count", [50, 100, 300, 1000])
@pytest.mark.parametrize("name", DOCUMENTED)
def test_a_server_with_the_documented_limit_refuses_no_request(name: str, count: int) -> None:
    for seed in range(SEEDS):
        took, refused = burst(DOCUMENTED[name], count, seed)
        assert refused == 0
        assert took <= 60.3 * ((count - 1) // 100) + 6.0


@pytest.mark.parametrize(
    ("make", "ratio"),
    [
        (lambda rng: FixedWindow(100, phase=rng.uniform(0, 60)), 1.08),
        (lambda _: SlidingLog(100), 1.02),
        (lambda _: TokenBucket(100, burst=100), 1.02),
        (lambda _: TokenBucket(100, burst=10), 1.02),
        (lambda _: SlidingLog(80), 1.02),
        (lambda _: SlidingCounter(100), 1.15),
    ],
    ids=["fixed", "sliding", "bucket of 100", "bucket of 10", "true limit 80", "sliding counter"],
)
def test_a_thousand_calls_take_little_longer_than_the_bound(make: Server, ratio: float) -> None:
    ratios = [
        burst(make, 1000, seed)[0] / bound(_server_for_bound(make(Random(seed))), 1000)
        for seed in range(2 * SEEDS)
    ]
    assert mean(ratios) <= ratio


def test_a_single_burst_of_a_hundred_calls_does_not_wait() -> None:
    assert max(burst(DOCUMENTED["sliding"], 100, seed)[0] for seed in range(20)) < 3.0


@pytest.mark.parametrize("name", DOCUMENTED)
def test_slow_answers_cause_no_refusal(name: str) -> None:
    for seed in range(SEEDS):
        assert burst(DOCUMENTED[name], 500, seed, median=1.0, sigma=1.0)[1] == 0


@pytest.mark.parametrize(
    ("make", "most_refused"),
    [
        (lambda _: TokenBucket(100, burst=10), 4.0),
        (lambda _: TokenBucket(100, burst=10, count_rejects=True), 4.0),
        (lambda _: TokenBucket(100, burst=3), 8.0),
        (lambda _: SlidingLog(80), 20.0),
        (lambda _: SlidingLog(80, count_rejects=True), 20.0),
        (lambda rng: FixedWindow(80, phase=rng.uniform(0, 60)), 20.0),
        (lambda _: SlidingCounter(100), 8.0),
    ],
    ids=[
        "bucket of 10",
        "bucket of 10, rejects count",
        "bucket of 3",
        "true limit 80",
        "true limit 80, rejects count",
        "true limit 80, fixed",
        "sliding counter",
    ],
)
def test_the_gate_learns_a_stricter_limit_with_few_refusals(make: Server, most_refused: float) -> None:
    assert mean(burst(make, 1000, seed)[1] for seed in range(3 * SEEDS)) <= most_refused


@pytest.mark.parametrize("count", [50, 100, 300])
@pytest.mark.parametrize("limit", [20, 50])
def test_the_gate_learns_a_much_stricter_limit(limit: int, count: int) -> None:
    for seed in range(SEEDS):
        took, refused = burst(lambda _: SlidingLog(limit, count_rejects=True), count, seed)
        assert refused <= 100
        assert took <= 60.0 * (count / limit) * 1.5 + 120.0


@pytest.mark.parametrize(
    "make",
    [
        lambda _: SlidingLog(100),
        lambda _: SlidingLog(100, count_rejects=True),
        lambda rng: FixedWindow(100, phase=rng.uniform(0, 60), count_rejects=True),
        lambda _: TokenBucket(100, burst=10, count_rejects=True),
        lambda _: SlidingCounter(100, count_rejects=True),
    ],
    ids=[
        "sliding",
        "sliding, rejects count",
        "fixed, rejects count",
        "bucket of 10, rejects count",
        "counter",
    ],
)
def test_three_processes_without_a_shared_window_all_finish(make: Server) -> None:
    async def main(seed: int) -> Load:
        rng = Random(seed)
        load, gates = Load(make(rng), rng), [Gate(rng=Random(f"{seed} {n}")) for n in range(3)]
        async with asyncio.timeout(3600):
            await asyncio.gather(*(load.call(gate) for gate in gates for _ in range(150)))
        return load

    for seed in range(SEEDS):
        load = run(main(seed))
        assert len(load.done_at) == 450
        assert load.refused < 250


def test_one_gate_for_calls_of_all_kinds_causes_no_refusal() -> None:
    """Bursts, single calls and polls share one gate. The server has the documented limit."""

    async def main(seed: int) -> int:
        rng = Random(seed)
        load, gate = Load(DOCUMENTED["fixed, rejects count"](rng), rng), Gate(rng=rng)

        async def later(at: float, lane: Lane) -> None:
            await asyncio.sleep(at)
            await load.call(gate, lane, rank=rng.random())

        await asyncio.gather(
            *(later(0.0, Lane.WORK) for _ in range(150)),
            *(later(rng.uniform(0, 300), rng.choice(list(Lane))) for _ in range(250)),
            *(later(120.0, Lane.WORK) for _ in range(100)),
        )
        return load.refused

    assert [run(main(seed)) for seed in range(SEEDS)] == [0] * SEEDS


@pytest.mark.parametrize("restarted_after", [1.0, 30.0, 59.0])
def test_a_restart_within_a_window_causes_no_refusal_if_recent_answers_are_kept(
    restarted_after: float,
) -> None:
    async def main() -> int:
        rng, loop = Random(1), asyncio.get_running_loop()
        load, first = Load(SlidingLog(100, count_rejects=True), rng), Gate(rng=rng)
        await asyncio.gather(*(load.call(first) for _ in range(100)))
        kept, at = first.recent(), loop.time()
        await asyncio.sleep(restarted_after)
        second = Gate(rng=rng, recent=[age + loop.time() - at for age in kept])
        await asyncio.gather(*(load.call(second) for _ in range(200)))
        return load.refused

    assert run(main()) == 0


@pytest.mark.looptime
async def test_the_gate_uses_the_share_of_another_client_that_has_finished() -> None:
    rng = Random(5)
    server = SlidingLog(100)
    load, gate, other = Load(server, rng), Gate(rng=rng), Gate(limit=60, rng=Random(6))
    await asyncio.gather(
        *(load.call(gate) for _ in range(600)), *(Load(server, rng).call(other) for _ in range(120))
    )
    load.done_at.clear()
    began = asyncio.get_running_loop().time()
    await asyncio.gather(*(load.call(gate) for _ in range(1000)))
    assert asyncio.get_running_loop().time() - began < 1000 * 0.6 * 1.25
    assert gate.statistics().slots > 80


@pytest.mark.looptime
async def test_work_goes_before_polls_and_polls_are_not_starved() -> None:
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
