"""For tests of a service that uses asyncmig: without a key, without a network, and on a virtual clock without waits.

```python
from asyncmig.testing import Ask, Fails, Parks, Simulator

simulator = Simulator(faults={"500-before": 0.1}, seed=7)
async with simulator.session() as session:
    source = (await session.companies.sources())[0]
    await session.companies.create(name="Acme", source=source.id, external_id="acme-001")
assert simulator.verdict().duplicate_companies == 0
```

The simulator implements the API's contract, independently of the client. It parses, validates and records what it
receives. Requests are function calls, and by default a run ends as soon as it has started. A session of
`Simulator.session()` reads a run after 0.2 s instead of 2 s, so a customer takes about half a second on an ordinary
event loop. `pace` sets how long runs take. Then the session reads them as it reads those of a real server. On an
event loop with a virtual clock (for example `looptime`), an import of an hour takes no time.

Scripts set the results of the imports of single customers, whatever their files contain:

```python
simulator = Simulator(
    customers={
        "acme-001": Parks("Keep the duplicate contacts?", Ask(prompt="Currency?", options=("EUR", "USD"))),
        "acme-002": Fails("The file is password-protected"),
        "acme-003": Fails("Import timed out", times=1),  # a second import completes
    }
)
```

A parked import waits for a decision. If it is approved, it completes; if it is rejected, it fails.
`Simulator.answers("acme-001")` returns the answers.

For code that opens its own session, the account can be served on loopback:

```python
async with simulator.serve() as serving:
    async with asyncmig.Session(simulator.api_key, serving.base_url) as session:
        print(await session.companies.sources())
```

The simulator of the second API generation is used in the same way:

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

Its account allows 100 requests a minute for each endpoint, so that a test does not take hours. `limits="by-class"`
sets the documented classes, down to one created migration an hour. Use it with a virtual clock.

`Simulator.verdict()` counts the faults of the client, for example duplicate companies; `str(verdict)` lists them, or
is "no faults". `Simulator.ledger` lists every request. `variants` selects behaviour that the API's contract does not
define. With pytest, use `asyncmig.pytest_plugin`.

`faults` sets the share of requests with each of these faults:

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
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from random import Random
from typing import TYPE_CHECKING, Generic, Literal, TypeAlias, TypeVar, cast, final, overload

from asyncmig._core.arguments import checked_call
from asyncmig._core.limits import Limits, Rate
from asyncmig.errors import InvalidInput
from asyncmig.session import Scope, Session, context_of
from asyncmig.simulator import (
    SCHEMAS,
    SOURCES,
    Ask,
    Fails,
    Faults,
    Ledger,
    Parks,
    RateLimit,
    RunDurations,
    Schema,
    Script,
    Serving,
    SlidingLog,
    Variants,
    Verdict,
    World,
    migrations,
    serve,
)
from asyncmig.testing.in_process import Handle, InProcess

if TYPE_CHECKING:
    from typing_extensions import TypeVar as TypeVarWithDefault

__all__ = ["Api", "Ask", "Fails", "Handle", "InProcess", "Parks", "Simulator"]

Api: TypeAlias = Literal["companies", "migrations"]
"""The name of an API generation."""
if TYPE_CHECKING:
    A = TypeVarWithDefault("A", bound=World | migrations.World, default=World)
else:
    A = TypeVar("A")
T = TypeVar("T")
_FLOOR = 0.2
"""Seconds between two reads of a young run, if runs end at once."""
_AT_ONCE = RunDurations(queued=0.0, base=0.0, per_row=0.0)


def _usual_limit() -> RateLimit:
    return SlidingLog(100)


@final
class Simulator(Generic[A]):
    """A simulated account of the Migration API in this process, and sessions with it.

    - `api`: the API's generation, `"companies"` or `"migrations"`. With `"migrations"`, the class is
      `Simulator[asyncmig.simulator.migrations.World]` for type checkers, and `variants`, `schemas` and `limits` are
      of `asyncmig.simulator.migrations`.
    - `faults`: shares of requests by the fault's name (`asyncmig.simulator.FAULTS`), or a `Faults` object.
    - `variants`: behaviour that the API's contract does not define.
    - `customers`: the results of single customers, by external id: `Parks(...)`, `Fails(...)`, or with
      `api="migrations"` a `Script`.
    - `pace`: how long runs take. By default they end at once.
    - `limit`: a function that returns a new rate limit, for each endpoint, or with `scope="key"` for the key.
    - `limits`: the limits with `api="migrations"`, as `Limits` or as text such as `"by-class"` or
      `"agent=50/1h,create=20/1h,runs=5"`. The default is `"per-endpoint"`: 100 requests a minute for each endpoint,
      so that a test does not take hours. None: those of `variants`. Sessions of `session()` have the same limits.
    - `plan`: with `api="migrations"`, False for an account that can only read.
    - `latency`: the mean seconds that a request takes.
    - `seed`: the same seed produces the same behaviour.

    Raises `InvalidInput` for unknown names, for invalid numbers, such as a share over 1, and for options that the
    generation does not have.
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
        if seed < 0:
            raise InvalidInput("seed", seed, "must be 0 or more")
        if not 0 <= latency < float("inf"):
            raise InvalidInput("latency", latency, "must be a number of seconds, 0 or more")
        if scope not in ("endpoint", "key"):
            raise InvalidInput("scope", scope, "is neither 'endpoint' nor 'key'")
        self._seed, self._ends_at_once = seed, pace is None
        self._scope: Scope = scope
        self._limits: Limits | None = None
        pace, customers = pace or _AT_ONCE, customers or {}
        try:
            self.faults: Faults = faults if isinstance(faults, Faults) else Faults(faults, rng=Random(seed))
        except ValueError as error:
            raise InvalidInput("faults", faults, str(error)) from error
        if api == "companies":
            if limits != "per-endpoint" or not plan:
                raise InvalidInput("api", api, "has neither `limits` nor `plan`: these require 'migrations'")
            named = SOURCES if sources is None else sources
            if not isinstance(named, Mapping):
                raise InvalidInput("sources", named, "must map ids to names")
            world: World | migrations.World = World(
                key=self.api_key,
                sources=cast("Mapping[str, str]", named),
                schemas=_each("schemas", SCHEMAS if schemas is None else schemas, Schema),
                seed=seed,
                limit=limit,
                scope=scope,
                pace=pace,
                variants=_checked("variants", Variants() if variants is None else variants, Variants),
                customers={name: _script(name, script) for name, script in customers.items()},
            )
        elif api == "migrations":
            if limit is not _usual_limit or scope != "endpoint":
                raise InvalidInput("api", api, "has neither `limit` nor `scope`: give `limits`")
            usual = migrations.Variants() if variants is None else variants
            world = migrations.World(
                key=self.api_key,
                sources=_each("sources", migrations.SOURCES if sources is None else sources, str),
                schemas=_each(
                    "schemas", migrations.SCHEMAS if schemas is None else schemas, migrations.Schema
                ),
                seed=seed,
                limits=_parsed(limits),
                pace=pace,
                variants=_checked("variants", usual, migrations.Variants),
                scripts={name: _agent_script(name, script) for name, script in customers.items()},
                plan=plan,
            )
            self._limits = _client_limits(world.limits)
        else:
            raise InvalidInput("api", api, "is neither 'companies' nor 'migrations'")
        if self._ends_at_once:
            world.ledger.shortest_pause = _FLOOR / 2
        self.world: A = cast("A", world)
        self.transport: InProcess[A] = InProcess(
            self.world, latency=latency, rng=Random(seed), faults=self.faults
        )

    def session(self) -> Session:
        """Return a new session with this account. For other options, pass `transport` to `Session`.

        If runs end at once (without `pace`), the session reads them after 0.2 s instead of 2 s.
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
        """Serve the account on loopback until the `async with` block ends, for code that reads `VERN_BASE_URL`.

        The key is `api_key`. From then on, the URLs of uploads are on loopback, too.
        """
        return serve(self.world, port=port, faults=self.faults)

    @property
    def ledger(self) -> Ledger:
        """The list of all requests that arrived."""
        return self.world.ledger

    def answers(self, external_id: str) -> dict[str, str]:
        """Return the answers about a customer: the label or the text, by the prompt of the question.

        With `api="companies"`, these are the answers of the last decision; with `"migrations"`, all accepted answers.
        """
        return self.world.answers(external_id)

    @overload
    def verdict(self: "Simulator[World]") -> Verdict: ...
    @overload
    def verdict(self: "Simulator[migrations.World]") -> migrations.Verdict: ...
    def verdict(self) -> Verdict | migrations.Verdict:
        """Return the number of the client's faults, by kind. Call this on the event loop of the client."""
        return self.world.verdict(asyncio.get_running_loop().time())


_WORDS: Mapping[type, str] = {
    str: "a name",
    Schema: "an `asyncmig.simulator.Schema`",
    Variants: "an `asyncmig.simulator.Variants`",
    migrations.Schema: "an `asyncmig.simulator.migrations.Schema`",
    migrations.Variants: "an `asyncmig.simulator.migrations.Variants`",
}


def _checked(name: str, value: object, kind: type[T]) -> T:
    if not isinstance(value, kind):
        raise InvalidInput(name, value, f"must be {_WORDS[kind]}")
    return value


def _each(name: str, values: Iterable[object], kind: type[T]) -> list[T]:
    return [_checked(name, value, kind) for value in values]


def _script(name: str, script: object) -> Script:
    if not isinstance(script, Script):
        raise InvalidInput("customers", name, "must have a script: `Parks(...)` or `Fails(...)`")
    return script


def _agent_script(name: str, script: object) -> migrations.Script:
    """Return the agent's script for one customer. `Parks` and `Fails` apply to `generate`."""
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


def _parsed(limits: migrations.Limits | str | None) -> migrations.Limits | None:
    try:
        return migrations.Limits.parse(limits) if isinstance(limits, str) else limits
    except ValueError as error:
        raise InvalidInput("limits", limits, str(error)) from error


def _client_limits(limits: migrations.Limits) -> Limits:
    """Return an account's limits, as a client needs them."""
    return Limits(
        budgets={name: Rate(*rate) for name, rate in limits.rates.items()},
        endpoint=Rate(*limits.endpoint),
        key=None if limits.key is None else Rate(*limits.key),
        runs=limits.runs,
    )
