"""Use at the wrong time or on the wrong loop is refused with a hint, and no request is sent."""

import asyncio
import pickle
from collections.abc import Callable, Coroutine
from pathlib import Path
from threading import Thread

import pytest
from inprocess import BASE_URL, KEY, InProcess

from asyncmig import Fleet, Gate, InvalidInput, MemoryJournal, Session, SessionClosed, Spec, UsageError
from asyncmig.companies.import_run import ImportRun
from asyncmig.simulator import SCHEMAS, SOURCES, RunDurations, World

Use = Callable[[Session], Coroutine[object, object, object]]
SPEC = Spec(external_id="acme", name="Acme", source=next(iter(SOURCES)), files=(Path("no.csv"),))


@pytest.fixture
def transport() -> InProcess:
    return InProcess(
        World(key=KEY, sources=SOURCES, schemas=SCHEMAS, pace=RunDurations(sigma=0.0)), latency=0.0
    )


@pytest.fixture
def session(transport: InProcess) -> Session:
    return Session(KEY, BASE_URL, transport=transport)


async def call(session: Session) -> object:
    return await session.companies.sources()


async def request(session: Session) -> object:
    return await session.request("GET", "/sources")


async def watch(session: Session) -> object:
    return session.watch("run", "company")


async def upload(session: Session) -> object:
    return await session.companies.open("company").upload(b"x", name="x.csv")


async def fleet(session: Session) -> object:
    async with Fleet(session, journal=MemoryJournal()):
        raise AssertionError


async def check(session: Session) -> object:
    session.check_open()
    return None


USES = [call, request, watch, upload, fleet, check]


@pytest.mark.parametrize("use", USES)
async def test_a_session_that_is_not_open_is_refused(
    session: Session, transport: InProcess, use: Use
) -> None:
    with pytest.raises(UsageError, match=r"not open yet: .*`async with Session\(\.\.\.\) as session:`"):
        await use(session)
    assert transport.sent == []


@pytest.mark.parametrize("use", USES)
async def test_a_session_that_was_left_is_refused(session: Session, transport: InProcess, use: Use) -> None:
    async with session:
        pass
    with pytest.raises(SessionClosed, match="open a new one"):
        await use(session)
    assert transport.sent == []


@pytest.mark.parametrize("use", USES)
async def test_a_session_is_refused_on_another_loop(session: Session, transport: InProcess, use: Use) -> None:
    def run_in_thread() -> None:
        try:
            asyncio.run(use(session))
        except UsageError as error:
            raised.append(error)

    raised: list[UsageError] = []
    async with session:
        thread = Thread(target=run_in_thread)
        thread.start()
        await asyncio.to_thread(thread.join)
    assert len(raised) == 1
    assert "run_coroutine_threadsafe" in str(raised[0])
    assert transport.sent == []
    assert str(pickle.loads(pickle.dumps(raised[0]))) == str(raised[0])


async def test_run_coroutine_threadsafe_works_as_the_error_suggests(session: Session) -> None:
    async with session:
        loop = asyncio.get_running_loop()

        def run_in_thread() -> int:
            return len(asyncio.run_coroutine_threadsafe(session.companies.sources(), loop).result())

        assert await asyncio.to_thread(run_in_thread) == len(SOURCES)


def test_a_session_can_be_created_outside_of_a_loop(session: Session) -> None:
    async def main() -> int:
        async with session:
            return len(await session.companies.sources())

    assert asyncio.run(main()) == len(SOURCES)
    with pytest.raises(SessionClosed):
        asyncio.run(session.companies.sources())


async def test_a_session_can_be_entered_only_once(session: Session) -> None:
    async with session:
        with pytest.raises(UsageError, match="a new Session"):
            async with session:
                raise AssertionError
        assert await session.companies.sources()
    with pytest.raises(UsageError, match="a new Session"):
        async with session:
            raise AssertionError


def test_a_session_and_a_fleet_refuse_with_instead_of_async_with(session: Session) -> None:
    with pytest.raises(UsageError, match="`async with`, not `with`"), session:  # type: ignore[attr-defined]
        raise AssertionError
    with pytest.raises(UsageError, match="a Fleet is used"), Fleet(session, journal=MemoryJournal()):  # type: ignore[attr-defined]
        raise AssertionError


def test_use_without_a_running_loop_is_refused(session: Session) -> None:
    for use in (session.check_open, lambda: session.watch("run", "company")):
        with pytest.raises(UsageError, match=r"asyncio\.run\(main\(\)\)"):
            use()
    with pytest.raises(UsageError, match=r"asyncio\.run\(main\(\)\)"):
        session.companies.sources().send(None)


async def test_waiting_for_a_run_on_another_loop_is_refused(session: Session) -> None:
    async def wait() -> None:
        with pytest.raises(UsageError, match="another event loop"):
            await run.wait()

    async with session:
        run: ImportRun = session.watch("run", "company")
        await asyncio.to_thread(lambda: asyncio.run(wait()))


def test_a_gate_is_refused_on_another_loop_and_without_asyncio() -> None:
    async def take() -> None:
        async with gate.slot() as slot:
            slot.answered(200)

    gate = Gate()
    asyncio.run(take())
    with pytest.raises(UsageError, match="this Gate belongs to another event loop"):
        asyncio.run(take())
    with pytest.raises(UsageError, match="a Gate is used inside a coroutine that asyncio runs"):
        take().send(None)  # as a library other than asyncio would run it


async def test_a_fleet_is_refused_outside_of_its_block(session: Session) -> None:
    async with session:
        driven = Fleet(session, journal=MemoryJournal())
        for when in ("not open yet", "was left"):
            with pytest.raises(UsageError, match=when):
                driven.submit(SPEC)
            with pytest.raises(UsageError, match=when):
                await anext(driven.run([SPEC]))
            with pytest.raises(UsageError, match=when):
                await driven.drain()
            if when == "not open yet":
                async with driven:
                    pass
        with pytest.raises(UsageError, match="a new Fleet"):
            async with driven:
                raise AssertionError
        assert await session.companies.sources()


async def test_a_fleet_is_refused_on_another_loop(session: Session) -> None:
    async def submit() -> None:
        with pytest.raises(UsageError, match="this Fleet belongs to another event loop"):
            driven.submit(SPEC)

    async with session, Fleet(session, journal=MemoryJournal()) as driven:
        await asyncio.to_thread(lambda: asyncio.run(submit()))


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("", "is missing"),
        (" \n", "is missing"),
        ("k3y-of-mine\n", "begins or ends with a blank or a line break"),
        (" k3y-of-mine", "begins or ends with a blank or a line break"),
        ("k3y\nof-mine", "has characters that an HTTP header cannot contain"),
        ("k3y-öf-mine", "has characters that an HTTP header cannot contain"),
    ],
)
def test_a_key_that_cannot_be_sent_is_refused_and_not_shown(key: str, reason: str) -> None:
    with pytest.raises(InvalidInput, match=reason) as refused:
        Session(key)
    assert "k3y" not in repr(refused.value)
