"""Objects close everything that they opened, also after errors. After a failed opening, they can be opened again."""

import asyncio
import contextlib
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from random import Random

import pytest
from inprocess import BASE_URL, KEY, InProcess

from asyncmig import (
    Delivered,
    Fleet,
    Journal,
    JournalError,
    QueueUnavailable,
    Session,
    SessionClosed,
    Spec,
    UsageError,
)
from asyncmig.distributed.budget_store import BudgetReply, SharedBudget, SlotReport
from asyncmig.distributed.saq import MigrationQueue
from asyncmig.simulator import SCHEMAS, SOURCES, World
from asyncmig.testing import Simulator

pytestmark = pytest.mark.looptime


class UnreachableWindow:
    """A shared window that never answers. `error` and `hangs`: how its `aclose` fails or blocks."""

    processes = 2

    def __init__(self, *, error: BaseException | None = None, hangs: bool = False) -> None:
        self.error, self.hangs, self.closing, self.closed = error, hangs, asyncio.Event(), 0

    def budgets(
        self, budgets: Sequence[SharedBudget], *, account: str, timeout: float, speed: float
    ) -> "UnreachableWindow":
        return self

    def runs(self, account: str) -> "UnreachableWindow":
        return UnreachableWindow()

    async def exchange(self, reports: Sequence[SlotReport], want: str | None) -> BudgetReply:
        raise ConnectionError

    async def aclose(self) -> None:
        self.closed += 1
        self.closing.set()
        if self.hangs:
            await asyncio.sleep(1000)
        if self.error is not None:
            raise self.error


@pytest.fixture
def transport() -> InProcess:
    return InProcess(World(key=KEY, sources=SOURCES, schemas=SCHEMAS, seed=1))


def open_files(path: Path) -> int:
    """Return the number of open files of this process whose path is `path`."""
    count = 0
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            count += link.readlink() == path
    return count


def session(transport: InProcess, **options: object) -> Session:
    return Session(KEY, BASE_URL, transport=transport, rng=Random(2), **options)  # type: ignore[arg-type]


async def check_closed(opened: Session, transport: InProcess, recent: Path) -> None:
    """Check that a session has left no file, connection, event stream or task open."""
    assert transport.closed
    assert open_files(recent) == 0
    with pytest.raises(SessionClosed):
        await opened.companies.sources()
    with opened.events.open() as stream:
        assert [event async for event in stream] == []
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_session_closes_everything_although_closing_its_window_fails(
    transport: InProcess, tmp_path: Path
) -> None:
    window, recent = UnreachableWindow(error=RuntimeError("cannot close")), tmp_path / "recent"
    opened = session(transport, shared=window, recent=recent)
    await opened.__aenter__()
    await opened.companies.sources()
    assert open_files(recent) == 1
    with pytest.raises(RuntimeError, match="cannot close"):
        await opened.__aexit__(None, None, None)
    assert window.closed == 1
    await check_closed(opened, transport, recent)


async def test_a_session_closes_everything_although_closing_its_transport_fails(
    transport: InProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail() -> None:
        transport.closed = True
        raise OSError("cannot close")

    monkeypatch.setattr(transport, "aclose", fail)
    window, recent = UnreachableWindow(), tmp_path / "recent"
    opened = session(transport, shared=window, recent=recent)
    with pytest.raises(OSError, match="cannot close"):
        async with opened:
            await opened.companies.sources()
    assert window.closed == 1
    await check_closed(opened, transport, recent)


@pytest.mark.parametrize("times", [1, 2])
async def test_a_session_that_is_cancelled_while_it_closes_closes_everything(
    transport: InProcess, tmp_path: Path, times: int
) -> None:
    window, recent = UnreachableWindow(hangs=True), tmp_path / "recent"
    opened = session(transport, shared=window, recent=recent)

    async def use() -> None:
        async with opened:
            await opened.companies.sources()

    task = asyncio.create_task(use())
    await window.closing.wait()
    for _ in range(times):
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await check_closed(opened, transport, recent)


async def test_a_session_is_closed_after_an_error_in_its_block(transport: InProcess, tmp_path: Path) -> None:
    recent = tmp_path / "recent"
    opened = session(transport, recent=recent)
    with pytest.raises(LookupError):
        async with opened:
            raise LookupError
    await check_closed(opened, transport, recent)


def fail_to_open(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """Let `os.open` raise an error that no code expects for `path`, until the patch is undone."""
    original = os.open

    def fail(name: str, *args: int) -> int:
        if Path(name) == path:
            raise MemoryError
        return original(name, *args)

    monkeypatch.setattr(os, "open", fail)


async def test_a_session_can_be_entered_again_after_a_failed_entry(
    transport: InProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recent = tmp_path / "recent"
    opened = session(transport, recent=recent)
    with monkeypatch.context() as patch:
        fail_to_open(patch, recent)
        for _ in range(2):
            with pytest.raises(MemoryError):
                await opened.__aenter__()
    with pytest.raises(UsageError, match="not open yet"):
        await opened.companies.sources()
    async with opened:
        assert len(await opened.companies.sources()) == 3
    await check_closed(opened, transport, recent)
    with pytest.raises(UsageError, match="was entered before"):
        await opened.__aenter__()


def test_a_session_can_be_entered_on_another_loop_after_a_failed_entry(
    transport: InProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = session(transport, recent=tmp_path / "recent")

    async def use() -> int:
        async with opened:
            return len(await opened.companies.sources())

    with monkeypatch.context() as patch:
        fail_to_open(patch, tmp_path / "recent")
        with pytest.raises(MemoryError):
            asyncio.run(use())
    assert asyncio.run(use()) == 3


async def test_a_fleet_can_be_entered_again_after_its_journal_could_not_be_opened(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("Email\na@example.org\n", encoding="utf-8")
    simulator, journal = Simulator(seed=1), tmp_path / "folder" / "fleet.db"
    async with simulator.session() as opened:
        fleet = Fleet(opened, journal=journal, to=tmp_path / "out")
        for _ in range(2):
            with pytest.raises(JournalError):
                await fleet.__aenter__()
        journal.parent.mkdir()
        spec = Spec(external_id="a", name="A", source=next(iter(SOURCES)), files=(tmp_path / "a.csv",))
        async with fleet:
            assert isinstance(await fleet.submit(spec), Delivered)
    assert open_files(journal) == 0


async def test_a_fleet_closes_its_journal_after_a_failed_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = tmp_path / "fleet.db"
    async with Simulator(seed=1).session() as opened:
        fleet = Fleet(opened, journal=journal, to=tmp_path / "out")
        with monkeypatch.context() as patch:
            fail_to_open(patch, tmp_path / "fleet.db.recent")
            with pytest.raises(MemoryError):
                await fleet.__aenter__()
        assert open_files(journal) == 0
        async with fleet:
            assert open_files(journal) > 0


async def test_a_journal_can_be_opened_again_after_a_failed_opening(tmp_path: Path) -> None:
    path = tmp_path / "fleet.db"
    path.write_bytes(b"something else, and long enough to be looked at" * 100)
    journal = Journal(path)
    for _ in range(2):
        with pytest.raises(JournalError):
            await journal.__aenter__()
    path.unlink()
    async with journal:
        async with await journal.claim("a") as claim:
            await claim.write("kind", b"detail", b"state")
        assert await journal.states() == {"a": b"state"}
    assert open_files(path) == 0


@pytest.mark.usefixtures("without_garbage")
async def test_a_simulator_whose_port_is_in_use_leaves_no_file_open() -> None:
    simulator = Simulator(seed=1)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        before = sum(1 for _ in Path("/proc/self/fd").iterdir())
        for _ in range(3):
            with pytest.raises(OSError, match="in use"):
                async with simulator.serve(port=taken.getsockname()[1]):
                    raise AssertionError
        assert sum(1 for _ in Path("/proc/self/fd").iterdir()) == before
    async with simulator.serve() as serving:
        assert serving.base_url.startswith("http://127.0.0.1:")


@pytest.mark.looptime(False)
async def test_a_queue_can_be_entered_again_after_its_server_was_unreachable(redis_url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    queue = MigrationQueue(f"redis://127.0.0.1:{port}/0", name="opening")
    for _ in range(2):
        with pytest.raises(QueueUnavailable):
            await queue.__aenter__()
    assert asyncio.all_tasks() == {asyncio.current_task()}
    async with MigrationQueue(redis_url, name="opening"):
        pass
