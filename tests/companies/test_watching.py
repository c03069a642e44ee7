"""Waiting for the runs of a whole fleet in one session: rate limits, polls, and the second channel."""

import asyncio
from collections.abc import Callable
from statistics import mean

import pytest
from inprocess import KEY, InProcess

from asyncmig import RunFailed, Session, SessionClosed, Spec
from asyncmig.events import RunStalled
from asyncmig.simulator import SCHEMAS, SOURCES, Fault, Reply, RunDurations, World
from asyncmig.simulator.companies.variants import Variants

from .conftest import DUPLICATES, SOURCE, OpenSession

pytestmark = [pytest.mark.looptime, pytest.mark.usefixtures("task_factory")]
Customer = Callable[..., Spec]
READ, LIST = "GET /companies/{id}/imports/{run_id}", "GET /companies/{id}/imports"
READ_EXPORT = "GET /companies/{id}/exports/{run_id}"


async def start(session: Session, count: int) -> list[tuple[str, str]]:
    """Start an import in each of `count` companies; return run and company ids."""

    async def one(number: int) -> tuple[str, str]:
        company = await session.companies.create(name=f"c{number}", source=SOURCE)
        run = await company.imports.start(rows=[{"a": n} for n in range(number % 7 * 40 + 1)])
        return run.id, company.id

    return list(await asyncio.gather(*(one(number) for number in range(count))))


async def follow(open_session: OpenSession, world: World, count: int, **options: object) -> float:
    """Wait for `count` runs under a small rate limit; return the mean detection delay in seconds."""
    async with open_session(limit=10_000) as session:
        started = await start(session, count)
    async with open_session(limit=12, **options) as session:
        await asyncio.gather(*(session.watch(*ids).wait() for ids in started))
    assert len(world.ledger.detection) == count
    return mean(world.ledger.detection.values())


async def test_the_second_channel_shortens_detection_under_a_small_rate_limit(
    open_session: OpenSession, transport: InProcess, world: World
) -> None:
    without = await follow(open_session, world, 60)
    assert world.ledger.requests[LIST] == 0
    world.ledger.detection.clear()
    transport.world = again = World(
        key=KEY, sources=SOURCES, schemas=SCHEMAS, seed=5, pace=RunDurations(sigma=0.0)
    )
    assert await follow(open_session, again, 60, second_channel=True) < without
    assert again.ledger.requests[LIST] > 20


@pytest.mark.parametrize(("reading", "lookups"), [("bare", 20), ("wrapped", 20), ("anonymous", 1)])
async def test_the_second_channel_is_used_only_if_it_names_the_run(
    open_session: OpenSession, transport: InProcess, reading: str, lookups: int
) -> None:
    transport.world = world = World(
        key=KEY, sources=SOURCES, schemas=SCHEMAS, seed=5, variants=Variants(active=reading)
    )
    await follow(open_session, world, 20, second_channel=True)
    assert world.ledger.requests[LIST] >= lookups
    if reading == "anonymous":  # one read per run: a list without run ids is not read again
        assert world.ledger.requests[LIST] <= 20


async def test_a_second_channel_that_answers_404_does_not_disturb_the_polls(
    open_session: OpenSession, transport: InProcess, world: World
) -> None:
    unknown = Fault(instead=Reply(status=404, body=b'{"error": "Not found"}'))
    transport.fault = lambda method, path, number: (
        unknown if method == "GET" and path.endswith("/imports") else None
    )
    await follow(open_session, world, 60, second_channel=True)


async def test_the_session_has_a_gate_for_each_route_of_the_contract(
    open_session: OpenSession, world: World
) -> None:
    async with open_session() as session:
        ((run_id, company_id),) = await start(session, 1)
        await session.watch(run_id, company_id).wait()
        for endpoint, count in world.ledger.requests.items():
            assert session.gate(*endpoint.split()).statistics().granted == count


async def test_a_rate_limit_per_key_disables_the_second_channel(
    open_session: OpenSession, world: World
) -> None:
    await follow(open_session, world, 20, second_channel=True, scope="key")
    assert world.ledger.requests[LIST] == 0


async def test_any_number_of_tasks_share_the_polls_of_a_run(open_session: OpenSession, world: World) -> None:
    async with open_session() as session:
        ((run_id, company_id),) = await start(session, 1)
        states = await asyncio.gather(*(session.watch(run_id, company_id).wait() for _ in range(50)))
        reads = world.ledger.requests[READ]
        assert {state.status for state in states} == {"completed"}
        assert reads < 30
        again = session.watch(run_id, company_id)
        assert (await again.wait()).status == "completed"
        assert world.ledger.requests[READ] <= reads + 1


async def test_runs_continue_after_the_session_closes_and_can_be_watched_again(
    open_session: OpenSession, world: World
) -> None:
    async with open_session() as session:
        ((run_id, company_id),) = await start(session, 1)
        waiting = asyncio.create_task(session.watch(run_id, company_id).wait())
        await asyncio.sleep(10.0)
    with pytest.raises(SessionClosed):
        await waiting
    async with open_session() as session:
        assert (await session.watch(run_id, company_id).wait()).status == "completed"


def slow(transport: InProcess, seconds: float, **variants: float) -> World:
    """Replace the simulated server by one whose runs take `seconds`, and return it."""
    transport.world = World(
        key=KEY,
        sources=SOURCES,
        schemas=SCHEMAS,
        pace=RunDurations(base=seconds, per_row=0.0, sigma=0.0),
        variants=Variants(**variants),  # type: ignore[arg-type]
    )
    return transport.world


async def test_stuck_runs_are_polled_until_the_server_reports_their_failure(
    open_session: OpenSession, transport: InProcess
) -> None:
    world = slow(transport, 600.0, zombies=1.0)
    async with open_session() as session:
        started = await start(session, 2)
        ends = await asyncio.gather(*(session.watch(*ids).wait() for ids in started), return_exceptions=True)
    assert all(isinstance(end, RunFailed) and "timed out" in str(end) for end in ends)
    assert max(world.ledger.detection.values()) < 6  # the minimum interval between polls of a run


async def test_a_run_without_an_end_after_75_minutes_is_reported_and_still_polled(
    open_session: OpenSession, transport: InProcess
) -> None:
    slow(transport, 600.0)
    async with open_session() as session:
        ((run_id, company_id),) = await start(session, 1)
    async with open_session() as session:
        with session.events.open(RunStalled) as events:
            run = session.companies.open(company_id).imports.open(run_id, age=4300.0)
            assert (await run.wait()).status == "completed"
            event = await anext(events)
    assert event.ids == {"run": run_id, "company": company_id}
    assert 4500 <= event.seconds < 4540


async def test_a_park_decided_by_another_process_is_followed_to_the_end(
    open_session: OpenSession, transport: InProcess, world: World, customer: Customer
) -> None:
    async with open_session() as watching, open_session() as deciding:
        company = await deciding.companies.create(name="Acme", source=SOURCE)
        run = await company.imports.start(files=list(customer(contacts=DUPLICATES).files))
        through = asyncio.create_task(watching.watch(run.id, company.id).wait(through_parks=True))
        assert (await watching.watch(run.id, company.id).wait()).status == "needs_attention"
        await asyncio.sleep(300.0)
        assert not through.done()
        await run.approve()
        assert (await through).status == "completed"
    assert max(world.ledger.detection.values()) < 11  # the interval between polls of a parked run


async def test_cancelling_one_waiter_does_not_affect_the_others(
    open_session: OpenSession, world: World
) -> None:
    async with open_session() as session:
        started = await start(session, 5)
        waiting = [asyncio.create_task(session.watch(*ids).wait()) for ids in started for _ in range(4)]
        await asyncio.sleep(20.0)
        waiting[7].cancel()
        ends = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(ends.pop(7), asyncio.CancelledError)
    assert {end.status for end in ends if not isinstance(end, BaseException)} == {"completed"}
    assert len(world.ledger.detection) == 5


async def test_exports_and_imports_share_one_polling_schedule(
    open_session: OpenSession, world: World
) -> None:
    async with open_session(scope="key", limit=30) as session:
        started = await start(session, 10)
        exports = [
            await session.companies.open(company_id).exports.start(mode="full") for _, company_id in started
        ]
        began = asyncio.get_running_loop().time()
        await asyncio.gather(
            *(export.wait() for export in exports for _ in range(5)),
            *(session.watch(*ids).wait() for ids in started),
            return_exceptions=True,  # exports fail: no destination is connected
        )
        minutes = (asyncio.get_running_loop().time() - began) / 60
    assert world.ledger.requests[READ_EXPORT] >= 10
    assert world.ledger.requests[READ] + world.ledger.requests[READ_EXPORT] <= 30 * (minutes + 1)
    assert world.ledger.over_the_limit == 0
