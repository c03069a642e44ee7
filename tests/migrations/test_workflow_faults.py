"""The workflow of one customer against a scripted server whose behaviour the contract does not exclude."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest

from asyncmig import Delivered, Failed, MemoryJournal, Outcome, Parked, Session, Spec, Unknown, adopt, migrate
from asyncmig.customers.answer_rules import AnswerRule
from asyncmig.customers.decisions import Approve, Decision

from .conftest import KEY
from .server import BASE_URL, QUESTION, REPORT, Account, Json, Reply

pytestmark = pytest.mark.looptime
CONTACTS = "Name,Email\nAda,a@x.org\nBob,b@x.org\n"


class Customer:
    """One customer of a scripted account."""

    def __init__(self, account: Account, folder: Path) -> None:
        self.account, self.journal, self.out = account, MemoryJournal(), folder / "out"
        path = folder / "contacts.csv"
        path.write_text(CONTACTS, encoding="utf-8")
        self.spec = Spec(external_id="acme", name="Acme", source="HubSpot", files=(path,))
        account.routes["GET", "/sources"] = lambda *_: Reply(200, {"sources": [{"name": "HubSpot"}]})

    def add(self, name: str) -> None:
        """Write another file, and add it to the spec."""
        path = self.spec.files[0].with_name(name)
        path.write_text("Name\nBig\n", encoding="utf-8")
        self.spec = msgspec.structs.replace(self.spec, files=(*self.spec.files, path))

    async def run(self, **options: Any) -> Outcome:
        async with Session(
            KEY, BASE_URL, transport=self.account, rng=Random(3), limits="per-endpoint"
        ) as session:
            return await migrate(
                session, self.spec, journal=self.journal, to=self.out, api="migrations", **options
            )


@pytest.fixture
def customer(account: Account, tmp_path: Path) -> Customer:
    return Customer(account, tmp_path)


async def test_a_clarify_by_another_client_is_not_taken_for_an_execution(
    customer: Customer, account: Account
) -> None:
    assert isinstance(await customer.run(), Parked)
    account.set_state(account.now, {"status": "completed"})  # as after a clarify in the provider's app
    account.runs.append((account.now, "clarify", account.run_id))
    assert isinstance(await customer.run(), Parked)
    assert isinstance(await customer.run(decide="approve"), Delivered)
    assert account.starts() == ["generate", "clarify", "execute"]


async def test_a_blocked_run_whose_answer_is_refused_is_canceled_too(
    customer: Customer, account: Account
) -> None:
    account.steps["generate"] = [(60.0, {"status": "blocked", "questions": [QUESTION]})]
    account.fault = lambda method, path, number: 400 if path.endswith("/messages") else None
    outcome = await customer.run(
        answers=[AnswerRule(question="date", choose="Day first")], cancel_blocked_after=600.0
    )
    assert isinstance(outcome, Parked)
    assert "400" in outcome.error
    assert account.state(account.now)["status"] == "canceled"


async def test_a_start_continues_after_an_outage(customer: Customer, account: Account) -> None:
    since: list[float] = []

    def fault(method: str, path: str, number: int) -> object:
        if (method, path) == ("POST", "/migrations/m1/runs") and not since:
            since.append(account.now)
            return "lost"
        return "refused" if since and account.now < since[0] + 300.0 else None

    account.fault = fault
    assert isinstance(await customer.run(decide="approve"), Delivered)
    assert account.starts() == ["generate", "execute"]


async def test_a_sheet_that_the_agent_added_is_delivered(customer: Customer, account: Account) -> None:
    per_sheet = [*REPORT["perSheet"], {"templateName": "Notes", "rowCount": 1}]  # type: ignore[misc]
    report = {**REPORT, "inserted": 4, "perSheet": per_sheet}
    account.steps["execute"] = [(60.0, {"status": "completed", "report": report})]
    account.sheets["notes"] = "Text\r\nHello\r\n"
    listed = [{"slug": "notes", "name": "Notes", "columns": []}]
    account.routes["GET", "/templates"] = lambda *_: Reply(200, {"templates": listed})
    outcome = await customer.run(decide="approve")
    assert isinstance(outcome, Delivered)
    assert {file.slug for file in outcome.files} == {"contacts", "deals", "notes"}


async def test_a_failed_run_of_an_adopted_migration_can_be_repeated(
    customer: Customer, account: Account
) -> None:
    account.steps["generate"] = [(60.0, {"status": "failed", "error": "no"})]
    assert isinstance(await customer.run(), Failed)
    customer.journal = MemoryJournal()
    await adopt(customer.journal, "acme", "m1", api="migrations")
    assert isinstance(await customer.run(), Failed)
    account.steps["generate"] = [(60.0, {"status": "awaiting_approval"})]
    assert isinstance(await customer.run(decide="approve", retry_failed=True), Delivered)
    assert account.starts() == ["generate", "generate", "execute"]


async def test_an_execution_that_ends_with_a_preview_is_not_repeated(
    customer: Customer, account: Account
) -> None:
    account.steps["execute"] = [(60.0, {"status": "awaiting_approval"})]
    for _ in range(2):
        assert isinstance(await customer.run(decide="approve"), Parked)
        assert account.starts() == ["generate", "execute"]


@pytest.mark.parametrize("kind", ["reuse", "canceled later"])
async def test_an_execution_that_the_log_shows_is_not_repeated(
    kind: str, customer: Customer, account: Account
) -> None:
    assert isinstance(await customer.run(decide="approve"), Delivered)
    outcome = {"ok": True, "rows_written": 3}
    first = {"run_id": "run-1", "kind": "reuse" if kind == "reuse" else "execute", "status": "completed"}
    runs: list[Json] = [{**first, "outcome": outcome}]
    if kind != "reuse":
        runs.append({"run_id": "run-2", "kind": "generate", "status": "canceled"})

    def log(body: Json, query: Mapping[str, str]) -> Reply:
        return Reply(200, {"status": "completed", "runs": runs})

    account.routes["GET", "/migrations/m1/log"] = log
    customer.journal = MemoryJournal()
    await adopt(customer.journal, "acme", "m1", api="migrations")
    assert isinstance(await customer.run(decide="approve"), Delivered)
    assert account.starts() == ["generate", "execute"]


@pytest.mark.parametrize(
    ("earlier", "first", "starts"),
    [
        ("nothing", Delivered, ["generate", "execute"]),
        ("a preview", Delivered, ["generate", "execute"]),
        ("a clarify", Unknown, ["generate", "clarify"]),
        ("an execution", Unknown, ["generate", "execute"]),
    ],
)
async def test_an_adopted_migration_that_may_have_been_executed_is_unknown_without_a_log(
    earlier: str, first: type[Outcome], starts: list[str], customer: Customer, account: Account
) -> None:
    if earlier == "nothing":
        account.created = {"id": "m1", "name": "Acme", "status": "ready", "templates": []}
    else:
        assert isinstance(await customer.run(), Parked)
    if earlier == "a clarify":
        account.runs.append((account.now, "clarify", account.run_id))
        account.schedule_steps("clarify")
    elif earlier == "an execution":
        await customer.run(decide="approve")
    customer.journal = MemoryJournal()
    await adopt(customer.journal, "acme", "m1", api="migrations")
    log = account.log
    account.log = lambda _: Reply(503, {"error": "not assembled"})  # type: ignore[method-assign]
    began = account.now
    outcome = await customer.run(decide="approve", retry_seconds=300.0)
    assert isinstance(outcome, first), outcome
    assert account.starts() == starts
    assert account.now - began < 1000.0
    if isinstance(outcome, Unknown):
        assert "an earlier run may have been executed" in outcome.error
        account.log = log  # type: ignore[method-assign]
        assert isinstance(await customer.run(decide="approve"), Delivered)
        assert account.starts().count("execute") == 1


@pytest.mark.parametrize("is_changed", [False, True])
async def test_a_start_refused_with_a_bare_409_waits_for_the_run_in_progress(
    is_changed: bool, customer: Customer, account: Account
) -> None:
    async def decide(parked: Parked) -> Decision | None:
        shown.append(parked)
        return Approve() if len(shown) == 1 else None

    shown: list[Parked] = []

    assert isinstance(await customer.run(), Parked)
    until = account.now + 300.0
    original = account.start

    def start(body: Json) -> Reply:
        return Reply(409, {"error": "a run is in progress"}) if account.now < until else original(body)

    def log(body: Json, query: Mapping[str, str]) -> Reply:
        if account.now < until:
            return Reply(409, {"error": "not settled", "status": "running", "retry_after_seconds": 30})
        return account.log(query)

    account.start = start  # type: ignore[method-assign]
    preview = account.preview

    def other(body: Json, query: Mapping[str, str]) -> Reply:
        templates = [{"slug": "contacts", "name": "Contacts"}]
        return Reply(200, {"templates": templates}) if is_changed and account.now > until else preview()

    account.routes["GET", "/migrations/m1/log"] = log
    account.routes["GET", "/migrations/m1/preview"] = other
    outcome = await customer.run(decide=decide)
    assert isinstance(outcome, Parked if is_changed else Delivered), outcome
    assert account.starts() == (["generate"] if is_changed else ["generate", "execute"])


async def test_a_blocked_run_that_is_canceled_late_parks_its_customer(
    customer: Customer, account: Account
) -> None:
    account.steps["generate"] = [(60.0, {"status": "blocked", "questions": [QUESTION]})]
    canceled: list[float] = []

    def cancel(body: Json, query: Mapping[str, str]) -> Reply:
        if not canceled:
            canceled.append(account.now)
            account.timeline.append((account.now + 150.0, {"status": "canceled"}))
        return account.read("run-1")

    account.routes["PATCH", "/migrations/m1/runs/run-1"] = cancel
    outcome = await customer.run(cancel_blocked_after=600.0)
    assert isinstance(outcome, Parked), outcome
    assert account.starts() == ["generate"]


async def test_a_file_that_arrived_in_a_failed_upload_causes_a_new_generate(
    customer: Customer, account: Account
) -> None:
    assert isinstance(await customer.run(), Parked)
    customer.journal = MemoryJournal()  # the migration has a preview without the new file
    customer.add("deals.csv")
    account.created = {**(account.created or {}), "status": "awaiting_approval"}
    arrived: list[float] = []

    def fault(method: str, path: str, number: int) -> object:
        if method == "PUT":
            arrived.append(account.now)
            return "lost"
        return 503 if arrived and path.endswith("/files") and account.now < arrived[0] + 200.0 else None

    account.fault = fault
    assert isinstance(await customer.run(decide="approve"), Delivered)
    assert account.starts() == ["generate", "generate", "execute"]


async def test_a_file_added_during_an_execution_is_noted_as_not_imported(
    customer: Customer, account: Account
) -> None:
    async def interrupted() -> None:
        async with asyncio.timeout(100.0):
            await customer.run(decide="approve")

    with pytest.raises(TimeoutError):
        await interrupted()
    assert account.starts() == ["generate", "execute"]
    customer.add("deals.csv")
    outcome = await customer.run(decide="approve")
    assert isinstance(outcome, Delivered)
    assert any("deals.csv" in note and "not imported" in note for note in outcome.notes), outcome.notes


async def test_a_preview_of_a_run_without_an_id_can_be_rejected(customer: Customer, account: Account) -> None:
    assert isinstance(await customer.run(), Parked)
    account.log_hides_preview = True
    customer.journal = MemoryJournal()
    await adopt(customer.journal, "acme", "m1", api="migrations")
    outcome = await customer.run(decide="reject")
    assert isinstance(outcome, Failed)
    assert outcome.status == "canceled"


async def test_a_log_without_a_text_form_is_still_written(customer: Customer, account: Account) -> None:
    def log(body: Json, query: Mapping[str, str]) -> Reply:
        return Reply(400, {"error": "unknown parameter"}) if query else account.log(query)

    account.routes["GET", "/migrations/m1/log"] = log
    assert isinstance(await customer.run(decide="approve"), Delivered)
    assert (customer.out / "log.json").exists()


async def test_a_total_may_count_rows_that_the_filter_drops(customer: Customer, account: Account) -> None:
    account.steps["execute"] = [(60.0, {"status": "completed", "report": {**REPORT, "invalidCellCount": 1}})]

    def contacts(body: Json, query: Mapping[str, str]) -> Reply:
        rows = "Ada,a@x.org\r\n" + ("" if query.get("filter", "valid") == "valid" else "BAD,b\r\n")
        headers = {"Content-Type": "text/csv", "X-Total-Records": "2"}
        return Reply(200, f"Name,Email\r\n{rows}".encode(), headers)

    account.routes["GET", "/migrations/m1/exports/contacts.csv"] = contacts
    outcome = await customer.run(decide="approve")
    assert isinstance(outcome, Delivered), outcome
    assert [file.flagged for file in outcome.files if file.slug == "contacts"] == ["included"]


async def test_a_run_that_the_server_has_deleted_can_be_repeated(
    customer: Customer, account: Account
) -> None:
    assert isinstance(await customer.run(), Parked)
    account.timeline.clear()  # after the retention time of the account
    account.run_id = "run-2"
    gone = await customer.run(decide="approve")
    assert isinstance(gone, Failed)
    outcome = await customer.run(decide="approve", retry_failed=True)
    assert isinstance(outcome, Delivered), outcome
    assert account.starts() == ["generate", "generate", "execute"]
