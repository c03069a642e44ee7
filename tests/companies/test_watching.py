"""Runs of a whole fleet, followed by whoever asks, through everything that a session has."""

import asyncio
from statistics import mean

import pytest
from inprocess import KEY, InProcess

from asyncmig import Session, SessionClosed
from asyncmig.simulator import SCHEMAS, SOURCES, Pace, World

from .conftest import SOURCE, Opens

pytestmark = pytest.mark.looptime
READ, LIST = "GET /companies/{id}/imports/{run_id}", "GET /companies/{id}/imports"


async def start(session: Session, count: int) -> list[tuple[str, str]]:
    """Start an import in each of `count` companies; return run and company ids."""

    async def one(number: int) -> tuple[str, str]:
        company = await session.companies.create(name=f"c{number}", source=SOURCE)
        run = await company.imports.start(rows=[{"a": n} for n in range(number % 7 * 40 + 1)])
        return run.id, company.id

    return list(await asyncio.gather(*(one(number) for number in range(count))))


async def follow(opens: Opens, world: World, count: int, **options: object) -> float:
    """Wait for `count` runs with a short budget of polls; return the mean detection delay in seconds."""
    async with opens(limit=10_000) as session:
        started = await start(session, count)
    async with opens(limit=12, **options) as session:
        await asyncio.gather(*(session.watch(*ids).wait() for ids in started))
    assert len(world.ledger.detection) == count
    return mean(world.ledger.detection.values())


async def test_a_short_budget_gains_from_the_second_channel(
    opens: Opens, wire: InProcess, world: World
) -> None:
    without = await follow(opens, world, 60)
    assert world.ledger.requests[LIST] == 0
    world.ledger.detection.clear()
    wire.world = again = World(key=KEY, sources=SOURCES, schemas=SCHEMAS, seed=5, pace=Pace(sigma=0.0))
    assert await follow(opens, again, 60, second_channel=True) < without
    assert again.ledger.requests[LIST] > 20


async def test_the_sessions_own_gate_goes_by_the_routes_of_the_contract(opens: Opens, world: World) -> None:
    async with opens() as session:
        ((run_id, company_id),) = await start(session, 1)
        await session.watch(run_id, company_id).wait()
        for endpoint, count in world.ledger.requests.items():
            assert session.gate(*endpoint.split()).statistics().granted == count


async def test_with_one_budget_for_the_key_there_is_no_second_channel(opens: Opens, world: World) -> None:
    await follow(opens, world, 20, second_channel=True, scope="key")
    assert world.ledger.requests[LIST] == 0


async def test_any_number_of_tasks_share_the_polls_of_a_run(opens: Opens, world: World) -> None:
    async with opens() as session:
        ((run_id, company_id),) = await start(session, 1)
        states = await asyncio.gather(*(session.watch(run_id, company_id).wait() for _ in range(50)))
        reads = world.ledger.requests[READ]
        assert {state.status for state in states} == {"completed"}
        assert reads < 30
        again = session.watch(run_id, company_id)
        assert (await again.wait()).status == "completed"
        assert world.ledger.requests[READ] <= reads + 1


async def test_runs_stay_alive_when_the_session_closes_and_can_be_watched_again(
    opens: Opens, world: World
) -> None:
    async with opens() as session:
        ((run_id, company_id),) = await start(session, 1)
        waiting = asyncio.create_task(session.watch(run_id, company_id).wait())
        await asyncio.sleep(10.0)
    with pytest.raises(SessionClosed):
        await waiting
    async with opens() as session:
        assert (await session.watch(run_id, company_id).wait()).status == "completed"
