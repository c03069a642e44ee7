"""Callers that send requests through a gate to a server with its own count of requests."""

import asyncio
import selectors
from collections.abc import Coroutine
from dataclasses import dataclass, field
from random import Random
from typing import TypeVar

from asyncmig import Gate
from asyncmig._core.endpoint import Lane
from asyncmig.simulator.server.limits import RateLimit

T = TypeVar("T")


class JumpingLoop(asyncio.SelectorEventLoop):
    """A loop with a virtual clock, without looptime's support for real I/O.

    It is ten times as fast as looptime, for loads of thousands of callers.
    """

    def __init__(self) -> None:
        self._at = 0.0
        selector = selectors.DefaultSelector()
        select = selector.select

        def jump(timeout: float | None = None) -> object:
            assert timeout is not None, "all tasks wait, and no timer is scheduled"
            self._at += max(0.0, timeout)
            return select(0)

        selector.select = jump  # type: ignore[method-assign, assignment]
        super().__init__(selector)

    def time(self) -> float:
        return self._at


def run(main: Coroutine[object, object, T]) -> T:
    """Run `main` on a virtual clock."""
    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        return runner.run(main)


@dataclass
class Load:
    """Sends requests through gates to one server, and records the times and the refusals of the requests."""

    server: RateLimit
    rng: Random
    median: float = 0.15
    sigma: float = 0.5
    refused: int = 0
    spans: list[tuple[float, float]] = field(default_factory=list)
    """When each request was sent and answered. It arrived between these times."""
    done_at: list[float] = field(default_factory=list)

    async def call(self, gate: Gate, lane: Lane = Lane.WORK, rank: float = 0.0) -> None:
        """Send a request until the server accepts it."""
        loop, ticket = asyncio.get_running_loop(), None
        while True:
            async with gate.slot(lane=lane, rank=rank, ticket=ticket) as slot:
                status = await self._exchange(loop.time())
                slot.answered(status)
            if status == 200:
                self.done_at.append(loop.time())
                return
            ticket = slot.ticket

    async def _exchange(self, sent: float) -> int:
        loop = asyncio.get_running_loop()
        latency = self.median * self.rng.lognormvariate(0.0, self.sigma)
        there = latency * self.rng.random()
        try:
            await asyncio.sleep(there)
            allowed = self.server.allow(loop.time())
            await asyncio.sleep(latency - there)
        finally:
            self.spans.append((sent, loop.time()))
        self.refused += not allowed
        return 200 if allowed else 429


def most_in_a_window(spans: list[tuple[float, float]], window: float) -> int:
    """Return the highest number of requests that can have arrived in any `window` seconds, for any latency.

    A request can arrive in [t, t + window) if it was sent before the end and answered at or after the beginning.
    The count can only rise where a request is sent. It is enough to check the windows that end just after a send.
    """
    starts = sorted(sent for sent, _ in spans)
    ends = sorted(answered for _, answered in spans)
    most = over = 0
    for n, end in enumerate(starts):
        while over < len(ends) and ends[over] <= end - window:
            over += 1
        most = max(most, n + 1 - over)
    return most
