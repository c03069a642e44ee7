"""Workers with the API generation "migrations": decisions from another process, and killed workers."""

import asyncio
import sys
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from farm import Farm, customers
from saq.worker import Worker
from servers import PostgresServer, RedisServer

from asyncmig import (
    Answer,
    AnswerRule,
    Approve,
    Change,
    Delivered,
    InvalidInput,
    MemoryJournal,
    Parked,
    Session,
)
from asyncmig.customers.decisions import Credentials
from asyncmig.distributed.postgres import PostgresJournal
from asyncmig.distributed.saq import MigrationQueue, worker_settings
from asyncmig.simulator import fast_loop
from asyncmig.simulator.migrations import Block, Question, Script
from asyncmig.simulator.server.settings import RunDurations
from asyncmig.testing import Simulator

SPEED = 60.0
LIMITS = "agent=600/1h,create=600/1h,generate=600/1h"
CURRENCY = Question(text="Which currency?", options=("EUR", "US Dollar"), allow_custom=False)
ASKS = Script(blocks={"generate": [Block(questions=(CURRENCY,))]})


def run(main: Coroutine[object, object, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(40 * SPEED):
            await main

    with asyncio.Runner(loop_factory=lambda: fast_loop(SPEED)) as runner:
        runner.run(bounded())


@asynccontextmanager
async def working(url: str, name: str, folder: Path, simulator: Simulator) -> AsyncIterator[MigrationQueue]:
    """Run a worker in this process. Yield a queue that uses the journal of the worker."""
    journal = MemoryJournal()

    @asynccontextmanager
    async def own_journal() -> AsyncIterator[MemoryJournal]:
        yield journal

    options = worker_settings(
        url,
        session=lambda: Session(
            simulator.api_key, simulator.base_url, transport=simulator.transport, limits="per-endpoint"
        ),
        journal=own_journal,
        to=folder / "out",
        api="migrations",
        name=name,
        concurrency=4,
    )
    worker = Worker(**options)
    worker.SIGNALS = []
    await worker.queue.connect()
    running = asyncio.create_task(worker.start())
    try:
        async with MigrationQueue(url, name=name, heartbeat=1, journal=journal, api="migrations") as queue:
            yield queue
    finally:
        worker.event.set()
        await running
        await worker.queue.disconnect()


@pytest.mark.parametrize("kind", ["redis", "postgres"])
def test_decisions_from_another_process_lead_to_the_delivery_of_a_customer(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, prefix: str
) -> None:
    url = request.getfixturevalue("redis_url" if kind == "redis" else "database_url")
    pace = RunDurations(queued=1, base=2, per_row=0, sigma=0)
    simulator = Simulator(api="migrations", pace=pace, customers={"c0000": ASKS, "c0001": ASKS})
    asked, answered = customers(tmp_path / "in", 2, "HubSpot")

    async def main() -> None:
        async with working(url, prefix, tmp_path, simulator) as queue:
            (parked,) = [outcome async for outcome in queue.run([asked])]
            assert isinstance(parked, Parked)
            assert parked.attention.kind == "questions"
            with pytest.raises(InvalidInput, match="a queue must not store"):
                await queue.decide("c0000", Credentials({"token": "s3cret"}))
            with pytest.raises(InvalidInput):
                await queue.decide("c0000", Answer({"q1": "GBP"}))
            assert await queue.decide("c0000", Answer({"q1": "US Dollar"}), shown=parked) == "recorded"
            (preview,) = [outcome async for outcome in queue.run([asked])]
            assert isinstance(preview, Parked)
            assert preview.attention.kind == "preview"
            assert await queue.decide("c0000", Change("drop bad rows")) == "recorded"
            (preview,) = [outcome async for outcome in queue.run([asked])]
            assert isinstance(preview, Parked)
            assert await queue.decide("c0000", Approve()) == "recorded"
            (ended,) = [outcome async for outcome in queue.run([asked])]
            assert isinstance(ended, Delivered)
            rules = [AnswerRule(question="currency", choose="eur")]
            (ended,) = [outcome async for outcome in queue.run([answered], answers=rules, decide="approve")]
            assert isinstance(ended, Delivered)
            assert str(tmp_path / "out/c0001/contacts.csv") in [file.path for file in ended.files]
            assert str(simulator.verdict()) == "no faults"

    run(main())
    assert simulator.answers("c0000") == {CURRENCY.text: "US Dollar"}
    assert simulator.answers("c0001") == {CURRENCY.text: "EUR"}


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    redis, postgres = RedisServer(tmp_path_factory.mktemp("redis")), PostgresServer()
    redis.start()
    postgres.start()
    yield redis.url, postgres.url
    redis.stop()
    postgres.remove()


@pytest.mark.timeout(300)
@pytest.mark.skipif(sys.platform != "linux", reason="needs POSIX signals")
async def test_killed_and_stopped_workers_execute_nothing_twice_and_share_the_run_slots(
    servers: tuple[str, str], tmp_path: Path, prefix: str
) -> None:
    redis, postgres = servers
    with Farm(
        tmp_path,
        speed=60.0,
        queue=redis,
        database=postgres,
        window=redis,
        name=prefix,
        api="migrations",
        limits=LIMITS,
    ) as farm:
        farm.start(2)
        async with (
            MigrationQueue(redis, name=prefix, heartbeat=2, api="migrations") as queue,
            PostgresJournal(postgres, schema=prefix) as journal,
        ):

            async def event_written(kind: str) -> None:
                while kind not in [event.kind for event in await journal.events()]:  # noqa: ASYNC110 - another process writes
                    await asyncio.sleep(0.05)

            async def restart_workers() -> None:
                await event_written("started")
                await asyncio.to_thread(farm.kill, 0)
                await asyncio.to_thread(farm.start)
                await event_written("executed")
                await asyncio.to_thread(farm.stop)
                await asyncio.to_thread(farm.start, 2)

            restarting = asyncio.create_task(restart_workers())
            specs = customers(tmp_path / "in", 8, "HubSpot")
            outcomes = [outcome async for outcome in queue.run(specs)]
            await restarting
        verdict = await asyncio.to_thread(farm.verdict)
        assert {type(outcome) for outcome in outcomes} == {Delivered}, (outcomes, farm.log()[-3000:])
        faults = ("executed_twice", "generated_twice", "uploaded_twice", "duplicate_migrations", "key_leaks")
        assert {
            name: verdict[name] for name in (*faults, "over_the_limit", "starts_beyond_three")
        } == dict.fromkeys((*faults, "over_the_limit", "starts_beyond_three"), 0)
        assert len(list((tmp_path / "out").glob("*/contacts.csv"))) == 8
