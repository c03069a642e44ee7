"""The session: connections, rate limits and polls of one API key on one event loop."""

import hashlib
import logging
import os
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Literal, Self, cast, final

import aiohttp
import anyio

from asyncmig._core.arguments import checked_call, checked_text
from asyncmig._core.endpoint import Endpoint, Lane, Repeat
from asyncmig._core.limits import Limits, Scope, short_form
from asyncmig._core.retry import RetryPolicy
from asyncmig._io.addresses import checked_base_url, is_loopback
from asyncmig._io.aiohttp_transport import AiohttpTransport
from asyncmig._io.call import Secret, raw_call, raw_endpoint
from asyncmig._io.caller import Caller
from asyncmig._io.context import SessionContext
from asyncmig._io.event_loop import AsyncOnly, LoopGuard
from asyncmig._io.gate import Gate, GateStatistics
from asyncmig._io.poller import Poller
from asyncmig._io.reply import Reply
from asyncmig._io.run_slots import RunSlots, RunSlotsStatistics
from asyncmig._io.session_budgets import SessionBudgets, budgets_by_route, route_shape
from asyncmig._io.transport import Timeouts, Transport
from asyncmig._io.watch import fresh
from asyncmig.companies import routes as company_routes
from asyncmig.companies.catalog import Companies
from asyncmig.companies.import_run import ImportRun
from asyncmig.companies.routes import KEY_HEADER
from asyncmig.distributed.budget_store import SharedBudgets, SharedWindow
from asyncmig.distributed.shared_dispatcher import SharedDispatcher
from asyncmig.distributed.shared_set import SharedBudgetSet
from asyncmig.errors import AsyncmigError, InvalidInput, SessionClosed
from asyncmig.events import Events
from asyncmig.migrations import routes as migration_routes
from asyncmig.migrations.catalog import Migrations
from asyncmig.transfers.uploads import UploadLimits

__all__ = ["Scope", "Session", "context_of"]

_log = logging.getLogger("asyncmig")

_SESSION_LEFT = SessionClosed(
    "the session was left: make calls inside its `async with` block, or open a new one"
)
_LONGEST_REQUEST = 60.0
"""Seconds after which a request without a time-out counts as arrived or lost."""
_DEFAULT_URL = "https://app.vern.so/api/v1"


@final
class Session(AsyncOnly):
    """The connections, rate limits and polls of one API key.

    Use one session per key and event loop, as `async with`. It belongs to the event loop that enters it.

    - `api_key`, `base_url`: by default `VERN_API_KEY` and `VERN_BASE_URL`. The base URL is the prefix of all routes.
    - `limits`: what the server allows, as `Limits`, or as text such as `"reads=30/60s,agent=5/1h,runs=3"` or
      `"per-endpoint"`. The default is `Limits.BY_CLASS`, with 100 requests a minute for each endpoint without a
      class.
    - `limit`, `window`, `scope`: a short form of `limits` for the endpoints without a class: `limit` requests in
      `window` seconds, for each of these endpoints, or for all of them together with `scope="key"`.
    - `second_channel`: if the budget of the polls is short, also look runs up in the list of active imports, which
      has another budget when budgets are by endpoint.
    - `timeouts`, `timeouts_by_endpoint`: for all endpoints, and for single ones by method and route template
      (`GET /sources`).
    - `retry`: the attempts of a call, and the seconds between them.
    - `max_parallel_uploads`: the most uploads at a time. `upload_bytes_per_second`: the limit of all of them together
      (default: no limit).
    - `recent`: the path of the send log, from which the next process reads what this one sent in its last window. A
      fleet has one beside its journal by default.
    - `shared`: one window for all processes with the key: `"local"` for the processes of this user on this host, or
      for example `asyncmig.distributed.redis.RedisWindow`. It is closed with the session.
    - `account`: a name that replaces the key in the shared window, so that several keys of one account share budgets.
    - `rng`: the source of randomness, for reproducible tests.
    - `http`: an aiohttp session to use. It is not closed.
    - `transport`: a transport of your own; see `asyncmig.transport`.

    Proxies are read from the environment (`HTTPS_PROXY`, `ALL_PROXY`, `NO_PROXY`). Credentials in a netrc file are
    never used. A given `http` session keeps its own settings for both.

    Raises `InvalidInput` for a missing key, a base URL that is not https (loopback may be http), a wrong limit, and a
    proxy variable that cannot be used. Calls before the `async with` block, or from another event loop or thread,
    raise `UsageError`. Calls after the block raise `SessionClosed`.
    """

    @checked_call
    def __init__(
        self,
        api_key: str | None = None,
        base_url: str | None = None,
        *,
        limits: Limits | str | None = None,
        limit: int = 100,
        window: float = 60.0,
        scope: Scope = "endpoint",
        second_channel: bool = False,
        timeouts: Timeouts | None = None,
        timeouts_by_endpoint: Mapping[str, Timeouts] | None = None,
        retry: RetryPolicy | None = None,
        max_parallel_uploads: int = 16,
        upload_bytes_per_second: float | None = None,
        recent: Path | str | None = None,
        shared: SharedWindow | Literal["local"] | None = None,
        account: str | None = None,
        rng: Random | None = None,
        http: aiohttp.ClientSession | None = None,
        transport: Transport | None = None,
    ) -> None:
        key = _checked_key(os.environ.get("VERN_API_KEY", "") if api_key is None else api_key)
        self.base_url: str = _base_url(base_url)
        self._limits = short_form(limits, limit=limit, window=window, scope=scope)
        if max_parallel_uploads < 1:
            raise InvalidInput("max_parallel_uploads", max_parallel_uploads, "must be at least one")
        timeouts = timeouts or Timeouts()
        longest = _longest_of(timeouts, timeouts_by_endpoint or {})
        shares = key if account is None else Secret(f"account {checked_text('account', account)}")
        digest = _account(shares, self.base_url)
        self._shared = _shared_budgets(shared, digest, longest)
        self._transport = transport or _transport(http, self.base_url)
        self._closed: AsyncmigError | None = None
        self._recent = Path(recent) if recent is not None else None
        self._guard = LoopGuard("Session")
        self.events: Events = Events()
        self._poller = Poller(second_channel=second_channel, events=self.events, loop=self._guard.loop)
        rng = rng or Random()
        self._runs = RunSlots(self._limits.runs, events=self.events)
        self._budgets = self._make_budgets(rng, longest)
        self._caller = self._make_caller(
            key, rng, retry=retry or RetryPolicy(), timeouts=timeouts, by_endpoint=timeouts_by_endpoint
        )
        self._context = SessionContext(
            caller=self._caller,
            poller=self._poller,
            gate=self._budgets.gate,
            runs=self._runs,
            account=digest,
            remember=self._remember,
            check_open=self.check_open,
            events=self.events,
            rng=rng,
        )
        self._context.keep(UploadLimits(max_parallel_uploads, upload_bytes_per_second))
        self.companies: Companies = Companies(self._context)
        self.migrations: Migrations = Migrations(self._context)

    def _make_caller(
        self,
        key: Secret,
        rng: Random,
        *,
        retry: RetryPolicy,
        timeouts: Timeouts,
        by_endpoint: Mapping[str, Timeouts] | None,
    ) -> Caller:
        return Caller(
            transport=self._transport,
            base_url=self.base_url,
            guard=self._guard,
            key=key,
            key_header=KEY_HEADER,
            gate=self._budgets.gate,
            events=self.events,
            rng=rng,
            on_refused_key=self.close,
            policy=retry,
            timeouts=timeouts,
            timeouts_by_endpoint=by_endpoint,
        )

    def _make_budgets(self, rng: Random, timeout: float) -> SessionBudgets:
        """Return the budgets. With a shared window, its store grants their slots."""
        make = partial(
            SessionBudgets, self._limits, runs=self._runs, events=self.events, rng=rng, timeout=timeout
        )
        shared = self._shared
        if shared is None:
            return make()
        self._runs.share(shared.window.runs(shared.account))
        return make(
            dispatcher=lambda earlier: partial(SharedDispatcher, shared=replace(shared, earlier=earlier)),
            budget_set=partial(SharedBudgetSet, shared=shared),
        )

    def __repr__(self) -> str:
        return f"<Session {self.base_url}: {self._limits}>"

    async def __aenter__(self) -> Self:
        self._guard.enter()
        try:
            if self._recent is not None:
                await self._remember(self._recent)
        except BaseException:
            self._guard.forget()
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        """Close all parts, even if closing one of them fails, or if the task is cancelled."""
        self.close(_SESSION_LEFT)
        closing = AsyncExitStack()  # closes in reverse order
        closing.callback(self._guard.leave, _SESSION_LEFT)
        closing.callback(self.events.close)
        closing.push_async_callback(self._budgets.aclose_log)
        closing.push_async_callback(self._transport.aclose)
        if self._shared is not None:
            closing.push_async_callback(self._shared.window.aclose)
        closing.push_async_callback(self._runs.aclose)
        closing.push_async_callback(self._budgets.aclose)
        closing.push_async_callback(self._poller.aclose)
        closing.push_async_callback(self.migrations.aclose)
        with anyio.CancelScope(shield=True):
            await closing.aclose()

    async def _remember(self, path: Path) -> None:
        await self._budgets.remember(path, self._guard.loop())

    def close(self, error: AsyncmigError | None = None) -> None:
        """Send no further requests: waiting and new calls raise `error` (default `SessionClosed`).

        Requests in flight end normally. If the server refuses the API key, the session is closed in the same way,
        with `AuthError`.
        """
        if self._closed is None:
            self._closed = error or SessionClosed()
            self._budgets.close(self._closed)
            # Otherwise a wait for a run would end only at its next poll, which may be a minute later.
            self._poller.close(self._closed)

    def check_open(self) -> None:
        """Raise the error that a call would raise now, if any: `UsageError`, `SessionClosed`, or the earlier
        `AuthError`."""
        self._guard.loop()
        if self._closed is not None:
            raise fresh(self._closed)

    @checked_call
    def watch(self, run_id: str, company_id: str) -> ImportRun:
        """Return the handle of an import that another process has started. Sends no request."""
        return self.companies.open(company_id).imports.open(run_id)

    @checked_call
    async def request(
        self,
        method: str,
        template: str,
        /,
        *,
        body: object = None,
        params: Mapping[str, str] | None = None,
        repeatable: bool | None = None,
        lane: Lane = Lane.WORK,
        rank: float = 0.0,
        max_wait: float | None = None,
        **ids: str,
    ) -> Reply:
        """Send a request to an endpoint that asyncmig does not wrap yet, with the same limits, retries and errors.

        ```python
        reply = await session.request("GET", "/companies/{id}/imports", id=company.id, params={"status": "active"})
        print(reply.status, reply.json())  # or reply.json(YourStruct)
        ```

        - `template`: the path below the base URL, with `{placeholders}`. `ids` are their values, which are
          percent-encoded. The template determines the budgets, so write it as the API's documentation does.
        - `body`: a value that is sent as JSON, or JSON as bytes.
        - `repeatable`: whether the request may be sent again if its outcome is unknown. By default only GET and
          HEAD are.
        - `max_wait`: if the limit would delay the request for more seconds, `WaitTooLong` is raised at once.
        - `lane`, `rank`: the priority among waiting requests. Within a lane, a lower rank goes first.

        Raises `InvalidInput` before anything is sent; the `ApiError` of a refusal; `NoAnswer`, `ServerError` or
        `UnexpectedReply` when the attempts are used up; `UnknownOutcome` if a request that is not repeatable may have
        been processed.
        """
        endpoint = _raw_endpoint(method, template, repeatable, lane)
        call = raw_call(endpoint, ids=ids, params=params, body=body, rank=rank, max_wait=max_wait)
        return await self._caller.reply(call)

    @checked_call
    def gate(self, method: str, template: str) -> Gate:
        """Return the gate of an endpoint, for other code that sends requests to it with the same key.

        ```python
        async with session.gate("GET", "/sources").slot() as slot:  # send your request inside this block
            slot.answered(200)  # report the status as soon as the headers have arrived
        ```
        """
        method = method.upper()
        endpoint = Endpoint(name="", method=method, template=template, repeat=Repeat.NEVER)
        return self._budgets.gate(replace(endpoint, budgets=_budgets_of(endpoint)))

    def stats(self) -> Mapping[str, GateStatistics]:
        """Return a snapshot of each budget in use, by its name: a class, an endpoint, or `*` for the whole key."""
        return {name: gate.statistics() for name, gate in self._budgets.by_name.items()}

    def budget(self, name: str) -> Gate:
        """Return the gate of one budget, by its name in `stats`. Raises `InvalidInput` for any other name."""
        try:
            return self._budgets.by_name[name]
        except KeyError:
            raise InvalidInput("name", name, "is not a budget that this session has used") from None

    def run_slots(self) -> RunSlotsStatistics:
        """Return a snapshot of the account's run slots, as far as this process knows them."""
        return self._runs.statistics()

    @property
    def requests(self) -> Mapping[tuple[str, str], int]:
        """The number of requests sent so far, by endpoint and lane."""
        return dict(self._caller.reports.requests)


def context_of(session: Session) -> SessionContext:
    """Return the parts of a session that a workflow uses."""
    return session._context  # pyright: ignore[reportPrivateUsage]


_NAMED_BUDGETS = budgets_by_route(
    [each for each in vars(routes).values() if isinstance(each, Endpoint)]
    for routes in (company_routes, migration_routes)
)


def _budgets_of(endpoint: Endpoint) -> tuple[str, ...]:
    """Return the named budgets that a request to a route charges."""
    return _NAMED_BUDGETS.get(route_shape(endpoint), ())


@lru_cache
def _raw_endpoint(method: str, template: str, repeatable: bool | None, lane: Lane) -> Endpoint:
    """Return the endpoint for `Session.request`. Calls with the same arguments return the same object."""
    endpoint = raw_endpoint(method, template, repeatable=repeatable, lane=lane)
    return replace(endpoint, budgets=_budgets_of(endpoint))


def _checked_key(key: str) -> Secret:
    if not key.strip():
        raise InvalidInput("api_key", "", "is missing: give it, or set VERN_API_KEY")
    if key != key.strip():
        raise InvalidInput("api_key", "***", "begins or ends with a blank or a line break: remove it")
    if not key.isascii() or not key.isprintable():
        raise InvalidInput("api_key", "***", "has characters that an HTTP header cannot contain")
    return Secret(key)


def _account(key: Secret, base_url: str) -> str:
    """Return a digest that identifies a key at a server, and does not reveal the key."""
    return hashlib.sha256(f"{base_url}\0{key.reveal()}".encode()).hexdigest()[:32]


def _longest_of(timeouts: Timeouts, by_endpoint: Mapping[str, Timeouts]) -> float:
    """Return the seconds after which every request has either arrived or been lost."""
    for endpoint, each in by_endpoint.items():
        if not isinstance(cast(object, each), Timeouts):
            raise InvalidInput(f"timeouts_by_endpoint[{endpoint!r}]", each, "must be Timeouts")
    return max(each.total or each.headers or _LONGEST_REQUEST for each in (timeouts, *by_endpoint.values()))


def _shared_budgets(shared: SharedWindow | str | None, account: str, timeout: float) -> SharedBudgets | None:
    if shared is None:
        return None
    if shared == "local":
        from asyncmig.distributed.local import (
            LocalWindow,  # imported here, because not every system has file locks
        )

        shared = LocalWindow()
    if isinstance(shared, str) or not hasattr(shared, "runs"):
        raise InvalidInput("shared", shared, "is neither 'local' nor a shared window")
    return SharedBudgets(window=shared, account=account, timeout=timeout)


def _base_url(given: str | None) -> str:
    if given:
        return checked_base_url(given, "base_url")
    name = "VERN_BASE_URL"
    return checked_base_url(os.environ.get(name, "").strip() or _DEFAULT_URL, name)


def _transport(http: aiohttp.ClientSession | None, base_url: str) -> AiohttpTransport:
    """Return the default transport. Raises `InvalidInput` for a proxy variable that cannot be used."""
    transport = AiohttpTransport(http, trust_env=not is_loopback(base_url))
    transport.proxy_for(base_url)
    return transport
