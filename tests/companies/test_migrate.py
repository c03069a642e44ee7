"""One customer from CSV to CSV: under each fault, nothing is done twice and nothing is lost."""

import asyncio
import errno
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from inprocess import KEY, Fault, InProcess

from asyncmig import (
    Approve,
    Delivered,
    Failed,
    InvalidInput,
    MemoryJournal,
    Outcome,
    Parked,
    Pending,
    Spec,
    Unknown,
    adopt,
    migrate,
)
from asyncmig.customers.outcome import LONGEST_ERROR
from asyncmig.simulator import Reply, Variants, World

from .conftest import CLEAN, DUPLICATES, OpenSession

pytestmark = pytest.mark.looptime
Customer = Callable[..., Spec]
COMPANIES = "/api/v1/companies"


def on(method: str, ending: str, *numbers: int, fault: Fault) -> Callable[[str, str, int], Fault | None]:
    """Return a function that applies `fault` to the requests with these numbers to one endpoint."""

    def plan(asked: str, path: str, number: int) -> Fault | None:
        return fault if asked == method and path.endswith(ending) and number in numbers else None

    return plan


async def test_files_are_imported_and_sheets_are_delivered(
    open_session: OpenSession, customer: Customer, tmp_path: Path
) -> None:
    async with open_session() as session:
        outcome = await migrate(session, customer(), journal=MemoryJournal(), to=tmp_path / "out")
    assert isinstance(outcome, Delivered)
    assert {file.sheet: file.rows for file in outcome.files} == {"Companies": 0, "Contacts": 20, "Deals": 0}
    text = (tmp_path / "out" / "Contacts.csv").read_text(encoding="utf-8")
    assert text.splitlines()[:2] == ["Email,First Name,Last Name,Phone", "p0@x.org,Ada,L0,1"]


async def test_a_delivered_customer_is_not_migrated_again(
    open_session: OpenSession, customer: Customer, transport: InProcess, tmp_path: Path
) -> None:
    journal = MemoryJournal()
    async with open_session() as session:
        first = await migrate(session, customer(), journal=journal, to=tmp_path / "out")
    before = len(transport.sent)
    async with open_session() as session:
        assert await migrate(session, customer(), journal=journal, to=tmp_path / "out") == first
    assert len(transport.sent) == before


async def test_a_deleted_delivered_file_is_fetched_again(
    open_session: OpenSession, customer: Customer, world: World, tmp_path: Path
) -> None:
    journal = MemoryJournal()
    async with open_session() as session:
        await migrate(session, customer(), journal=journal, to=tmp_path)
        (tmp_path / "Contacts.csv").unlink()
        assert isinstance(await migrate(session, customer(), journal=journal, to=tmp_path), Delivered)
    assert (tmp_path / "Contacts.csv").exists()
    assert world.ledger.requests["POST /companies/{id}/imports"] == 1


@pytest.mark.parametrize(
    "fault", [Fault(lost_before=True), Fault(lost_after=True), Fault(hangs=True), Fault(cut_to=5)], ids=repr
)
@pytest.mark.parametrize("ending", ["/uploads", "/imports", "/export.csv", "/storage"])
async def test_a_lost_response_causes_no_second_import(
    open_session: OpenSession,
    customer: Customer,
    transport: InProcess,
    world: World,
    tmp_path: Path,
    ending: str,
    fault: Fault,
) -> None:
    transport.fault = lambda method, path, number: fault if path.endswith(ending) and number == 1 else None
    async with open_session() as session:
        outcome = await migrate(session, customer(), journal=MemoryJournal(), to=tmp_path)
    assert isinstance(outcome, Delivered)
    assert outcome.report is not None
    assert outcome.report.inserted == 20
    assert len(world.ledger.detection) == 1


async def test_a_creation_without_a_response_is_unknown(
    open_session: OpenSession, customer: Customer, transport: InProcess, world: World, tmp_path: Path
) -> None:
    transport.fault = on("POST", COMPANIES, 1, fault=Fault(lost_after=True))
    async with open_session() as session:
        outcome = await migrate(session, customer(), journal=MemoryJournal(), to=tmp_path)
    assert isinstance(outcome, Unknown)
    assert "adopt" in outcome.error
    assert '"external_id":"acme"' in outcome.sent
    assert world.ledger.requests["POST /companies/{id}/uploads"] == 0


async def test_a_creation_that_never_arrived_is_repeated(
    open_session: OpenSession, customer: Customer, transport: InProcess, tmp_path: Path
) -> None:
    transport.fault = on("POST", COMPANIES, 1, 2, fault=Fault(lost_before=True))
    async with open_session() as session:
        outcome = await migrate(session, customer(), journal=MemoryJournal(), to=tmp_path)
    assert isinstance(outcome, Delivered)


async def test_an_existing_name_fails_with_the_error_of_the_server(
    open_session: OpenSession, customer: Customer, tmp_path: Path
) -> None:
    async with open_session() as session:
        await session.companies.create(name="acme Ltd", source=customer().source)
        outcome = await migrate(session, customer(), journal=MemoryJournal(), to=tmp_path)
    assert isinstance(outcome, Failed)
    assert "A company of this name exists" in outcome.error


async def test_an_existing_company_without_a_journal_entry_is_unknown(
    open_session: OpenSession, customer: Customer, tmp_path: Path
) -> None:
    async with open_session() as session:
        await session.companies.create(name="other", source=customer().source, external_id="acme")
        outcome = await migrate(session, customer(), journal=MemoryJournal(), to=tmp_path)
    assert isinstance(outcome, Unknown)


async def test_a_parked_import_continues_once_it_is_approved(
    open_session: OpenSession, customer: Customer, world: World, tmp_path: Path
) -> None:
    journal, spec = MemoryJournal(), customer(contacts=DUPLICATES)
    async with open_session() as session:
        parked = await migrate(session, spec, journal=journal, to=tmp_path)
    assert isinstance(parked, Parked)
    assert [action.action for action in parked.destructive] == ["dedup_keep_first"]
    async with open_session() as session:
        safe = await migrate(session, spec, journal=journal, to=tmp_path, decide="approve_safe")
        assert isinstance(safe, Parked)
        outcome = await migrate(session, spec, journal=journal, to=tmp_path, decide="approve")
    assert isinstance(outcome, Delivered)
    assert {file.sheet: file.rows for file in outcome.files}["Contacts"] == 20
    assert world.ledger.requests["POST /companies/{id}/imports/{run_id}/decisions"] == 1


async def test_a_rejected_import_ends_as_failed(
    open_session: OpenSession, customer: Customer, tmp_path: Path
) -> None:
    async with open_session() as session:
        outcome = await migrate(
            session, customer(contacts=DUPLICATES), journal=MemoryJournal(), to=tmp_path, decide="reject"
        )
    assert isinstance(outcome, Failed)
    assert outcome.error == "Rejected by a person"


async def test_a_function_of_the_caller_decides(
    open_session: OpenSession, customer: Customer, tmp_path: Path
) -> None:
    async def decide(parked: Parked) -> Approve:
        return Approve({question.id: "b" for question in parked.attention.questions})

    async with open_session() as session:
        outcome = await migrate(
            session, customer(contacts=DUPLICATES), journal=MemoryJournal(), to=tmp_path, decide=decide
        )
    assert isinstance(outcome, Delivered)
    assert outcome.report is not None
    assert (outcome.report.inserted, outcome.report.invalid_rows) == (23, 3)


@pytest.mark.parametrize("fault", [Fault(lost_before=True), Fault(lost_after=True)], ids=repr)
async def test_a_decision_without_a_response_is_made_once(
    open_session: OpenSession,
    customer: Customer,
    transport: InProcess,
    world: World,
    tmp_path: Path,
    fault: Fault,
) -> None:
    transport.fault = on("POST", "/decisions", 1, fault=fault)
    async with open_session() as session:
        outcome = await migrate(
            session, customer(contacts=DUPLICATES), journal=MemoryJournal(), to=tmp_path, decide="approve"
        )
    assert isinstance(outcome, Delivered)
    decided = [entry.status for entry in world.ledger.entries if entry.template.endswith("/decisions")]
    assert decided == [200]


async def test_a_refused_key_leaves_all_customers_pending(
    open_session: OpenSession, customer: Customer, transport: InProcess, world: World, tmp_path: Path
) -> None:
    journal = MemoryJournal()
    world.key = "another"
    async with open_session() as session:
        outcomes = await asyncio.gather(
            *(migrate(session, customer(f"c{n}"), journal=journal, to=tmp_path / str(n)) for n in range(30))
        )
    assert all(isinstance(outcome, Pending) for outcome in outcomes)
    assert len(transport.sent) <= 10  # the requests in progress at the first refusal
    world.key = KEY
    async with open_session() as session:
        outcome = await migrate(session, customer("c1"), journal=journal, to=tmp_path)
    assert isinstance(outcome, Delivered)


async def test_a_truncated_download_with_a_matching_content_length_is_repeated(
    open_session: OpenSession, customer: Customer, transport: InProcess, tmp_path: Path
) -> None:
    # One sheet: its download is not a ZIP, which has checksums.
    transport.world.schemas = dict(list(transport.world.schemas.items())[1:2])
    transport.fault = on("GET", "/export.csv", 1, 2, fault=Fault(truncated_to=200))
    async with open_session() as session:
        outcome = await migrate(session, customer(), journal=MemoryJournal(), to=tmp_path)
    assert isinstance(outcome, Delivered)
    assert len((tmp_path / "Contacts.csv").read_text(encoding="utf-8").splitlines()) == 21
    assert not list(tmp_path.glob("**/*.part"))


async def test_without_a_zip_the_sheets_are_downloaded_one_by_one(
    open_session: OpenSession, customer: Customer, transport: InProcess, tmp_path: Path
) -> None:
    gone = Reply(status=404, body=b'{"error": "No such route"}')
    transport.fault = on("GET", "/export.csv", 1, fault=Fault(instead=gone))
    async with open_session() as session:
        outcome = await migrate(session, customer(), journal=MemoryJournal(), to=tmp_path)
    assert isinstance(outcome, Delivered)
    assert sorted(path.name for path in tmp_path.glob("*.csv")) == [
        "Companies.csv",
        "Contacts.csv",
        "Deals.csv",
    ]


async def test_a_failed_import_is_not_repeated_until_its_files_change(
    open_session: OpenSession, customer: Customer, transport: InProcess, world: World, tmp_path: Path
) -> None:
    journal, spec = MemoryJournal(), customer()
    spec.files[0].write_bytes(CLEAN.encode() + b"caf\xe9,,,\n")
    async with open_session() as session:
        failed = await migrate(session, spec, journal=journal, to=tmp_path)
        assert isinstance(failed, Failed)
        assert "not UTF-8" in failed.error
        before = len(transport.sent)
        assert await migrate(session, spec, journal=journal, to=tmp_path) == failed
        assert len(transport.sent) == before
        spec.files[0].write_text(CLEAN, encoding="utf-8")
        outcome = await migrate(session, spec, journal=journal, to=tmp_path)
    assert isinstance(outcome, Delivered)
    assert any("contacts.csv" in note for note in outcome.notes)
    assert world.ledger.requests["POST /companies"] == 1


async def test_a_huge_error_is_shortened_before_it_is_recorded(
    open_session: OpenSession, customer: Customer, transport: InProcess, tmp_path: Path
) -> None:
    end = {"run_id": "r", "status": "failed", "error": f"Row 1 is bad. {'x' * 3_000_000}"}
    failed = Fault(instead=Reply(status=200, body=json.dumps(end).encode()))
    transport.fault = lambda method, path, number: failed if method == "GET" and "/imports/" in path else None
    journal, spec = MemoryJournal(), customer()
    async with open_session() as session:
        outcome = await migrate(session, spec, journal=journal, to=tmp_path)
        assert isinstance(outcome, Failed)
        assert outcome.error.startswith("Row 1 is bad. xxx")
        assert outcome.error.endswith("xxx... (2,990,064 more characters)")
        assert len(outcome.error) <= LONGEST_ERROR
        assert await migrate(session, spec, journal=journal, to=tmp_path) == outcome
    state, events = await journal.state("acme"), await journal.events("acme")
    assert state is not None
    assert len(state) + sum(len(event.detail) for event in events) < 3 * LONGEST_ERROR


async def test_a_file_changed_after_the_import_is_noted_and_not_sent(
    open_session: OpenSession, customer: Customer, world: World, tmp_path: Path
) -> None:
    journal, spec = MemoryJournal(), customer()
    async with open_session() as session:
        await migrate(session, spec, journal=journal, to=tmp_path)
        spec.files[0].write_text(CLEAN + "q@x.org,A,B,1\n", encoding="utf-8")
        outcome = await migrate(session, spec, journal=journal, to=tmp_path)
    assert isinstance(outcome, Delivered)
    assert "contacts.csv" in outcome.notes[0]
    assert world.ledger.requests["POST /companies/{id}/imports"] == 1


async def test_a_missing_file_fails_without_a_request(
    open_session: OpenSession, customer: Customer, transport: InProcess, tmp_path: Path
) -> None:
    spec = customer()
    spec.files[0].unlink()
    async with open_session() as session:
        outcome = await migrate(session, spec, journal=MemoryJournal(), to=tmp_path)
    assert isinstance(outcome, Failed)
    assert "contacts.csv" in outcome.error
    assert not transport.sent


@pytest.mark.parametrize("after", [0.0, 0.05, 0.2, 0.3, 0.45, 0.6, 1.0, 5.0, 20.0, 35.0, 38.0, 40.0])
async def test_a_migration_cancelled_at_any_time_leaves_nothing_open_and_continues(
    open_session: OpenSession,
    customer: Customer,
    transport: InProcess,
    world: World,
    tmp_path: Path,
    after: float,
) -> None:
    journal, spec = MemoryJournal(), customer()
    tasks = asyncio.all_tasks()
    async with open_session() as session:
        task = asyncio.create_task(migrate(session, spec, journal=journal, to=tmp_path))
        await asyncio.sleep(after)
        task.cancel()
        await asyncio.wait([task])
    assert transport.open == 0
    assert asyncio.all_tasks() == tasks
    assert transport.closed
    assert not list(tmp_path.glob("**/*.part"))
    async with open_session() as session:
        outcome = await migrate(session, spec, journal=journal, to=tmp_path)
    assert isinstance(outcome, Delivered)
    assert world.ledger.requests["POST /companies"] == 1
    assert len(world.ledger.detection) == 1


async def test_the_api_key_is_sent_only_to_the_api(
    open_session: OpenSession,
    customer: Customer,
    transport: InProcess,
    world: World,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    journal = MemoryJournal()
    echo = Reply(status=400, body=b'{"error": "your key ' + KEY.encode() + b' is odd"}')
    transport.fault = on("POST", "/uploads", 1, fault=Fault(instead=echo))
    async with open_session() as session:
        outcome = await migrate(session, customer(), journal=journal, to=tmp_path)
        shown = [repr(session), repr(vars(type(session))), repr(outcome), repr(session.stats())]
    assert isinstance(outcome, Failed)
    assert "***" in outcome.error
    shown += [str(state) for state in (await journal.states()).values()]
    shown += [str(event) for event in await journal.events()]
    shown += [url for _, _, url in transport.sent]
    assert KEY not in caplog.text + "".join(shown)
    assert world.ledger.key_leaks == 0


async def unknown_company(
    open_session: OpenSession, spec: Spec, transport: InProcess, journal: MemoryJournal, to: Path
) -> str:
    """Lose the response to a creation, and return the id that a person would find in the dashboard."""
    transport.fault = on("POST", COMPANIES, 1, fault=Fault(lost_after=True))
    async with open_session() as session:
        assert isinstance(await migrate(session, spec, journal=journal, to=to), Unknown)
    transport.fault = lambda method, path, number: None
    return next(iter(transport.world.companies))


async def test_an_adopted_company_continues(
    open_session: OpenSession, customer: Customer, transport: InProcess, world: World, tmp_path: Path
) -> None:
    journal, spec = MemoryJournal(), customer()
    company_id = await unknown_company(open_session, spec, transport, journal, tmp_path)
    await adopt(journal, "acme", company_id)
    async with open_session() as session:
        outcome = await migrate(session, spec, journal=journal, to=tmp_path)
    assert isinstance(outcome, Delivered)
    assert outcome.ids["company"] == company_id
    assert world.ledger.requests["POST /companies/{id}/imports"] == 1
    with pytest.raises(InvalidInput, match="is not the one"):
        await adopt(journal, "acme", "another")


@pytest.mark.parametrize("wait", [False, True])
async def test_an_import_is_found_and_not_repeated_after_the_loss_of_the_journal(
    open_session: OpenSession,
    customer: Customer,
    transport: InProcess,
    world: World,
    tmp_path: Path,
    wait: bool,
) -> None:
    spec = customer()
    async with open_session() as session:
        lost = asyncio.create_task(migrate(session, spec, journal=MemoryJournal(), to=tmp_path / "lost"))
        await asyncio.sleep(60.0 if wait else 10.0)
        lost.cancel()
        await asyncio.wait([lost])
    journal = MemoryJournal()
    async with open_session() as session:
        assert isinstance(await migrate(session, spec, journal=journal, to=tmp_path), Unknown)
        await adopt(journal, "acme", next(iter(world.companies)))
        outcome = await migrate(session, spec, journal=journal, to=tmp_path)
    assert isinstance(outcome, Delivered)
    assert any("was not repeated" in note for note in outcome.notes)
    assert (tmp_path / "Contacts.csv").exists()
    assert world.ledger.requests["POST /companies/{id}/imports"] == 1


@pytest.mark.parametrize("more", [{"has_more": True}, {"total": 5}])
async def test_an_incomplete_list_of_imports_leaves_the_outcome_unknown(
    open_session: OpenSession,
    customer: Customer,
    transport: InProcess,
    world: World,
    tmp_path: Path,
    more: dict[str, object],
) -> None:
    journal, spec = MemoryJournal(), customer()
    await adopt(journal, "acme", await unknown_company(open_session, spec, transport, journal, tmp_path))
    failed = {"imports": [{"run_id": "r", "status": "failed"}], **more}
    page = Fault(instead=Reply(status=200, body=json.dumps(failed).encode()))
    transport.fault = lambda method, path, number: (
        page if (method, path[-8:]) == ("GET", "/imports") else None
    )
    async with open_session() as session:
        outcome = await migrate(session, spec, journal=journal, to=tmp_path)
    assert isinstance(outcome, Unknown)
    assert "does not give all imports" in outcome.error
    assert world.ledger.requests["POST /companies/{id}/imports"] == 0


async def test_retry_failed_restarts_a_failed_import_after_the_loss_of_the_journal(
    open_session: OpenSession, customer: Customer, world: World, tmp_path: Path
) -> None:
    spec, starts = customer(), "POST /companies/{id}/imports"
    world.variants = Variants(zombies=1.0)
    async with open_session() as session:
        await migrate(session, spec, journal=MemoryJournal(), to=tmp_path, retries=1)
        assert world.ledger.requests[starts] == 2
        world.variants = Variants()
        journal = MemoryJournal()
        assert isinstance(await migrate(session, spec, journal=journal, to=tmp_path), Unknown)
        await adopt(journal, "acme", next(iter(world.companies)))
        failed = await migrate(session, spec, journal=journal, to=tmp_path)
        assert isinstance(failed, Failed)
        assert (failed.status, world.ledger.requests[starts]) == ("failed", 2)
        outcome = await migrate(session, spec, journal=journal, to=tmp_path, retry_failed=True)
    assert isinstance(outcome, Delivered)
    assert outcome.rows == 20
    assert world.ledger.requests[starts] == 3


async def test_no_export_is_repeated_after_the_loss_of_the_journal(
    open_session: OpenSession, customer: Customer, world: World, tmp_path: Path
) -> None:
    """This holds even if the import was not the first, or if the files have changed since."""
    connections = {"destination": {"base_url": "https://d.invalid", "auth": {}}}
    spec = msgspec.structs.replace(customer(), connections=connections)
    world.variants = Variants(zombies=1.0)
    async with open_session() as session:
        journal = MemoryJournal()
        await migrate(session, spec, journal=journal, to=tmp_path)
        world.variants = Variants(failed_writes=0.0, hollow_writes=0.0)
        for number in range(2):
            outcome = await migrate(session, spec, journal=journal, to=tmp_path, export="full", retries=1)
            assert isinstance(outcome, Delivered)
            assert [each.mode for each in outcome.exports] == ["canary", "full"]
            journal = MemoryJournal()
            spec.files[0].write_text(f"Email,Name\nother{number}@x.de,O\n", encoding="utf-8")
            assert isinstance(await migrate(session, spec, journal=journal, to=tmp_path), Unknown)
            await adopt(journal, "acme", next(iter(world.companies)))
    assert world.ledger.requests["POST /companies/{id}/exports"] == 4
    assert [len(company.exports) for company in world.companies.values()] == [2]


@pytest.mark.parametrize("begun", [False, True])
async def test_an_adopted_company_is_delivered_without_a_zip(
    open_session: OpenSession,
    customer: Customer,
    transport: InProcess,
    world: World,
    tmp_path: Path,
    begun: bool,
) -> None:
    """The lost response named the sheets. The report of the import names them again."""
    journal, spec = MemoryJournal(), customer()
    company_id = await unknown_company(open_session, spec, transport, journal, tmp_path)
    world.variants = Variants(zip_status=404)
    async with open_session() as session:
        if begun:
            await session.companies.open(company_id).imports.start(files=spec.files)
        await adopt(journal, "acme", company_id)
        outcome = await migrate(session, spec, journal=journal, to=tmp_path)
    assert isinstance(outcome, Delivered)
    assert outcome.rows == 20


async def test_a_sheet_without_a_report_is_fetched_until_it_is_confirmed(
    open_session: OpenSession, customer: Customer, transport: InProcess, world: World, tmp_path: Path
) -> None:
    journal, spec = MemoryJournal(), customer()
    company_id = await unknown_company(open_session, spec, transport, journal, tmp_path)
    world.variants = Variants(zip_status=404)
    transport.fault = on("GET", "/export.csv", 1, 2, 3, 4, fault=Fault(truncated_to=200))
    async with open_session() as session:
        await session.companies.open(company_id).imports.start(files=spec.files)
        await adopt(journal, "acme", company_id)
        outcome = await migrate(session, spec, journal=journal, to=tmp_path)
    assert isinstance(outcome, Delivered)
    assert outcome.rows == 20


async def test_a_file_that_the_storage_refuses_fails_its_customer_with_the_reason(
    open_session: OpenSession, customer: Callable[..., Spec], transport: InProcess, tmp_path: Path
) -> None:
    body = b"<Error><Code>EntityTooLarge</Code><Message>At most 5 GB</Message><Key>secret</Key></Error>"
    refused = Fault(instead=Reply(status=400, body=body, content_type="application/xml"))
    transport.fault = lambda method, path, number: refused if path == "/storage" else None
    async with open_session() as session:
        outcome = await migrate(session, customer(), journal=MemoryJournal(), to=tmp_path)
    assert isinstance(outcome, Failed)
    assert outcome.error.endswith("EntityTooLarge: At most 5 GB")
    assert [method for _, method, _ in transport.sent].count("PUT") == 1


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (errno.EMFILE, Pending),
        (errno.ENFILE, Pending),
        (errno.EIO, Pending),
        (errno.ESTALE, Pending),
        (errno.EACCES, Failed),
        (errno.ENOENT, Failed),
    ],
)
async def test_the_error_code_of_an_unopened_file_decides_between_pending_and_failed(
    open_session: OpenSession,
    customer: Callable[..., Spec],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    code: int,
    kind: type[Outcome],
    late: bool,
) -> None:
    """The file cannot be opened when it is checked first, or when it is uploaded."""
    spec, journal, really, opened = customer(), MemoryJournal(), Path.open, 0

    def refusing(path: Path, *args: Any, **kwargs: Any) -> Any:
        nonlocal opened
        opened += path in spec.files
        if path in spec.files and opened == 1 + late:
            raise OSError(code, os.strerror(code), str(path))
        return really(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", refusing)
    async with open_session() as session:
        outcome = await migrate(session, spec, journal=journal, to=tmp_path / "out")
        assert isinstance(outcome, kind)
        assert os.strerror(code) in outcome.error  # type: ignore[attr-defined]
        assert isinstance(await migrate(session, spec, journal=journal, to=tmp_path / "out"), Delivered)


async def test_a_park_that_was_decided_before_a_restart_is_not_shown_again(
    open_session: OpenSession, customer: Callable[..., Spec], transport: InProcess, tmp_path: Path
) -> None:
    """The process ends right after the decision. The first reads of the next process are older than it."""
    asked: list[Parked] = []
    journal, spec = MemoryJournal(), customer(contacts=DUPLICATES)
    shown: list[bytes] = []
    lag = 0

    def lagging(body: bytes) -> bytes:
        nonlocal lag
        if not asked:
            shown[:] = [body]
        elif lag < 4:
            lag += 1
            return shown[0]
        return body

    decided = asyncio.Event()

    def fault(method: str, path: str, number: int) -> Fault | None:
        if path.endswith("/decisions"):
            decided.set()
        return Fault(change=lagging) if method == "GET" and "/imports/" in path else None

    transport.fault = fault

    async def decide(parked: Parked) -> Approve:
        asked.append(parked)
        return Approve()

    async with open_session() as session:
        first = asyncio.create_task(migrate(session, spec, journal=journal, to=tmp_path, decide=decide))
        await decided.wait()
        await asyncio.sleep(0.5)
        first.cancel()
        await asyncio.wait([first])
    async with open_session() as session:
        outcome = await migrate(session, spec, journal=journal, to=tmp_path, decide=decide)
    assert isinstance(outcome, Delivered)
    assert lag == 4
    assert len(asked) == 1
