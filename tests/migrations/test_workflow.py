"""The resumable workflow of one customer with the second generation, against the simulator."""

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from asyncmig import (
    Delivered,
    Failed,
    Fleet,
    InvalidInput,
    MemoryJournal,
    Outcome,
    Parked,
    Pending,
    RunFailed,
    Session,
    Spec,
    Unknown,
    adopt,
    generations,
    migrate,
)
from asyncmig.customers.answer_rules import AnswerRule
from asyncmig.customers.decisions import Answer, Approve, Change, Credentials, Decision
from asyncmig.customers.spec import LiveSource
from asyncmig.session import context_of
from asyncmig.simulator import RunDurations
from asyncmig.simulator.migrations import Block, Question, Script, Variants
from asyncmig.testing import Simulator

from .server import BASE_URL, Account, Reply

pytestmark = pytest.mark.looptime
HEADER = "E-mail,Given Name,Surname,Phone\n"
CONTACTS = HEADER + "".join(f"p{n}@x.org,Ada,L{n},1\n" for n in range(6))
DEALS = "Title,Stage,Amount,Contact\nBig,won,1,p1@x.org\n"


def spec_of(folder: Path, external_id: str = "acme", **files: str) -> Spec:
    """Write a customer's files, and return its spec."""
    place = folder / external_id
    place.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, content in (files or {"contacts": CONTACTS, "deals": DEALS}).items():
        path = place / f"{name}.csv"
        path.write_text(content, encoding="utf-8")
        paths.append(path)
    return Spec(external_id=external_id, name=external_id.title(), source="HubSpot", files=tuple(paths))


class Customer:
    """One customer of a simulated account."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.simulator = Simulator(api="migrations", seed=7, **options)
        self.journal, self.out = MemoryJournal(), folder / "out"
        self.spec = spec_of(folder / "in")

    async def run(self, **options: Any) -> Outcome:
        async with self.simulator.session() as session:
            return await migrate(
                session, self.spec, journal=self.journal, to=self.out, api="migrations", **options
            )

    def done(self) -> list[str]:
        """Return the operations that the server has accepted."""
        return [kind for kind, _ in self.simulator.world.migration("acme").accepted]


async def test_a_customer_may_have_no_source(tmp_path: Path) -> None:
    customer = Customer(tmp_path)
    customer.spec = msgspec.structs.replace(customer.spec, source="")
    outcome = await customer.run(decide="approve")
    assert isinstance(outcome, Delivered), outcome
    assert customer.simulator.world.migration("acme").source is None


async def test_a_customer_is_delivered_once_from_files_to_files(tmp_path: Path) -> None:
    customer = Customer(tmp_path)
    outcome = await customer.run(decide="approve")
    assert isinstance(outcome, Delivered), outcome
    assert {Path(file.path).name for file in outcome.files} >= {"contacts.csv", "deals.csv"}
    assert all(file.flagged == "none" and file.is_verified for file in outcome.files)
    assert {path.name for path in customer.out.iterdir()} >= {
        "log.json",
        "log.md",
        "preview.json",
        "preview.html",
    }
    assert customer.done() == ["generate", "execute"]
    assert str(customer.simulator.verdict()) == "no faults"
    again = await customer.run(decide="approve")
    assert again == outcome
    assert customer.done() == ["generate", "execute"]


async def test_a_preview_parks_until_it_is_approved(tmp_path: Path) -> None:
    customer = Customer(tmp_path)
    parked = await customer.run()
    assert isinstance(parked, Parked)
    assert parked.attention.kind == "preview"
    assert parked.attention.preview is not None
    assert isinstance(await customer.run(), Parked)
    assert isinstance(await customer.run(decide="approve_safe"), Delivered)
    assert customer.done() == ["generate", "execute"]


async def decide_as_a_person(customer: Customer, decision: Decision) -> str:
    """Decide about the parked outcome in the journal, as a person does."""
    state = await customer.journal.state("acme")
    assert state is not None
    parked = generations.read("acme", state).outcome
    assert isinstance(parked, Parked)
    async with customer.simulator.session() as session:
        return await generations.find("migrations").decide(
            context_of(session), customer.journal, "acme", decision, shown=parked.attention
        )


def asking(*questions: Question, kind: str = "generate", **more: Any) -> dict[str, Script]:
    return {"acme": Script(blocks={kind: [Block(questions=questions, **more)]})}


DATES = Question(text="Is 03/04/2025 day first?", options=("Day first", "Month first"))
WHY = Question(text="Why?", options=("A", "B"), allow_custom=False)


@pytest.mark.parametrize(
    ("policy", "content", "ends"),
    [
        ("approve_safe", CONTACTS, Delivered),
        ("approve_safe", CONTACTS + "nobody,A,B,1\n", Parked),
        ("approve", CONTACTS + "nobody,A,B,1\n", Delivered),
        ("reject", CONTACTS, Failed),
        ("park", CONTACTS, Parked),
    ],
)
async def test_each_policy_has_its_outcome(
    policy: str, content: str, ends: type[Outcome], tmp_path: Path
) -> None:
    customer = Customer(tmp_path)
    customer.spec = spec_of(tmp_path / "in", contacts=content)
    outcome = await customer.run(decide=policy)
    assert isinstance(outcome, ends), outcome
    if isinstance(outcome, Delivered):
        assert {file.slug: file.flagged for file in outcome.files if file.rows} == {
            "contacts": "included"
        } or (outcome.flagged == 0)
    if isinstance(outcome, Failed):
        assert (outcome.status, customer.done()) == ("canceled", ["generate"])
        assert await customer.run(decide=policy) == outcome


async def test_rules_answer_all_questions_or_none(tmp_path: Path) -> None:
    customer = Customer(tmp_path, customers=asking(DATES, WHY))
    dates = AnswerRule(question="day first", choose="DAY FIRST ")
    parked = await customer.run(decide="approve", answers=[dates])
    assert isinstance(parked, Parked)
    assert "Why?" in parked.refused
    assert not customer.simulator.answers("acme")
    why = AnswerRule(question="Why", choose="C")
    parked = await customer.run(decide="approve", answers=[dates, why])
    assert isinstance(parked, Parked)
    assert "options" in parked.refused
    why = AnswerRule(question="Why", choose="b")
    assert isinstance(await customer.run(decide="approve", answers=[dates, why]), Delivered)
    assert customer.simulator.answers("acme") == {DATES.text: "Day first", WHY.text: "B"}
    assert customer.done() == ["generate", "execute"]


@pytest.mark.parametrize("kind", ["generate", "execute"])
async def test_without_rules_a_question_parks_and_a_person_answers_it(kind: str, tmp_path: Path) -> None:
    customer = Customer(tmp_path, customers=asking(WHY, kind=kind))
    parked = await customer.run(decide="approve")
    assert isinstance(parked, Parked)
    assert (parked.attention.kind, parked.attention.questions[0].prompt) == ("questions", "Why?")
    with pytest.raises(InvalidInput, match="Answer"):
        await decide_as_a_person(customer, Approve())
    with pytest.raises(InvalidInput, match="no answer"):
        await decide_as_a_person(customer, Answer({}))
    assert await decide_as_a_person(customer, Answer({parked.attention.questions[0].id: "A"})) == "sent"
    assert isinstance(await customer.run(decide="approve"), Delivered)
    assert customer.simulator.answers("acme") == {"Why?": "A"}
    assert customer.done() == ["generate", "execute"]


async def test_a_decision_about_answered_questions_is_not_sent(tmp_path: Path) -> None:
    customer = Customer(tmp_path, customers=asking(WHY))
    parked = await customer.run()
    assert isinstance(parked, Parked)
    world = customer.simulator.world
    async with customer.simulator.session() as session:  # a person answers in the provider's app
        migration = session.migrations.open(world.migration("acme").id)
        run = migration.run(parked.ids["run"])
        await run.wait()
        await run.answer({parked.attention.questions[0].id: "B"})
    assert await decide_as_a_person(customer, Answer({parked.attention.questions[0].id: "A"})) in (
        "gone",
        "changed",
    )
    assert customer.simulator.answers("acme") == {"Why?": "B"}
    assert isinstance(await customer.run(decide="approve"), Delivered)


async def test_a_preview_is_changed_and_approved_by_a_person(tmp_path: Path) -> None:
    customer = Customer(tmp_path)
    customer.spec = spec_of(tmp_path / "in", contacts=CONTACTS + "nobody,A,B,1\n")
    first = await customer.run()
    assert isinstance(first, Parked)
    assert await decide_as_a_person(customer, Change("drop bad rows")) == "recorded"
    assert customer.done() == ["generate"]
    second = await customer.run()
    assert isinstance(second, Parked)
    assert second.attention.preview is not None
    assert second.attention.preview.invalid_cells == 0
    assert await decide_as_a_person(customer, Approve()) == "recorded"
    outcome = await customer.run()
    assert isinstance(outcome, Delivered)
    assert (outcome.flagged, customer.done()) == (0, ["generate", "update", "execute"])


async def test_an_approval_never_applies_to_another_preview(tmp_path: Path) -> None:
    customer = Customer(tmp_path)
    customer.spec = spec_of(tmp_path / "in", contacts=CONTACTS + "nobody,A,B,1\n")
    parked = await customer.run()
    assert await decide_as_a_person(customer, Approve()) == "recorded"
    async with (
        customer.simulator.session() as session
    ):  # another user changes the preview in the provider's app
        migration = session.migrations.open(customer.simulator.world.migration("acme").id)
        await (await migration.update("drop bad rows")).wait()
    again = await customer.run()
    assert isinstance(again, Parked)
    assert again.attention != parked.attention  # type: ignore[union-attr]
    assert customer.done() == ["generate", "update"]


async def test_an_approval_applies_to_its_preview_although_each_request_draws_another_sample(
    tmp_path: Path,
) -> None:
    customer = Customer(tmp_path, variants=Variants(sample="drawn"))
    assert isinstance(await customer.run(), Parked)
    assert await decide_as_a_person(customer, Approve()) == "recorded"
    assert isinstance(await customer.run(), Delivered)
    assert customer.done() == ["generate", "execute"]


@pytest.mark.parametrize("sample", ["first", "drawn"])
async def test_an_approval_never_applies_to_a_later_generation_with_the_same_rows(
    sample: str, tmp_path: Path
) -> None:
    customer = Customer(tmp_path, variants=Variants(sample=sample))
    parked = await customer.run()
    assert await decide_as_a_person(customer, Approve()) == "recorded"
    async with customer.simulator.session() as session:
        migration = session.migrations.open(customer.simulator.world.migration("acme").id)
        await (await migration.generate()).wait()
    assert isinstance(again := await customer.run(), Parked)
    assert again.attention.digest != parked.attention.digest  # type: ignore[union-attr]
    assert customer.done() == ["generate", "generate"]


async def test_credentials_of_a_person_are_sent_and_never_stored_or_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    secret = "s3cr3t-token"
    customer = Customer(tmp_path)
    customer.spec = msgspec.structs.replace(
        customer.spec, files=(), connection=LiveSource(source_key="hubspot", config={"region": "eu"})
    )
    parked = await customer.run(decide="approve")
    assert isinstance(parked, Parked)
    assert parked.attention.kind == "credentials"
    assert parked.attention.credentials is not None
    assert await decide_as_a_person(customer, Credentials({"api_token": "wrong"})) == "sent"
    parked = await customer.run(decide="approve")
    assert isinstance(parked, Parked)
    assert "rejected" in parked.refused
    assert await decide_as_a_person(customer, Credentials({"api_token": secret})) == "sent"
    assert isinstance(await customer.run(decide="approve"), Delivered)
    state = await customer.journal.state("acme")
    events = await customer.journal.events("acme")
    assert secret not in f"{state!r} {events!r} {caplog.text}"
    assert customer.done() == ["generate", "execute"]


async def test_the_same_question_after_an_accepted_answer_parks(tmp_path: Path) -> None:
    script = Script(blocks={"generate": [Block(questions=(WHY,)), Block(questions=(WHY,))]})
    customer = Customer(tmp_path, customers={"acme": script})
    rules = [AnswerRule(question="Why", choose="A")]
    parked = await customer.run(decide="approve", answers=rules)
    assert isinstance(parked, Parked)
    assert "asks the same again" in parked.refused
    assert isinstance(await customer.run(decide="approve", answers=rules), Parked)
    assert await decide_as_a_person(customer, Answer({parked.attention.questions[0].id: "B"})) == "sent"
    assert isinstance(await customer.run(decide="approve", answers=rules), Delivered)


async def test_a_blocked_run_is_canceled_to_release_its_slot(tmp_path: Path) -> None:
    customer = Customer(tmp_path, customers=asking(WHY))
    loop = asyncio.get_running_loop()
    begun = loop.time()
    parked = await customer.run(decide="approve", cancel_blocked_after=1800.0)
    assert isinstance(parked, Parked)
    assert 1800.0 <= loop.time() - begun < 1900.0
    assert "canceled after 1800 s" in parked.notes[-1]
    assert "run" not in parked.ids
    assert customer.simulator.world.migration("acme").active is None
    rules = [AnswerRule(question="Why", choose="A")]
    assert isinstance(await customer.run(decide="approve", answers=rules), Delivered)
    assert customer.done() == ["generate", "generate", "execute"]


async def test_a_blocked_execution_is_not_canceled_to_release_its_slot(tmp_path: Path) -> None:
    question = Question(text="Which currency?", options=("EUR", "USD"))
    customer = Customer(tmp_path, customers=asking(question, kind="execute"))
    parked = await customer.run(decide="approve", cancel_blocked_after=600.0)
    assert isinstance(parked, Parked)
    assert "may have written rows" in parked.notes[0]
    rules = [AnswerRule(question="currency", choose="EUR")]
    outcome = await customer.run(decide="approve", cancel_blocked_after=600.0, answers=rules)
    assert isinstance(outcome, Delivered), outcome
    assert customer.done() == ["generate", "execute"]


async def test_a_blocked_run_that_a_person_answers_in_time_continues(tmp_path: Path) -> None:
    customer = Customer(tmp_path, customers=asking(WHY))
    work = asyncio.create_task(customer.run(decide="approve", cancel_blocked_after=1800.0))
    await asyncio.sleep(600)
    async with customer.simulator.session() as session:
        migration = session.migrations.open(customer.simulator.world.migration("acme").id)
        run = migration.run(customer.simulator.world.migration("acme").runs[-1].id)
        await run.wait()
        await run.answer("A")
    assert isinstance(await work, Delivered)
    assert customer.done() == ["generate", "execute"]


async def test_a_failed_generate_is_repeated_and_an_execution_that_wrote_rows_is_not(tmp_path: Path) -> None:
    customer = Customer(tmp_path, customers={"acme": Script(fails={"generate": "no", "execute": "stopped"})})
    failed = await customer.run(decide="approve")
    assert isinstance(failed, Failed)
    assert (failed.error, failed.step, failed.status) == ("no", "running", "failed")
    assert await customer.run(decide="approve") == failed
    failed = await customer.run(decide="approve", retry_failed=True)
    assert isinstance(failed, Failed)
    assert "3 rows were written" in failed.error
    assert customer.done() == ["generate", "generate", "execute"]
    again = await customer.run(decide="approve", retry_failed=True)
    assert isinstance(again, Failed)
    assert "not run again" in again.notes[-1]
    assert customer.done() == ["generate", "generate", "execute"]


async def test_an_account_without_a_plan_leaves_all_customers_pending(tmp_path: Path) -> None:
    simulator = Simulator(api="migrations", seed=7, limits="by-class")
    specs = [spec_of(tmp_path / "in", f"c{number}") for number in range(5)]
    simulator.world.plan = False
    async with (
        simulator.session() as session,
        Fleet(
            session, journal=MemoryJournal(), to=tmp_path / "out", api="migrations", decide="approve"
        ) as fleet,
    ):
        outcomes = [outcome async for outcome in fleet.run(specs)]
    assert {type(outcome) for outcome in outcomes} == {Pending}
    assert {outcome.reason for outcome in outcomes} == {"account_refused"}  # type: ignore[union-attr]
    assert "no plan" in outcomes[0].error  # type: ignore[union-attr]
    assert simulator.ledger.requests["POST /migrations"] == 1


async def test_added_files_cause_a_new_generate_and_changed_files_are_refused(tmp_path: Path) -> None:
    customer = Customer(tmp_path)
    customer.spec = spec_of(tmp_path / "in", contacts=CONTACTS)
    assert isinstance(await customer.run(), Parked)
    customer.spec = spec_of(tmp_path / "in", contacts=CONTACTS, deals=DEALS)
    assert isinstance(await customer.run(), Parked)
    assert customer.done() == ["generate", "generate"]
    customer.spec = spec_of(tmp_path / "in", contacts=CONTACTS + "x@x.org,A,B,1\n", deals=DEALS)
    with pytest.raises(InvalidInput, match="neither replace nor remove"):
        await customer.run(decide="approve", if_changed="refuse")
    outcome = await customer.run(decide="approve")
    assert isinstance(outcome, Delivered)
    assert any("not imported again: contacts.csv" in note for note in outcome.notes)
    assert customer.done() == ["generate", "generate", "execute"]
    assert str(customer.simulator.verdict()) == "no faults"


async def test_only_the_added_file_is_uploaded_although_the_server_renames_files(tmp_path: Path) -> None:
    customer = Customer(tmp_path, variants=Variants(file_names="replaced"))
    assert isinstance(await customer.run(), Parked)
    extra = customer.spec.files[0].with_name("more.csv")
    extra.write_text(HEADER + "q@x.org,Bo,B,1\n", encoding="utf-8")
    customer.spec = msgspec.structs.replace(customer.spec, files=(*customer.spec.files, extra))
    assert isinstance(await customer.run(decide="approve"), Delivered)
    arrived = customer.simulator.world.migration("acme").arrived
    assert [file.requested_name for file in arrived] == ["contacts.csv", "deals.csv", "more.csv"]


@pytest.mark.parametrize("until", ["parked", "delivered"])
async def test_no_operation_is_repeated_after_the_loss_of_the_journal(until: str, tmp_path: Path) -> None:
    customer = Customer(tmp_path)
    await customer.run(decide="approve" if until == "delivered" else "park")
    customer.journal = MemoryJournal()
    outcome = await customer.run(decide="approve")
    assert isinstance(outcome, Delivered)
    assert customer.done() == ["generate", "execute"]
    assert str(customer.simulator.verdict()) == "no faults"


async def test_an_adopted_migration_is_continued(tmp_path: Path) -> None:
    customer = Customer(tmp_path)
    await customer.run()
    migration_id = customer.simulator.world.migration("acme").id
    customer.journal = MemoryJournal()
    adopted = await adopt(
        customer.journal, "acme", f"https://app.vern.so/migrations/{migration_id}", api="migrations"
    )
    assert adopted == migration_id
    with pytest.raises(InvalidInput, match="another customer"):
        await adopt(customer.journal, "other", migration_id, api="migrations")
    assert isinstance(await customer.run(decide="approve"), Delivered)
    assert customer.done() == ["generate", "execute"]


async def test_cancel_ends_the_run_and_the_next_call_starts_another(tmp_path: Path) -> None:
    customer = Customer(tmp_path, customers=asking(WHY))
    await customer.run()
    async with customer.simulator.session() as session:
        outcome = await generations.find("migrations").cancel(context_of(session), customer.journal, "acme")
    assert isinstance(outcome, Pending)
    assert outcome.reason == "canceled"
    assert customer.simulator.world.migration("acme").active is None
    rules = [AnswerRule(question="Why", choose="A")]
    assert isinstance(await customer.run(decide="approve", answers=rules), Delivered)


async def test_a_function_decides(tmp_path: Path) -> None:
    customer = Customer(tmp_path, customers=asking(WHY))
    seen: list[str] = []

    async def decide(parked: Parked) -> Decision | None:
        seen.append(parked.attention.kind)
        if parked.attention.kind == "questions":
            return Answer({parked.attention.questions[0].id: "A"})
        return Change("drop bad rows") if seen.count("preview") == 1 else Approve()

    assert isinstance(await customer.run(decide=decide), Delivered)
    assert seen == ["questions", "preview", "preview"]
    assert customer.done() == ["generate", "update", "execute"]


async def test_a_wrong_decision_of_a_function_parks_the_customer(tmp_path: Path) -> None:
    customer = Customer(tmp_path, customers=asking(WHY))

    async def decide(parked: Parked) -> Decision | None:
        return Approve()

    parked = await customer.run(decide=decide)
    assert isinstance(parked, Parked)
    assert "does not fit" in parked.refused


async def test_the_status_and_the_events_describe_a_customer(tmp_path: Path) -> None:
    customer = Customer(tmp_path, customers=asking(WHY))
    generation = generations.find("migrations")
    await customer.run(decide="approve")
    state = await customer.journal.state("acme")
    assert state is not None
    record = generations.read("acme", state)
    assert (record.status.outcome, record.status.step) == ("parked", "running")
    assert record.run_slot == record.ids["migration"]
    await customer.run(decide="approve", answers=[AnswerRule(question="Why", choose="A")])
    state = await customer.journal.state("acme")
    assert state is not None
    record = generations.read("acme", state)
    assert (record.status.outcome, record.status.step, record.run_slot) == ("delivered", "ended", None)
    assert set(record.ids) == {"migration", "run"}
    words = {event.kind: generation.describe(event) for event in await customer.journal.events("acme")}
    assert words["answer"] == "q1='A'"
    assert words["start"] == "execute"
    assert words["previewed"] == "0 invalid cells in the sample"
    assert words["executed"] == "7 rows"


async def test_options_and_fields_that_the_generation_lacks_are_refused(tmp_path: Path) -> None:
    customer = Customer(tmp_path)
    with pytest.raises(InvalidInput, match="export"):
        await customer.run(export="full")
    customer.spec = msgspec.structs.replace(customer.spec, connections={"destination": {}})
    refused = await customer.run()
    assert isinstance(refused, Failed)
    assert "connections" in refused.error
    customer.spec = msgspec.structs.replace(customer.spec, connections=None, source="Hubspt")
    refused = await customer.run()
    assert isinstance(refused, Failed)
    assert "HubSpot" in refused.error
    assert not customer.simulator.ledger.requests["POST /migrations"]


@pytest.mark.parametrize("preview", ["stays", "gone"])
async def test_an_executed_migration_is_adopted_and_delivered(preview: str, tmp_path: Path) -> None:
    customer = Customer(tmp_path, variants=Variants(preview_after_execute=preview))
    await customer.run(decide="approve")
    customer.journal, customer.out = MemoryJournal(), tmp_path / "again"
    await adopt(customer.journal, "acme", customer.simulator.world.migration("acme").id, api="migrations")
    outcome = await customer.run()
    assert isinstance(outcome, Delivered), outcome
    assert {file.slug: file.rows for file in outcome.files if file.rows} == {"contacts": 6, "deals": 1}
    assert customer.done() == ["generate", "execute"]


async def test_notes_are_in_the_journal(tmp_path: Path) -> None:
    customer = Customer(tmp_path)
    customer.spec = spec_of(tmp_path / "in", contacts=CONTACTS + "nobody,A,B,1\n")
    outcome = await customer.run(decide="approve")
    assert "with flagged rows" in outcome.notes[0]
    state = await customer.journal.state("acme")
    assert state is not None
    assert generations.read("acme", state).outcome == outcome
    assert await customer.run(decide="approve") == outcome


@pytest.mark.parametrize("existing", ["same", "renamed", "other-templates"])
async def test_an_existing_migration_is_used_and_its_differences_are_notes(
    existing: str, tmp_path: Path
) -> None:
    customer = Customer(tmp_path, variants=Variants(existing=existing))
    outcome = await customer.run(decide="approve")
    assert isinstance(outcome, Delivered), outcome
    assert any("another" in note for note in outcome.notes) is (existing == "renamed")


async def test_a_run_that_another_client_started_is_awaited_and_used(tmp_path: Path) -> None:
    pace = RunDurations(queued=0.0, base=300.0, per_row=0.0, sigma=0.0)
    customer = Customer(tmp_path, pace=pace)

    async def update_elsewhere(parked: Parked) -> Decision | None:
        async with (
            customer.simulator.session() as session
        ):  # another client changes the preview at the same time
            await session.migrations.open(parked.ids["migration"]).update("drop bad rows")
        return Approve()

    customer.spec = spec_of(tmp_path / "in", contacts=CONTACTS + "nobody,A,B,1\n")
    seen: list[int] = []

    async def decide(parked: Parked) -> Decision | None:
        assert parked.attention.preview is not None
        seen.append(parked.attention.preview.invalid_cells)
        return await update_elsewhere(parked) if len(seen) == 1 else Approve()

    outcome = await customer.run(decide=decide)
    assert isinstance(outcome, Delivered)
    assert (seen, outcome.flagged) == ([1, 0], 0)
    assert customer.done() == ["generate", "update", "execute"]
    assert any("another client" in note for note in outcome.notes)


async def test_more_files_than_a_run_may_read_are_refused_before_any_request(tmp_path: Path) -> None:
    customer = Customer(tmp_path)
    names = [tmp_path / "in" / f"{number}.pdf" for number in range(6)]
    for path in names:
        path.write_bytes(b"%PDF")
    customer.spec = msgspec.structs.replace(customer.spec, files=tuple(names))
    refused = await customer.run()
    assert isinstance(refused, Failed)
    assert "5 PDF or Word documents" in refused.error
    assert not customer.simulator.ledger.entries


async def test_a_403_of_a_read_is_an_outage_and_no_refusal_of_the_account(tmp_path: Path) -> None:
    account = Account()
    account.routes["GET", "/sources"] = lambda body, query: Reply(200, {"sources": [{"name": "HubSpot"}]})
    account.fault = lambda method, path, n: (
        403 if path.endswith("/files") and method == "GET" and n == 1 else None
    )
    spec, journal = spec_of(tmp_path / "in"), MemoryJournal()
    async with Session("key", BASE_URL, transport=account, limits="per-endpoint") as session:
        outcomes = [
            await migrate(
                session, spec, journal=journal, to=tmp_path / "out", api="migrations", decide="approve"
            )
            for _ in range(2)
        ]
    assert isinstance(outcomes[0], Pending)
    assert outcomes[0].reason == "server_away"
    assert isinstance(outcomes[1], Delivered), outcomes[1]


async def test_the_preview_is_written_to_each_given_folder(tmp_path: Path) -> None:
    customer = Customer(tmp_path)
    await customer.run()
    customer.out = tmp_path / "elsewhere"
    await customer.run()
    assert {path.name for path in customer.out.iterdir()} == {"preview.json", "preview.html"}


async def test_a_failed_execution_by_another_client_is_not_repeated(tmp_path: Path) -> None:
    customer = Customer(tmp_path, customers={"acme": Script(fails={"execute": "stopped"})})
    assert isinstance(await customer.run(), Parked)
    async with customer.simulator.session() as session:
        migration = session.migrations.open(customer.simulator.world.migration("acme").id)
        with pytest.raises(RunFailed):
            await (await migration.execute()).wait()
    for _ in range(2):
        failed = await customer.run(decide="approve", retry_failed=True)
        assert isinstance(failed, Failed)
        assert "3 rows were written" in failed.error
    assert customer.done() == ["generate", "execute"]


async def test_a_lost_execution_is_not_repeated_after_a_run_of_another_client(tmp_path: Path) -> None:
    account = Account()
    account.routes["GET", "/sources"] = lambda body, query: Reply(200, {"sources": [{"name": "HubSpot"}]})
    account.steps["execute"] = [(0.1, account.steps["execute"][0][1])]
    run, start = "/migrations/m1/runs", account.start
    others: list[float] = []

    def starts(body: dict[str, Any], query: object) -> Reply:
        if body["kind"] == "execute" and account.starts().count("execute"):
            others.append(account.now)
            return Reply(409, {"error": "in progress", "run_id": "run-9"})
        return start(body)

    def other(body: object, query: object) -> Reply:
        is_over = account.now > others[0] + 100.0
        return Reply(200, {"run_id": "run-9", "status": "failed" if is_over else "running"})

    def fault(method: str, path: str, n: int) -> object:
        is_hidden = account.starts().count("execute") and not others and method == "GET"
        if is_hidden and path.endswith(("/run-1", "/log", "/thread")):
            return 404
        return "lost" if method == "POST" and path == run and n == 2 else None

    account.routes["POST", run], account.routes["GET", f"{run}/run-9"] = starts, other
    account.fault = fault
    async with Session("key", BASE_URL, transport=account, limits="per-endpoint") as session:
        outcome = await migrate(
            session,
            spec_of(tmp_path / "in"),
            journal=MemoryJournal(),
            to=tmp_path / "out",
            api="migrations",
            decide="approve",
        )
    assert account.starts().count("execute") == 1
    assert isinstance(outcome, Delivered | Unknown), outcome


async def test_a_drained_fleet_does_not_wait_for_the_streams_of_its_runs(tmp_path: Path) -> None:
    customer, loop = (
        Customer(tmp_path, pace=RunDurations(queued=0, base=1800, sigma=0)),
        asyncio.get_running_loop(),
    )
    async with (
        customer.simulator.session() as session,
        Fleet(session, journal=customer.journal, to=customer.out, api="migrations") as fleet,
    ):
        running = fleet.submit(customer.spec)
        await asyncio.sleep(100.0)
        before = loop.time()
        await fleet.drain()
        assert loop.time() - before < 2.0
    outcome = await running
    assert isinstance(outcome, Pending)
    assert outcome.reason == "interrupted"
    assert isinstance(await customer.run(decide="approve"), Delivered)
    assert customer.done() == ["generate", "execute"]
