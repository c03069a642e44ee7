"""Worker processes on one key, and what is done to them; the simulator's ledger is the judge.

A few customers in each run. By hand, more: `WORKERS_CUSTOMERS=200 WORKERS_SPEED=10 pytest -s tests/distributed/...`
"""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import pytest
import redis
from cutproxy import CutProxy
from farm import Farm, customers
from servers import PostgresServer, RedisServer

from asyncmig import Delivered, Unknown
from asyncmig.distributed.saq import MigrationQueue

CUSTOMERS = int(os.environ.get("WORKERS_CUSTOMERS", "24"))
SPEED = float(os.environ.get("WORKERS_SPEED", "20"))
HEARTBEAT = 4
pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="needs POSIX signals, and /proc"),
    pytest.mark.timeout(900 if CUSTOMERS > 50 else 300),  # a machine may be busy
]
CLEAN = (
    "lost_companies",
    "over_the_limit",
    "duplicate_imports",
    "duplicate_companies",
    "unaccounted",
    "key_leaks",
    "malformed",
    "hasty_polls",
    "polls_after_the_end",
)


class Servers:
    """A Redis and a PostgreSQL that a test may break."""

    def __init__(self, redis: RedisServer, postgres: PostgresServer) -> None:
        self.redis, self.postgres = redis, postgres


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    redis, postgres = RedisServer(tmp_path_factory.mktemp("redis")), PostgresServer()
    redis.start()
    postgres.start()
    yield Servers(redis, postgres)
    redis.stop()
    postgres.remove()


@asynccontextmanager
async def farm(servers: Servers, folder: Path, prefix: str, *, window: str = "") -> AsyncIterator[Farm]:
    redis = servers.redis.url
    with Farm(
        folder,
        speed=SPEED,
        queue=redis,
        database=servers.postgres.url,
        window=window or redis,
        name=prefix,
    ) as farm:
        yield farm


async def migrate(
    servers: Servers,
    farm: Farm,
    trouble: Callable[[], Awaitable[None]] | None = None,
) -> dict[str, float]:
    """Have all customers migrated during the trouble, and return the ledger's verdict.

    A customer may end as `unknown` only if the ledger has a company for it whose id no worker could record.
    """
    async with MigrationQueue(servers.redis.url, name=farm.name, heartbeat=HEARTBEAT) as queue:
        troubling = asyncio.ensure_future(trouble()) if trouble else None
        try:
            specs = customers(farm.folder / "in", CUSTOMERS)
            outcomes = [outcome async for outcome in queue.run(specs)]
        finally:
            if troubling is not None:
                troubling.cancel()
                await asyncio.gather(troubling, return_exceptions=True)
    unknown = [outcome for outcome in outcomes if isinstance(outcome, Unknown)]
    assert {type(outcome) for outcome in outcomes} <= {Delivered, Unknown}, farm.log()[-5000:]
    assert all(outcome.error.startswith("POST /companies: ") for outcome in unknown)
    assert len({outcome.external_id for outcome in outcomes}) == len(outcomes) == CUSTOMERS
    assert len(list((farm.folder / "out").glob("*/Contacts.csv"))) == CUSTOMERS - len(unknown)
    verdict = await asyncio.to_thread(farm.verdict)
    assert len(unknown) == verdict["lost_companies"], (unknown, farm.log()[-5000:])
    print(verdict, len(unknown), "unknown")  # noqa: T201 - the figures of a run by hand
    return verdict


async def begun(farm: Farm) -> None:
    """Wait until the work has begun."""
    while (await asyncio.to_thread(farm.verdict))["requests"] < CUSTOMERS / 4:  # noqa: ASYNC110 - another process
        await asyncio.sleep(0.2)


def sins(verdict: dict[str, float], *, but: tuple[str, ...] = ()) -> dict[str, float]:
    return {name: verdict[name] for name in CLEAN if verdict[name] and name not in but}


async def test_four_workers_with_clocks_an_hour_apart_are_as_one(
    servers: Servers, tmp_path: Path, prefix: str
) -> None:
    async with farm(servers, tmp_path, prefix) as workers:
        workers.start(4, clocks_off=[-3600.0, 0.0, 3600.0, 7200.0])
        assert sins(await migrate(servers, workers)) == {}
        assert await asyncio.to_thread(workers.stop) == [0, 0, 0, 0]


async def test_workers_that_are_killed_and_paused_lose_and_double_nothing(
    servers: Servers, tmp_path: Path, prefix: str
) -> None:
    rng = Random(4)

    async def trouble() -> None:
        await begun(workers)
        paused = workers.workers[0]
        paused.send_signal(signal.SIGSTOP)  # past its lease, in the journal and in the queue
        for _ in range(3):
            await asyncio.sleep(rng.uniform(0.0, 0.3))
            workers.pause_simulator()  # the killed worker has requests in flight, whatever the machine's load
            await asyncio.sleep(0.3)
            await asyncio.to_thread(workers.kill, rng.randrange(1, 4))
            workers.resume_simulator()
            workers.start()
        await asyncio.sleep(HEARTBEAT)
        paused.send_signal(signal.SIGCONT)

    async with farm(servers, tmp_path, prefix) as workers:
        workers.start(4)
        verdict = await migrate(servers, workers, trouble)
        # The paused worker may read a run that another one has read, and a successor of a dead worker does not know
        # when that worker read last.
        assert sins(verdict, but=("lost_companies", "hasty_polls", "polls_after_the_end")) == {}


async def test_servers_that_restart_and_a_window_that_is_cut_off_stop_nothing(
    servers: Servers, tmp_path: Path, prefix: str
) -> None:
    async with (
        CutProxy(servers.redis.url) as proxy,
        farm(servers, tmp_path, prefix, window=proxy.url) as workers,
    ):

        async def trouble() -> None:
            await begun(workers)
            proxy.open.clear()
            await asyncio.sleep(1.0)
            await asyncio.to_thread(servers.postgres.stop)
            await asyncio.sleep(0.5)
            await asyncio.to_thread(servers.postgres.start)
            await asyncio.sleep(10.0 if CUSTOMERS > 50 else 1.0)
            proxy.open.set()
            await asyncio.sleep(1.0)
            await asyncio.to_thread(servers.redis.stop)
            await asyncio.to_thread(servers.redis.start)

        workers.start(4)
        verdict = await migrate(servers, workers, trouble)
        assert sins(verdict, but=("over_the_limit", "hasty_polls", "polls_after_the_end")) == {}
        assert verdict["over_the_limit"] <= 10 + CUSTOMERS / 10


async def test_a_redis_that_is_emptied_three_times_in_two_seconds_stops_nothing(
    servers: Servers, tmp_path: Path, prefix: str
) -> None:
    async def trouble() -> None:
        await begun(workers)
        with redis.Redis.from_url(servers.redis.url) as client:
            for _ in range(3):
                client.flushall()
                await asyncio.sleep(0.7)

    async with farm(servers, tmp_path, prefix) as workers:
        workers.start(4)
        verdict = await migrate(servers, workers, trouble)
        # A task that goes on for another may read a run that the other has read a moment ago.
        assert sins(verdict, but=("hasty_polls", "polls_after_the_end")) == {}
