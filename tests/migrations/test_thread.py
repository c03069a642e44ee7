"""The thread: all iterations share one stream, which reconnects after the last sequence under any failure."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from itertools import pairwise

import pytest

from asyncmig import AuthError, InvalidInput, SessionClosed
from asyncmig.migrations.migration import Migration
from asyncmig.migrations.previews import Preview
from asyncmig.migrations.thread import Event

from .conftest import OpenMigration
from .server import Account, Reply

pytestmark = pytest.mark.looptime
STREAM = "/migrations/m1/thread/stream"


@pytest.mark.parametrize("first", [0, 1, 1000])
async def test_the_iteration_ends_with_the_run(
    first: int, open_migration: OpenMigration, account: Account
) -> None:
    account.first_sequence = first
    async with open_migration() as migration:
        run = await migration.generate()
        account.add_event(account.now + 5, "message", {"text": "Read"})
        account.add_event(account.now + 9, "message", "ing")
        events = [event async for event in migration.thread()]
        assert await migration.events(after=first) == events[1:]
        assert await run.messages() == "Reading"
    assert [event.text for event in events if event.type == "message"] == ["Read", "ing"]
    assert {event.type for event in events} == {"message", "preview"}


def early_done(account: Account) -> Callable[[], AsyncIterator[bytes]]:
    async def stream() -> AsyncIterator[bytes]:
        yield b'event: done\ndata: {"last_sequence":0}\n\n'

    return stream


def cut(account: Account) -> Callable[[], AsyncIterator[bytes]]:
    async def stream() -> AsyncIterator[bytes]:
        yield b'event: message\ndata: {"sequence":1,"type":"mess'

    return stream


def failing(account: Account) -> Callable[[], AsyncIterator[bytes]]:
    async def stream() -> AsyncIterator[bytes]:
        yield b'event: error\ndata: {"error":"stream broke"}\n\n'

    return stream


async def all_events(migration: Migration) -> list[Event]:
    return [event async for event in migration.thread()]


@pytest.mark.parametrize("kind", [early_done, cut, failing, "404", "lost", "500", "429"])
@pytest.mark.parametrize("times", [1, 5, 1000])
async def test_a_wait_and_an_iteration_survive_failures_of_the_stream(
    kind: object, times: int, open_migration: OpenMigration, account: Account
) -> None:
    seen = 0

    def stream(body: object, query: dict[str, str]) -> Reply:
        nonlocal seen
        seen += 1
        if seen > times or kind in ("lost", "500", "429"):
            return Reply(200, stream=account.stream(int(query.get("after", -1))))
        if kind == "404":
            return Reply(404, {"error": "no such route"})
        return Reply(200, stream=kind(account)())  # type: ignore[operator]

    account.routes["GET", STREAM] = stream
    if kind in ("lost", "500", "429"):
        fault = kind if kind == "lost" else int(str(kind))
        account.fault = lambda method, path, n: fault if path == STREAM and n <= times else None
    async with open_migration() as migration:
        run = await migration.generate()
        iteration = asyncio.create_task(all_events(migration))
        assert isinstance(await run.wait(), Preview)
        ended = account.now
        async with asyncio.timeout(120.0):
            assert [event.type for event in await iteration] == ["preview"]
    assert ended < 60 + 35
    assert seen < 12


async def test_error_events_of_the_thread_are_yielded(
    open_migration: OpenMigration, account: Account
) -> None:
    async with open_migration() as migration:
        await migration.generate()
        account.add_event(account.now + 5, "error", {"message": "one file could not be read"})
        events = [event async for event in migration.thread()]
    assert [event.text for event in events if event.type == "error"] == ["one file could not be read"]


async def test_unordered_events_with_duplicates_are_sorted_and_returned_once(
    open_migration: OpenMigration, account: Account
) -> None:
    def shuffled(body: object, query: dict[str, str]) -> Reply:
        events = account.events(int(query.get("after", -1)))
        last = max((event["sequence"] for event in events), default=None)
        return Reply(200, {"events": [*reversed(events), *events[:1]], "last_sequence": last})

    account.routes["GET", "/migrations/m1/thread"] = shuffled
    async with open_migration() as migration:
        await migration.generate()
        for second in range(5):
            account.add_event(account.now + second, "message", {"text": str(second)})
        await asyncio.sleep(6)
        assert [event.text for event in await migration.events() if event.type == "message"] == [*"01234"]


async def test_iterations_share_one_stream_and_each_yields_all_events(
    open_migration: OpenMigration, account: Account
) -> None:
    async with open_migration() as migration:
        await migration.generate()
        for second in range(30):
            account.add_event(account.now + second, "message", {"text": str(second)})

        async def texts(delay: float, after: int) -> list[str]:
            await asyncio.sleep(delay)
            found = [event async for event in migration.thread(after=after)]
            return [event.text for event in found if event.type == "message"]

        whole, late, part = await asyncio.gather(texts(0, 0), texts(10, 0), texts(20, 11))
    assert whole == late == [str(second) for second in range(30)]
    assert part == whole[-len(part) :]
    assert account.count("GET", "/thread/stream") == 1


async def test_polls_are_frequent_again_after_a_wait_that_shared_the_stream_was_cancelled(
    open_migration: OpenMigration, account: Account
) -> None:
    account.steps["generate"] = [(300.0, {"status": "awaiting_approval"})]
    async with open_migration() as migration:
        run = await migration.generate()
        iteration = asyncio.create_task(all_events(migration))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(100.0):
                await run.wait()
        waits_again = account.now
        assert isinstance(await run.wait(stream=False), Preview)
        await iteration
    reads = [at for at, method, path, _ in account.sent if method == "GET" and path.endswith("/runs/run-1")]
    assert all(later - earlier < 40.0 for earlier, later in pairwise(at for at in reads if at > waits_again))
    assert account.count("GET", "/thread/stream") == 1


async def test_an_open_stream_is_closed_with_its_only_iteration(
    open_migration: OpenMigration, account: Account
) -> None:
    account.stream_ends = False
    async with open_migration() as migration:
        await migration.generate()
        async with aclosing(migration.thread()) as events:
            async for event in events:
                if event.type == "preview":
                    break
        assert [task for task in asyncio.all_tasks() if task.get_name() == "asyncmig thread"] == []
        with pytest.raises(InvalidInput, match="include"):
            await migration.events(include="nothing")  # type: ignore[arg-type]


async def test_an_unclosed_iteration_ends_with_the_session(
    open_migration: OpenMigration, account: Account
) -> None:
    account.stream_ends = False
    async with open_migration() as migration:
        await migration.generate()
        events = migration.thread()
        assert (await anext(events)).type == "preview"
        waiting = asyncio.create_task(anext(migration.thread(after=1)))
        await asyncio.sleep(5)
    with pytest.raises(SessionClosed):
        await waiting
    assert asyncio.all_tasks() == {asyncio.current_task()}
    with pytest.raises(SessionClosed):
        await anext(events)


async def test_a_refused_key_ends_the_iteration(open_migration: OpenMigration, account: Account) -> None:
    account.fault = lambda method, path, n: 401 if path == STREAM else None
    async with open_migration() as migration:
        with pytest.raises(AuthError):
            _ = [event async for event in migration.thread()]


async def test_request_input_is_read_in_each_shape() -> None:
    question = {"id": "q1", "question": "Which?"}
    shapes = [
        [question],
        {"questions": [question]},
        {"requests": [question]},
        {"inputs": [question]},
        question,
    ]
    for shape in shapes:
        (asked,) = Event(type="request_input", data=shape).questions
        assert asked.prompt == "Which?"
    assert Event(type="request_input", data={"kind": "source_credentials"}).questions == ()
