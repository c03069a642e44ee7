"""A transport that calls a simulated world in this process: no sockets, so that virtual time stays exact."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from random import Random
from urllib.parse import parse_qsl, urlsplit

from asyncmig._io.transport import Answer, Body, Lost, Timeouts
from asyncmig.simulator import Fault, Faults, Request, World
from asyncmig.simulator.world import endpoint_of

KEY = "key-that-nobody-may-see"
BASE_URL = "https://api.test/api/v1"
STORAGE_URL = "https://storage.test"


@dataclass
class _Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes
    cut: bool = False

    async def chunks(self) -> AsyncIterator[bytes]:
        for start in range(0, len(self.body), 1000):
            yield self.body[start : start + 1000]
        if self.cut:
            raise Lost("ClientPayloadError", sent=True)


class InProcess:
    """Hands requests to a world; `fault` is asked about each: endpoint (host, method, path) and its number."""

    def __init__(
        self,
        world: World,
        *,
        latency: float = 0.1,
        rng: Random | None = None,
        fault: Callable[[str, str, int], Fault | None] = lambda method, path, number: None,
        faulty_endpoint: str = "",
        faults: Faults | None = None,
    ) -> None:
        """`fault`: asked by path. `faulty_endpoint`: whose n-th requests meet `nth`. `faults`: a plan for all."""
        self.faulty_endpoint, self.nth, self.faults_met = faulty_endpoint, dict[int, Fault](), 0
        self.faults = faults or Faults()
        self.world, self.latency, self.rng, self.fault = world, latency, rng or Random(7), fault
        world.storage_url = STORAGE_URL
        self.sent: list[tuple[float, str, str]] = []
        self.foreign: list[str] = []
        self.open = 0
        self.closed = self.unplugged = False
        self._requests: Counter[str] = Counter()
        self._numbers: Counter[tuple[str, str]] = Counter()

    @asynccontextmanager
    async def exchange(
        self, method: str, url: str, *, headers: Mapping[str, str], body: Body | None, timeouts: Timeouts
    ) -> AsyncIterator[Answer]:
        parts = urlsplit(url)
        content = body if isinstance(body, bytes) else b"".join([c async for c in body]) if body else b""
        request = Request(
            method=method,
            path=parts.path,
            query=dict(parse_qsl(parts.query)),
            headers={name.lower(): value for name, value in headers.items()},
            body=content,
        )
        now = asyncio.get_running_loop().time()
        self.sent.append((now, method, url))
        self.open += 1
        try:
            yield await self._answer(parts.netloc, request, timeouts)
        finally:
            self.open -= 1

    async def _answer(self, host: str, request: Request, timeouts: Timeouts) -> _Answer:
        loop = asyncio.get_running_loop()
        if host not in ("api.test", "storage.test"):
            self.foreign.append(host)
            raise Lost("ClientConnectorDNSError", sent=False)
        handle = self.world.handle if host == "api.test" else self.world.storage
        path = request.path if host == "api.test" else "/storage"
        self._numbers[request.method, path] += 1
        fault = self._fault(request, path)
        delay = self.latency * self.rng.uniform(0.5, 1.5)
        await asyncio.sleep(delay / 2)
        if fault.refused:
            raise Lost("ClientConnectorError", sent=False)
        if self.unplugged:
            await asyncio.Event().wait()  # it arrives nowhere, and nobody is told
        if fault.lost_before:
            raise Lost("ServerDisconnectedError", sent=True)
        reply = fault.reply(lambda: handle(request, loop.time()))
        if fault.hangs:
            await asyncio.sleep(timeouts.total or timeouts.stall or 0.0)
            raise Lost("TimeoutError", sent=True, timed_out=True)
        await asyncio.sleep(delay / 2)
        if fault.lost_after:
            raise Lost("ServerDisconnectedError", sent=True)
        return _Answer(
            status=reply.status,
            headers={"Content-Type": reply.content_type, **reply.headers},
            body=reply.body if fault.cut_to is None else reply.body[: fault.cut_to],
            cut=fault.cut_to is not None,
        )

    def _fault(self, request: Request, path: str) -> Fault:
        endpoint = endpoint_of(request)
        self._requests[endpoint] += 1
        if endpoint == self.faulty_endpoint and self._requests[endpoint] in self.nth:
            self.faults_met += 1
            return self.nth[self._requests[endpoint]]
        asked = self.fault(request.method, path, self._numbers[request.method, path])
        return asked or self.faults.pick(endpoint, asyncio.get_running_loop().time())

    async def aclose(self) -> None:
        self.closed = True
