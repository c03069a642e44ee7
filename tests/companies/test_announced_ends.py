"""A reply that names a run may also have its final status: such a run is read before all other polled runs."""

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

from .conftest import SOURCE, OpenSession

pytestmark = pytest.mark.looptime
ROWS = [{"Email": f"p{n}@x.org", "First Name": "F", "Last Name": "L"} for n in range(20)]
SOON = 6.0
"""Seconds: twice the minimum interval between polls of a run, and the delay between two requests."""


def now() -> float:
    return asyncio.get_running_loop().time()


@asynccontextmanager
async def session_with_polls(open_session: OpenSession, *, runs: int = 60) -> AsyncIterator[Session]:
    """Open a session that polls `runs` imports and has observed how long imports take."""
    async with open_session() as session:

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


async def import_in_an_earlier_process(open_session: OpenSession, *, export: bool = False) -> str:
    """Create a company and wait for the end of its runs in a session of its own; return the company id."""
    async with open_session() as session:
        company = await session.companies.create(
            name="Acme", source=SOURCE, connections={"destination": {"base_url": "https://d.invalid"}}
        )
        await (await company.imports.start(rows=ROWS, idempotency_key="k")).wait()
        if export:
            await (await company.exports.start(mode="full", idempotency_key="k")).wait()
    return company.id


async def seconds_until_the_end(run: ImportRun | ExportRun) -> float:
    began = now()
    await run.wait()
    return now() - began


@pytest.mark.parametrize("status", [200, 201])
async def test_a_repeated_start_of_an_ended_import_is_read_next(
    open_session: OpenSession, world: World, status: int
) -> None:
    world.variants = replace(world.variants, replay_status=status)
    company_id = await import_in_an_earlier_process(open_session)
    async with session_with_polls(open_session) as session:
        imports = session.companies.open(company_id).imports
        run = await imports.start(rows=ROWS, idempotency_key="k")
        assert await seconds_until_the_end(run) < SOON


async def test_a_repeated_start_of_an_ended_export_is_read_next(open_session: OpenSession) -> None:
    company_id = await import_in_an_earlier_process(open_session, export=True)
    async with session_with_polls(open_session) as session:
        run = await session.companies.open(company_id).exports.start(mode="full", idempotency_key="k")
        assert await seconds_until_the_end(run) < SOON


async def parked(company: Company) -> ImportRun:
    duplicates = [{"Email": "p@x.org", "First Name": "F", "Last Name": "L"}] * 20
    run = await company.imports.start(rows=duplicates)
    await run.wait()
    assert run.needs_attention is not None
    return run


async def test_a_recovered_import_that_has_parked_is_read_next(open_session: OpenSession) -> None:
    async with open_session() as session:
        company = await session.companies.create(name="Acme", source=SOURCE)
        await parked(company)
    async with session_with_polls(open_session) as session:
        run = await session.companies.open(company.id).imports.recover()
        assert run is not None
        assert await seconds_until_the_end(run) < SOON
        assert run.needs_attention is not None


async def test_a_run_that_a_decision_ended_is_read_next(
    open_session: OpenSession, transport: InProcess, world: World
) -> None:
    async with session_with_polls(open_session, runs=150) as session:
        run = await parked(await session.companies.create(name="Acme", source=SOURCE))
        answer = f'{{"run_id": "{run.id}", "status": "failed", "poll_url": "/"}}'.encode()
        transport.fault = lambda method, path, number: (
            Fault(afterwards=Reply(status=200, body=answer)) if path.endswith("/decisions") else None
        )
        await run.reject()
        with pytest.raises(RunFailed):
            await run.wait()
        assert world.ledger.detection[run.id] < SOON
