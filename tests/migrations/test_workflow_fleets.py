"""Fleets of the second generation under the documented limits: days of virtual time, kills and blocked runs."""

import asyncio
import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
from mortal import Life, live, run

from asyncmig import (
    Delivered,
    Fleet,
    MemoryJournal,
    Outcome,
    Parked,
    Pending,
    Session,
    Spec,
    generations,
)
from asyncmig._io.transport import Transport
from asyncmig.customers.answer_rules import AnswerRule
from asyncmig.customers.decisions import Answer
from asyncmig.journal import JournalPort
from asyncmig.session import context_of
from asyncmig.simulator import RunDurations
from asyncmig.simulator.migrations import KEEP, Block, Question, Script, Variants
from asyncmig.testing import Simulator

pytestmark = pytest.mark.timeout(240)
HEADER = "E-mail,Given Name,Surname,Phone\n"
CONTACTS = HEADER + "".join(f"p{n}@x.org,Ada,L{n},1\n" for n in range(6))
RULES = [AnswerRule(question="repeat a value", choose=KEEP)]
HOUR = 3600.0
PACE = RunDurations(queued=5.0, base=900.0, per_row=0.0, sigma=0.3)
WHY = Script(blocks={"generate": [Block(questions=(Question(text="Why?", options=("A", "B")),))]})


def customers(folder: Path, count: int) -> list[Spec]:
    specs: list[Spec] = []
    for number in range(count):
        path = folder / f"c{number:02}" / "contacts.csv"
        path.parent.mkdir(parents=True)
        path.write_text(CONTACTS + ("p1@x.org,A,B,1\n" if number % 4 == 0 else ""), encoding="utf-8")
        name = f"c{number:02}"
        specs.append(Spec(external_id=name, name=name, source="HubSpot", files=(path,)))
    return specs


def simulated(**options: Any) -> Simulator[Any]:
    return Simulator(api="migrations", seed=7, **{"limits": "by-class", "pace": PACE, **options})


def fleet_of(simulator: Simulator[Any], specs: list[Spec], out: Path, **options: Any) -> Any:
    async def process(transport: Transport, journal: JournalPort) -> dict[str, Outcome]:
        async with (
            Session(simulator.api_key, simulator.base_url, transport=transport, rng=Random(1)) as session,
            Fleet(
                session,
                journal=journal,
                to=out,
                api="migrations",
                **{"decide": "approve", "answers": RULES, "when_no_run_slot": "return", **options},
            ) as fleet,
        ):
            return {outcome.external_id: outcome async for outcome in fleet.run(specs)}

    return process


def done(simulator: Simulator[Any], name: str) -> list[str]:
    return [kind for kind, _ in simulator.world.migration(name).accepted]


@pytest.mark.parametrize(("kills", "window"), [(0, "fixed"), (0, "sliding"), (6, "sliding")])
def test_thirty_customers_take_about_thirty_hours_and_nothing_happens_twice(
    kills: int, window: str, tmp_path: Path
) -> None:
    specs, out = customers(tmp_path / "in", 30), tmp_path / "out"
    variants = Variants(window=window, rejects_count=True, concurrency_counts=True)

    async def main() -> None:
        simulator, journal, rng = simulated(variants=variants), MemoryJournal(), Random(3)
        process, loop = fleet_of(simulator, specs, out), asyncio.get_running_loop()
        for _ in range(kills):
            life = Life()
            timer = loop.call_later(rng.uniform(600.0, 6 * HOUR), life.died.set)
            _, journal = await live(process, simulator.transport, journal, out, life)  # type: ignore[arg-type]
            timer.cancel()
        outcomes = await process(simulator.transport, journal)
        assert {name: type(each) for name, each in outcomes.items()} == {
            spec.external_id: Delivered for spec in specs
        }
        assert all(done(simulator, spec.external_id) == ["generate", "execute"] for spec in specs)
        verdict = simulator.verdict()
        assert verdict.executed_twice == verdict.generated_twice == verdict.uploaded_twice == 0, verdict
        assert verdict.starts_beyond_three == verdict.malformed == verdict.key_leaks == 0, verdict
        assert loop.time() < (30.0 + 3.0 * kills + 2.0) * HOUR
        if not kills:
            assert verdict.over_the_limit == 0, verdict

    run(main())


def test_a_fleet_ends_when_runs_wait_for_answers_and_continues_after_them(tmp_path: Path) -> None:
    specs, out = customers(tmp_path / "in", 6), tmp_path / "out"
    blocked = {"c00": WHY, "c01": WHY, "c02": WHY}

    async def main() -> None:
        simulator = simulated(customers=blocked, limits="agent=50/1h,create=50/1h,generate=50/1h,runs=3")
        journal = MemoryJournal()
        process = fleet_of(simulator, specs, out, answers=())
        outcomes = await process(simulator.transport, journal)
        parked = sorted(name for name, each in outcomes.items() if isinstance(each, Parked))
        waiting = [each for each in outcomes.values() if isinstance(each, Pending)]
        assert {each.reason for each in waiting} <= {"no_run_slot"}
        assert set(blocked) <= {*parked, *(each.external_id for each in waiting)}
        for name in parked:
            state = await journal.state(name)
            assert state is not None
            record = generations.read(name, state)
            assert isinstance(record.outcome, Parked)
            if record.outcome.attention.kind != "questions":
                continue
            questions = record.outcome.attention.questions
            async with simulator.session() as session:
                generation = generations.find("migrations")
                sent = await generation.decide(
                    context_of(session),
                    journal,
                    name,
                    Answer({question.id: question.options[0].label or "" for question in questions}),
                    shown=record.outcome.attention,
                )
            assert sent == "sent"
        rules = [*RULES, AnswerRule(question="Why", choose="A")]
        outcomes = await fleet_of(simulator, specs, out, answers=rules)(simulator.transport, journal)
        assert {name: type(each) for name, each in outcomes.items()} == {
            spec.external_id: Delivered for spec in specs
        }
        verdict = simulator.verdict()
        assert verdict.executed_twice == verdict.generated_twice == verdict.starts_beyond_three == 0

    run(main())


def test_canceled_blocked_runs_release_their_slots_to_other_customers(tmp_path: Path) -> None:
    specs, out = customers(tmp_path / "in", 6), tmp_path / "out"
    blocked = {"c00": WHY, "c01": WHY, "c02": WHY}

    async def main() -> None:
        simulator = simulated(customers=blocked, limits="agent=50/1h,create=50/1h,generate=50/1h,runs=3")
        journal = MemoryJournal()
        outcomes = await fleet_of(simulator, specs, out, cancel_blocked_after=1800.0)(
            simulator.transport, journal
        )
        assert {name: type(each) for name, each in outcomes.items()} == {
            **{spec.external_id: Delivered for spec in specs},
            **dict.fromkeys(blocked, Parked),
        }
        assert all("canceled after 1800 s" in outcomes[name].notes[-1] for name in blocked)
        rules = [*RULES, AnswerRule(question="Why", choose="A")]
        outcomes = await fleet_of(simulator, specs, out, answers=rules)(simulator.transport, journal)
        assert all(isinstance(each, Delivered) for each in outcomes.values())

    run(main())


def test_the_journal_has_no_signed_url_and_no_key(tmp_path: Path) -> None:
    specs, out = customers(tmp_path / "in", 1), tmp_path / "out"

    async def main() -> None:
        simulator, journal = (
            simulated(limits="per-endpoint", variants=Variants(compressed_sheets=True)),
            MemoryJournal(),
        )
        outcomes = await fleet_of(simulator, specs, out)(simulator.transport, journal)
        assert isinstance(outcomes["c00"], Delivered)
        events = [event.detail for event in await journal.events("c00")]
        text = f"{events!r} {await journal.states()!r} {json.dumps([str(p) for p in out.rglob('*')])}"
        assert "token=" not in text
        assert simulator.api_key not in text
        assert simulator.transport.STORAGE_URL not in text

    run(main())


def test_a_function_that_fails_for_blocked_runs_ends_the_fleet(tmp_path: Path) -> None:
    specs, out = customers(tmp_path / "in", 5), tmp_path / "out"
    blocked = {"c00": WHY, "c01": WHY, "c02": WHY}

    def decide(parked: Parked) -> None:
        raise ValueError(parked.external_id)

    async def main() -> None:
        simulator = simulated(customers=blocked, limits="agent=50/1h,create=50/1h,generate=50/1h,runs=3")
        process = fleet_of(simulator, specs[:4], out, answers=(), decide=decide)
        async with asyncio.timeout(10.0 * HOUR):
            outcomes = await process(simulator.transport, MemoryJournal())
        reasons = [each.reason for each in outcomes.values() if isinstance(each, Pending)]
        assert sorted(reasons)[:3] == ["crashed"] * 3
        assert len(reasons) == 4

    run(main())
