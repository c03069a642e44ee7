"""How customers stand, from a journal that somebody else writes."""

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


async def note(journal: MemoryJournal | Journal, external_id: str, kind: str, **detail: object) -> None:
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
def test_the_record_tells_how_far_it_came(fields: dict[str, object], step: str) -> None:
    stands = status_of(customer_record(record(**fields)))
    assert (stands.outcome, stands.step, stands.error) == ("pending", step, None)


def test_a_failure_tells_where_and_why() -> None:
    failed = Failed(external_id="acme", name="Acme", error="no such source", step="creating")
    stands = status_of(customer_record(msgspec.structs.replace(record(), outcome=failed)))
    assert (stands.outcome, stands.step, stands.error) == ("failed", "creating", "no such source")
    assert stands.is_over


def test_what_destroys_rows_is_named_and_an_earlier_outcome_is_no_news_while_somebody_works() -> None:
    actions = (Action(action="keep"), Action(action="delete_invalid_rows", column="Email"))
    parked = Parked(
        external_id="acme", name="Acme", attention=NeedsAttention(proposed_patch=Patch(actions=actions))
    )
    known = customer_record(msgspec.structs.replace(record(run_id="r"), outcome=parked))
    assert status_of(known).destructive == actions[1:]
    held = status_of(known, Activity("2026-01-01T00:00:00.000Z", "process 7"))
    assert (held.outcome, held.held_by, held.destructive, held.is_over) == ("pending", "process 7", (), False)


async def test_one_customer_is_read_by_its_id(monkeypatch: pytest.MonkeyPatch) -> None:
    journal = MemoryJournal()
    await note(journal, "acme", "input", files=[])
    await note(journal, "beta", "input", files=[])
    (_, beta) = await read_statuses(journal)
    monkeypatch.setattr(MemoryJournal, "states", None)  # no customer costs the reading of all
    assert await read_status(journal, "beta") == beta
    with pytest.raises(CustomerNotFound, match="external_id='gamma': is not in the journal"):
        await read_status(journal, "gamma")


async def test_a_journal_is_read_while_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "fleet.db"
    async with Journal(path, holder="night run") as writer, Journal(path, read_only=True) as reader:
        await note(writer, "acme", "create")
        async with await writer.claim("bolt"):
            standings = {each.external_id: each for each in await read_statuses(reader)}
    assert standings["acme"].held_by is None
    assert standings["acme"].changed_at is not None
    assert "night run (process " in (standings["bolt"].held_by or "")


async def test_a_holder_that_died_works_on_nothing(tmp_path: Path) -> None:
    path = tmp_path / "fleet.db"
    async with Journal(path) as writer:
        claim = await writer.claim("acme")
        await claim.write("create", b"{}", msgspec.json.encode(record()))
    async with Journal(path, read_only=True) as reader:
        (stands,) = await read_statuses(reader)
    assert stands.held_by is None


async def test_a_state_of_another_program_concerns_its_customer_alone() -> None:
    journal = MemoryJournal()
    await note(journal, "bolt", "create")
    async with await journal.claim("acme") as claim:
        await claim.write("create", b"{}", b"[]")
    records = await read_records(journal)
    assert records["bolt"].outcome is None
    stands = status_of(records["acme"])
    assert stands.outcome == "failed"
    assert "cannot read" in (stands.error or "")


async def test_the_timeline_says_what_happened_and_how_long_it_took() -> None:
    journal = MemoryJournal()
    files = [{"path": "in/a.csv", "size": 1200, "sha256": "x"}]
    decision = {"approve": True, "answers": {"fq0": "a", "fq1": {"text": "own words"}}}
    await note(journal, "acme", "input", files=files)
    await note(journal, "acme", "started", run_id="r-1")
    await note(journal, "acme", "decide", decision=decision)
    await note(journal, "acme", "new epoch", epoch=1, files=files)
    await note(journal, "acme", "something", run_id=7)
    happenings = list(timeline(await journal.events("acme")))
    assert [each.words for each in happenings] == [
        "a.csv (1,200 bytes)",
        "run r-1",
        "approve fq0=a fq1='own words'",
        "import number 2 of this company; a.csv (1,200 bytes)",
        "",
    ]
    assert happenings[0].waited == 0.0
    assert all(each.waited >= 0.0 for each in happenings)


def test_no_time_is_negative_though_the_wall_clock_was_set_back() -> None:
    times = ("2026-03-29T02:30:00.000Z", "2026-03-29T01:00:00.000Z", "2026-03-29T01:00:02.000Z")
    events = [JournalEvent(number, "acme", at, "create", b"{}") for number, at in enumerate(times)]
    assert [each.waited for each in timeline(events)] == [0.0, 0.0, 2.0]


@pytest.mark.looptime
async def test_a_journal_is_followed_until_nobody_works_on_it() -> None:
    journal = MemoryJournal()
    await note(journal, "acme", "create")

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
