"""Journal files: files that are not journals, older versions, permissions, and a disk that fails at every point."""

import asyncio
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from asyncmig.errors import JournalError
from asyncmig.journal import Instruction, Journal, sqlite_file

pytestmark = pytest.mark.looptime

V1 = Path(__file__).parent / "journals" / "v1.sqlite"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "fleet.db"


async def opening(path: Path) -> None:
    async with Journal(path):
        pass


async def use(path: Path, external_id: str = "acme", state: bytes = b"s") -> None:
    async with Journal(path) as journal, await journal.claim(external_id) as claim:
        await claim.write("k", state, state)


def pragma(path: Path, name: str) -> int:
    with closing(sqlite3.connect(path)) as db:
        return int(db.execute(f"PRAGMA {name}").fetchone()[0])


@pytest.mark.skipif(os.name == "nt", reason="POSIX modes")
@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
async def test_only_the_owner_can_read_a_new_journal(path, umask):
    before = os.umask(umask)
    try:
        async with Journal(path) as journal, await journal.claim("acme") as claim:
            await claim.write("k", b"s", b"s")
            modes = {each.name: stat.S_IMODE(each.stat().st_mode) for each in path.parent.iterdir()}
    finally:
        os.umask(before)
    assert modes == dict.fromkeys(("fleet.db", "fleet.db-wal", "fleet.db-shm"), 0o600)


async def test_the_mode_of_an_existing_journal_is_not_changed(path):
    path.touch()
    path.chmod(0o640)
    await use(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


async def test_a_symlink_to_a_missing_file_creates_a_journal_there(path):
    path.symlink_to("elsewhere.db")
    await use(path)
    assert stat.S_IMODE(path.with_name("elsewhere.db").stat().st_mode) == 0o600
    assert path.is_symlink()


def script(path: Path, sql: str) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.executescript(sql)


async def test_a_journal_of_version_1_has_instructions_once_it_was_opened_for_writing(path):
    shutil.copy(V1, path)
    async with Journal(path, read_only=True) as reader:
        assert await reader.instructions() == {}
        assert await reader.instruction("created") is None
    async with Journal(path) as journal:
        before = await journal.states()
        await journal.instruct("created", Instruction("cancel", b"x"))
    async with Journal(path, read_only=True) as reader:
        assert await reader.instructions() == {"created": Instruction("cancel", b"x")}
        assert await reader.states() == before
        with pytest.raises(JournalError, match="for reading only"):
            await reader.instruct("created", Instruction("run", b""))


@pytest.mark.parametrize(
    "content", [b"hello", b"name,source\nAcme,hubspot\n" * 200, b"\0" * 5000, b"SQLite format 3\0"]
)
@pytest.mark.parametrize("read_only", [False, True])
async def test_a_file_that_is_not_a_journal_is_refused_and_not_changed(path, content, read_only):
    path.write_bytes(content)
    with pytest.raises(
        JournalError, match=r"fleet\.db: (this file is not a journal|the file is damaged|is empty)"
    ):
        async with Journal(path, read_only=read_only):
            pass
    assert path.read_bytes() == content
    assert [entry.name for entry in path.parent.iterdir()] == ["fleet.db"]


async def test_the_database_of_another_program_is_refused_and_not_changed(path):
    script(path, "CREATE TABLE holders (x); INSERT INTO holders VALUES (1);")
    before = path.read_bytes()
    with pytest.raises(JournalError, match="it belongs to another program"):
        await opening(path)
    assert path.read_bytes() == before


async def test_an_empty_file_becomes_a_journal(path):
    path.touch()
    await use(path)
    async with Journal(path) as journal:
        assert await journal.states() == {"acme": b"s"}


async def test_a_missing_folder_and_a_folder_are_refused_with_the_reason(path):
    with pytest.raises(JournalError, match=r"there is no folder .*nowhere"):
        await opening(path.parent / "nowhere" / "fleet.db")
    with pytest.raises(JournalError, match="this is a folder"):
        await opening(path.parent)


async def test_special_characters_of_urls_are_part_of_the_file_name(tmp_path):
    path = tmp_path / "a b?mode=ro&x#y%41.db"
    await use(path)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.fixture
def read_only_folder() -> Iterator[Callable[[], None]]:
    """Yield a function that makes a folder read-only. Its attribute `folder` is the folder."""
    folder = Path(tempfile.mkdtemp())
    was = os.geteuid()

    def lock() -> None:
        folder.chmod(0o555)
        if was == 0:
            os.seteuid(65534)  # root can write to read-only folders

    lock.folder = folder
    yield lock
    if was == 0:
        os.seteuid(0)
    shutil.rmtree(folder, onerror=lambda *_: folder.chmod(0o755))
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="needs POSIX permissions")
async def test_a_journal_in_a_read_only_folder_can_be_read_but_not_written(read_only_folder):
    path = read_only_folder.folder / "fleet.db"
    await use(path)
    path.chmod(0o444)
    read_only_folder()
    with pytest.raises(JournalError, match="read-only"):
        await use(path)
    with pytest.raises(JournalError, match="cannot be opened"):
        await opening(path.with_name("new.db"))
    async with Journal(path, read_only=True) as reader:
        assert await reader.states() == {"acme": b"s"}
    assert [entry.name for entry in path.parent.iterdir()] == ["fleet.db"]


async def test_a_damaged_file_is_reported_as_damaged(path):
    async with Journal(path) as journal:
        for n in range(300):
            async with await journal.claim(f"customer-{n}") as claim:
                await claim.write("k", b"d" * 200, b"s" * 600)
    whole = path.read_bytes()
    path.write_bytes(whole[: 4096 * 2] + os.urandom(len(whole) - 4096 * 2))
    with pytest.raises(JournalError, match="damaged"):
        async with Journal(path) as journal:
            await journal.claim("customer-7")
    with pytest.raises(JournalError, match="damaged"):
        async with Journal(path, read_only=True) as journal:
            await journal.states()
    path.write_bytes(whole[:10000])
    with pytest.raises(JournalError, match="damaged"):
        async with Journal(path) as journal:
            await journal.claim("customer-7")


async def test_a_write_fails_while_the_open_file_is_moved_away(path):
    async with Journal(path) as journal, await journal.claim("acme") as claim:
        await claim.write("k", b"", b"one")
        path.rename(path.with_name("moved.db"))
        with pytest.raises(JournalError, match="replaced or moved"):
            await claim.write("k", b"", b"two")
        path.with_name("moved.db").rename(path)
        await claim.write("k", b"", b"three")


async def test_the_database_refuses_changes_of_events(path):
    await use(path)
    for sql in ("UPDATE events SET kind = 'x'", "DELETE FROM events"):
        with pytest.raises(sqlite3.IntegrityError, match="only added"):
            script(path, sql)


async def test_a_journal_of_version_1_can_be_read_and_written(path):
    shutil.copy(V1, path)
    async with Journal(path) as journal:
        states = await journal.states()
        assert len(states) == 17
        assert b'"name":"created Ltd"' in states["created"]
        events = await journal.events()
        assert [event.seq for event in events] == list(range(1, 87))
        assert [event.kind for event in await journal.events("created")] == ["input", "create", "created"]
        assert {event.at for event in events} == {"2026-01-02T03:04:05.678Z"}
        async with await journal.claim("created") as claim:  # the lease of its holder is over
            assert claim.token == 2
            await claim.write("started", b"{}", b'{"step":"started"}')
        assert (await journal.events())[-1].seq == 87


async def test_a_journal_of_a_newer_version_is_refused_and_not_changed(path):
    shutil.copy(V1, path)
    script(path, "PRAGMA user_version = 99")
    before = path.read_bytes()
    for read_only in (False, True):
        with pytest.raises(JournalError, match=r"newer version of asyncmig \(journal version 99"):
            async with Journal(path, read_only=read_only):
                pass
    assert path.read_bytes() == before


async def test_a_journal_of_an_older_version_is_migrated_when_it_is_opened_for_writing(path, monkeypatch):
    shutil.copy(V1, path)
    monkeypatch.setattr(
        sqlite_file,
        "SCHEMA_VERSIONS",
        (*sqlite_file.SCHEMA_VERSIONS, ("ALTER TABLE companies ADD COLUMN note TEXT",)),
    )
    with pytest.raises(JournalError, match="older version"):
        async with Journal(path, read_only=True):
            pass
    await use(path, "acme-001", b"new")
    assert pragma(path, "user_version") == len(sqlite_file.SCHEMA_VERSIONS)
    async with Journal(path, read_only=True) as journal:
        assert (await journal.states())["acme-001"] == b"new"


async def test_a_failed_migration_leaves_the_old_version(path, monkeypatch):
    shutil.copy(V1, path)
    step = ("ALTER TABLE companies ADD COLUMN note TEXT", "ALTER TABLE nothing ADD COLUMN note TEXT")
    with monkeypatch.context() as patch:
        patch.setattr(sqlite_file, "SCHEMA_VERSIONS", (*sqlite_file.SCHEMA_VERSIONS, step))
        with pytest.raises(JournalError, match="nothing"):
            await opening(path)
    assert pragma(path, "user_version") == 1
    await use(path, "acme-001")


class Failing(sqlite3.Connection):
    """A connection whose n-th statement fails: without an effect, or, if `late`, after it took effect."""

    left: list[int]
    late = False
    code = sqlite3.SQLITE_IOERR

    def execute(self, sql: str, parameters: object = ()) -> sqlite3.Cursor:
        self.left[0] -= 1
        if self.left[0] != 0:
            return super().execute(sql, parameters)
        if self.late:
            super().execute(sql, parameters)
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode = self.code
        raise error


def failing(left: list[int], *, late: bool) -> sqlite_file.Connect:
    def connect(uri: str) -> sqlite3.Connection:
        db = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False, factory=Failing)
        db.left, db.late = left, late
        return db

    return connect


async def scenario(path: Path, connect: sqlite_file.Connect, acknowledged: dict[str, bytes]) -> None:
    """Write increasing numbers for two companies. Store the number of the last write that returned."""

    async def work(journal: Journal, name: str) -> None:
        async with await journal.claim(name) as claim:
            for _ in range(2):
                number = b"%d" % (int(claim.state or b"0") + 1)
                await claim.write("count", number, number)
                acknowledged[name] = number

    async with Journal(path, connect=connect, threaded=False) as journal:
        results = await asyncio.gather(work(journal, "a"), work(journal, "b"), return_exceptions=True)
    for result in results:
        if result is not None:
            raise result


async def check(path: Path, acknowledged: dict[str, bytes], doubtful: int) -> None:
    """Check that acknowledged writes exist, that state and events match, and that the companies can be claimed."""
    async with Journal(path, threaded=False) as journal:
        for name in ("a", "b"):
            async with await journal.claim(name) as claim:
                state = int(claim.state or b"0")
                assert 0 <= state - int(acknowledged.get(name, b"0")) <= doubtful
                numbers = [int(event.detail) for event in await journal.events(name)]
                assert numbers == list(range(1, state + 1))
                following = b"%d" % (state + 1)
                await claim.write("count", following, following)
    db = sqlite3.connect(path)
    assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    db.close()


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("existing", [False, True])
async def test_whichever_statement_fails_no_write_is_incomplete(path, late, existing, stride):
    reasons: list[str] = []
    for n in range(1 + late % stride, 1000, stride):
        target = path.with_name(f"{n}.db")
        if existing:
            await scenario(target, sqlite_file.connect, {})
        acknowledged = {"a": b"2", "b": b"2"} if existing else {}
        left = [n]
        try:
            await scenario(target, failing(left, late=late), acknowledged)
        except JournalError as error:
            reasons.append(error.reason)
        await check(target, acknowledged, doubtful=1 if late else 0)
        if left[0] > 0:
            break
    assert n > 40
    assert len(reasons) > 30 // stride
    assert all("disk cannot be" in reason or "closed" in reason for reason in reasons)


@pytest.mark.parametrize("late", [False, True])
async def test_a_journal_is_usable_after_a_failed_write_and_keeps_no_lock(path, late):
    left = [0]
    async with Journal(path, connect=failing(left, late=late)) as journal, Journal(path) as other:
        claim = await journal.claim("acme")
        for n in range(1, 7):  # BEGIN, SAVEPOINT, UPDATE, INSERT, RELEASE, COMMIT
            left[0] = n
            with pytest.raises(JournalError, match="disk cannot be"):
                await claim.write("k", b"", b"failed")
            async with await other.claim("beta") as beta:
                await beta.write("k", b"", b"%d" % n)
            await claim.write("k", b"", b"%d" % n)
        happened = 1 if late else 0  # the failed COMMIT took effect
        assert len(await journal.events("acme")) == 6 + happened
        assert await journal.states() == {"acme": b"6", "beta": b"6"}


async def test_an_error_in_a_block_is_raised_although_the_release_fails_too(path, caplog):
    left = [0]
    async with Journal(path, connect=failing(left, late=False)) as journal:
        with pytest.raises(KeyError):  # noqa: PT012 - the block is what is tested
            async with await journal.claim("acme"):
                left[0] = 1
                raise KeyError
        assert "disk cannot be" in caplog.text
        with pytest.raises(JournalError, match="disk cannot be"):
            async with await journal.claim("beta"):
                left[0] = 1


async def test_opening_waits_while_another_connection_creates_the_file(path):
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    timer = threading.Timer(0.1, other.close)
    timer.start()
    await use(path)
    timer.join()


async def test_a_full_disk_is_an_error_and_writes_succeed_when_there_is_space_again(path):
    reasons: list[str] = []
    for pages in range(1, 30):
        target = path.with_name(f"{pages}.db")

        def connect(uri: str, pages: int = pages) -> sqlite3.Connection:
            db = sqlite_file.connect(uri)
            db.execute(f"PRAGMA max_page_count={pages}")
            return db

        acknowledged: dict[str, bytes] = {}
        try:
            await scenario(target, connect, acknowledged)
        except JournalError as error:
            reasons.append(error.reason)
        else:
            break
        await check(target, acknowledged, doubtful=0)
    assert 3 < len(reasons) < 29
    assert all("the disk is full" in reason for reason in reasons)


SHORT_OF_SPACE = """
import asyncio, resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_journal_file as here
from asyncmig.errors import JournalError
failed = 0
for n, size in enumerate(range(0, 120_000, 2_477)):
    path, acknowledged = Path(sys.argv[2]) / f"{n}.db", {}
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    try:
        asyncio.run(here.scenario(path, here.sqlite_file.connect, acknowledged))
    except JournalError as error:
        failed += 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    asyncio.run(here.check(path, acknowledged, doubtful=0))
print(n + 1, failed)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs limits for file sizes")
def test_whichever_byte_cannot_be_written_no_write_is_incomplete(tmp_path):
    here = str(Path(__file__).parent)
    command = [sys.executable, "-c", SHORT_OF_SPACE, here, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    tried, failed = map(int, done.stdout.split())
    assert 20 < failed < tried
