"""Gates of several processes share one budget on a virtual clock: order, cancellation and outages."""

import asyncio
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from random import Random

import pytest
from gateload import Load, most_in_a_window
from sharedstore import Store

from asyncmig import Gate, Lane, SessionClosed, WaitTooLong
from asyncmig.distributed.budget_store import BudgetReply, SharedBudgets, SlotReport
from asyncmig.distributed.shared_dispatcher import SharedDispatcher
from asyncmig.events import AttemptFailed, Events, Held, SharedWindowFound, SharedWindowLost
from asyncmig.simulator.server.limits import SlidingLog

pytestmark = [pytest.mark.looptime, pytest.mark.usefixtures("task_factory")]


def now() -> float:
    return asyncio.get_running_loop().time()


def gate(store: Store, *, limit: int = 100, events: Events | None = None, seed: int = 1) -> Gate:
    shared = SharedBudgets(window=store, account="x", timeout=60.0)
    dispatcher = partial(SharedDispatcher, shared=shared)
    return Gate(limit=limit, rng=Random(seed), name="GET /x", events=events, dispatcher=dispatcher)


async def use(gate: Gate, seconds: float = 0.0, **options: object) -> float:
    async with gate.slot(**options) as slot:  # type: ignore[arg-type]
        at = now()
        await asyncio.sleep(seconds)
        slot.answered(200)
    return at


def tasks() -> list[str]:
    return [task.get_name() for task in asyncio.all_tasks() if "gate" in task.get_name()]


async def load(store: Store, *, gates: int, each: int, limit: int = 100, server_limit: int = 100) -> Load:
    rng = Random(3)
    load = Load(SlidingLog(server_limit, count_rejects=True), rng)
    shared = [gate(store, limit=limit, seed=n) for n in range(gates)]
    await asyncio.gather(*(load.call(one) for one in shared for _ in range(each)))
    await asyncio.gather(*(one.aclose() for one in shared))
    return load


async def test_four_processes_stay_within_the_limit_and_are_as_fast_as_one() -> None:
    store = Store()
    done = await load(store, gates=4, each=75)
    assert done.refused == 0
    assert most_in_a_window(done.spans, 60.0) <= 100
    assert max(done.done_at) < 130.0
    assert store.exchanges < 9 * 300
    assert tasks() == []


async def test_a_429_holds_all_processes_and_changes_their_slots() -> None:
    events = Events()
    store, held = Store(), []
    one, two = gate(store, events=events), gate(store, events=events)
    await use(two)
    async with one.slot() as slot:
        slot.answered(429, retry_after=20.0)
    with events.subscribe(lambda event: held.append(event) if isinstance(event, Held) else None):
        assert await use(two) >= 20.0
    assert {type(event) for event in held} == {Held}
    assert two.statistics().slots == one.statistics().slots


async def test_four_processes_learn_a_stricter_limit_with_few_refusals() -> None:
    done = await load(Store(), gates=4, each=75, server_limit=60)
    assert done.refused <= 25
    assert max(done.done_at) < 420.0


async def test_lanes_keep_their_order_and_a_cancelled_waiter_takes_no_slot() -> None:
    store = Store()
    mine, other = gate(store, limit=1), gate(store, limit=1)
    await use(mine)
    order: list[str] = []

    async def one(lane: Lane) -> None:
        await use(mine, lane=lane)
        order.append(lane.name)

    waiting = [asyncio.create_task(one(lane)) for lane in (Lane.POLL, Lane.WORK, Lane.DECIDE)]
    await asyncio.sleep(1.0)
    waiting[2].cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert order == ["WORK", "POLL"]
    assert await use(other) == pytest.approx(3 * 60.05, abs=1.0)


@pytest.mark.parametrize("at", [60.06, 60.065, 60.07, 60.075])
async def test_a_caller_that_is_cancelled_around_its_grant_returns_the_slot(at: float) -> None:
    store = Store()
    mine, other = gate(store, limit=1), gate(store, limit=1)
    await use(mine)
    waiter = asyncio.create_task(use(mine))
    asyncio.get_running_loop().call_at(at, waiter.cancel)
    await asyncio.wait({waiter})
    until = 66.0 if waiter.cancelled() else 127.0
    assert await use(other) < until


async def test_the_store_is_not_called_while_no_caller_waits() -> None:
    store = Store()
    one = gate(store)
    await use(one)
    await asyncio.sleep(1.0)
    before = store.exchanges
    assert tasks() == []
    await asyncio.sleep(3600.0)
    assert store.exchanges == before


async def test_a_wait_that_would_be_too_long_is_refused() -> None:
    store = Store()
    mine, other = gate(store, limit=1), gate(store, limit=1)
    await use(other)
    waiter = asyncio.create_task(use(mine))
    await asyncio.sleep(1.0)
    with pytest.raises(WaitTooLong):
        await use(mine, max_wait=10.0)
    await waiter


async def test_closing_ends_the_waits_and_leaves_no_task() -> None:
    store = Store()
    one = gate(store, limit=1)
    await use(one)
    waiter = asyncio.create_task(use(one))
    await asyncio.sleep(1.0)
    await one.aclose()
    with pytest.raises(SessionClosed):
        await waiter
    with pytest.raises(SessionClosed):
        await use(one)
    assert tasks() == []


async def test_each_process_uses_its_share_during_an_outage_and_the_store_after_it() -> None:
    store, received = Store(), []
    events = Events()
    gates = [gate(store, seed=n, events=events) for n in range(4)]
    for one in gates * 2:  # after the second call, each knows of all others
        await use(one)
    store.unreachable = True
    rng = Random(1)
    load = Load(SlidingLog(100), rng)
    with events.subscribe(received.append):
        calls = asyncio.gather(*(load.call(one) for one in gates for _ in range(60)))
        await asyncio.sleep(50.0)
        assert 90 <= len(load.done_at) <= 100
        assert {one.statistics().slots for one in gates} == {25}
        store.unreachable = False
        await calls
    assert load.refused == 0
    assert max(load.done_at) < 190.0
    lost = [event for event in received if isinstance(event, SharedWindowLost)]
    assert {(event.slots, event.processes) for event in lost} == {(25, 4)}
    assert sum(isinstance(event, SharedWindowFound) for event in received) == 4
    assert {one.statistics().slots for one in gates} == {100}


async def test_a_process_without_recent_calls_assumes_the_configured_number_of_processes() -> None:
    store = Store(processes=10)
    one = gate(store)
    await use(one)
    await asyncio.sleep(70.0)
    store.unreachable = True
    await use(one)
    assert one.statistics().slots == 10


async def test_a_process_that_never_reached_the_store_uses_the_configured_share() -> None:
    store = Store(processes=10)
    store.unreachable = True
    one, load = gate(store), Load(SlidingLog(100), Random(1))
    calls = [asyncio.create_task(load.call(one)) for _ in range(30)]
    await asyncio.sleep(55.0)
    assert len(load.done_at) == 10
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    before = store.exchanges
    await asyncio.sleep(600.0)
    assert store.exchanges <= before + 1  # no caller waits, so the store is not called


async def test_a_slot_whose_grant_was_lost_is_returned() -> None:
    store = Store()
    one = gate(store, limit=4)
    store.drops_replies = True
    waiting = asyncio.create_task(use(one, seconds=5.0))
    await asyncio.sleep(0.1)
    store.drops_replies = False
    assert await waiting < 1.0  # a slot of its own share
    await asyncio.gather(*(use(one) for _ in range(3)))
    assert now() < 10.0


async def test_sent_requests_are_reported_to_a_store_that_has_lost_its_data() -> None:
    store = Store()
    one = gate(store, limit=5)
    await asyncio.gather(*(use(one) for _ in range(5)))
    store.unreachable = True
    store.forget()
    waiting = asyncio.create_task(use(one))
    await asyncio.sleep(5.0)
    store.unreachable = False
    assert await waiting >= 60.0


async def test_a_process_continues_without_a_store_that_loses_its_data_repeatedly() -> None:
    store = Store(processes=10)
    one = gate(store)
    await use(one)
    store.loses_data = True
    assert await use(one) < 60.0
    exchanges = store.exchanges
    await asyncio.gather(*(use(one) for _ in range(5)))
    assert store.exchanges - exchanges < 100
    assert now() < 120.0
    store.loses_data = False
    await asyncio.sleep(60.0)
    await asyncio.gather(*(use(one) for _ in range(50)))
    assert one.statistics().slots == 100
    assert now() < 260.0


async def test_slots_that_others_used_before_an_outage_count_during_it() -> None:
    store, load = Store(), Load(SlidingLog(100), Random(1))
    one, other = gate(store), gate(store, seed=2)
    await asyncio.gather(*(load.call(one) for _ in range(90)))
    await load.call(other)
    await load.call(one)  # the reply shows that there is another process
    store.unreachable = True
    calls = [asyncio.create_task(load.call(each)) for each in (one, other) for _ in range(60)]
    await asyncio.sleep(50.0)
    assert 92 <= len(load.done_at) <= 100
    assert load.refused == 0
    store.unreachable = False
    await asyncio.gather(*calls)
    assert load.refused == 0
    assert most_in_a_window(load.spans, 60.0) <= 100


async def test_failures_to_reach_the_store_are_reported_at_intervals() -> None:
    store, received, events = Store(), list[object](), Events()
    one = gate(store, limit=1, events=events)
    await use(one)
    store.unreachable = True
    with events.subscribe(received.append):
        waiting = [asyncio.create_task(use(one)) for _ in range(4)]
        await asyncio.gather(*waiting)
    assert len([event for event in received if isinstance(event, SharedWindowLost)]) == 1
    failures = [event for event in received if isinstance(event, AttemptFailed)]
    assert 3 <= len(failures) <= 6
    assert all(later.at - earlier.at >= 15.0 for earlier, later in pairwise(failures))
    assert {event.endpoint for event in failures} == {"shared window of GET /x"}
    await one.aclose()


class ScriptedStore(Store):
    """A store with scripted replies. It records the slot counts that its client reports after a loss."""

    def __init__(self, *replies: BudgetReply) -> None:
        super().__init__()
        self.left, self.used_before = list(replies), list[str]()

    def budgets(self, *args: object, **options: object) -> "ScriptedStore":  # type: ignore[override]
        return self

    async def exchange(self, reports: Sequence[Sequence[SlotReport]], want: str | None) -> list[BudgetReply]:
        self.used_before += [each.slot for each in reports[0] if each.event == "used_before"]
        return [self.left.pop(0) if len(self.left) > 1 else self.left[0]]


async def test_slots_that_were_used_before_two_losses_are_reported_after_each() -> None:
    reply = partial(BudgetReply, slots=100, burst=100, clients=3)
    store = ScriptedStore(
        reply(granted=True, used=10, epoch="a"),
        reply(lost=True, used=1, held=7.0, epoch="b"),
        reply(lost=True, used=1, held=7.0, epoch="c"),
        reply(granted=True, used=10, epoch="c"),
    )
    one = gate(store)
    await use(one)
    await use(one)
    await one.aclose()
    assert store.used_before == ["10", "10"]


async def test_slots_that_others_took_between_two_losses_are_reported_after_the_second() -> None:
    reply = partial(BudgetReply, slots=100, burst=100, clients=3)
    store = ScriptedStore(
        reply(granted=True, used=10, epoch="a"),
        reply(lost=True, used=1, held=7.0, epoch="b"),
        reply(granted=True, used=12, epoch="b"),
        reply(lost=True, used=1, held=7.0, epoch="c"),
        reply(granted=True, used=12, epoch="c"),
    )
    one = gate(store)
    for _ in range(3):
        await use(one)
    await one.aclose()
    assert store.used_before == ["10", "12"]
