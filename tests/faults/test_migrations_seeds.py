"""Random customers of the generation "migrations" against random servers: safe under faults, finished after them.

One seed draws the customers, the server's reading of each silence, its limits, latencies and faults, when the process
is killed, and whether it is a fleet or a careful caller of the client. One seed that failed:
`--first-seed N --seeds 1`.
"""

import asyncio
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from inprocess import KEY, InProcess
from mortal import Life, live, run

from asyncmig import MemoryJournal
from asyncmig.simulator import FAULTS, Faults, RunDurations
from asyncmig.simulator.migrations import Variants, World

from .careful import Customer, Ended, callers
from .migrations_fleet import FILES, SCRIPTS, check_delivered, ended, fleet, specs

pytestmark = pytest.mark.usefixtures("no_fsync")
STOP = 1800.0


def rates(rng: Random) -> dict[str, float]:
    """Return rates of some faults, together at most a quarter of all requests."""
    names = rng.sample([name for name in FAULTS if name != "too-many"], k=rng.randint(0, 4))
    return {name: rng.uniform(0.0, 0.25 / len(names)) for name in names}


def variants(rng: Random) -> Variants:
    """Return a reading of each silence; of half of them the usual one, so that others show."""
    drawn, usual = Variants.drawn(rng), Variants()
    kept = {name: getattr(usual, name) for name in Variants.__dataclass_fields__ if rng.random() < 0.5}
    return replace(drawn, **kept)


def check(external_id: str, end: Ended, world: World, *, has_faults: bool) -> None:
    """Check what was delivered, and that nothing ended otherwise without a reason."""
    chosen = world.variants
    match end.how:
        case "delivered":
            check_delivered(external_id, end, world)
        case "parked":
            assert chosen.block_reason == "unknown", end
        case "unknown":
            assert has_faults, end
        case "gone":
            assert chosen.retention, end
        case "failed":
            lives = (chosen.preview_lives, chosen.blocked_lives, chosen.retention)
            assert chosen.zombies or chosen.failing_jobs or any(lives), end
        case _:
            pytest.fail(f"did not end: {end}")


def test_random_customers_against_random_servers(seed_of_faults: int, tmp_path: Path) -> None:
    print(f"again: pytest {__file__} --first-seed {seed_of_faults} --seeds 1")  # noqa: T201
    ends = run(one_seed(seed_of_faults, tmp_path))
    print("ends:", *(f"{name}={end.how}" for name, end in ends.items()))  # noqa: T201


async def one_seed(seed: int, folder: Path) -> dict[str, Ended]:
    rng = Random(seed)
    names, out, is_fleet = rng.sample(list(FILES), k=2), folder / "out", rng.random() < 0.6
    shares = rates(rng)
    world = World(
        key=KEY,
        seed=seed,
        pace=RunDurations(queued=2.0, base=rng.choice((5.0, 60.0)), per_row=0.0),
        variants=variants(rng),
        scripts=SCRIPTS,
    )
    faults = Faults(shares, rng=Random(seed), until=STOP)
    wire = InProcess(world, rng=rng, latency=rng.choice([0.05, 0.3, 1.0]), faults=faults)
    if is_fleet:
        written = specs(folder / "in")
        work = fleet([written[name] for name in names], out, seed=seed)
    else:
        customers = [
            Customer(
                name,
                {f"{stem}.csv": text.encode() for stem, text in FILES[name].items()},
                connects=not FILES[name],
                update=rng.random() < 0.3 and bool(FILES[name]),
                clarify=rng.random() < 0.2,
            )
            for name in names
        ]
        work = callers(customers, out, seed=seed)
    journal, deaths = MemoryJournal(), rng.choice((0, 0, 1, 2))
    for _ in range(deaths):
        life, loop = Life(), asyncio.get_running_loop()
        timer = loop.call_later(rng.choice((3.0, 60.0, 4000.0)) * rng.random(), life.died.set)
        _, journal = await live(work, wire, journal, out, life)
        timer.cancel()
    calls = 0
    while calls < 10:
        calls += 1
        results, journal = await live(work, wire, journal, out, Life())
        assert results is not None
        ends = {name: ended(each) if is_fleet else each for name, each in results.items()}
        if not any(end.how == "pending" for end in ends.values()):
            break
        await asyncio.sleep(600.0)
    for name, end in ends.items():
        check(name, end, world, has_faults=bool(shares) or deaths > 0)
    assert not wire.foreign or {"redirect", "redirect-after"} & shares.keys()
    assert wire.open == 0
    assert not list(out.rglob("*.part"))
    verdict = world.verdict(asyncio.get_running_loop().time())
    assert verdict.executed_twice == verdict.uploaded_twice == verdict.duplicate_migrations == 0
    assert verdict.key_leaks == verdict.after_refusal == verdict.malformed == 0
    if not deaths:
        assert verdict.generated_twice == 0
        if calls == 1:  # another process would have to know what this one has sent
            assert verdict.over_the_limit == verdict.starts_beyond_three == 0
    return ends
