"""Fleets during an outage of the server, time-outs per endpoint, and the secrecy of the API key."""

import asyncio
import logging
from pathlib import Path
from random import Random

import pytest
from inprocess import BASE_URL, KEY, InProcess

from asyncmig import Delivered, Fleet, MemoryJournal, Session, Spec, Timeouts
from asyncmig.simulator import FAULTS, SCHEMAS, SOURCES, Fault, Faults, RunDurations, World, serve
from asyncmig.simulator.server.limits import SlidingLog

pytestmark = pytest.mark.looptime
SOURCE = next(iter(SOURCES))
CSV = "Email,First Name,Last Name\n" + "".join(f"p{n}@x.org,A,B\n" for n in range(20))


def customers(folder: Path, count: int) -> list[Spec]:
    specs: list[Spec] = []
    for number in range(count):
        path = folder / f"c{number}" / "contacts.csv"
        path.parent.mkdir(parents=True)
        path.write_text(CSV, encoding="utf-8")
        specs.append(Spec(external_id=f"c{number}", name=f"c{number}", source=SOURCE, files=(path,)))
    return specs


async def test_an_outage_of_five_minutes_fails_no_customer_and_causes_few_requests(tmp_path: Path) -> None:
    world = World(
        key=KEY,
        sources=SOURCES,
        schemas=SCHEMAS,
        seed=1,
        pace=RunDurations(sigma=0.0),
        limit=lambda: SlidingLog(10**6),
    )
    loop, began, ended = asyncio.get_running_loop(), 5.0, 305.0
    transport = InProcess(world)
    transport.fault = lambda method, path, number: FAULTS["html-502"] if began < loop.time() < ended else None
    async with (
        Session(KEY, BASE_URL, transport=transport, rng=Random(1), limit=1000) as session,
        Fleet(session, journal=MemoryJournal(), to=tmp_path / "out") as fleet,
    ):
        outcomes = [outcome async for outcome in fleet.run(customers(tmp_path / "in", 300))]
        finished = loop.time()
    assert all(isinstance(outcome, Delivered) for outcome in outcomes)
    assert finished < ended + 30.0 + 60.0  # 30 s until requests continue, and 60 s for the runs
    # 300 first attempts, the retries that the quota permits, and the probes. Polls (GET) have their own interval.
    attempts = [url for at, method, url in transport.sent if began < at < ended and method != "GET"]
    assert len(attempts) <= 1.1 * 300 + 100 + 30


async def test_an_endpoint_can_have_its_own_time_out(tmp_path: Path) -> None:
    transport = InProcess(World(key=KEY, sources=SOURCES, schemas=SCHEMAS, seed=1))
    transport.fault = lambda method, path, number: Fault(hangs=True) if number == 1 else None
    loop = asyncio.get_running_loop()
    timeouts = {"GET /sources": Timeouts(total=3.0)}
    async with Session(
        KEY, BASE_URL, transport=transport, rng=Random(1), timeouts_by_endpoint=timeouts
    ) as session:
        await session.companies.sources()
        assert loop.time() < 10.0
        await session.companies.templates()
        assert loop.time() > 60.0


@pytest.mark.looptime(noop_cycles=42)
async def test_the_key_and_signed_urls_are_not_in_logs_reprs_output_or_files(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """With real sockets, a journal on disk, logging at level DEBUG, and all faults that do not block."""
    caplog.set_level(logging.DEBUG)
    asyncio.get_running_loop().set_debug(True)
    world = World(key=KEY, sources=SOURCES, schemas=SCHEMAS, seed=1, pace=RunDurations(sigma=0.0))
    names = [name for name in FAULTS if name not in ("hang", "too-many")]
    async with (
        serve(world, faults=Faults(dict.fromkeys(names, 0.02), rng=Random(2))) as serving,
        Session(KEY, serving.base_url, rng=Random(1), recent=tmp_path / "recent") as session,
        Fleet(session, journal=tmp_path / "fleet.db", to=tmp_path / "out") as fleet,
    ):
        outcomes = [outcome async for outcome in fleet.run(customers(tmp_path / "in", 5))]
        shown = "".join(map(repr, [session, fleet, outcomes, session.stats(), session.companies.open("x")]))
    shown += caplog.text + "".join(capsys.readouterr())
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    tokens = list(world._signed)
    assert tokens
    for secret in [KEY, *tokens]:
        assert secret not in shown
        assert secret.encode() not in written
    assert world.ledger.key_leaks == 0
