"""Several processes share run slots, and budgets that one request charges together, on a virtual clock."""

import asyncio
from collections.abc import Sequence
from functools import partial
from random import Random

import pytest
from budgetload import CALLS, DOCUMENTED, HOUR, Client, Server, now, use, wrong
from gateload import most_in_a_window, run
from hypothesis import given, settings
from hypothesis import strategies as st
from sharedstore import Store

from asyncmig import Gate
from asyncmig._core.run_table import FORGOTTEN
from asyncmig._io.gate import joined_gate
from asyncmig._io.run_slots import RunSlots
from asyncmig.distributed.budget_store import SharedBudgets
from asyncmig.distributed.shared_dispatcher import SharedDispatcher
from asyncmig.distributed.shared_set import SharedBudgetSet
from asyncmig.events import Events, SharedWindowLost


class Process:
    """The gates of one process that uses a store."""

    def __init__(
        self,
        store: Store,
        *,
        runs: int | None = None,
        events: Events | None = None,
        **limits: tuple[int, float],
    ) -> None:
        shared = SharedBudgets(window=store, account="x", timeout=60.0)
        self.single = {
            name: Gate(
                limit=limit,
                window=window,
                name=name,
                rng=Random(1),
                events=events,
                dispatcher=partial(SharedDispatcher, shared=shared),
            )
            for name, (limit, window) in (limits or DOCUMENTED).items()
        }
        self.runs = RunSlots(runs, events=events)
        self.runs.share(store.runs("x"))
        self._sets: dict[tuple[str, ...], Gate] = {}
        self._factory = partial(SharedBudgetSet, shared=shared)

    def gate(self, *names: str, starts: bool = False) -> Gate:
        if len(names) == 1 and not starts:
            return self.single[names[0]]
        key = (*names, "runs") if starts else names
        if key not in self._sets:
            gates = [self.single[name] for name in names]
            self._sets[key] = joined_gate(gates, runs=self.runs if starts else None, budget_set=self._factory)
        return self._sets[key]

    async def aclose(self) -> None:
        for gate in (*self._sets.values(), *self.single.values()):
            await gate.aclose()
        await self.runs.aclose()


async def close_all(processes: Sequence[Process]) -> None:
    await asyncio.gather(*(process.aclose() for process in processes))
    assert [task.get_name() for task in asyncio.all_tasks() if "asyncmig" in task.get_name()] == []


@pytest.mark.looptime
async def test_a_request_that_waits_for_an_hourly_budget_takes_no_slot_of_the_other_budget() -> None:
    store = Store()
    one, other = (Process(store, reads=(2, 60.0), create=(1, HOUR)) for _ in range(2))
    await use(one.gate("create", "reads"))
    waiting = asyncio.create_task(use(other.gate("create", "reads")))
    for _ in range(4):
        await use(one.single["reads"])
    assert now() < 130.0
    assert await waiting == pytest.approx(HOUR, abs=2.0)
    await close_all([one, other])


@pytest.mark.looptime
@pytest.mark.parametrize("at", [1.0, 60.055, 60.06, 60.065, 60.07, 60.075])
async def test_a_cancelled_request_returns_all_its_slots(at: float) -> None:
    store = Store()
    one, other = (Process(store, a=(1, 60.0), b=(1, 60.0)) for _ in range(2))
    await use(one.gate("a", "b"), seconds=0.0)
    first = asyncio.create_task(use(one.gate("a", "b"), seconds=0.0))
    asyncio.get_running_loop().call_at(at, first.cancel)
    await asyncio.wait({first})
    end = await use(other.gate("a", "b"))
    assert end < (67.0 if first.cancelled() else 127.0)
    await close_all([one, other])


@pytest.mark.looptime
async def test_requests_for_one_budget_do_not_starve_a_request_for_several_budgets() -> None:
    process = Process(Store(), reads=(3, 60.0), writes=(3, 60.0))
    done = asyncio.Event()

    async def send_repeatedly(gate: Gate) -> None:
        while not done.is_set():
            await use(gate, seconds=3.0)

    senders = [
        asyncio.create_task(send_repeatedly(gate)) for gate in process.single.values() for _ in range(8)
    ]
    await asyncio.sleep(100.0)
    assert await use(process.gate("reads", "writes")) < 320.0
    done.set()
    await asyncio.gather(*senders)
    await close_all([process])


@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_no_window_of_any_budget_contains_more_requests_than_its_limit(data: st.DataObject) -> None:
    """Count the requests of each budget over all processes, for any sets, windows, outages and headers."""
    seed = data.draw(st.integers(0, 10**6))
    show = data.draw(st.sampled_from([lambda headers, _: headers, lambda headers, _: None, wrong]))
    calls = data.draw(
        st.lists(
            st.tuples(st.integers(0, 2), st.sampled_from(CALLS), st.floats(0, 2 * HOUR)),
            min_size=1,
            max_size=40,
        )
    )
    gives_up = data.draw(st.sets(st.integers(0, 39)))
    outages = data.draw(st.lists(st.floats(0, 2 * HOUR), max_size=2))
    phase = data.draw(st.sampled_from([None, 0.0, 1800.0]))

    async def main() -> Client:
        store = Store(processes=3)
        client = Client(Server(DOCUMENTED, phase=phase), Random(seed), show)
        processes = [Process(store) for _ in range(3)]

        async def one(process: Process, names: tuple[str, ...], at: float, number: int) -> None:
            await asyncio.sleep(at)
            if number in gives_up:
                async with asyncio.timeout(client.rng.uniform(0, HOUR)):
                    await client.call(process.gate(*names), names)
            await client.call(process.gate(*names), names)

        async def outage(at: float) -> None:
            await asyncio.sleep(at)
            store.unreachable = True
            await asyncio.sleep(120.0)
            store.unreachable = False

        work = [one(processes[index], names, at, n) for n, (index, names, at) in enumerate(calls)]
        await asyncio.gather(*work, *map(outage, outages), return_exceptions=True)
        await close_all(processes)
        return client

    client = run(main())
    assert client.server.refused == []
    for name, spans in client.spans.items():
        assert most_in_a_window(spans, DOCUMENTED[name][1]) <= DOCUMENTED[name][0], name


@pytest.mark.looptime
async def test_an_hourly_budget_that_cannot_be_divided_waits_for_the_store() -> None:
    store, received, events = Store(processes=4), list[object](), Events()
    process = Process(store, events=events)
    store.unreachable = True
    with events.subscribe(received.append):
        waiting = asyncio.create_task(use(process.gate("agent", "generate")))
        await asyncio.sleep(300.0)
        assert not waiting.done()
        store.unreachable = False
        assert await waiting < 310.0
    lost = {event.budget: event.slots for event in received if isinstance(event, SharedWindowLost)}
    assert lost == {"agent": 1, "generate": 0}
    await close_all([process])


@pytest.mark.looptime
@pytest.mark.parametrize("is_away", [False, True])
async def test_a_429_without_headers_holds_requests_for_the_same_budgets_in_all_processes(
    is_away: bool,
) -> None:
    store, limits = Store(processes=1), {"agent": (5, HOUR), "generate": (5, HOUR)}
    one, other = (Process(store, **limits) for _ in range(2))
    async with one.gate("agent", "generate").slot() as slot:
        store.unreachable = is_away
        slot.answered(429, retry_after=1800.0)
    again = asyncio.create_task(use(one.gate("agent", "generate")))
    await asyncio.sleep(1.0)
    store.unreachable = False
    await asyncio.sleep(60.0)  # after an outage, the process reports the hold to the store
    assert await use(other.gate("agent")) < 70.0
    assert await use(other.gate("agent", "generate")) == pytest.approx(1800.0, abs=15.0)
    assert await again == pytest.approx(1800.0, abs=15.0)
    assert sum(gate.statistics().refused for gate in one.single.values()) == 1
    await close_all([one, other])


@pytest.mark.looptime
async def test_rate_limit_headers_apply_to_all_processes() -> None:
    store = Store()
    one, other = Process(store), Process(store)
    client = Client(Server({**DOCUMENTED, "generate": (1, HOUR), "agent": (2, HOUR)}), Random(1))
    for process in (one, other, one):
        await client.call(process.gate("agent"), ("agent",))
    assert client.server.refused == []
    assert now() >= HOUR
    await close_all([one, other])


class TestRunSlots:
    @pytest.mark.looptime
    async def test_at_most_three_runs_of_all_processes_are_in_progress(self) -> None:
        store = Store()
        processes = [Process(store, runs=3, agent=(100, 60.0)) for _ in range(4)]
        in_progress, most, ends = set[str](), 0, list[float]()

        async def start(process: Process, name: str) -> None:
            nonlocal most
            await use(process.gate("agent", starts=True), run=name)
            in_progress.add(name)
            most = max(most, len(in_progress))
            await asyncio.sleep(600.0)
            in_progress.discard(name)
            process.runs.left(name)
            ends.append(now())

        await asyncio.gather(
            *(start(process, f"{n}-{k}") for k, process in enumerate(processes) for n in range(3))
        )
        assert most == 3
        assert max(ends) < 4 * 600.0 + 60.0
        await close_all(processes)

    @pytest.mark.looptime
    async def test_a_start_that_waits_for_its_budget_holds_no_run_slot(self) -> None:
        store = Store()
        one, other = (Process(store, runs=1, agent=(5, HOUR), generate=(1, HOUR)) for _ in range(2))
        generate, execute = ("agent", "generate"), ("agent",)
        await use(one.gate(*generate, starts=True), run="a")
        one.runs.left("a")
        waiting = asyncio.create_task(use(one.gate(*generate, starts=True), run="b", order=1))
        await asyncio.sleep(10.0)
        assert await use(other.gate(*execute, starts=True), run="c", order=0) < 20.0
        other.runs.left("c")
        assert await waiting == pytest.approx(HOUR, abs=10.0)
        await close_all([one, other])

    @pytest.mark.looptime
    async def test_a_start_waits_no_longer_than_its_budget_requires(self) -> None:
        process = Process(Store(), runs=5, agent=(1, 1.0))
        gate = process.gate("agent", starts=True)
        ends = await asyncio.gather(*(use(gate, run=str(number)) for number in range(5)))
        assert max(ends) < 5.5
        await close_all([process])

    @pytest.mark.looptime
    async def test_a_slot_that_this_process_released_is_taken_at_once(self) -> None:
        process = Process(Store(), runs=1, agent=(50, HOUR))
        gate = process.gate("agent", starts=True)
        await use(gate, run="first")
        waiting = asyncio.create_task(use(gate, run="second"))
        await asyncio.sleep(1.0)
        process.runs.left("first")
        assert await waiting < 2.0
        await close_all([process])

    @pytest.mark.looptime
    @pytest.mark.parametrize("free_at", [41.0, 44.0])
    async def test_execute_of_one_process_goes_before_generate_of_another(self, free_at: float) -> None:
        store = Store()
        one, other = (Process(store, runs=1, agent=(5, HOUR), generate=(5, HOUR)) for _ in range(2))
        await use(one.gate("agent", starts=True), run="first")
        order: list[str] = []

        async def start(process: Process, name: str, *names: str, place: int) -> None:
            await use(process.gate(*names, starts=True), run=name, order=place)
            order.append(name)
            await asyncio.sleep(60.0)
            process.runs.left(name)

        work = [asyncio.create_task(start(one, "generate", "agent", "generate", place=1))]
        await asyncio.sleep(22.5)
        work.append(asyncio.create_task(start(other, "execute", "agent", place=0)))
        await asyncio.sleep(free_at - now())
        one.runs.left("first")
        await asyncio.gather(*work)
        assert order == ["execute", "generate"]
        await close_all([one, other])

    @pytest.mark.looptime
    async def test_the_process_that_takes_over_a_customer_frees_the_slot_of_the_dead_process(self) -> None:
        store = Store()
        dead, successor = (Process(store, runs=1, agent=(5, HOUR)) for _ in range(2))
        await use(dead.gate("agent", starts=True), run="a")
        waiting = asyncio.create_task(use(successor.gate("agent", starts=True), run="b"))
        await asyncio.sleep(FORGOTTEN - 100.0)
        assert not waiting.done()
        successor.runs.seen("a")  # from the journal
        await asyncio.sleep(600.0)
        assert not waiting.done()
        successor.runs.left("a")
        assert await waiting < FORGOTTEN + 600.0
        await close_all([dead, successor])

    @pytest.mark.looptime
    async def test_a_run_that_no_process_reports_counts_as_a_run_of_another_client(self) -> None:
        store = Store()
        dead, other = (Process(store, runs=1, agent=(50, HOUR)) for _ in range(2))
        await use(dead.gate("agent", starts=True), run="a")
        tries: list[float] = []
        for _ in range(3):
            async with other.gate("agent", starts=True).slot(run="b") as slot:
                tries.append(now())
                slot.too_many_runs(retry_after=None, listed=1)
        assert tries[0] == pytest.approx(FORGOTTEN, abs=10.0)
        assert [round((later - tries[0]) / 60) for later in tries] == [0, 1, 3]
        await close_all([dead, other])

    @pytest.mark.looptime
    async def test_a_429_of_one_process_holds_the_starts_of_all_processes(self) -> None:
        store = Store()
        one, other = (Process(store, runs=3, agent=(50, HOUR)) for _ in range(2))
        async with one.gate("agent", starts=True).slot(run="a") as slot:
            slot.too_many_runs(retry_after=600.0, listed=3)
        assert await use(other.gate("agent", starts=True), run="b") == pytest.approx(600.0, abs=10.0)
        assert other.runs.statistics().refused == 1
        await close_all([one, other])

    @pytest.mark.looptime
    async def test_runs_are_reported_to_a_store_that_lost_them_before_another_run_starts(self) -> None:
        store = Store()
        one, other = (Process(store, runs=1, agent=(50, HOUR)) for _ in range(2))
        await use(one.gate("agent", starts=True), run="a")
        other.runs.seen("a")
        await asyncio.sleep(1.0)
        store.run_slots.state = b""
        waiting = asyncio.create_task(use(other.gate("agent", starts=True), run="b"))
        await asyncio.sleep(3.0 * HOUR / 2)
        assert not waiting.done()
        one.runs.left("a")
        assert await waiting < 2 * HOUR
        await close_all([one, other])

    @pytest.mark.looptime
    async def test_no_run_is_started_during_an_outage_of_the_store(self) -> None:
        store, received, events = Store(), list[object](), Events()
        process = Process(store, runs=3, events=events, agent=(50, 60.0))
        store.unreachable = True
        with events.subscribe(received.append):
            waiting = asyncio.create_task(use(process.gate("agent", starts=True), run="a"))
            await asyncio.sleep(100.0)
            assert not waiting.done()
            store.unreachable = False
            assert await waiting < 120.0
        assert {event.budget for event in received if isinstance(event, SharedWindowLost)} == {"runs"}
        await close_all([process])


@pytest.mark.parametrize("phase", [None, 1234.0])
def test_a_fleet_in_three_processes_takes_at_most_2_percent_longer_than_the_budget_needs(
    phase: float | None,
) -> None:
    async def main() -> tuple[float, Client, int]:
        client, store = Client(Server(DOCUMENTED, phase=phase), Random(1)), Store()
        processes, in_progress, most = [Process(store, runs=3) for _ in range(3)], 0, 0

        async def work(process: Process, name: str) -> None:
            nonlocal in_progress, most
            in_progress += 1
            most = max(most, in_progress)
            await asyncio.sleep(client.rng.uniform(600, 3000))
            in_progress -= 1
            process.runs.left(name)

        async def customer(process: Process, name: str) -> None:
            await client.call(process.gate("create", "writes"), ("create", "writes"))
            generate = process.gate("agent", "generate", starts=True)
            await client.call(generate, ("agent", "generate"), order=1, run=name)
            await work(process, name)
            await client.call(process.gate("agent", starts=True), ("agent",), order=0, run=name)
            await work(process, name)

        await asyncio.gather(*(customer(processes[n % 3], f"c{n}") for n in range(30)))
        took = now()
        await close_all(processes)
        return took, client, most

    took, client, most = run(main())
    assert client.server.refused == []
    assert most <= 3
    assert took <= 1.02 * (29 * HOUR + 6000)
