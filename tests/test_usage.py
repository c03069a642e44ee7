"""Use in the wrong place: each is refused with what to write instead, and nothing is sent."""

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
def wire() -> InProcess:
    return InProcess(
        World(key=KEY, sources=SOURCES, schemas=SCHEMAS, pace=RunDurations(sigma=0.0)), latency=0.0
    )


@pytest.fixture
def session(wire: InProcess) -> Session:
    return Session(KEY, BASE_URL, transport=wire)


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
async def test_a_session_is_opened_first(session: Session, wire: InProcess, use: Use) -> None:
    with pytest.raises(UsageError, match=r"not open yet: .*`async with Session\(\.\.\.\) as session:`"):
        await use(session)
    assert wire.sent == []


@pytest.mark.parametrize("use", USES)
async def test_a_session_that_was_left_says_so(session: Session, wire: InProcess, use: Use) -> None:
    async with session:
        pass
    with pytest.raises(SessionClosed, match="open a new one"):
        await use(session)
    assert wire.sent == []


@pytest.mark.parametrize("use", USES)
async def test_a_session_is_used_on_the_loop_that_entered_it(
    session: Session, wire: InProcess, use: Use
) -> None:
    def elsewhere() -> None:
        try:
            asyncio.run(use(session))
        except UsageError as error:
            raised.append(error)

    raised: list[UsageError] = []
    async with session:
        thread = Thread(target=elsewhere)
        thread.start()
        await asyncio.to_thread(thread.join)
    assert len(raised) == 1
    assert "run_coroutine_threadsafe" in str(raised[0])
    assert wire.sent == []
    assert str(pickle.loads(pickle.dumps(raised[0]))) == str(raised[0])


async def test_the_way_that_it_says_works(session: Session) -> None:
    async with session:
        loop = asyncio.get_running_loop()

        def elsewhere() -> int:
            return len(asyncio.run_coroutine_threadsafe(session.companies.sources(), loop).result())

        assert await asyncio.to_thread(elsewhere) == len(SOURCES)


def test_a_session_made_outside_of_any_loop_may_be_entered_in_one(session: Session) -> None:
    async def main() -> int:
        async with session:
            return len(await session.companies.sources())

    assert asyncio.run(main()) == len(SOURCES)
    with pytest.raises(SessionClosed):
        asyncio.run(session.companies.sources())


async def test_a_session_is_entered_once(session: Session) -> None:
    async with session:
        with pytest.raises(UsageError, match="a new Session"):
            async with session:
                raise AssertionError
        assert await session.companies.sources()
    with pytest.raises(UsageError, match="a new Session"):
        async with session:
            raise AssertionError


def test_a_session_is_not_used_with_with(session: Session) -> None:
    with pytest.raises(UsageError, match="`async with`, not `with`"), session:  # type: ignore[attr-defined]
        raise AssertionError
    with pytest.raises(UsageError, match="a Fleet is used"), Fleet(session, journal=MemoryJournal()):  # type: ignore[attr-defined]
        raise AssertionError


def test_no_loop_at_all_is_told(session: Session) -> None:
    for use in (session.check_open, lambda: session.watch("run", "company")):
        with pytest.raises(UsageError, match=r"asyncio\.run\(main\(\)\)"):
            use()
    with pytest.raises(UsageError, match=r"asyncio\.run\(main\(\)\)"):
        session.companies.sources().send(None)


async def test_a_run_is_not_waited_for_on_another_loop(session: Session) -> None:
    async def wait() -> None:
        with pytest.raises(UsageError, match="another event loop"):
            await run.wait()

    async with session:
        run: ImportRun = session.watch("run", "company")
        await asyncio.to_thread(lambda: asyncio.run(wait()))


def test_a_gate_stays_on_its_loop() -> None:
    async def take() -> None:
        async with gate.slot() as slot:
            slot.answered(200)

    gate = Gate()
    asyncio.run(take())
    with pytest.raises(UsageError, match="this Gate belongs to another event loop"):
        asyncio.run(take())
    with pytest.raises(UsageError, match="a Gate is used inside a coroutine that asyncio runs"):
        take().send(None)  # as another library than asyncio runs it


async def test_a_fleet_is_used_inside_its_block(session: Session) -> None:
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


async def test_a_fleet_stays_on_its_loop(session: Session) -> None:
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
