"""Processes that share a journal: killed at each statement or at any moment, suspended, and concurrent."""

import asyncio
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from asyncmig.errors import CustomerHeld, JournalError
from asyncmig.journal import Claim, Journal

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals"),
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc"),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "fleet.db"


@contextmanager
def process(code: str, *args: object) -> Iterator[subprocess.Popen[str]]:
    """Run `code` in a process, and kill it at the end."""
    command = [sys.executable, "-c", code, *map(str, args)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        try:
            yield child
        finally:
            child.kill()


COUNT = """
import asyncio, sys
from asyncmig.journal import Journal
async def count(journal, name):
    async with await journal.claim(name) as claim:
        number = int(claim.state or b"0")
        while True:
            number += 1
            await claim.write("count", b"%d" % number, b"%d" % number)
            print(name, number, flush=True)
async def main():
    async with Journal(sys.argv[1]) as journal:
        await asyncio.gather(*(count(journal, name) for name in "abcde"))
asyncio.run(main())
"""


async def test_a_process_killed_at_any_moment_loses_no_acknowledged_write_and_holds_no_company(path):
    rng = random.Random(7)
    for _ in range(6):
        with process(COUNT, path) as child:
            lines = [child.stdout.readline() for _ in range(rng.randrange(5, 200))]
            child.kill()
            lines += [line for line in child.stdout if line.endswith("\n")]
        acknowledged = {name: int(number) for name, number in (line.split() for line in lines)}
        async with Journal(path) as journal:
            for name in "abcde":
                async with await journal.claim(name) as claim:
                    state = int(claim.state)
                    assert acknowledged[name] <= state <= acknowledged[name] + 1
                    numbers = [int(event.detail) for event in await journal.events(name)]
                    assert numbers == list(range(1, state + 1))


EACH_STATEMENT = """
import asyncio, os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_journal_file as here

class Deadly(here.sqlite3.Connection):
    def execute(self, sql, parameters=()):
        self.left[0] -= 1
        if self.left[0] == 0 and not self.late:
            os.kill(os.getpid(), signal.SIGKILL)
        cursor = super().execute(sql, parameters)
        if self.left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return cursor

here.Failing = Deadly
points, stride = 0, int(sys.argv[3])
for late in (False, True):
    for n in range(1 + late % stride, 1000, stride):
        path = Path(sys.argv[2]) / f"{late}-{n}.db"
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            class Acknowledged(dict):
                def __setitem__(self, name, number):
                    os.write(writing, name.encode() + b" " + number + b"\\n")
            asyncio.run(here.scenario(path, here.failing([n], late=late), Acknowledged()))
            os._exit(0)
        os.close(writing)
        with open(reading, "rb") as pipe:
            acknowledged = {name.decode(): number for name, number in (line.split() for line in pipe)}
        _, status = os.waitpid(pid, 0)
        asyncio.run(here.check(path, acknowledged, doubtful=1))
        if not os.WIFSIGNALED(status):
            assert status == 0
            break
        points += 1
print(points)
"""


def test_a_process_killed_at_any_statement_loses_no_acknowledged_write_and_holds_no_company(tmp_path, stride):
    command = [sys.executable, "-c", EACH_STATEMENT, str(Path(__file__).parent), str(tmp_path), str(stride)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 80 // stride


HOLD = """
import asyncio, sys
from asyncmig.journal import Journal
async def main():
    async with Journal(sys.argv[1], holder="the other") as journal, await journal.claim("acme"):
        print("ready", flush=True)
        sys.stdin.readline()
asyncio.run(main())
"""


async def test_a_company_of_a_live_process_is_refused_and_is_free_after_the_process_died(path):
    with process(HOLD, path) as child:
        child.stdout.readline()
        async with Journal(path) as journal:
            with pytest.raises(CustomerHeld, match=rf"held by the other \(process {child.pid} on "):
                await journal.claim("acme")
            async with await journal.claim("beta"):
                pass
            child.kill()
            child.wait()
            async with await journal.claim("acme"):
                pass


async def test_a_company_is_free_after_its_process_ended_normally(path):
    with process(HOLD, path) as child:
        child.stdout.readline()
        child.communicate("\n")
        assert child.returncode == 0
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    async with Journal(path) as journal, await journal.claim("acme"):
        pass


PAUSED = """
import asyncio, signal, sys, threading
from asyncmig.errors import CustomerHeld
from asyncmig.journal import Journal
async def main():
    async with Journal(sys.argv[1], lease=0.3) as journal:
        acme, beta = await journal.claim("acme"), await journal.claim("beta")
        await acme.write("k", b"first", b"first")
        # Stop in the thread of the writer: during a transaction, the file would stay locked.
        stop = lambda: signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
        journal._writer._executor.submit(stop).result()
        try:
            await acme.write("k", b"stale", b"stale")
        except CustomerHeld as error:
            print(error.holder.split(" (")[0])
        await acme.release()
        await beta.write("k", b"mine", b"mine")
asyncio.run(main())
"""


async def claim_when_free(journal: Journal, external_id: str) -> Claim:
    async with asyncio.timeout(60):
        while True:
            try:
                return await journal.claim(external_id)
            except CustomerHeld:
                await asyncio.sleep(0.05)


async def test_a_process_that_was_suspended_beyond_its_lease_cannot_write(path):
    with process(PAUSED, path) as child:
        await asyncio.to_thread(os.waitid, os.P_PID, child.pid, os.WSTOPPED)
        async with Journal(path, holder="the successor") as journal:
            async with await claim_when_free(journal, "acme") as claim:
                assert claim.state == b"first"
                await claim.write("k", b"second", b"second")
                child.send_signal(signal.SIGCONT)
                assert child.communicate()[0] == "the successor\n"
                assert child.returncode == 0
                await claim.write("k", b"third", b"third")
            assert [event.detail for event in await journal.events("acme")] == [b"first", b"second", b"third"]
            assert await journal.states() == {"acme": b"third", "beta": b"mine"}


SHARE = """
import asyncio, random, sys
from asyncmig.errors import CustomerHeld
from asyncmig.journal import Journal
async def count(journal, name, rng):
    done = 0
    while done < 5:
        await asyncio.sleep(rng.random() * 0.01)
        try:
            claim = await journal.claim(name)
        except CustomerHeld:
            continue
        async with claim:
            number = b"%d" % (int(claim.state or b"0") + 1)
            await asyncio.sleep(0)
            await claim.write(sys.argv[2], number, number)
            done += 1
async def main():
    rng = random.Random(int(sys.argv[2]))
    print("ready", flush=True)
    sys.stdin.readline()
    async with Journal(sys.argv[1]) as journal:
        await asyncio.gather(*(count(journal, f"c{n}", rng) for n in range(20)))
asyncio.run(main())
"""


async def test_processes_that_share_a_new_file_lose_no_update(path):
    with process(SHARE, path, 0) as one, process(SHARE, path, 1) as two, process(SHARE, path, 2) as three:
        children = (one, two, three)
        for child in children:
            child.stdout.readline()
        for child in children:  # all processes create the file at the same time
            child.stdin.write("\n")
            child.stdin.flush()
        for child in children:
            child.communicate()
            assert child.returncode == 0
    async with Journal(path, read_only=True) as journal:
        assert set((await journal.states()).values()) == {b"15"}
        for name in await journal.states():
            events = await journal.events(name)
            assert [int(event.detail) for event in events] == list(range(1, 16))
            assert {event.kind for event in events} == {"0", "1", "2"}


async def test_a_journal_can_be_read_while_another_process_writes(path):
    with process(COUNT, path) as child:
        for _ in range(10):
            child.stdout.readline()
        async with Journal(path, read_only=True) as journal:
            seen = 0
            for _ in range(20):
                events = await journal.events(after=seen)
                assert [event.seq for event in events] == list(range(seen + 1, seen + 1 + len(events)))
                seen += len(events)
            assert seen >= 10
            assert set(await journal.states()) == set("abcde")
            with pytest.raises(JournalError, match="reading only"):
                await journal.claim("a")
