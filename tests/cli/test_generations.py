"""Everything that is independent of an API generation works with a minimal one that the test registers."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
import pytest

from asyncmig import (
    Approve,
    Decision,
    Delivered,
    Downloaded,
    Failed,
    Fleet,
    InvalidInput,
    Journal,
    MemoryJournal,
    NeedsAttention,
    Parked,
    Patch,
    Pending,
    Question,
    Session,
    Spec,
    generations,
    migrate,
)
from asyncmig._io.context import SessionContext
from asyncmig.customers.catalog import CatalogueItem, named
from asyncmig.customers.decisions import checked_decision
from asyncmig.customers.options import MigrationCall
from asyncmig.customers.outcome import Outcome, Reviewed
from asyncmig.customers.spec import ResolvedSpec, failed
from asyncmig.customers.status import CustomerRecord, CustomerStatus, status_of_outcome
from asyncmig.jobs.status import read_records, read_statuses
from asyncmig.journal import ClaimPort, JournalEvent, JournalPort
from asyncmig.records.names import resolve_spec
from asyncmig.session import context_of
from asyncmig.steps import Entry

from .conftest import Cli

NO_SERVER = "http://127.0.0.1:9"  # no server listens on this port, so that each request would fail


class CopyRecord(msgspec.Struct):
    api: str
    name: str
    copied: int = 0
    outcome: Outcome | None = None
    approved: bool = False


ASKED = NeedsAttention(questions=(Question(id="q", prompt="Copy?"),), proposed_patch=Patch(actions=()))
SOURCES = {"Disk": "disk-1", "Tape": "tape-1"}


class Copies(generations.Generation):
    """Delivers copies of the input files. `calls` is the number of `migrate` calls for customers not yet delivered.

    A customer with `asks` in its external id parks first. A customer with `crash` raises an error. Sources have names
    and ids.
    """

    name = "copies"
    supported_options = frozenset({"retries"})
    supported_decisions = (Approve,)

    def __init__(self) -> None:
        self.calls = 0

    async def resolve(self, context: SessionContext, specs: Sequence[Spec]) -> Sequence[ResolvedSpec]:
        async def source(wanted: str) -> str:
            if wanted in SOURCES.values():
                return wanted
            items = [CatalogueItem(id=each, name=name) for name, each in SOURCES.items()]
            return named("source", wanted, items).id

        return [await resolve_spec(spec, source, source) for spec in specs]

    async def migrate(
        self,
        context: SessionContext,
        claim: ClaimPort,
        call: MigrationCall,
    ) -> Outcome:
        spec, to = call.spec, call.to
        if claim.state is not None:
            record = msgspec.json.decode(claim.state, type=CopyRecord)
            if isinstance(record.outcome, Delivered):
                return record.outcome
        approved = claim.state is not None and record.approved
        self.calls += 1
        if "crash" in spec.external_id:
            raise RuntimeError("a fault of the generation")
        ((resolved, faults),) = await self.resolve(context, [spec])
        if faults:
            return failed(spec, faults[0])
        if "asks" in spec.external_id and not approved:
            parked = Parked(external_id=spec.external_id, name=spec.name, attention=ASKED)
            await write(claim, "parked", CopyRecord("copies", spec.name, outcome=parked))
            return parked
        to.mkdir(parents=True, exist_ok=True)
        files = []
        for path in spec.files:
            (to / path.name).write_bytes(path.read_bytes())
            files.append(
                Downloaded(sheet=path.stem, path=str(to / path.name), rows=1, size=path.stat().st_size)
            )
        outcome = Delivered(
            external_id=spec.external_id, name=spec.name, files=tuple(files), notes=(resolved.source,)
        )
        await write(claim, "delivered", CopyRecord("copies", spec.name, len(files), outcome))
        return outcome

    def read(self, external_id: str, state: bytes) -> CustomerRecord:
        record = msgspec.json.decode(state, type=CopyRecord)
        if record.outcome is None:
            return CustomerRecord(
                status=CustomerStatus(external_id=external_id, name=record.name, api=self.name)
            )
        status = status_of_outcome(record.outcome, api=self.name)
        return CustomerRecord(status=status, outcome=record.outcome, has_started=True)

    def describe(self, event: JournalEvent) -> str:
        return f"copied {json.loads(event.detail)['copied']} file"

    async def questions(self, context: SessionContext, record: CustomerRecord) -> NeedsAttention | None:
        return ASKED

    async def decide(
        self,
        context: SessionContext,
        journal: JournalPort,
        external_id: str,
        decision: Decision,
        *,
        shown: NeedsAttention,
        allow_destructive: bool = False,
    ) -> Reviewed:
        checked_decision(decision, self.supported_decisions, self.name)
        async with await journal.claim(external_id) as claim:
            record = msgspec.json.decode(claim.state or b"", type=CopyRecord)
            await write(claim, "decided", CopyRecord("copies", record.name, approved=True))
        return "sent"

    async def cancel(
        self,
        context: SessionContext,
        journal: JournalPort,
        external_id: str,
        *,
        reject_parked: bool = False,
    ) -> Outcome:
        async with await journal.claim(external_id) as claim:
            record = msgspec.json.decode(claim.state or b"", type=CopyRecord)
            outcome = Pending(external_id=external_id, name=record.name, error="canceled", reason="canceled")
            await write(claim, "pending", CopyRecord("copies", record.name, outcome=outcome))
        return outcome


async def write(claim: ClaimPort, kind: Entry, record: CopyRecord) -> None:
    await claim.write(kind, msgspec.json.encode({"copied": record.copied}), msgspec.json.encode(record))


@pytest.fixture
def copies() -> Iterator[Copies]:
    generation = Copies()
    generations.register(generation)
    yield generation
    generations.unregister("copies")


@pytest.fixture
def spec(tmp_path: Path) -> Callable[[str], Spec]:
    def make(external_id: str) -> Spec:
        path = tmp_path / "in" / f"{external_id}.csv"
        path.parent.mkdir(exist_ok=True)
        path.write_text("Email\na@x.org\n")
        return Spec(external_id=external_id, name=external_id.title(), source="Disk", files=(path,))

    return make


async def test_a_fleet_migrates_with_it_and_an_error_affects_one_customer_only(
    copies: Copies, spec: Callable[[str], Spec], tmp_path: Path
) -> None:
    journal = MemoryJournal()
    async with (
        Session("key", NO_SERVER) as session,
        Fleet(session, journal=journal, to=tmp_path / "out", api="copies", retries=1) as fleet,
    ):
        specs = [spec(each) for each in ("acme", "bolt", "crash")]
        outcomes = {each.external_id: each async for each in fleet.run(specs)}
        again = {each.external_id: each async for each in fleet.run(specs[:2])}
    assert isinstance(outcomes["acme"], Delivered)
    assert outcomes["acme"].notes == ("disk-1",)
    assert (tmp_path / "out/acme/acme.csv").read_text() == "Email\na@x.org\n"
    assert "RuntimeError" in (getattr(outcomes["crash"], "error", ""))
    assert again["bolt"] == outcomes["bolt"]
    assert copies.calls == 3
    statuses = {each.external_id: each for each in await read_statuses(journal)}
    assert (statuses["acme"].api, statuses["acme"].outcome, statuses["acme"].rows.delivered) == (
        "copies",
        "delivered",
        1,
    )


async def test_a_parked_customer_is_canceled_and_a_decision_continues_it(
    copies: Copies, spec: Callable[[str], Spec], tmp_path: Path
) -> None:
    journal, to = MemoryJournal(), tmp_path / "out"
    async with Session("key", NO_SERVER) as session:
        assert isinstance(await migrate(session, spec("asks"), journal=journal, to=to, api="copies"), Parked)
        canceled = await copies.cancel(context_of(session), journal, "asks")
        (status,) = await read_statuses(journal)
        assert (canceled, status.outcome, status.pending_reason) == (canceled, "pending", "canceled")
        sent = await copies.decide(context_of(session), journal, "asks", Approve(), shown=ASKED)
        assert sent == "sent"
        assert isinstance(
            await migrate(session, spec("asks"), journal=journal, to=to, api="copies"), Delivered
        )


async def test_an_external_id_of_another_generation_is_refused_before_any_request(
    copies: Copies, spec: Callable[[str], Spec], tmp_path: Path
) -> None:
    journal = MemoryJournal()
    async with Session("key", NO_SERVER) as session:
        await migrate(session, spec("acme"), journal=journal, to=tmp_path / "out", api="copies")
        before = await journal.states()
        refused = await migrate(session, spec("acme"), journal=journal, to=tmp_path / "out")
        assert not session.requests
    assert isinstance(refused, Failed)
    assert "'copies'" in refused.error
    assert "'companies'" in refused.error
    assert await journal.states() == before


async def test_an_unsupported_option_is_refused_with_its_name_and_the_generation(
    copies: Copies, spec: Callable[[str], Spec]
) -> None:
    async with Session("key", NO_SERVER) as session:
        with pytest.raises(InvalidInput, match=r"export.*copies"):
            Fleet(session, journal=MemoryJournal(), api="copies", export="full")
        with pytest.raises(InvalidInput, match=r"decide.*copies"):
            await migrate(
                session, spec("acme"), journal=MemoryJournal(), to="out", api="copies", decide="approve"
            )


async def test_an_unknown_generation_raises_an_error_that_lists_the_known_ones(copies: Copies) -> None:
    async with Session("key", NO_SERVER) as session:
        with pytest.raises(InvalidInput, match="companies, copies"):
            Fleet(session, journal=MemoryJournal(), api="migrationz")


@pytest.mark.parametrize(
    "state",
    [
        b"{}",
        b"[]",
        b"\xff",
        b'{"api": 7}',
        b'{"api": "migrations-of-tomorrow"}',
        b'{"api": "copies", "name": 7}',
        b'{"api": "copies", "name": "Acme", "outcome": {"type": "lost"}}',
    ],
)
async def test_an_unreadable_record_affects_only_its_customer(
    copies: Copies, spec: Callable[[str], Spec], tmp_path: Path, state: bytes
) -> None:
    journal = MemoryJournal()
    async with await journal.claim("acme") as claim:
        await claim.write("created", b"{}", state)
    async with Session("key", NO_SERVER) as session:
        for api in ("companies", "copies"):
            outcome = await migrate(session, spec("acme"), journal=journal, to=tmp_path / "out", api=api)
            assert isinstance(outcome, Failed)
        await migrate(session, spec("bolt"), journal=journal, to=tmp_path / "out", api="copies")
        assert not session.requests
    statuses = {each.external_id: each for each in await read_statuses(journal)}
    assert statuses["acme"].outcome == "failed"
    assert "cannot read" in (statuses["acme"].error or "")
    assert statuses["bolt"].outcome == "delivered"
    assert (await journal.states())["acme"] == state


def test_commands_work_with_a_registered_generation(
    cli: Cli, copies: Copies, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.csv").write_text("Email\na@x.org\n")
    (tmp_path / "customers.csv").write_text(
        "external_id,name,source,files\nacme,Acme,disk-1,a.csv\nasks,Asks,Tape,a.csv\n"
    )
    (tmp_path / "wrong.csv").write_text("external_id,name,source,files\nbolt,Bolt,Dsik,a.csv\n")
    unknown = cli("run", "customers.csv", "--api", "migrationz", "--base-url", NO_SERVER)
    assert unknown.code == 2
    assert "companies, copies" in unknown.err
    planned = json.loads(cli("run", "customers.csv", "--plan", "--json", "--api", "copies").out)
    assert (planned["new"], planned["requests"]) == (2, {})
    monkeypatch.setenv("ASYNCMIG_API", "copies")
    misnamed = cli("run", "wrong.csv", "--base-url", NO_SERVER)
    assert misnamed.code == 2
    assert "line 2: source: 'Dsik' is not known; there are ['Disk', 'Tape']" in misnamed.err
    ran = cli("run", "customers.csv", "--base-url", NO_SERVER)
    assert ran.code == 5, ran.err
    assert (tmp_path / "out/acme/a.csv").exists()
    statuses = [json.loads(line) for line in cli("status", "--json").out.splitlines()]
    assert {each["external_id"]: each["outcome"] for each in statuses} == {
        "acme": "delivered",
        "asks": "parked",
    }
    assert {each["api"] for each in statuses} == {"copies"}
    unsupported = cli("review", "asks", "--reject", "--base-url", NO_SERVER)
    assert unsupported.code == 2
    assert "'copies'" in unsupported.err
    assert cli("review", "asks", "--approve", "--base-url", NO_SERVER).code == 0
    again = cli("run", "customers.csv", "--base-url", NO_SERVER)
    assert again.code == 0, again.err
    assert (tmp_path / "out/asks/a.csv").exists()
    assert "copied 1 file" in cli("show", "acme").out
    monkeypatch.delenv("ASYNCMIG_API")
    refused = cli("run", "customers.csv", "--base-url", NO_SERVER)
    assert refused.code != 0
    assert copies.calls == 3


async def test_records_of_a_version_1_journal_have_the_generation_companies() -> None:
    path = Path(__file__).parents[1] / "journals" / "v1.sqlite"
    async with Journal(path, read_only=True) as journal:
        records = await read_records(journal)
    assert records
    assert {record.api for record in records.values()} == {"companies"}
    assert all(record.is_readable for record in records.values())
