"""Several processes share the budgets and run slots of one account in a real Redis, on a virtual clock."""

import asyncio
from collections.abc import Sequence
from random import Random

from inprocess import BASE_URL, KEY, InProcess
from mortal import Life, MortalTransport, run
from sharedstore import Store
from windowscript import ScriptedWindow

from asyncmig import Session
from asyncmig.migrations import Preview, Report
from asyncmig.simulator import RunDurations
from asyncmig.simulator.migrations import Variants, World

CONTACTS = b"E-mail,Given Name,Surname,Phone\r\na@x.org,Ada,L,1\r\n"
CUSTOMERS = 12
DIES_AT = 2
"""The process is killed just after its n-th request or exchange with Redis, where n is this number."""


async def customer(session: Session, name: str) -> None:
    """Create a migration, upload a file, generate and execute. Each step charges different budgets."""
    migration = await session.migrations.create(name=name, source="HubSpot", external_id=name)
    await migration.upload_all([("contacts.csv", CONTACTS)])
    assert isinstance(await (await migration.generate()).wait(), Preview)
    assert isinstance(await (await migration.execute()).wait(), Report)


async def process(
    world: World, life: Life, seed: int, names: Sequence[str], shared: ScriptedWindow | None
) -> None:
    transport = MortalTransport(InProcess(world, rng=Random(seed)), life)
    async with Session(KEY, BASE_URL, transport=transport, rng=Random(seed), shared=shared) as session:
        for name in names:
            await customer(session, name)


def account() -> World:
    pace = RunDurations(queued=1.0, base=60.0, per_row=0.0, sigma=0.0)
    return World(key=KEY, seed=1, pace=pace, variants=Variants(window="sliding", rejects_count=True))


def test_four_processes_with_one_killed_take_at_most_15_percent_longer_than_one(
    redis_url: str, prefix: str
) -> None:
    names = [f"c{n}" for n in range(CUSTOMERS)]
    killed, lives = Life(dies_at=DIES_AT, after=True), [Life() for _ in range(3)]

    async def one(world: World) -> float:
        await process(world, Life(), 1, names, None)
        return asyncio.get_running_loop().time()

    async def four(world: World) -> float:
        runs = Store().runs("x")
        windows = [ScriptedWindow(redis_url, prefix, runs, life) for life in (killed, *lives)]
        dying = asyncio.create_task(process(world, killed, 0, ["killed"], windows[0]))
        others = [
            process(world, life, seed, names[seed - 1 :: 3], windows[seed])
            for seed, life in enumerate(lives, start=1)
        ]
        await asyncio.gather(*others)
        took = asyncio.get_running_loop().time()
        assert not dying.done()
        dying.cancel()
        await asyncio.wait([dying])
        return took

    alone, shared = account(), account()
    took = run(one(alone)), run(four(shared))
    assert killed.points[-1] == "POST migrations"  # it took hourly and per-minute slots, without an answer
    assert [str(world.verdict(10.0**6)) for world in (alone, shared)] == ["no faults", "no faults"]
    assert took[1] <= 1.15 * took[0]
