"""The journal in a real PostgreSQL: several processes, restarts, lost answers.

test_journal has the tests that apply to all journals.
"""

import asyncio
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import aclosing, contextmanager

import psycopg
import pytest
from cutproxy import CutProxy
from psycopg.sql import SQL, Identifier
from servers import PostgresServer

from asyncmig.distributed.postgres import PostgresJournal
from asyncmig.errors import CustomerHeld, InvalidInput, JournalError, JournalUnavailable
from asyncmig.journal import Claim, Instruction

posix = pytest.mark.skipif(sys.platform != "linux", reason="needs POSIX signals, and /proc")


@contextmanager
def process(code: str, *args: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", code, *args]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        try:
            yield child
        finally:
            child.kill()


async def claim_when_free(journal: PostgresJournal, external_id: str) -> Claim:
    while True:
        try:
            return await journal.claim(external_id)
        except CustomerHeld:
            await asyncio.sleep(0.05)


async def test_the_error_for_a_claimed_customer_names_the_holder(database_url, prefix):
    async with (
        PostgresJournal(database_url, schema=prefix, holder="worker one") as one,
        PostgresJournal(database_url, schema=prefix) as two,
    ):
        async with await one.claim("acme") as claim:
            await claim.write("k", b"d", b"s")
            with pytest.raises(CustomerHeld, match=r"held by worker one \(process \d+ on ") as caught:
                await two.claim("acme")
            assert isinstance(pickle.loads(pickle.dumps(caught.value)), CustomerHeld)
        async with await two.claim("acme") as again:
            assert again.state == b"s"


async def test_a_journal_can_be_opened_after_a_failed_attempt(database_url, prefix, monkeypatch):
    journal = PostgresJournal(database_url, schema=prefix)

    def refuse(*args, **options):
        raise psycopg.OperationalError("away")

    async with PostgresJournal(database_url, schema=prefix):
        pass
    for _ in range(20):
        with monkeypatch.context() as patch:
            patch.setattr(psycopg, "connect", refuse)
            with pytest.raises(JournalError, match="away"):
                await journal.__aenter__()
        async with journal, await journal.claim("acme") as claim:
            await claim.write("k", b"d", b"s")


async def test_a_journal_of_another_version_is_refused_and_disconnected(database_url, prefix):
    async with PostgresJournal(database_url, schema=prefix):
        pass
    with psycopg.connect(database_url, autocommit=True) as db:
        db.execute(SQL("UPDATE {}.journal SET version = 99").format(Identifier(prefix)))
        named = f"{database_url}{'&' if '?' in database_url else '?'}application_name={prefix}"
        connected = "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s"
        journals = [PostgresJournal(named, schema=prefix) for _ in range(3)]
        for journal in journals:
            with pytest.raises(JournalError, match="version 99"):
                await journal.__aenter__()
        for _ in range(100):
            if (left := db.execute(connected, (prefix,)).fetchone()) == (0,):
                break
            await asyncio.sleep(0.05)
        assert left == (0,)


async def test_closing_a_journal_releases_its_claims(database_url, prefix):
    one = PostgresJournal(database_url, schema=prefix)
    async with one:
        claim = await one.claim("acme")
    with pytest.raises(JournalError, match="not open"):
        await claim.write("k", b"", b"t")
    async with one, await one.claim("acme"):
        with pytest.raises(JournalError, match="open already"):
            await one.__aenter__()


HOLD = """
import asyncio, sys
from asyncmig.distributed.postgres import PostgresJournal
async def main():
    async with PostgresJournal(sys.argv[1], schema=sys.argv[2], holder="the other") as journal:
        async with await journal.claim("acme"):
            print("ready", flush=True)
            sys.stdin.readline()
asyncio.run(main())
"""


@posix
async def test_the_claim_of_a_dead_process_on_this_machine_can_be_taken_at_once(database_url, prefix):
    with process(HOLD, database_url, prefix) as child:
        child.stdout.readline()
        async with PostgresJournal(database_url, schema=prefix) as journal:
            with pytest.raises(CustomerHeld, match=rf"held by the other \(process {child.pid} on "):
                await journal.claim("acme")
            child.kill()
            child.wait()
            async with await journal.claim("acme"):
                pass


PAUSED = """
import asyncio, signal, sys, threading
from asyncmig.errors import CustomerHeld
from asyncmig.distributed.postgres import PostgresJournal
async def main():
    async with PostgresJournal(sys.argv[1], schema=sys.argv[2], lease=0.5) as journal:
        acme = await journal.claim("acme")
        await acme.write("k", b"first", b"first")
        stop = lambda: signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
        journal._writer._executor.submit(stop).result()
        try:
            await acme.write("k", b"stale", b"stale")
        except CustomerHeld as error:
            print(error.holder.split(" (")[0])
asyncio.run(main())
"""


@posix
async def test_a_process_that_was_paused_past_its_lease_cannot_write(database_url, prefix):
    with process(PAUSED, database_url, prefix) as child:
        await asyncio.to_thread(os.waitid, os.P_PID, child.pid, os.WSTOPPED)
        async with PostgresJournal(database_url, schema=prefix, holder="the successor") as journal:
            async with await claim_when_free(journal, "acme") as claim:
                await claim.write("k", b"second", b"second")
                child.send_signal(signal.SIGCONT)
                assert (await asyncio.to_thread(child.communicate))[0] == "the successor\n"
                await claim.write("k", b"third", b"third")
            assert [event.detail for event in await journal.events()] == [b"first", b"second", b"third"]


async def test_a_lease_is_measured_on_the_clock_of_the_server(database_url, prefix, monkeypatch):
    """A client with a wrong clock keeps its claim, and takes no claim of another client."""
    monkeypatch.setattr("asyncmig.journal.lease._uptime", lambda: 1e9)
    async with (
        PostgresJournal(database_url, schema=prefix, lease=5.0) as one,
        PostgresJournal(database_url, schema=prefix, lease=5.0) as two,
        await one.claim("acme"),
    ):
        with psycopg.connect(database_url, autocommit=True) as db:
            db.execute(f"UPDATE {prefix}.holders SET boot = 'of another machine'")
            with pytest.raises(CustomerHeld):
                await two.claim("acme")
            db.execute(f"UPDATE {prefix}.holders SET renewed = renewed - interval '6 s'")
        async with await two.claim("acme"):
            pass


async def count(journal: PostgresJournal, name: str, to: int) -> None:
    async with await journal.claim(name) as claim:
        for number in range(1, to + 1):
            await claim.write("count", b"%d" % number, b"%d" % number)
            await asyncio.sleep(0.005)


@pytest.fixture(scope="module")
def own_server() -> Iterator[PostgresServer]:
    """A server that tests stop and start."""
    server = PostgresServer()
    server.start()
    yield server
    server.remove()


async def test_a_journal_of_an_earlier_version_is_upgraded_when_it_is_opened_for_writing(
    database_url, prefix
):
    async with PostgresJournal(database_url, schema=prefix) as journal, await journal.claim("acme") as claim:
        await claim.write("k", b"", b"s")
    with psycopg.connect(database_url, autocommit=True) as db:
        statement = SQL("ALTER TABLE {}.companies DROP COLUMN wanted, DROP COLUMN instruction")
        db.execute(statement.format(Identifier(prefix)))
    async with PostgresJournal(database_url, schema=prefix, read_only=True) as reader:
        assert await reader.instructions() == {}
        assert await reader.instruction("acme") is None
    async with PostgresJournal(database_url, schema=prefix) as journal:
        await journal.instruct("acme", Instruction("cancel", b"x"))
        assert await journal.instructions("cancel") == {"acme": Instruction("cancel", b"x")}
        assert await journal.states() == {"acme": b"s"}


async def test_writes_wait_for_a_restarting_database_and_no_event_is_lost_or_repeated(own_server, prefix):
    async with PostgresJournal(own_server.url, schema=prefix) as journal:
        work = asyncio.gather(*(count(journal, f"c{n}", 40) for n in range(10)))
        for _ in range(2):
            await asyncio.sleep(0.15)
            await asyncio.to_thread(own_server.stop)
            await asyncio.sleep(0.1)
            await asyncio.to_thread(own_server.start)
        await work
        for name in await journal.states():
            assert [int(event.detail) for event in await journal.events(name)] == list(range(1, 41))
        assert [event.seq for event in await journal.events()] == list(range(1, 401))


async def test_a_write_with_an_unanswered_commit_is_not_written_twice(database_url, prefix):
    async with CutProxy(database_url) as proxy, PostgresJournal(proxy.url, schema=prefix) as journal:
        proxy.drop_reply_to = b"COMMIT"
        claim = await journal.claim("acme")
        assert claim.token == 1
        proxy.drop_reply_to = b"COMMIT"
        await claim.write("k", b"once", b"once")
        assert proxy.drop_reply_to == b""
        assert [event.detail for event in await journal.events()] == [b"once"]
        await claim.release()


async def test_a_call_fails_when_the_database_stays_unreachable(own_server, prefix):
    async with PostgresJournal(own_server.url, schema=prefix, patience=0.3) as journal:
        claim = await journal.claim("acme")
        await asyncio.to_thread(own_server.stop)
        with pytest.raises(JournalError, match=r"postgresql://127\.0\.0\.1/postgres#test_"):
            await claim.write("k", b"", b"")
        with pytest.raises(JournalError):
            await journal.states()
        await asyncio.to_thread(own_server.start)
        await claim.write("k", b"", b"back")
        assert await journal.states() == {"acme": b"back"}


def make_read_only(server: PostgresServer, *, on: bool) -> None:
    with psycopg.connect(server.url, autocommit=True) as db:
        db.execute("SET default_transaction_read_only = off")
        db.execute(f"ALTER SYSTEM SET default_transaction_read_only = {'on' if on else 'off'}")
        db.execute("SELECT pg_reload_conf()")


async def write_until_refused(claim: Claim) -> None:
    """Write until a write fails: a session of the server applies the setting only when the signal arrives."""
    while True:
        await claim.write("k", b"", b"before")


async def has_ended_within(seconds: float, task: "asyncio.Future[None]") -> bool:
    return bool((await asyncio.wait([task], timeout=seconds))[0])


async def test_a_write_waits_until_a_read_only_server_accepts_writes_again(own_server, prefix):
    url = own_server.url
    any_host = f"{url}?target_session_attrs=any"
    async with (
        PostgresJournal(url, schema=prefix) as journal,
        PostgresJournal(any_host, schema=prefix, patience=0.3) as impatient,
    ):
        claim, other = await journal.claim("acme"), await impatient.claim("bolt")
        await asyncio.to_thread(make_read_only, own_server, on=True)
        with pytest.raises(JournalUnavailable, match="read-only"):
            await write_until_refused(other)
        writing = asyncio.ensure_future(claim.write("k", b"", b"written"))
        while await has_ended_within(0.2, writing):
            writing = asyncio.ensure_future(claim.write("k", b"", b"written"))
        await asyncio.to_thread(make_read_only, own_server, on=False)
        await writing
        assert (await journal.states())["acme"] == b"written"
        await other.write("k", b"", b"written, too")
        assert await journal.states() == {"acme": b"written", "bolt": b"written, too"}


async def test_changes_yields_committed_events_in_order_across_a_broken_connection(database_url, prefix):
    async with (
        CutProxy(database_url) as proxy,
        PostgresJournal(proxy.url, schema=prefix) as reader,
        PostgresJournal(database_url, schema=prefix) as writer,
        await writer.claim("acme") as claim,
        aclosing(reader.changes(after=0)) as changes,
    ):
        await claim.write("k", b"1", b"")
        assert (await anext(changes)).detail == b"1"
        waiting = asyncio.create_task(anext(changes))
        await asyncio.sleep(0.05)
        await claim.write("k", b"2", b"")
        assert (await waiting).detail == b"2"
        proxy.close_connections()
        await claim.write("k", b"3", b"")
        await claim.write("k", b"4", b"")
        assert [(await anext(changes)).seq for _ in range(2)] == [3, 4]


async def test_changes_without_a_start_yields_only_later_events(database_url, prefix):
    async with PostgresJournal(database_url, schema=prefix) as journal, await journal.claim("acme") as claim:
        await claim.write("k", b"old", b"")
        async with aclosing(journal.changes()) as changes:
            waiting = asyncio.create_task(anext(changes))
            await asyncio.sleep(0.2)
            await claim.write("k", b"new", b"")
            assert (await waiting).detail == b"new"


async def test_a_process_that_stops_inside_a_transaction_does_not_block_the_others(database_url, prefix):
    async with PostgresJournal(database_url, schema=prefix) as journal:
        stopped = psycopg.connect(database_url, options="-c idle_in_transaction_session_timeout=300")
        stopped.execute(f"SELECT last FROM {prefix}.journal FOR UPDATE")
        async with await journal.claim("acme"):
            pass
        stopped.close()
        with psycopg.connect(**journal._schema.options()) as db:
            assert db.execute("SHOW idle_in_transaction_session_timeout").fetchone() == ("1s",)


async def test_events_cannot_be_changed_and_a_newer_version_is_refused(database_url, prefix):
    async with PostgresJournal(database_url, schema=prefix) as journal, await journal.claim("acme") as claim:
        await claim.write("k", b"", b"")
    with psycopg.connect(database_url, autocommit=True) as db:
        for change in ("DELETE FROM", "UPDATE"):
            with pytest.raises(psycopg.errors.RaiseException, match="only added"):
                db.execute(f"{change} {prefix}.events" + (" SET kind = ''" if change == "UPDATE" else ""))
        db.execute(f"UPDATE {prefix}.journal SET version = 99")
    with pytest.raises(JournalError, match="version 99"):
        async with PostgresJournal(database_url, schema=prefix):
            pass


@pytest.mark.parametrize(
    ("conninfo", "options", "match"),
    [
        ("postgresql://u:secret@host/db?nonsense=1", {}, "conninfo"),
        ("postgresql://u:secret@host/db", {"schema": "a;b"}, "schema"),
        ("postgresql://u:secret@host/db", {"lease": 0.0}, "lease"),
    ],
)
def test_invalid_arguments_are_refused_without_showing_the_password(conninfo, options, match):
    with pytest.raises(InvalidInput, match=match) as caught:
        PostgresJournal(conninfo, **options)
    assert "secret" not in str(caught.value)
    assert "secret" not in repr(PostgresJournal("postgresql://u:secret@host/db"))


async def test_the_error_of_an_unreachable_server_shows_no_password(prefix):
    with pytest.raises(JournalError) as caught:
        async with PostgresJournal("postgresql://u:secret@127.0.0.1:1/db", schema=prefix):
            pass
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "schema",
    ["MixedCase", "order", "with blank", 'a"quote', "back\\slash", "bür.o-1", "1st", "x" * 63, "ü" * 31],
)
async def test_a_schema_may_have_any_name_that_postgresql_accepts(database_url, schema):
    with psycopg.connect(database_url, autocommit=True) as db:
        db.execute(SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(Identifier(schema)))
    for turn in (b"1", b"2"):
        async with (
            PostgresJournal(database_url, schema=schema) as journal,
            await journal.claim("acme") as claim,
            aclosing(journal.changes()) as changes,
        ):
            waiting = asyncio.create_task(anext(changes))
            await asyncio.sleep(0.2)
            await claim.write("k", turn, turn)
            assert (await waiting).detail == turn
    with psycopg.connect(database_url, autocommit=True) as db:
        query = SQL("SELECT state FROM {}").format(Identifier(schema, "companies"))
        assert db.execute(query).fetchall() == [(b"2",)]
        assert [event.seq for event in await journal.events()] == [1, 2]
        db.execute(SQL("DROP SCHEMA {} CASCADE").format(Identifier(schema)))


async def test_no_second_journal_is_created_if_one_exists_under_the_lower_case_name(database_url, prefix):
    async with (
        PostgresJournal(database_url, schema=prefix),
        PostgresJournal(database_url, schema="Fleet") as two,
    ):
        assert await two.states() == {}
    with pytest.raises(JournalError, match=f"journal in the schema '{prefix}'"):
        async with PostgresJournal(database_url, schema=prefix.upper()):
            pass


@pytest.mark.parametrize("schema", ["", " ", "a;b", "a\0b", "a\nb", "x" * 64, "ü" * 32, "pg_mine", "$user"])
def test_a_schema_name_that_postgresql_does_not_accept_is_refused(schema):
    with pytest.raises(InvalidInput, match="schema"):
        PostgresJournal("postgresql://host/db", schema=schema)


async def test_options_in_the_address_are_applied(database_url, prefix):
    url = f"{database_url}?options=-c%20application_name%3Dmine"
    async with PostgresJournal(url, schema=prefix):
        with psycopg.connect(database_url) as db:
            query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'mine'"
            assert db.execute(query).fetchone() == (1,)


async def test_changes_of_a_dropped_journal_raises_an_error(database_url, prefix):
    async with PostgresJournal(database_url, schema=prefix) as journal:
        with psycopg.connect(database_url, autocommit=True) as db:
            db.execute(f"DROP SCHEMA {prefix} CASCADE")
        with pytest.raises(JournalError, match="does not exist"):
            await anext(journal.changes())
