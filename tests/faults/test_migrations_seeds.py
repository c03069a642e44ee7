"""Random customers and random servers of the generation "migrations".

Faults cause no duplicates, and every migration ends after the faults stop. One seed determines the customers, the
server's variant for each case that the contract leaves open, its limits, latencies and faults, the times at which the
process is killed, and whether the client is a fleet or the caller in `careful.py`. To repeat one seed:
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
    """Return the rates of up to four faults. Their sum is at most a quarter of all requests."""
    names = rng.sample([name for name in FAULTS if name != "too-many"], k=rng.randint(0, 4))
    return {name: rng.uniform(0.0, 0.25 / len(names)) for name in names}


def variants(rng: Random) -> Variants:
    """Return a variant for each case that the contract leaves open.

    About half of them have the default, so that the effect of the others is visible.
    """
    drawn, usual = Variants.drawn(rng), Variants()
    kept = {name: getattr(usual, name) for name in Variants.__dataclass_fields__ if rng.random() < 0.5}
    return replace(drawn, **kept)


def check(external_id: str, end: Ended, world: World, *, has_faults: bool) -> None:
    """Check delivered files. For any other result, check that the server or its faults can have caused it."""
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
            limited_lifetimes = (chosen.preview_lives, chosen.blocked_lives, chosen.retention)
            assert chosen.zombies or chosen.failing_jobs or any(limited_lifetimes), end
        case _:
            pytest.fail(f"the migration did not end: {end}")


def test_random_customers_and_servers_end_without_duplicates(seed_of_faults: int, tmp_path: Path) -> None:
    print(f"to repeat: pytest {__file__} --first-seed {seed_of_faults} --seeds 1")  # noqa: T201
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
    transport = InProcess(world, rng=rng, latency=rng.choice([0.05, 0.3, 1.0]), faults=faults)
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
        _, journal = await live(work, transport, journal, out, life)
        timer.cancel()
    calls = 0
    while calls < 10:
        calls += 1
        results, journal = await live(work, transport, journal, out, Life())
        assert results is not None
        ends = {name: ended(each) if is_fleet else each for name, each in results.items()}
        if not any(end.how == "pending" for end in ends.values()):
            break
        await asyncio.sleep(600.0)
    for name, end in ends.items():
        check(name, end, world, has_faults=bool(shares) or deaths > 0)
    assert not transport.foreign or {"redirect", "redirect-after"} & shares.keys()
    assert transport.open == 0
    assert not list(out.rglob("*.part"))
    verdict = world.verdict(asyncio.get_running_loop().time())
    assert verdict.executed_twice == verdict.uploaded_twice == verdict.duplicate_migrations == 0
    assert verdict.key_leaks == verdict.after_refusal == verdict.malformed == 0
    if not deaths:
        assert verdict.generated_twice == 0
        if calls == 1:  # a second session does not know which requests the first one sent
            assert verdict.over_the_limit == verdict.starts_beyond_three == 0
    return ends
