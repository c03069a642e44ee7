"""A fleet of customers: outcomes in the order of completion, isolated failures, and an orderly shutdown."""

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from inprocess import InProcess

from asyncmig import (
    Delivered,
    Failed,
    Fleet,
    InvalidInput,
    Journal,
    JournalError,
    MemoryJournal,
    Outcome,
    Pending,
    Session,
    SessionClosed,
    Spec,
)
from asyncmig.events import MigrationChanged
from asyncmig.jobs.turns import Turns
from asyncmig.simulator import World

from .conftest import CLEAN, OpenSession

pytestmark = [pytest.mark.looptime, pytest.mark.usefixtures("task_factory")]
Customer = Callable[..., Spec]


async def run(session: Session, specs: list[Spec], journal: MemoryJournal, to: Path) -> dict[str, Outcome]:
    async with Fleet(session, journal=journal, to=to, decide="approve") as fleet:
        return {outcome.external_id: outcome async for outcome in fleet.run(specs)}


async def test_each_customer_gets_a_folder_and_an_outcome(
    open_session: OpenSession, customer: Customer, tmp_path: Path
) -> None:
    specs = [customer(f"c{n}") for n in range(5)]
    async with open_session() as session:
        outcomes = await run(session, specs, MemoryJournal(), tmp_path / "out")
    assert outcomes.keys() == {f"c{n}" for n in range(5)}
    assert all((tmp_path / "out" / name / "Contacts.csv").exists() for name in outcomes)


async def test_customers_that_share_a_folder_are_refused(
    open_session: OpenSession, customer: Customer, world: World, tmp_path: Path
) -> None:
    to = tmp_path / "out"
    (to / "one").mkdir(parents=True)
    (to / "two").symlink_to("one")
    async with open_session() as session:
        outcomes = await run(
            session, [customer(each) for each in ("one", "two", "three")], MemoryJournal(), to
        )
    for external_id in ("one", "two"):
        refused = outcomes[external_id]
        assert isinstance(refused, Failed)
        assert "has the same folder as another customer" in refused.error
    assert isinstance(outcomes["three"], Delivered)
    assert world.ledger.requests["POST /companies"] == 1


async def test_bad_input_of_one_customer_does_not_affect_others(
    open_session: OpenSession, customer: Customer, tmp_path: Path
) -> None:
    good, bad, gone = customer("good"), customer("bad"), customer("gone")
    gone.files[0].unlink()
    async with open_session() as session:
        outcomes = await run(
            session, [good, msgspec.structs.replace(bad, name=" "), gone], MemoryJournal(), tmp_path / "out"
        )
    assert isinstance(outcomes["good"], Delivered)
    assert isinstance(outcomes["bad"], Failed)
    assert isinstance(outcomes["gone"], Failed)
    assert "contacts.csv" in outcomes["gone"].error


async def test_the_same_customer_is_not_started_twice(
    open_session: OpenSession, customer: Customer, world: World, tmp_path: Path
) -> None:
    async with open_session() as session, Fleet(session, journal=MemoryJournal(), to=tmp_path) as fleet:
        first, second = fleet.submit(customer()), fleet.submit(customer())
        assert await first == await second
    assert world.ledger.requests["POST /companies"] == 1


async def test_the_largest_customers_start_first(
    open_session: OpenSession, customer: Customer, transport: InProcess, tmp_path: Path
) -> None:
    text = "Email,First Name,Last Name\n"
    specs = [customer(f"c{n}", contacts=text + f"p{n}@x.org,A,B\n" * (n % 4 + 1)) for n in range(8)]
    async with open_session(limit=1) as session:
        began: list[str] = []

        def watch(event: object) -> None:
            if isinstance(event, MigrationChanged) and event.step == "uploading":
                began.append(event.external_id)

        with session.events.subscribe(watch):
            await run(session, specs, MemoryJournal(), tmp_path / "out")
    sizes = [int(name[1:]) % 4 for name in began]
    assert sizes == sorted(sizes, reverse=True)


async def test_the_largest_customer_starts_first_even_if_its_files_are_read_last(
    open_session: OpenSession, customer: Customer, tmp_path: Path
) -> None:
    text = "Email,First Name,Last Name\n"
    large = customer("large", contacts=text + f"p@x.org,A,{'B' * 8_000_000}\n")
    held = customer("held", contacts=text + "p@x.org,A,B\n" * 900)
    small = [customer(f"c{n}", contacts=f"{text}p{n}@x.org,A,B\n") for n in range(4)]
    journal, creating = MemoryJournal(), list[str]()
    async with (
        await journal.claim("held"),
        open_session() as session,
        Fleet(session, journal=journal, to=tmp_path / "out", when_held="return") as fleet,
    ):

        def watch(event: object) -> None:
            if isinstance(event, MigrationChanged) and event.step == "creating":
                creating.append(event.external_id)

        with session.events.subscribe(watch):
            outcomes = {
                outcome.external_id: type(outcome) async for outcome in fleet.run([*small, held, large])
            }
    assert creating == ["large", "c0", "c1", "c2", "c3"]
    assert outcomes["held"] is Pending


async def test_drained_customers_are_pending_and_continue_in_the_next_call(
    open_session: OpenSession, customer: Customer, world: World, tmp_path: Path
) -> None:
    journal, specs = MemoryJournal(), [customer(f"c{n}") for n in range(4)]
    async with open_session() as session, Fleet(session, journal=journal, to=tmp_path) as fleet:
        running = [fleet.submit(spec) for spec in specs]
        await asyncio.sleep(10.0)
        await fleet.drain()
        outcomes = [await each for each in running]
        late = await fleet.submit(customer("late"))
    assert all(isinstance(outcome, Pending) for outcome in [*outcomes, late])
    assert "continues from here" in outcomes[0].error  # type: ignore[union-attr]
    async with open_session() as session:
        again = await run(session, specs, journal, tmp_path)
    assert all(isinstance(outcome, Delivered) for outcome in again.values())
    assert world.ledger.requests["POST /companies/{id}/imports"] == 4


@pytest.mark.parametrize("after", [0.0, 0.1, 0.3, 1.0, 12.0, 38.0])
async def test_a_fleet_that_is_closed_early_leaves_no_task_or_connection(
    open_session: OpenSession,
    customer: Customer,
    transport: InProcess,
    world: World,
    tmp_path: Path,
    after: float,
) -> None:
    journal, specs = MemoryJournal(), [customer(f"c{n}") for n in range(4)]
    before = asyncio.all_tasks()
    async with open_session() as session, Fleet(session, journal=journal, to=tmp_path) as fleet:
        futures = [fleet.submit(spec) for spec in specs]
        await asyncio.sleep(after)
    assert all(future.done() for future in futures)
    assert asyncio.all_tasks() == before
    assert transport.open == 0
    async with open_session() as session:
        again = await run(session, specs, journal.copy_without_claims(), tmp_path)
    assert len(again) == 4
    verdict = world.verdict(10.0**6)
    assert verdict.duplicate_imports == verdict.duplicate_companies == verdict.unaccounted == 0


async def test_an_exception_in_the_block_of_a_fleet_is_propagated_unchanged(
    open_session: OpenSession, customer: Customer, tmp_path: Path
) -> None:
    async def broken(session: Session) -> None:
        async with Fleet(session, journal=MemoryJournal(), to=tmp_path) as fleet:
            fleet.submit(customer())
            raise LookupError("mine")

    async with open_session() as session:
        with pytest.raises(LookupError, match="mine"):
            await broken(session)


async def test_a_journal_that_cannot_be_written_ends_the_run(
    open_session: OpenSession, customer: Customer, tmp_path: Path
) -> None:
    journal = Journal(tmp_path / "fleet.db")
    async with open_session() as session, Fleet(session, journal=journal, to=tmp_path) as fleet:
        with pytest.raises(JournalError):
            _ = [outcome async for outcome in fleet.run([customer()])]  # the journal is not open


async def test_an_outcome_survives_a_json_round_trip(
    open_session: OpenSession, customer: Customer, tmp_path: Path
) -> None:
    async with open_session() as session:
        outcomes = await run(session, [customer()], MemoryJournal(), tmp_path)
    encoded = msgspec.json.encode(outcomes["acme"])
    assert msgspec.json.decode(encoded, type=Outcome) == outcomes["acme"]


async def test_a_concurrency_of_zero_is_refused(open_session: OpenSession) -> None:
    async with open_session() as session:
        with pytest.raises(InvalidInput):
            Fleet(session, journal=MemoryJournal(), concurrency=0)
    with pytest.raises(SessionClosed):
        await session.companies.sources()


async def test_the_last_steps_of_a_large_customer_do_not_wait_for_small_customers(
    open_session: OpenSession, customer: Customer, transport: InProcess, world: World, tmp_path: Path
) -> None:
    world.variants = replace(world.variants, failed_writes=0.0, hollow_writes=0.0)
    secrets = {"destination": {"base_url": "https://d.invalid", "auth": {"token": "secret-of-d"}}}
    rows = "".join(f"q{n}@x.org,Ada,L{n},1\n" for n in range(200))
    large = msgspec.structs.replace(customer("large", contacts=CLEAN + rows), connections=secrets)
    specs = [large, *(customer(f"small-{n}") for n in range(60))]
    async with open_session(scope="key", limit=30) as session:
        outcomes: dict[str, Outcome] = {}
        async with Fleet(session, journal=MemoryJournal(), to=tmp_path / "out", export="canary") as fleet:
            async for outcome in fleet.run(specs):
                outcomes[outcome.external_id] = outcome
                if outcome.external_id == "large":
                    break
    assert isinstance(outcomes["large"], Delivered), outcomes["large"]
    company = outcomes["large"].ids["company"]
    mine = [number for number, (_, _, url) in enumerate(transport.sent) if f"/{company}/export" in url]
    start = next(number for number in mine if transport.sent[number][1] == "POST")
    between = [url for _, method, url in transport.sent[mine[0] : start] if method == "POST"]
    # Small customers send some requests while a thread writes files. Without ranks they would send dozens.
    assert len(between) < 10, between


async def test_a_fleet_and_its_session_can_be_closed_in_another_task(
    open_session: OpenSession, customer: Customer, transport: InProcess, tmp_path: Path
) -> None:
    exits, before = AsyncExitStack(), asyncio.all_tasks()

    async def enter() -> "asyncio.Future[Outcome]":
        session = await exits.enter_async_context(open_session())
        fleet = await exits.enter_async_context(
            Fleet(session, journal=tmp_path / "fleet.db", to=tmp_path / "out")
        )
        return fleet.submit(customer())

    async def leave() -> None:
        raise LookupError("mine")

    running = await asyncio.create_task(enter())
    await asyncio.sleep(10.0)
    exits.push_async_callback(leave)
    with pytest.raises(LookupError, match="mine"):
        await asyncio.create_task(exits.aclose())
    assert running.cancelled()
    assert asyncio.all_tasks() <= before | {asyncio.current_task()}
    assert transport.open == 0
    async with Journal(tmp_path / "fleet.db") as journal, await journal.claim("acme") as claim:
        assert claim.state is not None


async def test_a_held_customer_waits_without_using_concurrency_and_then_runs(
    open_session: OpenSession, customer: Customer, tmp_path: Path
) -> None:
    journal = MemoryJournal()
    async with (
        open_session() as session,
        Fleet(session, journal=journal, to=tmp_path / "out", concurrency=1) as fleet,
    ):
        async with await journal.claim("acme"):
            held = fleet.submit(customer())
            assert isinstance(await fleet.submit(customer("free")), Delivered)
            assert not held.done()
        assert isinstance(await held, Delivered)


async def test_drain_stops_the_wait_for_a_held_customer(
    open_session: OpenSession, customer: Customer, tmp_path: Path
) -> None:
    journal = MemoryJournal()
    async with (
        open_session() as session,
        Fleet(session, journal=journal, to=tmp_path / "out") as fleet,
        await journal.claim("acme"),
    ):
        held = fleet.submit(customer())
        await asyncio.sleep(10.0)
        await fleet.drain()
        outcome = await held
    assert isinstance(outcome, Pending)
    assert outcome.reason == "held"


async def test_customers_over_the_concurrency_limit_have_no_task_and_end_with_the_fleet(
    open_session: OpenSession, customer: Customer, transport: InProcess, tmp_path: Path
) -> None:
    before, journal = asyncio.all_tasks(), MemoryJournal()
    async with (
        open_session() as session,
        Fleet(session, journal=journal, to=tmp_path, concurrency=3) as fleet,
    ):
        futures = [fleet.submit(customer(f"c{n}")) for n in range(100)]
        await asyncio.sleep(1.0)
        assert len(asyncio.all_tasks() - before) < 30
        canceled = await fleet.cancel("c99")
        assert isinstance(canceled, Pending)
        assert await futures[99] == canceled
        assert isinstance(await futures[3], Delivered)  # starts once an earlier customer has ended
    assert all(future.done() for future in futures)
    assert asyncio.all_tasks() == before
    assert transport.open == 0


async def test_drain_ends_customers_that_wait_for_concurrency_or_another_process(
    open_session: OpenSession, customer: Customer, tmp_path: Path
) -> None:
    journal = MemoryJournal()
    async with (
        open_session() as session,
        Fleet(session, journal=journal, to=tmp_path, concurrency=3) as fleet,
        await journal.claim("c0"),
    ):
        futures = [fleet.submit(customer(f"c{n}")) for n in range(100)]
        await asyncio.sleep(1.0)
        await fleet.drain()
        outcomes = await asyncio.gather(*futures)
    assert [outcome.reason for outcome in outcomes if isinstance(outcome, Pending)] == [
        "held",
        *["interrupted"] * 99,
    ]


async def test_a_customer_with_an_unreadable_file_delays_later_ones_by_at_most_a_minute() -> None:
    turns, finished = Turns(), list[tuple[int, float]]()

    async def wait_for_turn(place: int) -> None:
        await turns.come(place)
        finished.append((place, asyncio.get_running_loop().time() - began))

    places = [turns.place() for _ in range(6)]
    began = asyncio.get_running_loop().time()
    tasks = [asyncio.create_task(wait_for_turn(place)) for place in places[4:0:-1]]
    await asyncio.sleep(1.0)
    turns.end(2)
    await asyncio.wait(tasks)
    await wait_for_turn(5)
    assert dict(finished) == {1: 60.0, 2: 1.0, 3: 60.0, 4: 60.0, 5: 60.0}
    turns.end(0)


@pytest.mark.parametrize("turns", range(1, 12, 2))
async def test_a_fleet_can_be_closed_while_its_customers_are_recorded(
    open_session: OpenSession, customer: Customer, tmp_path: Path, turns: int
) -> None:
    async with open_session() as session:
        async with Fleet(session, journal=MemoryJournal(), to=tmp_path / "out", concurrency=1) as fleet:
            futures = [fleet.submit(customer(f"c{number}")) for number in range(60)]
            for _ in range(turns):
                await asyncio.sleep(0)
        assert all(future.cancelled() for future in futures)
