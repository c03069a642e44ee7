"""When a holder counts as alive. A lease is measured in real seconds, not in seconds of the loop."""

import asyncio
import os
import sqlite3
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from asyncmig.errors import CustomerHeld
from asyncmig.journal import Journal
from asyncmig.journal.lease import Holder, Lease, Moment, mark_closed, mark_open

NOW = Moment(wall=1_800_000_000.0, uptime=50_000.0)

posix = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX processes")


def held(holder: Holder, age: float, *, lease: float = 30.0, now: Moment = NOW) -> Lease:
    renewed = Moment(NOW.wall - age, NOW.uptime - age)
    return Lease(holder, lease, now.since(renewed, boot=holder.boot))


@pytest.fixture
def here():
    holder = Holder.here("")
    mark_open(holder)
    yield holder
    mark_closed(holder)


@pytest.mark.parametrize(("age", "over"), [(0.0, False), (29.9, False), (30.0, True), (1e9, True)])
@pytest.mark.parametrize("boot", ["ours", "another"])
def test_the_lease_of_a_holder_that_may_be_alive_ends_after_its_duration(here, age, over, boot):
    holder = here if boot == "ours" else replace(here, boot="another")
    assert held(holder, age).is_over is over


def test_setting_the_wall_clock_does_not_end_a_lease_of_this_machine(here):
    assert not held(here, 5.0, now=replace(NOW, wall=NOW.wall + 1e6)).is_over
    assert not held(here, 5.0, now=replace(NOW, wall=NOW.wall - 1e6)).is_over


def test_a_lease_with_a_renewal_far_in_the_future_is_over(here):
    other = replace(here, boot="another")
    assert not held(other, -10.0).is_over
    assert held(other, -1e6).is_over


def test_the_lease_of_a_closed_journal_of_this_process_is_over(here):
    mark_closed(here)
    assert held(here, 0.0).is_over


@posix
def test_the_lease_of_a_process_that_ended_is_over(here):
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    assert held(replace(here, pid=process.pid), 0.0).is_over


@posix
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_the_lease_of_a_zombie_process_is_over(here):
    process = subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    started = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[19]
    child = replace(here, pid=process.pid, started=started)
    assert not held(child, 0.0).is_over
    process.stdin.close()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert held(child, 0.0).is_over
    process.wait()


@posix
def test_the_lease_is_over_if_another_process_has_the_pid_of_the_holder(here):
    parent = replace(here, pid=os.getppid())
    assert not held(replace(parent, started=""), 0.0).is_over
    if here.started:
        assert held(replace(parent, started="1"), 0.0).is_over


@posix
@pytest.mark.parametrize("field", ["boot", "namespace"])
def test_a_lease_from_another_boot_or_pid_namespace_is_not_ended_early(here, field):
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    elsewhere = replace(here, pid=process.pid, **{field: "another"})
    assert not held(elsewhere, 29.0).is_over


def test_the_text_of_a_holder_has_its_label_pid_and_host(here):
    assert str(held(here, 4.2)) == f"process {os.getpid()} on {here.host}, last seen 4 s ago"
    named = replace(here, label="worker two")
    assert str(named) == f"worker two (process {os.getpid()} on {here.host})"


def uptime(path: Path) -> float:
    db = sqlite3.connect(path)
    row = db.execute("SELECT uptime FROM holders").fetchone()
    db.close()
    return float(row[0])


@pytest.mark.looptime
async def test_a_lease_is_renewed_in_real_seconds_while_the_loop_is_blocked(tmp_path):
    path = tmp_path / "fleet.db"
    async with Journal(path, lease=0.03) as journal, await journal.claim("acme"):
        seen = {uptime(path)}
        while len(seen) < 4:  # the loop is blocked here
            threading.Event().wait(0.005)
            seen.add(uptime(path))


@pytest.mark.looptime
async def test_hours_on_a_virtual_clock_do_not_end_a_lease(tmp_path):
    path = tmp_path / "fleet.db"
    async with Journal(path) as one, Journal(path) as two, await one.claim("acme") as claim:
        await asyncio.sleep(100_000)
        with pytest.raises(CustomerHeld):
            await two.claim("acme")
        await claim.write("k", b"", b"s")


@pytest.mark.looptime
async def test_a_company_is_taken_over_after_its_lease_and_writes_of_the_old_claim_fail(tmp_path):
    path = tmp_path / "fleet.db"
    async with Journal(path, threaded=False) as one, Journal(path, holder="two") as two:
        claim, other = await one.claim("acme"), await one.claim("beta")
        await claim.write("k", b"", b"one")
        db = sqlite3.connect(path)  # as if the process had been suspended for a minute
        db.execute("UPDATE holders SET uptime = uptime - 60, wall = wall - 60")
        db.commit()
        db.close()
        with pytest.raises(CustomerHeld, match="another task of this journal"):
            await one.claim("acme")
        async with await two.claim("acme") as taken:
            assert taken.state == b"one"
            assert taken.token == claim.token + 1
            with pytest.raises(CustomerHeld, match="acme is held by two"):
                await claim.write("k", b"", b"stale")
            await taken.write("k", b"", b"two")
        with pytest.raises(CustomerHeld, match="no process now"):
            await claim.write("k", b"", b"stale")
        async with await two.claim("acme") as taken:
            await claim.release()  # no effect
            await taken.write("k", b"", b"two again")
        await other.write("k", b"", b"still mine")
        assert await one.states() == {"acme": b"two again", "beta": b"still mine"}
