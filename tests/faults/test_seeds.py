"""Random fleets against random servers: safe while faults are on, finished soon after they stop.

One seed draws the customers, the server's reading of each silence, its limit, latencies and faults. Many seeds:
`pytest tests/faults/test_seeds.py --seeds 10000`; one that failed: `--first-seed N --seeds 1`.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from inprocess import BASE_URL, KEY, InProcess

from asyncmig import Delivered, Failed, Fleet, MemoryJournal, Outcome, Session, Spec, Unknown
from asyncmig.simulator import FAULTS, SCHEMAS, SOURCES, Faults, Pace, Plan, Variants, World, generate
from asyncmig.simulator.limits import FixedWindow, RateLimit, SlidingLog, TokenBucket

pytestmark = pytest.mark.looptime
SOURCE = next(iter(SOURCES))
LIMITS: list[Callable[[], RateLimit]] = [
    lambda: SlidingLog(100),
    lambda: SlidingLog(100, count_rejects=True),
    lambda: FixedWindow(100, phase=17.0),
    lambda: TokenBucket(100, burst=100),
]
CUSTOMERS = 20
STOP = 900.0


def drawn(rng: Random) -> dict[str, float]:
    """Return rates of some faults, together at most a third of all requests."""
    names = rng.sample([name for name in FAULTS if name != "too-many"], k=rng.randint(1, 5))
    return {name: rng.uniform(0.0, 0.33 / len(names)) for name in names}


def check(outcome: Outcome, plan: Plan, world: World) -> None:
    """What was delivered is what its generator planned, row for row; what failed was planned to."""
    if isinstance(outcome, Delivered):
        rows = plan.valid_after_patch if world.parked(plan.external_id) else plan.valid
        assert plan.outcome == "delivered"
        assert {file.sheet: file.rows for file in outcome.files if file.rows} == {
            n: r for n, r in rows.items() if r
        }
        assert all(Path(file.path).exists() for file in outcome.files)
    elif isinstance(outcome, Failed):
        assert outcome.error in ("Import timed out", "Canceled by a person") or (
            plan.outcome == "failed" and plan.reason in outcome.error
        )
    else:
        assert isinstance(outcome, Unknown), outcome
        assert "POST /companies:" in outcome.error  # the one case in which the contract leaves no way


async def test_any_fleet_under_any_faults(seed_of_faults: int, tmp_path: Path) -> None:
    print(f"again: pytest tests/faults/test_seeds.py --first-seed {seed_of_faults} --seeds 1")  # noqa: T201
    rng = Random(seed_of_faults)
    plans = {
        plan.external_id: plan
        for plan in generate(tmp_path / "in", customers=CUSTOMERS, seed=rng.randrange(99))
    }
    world = World(
        key=KEY,
        sources=SOURCES,
        schemas=SCHEMAS,
        seed=seed_of_faults,
        limit=rng.choice(LIMITS),
        scope=(scope := rng.choice(["endpoint", "key"])),
        pace=Pace(),
        variants=Variants.drawn(rng),
    )
    wire = InProcess(
        world,
        rng=rng,
        latency=rng.choice([0.05, 0.3, 1.0]),
        faults=Faults(drawn(rng), rng=Random(seed_of_faults), until=STOP),
    )
    specs = [
        Spec(
            external_id=name,
            name=name,
            source=SOURCE,
            files=tuple(sorted((tmp_path / "in" / name).glob("*.csv"))),
        )
        for name in plans
    ]
    async with (
        asyncio.timeout(STOP + 1800.0),
        Session(
            KEY, BASE_URL, scope=scope, transport=wire, rng=rng, second_channel=rng.random() < 0.3
        ) as session,
        Fleet(session, journal=MemoryJournal(), to=tmp_path / "out", decide="approve") as fleet,
    ):
        outcomes = [outcome async for outcome in fleet.run(specs)]
    assert {outcome.external_id for outcome in outcomes} == plans.keys()
    for outcome in outcomes:
        check(outcome, plans[outcome.external_id], world)
    assert not wire.foreign
    assert wire.open == 0
    assert not list(tmp_path.rglob("*.part"))
    verdict = world.verdict(asyncio.get_running_loop().time())
    assert verdict.duplicate_companies == verdict.duplicate_imports == verdict.key_leaks == 0
    assert verdict.blind_decisions == verdict.after_refusal == 0
    assert (
        verdict.hasty_polls == 0
    )  # polls after an end say nothing: the answer that showed it may have been lost
    assert verdict.unaccounted == 0
