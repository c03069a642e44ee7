"""A fleet whose process is killed at any point: the next call ends with the same result as without the kill."""

import json
import shutil
from pathlib import Path
from random import Random

import msgspec
import pytest
from inprocess import BASE_URL, KEY, InProcess
from mortal import Life, Process, live, run

from asyncmig import Delivered, Failed, Fleet, MemoryJournal, Outcome, Parked, Session, Spec, migrate
from asyncmig._io.transport import Transport
from asyncmig.customers.answer_rules import AnswerRule
from asyncmig.journal import JournalPort
from asyncmig.simulator import Fault, Faults, RunDurations
from asyncmig.simulator.migrations import Block, Limits, Question, Script, Variants, World

pytestmark = pytest.mark.timeout(300)
HEADER = "E-mail,Given Name,Surname,Phone\n"
CONTACTS = HEADER + "".join(f"p{n}@x.org,Ada,L{n},1\n" for n in range(6))
DEALS = "Title,Stage,Amount,Contact\nBig,won,1,p1@x.org\n"
CUSTOMERS: dict[str, dict[str, str]] = {
    "plain": {"contacts": CONTACTS, "deals": DEALS},
    "fails": {"contacts": CONTACTS},
    "stops": {"contacts": CONTACTS},
}
WHY = Question(text="Why?", options=("A", "B"), allow_custom=False)
SCRIPTS = {
    "plain": Script(blocks={"execute": [Block(questions=(WHY,))]}),
    "fails": Script(fails={"generate": "The file is password-protected"}),
    "stops": Script(fails={"execute": "The engine stopped"}),
}
RULES = (AnswerRule(question=r"^Why\?", choose="A"),)
_RUNS = "/migrations/{id}/runs"
FAULTS: dict[tuple[str, int], Fault] = {
    ("POST /migrations", 2): Fault(lost_after=True),
    ("PUT storage", 2): Fault(lost_after=True),
    (f"POST {_RUNS}", 2): Fault(lost_after=True),
    (f"POST {_RUNS}", 4): Fault(lost_before=True),
    (f"POST {_RUNS}/{{run_id}}/messages", 1): Fault(lost_after=True),
    ("GET /migrations/{id}/exports/{slug}.csv", 1): Fault(cut_to=20),
}


def customers(folder: Path, names: tuple[str, ...] = tuple(CUSTOMERS)) -> list[Spec]:
    specs: list[Spec] = []
    for name in names:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for stem, text in CUSTOMERS[name].items():
            (folder / name / f"{stem}.csv").write_text(text, encoding="utf-8")
        specs.append(
            Spec(
                external_id=name,
                name=name,
                source="HubSpot",
                files=tuple(sorted((folder / name).iterdir())),
            )
        )
    return specs


def fleet(specs: list[Spec], out: Path) -> Process[dict[str, Outcome]]:
    """Return a process that does what `asyncmig run` does."""

    async def process(transport: Transport, journal: JournalPort) -> dict[str, Outcome]:
        async with (
            Session(KEY, BASE_URL, transport=transport, rng=Random(1), limits="per-endpoint") as session,
            Fleet(
                session,
                api="migrations",
                journal=journal,
                to=out,
                decide="approve",
                answers=RULES,
                retries=1,
            ) as fleet,
        ):
            return {outcome.external_id: outcome async for outcome in fleet.run(specs)}

    return process


def simulated(variants: Variants | None = None, *, faults: bool = True) -> InProcess:
    world = World(
        key=KEY,
        seed=1,
        pace=RunDurations(queued=1.0, base=20.0, per_row=0.0, sigma=0.0),
        limits=Limits.parse("per-endpoint"),
        variants=variants or Variants(),
        scripts=SCRIPTS,
    )
    return InProcess(world, rng=Random(1), faults=Faults(script=dict(FAULTS) if faults else {}))  # type: ignore[arg-type]


def summary(outcomes: dict[str, Outcome]) -> object:
    """Return the outcomes as plain values, without ids and times."""

    def plain(value: object) -> object:
        if isinstance(value, dict):
            varying = ("seconds", "ids", "notes", "sheetId")
            return {name: plain(each) for name, each in value.items() if name not in varying}
        return [plain(each) for each in value] if isinstance(value, list | tuple) else value

    return {name: plain(msgspec.to_builtins(outcomes[name])) for name in sorted(outcomes)}


def server_state(transport: InProcess) -> object:
    """Return the state of the server, and check that nothing happened twice."""
    verdict = transport.world.verdict(10.0**6)
    assert verdict.executed_twice == verdict.generated_twice == verdict.uploaded_twice == 0, verdict
    assert verdict.duplicate_migrations == verdict.key_leaks == verdict.malformed == 0, verdict
    assert not transport.foreign
    assert transport.open == 0
    return {
        each.external_id: (
            each.name,
            [kind for kind, _ in each.accepted],
            sorted(file.name for file in each.arrived),
            each.workbook,
            each.decisions,
        )
        for each in transport.world.migrations.values()
    }


def delivered_files(folder: Path) -> dict[str, object]:
    """Return the delivered files by path; of the log, only the kinds and statuses of its runs."""
    found: dict[str, object] = {}
    for path in folder.rglob("*"):
        if path.is_file():
            found[str(path.relative_to(folder))] = path.read_bytes() if path.suffix == ".csv" else None
        if path.name == "log.json":
            found[str(path.relative_to(folder))] = [
                (each["kind"], each["status"]) for each in json.loads(path.read_bytes())["runs"]
            ]
    return found


@pytest.mark.parametrize("names", [("plain", "fails"), ("stops",)], ids="-".join)
@pytest.mark.parametrize("after", [False, True], ids=["just-before", "just-after"])
def test_a_fleet_killed_at_each_write_and_request_ends_the_same(
    tmp_path: Path, after: bool, names: tuple[str, ...], stride: int
) -> None:
    specs, out = customers(tmp_path / "in", names), tmp_path / "out"
    process = fleet(specs, out)

    async def uninterrupted() -> tuple[dict[str, Outcome], object, list[str]]:
        transport, life = simulated(), Life()
        outcomes, _ = await live(process, transport, MemoryJournal(), out, life)
        assert outcomes is not None
        return outcomes, server_state(transport), life.points

    async def killed(life: Life) -> tuple[dict[str, Outcome], object]:
        transport = simulated()
        outcomes, journal = await live(process, transport, MemoryJournal(), out, life)
        if (
            outcomes is None
        ):  # not None only if a stream was closed while it opened: it has no point just after its response
            outcomes, journal = await live(process, transport, journal, out, Life())
        assert outcomes is not None
        return outcomes, server_state(transport)

    outcomes, server, points = run(uninterrupted())
    assert {name: type(outcome) for name, outcome in outcomes.items()} == {
        name: Failed if name == "stops" else Delivered for name in names
    }, outcomes
    expected = summary(outcomes), server, delivered_files(out)
    for number, name in list(enumerate(points, 1))[int(after) % stride :: stride]:
        shutil.rmtree(out)
        outcomes, server = run(killed(Life(number, after=after)))
        assert summary(outcomes) == expected[0], (number, name)
        assert server == expected[1], (number, name)
        assert delivered_files(out) == expected[2], (number, name)
    print(f"{len(points)} points")  # noqa: T201


@pytest.mark.parametrize("names", ["kept", "changed", "replaced"])
@pytest.mark.parametrize("lost", [False, True], ids=["plain", "lost-puts"])
def test_killed_during_the_upload_no_file_is_uploaded_twice_whatever_the_server_calls_it(
    tmp_path: Path, names: str, lost: bool
) -> None:
    specs, out = customers(tmp_path / "in", ("plain",)), tmp_path / "out"
    process = fleet(specs, out)

    async def once(life: Life) -> tuple[list[str], InProcess]:
        transport = simulated(Variants(file_names=names), faults=False)
        if lost:
            transport.faulty_endpoint = "PUT storage"
            transport.nth = {1: Fault(lost_before=True), 3: Fault(lost_after=True)}
        outcomes, journal = await live(process, transport, MemoryJournal(), out, life)
        if outcomes is None:
            states = await journal.states()
            assert b"token" not in states["plain"]
            assert transport.STORAGE_URL.encode() not in states["plain"]
            outcomes, _ = await live(process, transport, journal, out, Life())
        assert outcomes is not None
        assert isinstance(outcomes["plain"], Delivered), outcomes
        return life.points, transport

    points, transport = run(once(Life()))
    expected = [file.requested_name for file in transport.world.migration("plain").arrived]
    for number in range(points.index("POST files"), points.index("write uploaded") + 2):
        for after in (False, True):
            _, transport = run(once(Life(number, after=after)))
            server_state(transport)
            arrived = transport.world.migration("plain").arrived
            assert sorted(file.requested_name for file in arrived) == sorted(expected), points[number - 1]
            shutil.rmtree(out)


@pytest.mark.parametrize("after", [False, True], ids=["just-before", "just-after"])
def test_a_process_killed_while_it_cancels_a_blocked_run_ends_the_same(tmp_path: Path, after: bool) -> None:
    specs, out = customers(tmp_path / "in", ("plain",)), tmp_path / "out"
    question = {"plain": Script(blocks={"generate": [Block(questions=(WHY,))]})}

    async def process(transport: Transport, journal: JournalPort) -> Outcome:
        async with Session(
            KEY, BASE_URL, transport=transport, rng=Random(1), limits="per-endpoint"
        ) as session:
            return await migrate(
                session, specs[0], journal=journal, to=out, api="migrations", cancel_blocked_after=600.0
            )

    async def once(life: Life) -> tuple[Outcome, list[str], InProcess]:
        world = World(key=KEY, limits=Limits.parse("per-endpoint"), scripts=question)
        transport = InProcess(world, rng=Random(1))
        outcome, journal = await live(process, transport, MemoryJournal(), out, life)
        if outcome is None:
            outcome, _ = await live(process, transport, journal, out, Life())
        assert outcome is not None
        return outcome, life.points, transport

    outcome, points, _ = run(once(Life()))
    assert isinstance(outcome, Parked)
    number = next(n for n, name in enumerate(points, 1) if name.startswith("PATCH"))
    outcome, _, transport = run(once(Life(number, after=after)))
    assert isinstance(outcome, Parked)
    assert "canceled after 600 s" in outcome.notes[-1]
    migration = transport.world.migration("plain")
    assert migration.active is None
    assert [kind for kind, _ in migration.accepted] == ["generate"] * (2 if after else 1)
