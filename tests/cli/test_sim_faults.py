"""`asyncmig sim --fault`: names and rates of faults, and a fleet that ends correctly with them over real sockets."""

import csv
from pathlib import Path
from random import Random

import pytest

from asyncmig import Delivered, Failed, Fleet, InvalidInput, MemoryJournal, Session, Spec, Timeouts, Unknown
from asyncmig._core.limits import Rate
from asyncmig.cli.sim import new_world, parse_faults
from asyncmig.simulator import FAULTS, SOURCES, VARIANTS, Fault, Variants, generate, serve


@pytest.mark.parametrize(
    "asked", ["nonsense", "hang:2", "hang:x", ":0.1", "hang:-1", "hang:nan", "hang:inf", "stale:1.5"]
)
def test_an_invalid_fault_raises_an_error_that_names_the_option(asked: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        parse_faults([asked], 1, Variants(), VARIANTS)
    assert refused.value.field == "--fault"


def test_a_fault_with_the_rate_0_never_occurs() -> None:
    faults, variants = parse_faults(["hang:0", "no-zip:0", "drift:0"], 1, Variants(), VARIANTS)
    assert variants == Variants()
    assert faults.pick("GET /sources", 0.0) == Fault()


def test_parse_faults_accepts_the_name_of_each_fault_and_variant() -> None:
    faults, variants = parse_faults(
        [f"{name}:0.01" for name in [*FAULTS, *VARIANTS]], 1, Variants(), VARIANTS
    )
    assert variants.zip_status == 404
    assert variants.stale == 0.01
    assert faults.pick("GET /sources", 0.0) is not None


@pytest.mark.looptime(noop_cycles=42)
async def test_a_fleet_ends_as_planned_with_faults_over_real_sockets(tmp_path: Path) -> None:
    names = [name for name in FAULTS if name not in ("too-many", "hang")]
    asked = [
        *(f"{name}:0.02" for name in names),
        "drift",
        "no-zip",
        "foreign-poll-url",
        "stale",
        "lagging-run",
    ]
    faults, variants = parse_faults(asked, 3, Variants(), VARIANTS)
    plans = {plan.external_id: plan for plan in generate(tmp_path / "in", customers=6, seed=3)}
    ids = {name: each for each, name in SOURCES.items()}
    with (tmp_path / "in" / "customers.csv").open(encoding="utf-8") as file:
        specs = [
            Spec(
                external_id=row["external_id"],
                name=row["name"],
                source=ids[row["source"]],
                files=tuple(sorted((tmp_path / "in" / row["external_id"]).glob("*.csv"))),
            )
            for row in csv.DictReader(file)
        ]
    world = new_world(seed=3, rate=Rate(), variants=variants)
    async with (
        serve(world, faults=faults) as serving,
        Session(world.key, serving.base_url, rng=Random(1), timeouts=Timeouts(total=60.0)) as session,
        Fleet(session, journal=MemoryJournal(), to=tmp_path / "out", decide="approve") as fleet,
    ):
        outcomes = [outcome async for outcome in fleet.run(specs)]
    for outcome in outcomes:
        assert isinstance(outcome, Delivered | Failed | Unknown)
        if isinstance(outcome, Failed):
            assert plans[outcome.external_id].outcome == "failed"
    assert sum(isinstance(outcome, Delivered) for outcome in outcomes) >= 3
    verdict = world.verdict(10**9)
    assert verdict.duplicate_imports == verdict.key_leaks == verdict.blind_decisions == 0
