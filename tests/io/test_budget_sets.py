"""Requests that charge several budgets, against servers that count each budget separately."""

import asyncio
from collections.abc import Iterator
from itertools import pairwise
from random import Random

import pytest
from budgetload import CALLS, DOCUMENTED, HOUR, Client, Server, budgets, now, use, wrong
from gateload import most_in_a_window, run
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncmig import Gate, Lane, SessionClosed, WaitTooLong
from asyncmig._io.gate import joined_gate
from asyncmig._io.run_slots import RunSlots
from asyncmig.errors import NoRunSlot
from asyncmig.events import Events, RunSlotsBlocked, RunSlotsChanged


@pytest.mark.looptime
async def test_a_request_that_waits_for_an_hourly_budget_takes_no_slot_of_the_other_budget() -> None:
    gates = budgets(reads=(2, 60.0), create=(1, HOUR))
    both = joined_gate([gates["create"], gates["reads"]])
    await use(both)
    waiting = asyncio.create_task(use(both))
    for _ in range(4):
        await use(gates["reads"])
    assert now() < 130.0
    assert both.statistics().waiting["WORK"] == 1
    assert gates["create"].statistics().waiting["WORK"] == 1
    assert await waiting == pytest.approx(HOUR, abs=1.0)


@pytest.mark.looptime
async def test_requests_for_one_budget_do_not_starve_a_request_for_several_budgets() -> None:
    gates = budgets(reads=(3, 60.0), writes=(3, 60.0))
    both, done = joined_gate(list(gates.values())), asyncio.Event()

    async def send_repeatedly(gate: Gate) -> None:
        while not done.is_set():
            await use(gate, seconds=3.0)

    senders = [asyncio.create_task(send_repeatedly(gate)) for gate in gates.values() for _ in range(8)]
    await asyncio.sleep(100.0)
    assert await use(both) < 260.0  # 17 requests were sent before it
    done.set()
    await asyncio.gather(*senders)


@pytest.mark.looptime
async def test_lane_order_and_rank_decide_the_sequence_across_budget_sets() -> None:
    gates = budgets(agent=(1, 60.0), generate=(1, 60.0))
    generate = joined_gate([gates["agent"], gates["generate"]])
    order: list[str] = []

    async def one(name: str, gate: Gate, **options: object) -> None:
        await use(gate, **options)  # type: ignore[arg-type]
        order.append(name)

    await use(generate)
    async with asyncio.TaskGroup() as group:
        for name, gate, options in (
            ("generate", generate, {"order": 1, "rank": -5.0}),
            ("execute 2", gates["agent"], {"rank": 2.0}),
            ("execute 1", gates["agent"], {"rank": 1.0}),
            ("poll", gates["agent"], {"lane": Lane.POLL}),
            ("answer", gates["agent"], {"lane": Lane.DECIDE}),
        ):
            group.create_task(one(name, gate, **options))
            await asyncio.sleep(1.0)
    assert order == ["answer", "execute 1", "execute 2", "generate", "poll"]


@pytest.mark.looptime
@pytest.mark.parametrize("first", [0, 1])
async def test_execute_goes_before_generate_when_both_budgets_become_free_at_once(first: int) -> None:
    gates, runs = budgets(generate=(1, 60.0), agent=(1, 60.0)), RunSlots(3)
    generate = joined_gate(list(gates.values()), runs=runs)
    execute = joined_gate([gates["agent"]], runs=runs)
    starts = [("execute", execute, 0), ("generate", generate, 1)]
    order: list[str] = []

    async def one(name: str, gate: Gate, place: int) -> None:
        await use(gate, order=place, run=name)
        order.append(name)

    await use(generate, run="earlier")
    async with asyncio.TaskGroup() as group:
        for each in (starts[first], starts[1 - first]):
            group.create_task(one(*each))
            await asyncio.sleep(1.0)
    assert order == ["execute", "generate"]


@pytest.mark.looptime
@pytest.mark.parametrize("at", [5.0, 60.14, 60.15, 60.16, 60.2])
async def test_a_cancelled_request_returns_all_its_slots(at: float) -> None:
    gates = budgets(a=(1, 60.0), b=(1, 60.0))
    both = joined_gate(list(gates.values()))
    await use(both)
    first = asyncio.create_task(use(both, seconds=0.0))
    asyncio.get_running_loop().call_at(at, first.cancel)
    await asyncio.wait({first})
    ends = [await use(gate) for gate in (both, *gates.values())]
    assert ends[0] < (61.0 if first.cancelled() and at < 60.2 else 122.0)
    assert all(gate.statistics().waiting["WORK"] == 0 for gate in gates.values())


@pytest.mark.looptime
async def test_a_wait_for_several_budgets_can_be_estimated_refused_and_closed() -> None:
    gates = budgets(agent=(5, HOUR), generate=(1, HOUR))
    both = joined_gate(list(gates.values()))
    await use(both)
    assert both.wait_estimate() == pytest.approx(HOUR, abs=1.0)
    with pytest.raises(WaitTooLong):
        await use(both, max_wait=60.0)
    waiting = asyncio.create_task(use(both))
    await asyncio.sleep(1.0)
    for gate in (*gates.values(), both):
        gate.close()
    with pytest.raises(SessionClosed):
        await waiting
    with pytest.raises(SessionClosed):
        await use(both)


@settings(deadline=None, max_examples=30)
@given(data=st.data())
def test_no_window_of_any_budget_contains_more_requests_than_its_limit(data: st.DataObject) -> None:
    """Count the requests of each budget independently, for any sets, windows and rate limit headers."""
    seed = data.draw(st.integers(0, 10**6))
    phase = data.draw(st.sampled_from([None, 0.0, 17.0, 1800.0]))
    show = data.draw(st.sampled_from([lambda headers, _: headers, lambda headers, _: None, wrong]))
    calls = data.draw(
        st.lists(st.tuples(st.sampled_from(CALLS), st.floats(0, 2 * HOUR)), min_size=1, max_size=60)
    )
    gives_up = data.draw(st.sets(st.integers(0, 59)))

    async def main() -> Client:
        server = Server(DOCUMENTED, phase=phase, count_rejects=data.draw(st.booleans()))
        client, gates = Client(server, Random(seed), show), budgets(**DOCUMENTED)
        sets = {names: joined_gate([gates[name] for name in names]) for names in CALLS}

        async def one(names: tuple[str, ...], at: float, number: int) -> None:
            await asyncio.sleep(at)
            if number in gives_up:
                async with asyncio.timeout(client.rng.uniform(0, HOUR)):
                    await client.call(sets[names], names)
            await client.call(sets[names], names)

        await asyncio.gather(*(one(*each, n) for n, each in enumerate(calls)), return_exceptions=True)
        return client

    client = run(main())
    assert client.server.refused == []
    for name, spans in client.spans.items():
        assert most_in_a_window(spans, DOCUMENTED[name][1]) <= DOCUMENTED[name][0], name


@pytest.mark.parametrize("phase", [None, 0.0, 1000.0])
@pytest.mark.parametrize("count_rejects", [False, True])
def test_a_client_with_too_high_limits_is_refused_once_per_window(
    phase: float | None, count_rejects: bool
) -> None:
    if phase is None and count_rejects:
        pytest.skip("a sliding window that counts refused requests has no reset to wait for")

    async def main() -> Server:
        server = Server(DOCUMENTED, phase=phase, count_rejects=count_rejects)
        client = Client(server, Random(1))
        gates = budgets(**{name: (limit * 10, window) for name, (limit, window) in DOCUMENTED.items()})
        single = [("reads",), ("agent",), ("create",)]
        await asyncio.gather(*(client.call(gates[names[0]], names) for names in single for _ in range(8)))
        return server

    server = run(main())
    for name, (_, window) in DOCUMENTED.items():
        at = [when for refused, when in server.refused if refused == name]
        assert all(later - earlier >= window - 2.0 for earlier, later in pairwise(at)), name


@pytest.mark.looptime
async def test_a_429_without_headers_holds_only_requests_for_the_same_budgets() -> None:
    gates = budgets(agent=(5, HOUR), generate=(5, HOUR))
    both = joined_gate(list(gates.values()))
    await use(both, status=429)
    assert await use(gates["agent"]) < 2.0
    assert await use(both) >= HOUR
    assert both.statistics().refused == 1
    assert sum(gate.statistics().refused for gate in gates.values()) == 1


@pytest.mark.looptime
@pytest.mark.parametrize(("retry_after", "until"), [(600.0, 600.1), (10_000.0, HOUR), (None, HOUR)])
async def test_a_429_holds_a_long_window_without_a_probe(retry_after: float | None, until: float) -> None:
    gate = Gate(limit=5, window=HOUR, rng=Random(1))
    await use(gate)
    async with gate.slot() as slot:
        slot.answered(429, retry_after=retry_after)
    assert await use(gate) == pytest.approx(until, abs=2.0)
    assert gate.statistics().slots == 5


class TestRunSlots:
    def starts(self, limit: int = 3) -> tuple[Gate, RunSlots]:
        runs = RunSlots(limit)
        return joined_gate([Gate(limit=100, window=60.0, name="agent", rng=Random(1))], runs=runs), runs

    @pytest.mark.looptime
    async def test_a_run_keeps_its_slot_until_it_ends(self) -> None:
        gate, runs = self.starts()
        for name in "abc":
            await use(gate, run=name)
        waiting = asyncio.create_task(use(gate, run="d"))
        await asyncio.sleep(HOUR)
        assert not waiting.done()
        await use(gate, run="b")  # this run has a slot already
        runs.left("b")
        assert await waiting == pytest.approx(HOUR, abs=1.0)
        assert set(runs.statistics().runs) == {"a", "c", "d"}

    @pytest.mark.looptime
    @pytest.mark.parametrize(("status", "taken"), [(201, True), (500, True), (409, False), (429, False)])
    async def test_only_a_refused_start_takes_no_run_slot(self, status: int, taken: bool) -> None:
        gate, runs = self.starts(1)
        await use(gate, run="a", status=status)
        assert runs.statistics().runs == (("a",) if taken else ())

    @pytest.mark.looptime
    async def test_a_start_that_waits_for_a_run_slot_takes_no_slot_of_a_budget(self) -> None:
        budget, runs = Gate(limit=1, window=60.0, name="agent", rng=Random(1)), RunSlots(1)
        starts = joined_gate([budget], runs=runs)
        runs.seen("from the journal")
        waiting = asyncio.create_task(use(starts, run="a"))
        await asyncio.sleep(1.0)
        assert await use(budget) == pytest.approx(1.0)
        runs.left("from the journal")
        assert await waiting == pytest.approx(61.15, abs=0.1)

    @pytest.mark.looptime
    async def test_the_pauses_after_429s_are_those_of_the_contract(self) -> None:
        gate, runs, at = *self.starts(), []
        for _ in range(6):
            async with gate.slot(run="a") as slot:
                at.append(now())
                slot.too_many_runs(retry_after=None, listed=None)
        minutes = [round((later - earlier) / 60) for earlier, later in pairwise(at)]
        assert minutes == [1, 2, 5, 10, 20]
        assert runs.statistics().refused == 6

    @pytest.mark.looptime
    async def test_the_end_of_an_own_run_allows_a_start_at_once(self) -> None:
        gate, runs = self.starts()
        await use(gate, run="ours")
        async with gate.slot(run="a") as slot:
            slot.too_many_runs(retry_after=1800.0, listed=3)
        assert runs.statistics().others == 2
        waiting = asyncio.create_task(use(gate, run="a"))
        await asyncio.sleep(300.0)
        assert not waiting.done()
        runs.left("ours")
        assert await waiting == pytest.approx(300.0, abs=1.0)


@pytest.mark.parametrize("phase", [None, 0.0, 1234.0])
def test_a_fleet_of_thirty_takes_at_most_2_percent_longer_than_the_hourly_budget_needs(
    phase: float | None,
) -> None:
    """Each customer is created, polled, generated and executed. A run takes 10 to 50 minutes."""

    async def main() -> tuple[float, Client, int]:
        server = Server(DOCUMENTED, phase=phase)
        client, gates, runs = Client(server, Random(1)), budgets(**DOCUMENTED), RunSlots(3)
        create = joined_gate([gates["create"], gates["writes"]])
        generate = joined_gate([gates["agent"], gates["generate"]], runs=runs)
        execute = joined_gate([gates["agent"]], runs=runs)
        in_progress, most = 0, 0

        async def work(name: str) -> None:
            nonlocal in_progress, most
            in_progress += 1
            most = max(most, in_progress)
            await asyncio.sleep(client.rng.uniform(600, 3000))
            in_progress -= 1
            runs.left(name)

        async def customer(name: str) -> None:
            await client.call(create, ("create", "writes"))
            for _ in range(3):
                await client.call(gates["reads"], ("reads",), lane=Lane.POLL)
            await client.call(generate, ("agent", "generate"), order=1, run=name)
            await work(name)
            await client.call(execute, ("agent",), run=name)
            await work(name)

        await asyncio.gather(*(customer(f"c{n}") for n in range(30)))
        return now(), client, most

    took, client, most = run(main())
    assert client.server.refused == []
    assert most <= 3
    assert took <= 1.02 * (29 * HOUR + 6000)


class Person:
    """A person who answers the questions of a run at `answers_at`. Until then, the run stays blocked."""

    def __init__(self, runs: RunSlots, run: str, *, answers_at: float = float("inf")) -> None:
        self.runs, self.run, self.answers_at = runs, run, answers_at
        self.checks: list[float] = []

    async def check(self) -> None:
        self.checks.append(now())
        if now() >= self.answers_at:
            self.runs.left(self.run)
        else:
            self.runs.seen(self.run, is_blocked=True)


@pytest.mark.looptime
async def test_events_report_the_run_slots_and_the_gate_names_its_longest_wait() -> None:
    changes: list[RunSlotsChanged] = []
    events = Events()
    runs = RunSlots(1, events=events)
    gate = joined_gate([Gate(limit=1, window=HOUR, name="agent", rng=Random(1))], runs=runs)
    with events.subscribe(
        lambda event: changes.append(event) if isinstance(event, RunSlotsChanged) else None
    ):
        await use(gate, run="a")
        assert gate.longest_wait() == ("runs", float("inf"))
        waiting = asyncio.create_task(use(gate, run="b"))
        await asyncio.sleep(1.0)
        runs.waits_for_person("a", Person(runs, "a").check)
        runs.left("a")
        assert gate.longest_wait() == ("agent", pytest.approx(2 * HOUR, abs=2.0))  # another start goes first
        await waiting
    numbers = [(each.in_progress, each.waits_for_person, each.waiting) for each in changes]
    assert numbers == [(0, 0, 1), (1, 0, 1), (1, 0, 0), (1, 0, 1), (1, 1, 1), (0, 0, 1), (1, 0, 1), (1, 0, 0)]
    assert runs.statistics().was_used
    await runs.aclose()


class TestRunsThatWaitForAPerson:
    @pytest.fixture
    def blocked(self) -> list[RunSlotsBlocked]:
        return []

    @pytest.fixture
    def runs(self, blocked: list[RunSlotsBlocked]) -> Iterator[RunSlots]:
        events = Events()
        with events.subscribe(
            lambda event: blocked.append(event) if isinstance(event, RunSlotsBlocked) else None
        ):
            yield RunSlots(2, events=events)

    @pytest.fixture
    def gate(self, runs: RunSlots) -> Gate:
        return joined_gate([Gate(limit=100, name="agent", rng=Random(1))], runs=runs)

    @pytest.mark.looptime
    async def test_a_start_waits_until_a_check_finds_an_answered_run(
        self, gate: Gate, runs: RunSlots, blocked: list[RunSlotsBlocked]
    ) -> None:
        people = [Person(runs, "a"), Person(runs, "b", answers_at=400.0)]
        for person in people:
            runs.seen(person.run, is_blocked=True)
            runs.waits_for_person(person.run, person.check)
        waiting = asyncio.create_task(use(gate, run="c"))
        await asyncio.sleep(1.0)
        assert runs.statistics().waits_for_person == ("a", "b")
        assert [event.runs for event in blocked] == [("a", "b")]
        assert await waiting == pytest.approx(480.0)
        assert people[0].checks == [60.0, 180.0, 480.0]
        assert runs.statistics().waits_for_person == ("a",)
        await asyncio.sleep(HOUR)
        assert len(people[0].checks) <= 4  # no start waits
        await runs.aclose()

    @pytest.mark.looptime
    async def test_the_error_of_a_start_that_gives_up_lists_the_blocking_runs(
        self, gate: Gate, runs: RunSlots, blocked: list[RunSlotsBlocked]
    ) -> None:
        runs.gives_up = True
        runs.seen("a", is_blocked=True)
        runs.waits_for_person("a", Person(runs, "a").check)
        runs.seen("b")
        waiting = asyncio.create_task(use(gate, run="c"))
        await asyncio.sleep(1.0)
        assert not waiting.done()  # the run b can still end
        runs.waits_for_person("b", Person(runs, "b").check)
        with pytest.raises(NoRunSlot) as caught:
            await waiting
        assert caught.value.runs == ("a", "b")
        with pytest.raises(NoRunSlot):
            await use(gate, run="d")
        assert len(blocked) == 1
        await use(gate, run="a")  # the run a has a slot already
        assert gate.statistics().waiting["WORK"] == 0
        runs.left("b")
        await use(gate, run="e")
        await runs.aclose()

    @pytest.mark.looptime
    async def test_a_start_does_not_give_up_while_runs_of_other_clients_may_end(
        self, gate: Gate, runs: RunSlots, blocked: list[RunSlotsBlocked]
    ) -> None:
        runs.gives_up = True
        runs.waits_for_person("a", Person(runs, "a").check)
        async with gate.slot(run="b") as slot:
            slot.too_many_runs(retry_after=None, listed=2)
        assert await use(gate, run="b") == pytest.approx(60.0)
        assert blocked == []
        await runs.aclose()
