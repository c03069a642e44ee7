"""What all tests share."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Generator, Iterator
from pathlib import Path
from tempfile import mkdtemp
from uuid import uuid4

import pytest
from hypothesis import settings

pytest_plugins = ["asyncmig.pytest_plugin", "pytester"]

# looptime asks the policy for the main thread's loop before each test. Python 3.11 makes one if none was ever set,
# nobody closes it, and the garbage collector's warning fails whichever test runs then. "None" counts as set.
asyncio.set_event_loop(None)

# Hypothesis fails an example that takes more than 200 ms, which happens on a busy machine.
settings.register_profile("asyncmig", deadline=None)
settings.load_profile("asyncmig")


@pytest.hookimpl(wrapper=True, optionalhook=True)
def pytest_xdist_auto_num_workers() -> Generator[None, int, int]:
    """With `-n auto`, start one worker more than there are cores: many tests wait for processes and real clocks."""
    cores = yield
    return cores + 1


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seeds", type=int, default=200, help="how many random fleets to drive through faults")
    parser.addoption("--first-seed", type=int, default=0, help="the first of them")
    parser.addoption("--customers", type=int, default=10, help="of each of them")
    parser.addoption(
        "--every-point",
        action="store_true",
        help="kill or fail fleets at every point; without it, at every second one",
    )


@pytest.fixture
def stride(request: pytest.FixtureRequest) -> int:
    """The distance of the points at which a fleet is killed, or meets a failing disk."""
    return 1 if request.config.getoption("--every-point") else 2


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "seed_of_faults" in metafunc.fixturenames:
        first = metafunc.config.getoption("--first-seed")
        metafunc.parametrize("seed_of_faults", range(first, first + metafunc.config.getoption("--seeds")))


def pytest_itemcollected(item: pytest.Item) -> None:
    """Let the virtual clock jump as soon as the loop has nothing to run.

    By default, looptime idles 42 turns of the loop before each jump, for data on its way between sockets. A test with
    sockets asks for them: `looptime(noop_cycles=42)`. Threads need none: looptime waits for executors.
    """
    markers = list(item.iter_markers("looptime"))
    if markers and not any("noop_cycles" in marker.kwargs for marker in markers):
        item.add_marker(pytest.mark.looptime(noop_cycles=0))


@pytest.fixture(scope="session")
def users(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Contain a folder for each test. `mktemp` for each test would list the folders of all tests before it."""
    return tmp_path_factory.mktemp("users")


@pytest.fixture(autouse=True)
def no_files_of_the_user(users: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what processes of the user share (send logs, budgets) away from the user and from other tests."""
    home = Path(mkdtemp(dir=users))
    for name in ("XDG_STATE_HOME", "XDG_RUNTIME_DIR"):
        (home / name).mkdir(mode=0o700)
        monkeypatch.setenv(name, str(home / name))


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Redis for all tests of a process; `REDIS_URL` if it is set."""
    if url := os.environ.get("REDIS_URL"):
        yield url
        return
    from servers import RedisServer  # most tests need no server

    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server.url
    server.stop()


@pytest.fixture(scope="session")
def database_url() -> Iterator[str]:
    """A PostgreSQL for all tests of a process; `DATABASE_URL` if it is set."""
    if url := os.environ.get("DATABASE_URL"):
        yield url
        return
    from servers import PostgresServer

    server = PostgresServer()
    server.start()
    yield server.url
    server.remove()


@pytest.fixture(params=["lazy", "eager"] if sys.version_info >= (3, 12) else ["lazy"])
async def task_factory(request: pytest.FixtureRequest) -> AsyncIterator[None]:
    """Run a test with tasks that start in the next turn of the loop, and on Python 3.12+ with eager ones, too."""
    loop = asyncio.get_running_loop()
    if sys.version_info >= (3, 12) and request.param == "eager":
        loop.set_task_factory(asyncio.eager_task_factory)
    yield
    loop.set_task_factory(None)


@pytest.fixture
def prefix() -> str:
    """Begins the names of one test."""
    return f"test_{uuid4().hex}"
