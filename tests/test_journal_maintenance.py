"""Backups of a journal in use, deletion of customers, and compaction of the file."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from asyncmig.distributed.postgres import PostgresJournal
from asyncmig.errors import CustomerHeld, InvalidInput, JournalError, JournalNotFound
from asyncmig.journal import Journal
from asyncmig.journal.database import DatabaseJournal
from asyncmig.journal.sqlite_file import connect as open_file


@pytest.fixture(params=["sqlite", "postgres"])
async def journal(
    request: pytest.FixtureRequest, tmp_path: Path, prefix: str
) -> AsyncIterator[DatabaseJournal]:
    opened: DatabaseJournal = Journal(tmp_path / "fleet.db")
    if request.param == "postgres":
        opened = PostgresJournal(request.getfixturevalue("database_url"), schema=prefix)
    async with opened as journal:
        yield journal


async def write(journal: DatabaseJournal, name: str, count: int = 1, size: int = 1) -> None:
    async with await journal.claim(name) as claim:
        for number in range(count):
            await claim.write("step", b"x" * size, str(number).encode())


async def test_a_forgotten_customer_is_deleted_and_can_start_again(journal: DatabaseJournal) -> None:
    await write(journal, "acme", 2)
    await write(journal, "bolt", 2)
    numbers = [event.seq for event in await journal.events()]
    await journal.forget("bolt")
    assert list(await journal.states()) == ["acme"]
    assert {event.external_id for event in await journal.events()} == {"acme"}
    assert list(await journal.activity()) == ["acme"]
    await write(journal, "bolt")
    (event,) = await journal.events("bolt")
    assert event.seq > max(numbers)  # a reader that follows the journal reads it
    assert await journal.events(after=max(numbers)) == [event]
    async with await journal.claim("bolt") as claim:
        assert claim.state == b"0"


async def test_a_held_customer_can_be_forgotten_only_with_its_claim(journal: DatabaseJournal) -> None:
    await write(journal, "acme")
    async with await journal.claim("acme") as claim:
        with pytest.raises(CustomerHeld):
            await journal.forget("acme")
        await claim.write("step", b"", b"later")
    assert (await journal.states())["acme"] == b"later"
    async with await journal.claim("acme") as claim:
        await claim.forget()
        with pytest.raises(JournalError):
            await claim.write("step", b"", b"after the end")
    assert await journal.states() == {}


async def test_events_cannot_be_deleted_directly_after_a_customer_was_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "fleet.db"
    async with Journal(path) as journal:
        await write(journal, "acme")
        await write(journal, "bolt")
        await journal.forget("bolt")
    with sqlite3.connect(path) as db, pytest.raises(sqlite3.IntegrityError, match="only added"):
        db.execute("DELETE FROM events")
    db.close()


async def test_a_backup_of_a_journal_in_use_is_a_journal_without_claims(tmp_path: Path) -> None:
    copy = tmp_path / "copy.db"
    async with Journal(tmp_path / "fleet.db") as journal:
        await write(journal, "acme", 3)
        held = await journal.claim("bolt")
        await held.write("step", b"", b"kept")
        writing = asyncio.ensure_future(write(journal, "cafe", 50))
        await journal.backup(copy)
        await writing
        with pytest.raises(InvalidInput, match="exists already"):
            await journal.backup(copy)
        assert sorted(path.name for path in tmp_path.glob("copy*")) == ["copy.db"]
        assert copy.stat().st_mode & 0o777 == 0o600
        async with Journal(copy) as restored:
            states = await restored.states()
            assert (states["acme"], states["bolt"]) == (b"2", b"kept")
            async with await restored.claim("bolt") as claim:  # it is held only in the original file
                await claim.write("step", b"", b"restored")
        await held.write("step", b"", b"original")
    with pytest.raises(JournalNotFound):
        await Journal(tmp_path / "missing.db").backup(tmp_path / "other.db")
    assert not list(tmp_path.glob("other*"))


async def test_the_error_of_a_failed_backup_has_the_path_that_the_caller_gave(tmp_path: Path) -> None:
    full = tmp_path / "full.db"

    def connect(uri: str) -> sqlite3.Connection:
        db = open_file(uri)
        if "full.db" in uri:  # simulates a full disk
            db.execute("PRAGMA max_page_count=1")
        return db

    (tmp_path / "file").touch()
    async with Journal(tmp_path / "fleet.db", connect=connect) as journal:
        await write(journal, "acme")
        for to, reason in (
            (tmp_path / "none" / "copy.db", "there is no folder"),
            (tmp_path / "file" / "copy.db", "there is no folder"),
            (full, "the disk is full"),
        ):
            with pytest.raises(JournalError, match=reason) as caught:
                await journal.backup(to)
            assert caught.value.path == str(to)
        too_long = tmp_path / ("x" * 300)
        with pytest.raises(JournalError) as caught:
            await journal.backup(too_long)
        assert str(caught.value) == f"journal {too_long}: File name too long"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "fleet.db"]


async def test_compact_frees_the_space_of_forgotten_customers_while_the_journal_is_open(
    tmp_path: Path,
) -> None:
    path = tmp_path / "fleet.db"
    async with Journal(path) as journal:
        await write(journal, "acme")
        await write(journal, "bolt", 20, size=50_000)
        await journal.forget("bolt")
        before, after = await journal.compact()
        assert before > 1_000_000
        assert after == path.stat().st_size < 100_000
        await write(journal, "acme", 2)
        assert (await journal.states())["acme"] == b"1"
        await journal.check()
