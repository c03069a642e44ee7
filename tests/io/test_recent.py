"""The log of sent requests: the next process knows the recent requests, and the file stays small."""

import asyncio
import fcntl
import logging
import os
import signal
import stat
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from inprocess import BASE_URL, KEY, InProcess

from asyncmig import Fleet, Session
from asyncmig._io.send_log import SendLog
from asyncmig.session import context_of
from asyncmig.simulator import SCHEMAS, SOURCES, World

ENDPOINT = "GET /sources"


def opened(path: Path, **options: float) -> SendLog:
    log = SendLog(path, **options)  # type: ignore[arg-type]
    log.open()
    return log


def names(path: Path) -> set[str]:
    log = opened(path)
    log.close()
    return {slot.name for slot in log.earlier()}


def session(path: Path, limit: int = 5) -> Session:
    transport = InProcess(World(key=KEY, sources=SOURCES, schemas=SCHEMAS, seed=1))
    return Session(KEY, BASE_URL, transport=transport, recent=path, limit=limit)


@pytest.mark.parametrize("old", [0, 20_000])
def test_recent_lines_stay_in_a_log_that_is_compacted(tmp_path: Path, old: int) -> None:
    path, now = tmp_path / "recent", time.time()  # noqa: TID251 - the clock of the log
    hour = "".join(
        f"sent {now - 4000:.3f}+121 GET /x #{n:032x}\ndone {now - 4000:.3f}+61 GET /x #{n:032x}\n"
        for n in range(old)
    )
    path.write_text(hour, encoding="utf-8")
    for count in (1, 2, 3):
        log = SendLog(path, speed=1.0)
        log.open()
        slot = uuid4().hex
        log.note("sent", "GET /x", slot)
        log.note("done", "GET /x", slot)
        log.note("sent", "POST /x", slot)
        log.close()
        ages = SendLog(path, speed=1.0).ages()
        assert len([age for age in ages["GET /x"] if age < 60.0]) == count
        assert ages["POST /x"] == [0.0] * count
    assert path.stat().st_size < 300_000


def test_a_process_can_append_to_a_log_that_another_one_has_compacted(tmp_path: Path) -> None:
    path = tmp_path / "recent"
    old = f"done 1.000+61 GET /x #{0:032x}\n" * 20_000
    path.write_text(old, encoding="utf-8")
    first, second = SendLog(path, speed=1.0), SendLog(path, speed=1.0)
    first.open()
    first.note("sent", "GET /x", uuid4().hex)
    path.write_text(path.read_text(encoding="utf-8") + old, encoding="utf-8")
    second.open()
    first.note("sent", "GET /x", uuid4().hex)
    assert SendLog(path, speed=1.0).ages() == {"GET /x": [0.0, 0.0]}
    first.close()
    second.close()


APPEND = """
import sys
from pathlib import Path
from asyncmig._io.send_log import SendLog
name, count = sys.argv[2], int(sys.argv[3])
for number in range(count):
    if number % 10 == 0:  # each time it compacts the file
        if number:
            log.close()
        log = SendLog(Path(sys.argv[1]))
        log.open()
    log.note("sent", "GET /x", f"{name}{number:031x}")
    if number == count // 2:
        print("half", flush=True)
        sys.stdin.readline()
log.close()
"""


def test_processes_that_compact_the_same_log_lose_no_line(tmp_path: Path) -> None:
    path, count = tmp_path / "recent", 200
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", APPEND, path, name, str(count)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in "abcd"
    ]
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()
    killed = processes.pop()
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    # A process was killed while it compacted the log.
    (tmp_path / "recent.part").write_bytes(b"half of a compa")
    for process in processes:
        process.communicate("\n")
    expected = {f"{name}{number:031x}" for name in "abc" for number in range(count)}
    assert names(path) == expected | {f"d{number:031x}" for number in range(count // 2 + 1)}


COMPACT = """
import asyncio
import sys
from pathlib import Path
from asyncmig._io import send_log
send_log._LARGE = send_log._LOOK_EVERY = 0  # compacts all the time
async def main():
    log = send_log.SendLog(Path(sys.argv[1]), threaded=True)
    log.open()
    for number in range(100_000):
        log.note("sent", "GET /x", f"{sys.argv[2]}{number:031x}")
        print(number, flush=True)
        await asyncio.sleep(0)
asyncio.run(main())
"""


def test_a_process_that_is_killed_while_it_compacts_loses_no_line(tmp_path: Path) -> None:
    path, expected = tmp_path / "recent", set[str]()
    for name, lines in (("a", 5), ("b", 60), ("c", 250)):
        with subprocess.Popen(
            [sys.executable, "-c", COMPACT, path, name], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            written = [int(process.stdout.readline()) for _ in range(lines)]
            process.kill()
            written += map(int, process.stdout.read().splitlines())
        expected |= {f"{name}{number:031x}" for number in written}
    assert names(path) >= expected


async def test_a_log_is_compacted_in_a_thread_while_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asyncmig._io.send_log._LARGE", 0)
    monkeypatch.setattr("asyncmig._io.send_log._LOOK_EVERY", 0)
    threads: list[object] = []
    rename = Path.replace

    def renamed(self: Path, target: Path) -> Path:
        threads.append(threading.current_thread())
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", renamed)
    path, slots = tmp_path / "recent", [uuid4().hex for _ in range(300)]
    log = SendLog(path, threaded=True)
    for slot in slots:
        log.note("sent", ENDPOINT, slot)
        await asyncio.sleep(0)
    await log.aclose()
    assert threads
    assert threading.main_thread() not in threads
    assert names(path) == set(slots)


def test_a_process_does_not_wait_for_another_one_that_holds_the_lock(tmp_path: Path) -> None:
    path, slots = tmp_path / "recent", [uuid4().hex for _ in range(3)]
    log = opened(path)
    log.note("sent", ENDPOINT, slots[0])
    with path.open("rb") as stopped:
        fcntl.flock(stopped, fcntl.LOCK_EX)
        log.note("sent", ENDPOINT, slots[1])
        assert names(path) == {slots[0]}
    log.note("sent", ENDPOINT, slots[2])
    assert names(path) == set(slots)
    log.close()


def test_a_log_is_created_again_after_its_file_was_removed(tmp_path: Path) -> None:
    path, slot = tmp_path / "recent", uuid4().hex
    log = opened(path)
    path.unlink()
    log.note("sent", ENDPOINT, slot)
    assert names(path) == {slot}
    log.close()


def test_invalid_lines_are_skipped_and_no_valid_line_is_lost(tmp_path: Path) -> None:
    path, now = tmp_path / "recent", time.time()  # noqa: TID251 - the clock of the log
    slots = [uuid4().hex for _ in range(3)]
    lines = [f"sent {now:.3f}+120 {ENDPOINT} #{slot}".encode() for slot in slots[:2]]
    garbage = [
        b"\xff\xfe",
        b"\0" * 5000,
        b"sent nan+61 GET /x #%032x" % 1,
        b"sent 1e999+61 GET /x #%032x" % 2,
        b"done -5+61 GET /x #%032x" % 3,
        b"sent %.3f+61 GET /x" % now,
        b"held %.3f+61 GET /x #%032x" % (now, 4),
        b"sent",
        b"a" * 9999,
    ]
    garbage += [
        b"sent %.3f+61 GET /\xff #%032x" % (now, 5),
        b"sent %.3f+61 GET /\0 #%032x" % (now, 6),
        "gesendet ä".encode("utf-16"),
    ]
    path.write_bytes(b"\n".join([lines[0], *garbage, lines[1], b"sent 17"]))
    log = opened(path)
    log.note("sent", ENDPOINT, slots[2])
    log.close()
    assert SendLog(path).ages() == {ENDPOINT: [0.0] * 3}
    assert names(path) == set(slots)


@pytest.mark.parametrize("ahead", [0.5, 3 * 3600.0, 1e9])
def test_a_time_in_the_future_is_replaced_by_the_time_of_the_first_start(
    tmp_path: Path, ahead: float
) -> None:
    path, now = tmp_path / "recent", time.time()  # noqa: TID251 - the clock of the log
    path.write_text(f"done {now + ahead:.3f}+61 {ENDPOINT} #{uuid4().hex}\n", encoding="utf-8")
    log = opened(path)
    assert SendLog(path).ages()[ENDPOINT] == [pytest.approx(0.0, abs=5.0)]
    log.close()
    later = opened(path, speed=0.01)  # the clock of the loop is slower
    assert [slot.age <= 0.05 for slot in later.earlier()] == [True]
    later.close()
    in_a_minute = SendLog(path, clock=Clock(0.0, 61.5))  # type: ignore[arg-type]
    assert in_a_minute.ages() == {}


class Clock:
    """Returns the given times in turn, and then always the last one."""

    def __init__(self, *times: float) -> None:
        self._times = list(times)

    def __call__(self) -> float:
        return self._times.pop(0) if len(self._times) > 1 else self._times[0]


def test_a_request_that_was_not_sent_is_not_in_the_log(tmp_path: Path) -> None:
    path, (sent, unsent, done) = tmp_path / "recent", [uuid4().hex for _ in range(3)]
    log = opened(path)
    for slot in (sent, unsent, done):
        log.note("sent", ENDPOINT, slot)
    log.note("unsent", ENDPOINT, unsent)
    log.note("done", ENDPOINT, done)
    log.close()
    again = opened(path)
    assert {slot.name: slot.is_answered for slot in again.earlier(ENDPOINT)} == {sent: False, done: True}
    again.close()


def test_a_huge_log_is_read_in_little_memory(tmp_path: Path) -> None:
    path, slot = tmp_path / "recent", uuid4().hex
    now = time.time()  # noqa: TID251 - the clock of the log
    with path.open("wb") as file:
        file.truncate(100 * 1024 * 1024)  # a sparse file
        file.seek(0, os.SEEK_END)
        file.write(f"done 1600000000.123+61 GET /sources #{0:032x}\n".encode() * 100_000)
        file.write(f"sent {now:.3f}+120 {ENDPOINT} #{slot}\n".encode())
    tracemalloc.start()
    try:
        assert names(path) == {slot}
        assert tracemalloc.get_traced_memory()[1] < 4 * 1024 * 1024
    finally:
        tracemalloc.stop()
    assert path.stat().st_size < 1000


@pytest.mark.looptime
async def test_the_log_of_a_service_stays_small_while_it_runs(tmp_path: Path) -> None:
    path, largest = tmp_path / "recent", 0
    async with session(path, limit=100) as service:
        for _ in range(9000):
            async with service.gate("GET", "/sources").slot() as slot:
                slot.answered(200)
            largest = max(largest, path.stat().st_size)
    assert largest < 512 * 1024
    assert asyncio.get_running_loop().time() > 5000.0


@pytest.mark.looptime
async def test_requests_of_other_code_through_a_gate_of_the_session_are_in_the_log(tmp_path: Path) -> None:
    path = tmp_path / "recent"
    async with session(path) as service, service.gate("POST", "/mine").slot() as slot:
        slot.answered(200)
    assert list(SendLog(path).ages()) == ["POST /mine"]


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize("exists", [False, True])
def test_a_log_is_readable_only_by_its_owner(tmp_path: Path, exists: bool) -> None:
    path = tmp_path / "recent"
    if exists:
        path.touch(0o666)
    log = opened(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    log.close()


def planted_symlink(path: Path, target: Path) -> None:
    path.symlink_to(target)


def planted_hard_link(path: Path, target: Path) -> None:
    path.hardlink_to(target)


def planted_fifo(path: Path, target: Path) -> None:
    os.mkfifo(path)


def planted_folder(path: Path, target: Path) -> None:
    path.mkdir()


def planted_part(path: Path, target: Path) -> None:
    path.with_name(f"{path.name}.part").symlink_to(target)


def missing_folder(path: Path, target: Path) -> None:
    path.parent.rmdir()


@pytest.mark.looptime
@pytest.mark.parametrize(
    ("plant", "warned"),
    [
        (planted_symlink, True),
        (planted_hard_link, True),
        (planted_fifo, True),
        (planted_folder, True),
        (missing_folder, True),
        (planted_part, False),
    ],
)
async def test_an_unsafe_path_of_the_log_is_not_written_and_stops_no_request(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, plant: object, warned: bool
) -> None:
    path, target = tmp_path / "here/recent", tmp_path / "target"
    path.parent.mkdir()
    target.write_text("precious\n", encoding="utf-8")
    target.chmod(0o644)
    plant(path, target)  # type: ignore[operator]
    with caplog.at_level(logging.WARNING):
        async with session(path) as opened:
            for _ in range(3):
                assert await opened.companies.sources()
    assert target.read_text(encoding="utf-8") == "precious\n"
    assert stat.S_IMODE(target.stat().st_mode) == 0o644
    assert [str(path) in record.getMessage() for record in caplog.records] == [True] * warned


HOUR = 3600.0


def wall_clock(monkeypatch: pytest.MonkeyPatch, hours: float) -> None:
    """Shift the wall clock of logs that are opened later."""
    real = time.time  # noqa: TID251 - the clock of the log
    monkeypatch.setattr("asyncmig._io.send_log._wall", lambda: real() + hours * HOUR)


@pytest.mark.parametrize("hours", [-30.0, -2.0, 2.0, 30.0])
def test_a_change_of_the_wall_clock_within_a_boot_does_not_change_ages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hours: float
) -> None:
    path = tmp_path / "recent"
    log = opened(path)
    log.note("sent", "generate", uuid4().hex, window=HOUR)
    log.hold("agent", 1800.0)
    log.close()
    for _ in range(2):  # the second time from a compacted log
        wall_clock(monkeypatch, hours)
        log = opened(path)
        assert [slot.age for slot in log.earlier("generate")] == pytest.approx([0.0], abs=20.0)
        assert log.held_for("agent") == pytest.approx(1800.0, abs=20.0)
        log.close()


@pytest.mark.parametrize(("hours", "age"), [(-2.0, 0.0), (0.5, 1800.0), (2.0, None)])
def test_after_a_reboot_ages_follow_the_wall_clock_and_are_never_negative(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hours: float, age: float | None
) -> None:
    path = tmp_path / "recent"
    log = opened(path)
    log.note("done", "generate", uuid4().hex, window=HOUR)
    log.close()
    monkeypatch.setattr("asyncmig._io.send_log._BOOT", "0" * 32)
    wall_clock(monkeypatch, hours)
    ages = [slot.age for slot in opened(path).earlier("generate")]
    assert ages == ([] if age is None else [pytest.approx(age, abs=20.0)])


@pytest.mark.looptime
async def test_hourly_slots_and_holds_survive_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "recent"

    def opened_session() -> Session:
        transport = InProcess(World(key=KEY, sources=SOURCES, schemas=SCHEMAS, seed=1))
        return Session(KEY, BASE_URL, transport=transport, recent=path, limits="key=3/1h")

    async with opened_session() as first, first.gate("GET", "/x").slot() as slot:
        slot.answered(200)
    async with opened_session() as second, second.gate("GET", "/x").slot() as slot:
        slot.answered(429, retry_after=1800.0)
    async with opened_session() as third:
        assert third.gate("GET", "/x").wait_estimate() == pytest.approx(1800.0, abs=20.0)
        assert third.gate("GET", "/x").statistics().used == 2


@pytest.mark.looptime
async def test_holds_apply_to_budgets_that_a_session_used_before_its_log_was_opened(tmp_path: Path) -> None:
    path = tmp_path / "recent"
    log = opened(path)
    log.hold("writes", 1800.0)
    log.close()
    transport = InProcess(World(key=KEY, sources=SOURCES, schemas=SCHEMAS, seed=1))
    async with Session(KEY, BASE_URL, transport=transport) as session:
        session.gate("GET", "/migrations/{migration_id}/files")  # charges this budget together with another
        await context_of(session).remember(path)
        assert session.budget("writes").wait_estimate() == pytest.approx(1800.0, abs=20.0)


@pytest.mark.looptime
async def test_the_next_fleet_counts_the_requests_of_the_previous_one(tmp_path: Path) -> None:
    def opened_session() -> Session:
        transport = InProcess(World(key=KEY, sources=SOURCES, schemas=SCHEMAS, seed=1))
        return Session(KEY, BASE_URL, transport=transport, limits="endpoint=5/1h")

    async with opened_session() as first, Fleet(first, journal=tmp_path / "fleet.db", to=tmp_path / "out"):
        await first.companies.sources()
    async with opened_session() as second:
        await second.companies.templates()
        async with Fleet(second, journal=tmp_path / "fleet.db", to=tmp_path / "out"):
            assert second.gate("GET", "/sources").statistics().used == 1
