"""The same with real processes, a journal on disk and real sockets: fleets that kill themselves, or fall asleep."""

import asyncio
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Self

import pytest

from asyncmig import Journal, adopt
from asyncmig.simulator import SCHEMAS, SOURCES, Faults, RunDurations, Variants, World, fast_loop, serve
from asyncmig.simulator.server.limits import SlidingLog

from .test_kills import KEY, files

pytestmark = [
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="tells the dead by /proc"),
    pytest.mark.timeout(300),
]
SPEED = 60.0
PROCESSES = 4
PROGRAM = """
import json, os, signal, sys, threading, time, traceback
from pathlib import Path
from random import Random
from typing import Self
sys.path[:0] = [sys.argv[1]]
from faults.test_kills import KEY, customers, told
from asyncmig import Fleet, Journal, Session
from asyncmig._io.aiohttp_transport import AiohttpTransport
from asyncmig.simulator import fast_loop
from mortal import Life, MortalJournal, MortalTransport

LEASE = 0.4

async def fleet(url, folder, life, journal):
    specs = customers(folder / "in", prefix=folder.name + "-")
    transport = MortalTransport(AiohttpTransport(None, trust_env=False), life)
    async with (
        journal,
        Session(KEY, url, transport=transport, rng=Random(1)) as session,
        Fleet(session, journal=MortalJournal(journal, life), to=folder / "out", decide="approve",
              retries=1, export="full", when_held="return") as fleet,
    ):
        return {each.external_id: each async for each in fleet.run(specs)}

def process(url, folder, point, after, number, name):
    journal = Journal(folder / "fleet.db", holder=name, lease=LEASE if number == signal.SIGSTOP else 30.0)
    def end():
        # A pause in the thread that writes is never in the middle of a transaction, which would lock the file. The
        # signal is for this thread: if another one received it, this one could go on until that one has stopped it.
        kill = lambda: signal.pthread_kill(threading.get_ident(), number)
        kill() if number == signal.SIGKILL else journal._writer._executor.submit(kill).result()
        life.wake()
    life = Life(point, after=after, kill=end)
    outcomes = fast_loop(float(sys.argv[3])).run_until_complete(fleet(url, folder, life, journal))
    told_of = {key.partition("-")[2]: (each["type"], each.get("rows"), each.get("error"))
               for key, each in told(outcomes).items()}
    (folder / f"{name}.json").write_text(json.dumps([len(life.points), told_of]))

def start(*args):
    pid = os.fork()
    if pid == 0:
        try:
            process(sys.argv[2], *args)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return pid

for line in sys.stdin:
    folder, point, after, number = json.loads(line)
    folder, statuses = Path(folder), []
    if point is not None:
        first = start(folder, point, after, number, "first")
        statuses.append(os.waitpid(first, os.WUNTRACED)[1])
        if os.WIFSTOPPED(statuses[0]):
            time.sleep(2 * LEASE)
    statuses.append(os.waitpid(start(folder, None, False, signal.SIGKILL, "second"), 0)[1])
    if point is not None and os.WIFSTOPPED(statuses[0]):
        os.kill(first, signal.SIGCONT)
        statuses.append(os.waitpid(first, 0)[1])
    print(json.dumps(statuses), flush=True)
"""
Job = tuple[Path, int | None, bool, int]


@contextmanager
def served(world: World) -> Iterator[str]:
    """Serve a world from a thread, some requests in trouble."""
    loop, ready, stop = fast_loop(SPEED), threading.Event(), asyncio.Event()
    rates = dict.fromkeys(("request-lost", "500-before", "html-502", "truncated"), 0.02)
    urls: list[str] = []

    async def main() -> None:
        async with serve(world, faults=Faults(rates, rng=Random(3))) as serving:
            urls.append(serving.base_url)
            ready.set()
            await stop.wait()

    def work() -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(main())

    thread = threading.Thread(target=work)
    thread.start()
    assert ready.wait(60)
    try:
        yield urls[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()


class Processes:
    """Programs that run fleets in children of theirs, and do as they are told."""

    def __init__(self, url: str) -> None:
        command = [sys.executable, "-c", PROGRAM, str(Path(__file__).parents[1]), url, str(SPEED)]
        self._programs = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for _ in range(PROCESSES)
        ]
        self._free = list(self._programs)
        self._threads = ThreadPoolExecutor(PROCESSES)

    def run(self, jobs: Iterable[Job]) -> list[list[int]]:
        """Run fleets in folders: one that meets its signal at a point, if there is one, and one that goes on.

        Return how each process ended, the one that slept last.
        """
        return list(self._threads.map(self._one, jobs))

    def _one(self, job: Job) -> list[int]:
        program = self._free.pop()
        assert program.stdin is not None
        assert program.stdout is not None
        program.stdin.write(json.dumps([str(job[0]), *job[1:]]) + "\n")
        program.stdin.flush()
        statuses: list[int] = json.loads(program.stdout.readline())
        self._free.append(program)
        return statuses

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._threads.shutdown()
        for program in self._programs:
            program.communicate()


def told(folder: Path, name: str = "second") -> tuple[int, dict[str, list[object]]]:
    points, outcomes = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    return points, outcomes


def made(world: World, folder: Path) -> object:
    """Return what the server has of the customers of one fleet."""
    return {
        company.name.partition("-")[2]: (
            [(run.digest, run.status(10.0**6), run.parks, run.decided) for run in company.runs.values()],
            [run.describe(10.0**6) for run in company.exports.values()],
            len(company.keys),
            [table.rows for table in company.tables],
        )
        for company in world.companies.values()
        if company.name.startswith(f"{folder.name}-")
    }


def adopt_the_unknown(world: World, folder: Path) -> int:
    unknown = [
        f"{folder.name}-{name}" for name, outcome in told(folder)[1].items() if outcome[0] == "unknown"
    ]
    ids = {company.name: company.id for company in world.companies.values()}

    async def write() -> None:
        async with Journal(folder / "fleet.db") as journal:
            for name in unknown:
                await adopt(journal, name, ids[name])

    asyncio.run(write())
    return len(unknown)


@dataclass
class Trials:
    """Fleets that all met the same signal, each at a point of its own; and one that met none."""

    world: World
    whole: Path
    folders: list[Path]
    statuses: list[list[int]]
    points: int
    adopted: int

    def check(self) -> None:
        """All of them ended as the one that met no signal."""
        for folder in self.folders:
            assert told(folder)[1] == told(self.whole)[1], folder
            assert made(self.world, folder) == made(self.world, self.whole), folder
            assert files(folder / "out", folder.name) == files(self.whole / "out", self.whole.name), folder
        verdict = self.world.verdict(10.0**6)
        assert verdict.duplicate_companies == verdict.blind_decisions == verdict.key_leaks == 0
        assert verdict.unaccounted == 0


def tried(folder: Path, number: signal.Signals, count: int) -> Trials:
    """Let `count` fleets meet a signal at points spread over them, half of these just after what happens there."""
    world = World(
        key=KEY,
        sources=SOURCES,
        schemas=SCHEMAS,
        seed=1,
        limit=lambda: SlidingLog(10**6),
        pace=RunDurations(queued=0.5, base=2.0, per_row=0.0, sigma=0.0),
        variants=Variants(parks_twice=True, failed_writes=0.0, hollow_writes=0.0),
    )
    whole, *folders = [folder / f"t{number:02}" for number in range(count + 1)]
    for each in (whole, *folders):
        each.mkdir()
    with served(world) as url, Processes(url) as processes:
        assert processes.run([(whole, None, False, 0)]) == [[0]]
        points = told(whole)[0]
        at = [round(1 + n * 0.9 * (points - 1) / (count - 1)) for n in range(count)]
        statuses = processes.run((each, at[n], bool(n % 2), int(number)) for n, each in enumerate(folders))
        # The answer to any creation may be lost, also one of the fleet that met no signal.
        adopted = {each: adopt_the_unknown(world, each) for each in (whole, *folders)}
        again: list[Job] = [(each, None, False, 0) for each, lost in adopted.items() if lost]
        assert processes.run(again) == [[0]] * len(again)
    return Trials(world, whole, folders, statuses, points, sum(adopted.values()))


def test_killed_with_sigkill_it_ends_the_same(tmp_path: Path, stride: int) -> None:
    count = 44 // stride
    trials = tried(tmp_path, signal.SIGKILL, count)
    killed = [first for first, second in trials.statuses if first == signal.SIGKILL and second == 0]
    print(  # noqa: T201
        f"{trials.points} points, {len(killed)} killed; {trials.adopted} companies had to be adopted"
    )
    assert len(killed) >= count - 4
    trials.check()


def test_stopped_past_its_lease_it_doubles_nothing_when_it_wakes(tmp_path: Path) -> None:
    trials = tried(tmp_path, signal.SIGSTOP, 12)
    slept = [folder for folder, ended in zip(trials.folders, trials.statuses, strict=True) if len(ended) == 3]
    print(f"{trials.points} points, {len(slept)} slept; {trials.adopted} companies had to be adopted")  # noqa: T201
    assert len(slept) >= 10
    assert {code for ended in trials.statuses for code in ended[1:]} == {0}  # also of those that ended before
    for folder in slept:
        woken = told(folder, "first")[1]
        held = [error for kind, _, error in woken.values() if kind == "pending"]
        assert all("is held by" in str(error) for error in held)
    assert any(kind == "pending" for folder in slept for kind, *_ in told(folder, "first")[1].values())
    trials.check()
