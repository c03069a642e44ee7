"""Worker processes share one key and are disturbed. The ledger of the simulator shows their faults.

Each run has few customers. For a larger run: `WORKERS_CUSTOMERS=200 WORKERS_SPEED=10 pytest -s tests/distributed/...`
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
    pytest.mark.timeout(900 if CUSTOMERS > 50 else 300),  # the machine may be busy
]
FAULTS = (
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
    """A Redis and a PostgreSQL that a test may stop."""

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
    disturb: Callable[[], Awaitable[None]] | None = None,
) -> dict[str, float]:
    """Migrate all customers while `disturb` runs, and return the verdict of the ledger.

    A customer may end as `unknown` only if the ledger has a company for it whose id no worker could record.
    """
    async with MigrationQueue(servers.redis.url, name=farm.name, heartbeat=HEARTBEAT) as queue:
        disturbing = asyncio.ensure_future(disturb()) if disturb else None
        try:
            specs = customers(farm.folder / "in", CUSTOMERS)
            outcomes = [outcome async for outcome in queue.run(specs)]
        finally:
            if disturbing is not None:
                disturbing.cancel()
                await asyncio.gather(disturbing, return_exceptions=True)
    unknown = [outcome for outcome in outcomes if isinstance(outcome, Unknown)]
    assert {type(outcome) for outcome in outcomes} <= {Delivered, Unknown}, farm.log()[-5000:]
    assert all(outcome.error.startswith("POST /companies: ") for outcome in unknown)
    assert len({outcome.external_id for outcome in outcomes}) == len(outcomes) == CUSTOMERS
    assert len(list((farm.folder / "out").glob("*/Contacts.csv"))) == CUSTOMERS - len(unknown)
    verdict = await asyncio.to_thread(farm.verdict)
    assert len(unknown) == verdict["lost_companies"], (unknown, farm.log()[-5000:])
    print(verdict, len(unknown), "unknown")  # noqa: T201 - figures for a manual run
    return verdict


async def until_begun(farm: Farm) -> None:
    """Wait until the simulator has got some requests."""
    while (await asyncio.to_thread(farm.verdict))["requests"] < CUSTOMERS / 4:  # noqa: ASYNC110 - another process
        await asyncio.sleep(0.2)


def faults(verdict: dict[str, float], *, except_for: tuple[str, ...] = ()) -> dict[str, float]:
    return {name: verdict[name] for name in FAULTS if verdict[name] and name not in except_for}


async def test_four_workers_with_clocks_hours_apart_cause_no_fault(
    servers: Servers, tmp_path: Path, prefix: str
) -> None:
    async with farm(servers, tmp_path, prefix) as workers:
        workers.start(4, clocks_off=[-3600.0, 0.0, 3600.0, 7200.0])
        assert faults(await migrate(servers, workers)) == {}
        assert await asyncio.to_thread(workers.stop) == [0, 0, 0, 0]


async def test_killed_and_paused_workers_lose_and_duplicate_nothing(
    servers: Servers, tmp_path: Path, prefix: str
) -> None:
    rng = Random(4)

    async def disturb() -> None:
        await until_begun(workers)
        paused = workers.workers[0]
        paused.send_signal(signal.SIGSTOP)  # until its leases in the journal and in the queue have expired
        for _ in range(3):
            await asyncio.sleep(rng.uniform(0.0, 0.3))
            workers.pause_simulator()  # so that the killed worker has requests in flight
            await asyncio.sleep(0.3)
            await asyncio.to_thread(workers.kill, rng.randrange(1, 4))
            workers.resume_simulator()
            workers.start()
        await asyncio.sleep(HEARTBEAT)
        paused.send_signal(signal.SIGCONT)

    async with farm(servers, tmp_path, prefix) as workers:
        workers.start(4)
        verdict = await migrate(servers, workers, disturb)
        # The paused worker may read a run that another worker has just read. The successor of a dead worker does not
        # know when that worker last read the run.
        assert faults(verdict, except_for=("lost_companies", "hasty_polls", "polls_after_the_end")) == {}


async def test_work_continues_when_servers_restart_and_the_window_is_disconnected(
    servers: Servers, tmp_path: Path, prefix: str
) -> None:
    async with (
        CutProxy(servers.redis.url) as proxy,
        farm(servers, tmp_path, prefix, window=proxy.url) as workers,
    ):

        async def disturb() -> None:
            await until_begun(workers)
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
        verdict = await migrate(servers, workers, disturb)
        assert faults(verdict, except_for=("over_the_limit", "hasty_polls", "polls_after_the_end")) == {}
        assert verdict["over_the_limit"] <= 10 + CUSTOMERS / 10


async def test_work_continues_when_redis_is_emptied_three_times_in_two_seconds(
    servers: Servers, tmp_path: Path, prefix: str
) -> None:
    async def disturb() -> None:
        await until_begun(workers)
        with redis.Redis.from_url(servers.redis.url) as client:
            for _ in range(3):
                client.flushall()
                await asyncio.sleep(0.7)

    async with farm(servers, tmp_path, prefix) as workers:
        workers.start(4)
        verdict = await migrate(servers, workers, disturb)
        # A task that takes over a customer may read a run that the previous task has just read.
        assert faults(verdict, except_for=("hasty_polls", "polls_after_the_end")) == {}
