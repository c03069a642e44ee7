"""Fleets with a limited number of runs: runs of earlier processes, and runs that wait for a person."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from inprocess import BASE_URL, KEY, InProcess

from asyncmig import (
    Delivered,
    Fleet,
    Limits,
    MemoryJournal,
    NoRunSlot,
    Parked,
    Pending,
    Session,
    Spec,
    generations,
)
from asyncmig._core.endpoint import Endpoint
from asyncmig._io.context import SessionContext
from asyncmig.customers.options import MigrationCall
from asyncmig.customers.outcome import Outcome
from asyncmig.customers.questions import NeedsAttention
from asyncmig.customers.status import CustomerRecord, CustomerStatus
from asyncmig.events import RunSlotsBlocked
from asyncmig.jobs.migrate import pending
from asyncmig.journal import ClaimPort
from asyncmig.migrations.routes import GENERATE
from asyncmig.simulator import SCHEMAS, SOURCES, World

pytestmark = pytest.mark.looptime
RUN_SECONDS = 600.0


class Record(msgspec.Struct):
    api: str = "starts"
    running: bool = False
    parked: bool = False


class Starts(generations.Generation):
    """Starts one run for each customer. A run takes ten minutes, and waits for a person if its name is `asks...`."""

    name = "starts"

    def __init__(self) -> None:
        self.in_progress: set[str] = set()
        self.most_in_progress = 0
        self.answered: set[str] = set()

    @property
    def endpoints(self) -> dict[str, Endpoint]:
        return {GENERATE.key: GENERATE}

    async def migrate(
        self,
        context: SessionContext,
        claim: ClaimPort,
        call: MigrationCall,
    ) -> Outcome:
        spec = call.spec
        if call.turn is not None:
            await call.turn()
        run = f"run of {spec.external_id}"
        record = Record() if claim.state is None else msgspec.json.decode(claim.state, type=Record)
        if not record.running:
            try:
                async with context.gate(GENERATE).slot(order=1, run=run) as slot:
                    self.in_progress.add(run)
                    self.most_in_progress = max(self.most_in_progress, len(self.in_progress))
                    slot.answered(200)
            except NoRunSlot as error:
                return pending(spec, str(error), "no_run_slot")
            await claim.write("started", b"", msgspec.json.encode(Record(running=True)))
        context.runs.seen(run)
        await asyncio.sleep(RUN_SECONDS)
        if spec.external_id.startswith("asks") and run not in self.answered:
            context.runs.waits_for_person(run, lambda: self.look(context, run))
            await claim.write("parked", b"", msgspec.json.encode(Record(running=True, parked=True)))
            return parked(spec.external_id)
        self.in_progress.discard(run)
        context.runs.left(run)
        await claim.write("delivered", b"", msgspec.json.encode(Record()))
        return Delivered(external_id=spec.external_id, name=spec.name, files=())

    async def look(self, context: SessionContext, run: str) -> None:
        if run in self.answered:
            self.in_progress.discard(run)
            context.runs.left(run)
        else:
            context.runs.seen(run, is_blocked=True)

    def read(self, external_id: str, state: bytes) -> CustomerRecord:
        record = msgspec.json.decode(state, type=Record)
        return CustomerRecord(
            status=CustomerStatus(external_id=external_id, name="", api=self.name),
            outcome=parked(external_id) if record.parked else None,
            run_slot=f"run of {external_id}" if record.running else None,
        )

    async def questions(self, context: SessionContext, record: CustomerRecord) -> NeedsAttention | None:
        await self.look(context, record.run_slot or "")
        return None


def parked(external_id: str) -> Parked:
    return Parked(external_id=external_id, name="", attention=NeedsAttention())


@pytest.fixture
def starts() -> Iterator[Starts]:
    generation = Starts()
    generations.register(generation)
    yield generation
    generations.unregister("starts")


def session() -> Session:
    limits = Limits.BY_CLASS.changed(agent=Limits.PER_KEY.endpoint, generate=Limits.PER_KEY.endpoint)
    return Session(
        KEY,
        BASE_URL,
        limits=limits,
        transport=InProcess(World(key=KEY, sources=SOURCES, schemas=SCHEMAS, seed=1)),
    )


@pytest.fixture
def specs(tmp_path: Path) -> "dict[str, Spec]":
    (tmp_path / "a.csv").write_text("a\n1\n")
    names = ("asks 1", "asks 2", "asks 3", "x", "y")
    return {
        name: Spec(external_id=name.replace(" ", "-"), name=name, source="s", files=(tmp_path / "a.csv",))
        for name in names
    }


async def run(
    opened: Session, journal: MemoryJournal, to: Path, specs: "list[Spec]", **options: object
) -> "list[Outcome]":
    async with Fleet(opened, journal=journal, to=to, api="starts", **options) as fleet:  # type: ignore[arg-type]
        return [outcome async for outcome in fleet.run(specs)]


async def test_runs_of_an_earlier_process_hold_slots_although_their_customers_are_not_submitted(
    starts: Starts, specs: dict[str, Spec], tmp_path: Path
) -> None:
    journal, loop = MemoryJournal(), asyncio.get_running_loop()
    for name in ("a", "b", "c"):
        async with await journal.claim(name) as claim:
            await claim.write("started", b"", msgspec.json.encode(Record(running=True)))
    async with session() as opened:
        work = asyncio.create_task(run(opened, journal, tmp_path / "out", [specs["x"]]))
        await asyncio.sleep(3 * RUN_SECONDS)
        assert starts.in_progress == set()
        opened._context.runs.left("run of b")
        (outcome,) = await work
        assert isinstance(outcome, Delivered)
        assert loop.time() == pytest.approx(4 * RUN_SECONDS, abs=5.0)


async def test_a_fleet_that_returns_leaves_customers_without_a_run_slot_pending(
    starts: Starts, specs: dict[str, Spec], tmp_path: Path
) -> None:
    journal, blocked = MemoryJournal(), list[RunSlotsBlocked]()
    for _ in range(2):  # the second process reads from the journal which runs wait
        async with session() as opened:
            with opened.events.open(RunSlotsBlocked) as events:
                outcomes = await run(
                    opened, journal, tmp_path / "out", list(specs.values()), when_no_run_slot="return"
                )
            blocked += [each async for each in events]
            statistics = opened.run_slots()
        assert sorted(type(each).__name__ for each in outcomes) == ["Parked"] * 3 + ["Pending"] * 2
        assert {each.reason for each in outcomes if isinstance(each, Pending)} == {"no_run_slot"}
        assert len(statistics.waits_for_person) == 3
    assert [len(event.runs) for event in blocked] == [3, 3]
    assert starts.most_in_progress == 3


async def test_a_fleet_waits_for_a_run_slot_until_a_person_has_answered(
    starts: Starts, specs: dict[str, Spec], tmp_path: Path
) -> None:
    journal, loop = MemoryJournal(), asyncio.get_running_loop()
    loop.call_later(5 * RUN_SECONDS, starts.answered.add, "run of asks-2")
    async with session() as opened:
        outcomes = await run(opened, journal, tmp_path / "out", list(specs.values()))
    assert sorted(type(each).__name__ for each in outcomes) == ["Delivered"] * 2 + ["Parked"] * 3
    assert loop.time() < 8.6 * RUN_SECONDS  # the fleet checks at least every five minutes
