"""Requests that charge several budgets, a server that counts each budget separately, and its headers."""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

from asyncmig import Gate
from asyncmig._core.limits import RateHeaders

HOUR = 3600.0


def now() -> float:
    return asyncio.get_running_loop().time()


async def use(gate: Gate, seconds: float = 0.1, status: int = 200, **options: object) -> float:
    async with gate.slot(**options) as slot:  # type: ignore[arg-type]
        at = now()
        await asyncio.sleep(seconds)
        slot.answered(status)
    return at


def budgets(**limits: tuple[int, float]) -> dict[str, Gate]:
    return {
        name: Gate(limit=limit, window=window, name=name, rng=Random(1))
        for name, (limit, window) in limits.items()
    }


@dataclass
class Server:
    """Counts each budget separately.

    The count uses a fixed window that begins at `phase`, or a sliding window if `phase` is None.
    """

    limits: Mapping[str, tuple[int, float]]
    phase: float | None = 0.0
    count_rejects: bool = False
    accepted: dict[str, deque[float]] = field(default_factory=dict)
    refused: list[tuple[str, float]] = field(default_factory=list)
    most: dict[str, int] = field(default_factory=dict)

    def room(self, name: str, at: float) -> tuple[int, float]:
        """Return how many requests of this budget are left, and the seconds until its reset."""
        limit, window = self.limits[name]
        seen = self.accepted.setdefault(name, deque())
        if self.phase is None:
            begin = at - window
            reset = (seen[0] + window - at) if seen else 0.0
        else:
            begin = at - (at - self.phase) % window
            reset = begin + window - at
        used = sum(each > begin or (self.phase is not None and each == begin) for each in seen)
        return limit - used, max(reset, 0.0)

    def ask(self, names: Sequence[str], at: float) -> tuple[int, RateHeaders]:
        full = [name for name in names if self.room(name, at)[0] <= 0]
        if not full or self.count_rejects:
            for name in names:
                self.accepted[name].append(at)
        if full:
            self.refused.append((full[0], at))
        shown = full[0] if full else min(names, key=lambda name: self.room(name, at)[0])
        left, reset = self.room(shown, at)
        headers = RateHeaders(
            retry_after=reset if full else None,
            limit=self.limits[shown][0],
            remaining=max(0, left),
            reset=reset,
        )
        return 429 if full else 200, headers


@dataclass
class Client:
    """Sends requests through gates. Records by budget the times between which each request can have arrived."""

    server: Server
    rng: Random
    show: Callable[[RateHeaders, Random], RateHeaders | None] = lambda headers, _: headers
    spans: dict[str, list[tuple[float, float]]] = field(default_factory=dict)

    async def call(self, gate: Gate, names: Sequence[str], **options: object) -> float:
        ticket = None
        while True:
            async with gate.slot(ticket=ticket, **options) as slot:  # type: ignore[arg-type]
                sent, latency = now(), self.rng.uniform(0.05, 0.5)
                there = latency * self.rng.random()
                await asyncio.sleep(there)
                status, headers = self.server.ask(names, now())
                await asyncio.sleep(latency - there)
                shown = self.show(headers, self.rng)
                for name in names:
                    self.spans.setdefault(name, []).append((sent, now()))
                slot.answered(status, retry_after=None if shown is None else shown.retry_after, headers=shown)
            if status == 200:
                return now()
            ticket = slot.ticket


DOCUMENTED = {
    "reads": (30, 60.0),
    "writes": (10, 60.0),
    "agent": (5, HOUR),
    "generate": (1, HOUR),
    "create": (1, HOUR),
}
CALLS = [
    ("reads",),
    ("reads", "writes"),
    ("writes",),
    ("create", "writes"),
    ("agent",),
    ("agent", "generate"),
]


def wrong(headers: RateHeaders, rng: Random) -> RateHeaders | None:
    """Return wrong headers: absent, too high, too low, or with a reset in the past. A 429 keeps its `Retry-After`."""
    if rng.random() < 0.3:
        return RateHeaders(retry_after=headers.retry_after) if headers.retry_after is not None else None
    return RateHeaders(
        retry_after=headers.retry_after,
        limit=rng.choice([headers.limit, 0, 1, 10, 10_000]),
        remaining=rng.choice([headers.remaining, 0, 1, 10_000]),
        reset=rng.choice([headers.reset, -3600.0, 0.0, 1.0, 1e12]),
    )
