"""Random fleets of the generation "migrations" against random servers: safe under faults, finished after them.

One seed draws the customers, the server's reading of each silence, its limits, latencies and faults, and when the
process is killed, cancelled or drained. One seed that failed: `--first-seed N --seeds 1`.
"""

import asyncio
import csv
from collections import Counter
from pathlib import Path
from random import Random

import pytest
from inprocess import BASE_URL, KEY, InProcess
from mortal import Life, Process, live, run

from asyncmig import Delivered, Failed, Fleet, MemoryJournal, Outcome, Parked, Pending, Session, Spec, Unknown
from asyncmig._io.transport import Transport
from asyncmig.customers.answer_rules import AnswerRule
from asyncmig.customers.decisions import Approve, Change, Credentials, Decision
from asyncmig.customers.spec import LiveSource
from asyncmig.journal import JournalPort
from asyncmig.simulator import Faults, RunDurations
from asyncmig.simulator.migrations import DROP, Variants, World
from asyncmig.simulator.migrations.tables import find_flaws

from .test_migrations_seeds import CUSTOMERS, SCRIPTS, STOP, rates, variants

pytestmark = pytest.mark.usefixtures("no_fsync")
RULES = (
    AnswerRule(question="repeat a value", choose=DROP),
    AnswerRule(question="Why", choose="A"),
    AnswerRule(question="How", text="Somehow"),
    AnswerRule(question="Replace", choose="Yes"),
)


def specs_of(names: list[str], folder: Path) -> list[Spec]:
    specs: list[Spec] = []
    for customer in CUSTOMERS:
        if customer.external_id not in names:
            continue
        paths = []
        for name, content in customer.files.items():
            path = folder / "in" / customer.external_id / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            paths.append(path)
        specs.append(
            Spec(
                external_id=customer.external_id,
                name=customer.external_id,
                source="HubSpot",
                files=tuple(paths),
                connection=LiveSource(source_key="hubspot") if customer.connects else None,
            )
        )
    return specs


def process(
    specs: list[Spec], folder: Path, seed: int, *, updates: bool, drain_after: float | None = None
) -> Process[dict[str, Outcome]]:
    async def decide(parked: Parked) -> Decision | None:
        attention = parked.attention
        if attention.kind == "credentials":
            return Credentials({"api_token": "right"})
        if attention.preview is None:
            return None
        return Change("drop bad rows") if updates and attention.preview.invalid_cells else Approve()

    async def work(transport: Transport, journal: JournalPort) -> dict[str, Outcome]:
        async with (
            Session(KEY, BASE_URL, transport=transport, rng=Random(seed)) as session,
            Fleet(
                session,
                journal=journal,
                to=folder / "out",
                api="migrations",
                decide=decide,
                answers=RULES,
                retries=2,
            ) as fleet,
        ):
            drain = asyncio.ensure_future(_drain(fleet, drain_after))
            try:
                return {outcome.external_id: outcome async for outcome in fleet.run(specs)}
            finally:
                drain.cancel()

    return work


async def _drain(fleet: Fleet, after: float | None) -> None:
    if after is not None:
        await asyncio.sleep(after)
        await fleet.drain(90.0)


def check(outcome: Outcome, world: World, *, chosen: Variants, faulty: bool) -> None:
    """Check what was delivered against the workbook, and that nothing ended otherwise without a reason."""
    if isinstance(outcome, Parked):
        assert (
            chosen.block_reason == "unknown" or chosen.free_text == "asked" or chosen.options != "listed"
        ), outcome
    elif isinstance(outcome, Failed):
        reasons = (chosen.zombies, chosen.preview_lives, chosen.blocked_lives, chosen.retention)
        assert any(reasons), outcome
    elif isinstance(outcome, Unknown):
        assert faulty, outcome
    else:
        assert isinstance(outcome, Delivered), outcome
        sheets = world.migration(outcome.external_id).grids()
        bad = Counter(slug for slug, _ in {(flaw.slug, flaw.row) for flaw in find_flaws(sheets)})
        for sheet in sheets:
            slug, rows = sheet.schema.slug, len(sheet.rows)
            file = next((each for each in outcome.files if each.slug == slug), None)
            assert file is not None or not rows
            if file is None:
                continue
            with open(file.path, encoding="utf-8", newline="") as text:
                assert len(list(csv.reader(text))) - 1 == file.rows
            assert file.rows in (rows - bad[slug], rows) or not file.is_verified
            if file.flagged == "none":
                assert file.rows == rows - bad[slug]


def test_any_fleet_under_any_faults(seed_of_faults: int, tmp_path: Path) -> None:
    print(f"again: pytest {__file__} --first-seed {seed_of_faults} --seeds 1")  # noqa: T201
    print("ends:", *run(one_seed(seed_of_faults, tmp_path)))  # noqa: T201


async def one_seed(seed: int, folder: Path) -> list[str]:
    rng = Random(seed)
    specs = specs_of([each.external_id for each in rng.sample(CUSTOMERS, k=2)], folder)
    chosen, shares, updates = variants(rng), rates(rng), rng.random() < 0.3
    world = World(
        key=KEY,
        seed=seed,
        pace=RunDurations(queued=2.0, base=rng.choice((5.0, 60.0)), per_row=0.0),
        variants=chosen,
        scripts=SCRIPTS,
    )
    faults = Faults(shares, rng=Random(seed), until=STOP)
    wire = InProcess(world, rng=rng, latency=rng.choice([0.05, 0.3, 1.0]), faults=faults)
    journal, loop, out = MemoryJournal(), asyncio.get_running_loop(), folder / "out"
    ends = [rng.choice(("kill", "cancel", "drain")) for _ in range(rng.choice((0, 0, 1, 2)))]
    for end in ends:
        after = rng.choice((3.0, 60.0, 4000.0)) * rng.random()
        drain_after = after if end == "drain" else None
        work = process(specs, folder, seed, updates=updates, drain_after=drain_after)
        if end == "kill":
            life = Life()
            timer = loop.call_later(after, life.died.set)
            _, journal = await live(work, wire, journal, out, life)
            timer.cancel()
            continue
        task = asyncio.ensure_future(work(wire, journal))
        if end == "cancel":
            loop.call_later(after, task.cancel)
        await asyncio.wait([task])
        if not task.cancelled():
            task.result()
        assert wire.open == 0
    processes = len(ends)
    for _ in range(20):
        processes += 1
        outcomes = await process(specs, folder, seed, updates=updates)(wire, journal)
        if not any(isinstance(outcome, Pending) for outcome in outcomes.values()):
            break
        await asyncio.sleep(60.0)  # a proxy refused a request, or the server was away
    for outcome in outcomes.values():
        check(outcome, world, chosen=chosen, faulty=bool(shares) or bool(ends))
    assert not wire.foreign or {"redirect", "redirect-after"} & shares.keys()
    assert wire.open == 0
    if "kill" not in ends:
        assert not list(folder.rglob("*.part"))
    verdict = world.verdict(loop.time())
    assert verdict.executed_twice == verdict.uploaded_twice == verdict.duplicate_migrations == 0
    assert verdict.key_leaks == verdict.after_refusal == verdict.malformed == 0
    if not ends:
        assert verdict.generated_twice == 0
    if processes == 1:  # a later one does not know what was sent, because the journal is in memory
        assert verdict.over_the_limit == verdict.starts_beyond_three == 0
    return [f"{name}={type(outcome).__name__}" for name, outcome in outcomes.items()]
