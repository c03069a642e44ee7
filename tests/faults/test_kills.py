"""A fleet whose process is killed at any point. The same call, repeated, has the result of an uninterrupted fleet."""

import shutil
from collections import Counter
from pathlib import Path
from random import Random

import msgspec
import pytest
from inprocess import BASE_URL, KEY, InProcess
from mortal import Life, Process, live, run

from asyncmig import Delivered, Failed, Fleet, MemoryJournal, Outcome, Session, Spec, Unknown, adopt
from asyncmig._io.transport import Transport
from asyncmig.journal import JournalPort
from asyncmig.simulator import FAULTS, SCHEMAS, SOURCES, Fault, Faults, RunDurations, Variants, World

pytestmark = [pytest.mark.timeout(300), pytest.mark.usefixtures("no_fsync")]
SOURCE = next(iter(SOURCES))
HEADER = "E-mail,Given Name,Surname,Phone\n"
CONTACTS = HEADER + "".join(f"p{n}@x.org,Ada,L{n},1\n" for n in range(6))
DEALS = "Deal Name,Stage,Amount,Contact\nBig,won,1,p1@x.org\n"
CONNECTIONS = {"destination": {"base_url": "https://d.invalid", "auth": {"token": "t"}}}
CUSTOMERS: dict[str, dict[str, bytes]] = {
    "plain": {"contacts": CONTACTS.encode(), "deals": DEALS.encode()},
    "flagged": {"contacts": (CONTACTS * 1 + "none,A,B,1\n").replace("p5@x.org,Ada,L5,1\n", "").encode()},
    "parks": {"contacts": (CONTACTS + "p1@x.org,Ada,L1,1\n" * 3).encode()},
    "fails": {"contacts": CONTACTS.encode() + b"caf\xe9,,,\n"},
    "unconnected": {"contacts": CONTACTS.encode()},
}
_IMPORTS = "/companies/{id}/imports"
SCRIPT: dict[tuple[str, int], Fault] = {
    ("POST /companies", 2): Fault(lost_before=True),
    ("POST /companies/{id}/uploads", 2): FAULTS["html-502"],
    ("PUT storage", 3): FAULTS["empty-503"],
    (f"POST {_IMPORTS}", 2): Fault(lost_after=True),
    (f"GET {_IMPORTS}/{{run_id}}", 3): Fault(cut_to=9),
    (f"POST {_IMPORTS}/{{run_id}}/decisions", 1): Fault(lost_after=True),
    ("GET /companies/{id}/export.csv", 1): Fault(cut_to=50),
    ("POST /companies/{id}/exports", 2): Fault(lost_after=True),
}


def customers(folder: Path, prefix: str = "") -> list[Spec]:
    specs: list[Spec] = []
    for name, content in CUSTOMERS.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for stem, text in content.items():
            (folder / name / f"{stem}.csv").write_bytes(text)
        specs.append(
            Spec(
                external_id=f"{prefix}{name}",
                name=f"{prefix}{name}",
                source=SOURCE,
                files=tuple(sorted((folder / name).iterdir())),
                connections=None if name == "unconnected" else CONNECTIONS,
            )
        )
    return specs


def fleet(specs: list[Spec], out: Path) -> Process[dict[str, Outcome]]:
    """Return a process with a fleet, as `asyncmig run` uses it, with all exports."""

    async def process(transport: Transport, journal: JournalPort) -> dict[str, Outcome]:
        async with (
            Session(KEY, BASE_URL, transport=transport, rng=Random(1)) as session,
            Fleet(session, journal=journal, to=out, decide="approve", retries=1, export="full") as fleet,
        ):
            return {outcome.external_id: outcome async for outcome in fleet.run(specs)}

    return process


def simulated() -> InProcess:
    world = World(
        key=KEY,
        sources=SOURCES,
        schemas=SCHEMAS,
        seed=1,
        pace=RunDurations(queued=1.0, base=5.0, per_row=0.1, sigma=0.0),
        variants=Variants(parks_twice=True, zip_status=404),
    )
    return InProcess(world, rng=Random(1), faults=Faults(script=SCRIPT))


def comparable(outcomes: dict[str, Outcome]) -> object:
    """Return the outcomes without durations and without ids, which the server draws at random."""

    def plain(value: object) -> object:
        if isinstance(value, dict):
            varying = ("seconds", "ids", "run_id", "notes", "sheetId")
            return {name: plain(each) for name, each in value.items() if name not in varying}
        return [plain(each) for each in value] if isinstance(value, list | tuple) else value

    return {name: plain(msgspec.to_builtins(outcomes[name])) for name in sorted(outcomes)}


def server_state(transport: InProcess) -> object:
    """Return the companies of the server with their imports, exports and keys. Check the verdict of the ledger."""
    world = transport.world
    verdict = world.verdict(10.0**6)
    assert verdict.duplicate_companies == verdict.key_leaks == verdict.blind_decisions == 0
    assert verdict.unaccounted == 0
    assert not transport.foreign
    assert transport.open == 0
    conflicts = Counter(entry.endpoint for entry in world.ledger.entries if entry.status == 409)
    # A 409 of another endpoint would mean that the client sent an idempotency key again with other content.
    assert set(conflicts) <= {"POST /companies", f"POST {_IMPORTS}/{{run_id}}/decisions"}
    return {
        company.external_id: (
            company.name,
            [(run.digest, run.status(10.0**6), run.parks, run.decided) for run in company.runs.values()],
            [run.describe(10.0**6) for run in company.exports.values()],
            sorted(key for key in company.keys if key.startswith("i")),
            sum(key.startswith("e") for key in company.keys),  # their names contain the ids of runs
            [table.rows for table in company.tables],
        )
        for company in world.companies.values()
    }


def files(folder: Path, prefix: str = "") -> dict[str, bytes]:
    """Return the content of all files in a folder by relative path, without the prefix of the customers."""
    return {
        str(path.relative_to(folder)).removeprefix(f"{prefix}-"): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def remove_journal(folder: Path) -> None:
    """Remove a journal and its auxiliary files, so that the send log does not become longer with each session."""
    for path in folder.glob("fleet.db*"):
        path.unlink()


async def adopt_unknown(outcomes: dict[str, Outcome], transport: InProcess, journal: MemoryJournal) -> int:
    """Adopt the companies of unknown outcomes, as the outcomes advise. Return their number."""
    unknown = [name for name, outcome in outcomes.items() if isinstance(outcome, Unknown)]
    ids = {company.external_id: company.id for company in transport.world.companies.values()}
    for name in unknown:
        await adopt(journal, name, ids[name])
    return len(unknown)


@pytest.mark.parametrize("after", [False, True], ids=["just-before", "just-after"])
def test_a_fleet_killed_at_any_write_or_request_has_the_same_result_after_a_restart(
    tmp_path: Path, after: bool, stride: int
) -> None:
    """With a stride of 2, the process dies just before one half of the points, and just after the other half."""
    specs, out = customers(tmp_path / "in"), tmp_path / "out"
    process = fleet(specs, out)

    async def uninterrupted() -> tuple[dict[str, Outcome], object, list[str]]:
        transport, life = simulated(), Life()
        outcomes, _ = await live(process, transport, MemoryJournal(), out, life)
        assert outcomes is not None
        return outcomes, server_state(transport), life.points

    async def killed(life: Life) -> tuple[dict[str, Outcome], object, int]:
        transport = simulated()
        outcomes, journal = await live(process, transport, MemoryJournal(), out, life)
        assert outcomes is None
        outcomes, journal = await live(process, transport, journal, out, Life())
        assert outcomes is not None
        adopted = await adopt_unknown(outcomes, transport, journal)
        if adopted:
            outcomes, journal = await live(process, transport, journal, out, Life())
            assert outcomes is not None
        return outcomes, server_state(transport), adopted

    outcomes, server, points = run(uninterrupted())
    assert {name: type(outcome) for name, outcome in outcomes.items()} == {
        "plain": Delivered,
        "flagged": Delivered,
        "parks": Delivered,
        "fails": Failed,
        "unconnected": Failed,
    }
    expected = comparable(outcomes), server, files(out)
    tried = adopted = 0
    chosen = list(enumerate(points, 1))[int(after) % stride :: stride]
    for number, name in chosen:
        shutil.rmtree(out)
        life = Life(number, after=after)
        outcomes, server, lost = run(killed(life))
        assert life.points == points[: len(life.points)]
        assert comparable(outcomes) == expected[0], (number, name)
        assert server == expected[1], (number, name)
        assert files(out) == expected[2], (number, name)
        tried, adopted = tried + 1, adopted + lost
    print(f"{len(points)} points, {tried} deaths, {adopted} companies adopted")  # noqa: T201
    assert tried == len(chosen) > 50
