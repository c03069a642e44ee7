"""Random customers of the generation "migrations" against random servers: safe under faults, finished after them.

One seed draws the customers, the server's reading of each silence, its limits, latencies and faults, and when the
process is killed or cancelled. One seed that failed: `--first-seed N --seeds 1`.
"""

import asyncio
import csv
from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from careful import Caller, Customer, Ended
from inprocess import BASE_URL, KEY, InProcess
from mortal import Life, Process, live, run

from asyncmig import ApiError, MemoryJournal, Session
from asyncmig._io.transport import Transport
from asyncmig.journal import JournalPort
from asyncmig.simulator import FAULTS, Faults, RunDurations
from asyncmig.simulator.migrations import Block, Question, Script, Variants, World
from asyncmig.simulator.migrations.tables import find_flaws

pytestmark = pytest.mark.usefixtures("no_fsync")
HEADER = "E-mail,Given Name,Surname,Phone\r\n"
PEOPLE = "".join(f"p{n}@x.org,Ada,L{n},1\r\n" for n in range(6))
DEALS = "Deal Name,Stage,Amount,Contact\r\nBig,won,1,p1@x.org\r\nOdd,lost,2,nobody@x.org\r\n"
STOP = 1800.0
UNBOUNDED = ("strange_status",)
CUSTOMERS = (
    Customer("plain", {"contacts.csv": (HEADER + PEOPLE).encode()}),
    Customer(
        "flawed", {"contacts.csv": (HEADER + PEOPLE + "bad,Cy,N,\r\n").encode(), "deals.csv": DEALS.encode()}
    ),
    Customer("doubled", {"contacts.csv": (HEADER + PEOPLE + "p1@x.org,Ada,L1,1\r\n" * 2).encode()}),
    Customer("asks", {"contacts.csv": (HEADER + PEOPLE).encode()}),
    Customer("live", {}, connects=True),
)
HOW = Question(text="How?")
SCRIPTS = {
    "asks": Script(
        blocks={
            "generate": [
                Block(
                    questions=(
                        Question(text="Why?", options=("A", "B"), allow_custom=False),
                        HOW,
                    )
                ),
                Block(questions=(Question(text="Why?", options=("A", "C")),)),
            ],
            "execute": [Block(questions=(Question(text="Replace the old rows?", options=("Yes", "No")),))],
        }
    )
}


def rates(rng: Random) -> dict[str, float]:
    """Return rates of some faults, together at most a quarter of all requests."""
    names = rng.sample([name for name in FAULTS if name != "too-many"], k=rng.randint(0, 4))
    return {name: rng.uniform(0.0, 0.25 / len(names)) for name in names}


def variants(rng: Random) -> Variants:
    """Return a reading of each silence; of half of them the usual one, so that others show."""
    drawn, usual = Variants.drawn(rng), Variants()
    kept = {name: getattr(usual, name) for name in Variants.__dataclass_fields__ if rng.random() < 0.5}
    return replace(drawn, **kept)


def process(customers: list[Customer], folder: Path, seed: int) -> Process[dict[str, Ended]]:
    async def one(session: Session, journal: JournalPort, customer: Customer) -> tuple[str, Ended]:
        async with await journal.claim(customer.external_id) as claim:
            for _ in range(20):
                caller = Caller(session, claim, customer, folder / customer.external_id)
                try:
                    return customer.external_id, await caller.run()
                except ApiError as error:
                    if error.status != 403:
                        raise
                await asyncio.sleep(60.0)  # a proxy refused a request
            raise AssertionError("20 refusals")

    async def work(transport: Transport, journal: JournalPort) -> dict[str, Ended]:
        async with Session(KEY, BASE_URL, transport=transport, rng=Random(seed)) as session:
            return dict(await asyncio.gather(*(one(session, journal, customer) for customer in customers)))

    return work


def check(
    customer: Customer, ended: Ended, world: World, folder: Path, *, chosen: Variants, faulty: bool
) -> None:
    """Check what was delivered against the workbook, and that nothing ended otherwise without a reason."""
    if ended.how == "delivered":
        assert ended.report is not None
        sheets = world.migration(customer.external_id).grids()
        flaws = find_flaws(sheets)
        rows = {sheet.schema.slug: len(sheet.rows) for sheet in sheets}
        bad = Counter(slug for slug, _ in {(flaw.slug, flaw.row) for flaw in flaws})
        assert sum(rows.values()) > 0 or chosen.existing == "other-templates"
        delivered = {file.slug: file for file in ended.files}
        assert {slug for slug, count in rows.items() if count} <= delivered.keys()
        for slug, file in delivered.items():
            with open(file.path, encoding="utf-8", newline="") as text:
                assert len(list(csv.reader(text))) - 1 == file.rows
            clean, all_ = rows[slug] - bad[slug], rows[slug]
            assert file.rows in (clean, all_) or not file.is_verified
            assert file.rows <= all_
            if file.flagged == "none":
                assert file.rows == clean
            if file.flagged == "included":
                assert file.rows == all_ or not file.is_verified
        if customer.external_id == "doubled" and chosen.existing != "other-templates":
            assert sum(rows.values()) == 6
    elif ended.how == "parked":
        assert chosen.block_reason == "unknown"
    elif ended.how == "gone":
        assert chosen.retention is not None, ended.error
    elif ended.how == "unknown":
        assert faulty, ended.error
    else:
        assert ended.how == "failed"
        assert chosen.zombies or chosen.preview_lives or chosen.blocked_lives, ended.error


def test_any_customers_under_any_faults(seed_of_faults: int, tmp_path: Path) -> None:
    print(f"again: pytest {__file__} --first-seed {seed_of_faults} --seeds 1")  # noqa: T201
    ends = run(one_seed(seed_of_faults, tmp_path))
    print("ends:", *ends)  # noqa: T201


async def one_seed(seed: int, folder: Path) -> list[str]:
    rng = Random(seed)
    customers = [
        replace(each, update=rng.random() < 0.3 and not each.connects, clarify=rng.random() < 0.2)
        for each in rng.sample(CUSTOMERS, k=2)
    ]
    chosen, shares = variants(rng), rates(rng)
    world = World(
        key=KEY,
        seed=seed,
        pace=RunDurations(queued=2.0, base=rng.choice((5.0, 60.0)), per_row=0.0),
        variants=chosen,
        scripts=SCRIPTS,
    )
    faults = Faults(shares, rng=Random(seed), until=STOP)
    wire = InProcess(world, rng=rng, latency=rng.choice([0.05, 0.3, 1.0]), faults=faults)
    journal, work = MemoryJournal(), process(customers, folder, seed)
    deaths = rng.choice((0, 0, 1, 2))
    for _ in range(deaths):
        life, loop = Life(), asyncio.get_running_loop()
        timer = loop.call_later(rng.choice((3.0, 60.0, 4000.0)) * rng.random(), life.died.set)
        _, journal = await live(work, wire, journal, folder, life)
        timer.cancel()
    ends, _ = await live(work, wire, journal, folder, Life())
    assert ends is not None
    for customer in customers:
        check(
            customer,
            ends[customer.external_id],
            world,
            folder,
            chosen=chosen,
            faulty=bool(shares) or deaths > 0,
        )
    assert not wire.foreign or {"redirect", "redirect-after"} & shares.keys()
    assert wire.open == 0
    assert not list(folder.rglob("*.part"))
    verdict = world.verdict(asyncio.get_running_loop().time())
    assert verdict.executed_twice == verdict.uploaded_twice == verdict.duplicate_migrations == 0
    assert verdict.key_leaks == verdict.after_refusal == verdict.malformed == 0
    if not deaths:
        assert verdict.generated_twice == 0
        assert verdict.over_the_limit == verdict.starts_beyond_three == 0
    return [f"{name}={ended.how}" for name, ended in ends.items()]
