"""The gate under any order of events, compared with an independent model."""

import asyncio
import os
from dataclasses import dataclass, field
from random import Random

import pytest
from gateload import JumpingLoop, most_in_a_window
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from asyncmig import Gate, Lane, SessionClosed, Slot

WINDOW = 10.0


@dataclass(eq=False)
class Caller:
    """Requests a slot, and holds it until `fate` is set."""

    lane: Lane
    rank: float
    number: int
    slot: Slot | None = None
    sent: float = 0.0
    fate: asyncio.Future[int | None] = field(default_factory=asyncio.Future)
    """The status of the answer. None: no request was sent."""
    task: asyncio.Task[None] | None = None


class GateMachine(RuleBasedStateMachine):
    """Rules are actions of callers and servers. Invariants hold after each action."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: list[Caller] = []
        self.holding: list[Caller] = []
        self.spans: list[tuple[float, float]] = []
        self.granted = 0
        self.numbers = 0
        self.highest_limit = 0
        self.refusals = 0
        self.closed = False

    def do(self, seconds: float = 0.0) -> None:
        """Advance the clock, and run all tasks that are due."""

        async def pass_time() -> None:
            await asyncio.sleep(seconds)
            for _ in range(10):
                await asyncio.sleep(0)

        self.loop.run_until_complete(pass_time())

    @initialize(limit=st.integers(1, 4), seed=st.integers(0, 3))
    def make(self, limit: int, seed: int) -> None:
        self.loop = JumpingLoop()
        self.gate, self.highest_limit = Gate(limit=limit, window=WINDOW, rng=Random(seed)), limit

    async def _call(self, caller: Caller) -> None:
        try:
            async with self.gate.slot(lane=caller.lane, rank=caller.rank) as caller.slot:
                self._granted(caller)
                status = await caller.fate
                if status is None:
                    caller.slot.unsent()
                    caller.sent = float("inf")
                else:
                    caller.slot.answered(status)
        finally:
            if caller in self.waiting:
                self.waiting.remove(caller)
            if caller in self.holding:
                self.holding.remove(caller)
                if caller.sent < float("inf"):
                    self.spans.append((caller.sent, self.loop.time()))

    def _granted(self, caller: Caller) -> None:
        """Check that no waiting caller should have gone first."""
        if caller in self.waiting:
            self.waiting.remove(caller)
        lane_first = [c for c in self.waiting if c.lane == caller.lane]
        assert all((caller.rank, caller.number) < (c.rank, c.number) for c in lane_first)
        if caller.lane is not Lane.POLL or self.granted % 20 != 19:
            assert all(c.lane >= caller.lane for c in self.waiting)
        self.granted += 1
        caller.sent = self.loop.time()
        self.holding.append(caller)

    @precondition(lambda self: not self.closed)
    @rule(lane=st.sampled_from(Lane), rank=st.sampled_from([0.0, -1.0]), count=st.integers(1, 3))
    def acquire(self, lane: Lane, rank: float, count: int) -> None:
        for _ in range(count):
            self.numbers += 1
            caller = Caller(lane, rank, self.numbers, fate=self.loop.create_future())
            self.waiting.append(caller)
            caller.task = self.loop.create_task(self._call(caller))
            caller.task.add_done_callback(lambda task: task.cancelled() or task.exception())  # retrieves it
            self.do()

    @precondition(lambda self: self.holding)
    @rule(data=st.data(), status=st.sampled_from([200, 200, 200, 500, 429, None]))
    def answer(self, data: st.DataObject, status: int | None) -> None:
        caller = data.draw(st.sampled_from(self.holding))
        self.refusals += status == 429
        caller.fate.set_result(status)
        self.do()

    @precondition(lambda self: self.holding)
    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.holding)).fate.set_exception(ConnectionError())
        self.do()

    @precondition(lambda self: self.waiting or self.holding)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        caller = data.draw(st.sampled_from(self.waiting + self.holding))
        assert caller.task is not None
        caller.task.cancel()
        self.do()

    @precondition(lambda self: self.waiting and self.holding)
    @rule(data=st.data())
    def cancel_in_the_turn_of_an_answer(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.holding)).fate.set_result(None)
        caller = data.draw(st.sampled_from(self.waiting))
        assert caller.task is not None
        self.loop.call_soon(self.loop.call_soon, caller.task.cancel)
        self.do()

    @rule(seconds=st.sampled_from([0.02, 0.5, 2.0, 5.0, WINDOW]))
    def advance(self, seconds: float) -> None:
        self.do(seconds)

    @rule(limit=st.integers(1, 4))
    def change_limit(self, limit: int) -> None:
        self.gate.limit = limit
        self.highest_limit = max(limit, self.highest_limit)
        self.do()

    @precondition(lambda self: not self.closed)
    @rule()
    def every_waiter_gets_a_slot(self) -> None:
        """When all requests are answered, each waiting caller gets a slot."""
        for caller in self.holding:
            caller.fate.set_result(200)
        deadline = self.loop.time() + 3 * WINDOW * (len(self.waiting) + 2)
        while self.waiting and self.loop.time() < deadline:
            self.do(0.5)
            for caller in self.holding:
                caller.fate.set_result(200)
        self.do()
        assert not self.waiting

    @precondition(lambda self: self.numbers > 5)
    @rule()
    def close(self) -> None:
        self.gate.close()
        self.do()
        self.closed = True
        assert not self.waiting

        async def late() -> None:
            with pytest.raises(SessionClosed):
                async with self.gate.slot():
                    pass

        self.loop.run_until_complete(late())

    @invariant()
    def slots_are_conserved(self) -> None:
        async def used() -> tuple[int, dict[str, int]]:
            statistics = self.gate.statistics()
            return statistics.used, statistics.waiting

        if not hasattr(self, "gate"):
            return
        ages = [self.loop.time() - end for _, end in self.spans]
        least, most = (sum(age < WINDOW + 0.05 + tick for age in ages) for tick in (-1e-6, 1e-6))
        taken, waiting = self.loop.run_until_complete(used())
        assert least <= taken - len(self.holding) <= most
        assert waiting == {lane.name: sum(c.lane == lane for c in self.waiting) for lane in Lane}

    @invariant()
    def no_window_exceeds_the_limit(self) -> None:
        open_ = [(c.sent, self.loop.time()) for c in self.holding]
        # Each refusal allows one probe even if no slot is free, and one more if the probe is lost.
        probes = self.refusals
        if not probes:
            assert most_in_a_window(self.spans + open_, WINDOW) <= self.highest_limit

    @invariant()
    def no_caller_waits_while_a_slot_is_free(self) -> None:
        if not self.waiting or self.closed:
            return

        async def idle() -> bool:
            statistics = self.gate.statistics()
            return statistics.used < statistics.slots and statistics.held_until is None

        if not self.holding and self.loop.run_until_complete(idle()):
            before = self.granted
            self.do(0.05 if not self.refusals else WINDOW / 2 + 1)  # a learnt bucket refills first
            assert self.granted > before

    def teardown(self) -> None:
        if not hasattr(self, "gate"):
            return
        self.gate.close()
        for caller in self.holding:
            caller.fate.cancel()
        self.do(1.0)
        assert not asyncio.all_tasks(self.loop)
        self.loop.close()


GateMachine.TestCase.settings = settings(
    max_examples=int(os.environ.get("GATE_EXAMPLES", "60")), stateful_step_count=40, deadline=None
)
test_the_invariants_of_the_gate_hold_in_any_order_of_events = GateMachine.TestCase
