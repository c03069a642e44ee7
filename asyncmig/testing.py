"""Test a service that uses asyncmig: without a key, without a network, and without waiting on a virtual clock.

```python
from asyncmig.testing import Ask, Fails, Parks, Simulator

simulator = Simulator(faults={"500-before": 0.1}, seed=7)
async with simulator.session() as session:
    source = (await session.companies.sources())[0]
    await session.companies.create(name="Acme", source=source.id, external_id="acme-001")
assert simulator.verdict().duplicate_companies == 0
```

The simulator implements the API's contract and knows nothing of the client. It parses, validates and records what
it receives. Requests reach it by function calls, and an import ends as soon as it has started. The client reads a
run 2 s after its start at the earliest, so on an ordinary event loop a customer takes about 2 s, and customers that
are migrated at the same time take 2 s together. `pace` makes imports take their time: on an event loop with a
virtual clock (for example `looptime`) an import of an hour ends at once.

Scripts decide what the imports of single customers do, whatever the files contain:

```python
simulator = Simulator(
    customers={
        "acme-001": Parks("Keep the duplicate contacts?", Ask(prompt="Currency?", options=("EUR", "USD"))),
        "acme-002": Fails("The file is password-protected"),
        "acme-003": Fails("Import timed out", times=1),  # a second import completes
    }
)
```

A parked import waits for a decision. Approved, it completes; rejected, it fails. `Simulator.answers("acme-001")`
returns what was answered.

Code that opens its own session uses the same account over loopback:

```python
async with simulator.serve() as serving:
    async with asyncmig.Session(simulator.api_key, serving.base_url) as session:
        print(await session.companies.sources())
```

`Simulator.verdict()` counts what the client did wrong, for example duplicate companies; `str(verdict)` lists it in
words, or is "no faults". `Simulator.ledger` lists every request. `variants` chooses behaviour that the API's contract
leaves open. With pytest, use `asyncmig.pytest_plugin`.

`faults` sets the share of requests that go wrong, by these names:

| name | what happens to a request |
| --- | --- |
| `request-lost` | the connection breaks before the request arrives |
| `answer-lost` | the request is processed, and the connection breaks before the response |
| `reset-mid-body` | the response ends after 7 bytes, and the connection breaks |
| `truncated` | the response has only its first 9 bytes |
| `hang` | the request is processed, and the response never comes |
| `too-many` | 429 without being counted |
| `500-before`, `500-after` | 500; `after`: the request was processed all the same |
| `html-502`, `empty-503` | a proxy's 502 page; 503 without a body |
| `html-200` | 200 with a page of HTML |
| `redirect`, `redirect-after` | 302 to another host; `after`: the request was processed all the same |
| `retry-after-seconds`, `retry-after-date`, `retry-after-absurd` | 503 with `Retry-After`: 5 s; a date; a day |
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from random import Random
from typing import Generic, TypeVar, cast, final
from urllib.parse import parse_qsl, urlsplit

from asyncmig._core.arguments import checked_call
from asyncmig._io.transport import Body, Lost, Response, Timeouts
from asyncmig.errors import InvalidInput
from asyncmig.session import Scope, Session
from asyncmig.simulator import (
    SCHEMAS,
    SOURCES,
    Ask,
    Fails,
    Fault,
    Faults,
    Ledger,
    Parks,
    RateLimit,
    Reply,
    Request,
    RunDurations,
    Schema,
    Script,
    Served,
    Serving,
    SlidingLog,
    Stream,
    Variants,
    Verdict,
    World,
    serve,
)
from asyncmig.simulator.server.app import STREAM_INTERVAL

__all__ = ["Ask", "Fails", "Handle", "InProcess", "Parks", "Simulator"]

_CHUNK = 64 * 1024
W = TypeVar("W", bound=Served)
_AT_ONCE = RunDurations(queued=0.0, base=0.0, per_row=0.0)
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
    """A transport for `Session` that calls a simulated world without sockets, so that virtual time stays exact.

    `latency`: seconds that an exchange takes, drawn between half and one and a half of it. `faults`: faults of
    requests. `sent` lists all requests as (time, method, URL); `foreign` lists hosts that are neither the API's
    nor its storage's.
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
        """Let the world respond to one request. Raises `Lost` if the fault is a lost response."""
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
        """Let a request reach the server, or not, and return its response. Raises `Lost`."""
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


@final
class Simulator:
    """A simulated account of the Migration API in this process, and sessions with it.

    - `faults`: shares of requests by the fault's name (`asyncmig.simulator.FAULTS`), or a `Faults` object.
    - `variants`: behaviour that the API's contract leaves open.
    - `customers`: what the imports of single customers do, by external id: `Parks(...)` or `Fails(...)`.
    - `pace`: how long runs take. By default they end at once.
    - `limit`: a function that makes the rate limit of an endpoint, or of the key with `scope="key"`.
    - `latency`: seconds that a request takes.
    - `seed`: the same seed produces the same behaviour.

    Raises `InvalidInput`, a `ValueError`, for unknown names and invalid numbers, such as a share over 1.
    """

    __slots__ = ("_scope", "_seed", "faults", "transport", "world")

    api_key = "key-of-the-simulator"
    base_url = InProcess.BASE_URL

    @checked_call
    def __init__(
        self,
        *,
        seed: int = 0,
        faults: Mapping[str, float] | Faults | None = None,
        variants: Variants | None = None,
        customers: Mapping[str, Script] | None = None,
        pace: RunDurations | None = None,
        limit: Callable[[], RateLimit] = lambda: SlidingLog(100),
        scope: Scope = "endpoint",
        latency: float = 0.05,
        sources: Mapping[str, str] = SOURCES,
        schemas: Iterable[Schema] = SCHEMAS,
    ) -> None:
        _check(
            seed=seed, faults=faults, variants=variants, pace=pace, limit=limit, scope=scope, latency=latency
        )
        for name, script in (customers or {}).items():
            if not isinstance(cast(object, script), Script):
                raise InvalidInput("customers", name, "must have a script: `Parks(...)` or `Fails(...)`")
        self._seed = seed
        self._scope: Scope = scope
        kinds = tuple(schemas)
        if not all(isinstance(cast(object, each), Schema) for each in kinds):
            raise InvalidInput("schemas", kinds, "must be of `asyncmig.simulator.Schema`")
        try:
            self.faults: Faults = faults if isinstance(faults, Faults) else Faults(faults, rng=Random(seed))
        except ValueError as error:
            raise InvalidInput("faults", faults, str(error)) from error
        self.world: World = World(
            key=self.api_key,
            sources=sources,
            schemas=kinds,
            seed=seed,
            limit=limit,
            scope=scope,
            pace=pace or _AT_ONCE,
            variants=variants,
            customers=customers,
        )
        self.transport: InProcess[World] = InProcess(
            self.world, latency=latency, rng=Random(seed), faults=self.faults
        )

    def session(self) -> Session:
        """Return a new session with this account, to be entered. For other options, pass `transport` to `Session`."""
        return Session(
            self.api_key,
            self.base_url,
            transport=self.transport,
            rng=Random(self._seed),
            scope=self._scope,
        )

    def serve(self, *, port: int = 0) -> AbstractAsyncContextManager[Serving[World]]:
        """Serve the same account on loopback while the block runs, for code that reads `VERN_BASE_URL`.

        Its key is `api_key`. Uploads go to loopback as well from then on.
        """
        return serve(self.world, port=port, faults=self.faults)

    @property
    def ledger(self) -> Ledger:
        """The ledger of every request that arrived."""
        return self.world.ledger

    def answers(self, external_id: str) -> dict[str, str]:
        """Return the answers of the last decision about a customer: label or text by the question's prompt."""
        return self.world.answers(external_id)

    def verdict(self) -> Verdict:
        """Return the counts of what the client did wrong. Call it on the event loop on which the client ran."""
        return self.world.verdict(asyncio.get_running_loop().time())


def _check(
    *,
    seed: object,
    faults: object,
    variants: object,
    pace: object,
    limit: object,
    scope: object,
    latency: object,
) -> None:
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise InvalidInput("seed", seed, "must be a whole number, 0 or more")
    if not isinstance(faults, Mapping | Faults | None):
        raise InvalidInput("faults", faults, "must be shares by the faults' names, or `Faults`")
    if not isinstance(variants, Variants | None):
        raise InvalidInput("variants", variants, "must be `asyncmig.simulator.Variants`")
    if not isinstance(pace, RunDurations | None):
        raise InvalidInput("pace", pace, "must be an `asyncmig.simulator.RunDurations`")
    if not callable(limit):
        raise InvalidInput("limit", limit, "must make a rate limit, as `lambda: SlidingLog(100)` does")
    if scope not in ("endpoint", "key"):
        raise InvalidInput("scope", scope, "is neither 'endpoint' nor 'key'")
    if not isinstance(latency, int | float) or not 0 <= latency < float("inf"):
        raise InvalidInput("latency", latency, "must be a number of seconds, 0 or more")
