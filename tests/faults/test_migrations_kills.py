"""A fleet of the generation "migrations" whose process is killed at any point, or cancelled in any iteration."""

import asyncio
import os
import shutil
from pathlib import Path

import msgspec
import pytest
from inprocess import KEY, InProcess
from mortal import Life, live, run

from asyncmig import Delivered, MemoryJournal, Outcome, Spec, Unknown
from asyncmig.simulator import FAULTS, Faults, RunDurations
from asyncmig.simulator.migrations import Limits, Variants, World

from .migrations_fleet import SCRIPTS, check_delivered, ended, fleet, specs
from .test_cancellation import Turns

pytestmark = [pytest.mark.timeout(300), pytest.mark.usefixtures("no_fsync")]
CUSTOMERS = ("asks", "live")
MIGRATION = "/migrations/{id}"
FAULTY = {
    ("POST /migrations", 2): FAULTS["answer-lost"],
    ("PUT storage", 2): FAULTS["500-after"],
    (f"POST {MIGRATION}/runs", 2): FAULTS["answer-lost"],
    (f"POST {MIGRATION}/runs/{{run_id}}/messages", 2): FAULTS["answer-lost"],
    (f"GET {MIGRATION}/exports/{{slug}}.csv", 2): FAULTS["reset-mid-body"],
}


def simulated(faults: bool = True) -> InProcess:
    world = World(
        key=KEY,
        seed=1,
        limits=Limits.parse("per-endpoint"),
        pace=RunDurations(queued=0.5, base=1.0, per_row=0.0, sigma=0.0),
        variants=Variants(),
        scripts=SCRIPTS,
    )
    return InProcess(world, faults=Faults(script=FAULTY if faults else {}))


def comparable(outcomes: dict[str, Outcome]) -> object:
    """Return the outcomes without durations and without ids, which the server draws at random."""

    def plain(value: object) -> object:
        if isinstance(value, dict):
            varying = ("seconds", "ids", "notes", "sheetId", "sheet_id")
            return {name: plain(each) for name, each in value.items() if name not in varying}
        return [plain(each) for each in value] if isinstance(value, list | tuple) else value

    return {name: plain(msgspec.to_builtins(outcomes[name])) for name in sorted(outcomes)}


def server_state(transport: InProcess) -> object:
    """Return the migrations of the server. Check that it recorded no duplicate and no other fault of the client."""
    world = transport.world
    assert str(world.verdict(10.0**6)) == "no faults"
    assert not transport.foreign
    assert transport.open == 0
    return {
        migration.external_id: (
            sorted(kind for kind, _ in migration.accepted),
            sorted(file.name for file in migration.arrived),
            migration.workbook,
            migration.decisions,
        )
        for migration in world.migrations.values()
    }


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.suffix == ".csv" else b""
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("after", [False, True], ids=["just-before", "just-after"])
def test_a_fleet_killed_at_any_write_or_request_has_the_same_result_after_a_restart(
    tmp_path: Path, after: bool, stride: int
) -> None:
    customers, out = [specs(tmp_path / "in")[name] for name in CUSTOMERS], tmp_path / "out"
    process = fleet(customers, out, limits="per-endpoint")

    async def uninterrupted() -> tuple[dict[str, Outcome], object, list[str]]:
        transport, life = simulated(), Life()
        outcomes, _ = await live(process, transport, MemoryJournal(), out, life)
        assert outcomes is not None
        for outcome in outcomes.values():
            assert isinstance(outcome, Delivered), outcome
            check_delivered(outcome.external_id, ended(outcome), transport.world)
        return outcomes, server_state(transport), life.points

    async def killed(life: Life) -> tuple[dict[str, Outcome], object]:
        transport = simulated()
        outcomes, journal = await live(process, transport, MemoryJournal(), out, life)
        assert outcomes is None
        outcomes, _ = await live(process, transport, journal, out, Life())
        assert outcomes is not None
        return outcomes, server_state(transport)

    outcomes, server, points = run(uninterrupted())
    expected = comparable(outcomes), server, files(out)
    unknown = 0
    for number, name in list(enumerate(points, 1))[int(after) % stride :: stride]:
        shutil.rmtree(out)
        outcomes, server = run(killed(Life(number, after=after)))
        unknown += any(isinstance(outcome, Unknown) for outcome in outcomes.values())
        assert comparable(outcomes) == expected[0], (
            number,
            name,
            [getattr(o, "error", "") for o in outcomes.values()],
        )
        assert server == expected[1], (number, name)
        assert files(out) == expected[2], (number, name)
    print(f"{len(points)} points, {unknown} with unknown outcomes")  # noqa: T201
    assert len(points) > 100


async def work(
    transport: InProcess, customers: list[Spec], out: Path, journal: MemoryJournal, turns: Turns
) -> object:
    """Run the fleet. Then check that it released all resources, whether it was cancelled or not."""
    process, task = fleet(customers, out, limits="per-endpoint"), asyncio.current_task()
    assert task is not None
    turns.watch(task)
    try:
        return comparable(await process(transport, journal))
    finally:
        turns.stop()
        task.uncancel()
        assert asyncio.all_tasks() == {task}
        assert transport.open == 0
        assert not list(out.rglob("*.part"))


async def cancelled(customers: list[Spec], out: Path, turns: Turns) -> tuple[bool, object, object]:
    """Cancel the fleet in one iteration, then run it to its end.

    Return whether it was cancelled, the outcomes and the state of the server.
    """
    transport, journal, was_cancelled = simulated(faults=False), MemoryJournal(), False
    try:
        await work(transport, customers, out, journal, turns)
    except asyncio.CancelledError:
        was_cancelled = True
    for spec in customers:  # every claim was released
        await (await journal.claim(spec.external_id)).release()
    return was_cancelled, await work(transport, customers, out, journal, Turns()), server_state(transport)


@pytest.mark.usefixtures("without_garbage")
def test_a_fleet_cancelled_in_any_iteration_releases_all_and_can_be_continued(tmp_path: Path) -> None:
    customers, out = [specs(tmp_path / "in")["asks"]], tmp_path / "out"

    def at(turn: int | None) -> tuple[bool, object, object]:
        turns = Turns(turn)
        descriptors = len(os.listdir("/proc/self/fd"))
        with asyncio.Runner(loop_factory=turns.loop) as runner:
            result = runner.run(cancelled(customers, out, turns))
        assert len(os.listdir("/proc/self/fd")) == descriptors
        return result

    _, *expected = at(None)
    expected.append(files(out))
    number = 1
    while True:
        shutil.rmtree(out)
        was_cancelled, *result = at(number)
        assert [*result, files(out)] == expected, number
        if not was_cancelled:
            break
        number += 1
    print(f"cancelled in {number} iterations")  # noqa: T201
    assert number > 100
