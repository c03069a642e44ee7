"""The journal in one process: claims, writes, reads, the virtual clock, and cancellation."""

import asyncio
import dataclasses
import pickle
import sqlite3
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import psycopg
import pytest

from asyncmig.distributed.postgres import PostgresJournal
from asyncmig.errors import CustomerHeld, InvalidInput, JournalError
from asyncmig.journal import (
    Activity,
    Instruction,
    Journal,
    JournalEvent,
    JournalPlace,
    JournalPort,
    MemoryJournal,
    open_journal,
)

pytestmark = pytest.mark.looptime


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "fleet.db"


@pytest.fixture(params=["threaded", "inline", "memory", "postgres"])
async def journal(request: pytest.FixtureRequest, path: Path, prefix: str) -> AsyncIterator[JournalPort]:
    if request.param == "memory":
        yield MemoryJournal()
        return
    if request.param == "postgres":
        async with PostgresJournal(request.getfixturevalue("database_url"), schema=prefix) as journal:
            yield journal
        return
    async with Journal(path, threaded=request.param == "threaded") as journal:
        yield journal


class Counted(sqlite3.Connection):
    """A connection that counts its statements by their first word."""

    statements: Counter[str]

    def execute(self, sql: str, parameters: object = ()) -> sqlite3.Cursor:
        self.statements[sql.split()[0]] += 1
        return super().execute(sql, parameters)


def counting(statements: Counter[str]) -> Callable[[str], sqlite3.Connection]:
    def connect(uri: str) -> sqlite3.Connection:
        db = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False, factory=Counted)
        db.statements = statements
        return db

    return connect


async def test_a_new_company_has_no_state(journal):
    async with await journal.claim("acme") as claim:
        assert (claim.external_id, claim.state) == ("acme", None)
    assert await journal.states() == {}


async def test_the_state_and_activity_of_one_customer_are_read_by_its_id(journal):
    assert await journal.state("acme") is None
    assert await journal.activity("acme") == {}
    async with await journal.claim("acme") as acme, await journal.claim("beta") as beta:
        assert await journal.state("acme") is None
        await acme.write("create", b"1", b"one")
        await beta.write("create", b"2", b"two")
        assert await journal.state("acme") == b"one"
        assert await journal.activity("acme") == {"acme": (await journal.activity())["acme"]}
        (seen,) = (await journal.activity("acme")).values()
        assert seen.holder
        assert seen.at == (await journal.events("acme"))[-1].at
    (seen,) = (await journal.activity("acme")).values()
    assert seen.holder is None


async def test_an_instruction_needs_no_claim_and_stays_until_it_is_deleted(journal):
    run, cancel = Instruction("run", b"spec"), Instruction("cancel", b"")
    await journal.instruct("acme", run)
    assert await journal.states() == {}
    async with await journal.claim("acme") as claim:
        assert claim.state is None
        await journal.instruct("acme", cancel)  # allowed although the customer is held
        await journal.instruct("beta", run)
        await claim.write("create", b"", b"one")
    assert await journal.instruction("acme") == cancel
    assert await journal.instructions() == {"acme": cancel, "beta": run}
    assert await journal.instructions("cancel") == {"acme": cancel}
    await journal.delete_instruction("acme", run)  # no effect: `cancel` has replaced `run`
    assert await journal.instruction("acme") == cancel
    await journal.delete_instruction("acme", cancel)
    assert await journal.instruction("acme") is None
    await journal.forget("beta")
    assert await journal.instructions() == {}
    assert await journal.states() == {"acme": b"one"}


async def test_a_forgotten_customer_has_no_state_and_its_event_numbers_are_not_reused(journal):
    async with await journal.claim("acme") as acme, await journal.claim("beta") as beta:
        await beta.write("create", b"1", b"one")
        await acme.write("create", b"2", b"two")
    await journal.forget("acme")
    assert await journal.state("acme") is None
    assert await journal.activity("acme") == {}
    async with await journal.claim("acme") as acme:
        await acme.write("create", b"3", b"three")
    assert [event.seq for event in await journal.events()] == [1, 4 if isinstance(journal, Journal) else 3]
    assert [event.detail for event in await journal.events(after=1)] == [b"3"]


async def test_the_next_claim_sees_the_last_state_and_a_larger_token(journal):
    async with await journal.claim("acme") as first:
        await first.write("create", b'{"a":1}', b"one")
        await first.write("created", b"{}", b"two")
        assert first.state == b"two"
    async with await journal.claim("acme") as second:
        assert second.state == b"two"
        assert second.token > first.token


async def test_events_are_numbered_and_kept_in_order(journal):
    async with await journal.claim("acme") as acme, await journal.claim("beta") as beta:
        await acme.write("create", b"1", b"")
        await beta.write("create", b"2", b"")
        await acme.write("created", b"3", b"")
    events = await journal.events()
    assert [(e.seq, e.external_id, e.kind, e.detail) for e in events] == [
        (1, "acme", "create", b"1"),
        (2, "beta", "create", b"2"),
        (3, "acme", "created", b"3"),
    ]
    assert all(e.at.endswith("Z") and e.at[10] == "T" for e in events)
    assert [e.seq for e in await journal.events("acme")] == [1, 3]
    assert [e.seq for e in await journal.events("acme", after=1)] == [3]
    assert [e.seq for e in await journal.events(after=1, limit=1)] == [2]
    assert await journal.events("nobody") == []


async def test_a_company_that_another_task_holds_cannot_be_claimed(journal):
    async with await journal.claim("acme"):
        with pytest.raises(CustomerHeld, match="acme is held by another task") as caught:
            await journal.claim("acme")
        assert caught.value.external_id == "acme"
    async with await journal.claim("acme"):
        pass


async def test_a_released_claim_cannot_write(journal):
    claim = await journal.claim("acme")
    await claim.release()
    await claim.release()
    with pytest.raises(JournalError):
        await claim.write("create", b"", b"late")
    async with await journal.claim("acme") as second:
        await claim.release()  # no effect on the second claim
        await second.write("create", b"", b"right")
    assert await journal.states() == {"acme": b"right"}


async def test_bytes_and_names_are_read_as_they_were_written(journal):
    odd = "ü-\u2028'\"%_; DROP TABLE events"
    blob = bytes(range(256)) * 40
    async with await journal.claim(odd) as claim:
        await claim.write("käse", blob, blob[::-1])
    assert await journal.states() == {odd: blob[::-1]}
    assert [(e.external_id, e.kind, e.detail) for e in await journal.events(odd)] == [(odd, "käse", blob)]


async def test_states_begin_with_the_oldest_company(journal):
    for name in ("b", "c", "a"):
        async with await journal.claim(name) as claim:
            await claim.write("k", b"", name.encode())
    assert list(await journal.states()) == ["b", "c", "a"]


async def test_a_company_is_claimed_by_only_one_of_two_journals_in_a_process(path):
    async with Journal(path, holder="worker one") as one, Journal(path) as two:
        async with await one.claim("acme"):
            with pytest.raises(CustomerHeld, match=r"held by worker one \(process \d+ on ") as caught:
                await two.claim("acme")
            assert "last seen" in caught.value.holder
            assert isinstance(pickle.loads(pickle.dumps(caught.value)), CustomerHeld)
        async with await two.claim("acme"):
            pass


async def test_closing_releases_every_claim_and_leaves_one_file(path):
    async with Journal(path) as one:
        claim = await one.claim("acme")
        await claim.write("k", b"", b"s")
    await claim.release()
    with pytest.raises(JournalError, match="not open"):
        await claim.write("k", b"", b"t")
    with pytest.raises(JournalError, match="not open"):
        await one.claim("acme")
    assert [entry.name for entry in path.parent.iterdir()] == ["fleet.db"]
    async with one, await one.claim("acme") as again:
        assert again.state == b"s"
        with pytest.raises(JournalError, match="open already"):
            await one.__aenter__()


async def test_concurrent_claims_and_writes_share_a_transaction(path):
    statements: Counter[str] = Counter()
    async with Journal(path, connect=counting(statements)) as journal:
        statements.clear()
        claims = await asyncio.gather(*(journal.claim(f"c{n}") for n in range(200)))
        assert statements["COMMIT"] == 1
        await asyncio.gather(*(claim.write("k", b"", b"s") for claim in claims))
        assert statements["COMMIT"] == 2
        for claim in claims[:3]:
            await claim.write("k", b"", b"alone")
        assert statements["COMMIT"] == 5


async def test_a_failing_operation_does_not_undo_the_others_of_its_transaction(path):
    async with Journal(path) as journal, await journal.claim("held"):
        good, refused, impossible = await asyncio.gather(
            journal.claim("good"), journal.claim("held"), journal.claim("\ud800"), return_exceptions=True
        )
        assert isinstance(refused, CustomerHeld)
        assert type(impossible) is JournalError
        done, failed = await asyncio.gather(
            good.write("k", b"", b"s"), good.write("\ud800", b"", b"wrong"), return_exceptions=True
        )
        assert (done, type(failed)) == (None, JournalError)
        assert await journal.states() == {"good": b"s"}
        assert len(await journal.events()) == 1


async def test_waiting_for_the_disk_takes_no_virtual_time(path):
    loop = asyncio.get_running_loop()
    far = loop.call_later(3600, lambda: None)
    async with Journal(path) as journal, await journal.claim("acme") as claim:
        for _ in range(50):
            await claim.write("k", b"", b"s")
        await journal.states()
    far.cancel()
    assert loop.time() == 0


async def test_a_cancelled_write_ends_at_once_and_may_be_committed(path):
    async with Journal(path) as journal:
        claim = await journal.claim("acme")
        write = asyncio.create_task(claim.write("k", b"", b"s"))
        await asyncio.sleep(0)
        write.cancel()
        await asyncio.wait({write})
        assert write.cancelled()
        await claim.release()
        async with await journal.claim(
            "acme"
        ) as again:  # the new claim shows whether the write was committed
            assert again.state == b"s"
            assert len(await journal.events()) == 1


@pytest.mark.parametrize("steps", range(8))
async def test_a_cancelled_claim_is_released(path, steps):
    async with Journal(path, threaded=False) as journal:
        task = asyncio.create_task(journal.claim("acme"))
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
        if task.cancelled():
            async with await journal.claim("acme"):
                pass
        else:
            await task.result().release()


async def test_a_cancelled_block_releases_its_company(path):
    async def work(journal: Journal) -> None:
        async with await journal.claim("acme"):
            await asyncio.Event().wait()

    async with Journal(path) as journal:
        task = asyncio.create_task(work(journal))
        await asyncio.sleep(1)
        with pytest.raises(CustomerHeld):
            await journal.claim("acme")
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled()
        async with await journal.claim("acme"):
            pass


@pytest.mark.parametrize("steps", range(6))
async def test_closing_while_cancelled_still_executes_the_queued_writes(path, steps):
    async def work() -> None:
        async with Journal(path) as journal:
            claim = await journal.claim("acme")
            for n in range(3):
                asyncio.create_task(claim.write("k", b"", b"%d" % n))  # noqa: RUF006 - the journal refers to it
            await asyncio.sleep(0)
            asyncio.get_running_loop().call_soon(cancel_after, steps)

    def cancel_after(steps: int) -> None:
        if steps == 0:
            task.cancel()
        else:
            asyncio.get_running_loop().call_soon(cancel_after, steps - 1)

    task = asyncio.create_task(work())
    await asyncio.wait({task})
    async with Journal(path) as journal:
        assert await journal.states() == {"acme": b"2"}
        async with await journal.claim("acme"):
            pass


class Slow(sqlite3.Connection):
    """A connection that commits only while `may_commit` is set."""

    may_commit = threading.Event()

    def execute(self, sql: str, parameters: object = ()) -> sqlite3.Cursor:
        if sql == "COMMIT" and parameters == ():
            self.may_commit.wait()
        return super().execute(sql, parameters)


async def test_closing_while_cancelled_waits_for_the_current_transaction(path):
    def connect(uri: str) -> sqlite3.Connection:
        return sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False, factory=Slow)

    async def work() -> None:
        async with Journal(path, connect=connect) as journal:
            claim = await journal.claim("acme")
            Slow.may_commit.clear()
            timer.start()  # not earlier: on a busy machine, it could expire before `clear`
            tasks.append(asyncio.create_task(claim.write("k", b"", b"under way")))
            await asyncio.sleep(0.01)
            tasks.append(asyncio.create_task(claim.write("k", b"", b"in line")))
            await asyncio.sleep(0)
            asyncio.get_running_loop().call_soon(tasks[0].cancel)

    Slow.may_commit.set()
    timer = threading.Timer(0.1, Slow.may_commit.set)
    tasks: list[asyncio.Task[None]] = []
    tasks.append(asyncio.create_task(work()))
    await asyncio.wait(tasks)
    timer.join()
    assert tasks[0].cancelled()
    await asyncio.gather(*tasks[1:])
    async with Journal(path) as journal:
        assert [event.kind for event in await journal.events()] == ["k", "k"]
        assert await journal.states() == {"acme": b"in line"}


async def test_a_read_only_journal_creates_no_file_and_refuses_claims(path):
    with pytest.raises(JournalError, match="no such file"):
        async with Journal(path, read_only=True):
            pass
    assert list(path.parent.iterdir()) == []
    async with Journal(path) as journal, await journal.claim("acme") as claim:
        await claim.write("k", b"d", b"s")
        async with Journal(path, read_only=True) as reader:
            assert await reader.states() == {"acme": b"s"}
            assert [event.detail for event in await reader.events()] == [b"d"]
            with pytest.raises(JournalError, match="reading only"):
                await reader.claim("beta")
    before = path.read_bytes()
    async with Journal(path, read_only=True):
        assert [entry.name for entry in path.parent.iterdir()] == ["fleet.db"]
    async with Journal(path, read_only=True) as reader:
        assert await reader.states() == {"acme": b"s"}
    assert [entry.name for entry in path.parent.iterdir()] == ["fleet.db"]
    assert path.read_bytes() == before


async def test_the_copy_of_a_memory_journal_has_no_claims():
    journal = MemoryJournal()
    claim = await journal.claim("acme")
    await claim.write("k", b"", b"s")
    successor = journal.copy_without_claims()
    async with await successor.claim("acme") as again:
        assert (again.state, again.token) == (b"s", claim.token + 1)
        await again.write("k", b"", b"t")
    assert await journal.states() == {"acme": b"s"}


@pytest.mark.parametrize("lease", [0.0, -1.0, float("nan"), float("inf")])
def test_a_lease_that_is_not_a_positive_number_is_refused(path, lease):
    with pytest.raises(InvalidInput, match="lease"):
        Journal(path, lease=lease)


def test_an_event_is_frozen():
    event = JournalEvent(1, "acme", "2026-01-01T00:00:00.000Z", "k", b"")
    with pytest.raises(dataclasses.FrozenInstanceError):
        event.seq = 2  # type: ignore[misc]


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "key=value"])
async def test_open_journal_opens_a_file_or_a_database(scheme: str, path: Path, database_url: str):
    parts = urlsplit(database_url)
    address = {
        "postgresql": database_url,
        "postgres": database_url.replace("postgresql:", "postgres:"),
        "key=value": f"host={parts.hostname} port={parts.port} user={parts.username} dbname={parts.path[1:]}",
    }[scheme]
    customer = uuid4().hex
    for place in (path, str(path), address):
        async with open_journal(place, holder="worker") as journal, await journal.claim(customer) as claim:
            await claim.write("create", b"1", b"one")
        async with open_journal(place) as journal:
            assert (await journal.states())[customer] == b"one"
    assert path.exists()


async def test_a_journal_in_a_database_is_read_like_one_in_a_file(
    path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("WORKERS_JOURNAL", database_url)
    monkeypatch.setenv("NO_ADDRESS", "/tmp")
    customer, other = uuid4().hex, uuid4().hex
    for place in (path, "WORKERS_JOURNAL"):
        async with open_journal(place, holder="worker") as journal, await journal.claim(customer) as claim:
            await claim.write("create", b"1", b"one")
            async with open_journal(place, read_only=True) as reader:
                with pytest.raises(JournalError, match="reading only"):
                    await reader.claim(other)
                assert (await reader.states())[customer] == b"one"
                (event,) = await reader.events(customer)
                held = (await reader.activity())[customer]
                assert held.at == event.at
                assert held.holder is not None
                assert held.holder.startswith("worker (process ")
                await claim.release()
                assert (await reader.activity())[customer] == Activity(event.at, None)
    assert JournalPlace("NO_ADDRESS").path == Path("NO_ADDRESS")


def test_the_error_without_the_extra_for_postgresql_names_the_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    monkeypatch.delitem(sys.modules, "asyncmig.journal.postgres")
    with pytest.raises(InvalidInput, match=r"asyncmig\[postgres\]") as caught:
        open_journal("postgresql://me:hush@host/db")
    assert "hush" not in str(caught.value)


async def test_reading_a_database_without_a_journal_creates_none(database_url: str, prefix: str):
    reader = PostgresJournal(database_url, schema=prefix, read_only=True)
    with pytest.raises(JournalError, match="there is no journal"):
        await reader.__aenter__()
    with psycopg.connect(database_url) as db:
        assert db.execute("SELECT 1 FROM pg_namespace WHERE nspname = %s", (prefix,)).fetchone() is None


def test_the_names_of_files_beside_a_journal_do_not_contain_its_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    place = JournalPlace("postgresql://me:hush@db.example:5433/migrations")
    beside = place.beside("last")
    assert beside.parent == tmp_path / "asyncmig"
    assert "hush" not in f"{beside}{place!r}"
    assert beside == JournalPlace("postgresql://db.example:5433/migrations").beside("last")
    assert beside != JournalPlace("postgresql://db.example:5433/other").beside("last")
    assert JournalPlace("a/fleet.db").beside("last") == Path("a/fleet.db.last")
    assert place.shows_password
    monkeypatch.setenv("WORKERS_JOURNAL", place.text)
    assert not JournalPlace("WORKERS_JOURNAL").shows_password
    assert JournalPlace("WORKERS_JOURNAL").beside("last") == beside


def test_programs_and_commands_use_the_same_send_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setenv("WORKERS_JOURNAL", "postgresql://me:hush@db.example:5433/migrations")
    for place in (
        "WORKERS_JOURNAL",
        "postgresql://me:hush@db.example:5433/migrations",
        "host=db.example password=hush",
        str(tmp_path / "fleet.db"),
    ):
        send_log = open_journal(place).send_log
        assert send_log == JournalPlace(place).beside("recent")
        assert "hush" not in str(send_log)


@pytest.mark.skipif(sys.platform == "win32", reason="needs the user database of POSIX")
def test_the_error_without_a_home_directory_names_the_variable_to_set(monkeypatch: pytest.MonkeyPatch):
    import pwd

    def no_entry(uid: int) -> object:
        raise KeyError(uid)

    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", no_entry)
    journal = open_journal("host=db.example")
    with pytest.raises(InvalidInput, match=r"XDG_STATE_HOME.*no home directory"):
        _ = journal.send_log


def test_journals_in_two_schemas_have_two_send_logs():
    assert PostgresJournal("host=a").send_log != PostgresJournal("host=a", schema="other").send_log


@pytest.mark.parametrize(
    "place",
    [
        "redis://host/0",
        "mysql://user:hush@host/db",
        "https://host",
        "mongodb+srv://user:hush@host/db",
        "sqlite:///fleet.db",
        Path("jdbc:postgresql://user:hush@host/db"),
    ],
)
def test_the_address_of_another_kind_of_server_is_refused(place: str | Path):
    with pytest.raises(InvalidInput, match="address of a server") as caught:
        open_journal(place)
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://u:hush@host/db",
        "jdbc:postgresql://u:hush@host/db",
        '"postgres://u:hush@host/db"',
    ],
)
def test_a_url_of_postgresql_with_a_driver_or_quotes_is_refused(url: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DATABASE_URL", url)
    for text, name in ((url, "journal"), ("DATABASE_URL", "DATABASE_URL")):
        with pytest.raises(InvalidInput, match="must be the address of a PostgreSQL") as caught:
            open_journal(text)
        assert caught.value.field == name
        assert "hush" not in str(caught.value)


def test_a_path_may_contain_a_windows_drive_or_a_colon():
    assert [JournalPlace(text).server for text in ("C:/fleet.db", "12:30.db", "a:b")] == [None] * 3
