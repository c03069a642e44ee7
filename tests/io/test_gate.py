"""The queue of a gate: order, cancellation and closing. Each caller gets a slot, and no slot is lost."""

import asyncio
import gc
import os
import weakref
from itertools import pairwise
from random import Random

import pytest
from gateload import Load, most_in_a_window, run
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncmig import AuthError, Gate, InvalidInput, Lane, SessionClosed, WaitTooLong
from asyncmig.simulator.server.limits import SlidingLog

pytestmark = [pytest.mark.looptime, pytest.mark.usefixtures("task_factory")]


def now() -> float:
    return asyncio.get_running_loop().time()


async def use(gate: Gate, seconds: float = 0.0, **options: object) -> float:
    """Take a slot, hold it, and return when it was granted."""
    async with gate.slot(**options) as slot:  # type: ignore[arg-type]
        at = now()
        await asyncio.sleep(seconds)
        slot.answered(200)
    return at


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def tasks() -> set[str]:
    return {task.get_name() for task in asyncio.all_tasks() if "gate" in task.get_name()}


async def test_a_slot_is_free_a_window_after_its_answer() -> None:
    gate = Gate(limit=1, window=60.0, rng=Random(1))
    await use(gate, seconds=5.0)
    assert await use(gate) == pytest.approx(65.05)


async def test_an_unanswered_slot_is_free_a_window_after_its_block_ended() -> None:
    gate = Gate(limit=1, rng=Random(1))

    async def fail() -> None:
        async with gate.slot():
            await asyncio.sleep(30.0)
            raise OSError("reset")

    with pytest.raises(OSError, match="reset"):
        await fail()
    assert await use(gate) == pytest.approx(90.05)


async def test_an_unsent_slot_is_free_at_once() -> None:
    gate = Gate(limit=1, rng=Random(1))
    async with gate.slot() as slot:
        slot.unsent()
        slot.unsent()
    assert await use(gate) == pytest.approx(0.02)


async def test_lanes_have_strict_priority_except_for_every_twentieth_grant() -> None:
    gate = Gate(limit=1, window=1.0, rng=Random(1))
    order: list[str] = []

    async def one(lane: Lane) -> None:
        await use(gate, lane=lane)
        order.append(lane.name)

    await use(gate)
    async with asyncio.TaskGroup() as group:
        for lane in (Lane.POLL, Lane.WORK, Lane.DECIDE):
            for _ in range(25):
                group.create_task(one(lane))
    assert order[:18] == ["DECIDE"] * 18
    assert order[18] == "POLL"
    assert [name for name in order if name != "POLL"] == ["DECIDE"] * 25 + ["WORK"] * 25
    assert order.index("POLL", 19) == 38


async def test_a_lower_rank_goes_first_and_equal_ranks_are_first_come_first_served() -> None:
    gate = Gate(limit=1, window=1.0, rng=Random(1))
    order: list[tuple[float, int]] = []

    async def one(rank: float, number: int) -> None:
        await use(gate, rank=rank)
        order.append((rank, number))

    await use(gate)
    async with asyncio.TaskGroup() as group:
        for number, rank in enumerate([0.0, -5.0, 0.0, -9.0, -5.0]):
            group.create_task(one(rank, number))
    assert order == [(-9.0, 3), (-5.0, 1), (-5.0, 4), (0.0, 0), (0.0, 2)]


async def test_a_refused_request_keeps_its_place_in_the_queue() -> None:
    gate = Gate(limit=5, window=10.0, rng=Random(1))
    async with gate.slot() as refused:
        refused.answered(429)
    others = [asyncio.create_task(use(gate)) for _ in range(3)]
    await settle()
    again = asyncio.create_task(use(gate, ticket=refused.ticket))
    assert await again < min(await asyncio.gather(*others))


@pytest.mark.parametrize("granted_first", [False, True])
async def test_a_cancelled_waiter_does_not_delay_the_next_one(granted_first: bool) -> None:
    gate, loop = Gate(limit=1, rng=Random(1)), asyncio.get_running_loop()
    await use(gate)
    first, second = asyncio.create_task(use(gate)), asyncio.create_task(use(gate))
    await settle()
    loop.call_at(60.05 if granted_first else 1.0, first.cancel)
    assert await second == pytest.approx(60.05, abs=0.05)
    assert first.cancelled()
    assert not tasks()


async def test_the_slot_of_a_cancelled_holder_is_free_after_a_window() -> None:
    gate = Gate(limit=1, rng=Random(1))
    holder = asyncio.create_task(use(gate, seconds=100.0))
    await asyncio.sleep(10.0)
    holder.cancel()
    assert await use(gate) == pytest.approx(70.05)


@pytest.mark.parametrize("when", [0.5, 1.5, 2.2, 3.0, 9.0])
async def test_a_caller_that_is_cancelled_during_a_hold_or_a_probe_does_not_block_others(when: float) -> None:
    gate = Gate(limit=10, rng=Random(1))
    async with gate.slot() as slot:
        slot.answered(429)
    first = asyncio.create_task(use(gate, seconds=5.0))
    second = asyncio.create_task(use(gate))
    await asyncio.sleep(when)
    first.cancel()
    async with asyncio.timeout(120.0):
        await second
    assert not tasks()


@pytest.mark.parametrize("error", [None, AuthError("GET", "/sources", 401, "revoked")])
async def test_close_ends_waiting_and_later_calls(error: AuthError | None) -> None:
    gate = Gate(limit=1, rng=Random(1))
    await use(gate)
    waiting = [asyncio.create_task(use(gate)) for _ in range(3)]
    await settle()
    gate.close(error)
    kind = AuthError if error else SessionClosed
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(result) for result in results] == [kind] * 3
    assert len({id(result) for result in results}) == 3  # each has its own traceback
    with pytest.raises(kind):
        await use(gate)
    await settle()
    assert not tasks()


async def test_the_limit_may_change_while_callers_wait() -> None:
    gate = Gate(limit=1, rng=Random(1))
    await use(gate)
    waiting = [asyncio.create_task(use(gate)) for _ in range(4)]
    await settle()
    gate.limit = 3
    at = sorted(await asyncio.gather(*waiting))
    assert at[1] < 1.0
    assert at[2] == pytest.approx(60.05)


async def test_a_wait_that_would_be_too_long_is_refused_before_it_begins() -> None:
    gate = Gate(limit=1, rng=Random(1))
    await use(gate)
    with pytest.raises(WaitTooLong) as refused:
        await use(gate, max_wait=10.0)
    assert refused.value.wait == pytest.approx(60.05)
    assert now() < 1.0
    assert await use(gate, max_wait=61.0) == pytest.approx(60.05)


@pytest.mark.parametrize("ahead", [0, 1, 3, 10])
async def test_the_estimate_of_a_wait_is_accurate_to_one_second(ahead: int) -> None:
    gate = Gate(limit=3, rng=Random(1))
    for _ in range(3):
        await use(gate)
    others = [asyncio.create_task(use(gate)) for _ in range(ahead)]
    await settle()
    estimate = gate.wait_estimate()
    assert await use(gate) == pytest.approx(now() + estimate, abs=1.0) or now() == pytest.approx(
        estimate, abs=1.0
    )
    await asyncio.gather(*others)


async def test_recent_requests_of_another_process_count() -> None:
    gate = Gate(limit=3, recent=[10.0, 0.0, 999.0], rng=Random(1))
    assert gate.recent() == pytest.approx([60.0, 10.0, 0.0])
    assert await use(gate) == pytest.approx(0.05)
    assert await use(gate) == pytest.approx(50.05)
    assert gate.statistics().used == 3


async def test_retry_after_holds_all_requests() -> None:
    gate = Gate(rng=Random(1))
    async with gate.slot() as slot:
        slot.answered(429, retry_after=20.0)
    assert gate.statistics().held_until == pytest.approx(20.0)
    assert await use(gate) == pytest.approx(20.0)


@pytest.mark.parametrize(("options", "field"), [({"limit": 0}, "limit"), ({"window": 0.0}, "window")])
async def test_a_limit_or_window_of_zero_is_refused(options: dict[str, float], field: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        Gate(**options)  # type: ignore[arg-type]
    assert refused.value.field == field


@settings(deadline=None, max_examples=40)
@given(data=st.data())
async def test_no_window_can_contain_more_arrivals_than_the_limit(data: st.DataObject) -> None:
    """Count the arrivals independently, for any latencies, losses and cancellations."""
    limit = data.draw(st.integers(1, 6))
    gate, rng = Gate(limit=limit, window=10.0, rng=Random(1)), Random(data.draw(st.integers(0, 10**6)))
    spans: list[tuple[float, float]] = []
    fates = data.draw(
        st.lists(
            st.tuples(
                st.floats(0, 30), st.sampled_from(["answer", "lose", "cancel", "leave"]), st.floats(0, 20)
            ),
            min_size=1,
            max_size=40,
        )
    )
    began = now()

    async def one(arrives: float, fate: str, latency: float) -> None:
        await asyncio.sleep(arrives)
        sent = None
        try:
            async with gate.slot() as slot:
                if fate == "leave":
                    slot.unsent()
                    return
                sent = now()
                await asyncio.sleep(latency)
                if fate == "lose":
                    raise ConnectionError
                slot.answered(200)
        except ConnectionError:
            pass
        finally:
            if sent is not None:
                spans.append((sent, now()))

    running = [asyncio.create_task(one(*fate)) for fate in fates]
    for task, (arrives, fate, latency) in zip(running, fates, strict=True):
        if fate == "cancel":
            asyncio.get_running_loop().call_later(arrives + rng.uniform(0, latency + 5), task.cancel)
    await asyncio.gather(*running, return_exceptions=True)
    assert most_in_a_window(spans, 10.0) <= limit
    assert gate.statistics().waiting == {"DECIDE": 0, "WORK": 0, "POLL": 0}
    assert now() - began < 30 + 25 + 10.1 * (len(fates) / limit + 1) + 20
    await settle()
    assert not tasks()


@pytest.mark.parametrize("seed", range(int(os.environ.get("GATE_SEEDS", "20"))))
def test_many_cancellations_do_not_slow_the_other_callers(seed: int) -> None:
    """Half of 2,000 callers are cancelled at random times. The others are served at the full rate."""

    async def main() -> tuple[Load, dict[str, int], set[str]]:
        rng = Random(seed)
        gate, load = Gate(rng=rng), Load(SlidingLog(100), rng)
        running = [asyncio.create_task(load.call(gate)) for _ in range(2000)]
        loop = asyncio.get_running_loop()
        for task in rng.sample(running, 1000):
            loop.call_at(rng.uniform(0.0, 700.0), task.cancel)
        await asyncio.gather(*running, return_exceptions=True)
        return load, gate.statistics().waiting, tasks()

    load, waiting, left = run(main())
    assert load.refused == 0
    assert len(load.done_at) >= 1000
    assert max(load.done_at) < 60.4 * ((len(load.spans) - 1) // 100) + 6.0
    assert set(waiting.values()) == {0}
    assert not left


def test_cancelled_waiters_are_released_from_memory() -> None:
    """The gate keeps few references to cancelled waiters, even if it grants no slot."""

    async def main() -> int:
        gate = Gate(limit=1, rng=Random(1))
        async with gate.slot() as slot:
            refs = []
            for _ in range(20):
                waiting = [asyncio.create_task(use(gate)) for _ in range(100)]
                refs += [weakref.ref(task) for task in waiting]
                await settle()
                for task in waiting[1:]:
                    task.cancel()
                await settle()
            assert gate.statistics().waiting["WORK"] == 20
            del waiting, task
            gc.collect()
            slot.answered(200)
            gate.close()
            return sum(ref() is not None for ref in refs)

    assert run(main()) < 300


async def test_a_closed_coroutine_leaves_the_queue() -> None:
    gate = Gate(limit=1, rng=Random(1))
    await use(gate)
    waiting = use(gate)
    waiting.send(None)
    waiting.close()
    assert gate.statistics().waiting["WORK"] == 0
    assert await use(gate) == pytest.approx(60.05)


async def test_no_task_remains_when_no_caller_waits() -> None:
    gate = Gate(limit=100, rng=Random(1))
    async with gate.slot() as slot:
        slot.answered(429)
    await use(gate)  # the accepted probe creates a bucket
    bucket = [asyncio.create_task(use(gate)) for _ in range(3)]
    await settle()
    for task in bucket:
        task.cancel()
    await settle()
    assert not tasks()
    assert await use(gate) < 200.0
    assert not tasks()


async def test_a_closed_gate_ends_many_waits_a_few_in_each_turn_of_the_loop() -> None:
    gate = Gate(limit=1)
    await use(gate)
    waiting = [asyncio.create_task(use(gate)) for _ in range(300)]
    await asyncio.sleep(1.0)
    gate.close()
    for task in waiting[100:200]:
        task.cancel()
    ended = [0]
    while not all(task.done() for task in waiting):
        await asyncio.sleep(0)
        ended.append(sum(task.done() and not task.cancelled() for task in waiting))
    assert max(after - before for before, after in pairwise(ended)) <= 20
    assert [task.cancelled() for task in waiting] == [False] * 100 + [True] * 100 + [False] * 100
    assert all(isinstance(task.exception(), SessionClosed) for task in (*waiting[:100], *waiting[200:]))
    assert set(gate.statistics().waiting.values()) == {0}
