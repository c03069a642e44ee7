"""Sends requests to the API: gate, transport and retries, with a value or an error as the result.

This module sends every request of the library. Each attempt takes a slot from the gate and reports its status to the
gate as soon as the headers arrive. The module `attempts` decides whether a failed attempt is repeated.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from functools import partial
from random import Random
from typing import TypeVar, final
from urllib.parse import quote, urlencode, urlsplit

from asyncmig._core.endpoint import Endpoint, Repeat
from asyncmig._core.limits import RateHeaders
from asyncmig._core.retry import FINAL, Doubt, RetryPolicy
from asyncmig._io.addresses import is_loopback
from asyncmig._io.aiohttp_transport import AiohttpTransport
from asyncmig._io.attempts import Attempts, RetryableFailure, RetryQueue
from asyncmig._io.call import Call, Secret
from asyncmig._io.event_loop import LoopGuard
from asyncmig._io.gate import Gate, Slot
from asyncmig._io.reply import Reply, ReplyReader, is_html, rate_headers, too_many_runs
from asyncmig._io.request_reports import RequestReports, Sending
from asyncmig._io.transport import Body, Lost, Response, Timeouts, Transport
from asyncmig.errors import (
    ApiError,
    AsyncmigError,
    AuthError,
    InvalidInput,
    NoAnswer,
    RateLimited,
    ServerError,
    UnexpectedReply,
)
from asyncmig.events import Events

__all__ = ["Caller"]

T = TypeVar("T")
_Decode = Callable[[Call, Response, bytes], Awaitable[T]]
"""Decodes the body of a 2xx response. Raises `RetryableFailure` if another attempt may return a complete body."""
_AS_SIGNED = "%!#$&'()*+,/:;=?@[]~"
"""Characters of a signed URL that are not escaped, because that would make its signature invalid."""
_TOO_MANY = 429
_LONGEST_RETRY_AFTER = 60.0
"""The longest pause, in seconds, that a `Retry-After` can cause before a repeat after a server error."""
_MOST_ROUTES = 1000
"""The most endpoints whose gate and time-outs are kept: `session.request` accepts any number of templates."""


@final
class Caller:
    """Sends the requests of one session: to one base URL, with one API key."""

    __slots__ = (
        "_events",
        "_gate",
        "_guard",
        "_key",
        "_key_header",
        "_on_refused_key",
        "_policy",
        "_replies",
        "_retry_queue",
        "_routes",
        "_timeouts",
        "_timeouts_by_endpoint",
        "_transport",
        "base_url",
        "reports",
    )

    def __init__(
        self,
        *,
        transport: Transport,
        base_url: str,
        guard: LoopGuard,
        key: Secret,
        key_header: str,
        gate: Callable[[Endpoint], Gate],
        events: Events,
        rng: Random,
        on_refused_key: Callable[[AuthError], None],
        policy: RetryPolicy,
        timeouts: Timeouts,
        timeouts_by_endpoint: Mapping[str, Timeouts] | None = None,
    ) -> None:
        self._transport, self._timeouts = transport, timeouts
        self.base_url: str = base_url
        self._timeouts_by_endpoint = dict(timeouts_by_endpoint or {})
        self._guard, self._key, self._key_header = guard, key, key_header
        self._replies = ReplyReader(key)
        self._gate, self._events, self._on_refused_key = gate, events, on_refused_key
        self._policy, self._retry_queue = policy, RetryQueue(policy, rng)
        self._routes: dict[Endpoint, _Route] = {}
        self.reports: RequestReports = RequestReports(events)

    def repeated(
        self,
        endpoint: Endpoint,
        ids: Mapping[str, str],
        *,
        loggable_body: str = "",
        on: tuple[type[AsyncmigError], ...] = (),
        unless: Callable[[AsyncmigError], bool] | None = None,
    ) -> Attempts:
        """Return the attempts of one request or compound step, on the session's retry quota; see `Attempts`.

        `endpoint` and `ids` name the step in events and errors, and its `repeat` decides what may be repeated.
        """
        return Attempts(
            endpoint,
            queue=self._retry_queue,
            policy=self._policy,
            events=self._events,
            ids=ids,
            loggable_body=loggable_body,
            on=on,
            unless=unless,
        )

    async def call(self, call: Call, kind: type[T]) -> T:
        """Send the request, repeat it as its endpoint allows, and return the decoded answer.

        Raises the `ApiError` of a refusal; `NoAnswer`, `ServerError` or `UnexpectedReply` when the attempts are used
        up; `UnknownOutcome` if the server may have processed the request and a repeat could do the same again.
        """
        return await self._repeated(call, partial(self._replies.decoded, kind))

    async def call_with_status(self, call: Call, kind: type[T]) -> tuple[int, T]:
        """Send as `call` does, and return the status and the decoded answer."""
        return await self._repeated(call, partial(self._with_status, kind))

    async def reply(self, call: Call) -> Reply:
        """Send as `call` does, and return the response undecoded.

        A JSON body that is cut short and an HTML page count as failed attempts.
        """
        return await self._repeated(call, self._replies.reply)

    async def _repeated(self, call: Call, decode: _Decode[T]) -> T:
        failed: RetryableFailure | None = None
        try:
            return await self._through_the_gate(call, decode, 1)
        except RetryableFailure as failure:
            failed = failure
        attempts = self.repeated(call.endpoint, call.ids, loggable_body=call.loggable_body)
        while True:
            async with attempts:
                if failed is not None:
                    first, failed = failed, None
                    raise first
                try:
                    return await self._through_the_gate(call, decode, attempts.attempt)
                except ApiError as error:
                    if attempts.doubts and error.status in call.endpoint.doubtful_refusals:
                        raise attempts.unknown(str(error)) from error
                    error.after_doubt = attempts.doubts > 0
                    raise

    async def attempt(
        self,
        call: Call,
        kind: type[T],
        attempts: Attempts,
        *,
        before: Callable[[], Awaitable[None]] | None = None,
    ) -> T:
        """Make one attempt of a compound step, whose `attempts` count it. After a 429, wait and send again.

        `before` is awaited whenever a slot was granted, before the request is sent. It can check facts that may have
        changed during the wait for the slot, which may take an hour. If it raises, nothing is sent. Raises as `call`
        does, and `RetryableFailure` if another attempt of the step may succeed.
        """
        return await self._through_the_gate(
            call, partial(self._replies.decoded, kind), attempts.attempt, before
        )

    async def _through_the_gate(
        self,
        call: Call,
        decode: _Decode[T],
        attempt: int,
        before: Callable[[], Awaitable[None]] | None = None,
    ) -> T:
        ticket: int | None = None
        route = self._route(call.endpoint)
        while True:
            async with self._slot(call, route, ticket) as slot:
                if before is not None:
                    try:
                        await before()
                    except BaseException:
                        slot.unsent()
                        raise
                try:
                    return await self._attempt(call, route, decode, slot, attempt)
                except RateLimited:
                    ticket = slot.ticket

    async def send_once(self, call: Call, kind: type[T], slot: Slot) -> T:
        """Make one attempt, with a slot that is held already. Raises as `call` does, without a repeat."""
        try:
            decode = partial(self._replies.decoded, kind)
            return await self._attempt(call, self._route(call.endpoint), decode, slot, 1)
        except RetryableFailure as failure:
            raise failure.error from failure

    @asynccontextmanager
    async def stream(self, call: Call, *, is_optional: bool = False) -> AsyncGenerator[Response]:
        """Make one attempt, and yield the response as soon as its headers have arrived. The body holds no slot.

        After a 429, waits and sends again; raises `RateLimited` instead if the stream `is_optional`. Raises as `call`
        does, without a repeat; `NoAnswer` if the body breaks off.
        """
        ticket: int | None = None
        yielded = False
        route = self._route(call.endpoint)
        while True:
            async with self._slot(call, route, ticket) as slot:
                try:
                    with Sending(self.reports, call, slot, 1) as sending:
                        async with self._exchange(call, route, route.streaming) as answer:
                            if not self._accepted(sending, answer):
                                raise await self._refused(sending, answer)
                            if not call.endpoint.sends_html and is_html(answer):
                                method, template = call.endpoint.method, call.endpoint.template
                                raise UnexpectedReply(
                                    method, template, answer.status, "HTML instead of a file"
                                )
                            yielded = True
                            yield answer
                            return
                except RateLimited:
                    if yielded or is_optional:
                        raise  # if it was yielded: from the body of the `async with` block
                    ticket = slot.ticket
                except RetryableFailure as failure:
                    raise failure.error from failure

    @asynccontextmanager
    async def exchange_elsewhere(
        self, call: Call, url: str, *, body: Body | None, headers: Mapping[str, str], attempt: int
    ) -> AsyncGenerator[Response]:
        """Send a request once to a URL that the server named, and yield the response, whatever its status.

        The request does not contain the API key, and it passes no gate: the API's limits do not apply to that host.
        Raises `NoAnswer` if no complete response arrives, and `InvalidInput` for a URL that is not https, unless it
        and the API are on loopback.
        """
        self._guard.loop()
        endpoint, status, trouble = call.endpoint, None, None
        self._check_encrypted(url, endpoint.template.strip("{}"))
        sent_at = self.reports.sent(call, 0.0, attempt)
        try:
            async with self._transport.exchange(
                endpoint.method,
                quote(url, safe=_AS_SIGNED),
                headers=headers,
                body=body,
                timeouts=self._route(endpoint).streaming,
            ) as answer:
                status = answer.status
                yield answer
        except Lost as lost:
            trouble = lost.reason
            raise NoAnswer(endpoint.method, endpoint.template, lost.reason) from lost
        finally:
            if sent_at is not None:
                self.reports.done(call, 0.0, attempt, sent_at, status, trouble)

    def _check_encrypted(self, url: str, name: str) -> None:
        try:
            scheme = urlsplit(url).scheme.lower()
            is_local = scheme == "http" and is_loopback(url) and is_loopback(self.base_url)
        except ValueError:
            scheme, is_local = "", False
        if scheme != "https" and not is_local:
            raise InvalidInput(name, f"{scheme}://...", "was named by the server, and is not https")

    def _route(self, endpoint: Endpoint) -> "_Route":
        route = self._routes.get(endpoint)
        if route is None:
            if len(self._routes) >= _MOST_ROUTES:
                self._routes.clear()
            route = self._routes[endpoint] = _Route(endpoint, self._timeouts_of(endpoint))
        return route

    def _timeouts_of(self, endpoint: Endpoint) -> Timeouts:
        own, general = self._timeouts_by_endpoint.get(endpoint.key), self._timeouts
        if own is None and endpoint.quiet_for:
            return replace(general, stall=endpoint.quiet_for, min_rate=None)
        return own or general

    def _slot(self, call: Call, route: "_Route", ticket: int | None) -> AbstractAsyncContextManager[Slot]:
        self._guard.loop()
        endpoint = call.endpoint
        if route.gate is None:
            route.gate = self._gate(endpoint)
        if route.gate.is_long:
            self.reports.long_wait(call, route.gate)
        return route.gate.slot(
            lane=endpoint.lane,
            rank=call.rank,
            max_wait=call.max_wait,
            ticket=ticket,
            order=endpoint.run_order or 0,
            run=None if endpoint.run_order is None else "/".join(call.ids.values()),
        )

    async def _attempt(self, call: Call, route: "_Route", decode: _Decode[T], slot: Slot, attempt: int) -> T:
        with Sending(self.reports, call, slot, attempt) as sending:
            async with self._exchange(call, route, route.timeouts) as answer:
                if not self._accepted(sending, answer):
                    raise await self._refused(sending, answer)
                body = await self._replies.body(answer, call.endpoint.largest_reply)
        return await decode(call, answer, body)

    def _exchange(
        self, call: Call, route: "_Route", timeouts: Timeouts
    ) -> AbstractAsyncContextManager[Response]:
        transport, endpoint = self._transport, call.endpoint
        url, headers, body = self._url(call), self._headers(call), call.body
        if isinstance(transport, AiohttpTransport):
            return transport.exchange(
                endpoint.method,
                url,
                headers=headers,
                body=body,
                timeouts=timeouts,
                is_repeatable=route.is_repeatable,
            )
        return transport.exchange(endpoint.method, url, headers=headers, body=body, timeouts=timeouts)

    def _accepted(self, sending: Sending, answer: Response) -> bool:
        """Report a 2xx status to the gate. Return False for another status, which `_refused` must report."""
        status = sending.status = answer.status
        if not 200 <= status < 300:
            return False
        headers = rate_headers(answer.headers)
        sending.slot.answered(status, headers=headers)
        self._retry_queue.succeeded()
        return True

    async def _refused(self, sending: Sending, answer: Response) -> Exception:
        """Report a status outside 2xx to the gate, and return an `ApiError` or a `RetryableFailure`."""
        call, slot, status = sending.call, sending.slot, answer.status
        headers = rate_headers(answer.headers)
        wait = None if headers is None else headers.retry_after
        if status == _TOO_MANY and call.endpoint.run_order is not None:
            return await self._start_refused(call, answer, slot, headers)
        slot.answered(status, retry_after=wait, headers=headers)
        if status < 500:
            self._retry_queue.succeeded()
        return await self._refusal(call, answer, min(wait or 0.0, _LONGEST_RETRY_AFTER))

    async def read_refusal(self, answer: Response) -> bytes:
        """Return the beginning of a refusal's body; see `ReplyReader.beginning`."""
        return await self._replies.beginning(answer)

    async def _refusal(self, call: Call, answer: Response, retry_after: float) -> Exception:
        error = await self._replies.refusal(call, answer)
        if isinstance(error, AuthError):
            self._on_refused_key(error)
        if isinstance(error, ServerError | UnexpectedReply) and answer.status not in FINAL:
            return RetryableFailure(error, Doubt.MAYBE, retry_after=retry_after)
        return error

    async def _start_refused(
        self, call: Call, answer: Response, slot: Slot, headers: RateHeaders | None
    ) -> Exception:
        """Handle a 429 to a request that starts a run. Its body shows whether the limit of runs is the reason."""
        wait, listed = None if headers is None else headers.retry_after, None
        about_runs = False
        try:
            error = await self._refusal(call, answer, 0.0)
            if isinstance(error, ApiError):
                about_runs, listed = too_many_runs(error.body)
            return error
        finally:
            if about_runs:
                slot.too_many_runs(retry_after=wait, listed=listed)
            else:
                slot.answered(answer.status, retry_after=wait, headers=headers)

    async def _with_status(self, kind: type[T], call: Call, answer: Response, body: bytes) -> tuple[int, T]:
        return answer.status, await self._replies.decoded(kind, call, answer, body)

    def _url(self, call: Call) -> str:
        path = call.endpoint.template
        if call.ids:
            path = path.format(**{name: quote(text, safe="") for name, text in call.ids.items()})
        return f"{self.base_url}{path}" + (f"?{urlencode(call.query)}" if call.query else "")

    def _headers(self, call: Call) -> dict[str, str]:
        headers = {self._key_header: self._key.reveal(), "Accept": "application/json, */*;q=0.5"}
        if call.body is not None:
            headers["Content-Type"] = "application/json"
        return headers


@final
class _Route:
    """The gate and the time-outs of all requests to one endpoint, and whether a second one changes nothing."""

    __slots__ = ("gate", "is_repeatable", "streaming", "timeouts")

    def __init__(self, endpoint: Endpoint, timeouts: Timeouts) -> None:
        self.is_repeatable: bool = endpoint.repeat is Repeat.ALWAYS
        self.gate: Gate | None = None
        """None before the first request that passes it."""
        self.timeouts: Timeouts = timeouts
        self.streaming: Timeouts = timeouts.streaming()
