"""Fixtures: a simulator in a separate thread, and the command line in the process of the test."""

import asyncio
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

from asyncmig.cli.app import run_app
from asyncmig.simulator import Reply, Request, World, fast_loop, migrations
from asyncmig.simulator.companies.tables import Column, Schema
from asyncmig.simulator.server.app import Served, serve
from asyncmig.simulator.server.settings import RunDurations

SPEED = 60.0
KEY = "sk-very-secret"
SOURCE, CONTACTS = "11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222"
SCHEMAS = (
    Schema(
        id=CONTACTS,
        name="Contacts",
        columns=(
            Column(name="Email", required=True, unique=True, pattern=r"\S+@\S+"),
            Column(name="Name", required=True),
        ),
    ),
)


@dataclass
class Simulator:
    """A served world. `intercept` can answer a request instead of it."""

    world: World
    base_url: str = ""
    intercept: Callable[[Request], Reply | None] = field(default=lambda request: None)

    def handle(self, request: Request, now: float) -> Reply:
        return self.intercept(request) or self.world.handle(request, now)

    def storage(self, request: Request, now: float) -> Reply:
        return self.world.storage(request, now)

    def endpoint_of(self, request: Request) -> str:
        return self.world.endpoint_of(request)

    @property
    def storage_url(self) -> str:
        return self.world.storage_url

    @storage_url.setter
    def storage_url(self, url: str) -> None:
        self.world.storage_url = url

    def count(self, endpoint: str = "") -> int:
        return sum(entry.endpoint.startswith(endpoint) for entry in self.world.ledger.entries)


@contextmanager
def in_thread(served: Served, take: Callable[[str], None]) -> Iterator[None]:
    """Serve on loopback with a separate, faster clock. `take` receives the base URL."""
    ready, loop = threading.Event(), fast_loop(SPEED)
    stop = asyncio.Event()

    async def main() -> None:
        async with serve(served) as serving:
            take(serving.base_url)
            ready.set()
            await stop.wait()

    def work() -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(main())

    thread = threading.Thread(target=work)
    thread.start()
    assert ready.wait(60)
    yield
    loop.call_soon_threadsafe(stop.set)
    thread.join()


@contextmanager
def serving(pace: RunDurations) -> Iterator[Simulator]:
    simulator = Simulator(World(key=KEY, sources={SOURCE: "HubSpot"}, schemas=SCHEMAS, pace=pace))
    with in_thread(simulator, partial(setattr, simulator, "base_url")):  # type: ignore[arg-type]
        yield simulator


@pytest.fixture
def simulator() -> Iterator[Simulator]:
    with serving(RunDurations(queued=0.5, base=1.0, per_row=0.0)) as simulator:
        yield simulator


Accounts = Callable[..., migrations.World]


@pytest.fixture
def account() -> Iterator[Accounts]:
    """Serve accounts of the API generation "migrations": `account(scripts=...)`.

    The default limits are higher than any test needs.
    """
    with ExitStack() as stack:

        def begin(limits: str = "per-endpoint", **options: object) -> migrations.World:
            given = {"pace": RunDurations(queued=0.5, base=1.0, per_row=0.0), **options}
            world = migrations.World(key=KEY, limits=migrations.Limits.parse(limits), **given)  # type: ignore[arg-type]
            stack.enter_context(in_thread(world, lambda url: None))
            return world

        yield begin


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


Cli = Callable[..., Result]


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Run the program in `tmp_path`, as from a shell without a terminal."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VERN_BASE_URL", raising=False)
    monkeypatch.setenv("VERN_API_KEY", KEY)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*args: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["asyncmig", *map(str, args)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            run_app()
        code = caught.value.code
        assert code is None or isinstance(code, int)
        return Result(code or 0, *capsys.readouterr())

    return run


@pytest.fixture
def customers(tmp_path: Path) -> Callable[..., Path]:
    """Write a manifest with a file for each customer: `external_id=content`."""

    def write(**files: bytes) -> Path:
        lines = ["external_id,name,source,templates,files"]
        for external_id, content in files.items():
            (tmp_path / f"{external_id}.csv").write_bytes(content)
            lines.append(f"{external_id},{external_id} Inc,HubSpot,Contacts,{external_id}.csv")
        path = tmp_path / "customers.csv"
        path.write_text("\n".join(lines), encoding="utf-8")
        return path

    return write
