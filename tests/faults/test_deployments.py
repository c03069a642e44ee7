"""Rolling deployments: instances that share a journal are stopped, killed and replaced. No customer stays pending."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from farm import Farm

from asyncmig.customers.status import CustomerStatus
from asyncmig.jobs.status import read_statuses
from asyncmig.journal import open_journal

HERE = Path(__file__).parents[1]
SPEED = 20.0
EACH = 15
pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="needs POSIX signals, and /proc"),
    pytest.mark.timeout(240),
]
CHECKED = (
    "duplicate_imports",
    "duplicate_companies",
    "over_the_limit",
    "malformed",
    "key_leaks",
    "hasty_polls",
)


class Instances:
    """Processes of a service that share a journal, in the order of their start."""

    def __init__(self, farm: Farm, folder: Path, place: str) -> None:
        self._farm, self._folder, self.place = farm, folder, place
        self.started: list[subprocess.Popen[str]] = []

    async def start(self, name: str, count: int) -> "subprocess.Popen[str]":
        """Start an instance that accepts `count` customers. Wait until they are in the journal."""
        command = [sys.executable, HERE / "fleetprocess.py", f"{SPEED}", self.place, self._folder / "out"]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "VERN_BASE_URL": self._farm.base_url,
            "VERN_API_KEY": self._farm.key,
        }
        process = subprocess.Popen(  # noqa: ASYNC220 - the call returns at once
            [*command, self._folder / name, f"{count}"],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.started.append(process)
        assert await self.line(process) == "accepted"
        return process

    async def line(self, process: "subprocess.Popen[str]") -> str:
        assert process.stdout is not None
        return (await asyncio.to_thread(process.stdout.readline)).strip()

    async def imports(self, count: int) -> None:
        while self._farm.verdict()["imports"] < count:  # noqa: ASYNC110 - another process starts the imports
            await asyncio.sleep(0.1)

    async def statuses(self) -> list[CustomerStatus]:
        async with open_journal(self.place, read_only=True) as journal:
            return await read_statuses(journal)


@pytest.fixture
def farm(tmp_path: Path) -> Iterator[Farm]:
    with Farm(tmp_path, speed=SPEED, queue="", database="", window="", name="") as farm:
        yield farm


@pytest.fixture
def instances(
    request: pytest.FixtureRequest, farm: Farm, tmp_path: Path, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Instances]:
    place = str(tmp_path / "service.db")
    if request.param == "database":
        import psycopg

        url = request.getfixturevalue("database_url")
        with psycopg.connect(url, autocommit=True) as db:
            db.execute(psycopg.sql.SQL("CREATE DATABASE {}").format(psycopg.sql.Identifier(prefix)))
        place = url.rpartition("/")[0] + f"/{prefix}"
    each = Instances(farm, tmp_path, place)
    yield each
    for process in each.started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("instances", "killed_after"), [("file", EACH + 1), ("database", 2 * EACH)], indirect=["instances"]
)
async def test_no_customer_stays_pending_when_instances_are_stopped_killed_and_replaced(
    instances: Instances, farm: Farm, killed_after: int
) -> None:
    first, second = await asyncio.gather(instances.start("one", EACH), instances.start("two", EACH))
    await instances.imports(EACH // 2)
    first.send_signal(signal.SIGTERM)
    assert await instances.line(first) == "stopped"
    assert first.wait() == 0
    third = await instances.start("three", 1)
    await instances.imports(killed_after)
    second.kill()
    second.wait()
    assert await instances.line(third) == "ended"
    assert third.wait() == 0
    verdict = farm.verdict()
    outcomes = [each.outcome for each in await instances.statuses()]
    assert len(outcomes) == 2 * EACH + 1
    # A process may die before it stores the response to a create request. No endpoint finds that company.
    assert outcomes.count("unknown") == verdict["lost_companies"]
    assert outcomes.count("delivered") == len(outcomes) - verdict["lost_companies"]
    assert {name: verdict[name] for name in CHECKED} == dict.fromkeys(CHECKED, 0)
