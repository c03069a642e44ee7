"""The same with real processes: a fleet that kills itself with SIGKILL, on a journal on disk, over real sockets."""

import asyncio
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from random import Random

import pytest

from asyncmig import Journal, adopt
from asyncmig.simulator import SCHEMAS, SOURCES, Faults, Pace, Variants, World, fast_loop, serve
from asyncmig.simulator import exports as simulated
from asyncmig.simulator.limits import SlidingLog

from .test_kills import KEY, files

pytestmark = [
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="tells the dead by /proc"),
    pytest.mark.timeout(300),
]
SPEED = 60.0
DEATHS = 44
PROCESSES = 4
PROGRAM = """
import json, os, signal, sys
from pathlib import Path
from random import Random
sys.path[:0] = [sys.argv[1]]
from faults.test_kills import KEY, customers, told
from asyncmig import Fleet, Journal, Session
from asyncmig._io.transport import AiohttpTransport
from asyncmig.simulator import fast_loop
from mortal import Life, MortalJournal, MortalTransport

async def main(url, folder, life):
    specs = customers(folder / "in", prefix=folder.name + "-")
    transport = MortalTransport(AiohttpTransport(None, trust_env=False), life)
    async with (
        Journal(folder / "fleet.db") as journal,
        Session(KEY, url, transport=transport, rng=Random(1)) as session,
        Fleet(session, journal=MortalJournal(journal, life), to=folder / "out", decide="approve",
              retries=1, export="full") as fleet,
    ):
        return {each.external_id: each async for each in fleet.run(specs)}

def process(url, folder, number, after):
    life = Life(number, after=after, kill=lambda: os.kill(os.getpid(), signal.SIGKILL))
    outcomes = fast_loop(float(sys.argv[3])).run_until_complete(main(url, folder, life))
    told_of = {name.partition("-")[2]: (each["type"], each.get("rows"), each.get("error"))
               for name, each in told(outcomes).items()}
    (folder / "told.json").write_text(json.dumps([len(life.points), told_of]))

for line in sys.stdin:
    folder, numbers, after = json.loads(line)
    statuses = []
    for number in numbers:
        pid = os.fork()
        if pid == 0:
            try:
                process(sys.argv[2], Path(folder), number, after)
            except BaseException:
                import traceback
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        statuses.append(os.waitpid(pid, 0)[1])
    print(json.dumps(statuses), flush=True)
"""


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
    assert ready.wait(20)
    yield urls[0]
    loop.call_soon_threadsafe(stop.set)
    thread.join()


class Processes:
    """Programs that run fleets in children of theirs, and do as they are told."""

    def __init__(self, url: str) -> None:
        command = [sys.executable, "-c", PROGRAM, str(Path(__file__).parents[1]), url, str(SPEED)]
        self._free = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for _ in range(PROCESSES)
        ]
        self._threads = ThreadPoolExecutor(PROCESSES)

    def run(self, jobs: list[tuple[Path, list[int | None], bool]]) -> list[list[int]]:
        """Run fleets in folders, one after another as often as there are numbers; return how each ended."""
        return list(self._threads.map(self._one, jobs))

    def _one(self, job: tuple[Path, list[int | None], bool]) -> list[int]:
        program = self._free.pop()
        assert program.stdin is not None
        assert program.stdout is not None
        program.stdin.write(json.dumps([str(job[0]), *job[1:]]) + "\n")
        program.stdin.flush()
        statuses: list[int] = json.loads(program.stdout.readline())
        self._free.append(program)
        return statuses

    def close(self) -> None:
        self._threads.shutdown()
        for program in self._free:
            program.communicate()


def told(folder: Path) -> tuple[int, dict[str, list[object]]]:
    points, outcomes = json.loads((folder / "told.json").read_text(encoding="utf-8"))
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
        for company in world._companies.values()
        if company.name.startswith(f"{folder.name}-")
    }


def adopt_the_unknown(world: World, folder: Path) -> int:
    unknown = [
        f"{folder.name}-{name}" for name, outcome in told(folder)[1].items() if outcome[0] == "unknown"
    ]
    ids = {company.name: company.id for company in world._companies.values()}

    async def write() -> None:
        async with Journal(folder / "fleet.db") as journal:
            for name in unknown:
                await adopt(journal, name, ids[name])

    asyncio.run(write())
    return len(unknown)


def test_killed_with_sigkill_it_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulated, "_FAILS", 0.0)
    monkeypatch.setattr(simulated, "_HOLLOW", 0.0)
    world = World(
        key=KEY,
        sources=SOURCES,
        schemas=SCHEMAS,
        seed=1,
        limit=lambda: SlidingLog(10**6),
        pace=Pace(queued=0.5, base=2.0, per_row=0.0, sigma=0.0),
        variants=Variants(parks_twice=True),
    )
    folders = [tmp_path / f"t{number:02}" for number in range(DEATHS + 1)]
    for folder in folders:
        folder.mkdir()
    whole, *killed = folders
    with served(world) as url:
        processes = Processes(url)
        assert processes.run([(whole, [None], False)]) == [[0]]
        points = told(whole)[0]
        numbers = [round(1 + n * 0.9 * (points - 1) / (DEATHS - 1)) for n in range(DEATHS)]
        jobs = [
            (folder, [number, None], bool(n % 2))
            for n, (folder, number) in enumerate(zip(killed, numbers, strict=True))
        ]
        statuses = processes.run(jobs)
        adopted = {folder: adopt_the_unknown(world, folder) for folder in killed}
        again = [folder for folder, count in adopted.items() if count]
        assert processes.run([(folder, [None], False) for folder in again]) == [[0]] * len(again)
        processes.close()
    deaths = [status for status, _ in statuses if status == signal.SIGKILL]
    print(f"{points} points, {len(deaths)} killed; {sum(adopted.values())} companies had to be adopted")  # noqa: T201
    assert {status for _, status in statuses} == {0}
    assert len(deaths) >= 40
    for folder in killed:
        assert told(folder)[1] == told(whole)[1], folder
        assert made(world, folder) == made(world, whole), folder
        assert files(folder / "out", folder.name) == files(whole / "out", whole.name), folder
    verdict = world.verdict(10.0**6)
    assert verdict.duplicate_companies == verdict.blind_decisions == verdict.key_leaks == 0
    assert verdict.unaccounted == 0
