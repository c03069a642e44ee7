"""One logical call: gate, transport, retry decision, and a value or an error at the end.

Nothing else of the library sends to the API. A call passes the gate for each attempt, tells it the status
at the headers, and leaves the decision about a repeat to `_core.retry`.
"""

import asyncio
import email.utils
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from random import Random
from typing import TypeVar, final
from urllib.parse import quote, urlencode, urlsplit

import msgspec

from asyncmig._core.decode import Unreadable, decode
from asyncmig._core.endpoint import Endpoint
from asyncmig._core.retry import Doubt, Next, RetryPolicy, after_failure, refusal_is_doubtful
from asyncmig._io.gate import Gate, Slot
from asyncmig._io.outage import Outage
from asyncmig._io.transport import Answer, Body, Lost, Timeouts, Transport
from asyncmig.errors import (
    ApiError,
    AsyncmigError,
    AuthError,
    NoAnswer,
    RateLimited,
    ServerError,
    UnexpectedReply,
    UnknownOutcome,
    api_error,
)
from asyncmig.events import Events, RequestDone, RequestSent

__all__ = ["Call", "Caller", "Secret", "Tries"]

T = TypeVar("T")
_TEXT = 200
_LONGEST_RETRY_AFTER = 60.0
_FINAL = frozenset({501, *range(402, 408), *range(410, 425), 426, 428, 431, 451})
"""Undocumented statuses that another try does not change; the others (redirects, 408, 425) may pass."""


@final
class Secret:
    """A text that no repr, log or pickle shows."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return "Secret('***')"

    def __reduce__(self) -> str:
        raise TypeError("a secret is not pickled")


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What to send: an endpoint, the ids of its route, and how urgent it is."""

    endpoint: Endpoint
    ids: Mapping[str, str] = field(default_factory=dict[str, str])
    query: Mapping[str, str] = field(default_factory=dict[str, str])
    body: bytes | None = None
    rank: float = 0.0
    max_wait: float | None = None
    sent: str = ""
    """What an `UnknownOutcome` may show of the body; never a secret."""


class _Failed(Exception):
    """An attempt failed in a way that a repeat may mend."""

    def __init__(
        self, error: AsyncmigError, doubt: Doubt, *, retry_after: float = 0.0, timed_out: bool = False
    ) -> None:
        super().__init__(error)
        self.error, self.doubt, self.retry_after, self.timed_out = error, doubt, retry_after, timed_out


@final
class Tries:
    """The attempts of one call, or of one compound step: counts them, waits between them, ends them."""

    __slots__ = ("_endpoint", "_outage", "_policy", "_queued", "_seen", "_sent", "attempt", "doubts")

    def __init__(self, endpoint: Endpoint, *, outage: Outage, policy: RetryPolicy, sent: str = "") -> None:
        self._endpoint, self._outage, self._policy, self._sent = endpoint, outage, policy, sent
        self._queued, self._seen = False, 0
        self.attempt, self.doubts = 1, 0

    async def failed(
        self,
        error: AsyncmigError,
        doubt: Doubt = Doubt.MAYBE,
        *,
        retry_after: float = 0.0,
        timed_out: bool = False,
    ) -> None:
        """Wait until the next attempt may start; or raise what the call comes to."""
        self.doubts += doubt is Doubt.MAYBE
        what = after_failure(self._endpoint.repeat, doubt, self.attempt, self._policy)
        if what is Next.UNKNOWN:
            raise self.unknown(str(error)) from error
        if what is Next.GIVE_UP:
            raise error
        seen = self._outage.successes
        # In the line of an outage an attempt is spent only if the server answered somebody else since:
        # then the fault is this call's own, otherwise it waits for the server, not for luck.
        self.attempt += not self._queued or seen > self._seen
        self._seen = seen
        self._queued = await self._outage.wait(
            self.attempt - 1, retry_after=retry_after, timed_out=timed_out, queued=self._queued
        )

    def unknown(self, reason: str) -> UnknownOutcome:
        """Return the error for an outcome that nobody knows."""
        endpoint = self._endpoint
        return UnknownOutcome(endpoint.method, endpoint.template, reason, self._sent, endpoint.advice)


@final
class Caller:
    """Sends calls to one API with one key."""

    __slots__ = (
        "_base_url",
        "_events",
        "_gate",
        "_key",
        "_largest_body",
        "_on_refused_key",
        "_outage",
        "_policy",
        "_timeouts",
        "_timeouts_by_endpoint",
        "_transport",
        "requests",
    )

    def __init__(
        self,
        *,
        transport: Transport,
        base_url: str,
        key: Secret,
        gate: Callable[[Endpoint], Gate],
        events: Events,
        rng: Random,
        on_refused_key: Callable[[AuthError], None],
        policy: RetryPolicy,
        timeouts: Timeouts,
        timeouts_by_endpoint: Mapping[str, Timeouts] | None = None,
        largest_body: int = 64 * 1024 * 1024,
    ) -> None:
        self._transport, self._timeouts = transport, timeouts
        self._timeouts_by_endpoint = dict(timeouts_by_endpoint or {})
        self._base_url, self._key = base_url, key
        self._gate, self._events, self._on_refused_key = gate, events, on_refused_key
        self._policy, self._outage = policy, Outage(policy, rng)
        self._largest_body = largest_body
        self.requests: Counter[tuple[str, str]] = Counter()
        """Requests sent, by endpoint key and lane name."""

    def tries(self, endpoint: Endpoint, sent: str = "") -> Tries:
        """Return the retry state of one call; compound steps share it over their parts."""
        return Tries(endpoint, outage=self._outage, policy=self._policy, sent=sent)

    async def call(self, call: Call, kind: type[T]) -> T:
        """Send until there is an answer that a caller can use, and return it decoded.

        Raises the `ApiError` of a refusal; `NoAnswer`, `ServerError` or `UnexpectedReply` when the attempts are
        used up; `UnknownOutcome` where the server may have acted and a repeat could do it twice.
        """
        tries = self.tries(call.endpoint, call.sent)
        ticket: int | None = None
        while True:
            async with self._slot(call, ticket) as slot:
                try:
                    return await self._attempt(call, kind, slot, tries.attempt)
                except RateLimited:
                    ticket = slot.ticket
                    continue
                except ApiError as error:
                    if refusal_is_doubtful(call.endpoint.repeat, error.status, tries.doubts):
                        raise tries.unknown(str(error)) from error
                    error.after_doubt = tries.doubts > 0
                    raise
                except _Failed as failure:
                    failed = failure
            ticket = None
            await tries.failed(
                failed.error, failed.doubt, retry_after=failed.retry_after, timed_out=failed.timed_out
            )

    async def once(self, call: Call, kind: type[T], slot: Slot) -> T:
        """Make one attempt with a slot that the caller holds; raise what it comes to, unrepeated."""
        try:
            return await self._attempt(call, kind, slot, 1)
        except _Failed as failure:
            raise failure.error from failure

    @asynccontextmanager
    async def stream(self, call: Call) -> AsyncGenerator[Answer]:
        """Yield the answer at its headers; the body streams without holding a slot. One attempt.

        A 429 is waited out. Raises as `call` does, unrepeated; `NoAnswer` if the body breaks off.
        """
        ticket: int | None = None
        while True:
            async with self._slot(call, ticket) as slot:
                try:
                    async with self._exchange(
                        call, slot, 1, self._patience(call.endpoint).streaming()
                    ) as answer:
                        yield answer
                        return
                except RateLimited:
                    ticket = slot.ticket
                except _Failed as failure:
                    raise failure.error from failure

    async def put(self, url: str, body: Body, headers: Mapping[str, str]) -> int:
        """Send bytes to a URL that the server named, without the key; return the status. One attempt.

        Raises `UnexpectedReply` for a URL that would send them in the clear where the API itself does not.
        """
        if not url.startswith("https://") and not (url.startswith("http://") and is_loopback(self._base_url)):
            raise UnexpectedReply(
                "PUT", "{upload_url}", 0, "the upload URL that the server named is not https"
            )
        try:
            async with self._transport.exchange(
                "PUT", url, headers=headers, body=body, timeouts=self._timeouts.streaming()
            ) as answer:
                if 200 <= answer.status < 300 and is_html(answer):
                    raise UnexpectedReply(
                        "PUT", "{upload_url}", answer.status, "HTML instead of a storage's answer"
                    )
                return answer.status
        except Lost as lost:
            raise NoAnswer("PUT", "{upload_url}", lost.reason) from lost

    def _patience(self, endpoint: Endpoint) -> Timeouts:
        return self._timeouts_by_endpoint.get(endpoint.key, self._timeouts)

    def _slot(self, call: Call, ticket: int | None) -> AbstractAsyncContextManager[Slot]:
        return self._gate(call.endpoint).slot(
            lane=call.endpoint.lane, rank=call.rank, max_wait=call.max_wait, ticket=ticket
        )

    async def _attempt(self, call: Call, kind: type[T], slot: Slot, attempt: int) -> T:
        async with self._exchange(call, slot, attempt, self._patience(call.endpoint)) as answer:
            body = await self._read(answer)
        try:
            return decode(body, kind)
        except Unreadable as error:
            text = f"{error}; it begins {excerpt(body)!r}"
            endpoint = call.endpoint
            unreadable = UnexpectedReply(endpoint.method, endpoint.template, answer.status, text)
            raise _Failed(unreadable, Doubt.MAYBE) from error

    @asynccontextmanager
    async def _exchange(
        self, call: Call, slot: Slot, attempt: int, timeouts: Timeouts
    ) -> AsyncGenerator[Answer]:
        """Send once; tell the gate the status at the headers; raise `ApiError` or `_Failed` unless it is a 2xx."""
        endpoint, loop = call.endpoint, asyncio.get_running_loop()
        started, status, trouble = loop.time(), None, None
        self.requests[endpoint.key, endpoint.lane.name] += 1
        if self._events.wants_requests:
            self._tell_sent(call, slot, attempt, started)
        try:
            async with self._transport.exchange(
                endpoint.method,
                self._url(call),
                headers=self._headers(call),
                body=call.body,
                timeouts=timeouts,
            ) as answer:
                status = answer.status
                wait = _retry_after(answer.headers)
                slot.answered(status, retry_after=wait)
                if status < 500:
                    self._outage.succeeded()
                if not 200 <= status < 300:
                    raise await self._refusal(endpoint, answer, wait or 0.0)
                yield answer
        except Lost as lost:
            trouble = lost.reason
            if not lost.sent:
                slot.unsent()
            raise _Failed(
                NoAnswer(endpoint.method, endpoint.template, lost.reason),
                Doubt.MAYBE if lost.sent else Doubt.NOT_SENT,
                timed_out=lost.timed_out,
            ) from lost
        finally:
            if self._events.wants_requests:
                self._tell_done(call, slot, attempt, started, status, trouble)

    def _tell_sent(self, call: Call, slot: Slot, attempt: int, now: float) -> None:
        self._events.emit(
            RequestSent(
                at=now,
                endpoint=call.endpoint.key,
                ids=call.ids,
                lane=call.endpoint.lane.name,
                attempt=attempt,
                waited=slot.waited,
            )
        )

    def _tell_done(
        self, call: Call, slot: Slot, attempt: int, sent_at: float, status: int | None, error: str | None
    ) -> None:
        now = asyncio.get_running_loop().time()
        self._events.emit(
            RequestDone(
                at=now,
                endpoint=call.endpoint.key,
                ids=call.ids,
                lane=call.endpoint.lane.name,
                attempt=attempt,
                waited=slot.waited,
                seconds=now - sent_at,
                status=status,
                error=error,
            )
        )

    async def _refusal(self, endpoint: Endpoint, answer: Answer, retry_after: float) -> Exception:
        status = answer.status
        try:
            text = _error_text(await self._read(answer))
        except Lost as lost:
            text = f"(the body was cut off: {lost.reason})"
        error = api_error(endpoint.method, endpoint.template, status, text)
        if isinstance(error, AuthError):
            self._on_refused_key(error)
        if isinstance(error, ServerError | UnexpectedReply) and status not in _FINAL:
            return _Failed(error, Doubt.MAYBE, retry_after=retry_after)
        return error

    async def _read(self, answer: Answer) -> bytes:
        """Read a body up to the limit; a server that echoes the key does not get it into an error or a log."""
        body = bytearray()
        async for chunk in answer.chunks():
            body += chunk
            if len(body) > self._largest_body:
                raise Lost(f"the body is larger than {self._largest_body} bytes", sent=True)
        return bytes(body).replace(self._key.reveal().encode(), b"***")

    def _url(self, call: Call) -> str:
        path = call.endpoint.template.format(
            **{name: quote(text, safe="") for name, text in call.ids.items()}
        )
        return f"{self._base_url}{path}" + (f"?{urlencode(call.query)}" if call.query else "")

    def _headers(self, call: Call) -> dict[str, str]:
        headers = {"x-api-key": self._key.reveal(), "Accept": "application/json, */*;q=0.5"}
        if call.body is not None:
            headers["Content-Type"] = "application/json"
        return headers


def is_html(answer: Answer) -> bool:
    """Return whether a page for people came: a proxy's, whatever its status says."""
    return answer.headers.get("Content-Type", "").startswith("text/html")


def is_loopback(url: str) -> bool:
    """Return whether `url` names this machine, where plain http shows nobody anything."""
    return urlsplit(url).hostname in {"localhost", "127.0.0.1", "::1"}


def excerpt(body: bytes) -> str:
    """Return at most 200 characters of a body that is not what was expected."""
    return body[: _TEXT * 4].decode("utf-8", "replace")[:_TEXT]


def _error_text(body: bytes) -> str:
    try:
        return decode(body, _ErrorBody).error
    except Unreadable:
        return excerpt(body)


class _ErrorBody(msgspec.Struct):
    error: str


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that a `Retry-After` asks for (RFC 9110, 10.2.3), at most 60; None without one."""
    value = headers.get("Retry-After", "").strip()
    if not value:
        return None
    if value.isdigit():
        seconds = float(value[:9])
    else:
        try:
            at = email.utils.parsedate_to_datetime(value)
        except ValueError:
            return None
        seconds = ((at if at.tzinfo else at.replace(tzinfo=UTC)) - datetime.now(UTC)).total_seconds()
    return min(max(seconds, 0.0), _LONGEST_RETRY_AFTER)
