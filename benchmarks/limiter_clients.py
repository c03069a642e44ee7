"""Clients that limit themselves to 100 requests a minute, with one interface."""

import asyncio
from collections.abc import Awaitable, Callable
from random import Random
from typing import Protocol

import asynciolimiter
from aiolimiter import AsyncLimiter
from limits import RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import MovingWindowRateLimiter
from pyrate_limiter import InMemoryBucket, Limiter, Rate
from throttled.asyncio import MemoryStore, Throttled, rate_limiter

from asyncmig import Gate

__all__ = ["CLIENTS", "Client"]

Send = Callable[[], Awaitable[int]]


class Client(Protocol):
    """One process that makes requests."""

    holds: bool
    """Whether the client itself waits after a 429."""

    async def request(self, send: Send) -> int:
        """Call `send` when the limit allows it. Return the status."""
        ...


class Ours:
    holds = True

    def __init__(self, rng: Random) -> None:
        self._gate = Gate(rng=rng)

    async def request(self, send: Send) -> int:
        async with self._gate.slot() as slot:
            status = await send()
            slot.answered(status)
        return status


class Aiolimiter:
    holds = False

    def __init__(self, _: Random) -> None:
        self._limiter = AsyncLimiter(100, 60)

    async def request(self, send: Send) -> int:
        async with self._limiter:
            return await send()


class Pyrate:
    holds = False

    def __init__(self, _: Random) -> None:
        self._limiter = Limiter(InMemoryBucket([Rate(100, 60_000)]))

    async def request(self, send: Send) -> int:
        await self._limiter.try_acquire_async("key")
        return await send()


class ThrottledPy:
    holds = False

    def __init__(self, _: Random) -> None:
        quota = rate_limiter.per_min(100)
        self._limiter = Throttled(
            key="key", timeout=1e6, using="sliding_window", quota=quota, store=MemoryStore()
        )

    async def request(self, send: Send) -> int:
        await self._limiter.limit()
        return await send()


class Limits:
    """The library only decides. As its documentation shows, the caller waits until `reset_time`."""

    holds = False

    def __init__(self, _: Random) -> None:
        self._limiter, self._item = MovingWindowRateLimiter(MemoryStorage()), RateLimitItemPerMinute(100)

    async def request(self, send: Send) -> int:
        loop = asyncio.get_running_loop()
        while not await self._limiter.hit(self._item, "key"):
            reset_at = (await self._limiter.get_window_stats(self._item, "key")).reset_time
            await asyncio.sleep(max(0.05, reset_at - loop.time()))
        return await send()


class Asynciolimiter:
    holds = False

    def __init__(self, _: Random) -> None:
        self._limiter = asynciolimiter.LeakyBucketLimiter(100 / 60, capacity=100)

    async def request(self, send: Send) -> int:
        await self._limiter.wait()
        return await send()


class Semaphore:
    """A client written by hand: ten requests at a time, and a pause of one to two seconds after each 429."""

    holds = False

    def __init__(self, _: Random) -> None:
        self._semaphore = asyncio.Semaphore(10)

    async def request(self, send: Send) -> int:
        async with self._semaphore:
            return await send()


CLIENTS: dict[str, Callable[[Random], Client]] = {
    "**asyncmig.Gate**": Ours,
    "aiolimiter": Aiolimiter,
    "pyrate-limiter": Pyrate,
    "throttled-py": ThrottledPy,
    "limits": Limits,
    "asynciolimiter": Asynciolimiter,
    "semaphore, retries": Semaphore,
}
