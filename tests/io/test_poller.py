"""Waiting for runs, on the virtual loop, with a real gate and hand-written reads."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from asyncmig._core.lifecycle import Lifecycle
from asyncmig._io.gate import Gate, Slot
from asyncmig._io.poller import Poller, Reading, Watch
from asyncmig.errors import (
    AuthError,
    BadRequest,
    NoAnswer,
    NotFound,
    RateLimited,
    ServerError,
    SessionClosed,
    UnexpectedReply,
)

pytestmark = pytest.mark.looptime

LIFE = Lifecycle(
    known=frozenset({"queued", "running"}),
    parked=frozenset({"needs_attention"}),
    terminal=frozenset({"completed", "failed"}),
)


class Server:
    """One run on a server: its status as a table of times, and what its reads met."""

    def __init__(self, *states: tuple[float, str], latency: float = 0.1) -> None:
        """`states`: from which time on the run has which status; a progress text after a colon."""
        self.started = now()
        self.states, self.latency = list(states), latency
        self.troubles: list[Exception] = []
        self.sent: list[float] = []
        self.answered: list[float] = []

    async def __call__(self, slot: Slot) -> Reading[str]:
        self.sent.append(now())
        await asyncio.sleep(self.latency / 2)
        text = [status for since, status in self.states if self.started + since <= now()][-1]
        await asyncio.sleep(self.latency / 2)
        if self.troubles:
            trouble = self.troubles.pop(0)
            if not isinstance(trouble, NoAnswer):
                slot.answered(getattr(trouble, "status", 200))
            self.answered.append(now())
            raise trouble
        slot.answered(200)
        self.answered.append(now())
        status, _, progress = text.partition(":")
        return Reading(status=status, progress=progress or None, value=text)


def now() -> float:
    return asyncio.get_running_loop().time()


def error(kind: type[Exception], status: int) -> Exception:
    return kind("GET", "/runs/{run_id}", status, "text")


@pytest.fixture
async def poller() -> AsyncIterator[Poller]:
    async with Poller() as opened:
        yield opened


@pytest.fixture
def gate() -> Gate:
    return Gate()


Open = Callable[..., Watch[str]]


@pytest.fixture
def open_watch(poller: Poller, gate: Gate) -> Open:
    def watch(server: Server, run: str = "run", **others: object) -> Watch[str]:
        options = {"gate": gate, "lifecycle": LIFE, "started": server.started, **others}
        return poller.watch(run, read=server, **options)  # type: ignore[arg-type]

    return watch


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def tasks() -> set[asyncio.Task[object]]:
    return asyncio.all_tasks() - {asyncio.current_task()}  # type: ignore[arg-type]


async def test_an_end_is_noticed_within_the_floor(open_watch: Open) -> None:
    server = Server((0, "running"), (100, "completed"))
    reading = await open_watch(server).wait()
    assert reading.status == "completed"
    assert 100 <= now() < 102.5
