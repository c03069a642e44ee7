"""A transport that calls a simulated server without sockets."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from random import Random
from typing import Generic, TypeVar
from urllib.parse import parse_qsl, urlsplit

from asyncmig._io.transport import Body, Lost, Response, Timeouts
from asyncmig.simulator import Fault, Faults, Reply, Request, Served, Stream
from asyncmig.simulator.server.app import STREAM_INTERVAL

__all__ = ["Handle", "InProcess"]

_CHUNK = 64 * 1024
W = TypeVar("W", bound=Served)
Handle = Callable[[Request, float], Reply]
"""A server as a function of a request and the time in seconds."""


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes
    cut: bool
    stream: Stream | None = None

    async def chunks(self) -> AsyncIterator[bytes]:
        while self.stream is not None and not self.cut:
            yield self.stream.read(asyncio.get_running_loop().time())
            if self.stream.ended:
                return
            await asyncio.sleep(STREAM_INTERVAL)
        for start in range(0, len(self.body), _CHUNK):
            yield self.body[start : start + _CHUNK]
        if self.cut:
            raise Lost("ClientPayloadError", sent=True)


class InProcess(Generic[W]):
    """A transport for `Session` that calls a simulated server without sockets, so that virtual time is exact.

    `latency`: the mean seconds of an exchange; each takes between half and one and a half of it. `faults`: the faults
    of requests. `sent` lists all requests as (time, method, URL). `foreign` lists the hosts of requests that are
    neither the API's nor its storage's.
    """

    BASE_URL = "https://api.test/api/v1"
    STORAGE_URL = "https://storage.test"

    def __init__(
        self,
        world: W,
        *,
        latency: float = 0.1,
        rng: Random | None = None,
        faults: Faults | None = None,
    ) -> None:
        self.world: W = world
        self.latency = latency
        self.rng: Random = rng or Random(7)
        self.faults: Faults = faults or Faults()
        world.base_url = self.BASE_URL
        world.storage_url = self.STORAGE_URL
        self.sent: list[tuple[float, str, str]] = []
        self.foreign: list[str] = []
        self.open: int = 0
        """The number of exchanges in progress."""
        self.closed: bool = False

    @asynccontextmanager
    async def exchange(
        self, method: str, url: str, *, headers: Mapping[str, str], body: Body | None, timeouts: Timeouts
    ) -> AsyncGenerator[Response]:
        """Let the server respond to one request. Raises `Lost` if a fault breaks the connection."""
        parts = urlsplit(url)
        request = Request(
            method=method,
            path=parts.path,
            query=dict(parse_qsl(parts.query)),
            headers={name.lower(): value for name, value in headers.items()},
            body=await _whole(body),
        )
        self.sent.append((asyncio.get_running_loop().time(), method, url))
        self.open += 1
        try:
            yield await self._answer(parts.netloc, request, timeouts)
        finally:
            self.open -= 1

    def pick(self, request: Request, now: float) -> Fault:
        """Return the fault of a request."""
        return self.faults.pick(self.world.endpoint_of(request), now)

    async def arrive(self, handle: Handle, request: Request, fault: Fault, timeouts: Timeouts) -> Reply:
        """Return the server's response to a request with a fault. Raises `Lost` if the fault breaks the
        connection."""
        if fault.refused:
            raise Lost("ClientConnectorError", sent=False)
        if fault.lost_before:
            raise Lost("ServerDisconnectedError", sent=True)
        reply = fault.reply(lambda: handle(request, asyncio.get_running_loop().time()))
        if fault.hangs:
            await asyncio.sleep(timeouts.total or timeouts.stall or 0.0)
            raise Lost("TimeoutError", sent=True, timed_out=True)
        return reply

    async def aclose(self) -> None:
        """Mark the transport as closed."""
        self.closed = True

    async def _answer(self, host: str, request: Request, timeouts: Timeouts) -> _Answer:
        handle = self._handler(host)
        fault = self.pick(request, asyncio.get_running_loop().time())
        delay = self.latency * self.rng.uniform(0.5, 1.5)
        await asyncio.sleep(delay / 2)
        reply = await self.arrive(handle, request, fault, timeouts)
        await asyncio.sleep(delay / 2)
        if fault.lost_after:
            raise Lost("ServerDisconnectedError", sent=True)
        return _Answer(
            status=reply.status,
            headers={"Content-Type": reply.content_type, **reply.headers},
            body=reply.body if fault.cut_to is None else reply.body[: fault.cut_to],
            cut=fault.cut_to is not None,
            stream=reply.stream,
        )

    def _handler(self, host: str) -> Handle:
        if host == urlsplit(self.BASE_URL).netloc:
            return self.world.handle
        if host == urlsplit(self.STORAGE_URL).netloc:
            return self.world.storage
        self.foreign.append(host)
        raise Lost("ClientConnectorDNSError", sent=False)


async def _whole(body: Body | None) -> bytes:
    return body if isinstance(body, bytes) else b"".join([chunk async for chunk in body]) if body else b""
