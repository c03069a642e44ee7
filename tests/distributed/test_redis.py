"""Gates of several processes share one real Redis, on a clock that is faster than the wall clock."""

import asyncio
import hashlib
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from random import Random

import pytest
import redis
from gateload import Load, most_in_a_window
from inprocess import BASE_URL, KEY, InProcess
from servers import RedisServer
from windowscript import empty

from asyncmig import Gate, InvalidInput, Session
from asyncmig.distributed.budget_store import SharedBudgets
from asyncmig.distributed.redis import RedisWindow
from asyncmig.distributed.shared_dispatcher import SharedDispatcher
from asyncmig.events import SharedWindowFound, SharedWindowLost
from asyncmig.simulator import SCHEMAS, SOURCES, World, fast_loop
from asyncmig.simulator.server.limits import SlidingLog

SPEED = 60.0


def run(main: Coroutine[object, object, None]) -> None:
    with asyncio.Runner(loop_factory=lambda: fast_loop(SPEED)) as runner:
        runner.run(main)


def world() -> World:
    return World(key=KEY, sources=SOURCES, schemas=SCHEMAS, seed=1)


def gate(window: RedisWindow, *, limit: int = 100) -> Gate:
    shared = SharedBudgets(window=window, account="x", timeout=60.0)
    return Gate(limit=limit, name="GET /x", dispatcher=partial(SharedDispatcher, shared=shared))


async def close(gate: Gate, window: RedisWindow) -> None:
    await gate.aclose()
    await window.aclose()


def test_four_clients_of_one_redis_stay_within_the_limit(redis_url: str, prefix: str) -> None:
    async def main() -> None:
        load, windows = (
            Load(SlidingLog(20), Random(1)),
            [RedisWindow(redis_url, prefix=prefix) for _ in range(4)],
        )
        gates = [gate(window, limit=20) for window in windows]
        await asyncio.gather(*(load.call(one) for one in gates for _ in range(12)))
        await asyncio.gather(*map(close, gates, windows))
        assert load.refused == 0
        assert most_in_a_window(load.spans, 60.0) <= 20
        assert len(load.done_at) == 48

    run(main())


def test_gates_continue_without_a_killed_redis_and_use_it_again_after_its_restart(tmp_path: Path) -> None:
    server = RedisServer(tmp_path)

    async def main() -> None:
        window, load, events = RedisWindow(server.url), Load(SlidingLog(20), Random(1)), list[object]()
        async with Session(
            KEY,
            BASE_URL,
            limit=20,
            transport=InProcess(World(key=KEY, sources=SOURCES, schemas=SCHEMAS, seed=1)),
            shared=window,
        ) as session:
            gate = session.gate("GET", "/sources")
            with session.events.subscribe(events.append):
                calls = asyncio.gather(*(load.call(gate) for _ in range(50)))
                await until(lambda: len(load.done_at) >= 15)
                server.stop()
                await until(lambda: any(isinstance(event, SharedWindowLost) for event in events))
                server.start()
                await until(lambda: any(isinstance(event, SharedWindowFound) for event in events))
                await calls
        assert load.refused == 0
        assert most_in_a_window(load.spans, 60.0) <= 20

    server.start()
    try:
        run(main())
    finally:
        server.stop()


@pytest.mark.parametrize("lost", [False, True])
def test_requests_of_an_earlier_process_count_once_in_the_window(
    redis_url: str, prefix: str, tmp_path: Path, lost: bool
) -> None:
    def session() -> Session:
        return Session(
            KEY,
            BASE_URL,
            limit=5,
            window=1200.0,  # a long window, because the machine may be slow
            transport=InProcess(world()),
            shared=RedisWindow(redis_url, prefix=prefix),
            recent=tmp_path / "recent",
        )

    async def main() -> None:
        async with session() as first:
            for _ in range(3):
                await first.companies.sources()
        if lost:
            empty(redis_url, prefix)
        async with session() as second, session() as third:
            for one in (second, third):
                await one.companies.sources()
            assert third.gate("GET", "/sources").statistics().used == 5

    run(main())


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - no event signals it
        await asyncio.sleep(1.0)


def test_redis_stores_no_api_key_and_gets_no_calls_while_no_request_waits(
    redis_url: str, prefix: str
) -> None:
    client = redis.Redis.from_url(redis_url, decode_responses=True)

    def calls() -> int:
        return int(client.info("commandstats").get("cmdstat_evalsha", {}).get("calls", 0))

    async def main() -> None:
        window = RedisWindow(redis_url, prefix=prefix)
        async with Session(KEY, BASE_URL, transport=InProcess(world()), shared=window) as session:
            await session.companies.sources()
            await asyncio.sleep(30.0)
            before = calls()
            await asyncio.sleep(60.0)
            assert calls() == before

    run(main())
    names = client.keys(f"{prefix}*")
    digest = hashlib.sha256(f"{BASE_URL}\0{KEY}".encode()).hexdigest()[:32]
    assert {name.split(":")[1] for name in names} == {f"{{{digest}x60}}"}
    assert f"{prefix}:{{{digest}x60}}:GET /sources:state" in names
    dumps = [client.execute_command("DUMP", name, NEVER_DECODE=True) for name in names]
    assert not any(KEY.encode() in dump for dump in dumps)


@pytest.mark.parametrize(
    ("url", "options", "match"),
    [
        ("http://user:secret@host", {}, "url"),
        ("redis://localhost", {"processes": 0}, "processes"),
        ("redis://localhost", {"timeout": 0.0}, "timeout"),
    ],
)
def test_invalid_arguments_are_refused_without_showing_the_password(
    url: str, options: dict[str, float], match: str
) -> None:
    with pytest.raises(InvalidInput, match=match) as caught:
        RedisWindow(url, **options)  # type: ignore[arg-type]
    assert "secret" not in str(caught.value)
    assert "secret" not in repr(RedisWindow("redis://:secret@localhost"))


def test_a_redis_that_refuses_the_password_counts_as_unavailable_and_no_log_shows_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = RedisServer(tmp_path, password="right-secret")

    async def main() -> None:
        window = RedisWindow(server.url.replace("right", "wrong"))
        one = gate(window, limit=8)
        async with one.slot() as slot:
            slot.answered(200)
        assert one.statistics().slots == 2
        await close(one, window)

    server.start()
    try:
        run(main())
    finally:
        server.stop()
    assert "the shared window is unavailable" in caplog.text
    assert "secret" not in caplog.text
