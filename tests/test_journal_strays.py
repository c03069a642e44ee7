"""Companies that the database assigns to a journal although none of its tasks holds them.

The journal itself can claim such a company at once. Other journals can claim it after the next heartbeat.
"""

import asyncio
import os
import sqlite3
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
from servers import PostgresServer

from asyncmig.distributed.postgres import PostgresJournal
from asyncmig.errors import CustomerHeld, JournalError, UsageError
from asyncmig.journal import Claim, Journal

AnyJournal = Journal | PostgresJournal
SHORT_LEASE = 0.03
"""A lease in seconds. Its heartbeats are a hundredth of a second apart."""


class Place:
    """The file or database of a journal. Tests open journals there, and change the data directly."""

    def __init__(self, kind: str, where: str, schema: str) -> None:
        self._kind, self._where, self._schema = kind, where, schema

    def open(self, *, lease: float = 30.0) -> AnyJournal:
        if self._kind == "sqlite":
            return Journal(self._where, lease=lease, connect=connect_with_short_timeout)
        return PostgresJournal(self._where, schema=self._schema, lease=lease, patience=0.05)

    def run(self, sql: str) -> list[tuple[object, ...]]:
        if self._kind == "sqlite":
            with closing(sqlite3.connect(self._where, isolation_level=None, timeout=10)) as db:
                return db.execute(sql).fetchall()
        with psycopg.connect(self._where, autocommit=True, options=f"-c search_path={self._schema}") as db:
            cursor = db.execute(sql)
            return cursor.fetchall() if cursor.description else []


def connect_with_short_timeout(uri: str) -> sqlite3.Connection:
    """Connect with a lock time-out that is longer than a transaction on a busy machine, but shorter than 10 s."""
    return sqlite3.connect(uri, uri=True, timeout=0.5, isolation_level=None, check_same_thread=False)


@pytest.fixture(params=["sqlite", "postgres"])
def place(request: pytest.FixtureRequest, tmp_path: Path, prefix: str) -> Place:
    if request.param == "sqlite":
        return Place("sqlite", str(tmp_path / "fleet.db"), "")
    return Place("postgres", request.getfixturevalue("database_url"), prefix)


async def claim_when_free(journal: AnyJournal, external_id: str) -> Claim:
    async with asyncio.timeout(60):
        while True:
            try:
                return await journal.claim(external_id)
            except CustomerHeld:
                await asyncio.sleep(0.01)


async def release_and_undo(place: Place, journal: AnyJournal) -> None:
    """Release a company, and undo the release in the database."""
    async with await journal.claim("acme") as claim:
        await claim.write("k", b"", b"one")
        ((holder,),) = place.run("SELECT holder FROM companies")
    place.run(f"UPDATE companies SET holder = '{holder}'")


async def test_a_company_whose_release_was_undone_is_free_for_its_own_journal(place: Place) -> None:
    async with place.open() as journal:
        await release_and_undo(place, journal)
        async with await journal.claim("acme") as again:
            assert (again.state, again.token) == (b"one", 2)
            with pytest.raises(CustomerHeld, match="another task of this journal"):
                await journal.claim("acme")
            await again.write("k", b"", b"two")
        assert await journal.states() == {"acme": b"two"}


async def test_a_heartbeat_repeats_a_release_that_was_undone(place: Place) -> None:
    async with place.open(lease=SHORT_LEASE) as journal, place.open() as other:
        await release_and_undo(place, journal)
        async with await claim_when_free(other, "acme") as claim:
            await claim.write("k", b"", b"other")


async def test_a_claim_that_the_database_lost_cannot_write(place: Place) -> None:
    async with place.open() as journal, place.open() as other:
        claim = await journal.claim("acme")
        place.run("UPDATE companies SET holder = NULL, token = 0")
        with pytest.raises(CustomerHeld, match="another task of this journal"):  # not detected yet
            await journal.claim("acme")
        async with await other.claim("acme") as taken:
            assert taken.token == claim.token
            with pytest.raises(CustomerHeld):
                await claim.write("k", b"", b"stale")
            await claim.release()
            await taken.write("k", b"", b"right")
        async with await journal.claim("acme") as again:
            assert again.state == b"right"


async def test_a_claim_cannot_write_to_another_company_that_got_its_row(place: Place) -> None:
    async with place.open() as journal:
        claim = await journal.claim("acme")
        place.run("UPDATE companies SET external_id = 'beta'")
        with pytest.raises(CustomerHeld):
            await claim.write("k", b"", b"of acme")
        async with await journal.claim("beta") as beta:
            assert beta.state is None


async def test_what_is_claimed_beside_a_customer_that_is_held_stays_held(place: Place) -> None:
    async with place.open() as other, place.open() as journal, await other.claim("held"):
        acme, refused, beta = await asyncio.gather(
            *(journal.claim(name) for name in ("acme", "held", "beta")), return_exceptions=True
        )
        assert isinstance(refused, CustomerHeld)
        for claim in (acme, beta):
            assert isinstance(claim, Claim)
            with pytest.raises(CustomerHeld):
                await other.claim(claim.external_id)


async def test_a_customer_that_is_taken_over_beside_one_that_is_held_is_logged_once(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    async with place.open() as other, place.open() as journal, await other.claim("held"):
        await (await other.claim("acme")).release()
        place.run("UPDATE companies SET holder = 'a lost one' WHERE external_id = 'acme'")
        await asyncio.gather(*(journal.claim(name) for name in ("acme", "held")), return_exceptions=True)
    assert caplog.text.count("acme is taken over from an unknown holder") == 1


async def test_heartbeats_do_not_release_companies_that_tasks_claim_meanwhile(place: Place) -> None:
    async def work(number: int) -> None:
        for turn in range(15):
            async with await journal.claim(f"c{number}") as claim:
                await claim.write("k", b"", b"%d" % turn)
                await asyncio.sleep(0.005)
                await claim.write("k", b"", b"%d" % turn)

    async with place.open(lease=0.003) as journal:
        await asyncio.gather(*(work(number) for number in range(10)))
        assert await journal.states() == {f"c{number}": b"14" for number in range(10)}
        assert place.run("SELECT count(*) FROM companies WHERE holder IS NOT NULL") == [(0,)]


async def test_a_company_that_could_not_be_released_in_a_locked_file_is_free_later(tmp_path: Path) -> None:
    path = tmp_path / "fleet.db"
    place = Place("sqlite", str(path), "")
    async with place.open(lease=SHORT_LEASE) as journal, Journal(path) as other:
        claim, cancelled = await journal.claim("acme"), await journal.claim("beta")
        with closing(sqlite3.connect(path, isolation_level=None)) as lock:
            lock.execute("BEGIN IMMEDIATE")
            release = asyncio.create_task(cancelled.release())
            await asyncio.sleep(0)
            release.cancel()
            with pytest.raises(JournalError, match="kept it locked"):
                await claim.release()
        async with await journal.claim("acme"), await claim_when_free(other, "beta"):
            pass
        async with await claim_when_free(other, "acme"):
            pass


async def test_a_company_is_free_after_the_commit_of_its_claim_raised_an_error(tmp_path: Path) -> None:
    class FailingAfterCommit(sqlite3.Connection):
        def execute(self, sql: str, parameters: object = ()) -> sqlite3.Cursor:
            cursor = super().execute(sql, parameters)
            if sql == "COMMIT" and failing:
                failing.clear()
                error = sqlite3.OperationalError("disk I/O error")
                error.sqlite_errorcode = sqlite3.SQLITE_IOERR
                raise error
            return cursor

    def connect(uri: str) -> sqlite3.Connection:
        return sqlite3.connect(
            uri, uri=True, isolation_level=None, check_same_thread=False, factory=FailingAfterCommit
        )

    failing: list[bool] = []
    path = tmp_path / "fleet.db"
    async with Journal(path, connect=connect) as journal:
        failing.append(True)
        with pytest.raises(JournalError, match="disk"):
            await journal.claim("acme")
        async with await journal.claim("acme") as claim:
            assert claim.token == 2


@pytest.fixture(scope="module")
def own_server() -> Iterator[PostgresServer]:
    server = PostgresServer()
    server.start()
    yield server
    server.remove()


async def test_a_company_that_could_not_be_released_in_a_stopped_database_is_free_later(
    own_server: PostgresServer, prefix: str
) -> None:
    place = Place("postgres", own_server.url, prefix)
    async with place.open(lease=3.0) as journal:
        claim = await journal.claim("acme")
        await asyncio.to_thread(own_server.stop)
        with pytest.raises(JournalError):
            await claim.release()
        await asyncio.to_thread(own_server.start)
        async with place.open() as other, await claim_when_free(other, "acme"):
            with pytest.raises(CustomerHeld, match="held by process"):
                await journal.claim("acme")


def test_leases_end_after_their_event_loop_was_closed(place: Place) -> None:
    async def leak(journal: AnyJournal) -> None:
        await journal.__aenter__()
        await (await journal.claim("acme")).write("k", b"", b"left")

    async def take(journal: AnyJournal) -> bytes | None:
        async with journal, await claim_when_free(journal, "acme") as claim:
            return claim.state

    leaking = place.open(lease=SHORT_LEASE)
    asyncio.run(leak(leaking))
    assert asyncio.run(take(place.open())) == b"left"
    assert asyncio.run(take(leaking)) == b"left"  # the same journal can be opened again


def test_a_journal_opens_again_while_its_lease_thread_closes_it(tmp_path: Path) -> None:
    closes, proceed = threading.Event(), threading.Event()
    proceed.set()

    class SlowToClose(sqlite3.Connection):
        def close(self) -> None:
            closes.set()
            assert proceed.wait(60)
            super().close()

    def connect(uri: str) -> sqlite3.Connection:
        return sqlite3.connect(
            uri, uri=True, isolation_level=None, check_same_thread=False, factory=SlowToClose
        )

    async def leak() -> None:
        await journal.__aenter__()
        proceed.clear()
        closes.clear()

    async def reopen() -> None:
        async with journal, await claim_when_free(journal, "acme"):
            pass

    journal = Journal(tmp_path / "fleet.db", lease=SHORT_LEASE, connect=connect)
    asyncio.run(leak())
    assert closes.wait(60)
    threading.Timer(0.05, proceed.set).start()
    asyncio.run(reopen())


def test_a_journal_is_refused_on_another_loop_than_the_one_that_opened_it(place: Place) -> None:
    journal, first, second = place.open(), asyncio.new_event_loop(), asyncio.new_event_loop()
    first.run_until_complete(journal.__aenter__())
    with pytest.raises(UsageError, match="another event loop"):
        second.run_until_complete(journal.claim("acme"))
    first.run_until_complete(journal.__aexit__(None, None, None))
    second.run_until_complete(journal.__aenter__())
    second.run_until_complete(second.run_until_complete(journal.claim("acme")).release())
    second.run_until_complete(journal.__aexit__(None, None, None))
    for loop in (first, second):
        loop.close()


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
async def test_a_forked_process_cannot_use_the_journal_of_its_parent(place: Place) -> None:
    async with place.open() as journal, await journal.claim("acme") as claim:
        with warnings.catch_warnings(action="ignore"):  # Python 3.12 warns about threads
            pid = os.fork()
        if pid == 0:
            refused = 1
            try:
                journal.claim("beta").send(None)
            except UsageError:
                refused = 0
            finally:
                os._exit(refused)
        _, status = await asyncio.to_thread(os.waitpid, pid, 0)
        assert status == 0
        await claim.write("k", b"", b"still mine")
