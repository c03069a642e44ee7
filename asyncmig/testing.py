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
it receives. Requests reach it by function calls, and a run ends as soon as it has started. A session of
`Simulator.session()` reads a run after 0.2 s instead of 2 s, so a customer takes about half a second on an ordinary
event loop. `pace` makes runs take their time, and the session reads them as it would read those of a real server: on
an event loop with a virtual clock (for example `looptime`) an import of an hour ends at once.

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

The second generation of the API has the same kit:

```python
from asyncmig.simulator.migrations import Block, Question, Script

second = Simulator(
    api="migrations",
    customers={
        "acme-001": Parks("Which currency?"),  # generate asks
        "acme-002": Script(blocks={"execute": [Block(questions=(Question(text="Replace the old rows?"),))]}),
    },
)
async with second.session() as session:
    migration = await session.migrations.create(name="Acme", source="HubSpot", external_id="acme-001")
```

Its account allows 100 requests a minute for each endpoint, so that a test needs no hours. `limits="by-class"` sets
the documented classes, down to one created migration an hour: use a virtual clock.

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
from typing import TYPE_CHECKING, Generic, Literal, TypeAlias, TypeVar, cast, final, overload
from urllib.parse import parse_qsl, urlsplit

from asyncmig._core.arguments import checked_call
from asyncmig._core.limits import Limits
from asyncmig._core.rate import Rate
from asyncmig._io.transport import Body, Lost, Response, Timeouts
from asyncmig.errors import InvalidInput
from asyncmig.session import Scope, Session, context_of
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
    migrations,
    serve,
)
from asyncmig.simulator.server.app import STREAM_INTERVAL

if TYPE_CHECKING:
    from typing_extensions import TypeVar as TypeVarWithDefault

__all__ = ["Api", "Ask", "Fails", "Handle", "InProcess", "Parks", "Simulator"]

_CHUNK = 64 * 1024
Api: TypeAlias = Literal["companies", "migrations"]
"""A generation of the API."""
W = TypeVar("W", bound=Served)
if TYPE_CHECKING:
    A = TypeVarWithDefault("A", bound=World | migrations.World, default=World)
else:
    A = TypeVar("A")
_FLOOR = 0.2
"""Seconds between reads of a young run where runs end at once."""
_AT_ONCE = RunDurations(queued=0.0, base=0.0, per_row=0.0)
Handle = Callable[[Request, float], Reply]
"""A server as a function of a request and the time in seconds."""


def _usual_limit() -> RateLimit:
    return SlidingLog(100)


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
class Simulator(Generic[A]):
    """A simulated account of the Migration API in this process, and sessions with it.

    - `api`: the API's generation, `"companies"` or `"migrations"`. With `"migrations"`, the class is
      `Simulator[asyncmig.simulator.migrations.World]` for type checkers, and `variants`, `schemas` and `limits` are
      of `asyncmig.simulator.migrations`.
    - `faults`: shares of requests by the fault's name (`asyncmig.simulator.FAULTS`), or a `Faults` object.
    - `variants`: behaviour that the API's contract leaves open.
    - `customers`: what happens to single customers, by external id: `Parks(...)`, `Fails(...)`, or with
      `api="migrations"` a `Script`.
    - `pace`: how long runs take. By default they end at once.
    - `limit`: a function that makes the rate limit of an endpoint, or of the key with `scope="key"`.
    - `limits`: the limits with `api="migrations"`, as `Limits` or as text such as `"by-class"` or
      `"agent=50/1h,create=20/1h,runs=5"`. The default is `"per-endpoint"`: 100 requests a minute for each endpoint,
      so that a test needs no hours. None: as `variants` say. Sessions of `session()` have the same limits.
    - `plan`: False for an account that can only read, with `api="migrations"`.
    - `latency`: seconds that a request takes.
    - `seed`: the same seed produces the same behaviour.

    Raises `InvalidInput`, a `ValueError`, for unknown names and invalid numbers, such as a share over 1, and for
    options that the generation does not have.
    """

    __slots__ = ("_ends_at_once", "_limits", "_scope", "_seed", "faults", "transport", "world")

    api_key = "key-of-the-simulator"
    base_url = InProcess.BASE_URL

    @overload
    def __init__(
        self: "Simulator[World]",
        *,
        api: Literal["companies"] = "companies",
        seed: int = 0,
        faults: Mapping[str, float] | Faults | None = None,
        variants: Variants | None = None,
        customers: Mapping[str, Script] | None = None,
        pace: RunDurations | None = None,
        limit: Callable[[], RateLimit] = ...,
        scope: Scope = "endpoint",
        latency: float = 0.05,
        sources: Mapping[str, str] = SOURCES,
        schemas: Iterable[Schema] = SCHEMAS,
    ) -> None: ...
    @overload
    def __init__(
        self: "Simulator[migrations.World]",
        *,
        api: Literal["migrations"],
        seed: int = 0,
        faults: Mapping[str, float] | Faults | None = None,
        variants: migrations.Variants | None = None,
        customers: Mapping[str, Script | migrations.Script] | None = None,
        pace: RunDurations | None = None,
        limits: migrations.Limits | str | None = "per-endpoint",
        plan: bool = True,
        latency: float = 0.05,
        sources: Iterable[str] = migrations.SOURCES,
        schemas: Iterable[migrations.Schema] = migrations.SCHEMAS,
    ) -> None: ...
    @checked_call
    def __init__(
        self,
        *,
        api: Api = "companies",
        seed: int = 0,
        faults: Mapping[str, float] | Faults | None = None,
        variants: Variants | migrations.Variants | None = None,
        customers: Mapping[str, Script | migrations.Script] | None = None,
        pace: RunDurations | None = None,
        limit: Callable[[], RateLimit] = _usual_limit,
        scope: Scope = "endpoint",
        limits: migrations.Limits | str | None = "per-endpoint",
        plan: bool = True,
        latency: float = 0.05,
        sources: Iterable[str] | None = None,
        schemas: Iterable[object] | None = None,
    ) -> None:
        _check(api=api, seed=seed, faults=faults, pace=pace, limit=limit, scope=scope, latency=latency)
        self._seed, self._ends_at_once = seed, pace is None
        self._scope: Scope = scope
        try:
            self.faults: Faults = faults if isinstance(faults, Faults) else Faults(faults, rng=Random(seed))
        except ValueError as error:
            raise InvalidInput("faults", faults, str(error)) from error
        if api == "companies":
            if limits != "per-endpoint" or not plan:
                raise InvalidInput("api", api, "has neither `limits` nor `plan`: these require 'migrations'")
            world: World | migrations.World = _companies(
                key=self.api_key,
                seed=seed,
                variants=variants,
                customers=customers or {},
                pace=pace or _AT_ONCE,
                limit=limit,
                scope=scope,
                sources=SOURCES if sources is None else sources,
                schemas=SCHEMAS if schemas is None else schemas,
            )
            self._limits: Limits | None = None
        else:
            if limit is not _usual_limit or scope != "endpoint":
                raise InvalidInput("api", api, "has neither `limit` nor `scope`: give `limits`")
            world = _migrations(
                key=self.api_key,
                seed=seed,
                variants=variants,
                customers=customers or {},
                pace=pace or _AT_ONCE,
                limits=limits,
                plan=plan,
                sources=migrations.SOURCES if sources is None else sources,
                schemas=migrations.SCHEMAS if schemas is None else schemas,
            )
            self._limits = _client_limits(world.limits)
        if self._ends_at_once:
            world.ledger.shortest_pause = _FLOOR / 2
        self.world: A = cast("A", world)
        self.transport: InProcess[A] = InProcess(
            self.world, latency=latency, rng=Random(seed), faults=self.faults
        )

    def session(self) -> Session:
        """Return a new session with this account, to be entered. For other options, pass `transport` to `Session`.

        While runs end at once (no `pace`), the session reads them every 0.2 s instead of every 2 s.
        """
        session = Session(
            self.api_key,
            self.base_url,
            transport=self.transport,
            rng=Random(self._seed),
            limits=self._limits,
            scope=self._scope,
        )
        if self._ends_at_once:
            context_of(session).poller.shortest_floor = _FLOOR
        return session

    def serve(self, *, port: int = 0) -> AbstractAsyncContextManager[Serving[A]]:
        """Serve the same account on loopback while the block runs, for code that reads `VERN_BASE_URL`.

        Its key is `api_key`. Uploads go to loopback as well from then on.
        """
        return serve(self.world, port=port, faults=self.faults)

    @property
    def ledger(self) -> Ledger:
        """The ledger of every request that arrived."""
        return self.world.ledger

    def answers(self, external_id: str) -> dict[str, str]:
        """Return the answers about a customer: label or text by the question's prompt.

        With `api="companies"`, those of the last decision; with `"migrations"`, all that the agent accepted.
        """
        return self.world.answers(external_id)

    @overload
    def verdict(self: "Simulator[World]") -> Verdict: ...
    @overload
    def verdict(self: "Simulator[migrations.World]") -> migrations.Verdict: ...
    def verdict(self) -> Verdict | migrations.Verdict:
        """Return the counts of what the client did wrong. Call it on the event loop on which the client ran."""
        return self.world.verdict(asyncio.get_running_loop().time())


def _companies(
    *,
    key: str,
    seed: int,
    variants: object,
    customers: Mapping[str, object],
    pace: RunDurations,
    limit: Callable[[], RateLimit],
    scope: Scope,
    sources: object,
    schemas: Iterable[object],
) -> World:
    """Return an account of the generation "companies". Raises `InvalidInput`."""
    scripts: dict[str, Script] = {}
    for name, script in customers.items():
        if not isinstance(script, Script):
            raise InvalidInput("customers", name, "must have a script: `Parks(...)` or `Fails(...)`")
        scripts[name] = script
    kinds = tuple(schemas)
    if not isinstance(sources, Mapping):
        raise InvalidInput("sources", sources, "must map ids to names")
    if not all(isinstance(each, Schema) for each in kinds):
        raise InvalidInput("schemas", kinds, "must be of `asyncmig.simulator.Schema`")
    if not isinstance(variants, Variants | None):
        raise InvalidInput("variants", variants, "must be `asyncmig.simulator.Variants`")
    return World(
        key=key,
        sources=cast("Mapping[str, str]", sources),
        schemas=cast("tuple[Schema, ...]", kinds),
        seed=seed,
        limit=limit,
        scope=scope,
        pace=pace,
        variants=variants,
        customers=scripts,
    )


def _migrations(
    *,
    key: str,
    seed: int,
    variants: object,
    customers: Mapping[str, object],
    pace: RunDurations,
    limits: migrations.Limits | str | None,
    plan: bool,
    sources: Iterable[object],
    schemas: Iterable[object],
) -> migrations.World:
    """Return an account of the generation "migrations". Raises `InvalidInput`."""
    names, kinds = tuple(sources), tuple(schemas)
    if not all(isinstance(each, str) for each in names):
        raise InvalidInput("sources", names, "must be names")
    if not all(isinstance(each, migrations.Schema) for each in kinds):
        raise InvalidInput("schemas", kinds, "must be of `asyncmig.simulator.migrations.Schema`")
    if not isinstance(variants, migrations.Variants | None):
        raise InvalidInput("variants", variants, "must be `asyncmig.simulator.migrations.Variants`")
    try:
        chosen = migrations.Limits.parse(limits) if isinstance(limits, str) else limits
    except ValueError as error:
        raise InvalidInput("limits", limits, str(error)) from error
    return migrations.World(
        key=key,
        sources=cast("tuple[str, ...]", names),
        schemas=cast("tuple[migrations.Schema, ...]", kinds),
        seed=seed,
        limits=chosen,
        pace=pace,
        variants=variants,
        scripts={name: _scripted(name, script) for name, script in customers.items()},
        plan=plan,
    )


def _scripted(name: str, script: object) -> migrations.Script:
    """Return what the agent does for one customer. `Parks` and `Fails` are about `generate`."""
    if isinstance(script, migrations.Script):
        return script
    if isinstance(script, Fails):
        return migrations.Script(fails={"generate": script.error}, times=script.times)
    if not isinstance(script, Parks):
        raise InvalidInput(
            "customers", name, "must have a script: `Parks(...)`, `Fails(...)` or `Script(...)`"
        )
    questions = tuple(
        migrations.Question(text=ask.prompt, options=ask.options, allow_custom=ask.allow_custom)
        for ask in script.asks
    )
    return migrations.Script(blocks={"generate": [migrations.Block(questions=questions)]})


def _client_limits(limits: migrations.Limits) -> Limits:
    """Return what a client has to know of an account's limits."""
    return Limits(
        budgets={name: Rate(*rate) for name, rate in limits.rates.items()},
        endpoint=Rate(*limits.endpoint),
        key=None if limits.key is None else Rate(*limits.key),
        runs=limits.runs,
    )


def _check(
    *,
    api: object,
    seed: object,
    faults: object,
    pace: object,
    limit: object,
    scope: object,
    latency: object,
) -> None:
    if api not in ("companies", "migrations"):
        raise InvalidInput("api", api, "is neither 'companies' nor 'migrations'")
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise InvalidInput("seed", seed, "must be a whole number, 0 or more")
    if not isinstance(faults, Mapping | Faults | None):
        raise InvalidInput("faults", faults, "must be shares by the faults' names, or `Faults`")
    if not isinstance(pace, RunDurations | None):
        raise InvalidInput("pace", pace, "must be an `asyncmig.simulator.RunDurations`")
    if not callable(limit):
        raise InvalidInput("limit", limit, "must make a rate limit, as `lambda: SlidingLog(100)` does")
    if scope not in ("endpoint", "key"):
        raise InvalidInput("scope", scope, "is neither 'endpoint' nor 'key'")
    if not isinstance(latency, int | float) or not 0 <= latency < float("inf"):
        raise InvalidInput("latency", latency, "must be a number of seconds, 0 or more")
