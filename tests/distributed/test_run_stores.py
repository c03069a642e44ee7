"""All stores of run slots: concurrent updates, damaged states, outages, and processes that share run slots."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from asyncmig import Gate, JournalError
from asyncmig._core.run_table import RunStore
from asyncmig._io.gate import joined_gate
from asyncmig._io.run_slots import RunSlots
from asyncmig.distributed.local import LocalWindow
from asyncmig.distributed.postgres import PostgresJournal
from asyncmig.distributed.redis import RedisWindow

OpenStore = Callable[[], "AsyncIterator[RunStore]"]


@pytest.fixture(params=["local", "redis", "postgres"])
def open_store(request: pytest.FixtureRequest, tmp_path: Path, prefix: str) -> Callable[[], object]:
    """Return a function that opens the same store once for each process of a test."""

    @asynccontextmanager
    async def store() -> AsyncIterator[RunStore]:
        if request.param == "local":
            yield LocalWindow(folder=tmp_path).runs("x")
        elif request.param == "redis":
            window = RedisWindow(request.getfixturevalue("redis_url"), prefix=prefix)
            yield window.runs("x")
            await window.aclose()
        else:
            url = request.getfixturevalue("database_url")
            async with PostgresJournal(url, schema=prefix) as journal:
                yield journal.run_slots("x")

    return store


async def test_no_update_is_lost_and_the_clock_advances(open_store: OpenStore) -> None:
    times: list[float] = []

    def count(state: bytes, now: float) -> bytes:
        times.append(now)
        return str(int(state or b"0") + 1).encode()

    async with open_store() as one, open_store() as other:  # type: ignore[attr-defined]
        await asyncio.gather(*(store.update(count, speed=2.0) for store in (one, other) for _ in range(5)))
        seen: list[bytes] = []
        await one.update(lambda state, _: seen.append(state) or state, speed=2.0)
        before = times[-1]
        await asyncio.sleep(0.05)
        await one.update(count, speed=2.0)
    assert seen == [b"10"]
    assert times[-1] - before >= 0.1  # at speed 2.0, two seconds pass in one second of the wall clock


async def test_two_processes_start_one_run_at_a_time(open_store: OpenStore) -> None:
    async with open_store() as one, open_store() as other:  # type: ignore[attr-defined]
        processes = [(RunSlots(1), store) for store in (one, other)]
        for runs, store in processes:
            runs.share(store)
        gates = [joined_gate([Gate(name="agent")], runs=runs) for runs, _ in processes]
        async with gates[0].slot(run="a") as slot:
            slot.answered(201)
        waiting = asyncio.create_task(start(gates[1], "b"))
        await asyncio.sleep(0.3)
        assert not waiting.done()
        processes[1][0].seen("a")  # this process takes over the customer
        processes[1][0].left("a")
        await waiting
        assert processes[1][0].statistics().runs == ("b",)
        for runs, _ in processes:
            await runs.aclose()


async def start(gate: Gate, run: str) -> None:
    async with gate.slot(run=run) as slot:
        slot.answered(201)


async def test_a_damaged_state_is_replaced(open_store: OpenStore) -> None:
    async with open_store() as store:  # type: ignore[attr-defined]
        await store.update(lambda *_: b'{"runs": {"a":', speed=1.0)
        runs = RunSlots(1)
        runs.share(store)
        await start(joined_gate([Gate(name="agent")], runs=runs), "b")
        await runs.aclose()


async def test_an_unreachable_database_raises_a_journal_error(prefix: str) -> None:
    journal = PostgresJournal("postgresql://u:secret@127.0.0.1:1/db", schema=prefix)
    with pytest.raises(JournalError) as caught:
        await journal.run_slots("x").update(lambda state, _: state, speed=1.0)
    assert "secret" not in str(caught.value)
