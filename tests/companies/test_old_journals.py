"""The journal of an earlier version: each of its companies continues from its recorded state.

`tests/journals/v1.sqlite` was written by the first version of the schema and of the record. For each company, the
process was killed after an event, or recorded the outcome. The file is never regenerated.
"""

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from inprocess import InProcess

from asyncmig import Approve, Delivered, Failed, Fleet, Journal, Outcome, Parked, Spec, Unknown, migrate
from asyncmig.companies.workflow.record import Record
from asyncmig.simulator import World
from asyncmig.simulator.companies.company import Company, ImportIn, Upload
from asyncmig.simulator.companies.tables import Table

from .conftest import CLEAN, DUPLICATES, SOURCE, OpenSession

pytestmark = pytest.mark.looptime
V1 = Path(__file__).parents[1] / "journals" / "v1.sqlite"
PARKS = ("parked", "decide", "decided", "rejected")
ABSENT = ("input", "create", "no-file")
"""Customers that have no company on the server."""
UNSENT = ("created", "one-upload", "start-unsent", "unknown", "adopted")
"""Customers that have no import on the server."""
EXPECTED: dict[str, type[Outcome]] = dict.fromkeys(
    (
        *("input", "create", "created", "one-upload", "start-unsent", "start-sent", "running"),
        *("parked", "decide", "decided", "delivered", "pending", "adopted"),
    ),
    Delivered,
) | {"failed": Failed, "rejected": Failed, "no-file": Failed, "unknown": Unknown}


def contents(name: str) -> dict[str, bytes]:
    """Return the contents of the customer's files by name."""
    text = DUPLICATES if name in PARKS else CLEAN
    bad = b"caf\xe9,,,\n" if name == "failed" else b""
    files = {} if name == "no-file" else {"contacts.csv": text.encode() + bad}
    return files | ({"deals.csv": b"Deal Name,Stage\nBig,won\n"} if name == "one-upload" else {})


def restore_server_state(world: World, record: Record) -> None:
    """Give the simulated server the state that it had when the record was written."""
    name = record.external_id
    if name in ABSENT:
        return
    schemas = list(world.schemas.values())
    ids = {sheet.name: sheet.id for sheet in record.sheets}
    company = Company(
        id=record.company_id or f"company-of-{name}",
        name=record.name,
        source=record.source,
        external_id=name,
        tables=[
            Table(sheet_id=ids.get(s.name, s.name), name=s.name, schema=s, header=[c.name for c in s.columns])
            for s in schemas
        ],
    )
    world.companies[company.id] = company
    for file in record.uploads:
        company.uploads[file.upload_ref] = Upload(
            name=file.name,
            content_type="text/csv",
            size=file.size,
            expires_at=0.0,
            content=contents(name)[file.name],
        )
    if name in UNSENT:
        return
    assert record.import_body is not None
    body = msgspec.json.decode(record.import_body, type=ImportIn)
    run = world.new_import(company, body, -3600.0)
    run.id = record.run_id or run.id
    company.runs[run.id] = run
    company.keys[f"i{body.idempotency_key}"] = (body.payload(), run.id)
    if name in ("decided", "rejected"):
        run.status(0.0)
        run.decide(name == "decided", {}, -1000.0)


def specs(folder: Path, names: Iterator[str]) -> list[Spec]:
    made: list[Spec] = []
    for name in names:
        (folder / name).mkdir(parents=True)
        for file, content in contents(name).items():
            (folder / name / file).write_bytes(content)
        paths = tuple(folder / name / file for file in contents(name) or ("contacts.csv",))
        made.append(Spec(external_id=name, name=f"{name} Ltd", source=SOURCE, files=paths))
    return made


async def test_each_company_of_a_journal_of_the_first_version_continues(
    open_session: OpenSession, world: World, transport: InProcess, tmp_path: Path
) -> None:
    path = tmp_path / "fleet.db"
    shutil.copy(V1, path)
    async with Journal(path, threaded=False) as journal, open_session() as session:
        records = {name: Record.read(name, state) for name, state in (await journal.states()).items()}
        assert records.keys() == EXPECTED.keys()
        for record in records.values():
            restore_server_state(world, record)
        outcomes = await asyncio.gather(
            *(
                migrate(
                    session, spec, journal=journal, to=tmp_path / "out" / spec.external_id, decide="approve"
                )
                for spec in specs(tmp_path / "in", iter(records))
            )
        )
    assert {outcome.external_id: type(outcome) for outcome in outcomes} == EXPECTED
    for outcome in outcomes:
        if isinstance(outcome, Delivered):
            assert outcome.rows == 20 + (outcome.external_id == "one-upload"), outcome
            assert outcome.ids.get("company") == records[outcome.external_id].company_id or outcome.name[
                :5
            ] in (
                "input",
                "creat",
            )
    verdict = world.verdict(10.0**6)
    assert verdict.duplicate_companies == verdict.duplicate_imports == verdict.blind_decisions == 0
    assert world.ledger.requests["POST /companies"] == 3  # input, create, unknown
    # UNSENT without unknown, the two of ABSENT with files, and start-sent.
    assert world.ledger.requests["POST /companies/{id}/imports"] == len(UNSENT) + 2
    assert world.ledger.requests["POST /companies/{id}/imports/{run_id}/decisions"] == 2


async def test_a_journal_of_the_first_version_is_resumed_without_specs(
    open_session: OpenSession, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "fleet.db"
    shutil.copy(V1, path)
    monkeypatch.chdir(tmp_path)
    async with (
        Journal(path, threaded=False) as journal,
        open_session() as session,
        Fleet(session, journal=journal, to=tmp_path / "out", decide="approve") as fleet,
    ):
        records = {name: Record.read(name, state) for name, state in (await journal.states()).items()}
        specs(tmp_path / "customers", iter(records))
        for record in records.values():
            restore_server_state(world, record)
        futures = await fleet.resume()
        ended = ("parked", "delivered", "failed", "rejected", "no-file", "unknown")
        assert futures.keys() == EXPECTED.keys() - set(ended)
        assert {name: type(await future) for name, future in futures.items()} == {
            name: EXPECTED[name] for name in futures
        }
        assert await fleet.decide("parked", Approve()) == "sent"
        *_, last = [status async for status in fleet.follow("parked")]
        assert last.outcome == "delivered"
        assert (await fleet.customers(outcome="unknown"))[0].external_id == "unknown"
    verdict = world.verdict(10.0**6)
    assert verdict.duplicate_companies == verdict.duplicate_imports == verdict.blind_decisions == 0


async def test_outcomes_of_the_first_version_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "fleet.db"
    shutil.copy(V1, path)
    async with Journal(path, threaded=False) as journal:
        records = {name: Record.read(name, state) for name, state in (await journal.states()).items()}
    delivered, parked = records["delivered"].outcome, records["parked"].outcome
    assert isinstance(delivered, Delivered)
    assert (delivered.rows, delivered.flagged, delivered.losses) == (20, 0, 0)
    assert isinstance(parked, Parked)
    assert [action.action for action in parked.destructive] == ["dedup_keep_first"]
