"""Fixtures: a simulated server in this process, sessions with it, and customers with files."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from random import Random

import pytest
from inprocess import BASE_URL, KEY, InProcess

from asyncmig import Session, Spec
from asyncmig.simulator import SCHEMAS, SOURCES, RunDurations, World

OpenSession = Callable[..., AbstractAsyncContextManager[Session]]
SOURCE = next(iter(SOURCES))
CLEAN = "E-mail,Given Name,Surname,Phone\n" + "".join(f"p{n}@x.org,Ada,L{n},1\n" for n in range(20))
DUPLICATES = CLEAN + "p1@x.org,Ada,L1,1\n" * 3


@pytest.fixture
def world() -> World:
    return World(key=KEY, sources=SOURCES, schemas=SCHEMAS, seed=5, pace=RunDurations(sigma=0.0))


@pytest.fixture
def transport(world: World) -> InProcess:
    return InProcess(world)


@pytest.fixture
def open_session(transport: InProcess) -> OpenSession:
    """Return a function that opens a session with the simulator; consecutive sessions represent processes."""

    @asynccontextmanager
    async def session(**options: object) -> AsyncIterator[Session]:
        async with Session(KEY, BASE_URL, transport=transport, rng=Random(3), **options) as opened:  # type: ignore[arg-type]
            yield opened

    return session


@pytest.fixture
def customer(tmp_path: Path) -> Callable[..., Spec]:
    """Return a function that writes files and returns the spec of a customer with these files."""

    def make(external_id: str = "acme", **files: str) -> Spec:
        folder = tmp_path / "in" / external_id
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in (files or {"contacts": CLEAN}).items():
            (folder / f"{name}.csv").write_text(text, encoding="utf-8")
        paths = tuple(sorted(folder.glob("*.csv")))
        return Spec(external_id=external_id, name=f"{external_id} Ltd", source=SOURCE, files=paths)

    return make
