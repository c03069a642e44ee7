"""The status and the timeline of customers, read from a journal that another process writes."""

import asyncio
from pathlib import Path

import msgspec
import pytest

from asyncmig import CustomerNotFound, Failed, Journal, MemoryJournal, NeedsAttention, Parked
from asyncmig.companies.workflow.record import Record
from asyncmig.customers.questions import Action, Patch
from asyncmig.jobs.status import follow, read_records, read_status, read_statuses, status_of, timeline
from asyncmig.journal import Activity, JournalEvent
from asyncmig.records.record import customer_record


def record(**fields: object) -> Record:
    return msgspec.convert({"external_id": "acme", "name": "Acme", "source": "s", **fields}, type=Record)


async def write_event(
    journal: MemoryJournal | Journal, external_id: str, kind: str, **detail: object
) -> None:
    async with await journal.claim(external_id) as claim:
        state = msgspec.structs.replace(record(), external_id=external_id)
        await claim.write(kind, msgspec.json.encode(detail), msgspec.json.encode(state))


@pytest.mark.parametrize(
    ("fields", "step"),
    [
        ({}, "waiting"),
        ({"creating": True}, "creating"),
        ({"company_id": "c"}, "uploading"),
        ({"company_id": "c", "import_body": "{}"}, "starting"),
        ({"company_id": "c", "import_body": "{}", "run_id": "r"}, "running"),
    ],
)
def test_the_status_has_the_step_of_the_record(fields: dict[str, object], step: str) -> None:
    status = status_of(customer_record(record(**fields)))
    assert (status.outcome, status.step, status.error) == ("pending", step, None)


def test_the_status_of_a_failed_customer_has_its_step_and_error() -> None:
    failed = Failed(external_id="acme", name="Acme", error="no such source", step="creating")
    status = status_of(customer_record(msgspec.structs.replace(record(), outcome=failed)))
    assert (status.outcome, status.step, status.error) == ("failed", "creating", "no such source")
    assert status.is_over


def test_a_parked_customer_has_destructive_actions_and_a_held_one_is_pending() -> None:
    actions = (Action(action="keep"), Action(action="delete_invalid_rows", column="Email"))
    parked = Parked(
        external_id="acme", name="Acme", attention=NeedsAttention(proposed_patch=Patch(actions=actions))
    )
    customer = customer_record(msgspec.structs.replace(record(run_id="r"), outcome=parked))
    assert status_of(customer).destructive == actions[1:]
    held = status_of(customer, Activity("2026-01-01T00:00:00.000Z", "process 7"))
    assert (held.outcome, held.held_by, held.destructive, held.is_over) == ("pending", "process 7", (), False)


async def test_one_customer_is_read_by_its_id(monkeypatch: pytest.MonkeyPatch) -> None:
    journal = MemoryJournal()
    await write_event(journal, "acme", "input", files=[])
    await write_event(journal, "beta", "input", files=[])
    (_, beta) = await read_statuses(journal)
    monkeypatch.setattr(MemoryJournal, "states", None)  # `read_status` does not read all states
    assert await read_status(journal, "beta") == beta
    with pytest.raises(CustomerNotFound, match="external_id='gamma': is not in the journal"):
        await read_status(journal, "gamma")


async def test_statuses_are_read_while_another_journal_writes(tmp_path: Path) -> None:
    path = tmp_path / "fleet.db"
    async with Journal(path, holder="night run") as writer, Journal(path, read_only=True) as reader:
        await write_event(writer, "acme", "create")
        async with await writer.claim("bolt"):
            statuses = {each.external_id: each for each in await read_statuses(reader)}
    assert statuses["acme"].held_by is None
    assert statuses["acme"].changed_at is not None
    assert "night run (process " in (statuses["bolt"].held_by or "")


async def test_a_customer_whose_journal_was_closed_is_not_held(tmp_path: Path) -> None:
    path = tmp_path / "fleet.db"
    async with Journal(path) as writer:
        claim = await writer.claim("acme")
        await claim.write("create", b"{}", msgspec.json.encode(record()))
    async with Journal(path, read_only=True) as reader:
        (status,) = await read_statuses(reader)
    assert status.held_by is None


async def test_an_unreadable_state_fails_only_its_own_customer() -> None:
    journal = MemoryJournal()
    await write_event(journal, "bolt", "create")
    async with await journal.claim("acme") as claim:
        await claim.write("create", b"{}", b"[]")
    records = await read_records(journal)
    assert records["bolt"].outcome is None
    status = status_of(records["acme"])
    assert status.outcome == "failed"
    assert "cannot read" in (status.error or "")


async def test_the_timeline_has_a_text_and_a_duration_for_each_event() -> None:
    journal = MemoryJournal()
    files = [{"path": "in/a.csv", "size": 1200, "sha256": "x"}]
    decision = {"approve": True, "answers": {"fq0": "a", "fq1": {"text": "own words"}}}
    await write_event(journal, "acme", "input", files=files)
    await write_event(journal, "acme", "started", run_id="r-1")
    await write_event(journal, "acme", "decide", decision=decision)
    await write_event(journal, "acme", "new epoch", epoch=1, files=files)
    await write_event(journal, "acme", "something", run_id=7)
    entries = list(timeline(await journal.events("acme")))
    assert [each.words for each in entries] == [
        "a.csv (1,200 bytes)",
        "run r-1",
        "approve fq0=a fq1='own words'",
        "import number 2 of this company; a.csv (1,200 bytes)",
        "",
    ]
    assert entries[0].waited == 0.0
    assert all(each.waited >= 0.0 for each in entries)


def test_no_duration_is_negative_although_the_wall_clock_was_set_back() -> None:
    times = ("2026-03-29T02:30:00.000Z", "2026-03-29T01:00:00.000Z", "2026-03-29T01:00:02.000Z")
    events = [JournalEvent(number, "acme", at, "create", b"{}") for number, at in enumerate(times)]
    assert [each.waited for each in timeline(events)] == [0.0, 0.0, 2.0]


@pytest.mark.looptime
async def test_a_journal_is_followed_until_no_customer_is_held() -> None:
    journal = MemoryJournal()
    await write_event(journal, "acme", "create")

    async def work() -> None:
        async with await journal.claim("acme") as claim:
            for kind in ("created", "started"):
                await asyncio.sleep(100)
                await claim.write(kind, b"{}", msgspec.json.encode(record()))

    loop = asyncio.get_running_loop()
    worker = asyncio.create_task(work())
    await asyncio.sleep(0)
    seen = [(event.kind, loop.time()) async for event in follow(journal, after=1)]
    assert [kind for kind, _ in seen] == ["created", "started"]
    assert 200 <= seen[1][1] <= 201
    assert 202 <= loop.time() <= 206
    await worker
