"""The fixtures, options and hooks of all tests."""

import asyncio
import gc
import os
import sys
from collections.abc import AsyncIterator, Generator, Iterator
from pathlib import Path
from tempfile import mkdtemp
from uuid import uuid4

import pytest
from hypothesis import settings

pytest_plugins = ["asyncmig.pytest_plugin", "pytester"]

# looptime asks the policy for the main thread's loop before each test. Python 3.11 creates a loop if none was ever
# set. That loop is never closed, and its ResourceWarning fails the test during which it is garbage-collected. After
# None was set, Python creates no loop.
asyncio.set_event_loop(None)

# By default, Hypothesis fails an example that takes more than 200 ms. On a busy machine, some take longer.
settings.register_profile("asyncmig", deadline=None)
settings.load_profile("asyncmig")


@pytest.hookimpl(wrapper=True, optionalhook=True)
def pytest_xdist_auto_num_workers() -> Generator[None, int, int]:
    """With `-n auto`, start one worker more than there are cores: many tests wait for processes or real time."""
    cores = yield
    return cores + 1


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seeds", type=int, default=200, help="number of random fleets to run with faults")
    parser.addoption("--first-seed", type=int, default=0, help="seed of the first random fleet")
    parser.addoption("--customers", type=int, default=10, help="number of customers of each random fleet")
    parser.addoption(
        "--every-point",
        action="store_true",
        help="kill fleets, or let their disk fail, at every point; by default, at every second point",
    )


@pytest.fixture
def stride(request: pytest.FixtureRequest) -> int:
    """Return the distance between the points at which tests kill a fleet or let its disk fail."""
    return 1 if request.config.getoption("--every-point") else 2


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "seed_of_faults" in metafunc.fixturenames:
        first = metafunc.config.getoption("--first-seed")
        metafunc.parametrize("seed_of_faults", range(first, first + metafunc.config.getoption("--seeds")))


def pytest_itemcollected(item: pytest.Item) -> None:
    """Advance the virtual clock as soon as the loop has nothing to run.

    By default, looptime runs 42 idle iterations of the loop before it advances the clock: time for data between
    sockets. A test with sockets requests them with `looptime(noop_cycles=42)`. Threads need no idle iterations:
    looptime waits for executors.
    """
    markers = list(item.iter_markers("looptime"))
    if markers and not any("noop_cycles" in marker.kwargs for marker in markers):
        item.add_marker(pytest.mark.looptime(noop_cycles=0))


@pytest.fixture(scope="session")
def user_folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder for the folders of all tests. `mktemp` in each test would list the folders of earlier tests."""
    return tmp_path_factory.mktemp("users")


@pytest.fixture(autouse=True)
def separate_user_files(user_folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each test its own folders for the files that processes of a user share: send logs and budgets."""
    home = Path(mkdtemp(dir=user_folders))
    for name in ("XDG_STATE_HOME", "XDG_RUNTIME_DIR"):
        (home / name).mkdir(mode=0o700)
        monkeypatch.setenv(name, str(home / name))


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Yield the URL of a Redis server for all tests of a process: `REDIS_URL`, or one started here."""
    if url := os.environ.get("REDIS_URL"):
        yield url
        return
    from servers import RedisServer  # not at the top: most tests need no server

    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server.url
    server.stop()


@pytest.fixture(scope="session")
def database_url() -> Iterator[str]:
    """Yield the URL of a PostgreSQL server for all tests of a process: `DATABASE_URL`, or one started here."""
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
    """Run a test with normal tasks and, on Python 3.12+, also with eager tasks."""
    loop = asyncio.get_running_loop()
    if sys.version_info >= (3, 12) and request.param == "eager":
        loop.set_task_factory(asyncio.eager_task_factory)
    yield
    loop.set_task_factory(None)


@pytest.fixture
def without_garbage() -> None:
    """Delete unreachable objects of earlier tests, which may hold file descriptors that the test counts."""
    gc.collect()


@pytest.fixture
def prefix() -> str:
    """Return a unique prefix for the names that a test uses in shared servers."""
    return f"test_{uuid4().hex}"
