"""Fleets in real processes that SIGKILL ends or SIGSTOP suspends, with a journal on disk and real sockets."""

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
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="identifies dead processes with /proc"),
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
from faults.test_kills import KEY, comparable, customers
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
        # SIGSTOP is sent from the thread that writes the journal. No transaction is open then, which would lock the
        # file. The signal goes to the calling thread: with another receiver, this thread could continue for a moment.
        kill = lambda: signal.pthread_kill(threading.get_ident(), number)
        kill() if number == signal.SIGKILL else journal._writer._executor.submit(kill).result()
        life.wake()
    life = Life(point, after=after, kill=end)
    outcomes = fast_loop(float(sys.argv[3])).run_until_complete(fleet(url, folder, life, journal))
    summaries = {key.partition("-")[2]: (each["type"], each.get("rows"), each.get("error"))
               for key, each in comparable(outcomes).items()}
    (folder / f"{name}.json").write_text(json.dumps([len(life.points), summaries]))

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
    """Serve a world from a thread. Some requests meet faults."""
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
    """Programs that receive jobs on stdin, and run each fleet in a child process."""

    def __init__(self, url: str) -> None:
        command = [sys.executable, "-c", PROGRAM, str(Path(__file__).parents[1]), url, str(SPEED)]
        self._programs = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for _ in range(PROCESSES)
        ]
        self._free = list(self._programs)
        self._threads = ThreadPoolExecutor(PROCESSES)

    def run(self, jobs: Iterable[Job]) -> list[list[int]]:
        """Run two processes for each job: one that receives its signal at a point, and one that continues.

        A job without a point has the second process only. Return the exit statuses of the processes. A stopped
        process also has its status after it continued, at the end.
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


def read_result(folder: Path, name: str = "second") -> tuple[int, dict[str, list[object]]]:
    """Return the number of points that a process passed, and its outcomes."""
    points, outcomes = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    return points, outcomes


def server_state(world: World, folder: Path) -> object:
    """Return the companies that the server has for the customers of one fleet."""
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


def adopt_unknown(world: World, folder: Path) -> int:
    unknown = [
        f"{folder.name}-{name}" for name, outcome in read_result(folder)[1].items() if outcome[0] == "unknown"
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
    """Fleets that received the same signal, each at another point, and a reference that received none."""

    world: World
    reference: Path
    folders: list[Path]
    statuses: list[list[int]]
    points: int
    adopted: int

    def check(self) -> None:
        """Check that all fleets have the result of the reference."""
        for folder in self.folders:
            assert read_result(folder)[1] == read_result(self.reference)[1], folder
            assert server_state(self.world, folder) == server_state(self.world, self.reference), folder
            assert files(folder / "out", folder.name) == files(self.reference / "out", self.reference.name), (
                folder
            )
        verdict = self.world.verdict(10.0**6)
        assert verdict.duplicate_companies == verdict.blind_decisions == verdict.key_leaks == 0
        assert verdict.unaccounted == 0


def run_trials(folder: Path, number: signal.Signals, count: int) -> Trials:
    """Run `count` fleets that receive a signal at evenly spaced points.

    Half of them receive it just before the write or request at that point, and the others just after it.
    """
    world = World(
        key=KEY,
        sources=SOURCES,
        schemas=SCHEMAS,
        seed=1,
        limit=lambda: SlidingLog(10**6),
        pace=RunDurations(queued=0.5, base=2.0, per_row=0.0, sigma=0.0),
        variants=Variants(parks_twice=True, failed_writes=0.0, hollow_writes=0.0),
    )
    reference, *folders = [folder / f"t{number:02}" for number in range(count + 1)]
    for each in (reference, *folders):
        each.mkdir()
    with served(world) as url, Processes(url) as processes:
        assert processes.run([(reference, None, False, 0)]) == [[0]]
        points = read_result(reference)[0]
        at = [round(1 + n * 0.9 * (points - 1) / (count - 1)) for n in range(count)]
        statuses = processes.run((each, at[n], bool(n % 2), int(number)) for n, each in enumerate(folders))
        # The answer to any create request may be lost, also to one of the reference.
        adopted = {each: adopt_unknown(world, each) for each in (reference, *folders)}
        again: list[Job] = [(each, None, False, 0) for each, lost in adopted.items() if lost]
        assert processes.run(again) == [[0]] * len(again)
    return Trials(world, reference, folders, statuses, points, sum(adopted.values()))


def test_a_fleet_ended_by_sigkill_has_the_same_result_after_a_restart(tmp_path: Path, stride: int) -> None:
    count = 44 // stride
    trials = run_trials(tmp_path, signal.SIGKILL, count)
    killed = [first for first, second in trials.statuses if first == signal.SIGKILL and second == 0]
    print(  # noqa: T201
        f"{trials.points} points, {len(killed)} killed, {trials.adopted} companies adopted"
    )
    assert len(killed) >= count - 4
    trials.check()


def test_a_process_that_sigstop_suspends_past_its_lease_causes_no_duplicates(tmp_path: Path) -> None:
    trials = run_trials(tmp_path, signal.SIGSTOP, 12)
    stopped = [
        folder for folder, ended in zip(trials.folders, trials.statuses, strict=True) if len(ended) == 3
    ]
    print(f"{trials.points} points, {len(stopped)} stopped, {trials.adopted} companies adopted")  # noqa: T201
    assert len(stopped) >= 10
    # Fleets that ended before their signal are included.
    assert {code for ended in trials.statuses for code in ended[1:]} == {0}
    for folder in stopped:
        continued = read_result(folder, "first")[1]
        held = [error for kind, _, error in continued.values() if kind == "pending"]
        assert all("is held by" in str(error) for error in held)
    assert any(
        kind == "pending" for folder in stopped for kind, *_ in read_result(folder, "first")[1].values()
    )
    trials.check()
