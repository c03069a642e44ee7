"""A reply that names a run may name its end, too: the run is read next, however many others are polled."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from inprocess import InProcess

from asyncmig import RunFailed, Session
from asyncmig.companies import Company
from asyncmig.companies.exports import ExportRun
from asyncmig.companies.import_run import ImportRun
from asyncmig.simulator import Fault, Reply, World

from .conftest import SOURCE, Opens

pytestmark = pytest.mark.looptime
ROWS = [{"Email": f"p{n}@x.org", "First Name": "F", "Last Name": "L"} for n in range(20)]
SOON = 6.0
"""Seconds: two floors, and the pace of the polls."""


def now() -> float:
    return asyncio.get_running_loop().time()


@asynccontextmanager
async def busy(opens: Opens, *, runs: int = 60) -> AsyncIterator[Session]:
    """Open a session that polls `runs` imports, and has learnt how long imports take."""
    async with opens() as session:

        async def one(number: int) -> None:
            company = await session.companies.create(name=f"Other {number}", source=SOURCE)
            await asyncio.sleep(60.0 * (number % 2))
            await (await company.imports.start(rows=ROWS)).wait()

        others = [asyncio.ensure_future(one(number)) for number in range(runs)]
        await asyncio.sleep(90.0)
        yield session
        for other in others:
            other.cancel()
        await asyncio.gather(*others, return_exceptions=True)


async def first(opens: Opens, *, export: bool = False) -> str:
    """Create a company, and start and end its runs in an earlier process; return its id."""
    async with opens() as session:
        company = await session.companies.create(
            name="Acme", source=SOURCE, connections={"destination": {"base_url": "https://d.invalid"}}
        )
        await (await company.imports.start(rows=ROWS, idempotency_key="k")).wait()
        if export:
            await (await company.exports.start(mode="full", idempotency_key="k")).wait()
    return company.id


async def seconds_to_the_end(run: ImportRun | ExportRun) -> float:
    began = now()
    await run.wait()
    return now() - began


@pytest.mark.parametrize("status", [200, 201])
async def test_a_repeated_start_that_finds_its_import_ended(opens: Opens, world: World, status: int) -> None:
    world.variants = replace(world.variants, replay_status=status)
    company_id = await first(opens)
    async with busy(opens) as session:
        imports = session.companies.open(company_id).imports
        run = await imports.start(rows=ROWS, idempotency_key="k")
        assert await seconds_to_the_end(run) < SOON


async def test_a_repeated_start_of_an_export_that_has_ended(opens: Opens) -> None:
    company_id = await first(opens, export=True)
    async with busy(opens) as session:
        run = await session.companies.open(company_id).exports.start(mode="full", idempotency_key="k")
        assert await seconds_to_the_end(run) < SOON


async def parked(company: Company) -> ImportRun:
    duplicates = [{"Email": "p@x.org", "First Name": "F", "Last Name": "L"}] * 20
    run = await company.imports.start(rows=duplicates)
    await run.wait()
    assert run.needs_attention is not None
    return run


async def test_an_active_import_that_has_parked(opens: Opens) -> None:
    async with opens() as session:
        company = await session.companies.create(name="Acme", source=SOURCE)
        await parked(company)
    async with busy(opens) as session:
        run = await session.companies.open(company.id).imports.recover()
        assert run is not None
        assert await seconds_to_the_end(run) < SOON
        assert run.needs_attention is not None


async def test_a_decision_that_ended_the_run(opens: Opens, wire: InProcess, world: World) -> None:
    async with busy(opens, runs=150) as session:
        run = await parked(await session.companies.create(name="Acme", source=SOURCE))
        answer = f'{{"run_id": "{run.id}", "status": "failed", "poll_url": "/"}}'.encode()
        wire.fault = lambda method, path, number: (
            Fault(afterwards=Reply(status=200, body=answer)) if path.endswith("/decisions") else None
        )
        await run.reject()
        with pytest.raises(RunFailed):
            await run.wait()
        assert world.ledger.detection[run.id] < SOON
