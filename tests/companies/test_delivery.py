"""After an import: exports and their losses, restarts of failed runs, and the rows of rejected imports."""

import json
import re
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from inprocess import InProcess

from asyncmig import (
    Delivered,
    Failed,
    InvalidInput,
    MemoryJournal,
    Outcome,
    Parked,
    Pending,
    Spec,
    Unknown,
    migrate,
)
from asyncmig.companies.exports import summary_of
from asyncmig.companies.wire import ExportReport
from asyncmig.customers.outcome import ExportResult
from asyncmig.simulator import Fault, Reply, Variants, World
from asyncmig.simulator.companies import runs as simulated

from .conftest import CLEAN, DUPLICATES, OpenSession

pytestmark = pytest.mark.looptime
Customer = Callable[..., Spec]
SECRET = "connection-secret-that-nobody-may-see"
CONNECTIONS = {"destination": {"base_url": "https://d.invalid", "auth": {"token": SECRET}}}


def connected(spec: Spec) -> Spec:
    return msgspec.structs.replace(spec, connections=CONNECTIONS)


def set_losses(world: World, *, fails: float = 0.0, hollow: float = 0.0) -> None:
    world.variants = replace(world.variants, failed_writes=fails, hollow_writes=hollow)


def starts(world: World, kind: str) -> int:
    return world.ledger.requests[f"POST /companies/{{id}}/{kind}"]


async def test_a_canary_export_precedes_the_full_export(
    open_session: OpenSession, customer: Customer, world: World, tmp_path: Path
) -> None:
    set_losses(world)
    journal = MemoryJournal()
    for _ in range(2):  # the second call finds everything done
        async with open_session() as session:
            outcome = await migrate(
                session, connected(customer()), journal=journal, to=tmp_path, export="full"
            )
        assert isinstance(outcome, Delivered)
        assert [(each.mode, each.total) for each in outcome.exports] == [("canary", 1), ("full", 20)]
        assert (outcome.rows, outcome.flagged, outcome.losses) == (20, 0, 0)
        assert starts(world, "exports") == 2


async def test_every_lost_write_is_counted_and_listed(
    open_session: OpenSession,
    customer: Customer,
    world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    set_losses(world, fails=0.2, hollow=0.2)
    monkeypatch.setattr(simulated.ExportRun, "_chosen", lambda run, table: table.rows[run.mode == "canary" :])
    async with open_session() as session:
        outcome = await migrate(
            session, connected(customer()), journal=MemoryJournal(), to=tmp_path, export="canary"
        )
    assert isinstance(outcome, Delivered)
    (canary,) = outcome.exports
    assert 0 < canary.hollow < 19
    assert 0 < canary.failed < 19
    assert outcome.losses == canary.losses == len(canary.lost)
    assert {result.error for result in canary.lost} == {"the destination refused the record", None}


async def test_a_canary_with_losses_prevents_the_full_export_until_a_retry(
    open_session: OpenSession, customer: Customer, world: World, tmp_path: Path
) -> None:
    set_losses(world, hollow=1.0)
    journal, spec = MemoryJournal(), connected(customer())
    async with open_session() as session:
        for _ in range(2):
            failed = await migrate(session, spec, journal=journal, to=tmp_path, export="full")
            assert isinstance(failed, Failed)
            assert (failed.step, failed.exports[0].losses) == ("exporting", 1)
            assert "the full export was not started" in failed.error
            assert all(Path(file.path).exists() for file in failed.files)
            assert starts(world, "exports") == 1
        set_losses(world)
        outcome = await migrate(session, spec, journal=journal, to=tmp_path, export="full", retries=1)
    assert isinstance(outcome, Delivered)
    assert any("exported again" in note for note in outcome.notes)
    assert (starts(world, "imports"), starts(world, "exports")) == (1, 3)


@pytest.mark.parametrize("variant", ["refused", "conflict", "fails"])
async def test_without_a_destination_the_export_fails_and_the_sheets_are_downloaded(
    open_session: OpenSession, customer: Customer, world: World, tmp_path: Path, variant: str
) -> None:
    world.variants = Variants(unconnected_export=variant)
    journal = MemoryJournal()
    async with open_session() as session:
        failed = await migrate(session, customer(), journal=journal, to=tmp_path, export="full")
        assert isinstance(failed, Failed)
        assert "No destination is connected" in failed.error
        assert (tmp_path / "Contacts.csv").exists()
        outcome = await migrate(session, customer(), journal=journal, to=tmp_path)
    assert isinstance(outcome, Delivered)
    assert starts(world, "imports") == 1


async def test_destination_secrets_are_in_no_repr_log_or_journal(
    open_session: OpenSession,
    customer: Customer,
    transport: InProcess,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(0)
    transport.fault = lambda method, path, number: (
        Fault(lost_after=True) if path.endswith("/companies") and number == 1 else None
    )
    journal, spec = MemoryJournal(), connected(customer())
    async with open_session() as session:
        outcome = await migrate(session, spec, journal=journal, to=tmp_path, export="full")
    assert isinstance(outcome, Unknown)
    shown = [repr(spec), repr(spec.__rich_repr__()), repr(outcome), outcome.sent, caplog.text]
    shown += [repr(await journal.states()), repr(await journal.events())]
    assert SECRET not in "".join(shown)


def test_failures_that_a_report_counts_but_does_not_list_are_losses() -> None:
    listed = ExportResult(ok=False, status=422, error="no")
    report = ExportReport(total=100, succeeded=90, results=(listed,))
    assert (summary_of("full", "r", report).failed, summary_of("full", "r", report).lost) == (
        10,
        (listed,),
    )
    assert summary_of("full", "r", None).losses == 0
    quiet = ExportResult(status=500)
    assert summary_of("full", "r", ExportReport(total=1, succeeded=1, results=(quiet,))).failed == 1


async def test_a_failed_run_is_started_again_up_to_retries_times(
    open_session: OpenSession, customer: Customer, world: World, tmp_path: Path
) -> None:
    world.variants = Variants(zombies=1.0)
    journal = MemoryJournal()
    async with open_session() as session:
        for retries, imports in ((0, 1), (2, 3), (2, 3), (3, 4)):
            failed = await migrate(session, customer(), journal=journal, to=tmp_path, retries=retries)
            assert isinstance(failed, Failed)
            assert (failed.error, failed.step) == ("Import timed out", "running")
            assert starts(world, "imports") == imports
        world.variants = Variants()
        outcome = await migrate(session, customer(), journal=journal, to=tmp_path, retries=4)
    assert isinstance(outcome, Delivered)
    assert outcome.rows == 20
    assert world.ledger.requests["POST /companies"] == 1


async def test_retry_failed_starts_an_earlier_failure_once_more_per_call(
    open_session: OpenSession, customer: Customer, world: World, tmp_path: Path
) -> None:
    world.variants = Variants(zombies=1.0)
    journal = MemoryJournal()
    async with open_session() as session:
        for imports in (1, 2, 3):  # the first call finds no earlier failure
            failed = await migrate(session, customer(), journal=journal, to=tmp_path, retry_failed=True)
            assert isinstance(failed, Failed)
            assert starts(world, "imports") == imports


async def test_a_failed_import_whose_files_are_gone_is_not_started_again(
    open_session: OpenSession, customer: Customer, world: World, tmp_path: Path
) -> None:
    world.variants = Variants(zombies=1.0)
    journal, spec = MemoryJournal(), customer()
    async with open_session() as session:
        await migrate(session, spec, journal=journal, to=tmp_path)
        spec.files[0].unlink()
        outcome = await migrate(session, spec, journal=journal, to=tmp_path, retries=1)
    assert isinstance(outcome, Failed)
    assert outcome.error == "Import timed out"
    assert "continues without it" in outcome.notes[0]
    assert starts(world, "imports") == 1


@pytest.mark.parametrize("keeps", [False, True])
async def test_deliver_rejected_downloads_the_rows_of_a_rejected_import(
    open_session: OpenSession, customer: Customer, world: World, tmp_path: Path, keeps: bool
) -> None:
    world.variants = Variants(rejected_keeps=keeps)
    journal, spec = MemoryJournal(), customer(contacts=DUPLICATES)
    async with open_session() as session:
        plain = await migrate(session, spec, journal=journal, to=tmp_path, decide="reject", retries=5)
        assert isinstance(plain, Failed)
        assert (plain.error, plain.files, list(tmp_path.glob("*.csv"))) == ("Rejected by a person", (), [])
        for _ in range(2):
            outcome = await migrate(
                session, spec, journal=journal, to=tmp_path, decide="reject", deliver_rejected=True
            )
            assert isinstance(outcome, Failed)
            assert {file.sheet: file.rows for file in outcome.files}["Contacts"] == (20 if keeps else 0)
            assert (tmp_path / "Contacts.csv").exists()
    assert starts(world, "imports") == 1


async def test_a_rejected_import_without_rows_is_noted_in_the_outcome(
    open_session: OpenSession, customer: Customer, transport: InProcess, tmp_path: Path
) -> None:
    gone = Reply(status=404, body=b'{"error": "Nothing was inserted"}')
    transport.fault = lambda method, path, number: (
        Fault(instead=gone) if path.endswith("/export.csv") else None
    )
    async with open_session() as session:
        outcome = await migrate(
            session,
            customer(contacts=DUPLICATES),
            journal=MemoryJournal(),
            to=tmp_path,
            decide="reject",
            deliver_rejected=True,
        )
    assert isinstance(outcome, Failed)
    assert outcome.error == "Rejected by a person"
    assert "Nothing was inserted" in outcome.notes[0]


async def test_a_rejected_import_is_started_again_under_another_policy(
    open_session: OpenSession, customer: Customer, world: World, tmp_path: Path
) -> None:
    journal, spec = MemoryJournal(), customer(contacts=DUPLICATES)
    async with open_session() as session:
        await migrate(session, spec, journal=journal, to=tmp_path, decide="reject")
        outcome = await migrate(session, spec, journal=journal, to=tmp_path, decide="approve", retries=1)
    assert isinstance(outcome, Delivered)
    assert starts(world, "imports") == 2


@pytest.mark.parametrize(
    ("cut", "times", "doubtful"),
    [((), 2, False), ((1,), 3, False), ((2, 3), 5, False), ((1, 2), 4, False), (range(1, 10), 9, True)],
)
async def test_sheets_without_a_row_count_are_fetched_until_a_copy_is_certainly_complete(
    open_session: OpenSession,
    customer: Customer,
    world: World,
    transport: InProcess,
    tmp_path: Path,
    cut: Collection[int],
    times: int,
    doubtful: bool,
) -> None:
    """Two imports left rows, and a report counts only its own. A truncated body may look complete."""
    world.variants = Variants(zip_status=404, rejected_keeps=False)
    journal, spec, bodies = MemoryJournal(), customer(contacts=DUPLICATES), Counter[str]()

    def fault(method: str, path: str, number: int) -> Fault | None:
        if not path.endswith("/export.csv") or "sheet_id" not in transport.sent[-1][2]:
            return None
        bodies[transport.sent[-1][2]] += 1
        return Fault(truncated_to=9) if bodies[transport.sent[-1][2]] in cut else None

    async with open_session() as session:
        await migrate(session, spec, journal=journal, to=tmp_path, decide="reject")
        transport.fault = fault
        outcome = await migrate(session, spec, journal=journal, to=tmp_path, decide="approve", retries=1)
    assert isinstance(outcome, Delivered)
    assert any("cut short" in note for note in outcome.notes) == doubtful
    assert doubtful or outcome.rows > 0
    assert set(bodies.values()) == {times}


@pytest.mark.parametrize("missing", ["report", "all", "invalidCellCount", "inserted", "null"])
async def test_a_report_without_usable_counts_is_treated_as_missing(
    open_session: OpenSession,
    customer: Customer,
    world: World,
    transport: InProcess,
    tmp_path: Path,
    missing: str,
) -> None:
    world.variants = Variants(zip_status=404)

    def without(body: bytes) -> bytes:
        reply = json.loads(body)
        if reply["status"] == "completed":
            report = reply.pop("report")
            changed = {"all": {}, "null": {**report, "invalidCellCount": None}}.get(
                missing, {name: value for name, value in report.items() if name not in (missing, "perSheet")}
            )
            reply |= {} if missing == "report" else {"report": changed}
        return json.dumps(reply).encode()

    def fault(method: str, path: str, number: int) -> Fault | None:
        if method == "GET" and "/imports/" in path:
            return Fault(change=without)
        cut = "sheet_id" in transport.sent[-1][2] and not any(
            "sheet_id" in url for _, _, url in transport.sent[:-1]
        )
        return Fault(truncated_to=9) if cut and path.endswith("/export.csv") else None

    transport.fault = fault
    async with open_session() as session:
        outcome = await migrate(session, customer(), journal=MemoryJournal(), to=tmp_path)
    assert isinstance(outcome, Delivered)
    assert outcome.rows == 20


@pytest.mark.parametrize("results", [None, [{"ok": True, "status": 200, "fields_confirmed": False}, None]])
async def test_a_canary_with_an_unknown_result_prevents_the_full_export(
    open_session: OpenSession,
    customer: Customer,
    world: World,
    transport: InProcess,
    tmp_path: Path,
    results: list[object] | None,
) -> None:
    def changed(body: bytes) -> bytes:
        reply = json.loads(body)
        report = reply.pop("report", None)
        if report and results:
            reply["report"] = {**report, "results": results}
        return json.dumps(reply).encode()

    transport.fault = lambda method, path, number: Fault(change=changed) if "/exports/" in path else None
    async with open_session() as session:
        failed = await migrate(
            session, connected(customer()), journal=MemoryJournal(), to=tmp_path, export="full"
        )
    assert isinstance(failed, Failed)
    assert "the full export was not started" in failed.error
    assert ("has no report" in failed.error) == (results is None)
    assert starts(world, "exports") == 1


@pytest.mark.parametrize("status", [400, 404])
async def test_a_run_whose_end_was_not_read_is_not_started_again(
    open_session: OpenSession,
    customer: Customer,
    world: World,
    transport: InProcess,
    tmp_path: Path,
    status: int,
) -> None:
    """The server refuses to show the run for a while. The run continues in the meantime."""
    gone = Fault(instead=Reply(status=status, body=b'{"error": "no"}'))
    transport.fault = lambda method, path, number: gone if method == "GET" and "/imports/" in path else None
    journal, spec = MemoryJournal(), customer()
    async with open_session() as session:
        failed = await migrate(session, spec, journal=journal, to=tmp_path, retries=3)
        assert isinstance(failed, Failed)
        assert (failed.step, failed.status) == ("running", None)
        assert f"answered {status}: no" in failed.error
        transport.fault = lambda method, path, number: None
        outcome = await migrate(session, spec, journal=journal, to=tmp_path, retry_failed=True)
    assert isinstance(outcome, Delivered)
    assert outcome.rows == 20
    assert starts(world, "imports") == 1


@pytest.mark.parametrize(
    ("status", "endpoint"),
    [
        (403, "POST /companies"),
        (501, "POST /companies/{id}/uploads"),
        (405, "POST /companies/{id}/imports"),
        (403, "GET /companies/{id}/export.csv"),
    ],
)
async def test_a_permanent_refusal_is_not_retried(
    open_session: OpenSession,
    customer: Customer,
    transport: InProcess,
    tmp_path: Path,
    status: int,
    endpoint: str,
) -> None:
    refused = Fault(instead=Reply(status=status, body=b'{"error": "not yours"}'))
    transport.faulty_endpoint, transport.nth = endpoint, dict.fromkeys(range(1, 2000), refused)
    journal = MemoryJournal()
    async with open_session() as session:
        pending = await migrate(session, customer(), journal=journal, to=tmp_path)
        assert isinstance(pending, Pending)
        assert f"answered {status}: not yours" in pending.error
        assert len(transport.sent) < 40
        transport.nth.clear()
        assert isinstance(await migrate(session, customer(), journal=journal, to=tmp_path), Delivered)


@pytest.mark.parametrize(
    "option", [{"decide": "aprove"}, {"row_filter": "some"}, {"retries": -1}, {"export": "half"}]
)
async def test_an_invalid_option_is_refused(
    open_session: OpenSession,
    customer: Customer,
    transport: InProcess,
    tmp_path: Path,
    option: dict[str, object],
) -> None:
    async with open_session() as session:
        with pytest.raises(InvalidInput, match=next(iter(option))):
            await migrate(session, customer(), journal=MemoryJournal(), to=tmp_path, **option)  # type: ignore[arg-type]
    assert not transport.sent


async def test_each_outcome_keeps_its_details_in_json(
    open_session: OpenSession, customer: Customer, transport: InProcess, world: World, tmp_path: Path
) -> None:
    set_losses(world, hollow=1.0)
    flagged = CLEAN.replace("p1@x.org", "none", 1)
    lost = Fault(lost_after=True)
    transport.fault = lambda method, path, number: (
        lost if path.endswith("/companies") and number == 4 else None
    )

    async def outcome(name: str, text: str, **options: object) -> Outcome:
        async with open_session() as session:
            spec = connected(customer(name, contacts=text))
            return await migrate(session, spec, journal=MemoryJournal(), to=tmp_path / name, **options)  # type: ignore[arg-type]

    delivered = await outcome("delivered", flagged, export="canary", row_filter="all")
    failed = await outcome("failed", DUPLICATES, decide="reject")
    parked = await outcome("parked", DUPLICATES)
    wrong = await outcome("wrong", "")
    unknown = await outcome("unknown", CLEAN)
    shown = {}
    for each in (delivered, failed, parked, wrong, unknown):
        encoded = msgspec.json.encode(each)
        assert msgspec.json.decode(encoded, type=Outcome) == each
        shown[each.name] = msgspec.json.decode(encoded)
    fields = shown["delivered Ltd"]
    assert (fields["type"], fields["rows"], fields["flagged"], fields["losses"]) == ("delivered", 20, 1, 1)
    assert fields["exports"][0]["lost"][0]["fields_confirmed"] is False
    fields = shown["failed Ltd"]
    assert (fields["type"], fields["error"], fields["step"]) == ("failed", "Rejected by a person", "running")
    assert fields["report"]["inserted"] == 0
    fields = shown["parked Ltd"]
    assert fields["type"] == "parked"
    assert "What shall be done" in fields["attention"]["questions"][0]["prompt"]
    assert fields["attention"]["proposed_patch"]["actions"] == fields["destructive"]
    assert (fields["destructive"][0]["action"], fields["destructive"][0]["key_column"]) == (
        "dedup_keep_first",
        "Email",
    )
    assert (shown["wrong Ltd"]["type"], shown["wrong Ltd"]["step"]) == ("failed", "checking")
    fields = shown["unknown Ltd"]
    assert fields["type"] == "unknown"
    assert '"external_id":"unknown"' in fields["sent"]
    assert "asyncmig adopt" in fields["advice"]
    assert isinstance(parked, Parked)
    assert not isinstance(unknown, Pending)


@pytest.mark.parametrize("more", [False, True])
async def test_sheets_with_the_same_wrong_row_count_each_time_soon_end_as_pending(
    open_session: OpenSession, customer: Customer, transport: InProcess, tmp_path: Path, more: bool
) -> None:
    content = b"E-mail\r\n" + b"p@x\r\n" * (999 if more else 7)
    wrong = Fault(instead=Reply(status=200, body=content, content_type="text/csv"))
    transport.fault = lambda method, path, number: wrong if path.endswith("/export.csv") else None
    async with open_session() as session:
        outcome = await migrate(session, customer(), journal=MemoryJournal(), to=tmp_path / "out")
    assert isinstance(outcome, Pending)
    assert re.search("rows .*were reported", outcome.error)
    assert sum("sheet_id" in url for _, _, url in transport.sent if "/export.csv" in url) <= (
        2 if more else 8
    )
    assert [path for path in tmp_path.glob("out/**/*") if path.is_file()] == []


async def test_a_sheet_cut_at_the_same_byte_each_time_is_fetched_only_eight_times(
    open_session: OpenSession, customer: Customer, world: World, transport: InProcess, tmp_path: Path
) -> None:
    world.variants = Variants(zip_status=404)
    cut = Fault(cut_to=8)
    transport.fault = lambda method, path, number: (
        cut if path.endswith("/export.csv") and "sheet_id" in transport.sent[-1][2] else None
    )
    async with open_session() as session:
        outcome = await migrate(session, customer(), journal=MemoryJournal(), to=tmp_path)
    assert isinstance(outcome, Pending)
    assert "broke off" in (outcome.error or "")
    assert len([url for _, _, url in transport.sent if "sheet_id" in url]) == 8
