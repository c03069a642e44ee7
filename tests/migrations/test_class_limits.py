"""A fleet of the second generation under limits by class: no avoidable 429, however the server counts requests."""

import asyncio
from collections import defaultdict
from itertools import pairwise, product
from pathlib import Path
from random import Random

import pytest
from inprocess import BASE_URL, KEY, InProcess

from asyncmig import Delivered, Fleet, MemoryJournal, Session, Spec
from asyncmig.events import RequestDone, SlotAwaited
from asyncmig.simulator import RunDurations
from asyncmig.simulator.migrations import Variants, World

pytestmark = [pytest.mark.looptime, pytest.mark.timeout(300)]
HOUR = 3600.0
READINGS = [
    Variants(**options)  # type: ignore[arg-type]
    for options in (
        {"window": "fixed", "phase": 0.0},
        {"window": "fixed", "phase": 1234.5, "rejects_count": True, "replays_count": True},
        {"window": "fixed", "phase": 17.0, "create_costs_write": True, "limit_headers": "always"},
        {"window": "sliding", "replays_count": False, "limit_headers": "none"},
        {"window": "sliding", "rejects_count": True, "files_class": "writes", "cancel_class": "agent"},
    )
]
OTHERS = [
    Variants(
        window=window,
        foreign_runs=2,
        concurrency_wait=wait,
        concurrency_counts=counts,
        concurrency_list=listed,
    )  # type: ignore[arg-type]
    for (window, wait, counts), listed in zip(
        product(("fixed", "sliding"), (None, 60.0), (False, True)), (True, False) * 4, strict=True
    )
]


def customers(folder: Path, count: int) -> list[Spec]:
    specs = []
    for number in range(count):
        path = folder / f"c{number}.csv"
        path.write_text("E-mail,Given Name,Surname,Phone\n" + f"p{number}@x.org,Ada,L,1\n")
        specs.append(Spec(external_id=f"c{number}", name=f"c{number}", source="HubSpot", files=(path,)))
    return specs


async def migrated(
    specs: list[Spec], variants: Variants, to: Path, *, base: float = 500.0, limits: str | None = None
) -> tuple[World, float, list[RequestDone]]:
    """Migrate all customers; return the simulated server, the duration in seconds, and the requests with a 429."""
    world = World(
        key=KEY, seed=3, variants=variants, pace=RunDurations(queued=5.0, base=base, per_row=0.0, sigma=0.3)
    )
    refused: list[RequestDone] = []
    transport = InProcess(world, rng=Random(2))  # type: ignore[arg-type]
    async with Session(KEY, BASE_URL, transport=transport, rng=Random(1), limits=limits) as session:
        with session.events.subscribe(
            lambda event: (
                refused.append(event) if isinstance(event, RequestDone) and event.status == 429 else None
            )
        ):
            async with Fleet(
                session, api="migrations", journal=MemoryJournal(), to=to, decide="approve"
            ) as fleet:
                outcomes = [outcome async for outcome in fleet.run(specs)]
    assert [type(each) for each in outcomes] == [Delivered] * len(specs), outcomes
    return world, asyncio.get_running_loop().time(), refused


@pytest.mark.parametrize("variants", READINGS, ids=str)
async def test_no_request_exceeds_the_documented_limits(variants: Variants, tmp_path: Path) -> None:
    world, took, refused = await migrated(customers(tmp_path, 3), variants, tmp_path / "out")
    assert refused == []
    assert world.verdict(took).over_the_limit == world.verdict(took).starts_beyond_three == 0
    assert took < 2 * HOUR + 3000.0


@pytest.mark.parametrize("variants", OTHERS, ids=str)
async def test_refusals_because_of_runs_of_others_are_a_minute_apart(
    variants: Variants, tmp_path: Path
) -> None:
    world, took, refused = await migrated(customers(tmp_path, 3), variants, tmp_path / "out")
    verdict = world.verdict(took)
    assert verdict.over_the_limit == verdict.starts_beyond_three == 0
    pauses = [later.at - earlier.at for earlier, later in pairwise(refused)]
    assert all(pause >= 59.0 for pause in pauses)


@pytest.mark.parametrize("phase", [0.0, 1234.5])
async def test_a_client_with_too_high_limits_is_refused_once_per_window(phase: float, tmp_path: Path) -> None:
    limits = "reads=300/60s,writes=100/60s,jobs=50/1h,agent=50/1h,create=10/1h,generate=10/1h,runs=3"
    variants = Variants(phase=phase, rejects_count=False)
    _, _, refused = await migrated(customers(tmp_path, 3), variants, tmp_path / "out", limits=limits)
    assert refused
    by_endpoint = defaultdict[str, list[float]](list)
    for event in refused:
        by_endpoint[event.endpoint].append(event.at)
    for endpoint in ("POST /migrations", "POST /migrations/{id}/runs"):
        windows = [(at - phase) // HOUR for at in by_endpoint.pop(endpoint, [])]
        assert len(windows) == len(set(windows)), endpoint
    assert all(len(at) <= 1 for at in by_endpoint.values())


async def test_a_fleet_of_thirty_takes_little_longer_than_the_hourly_limit_requires(tmp_path: Path) -> None:
    world, took, refused = await migrated(
        customers(tmp_path, 30), Variants(phase=1234.5), tmp_path / "out", base=200.0
    )
    assert refused == []
    generated = [at for each in world.migrations.values() for kind, at in each.accepted if kind == "generate"]
    assert len(generated) == 30
    assert took <= 1.02 * (29 * HOUR + 1000.0)


async def test_long_waits_are_reported_with_their_customer_and_budget(tmp_path: Path) -> None:
    waits: list[SlotAwaited] = []
    world = World(key=KEY, seed=3, pace=RunDurations(queued=5.0, base=200.0, per_row=0.0, sigma=0.3))
    transport = InProcess(world, rng=Random(2))  # type: ignore[arg-type]
    async with Session(KEY, BASE_URL, transport=transport, rng=Random(1)) as session:
        with session.events.subscribe(
            lambda each: waits.append(each) if isinstance(each, SlotAwaited) else None
        ):
            async with Fleet(
                session, api="migrations", journal=MemoryJournal(), to=tmp_path / "out", decide="approve"
            ) as fleet:
                _ = [outcome async for outcome in fleet.run(customers(tmp_path, 2))]
    first = next(each for each in waits if each.budget == "create")
    assert first.external_id in ("c0", "c1")
    assert first.until == pytest.approx(HOUR, abs=10.0)
    assert first.endpoint == "POST /migrations"
