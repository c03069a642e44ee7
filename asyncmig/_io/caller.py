"""One logical call: gate, transport, retry decision, and a value or an error at the end.

Nothing else of the library sends to the API. A call passes the gate for each attempt, tells it the status
at the headers, and leaves the decision about a repeat to `_core.retry`.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import TypeVar, final
from urllib.parse import quote, urlencode, urlsplit

from asyncmig._core.decode import Unreadable
from asyncmig._core.endpoint import Endpoint
from asyncmig._core.retry import FINAL, Doubt, RetryPolicy, refusal_is_doubtful
from asyncmig._io.addresses import is_loopback
from asyncmig._io.attempts import Attempts, RetryableFailure
from asyncmig._io.gate import Gate, Slot
from asyncmig._io.loop_guard import LoopGuard, loop_speed
from asyncmig._io.reply import (
    Reply,
    beginning,
    decoded,
    error_text,
    is_html,
    is_json,
    retry_after,
    unreadable,
    without,
)
from asyncmig._io.retry_queue import RetryQueue
from asyncmig._io.storage import PutReply, storage_error
from asyncmig._io.transport import Answer, Body, Lost, Timeouts, Transport
from asyncmig.errors import (
    ApiError,
    AuthError,
    InvalidInput,
    NoAnswer,
    RateLimited,
    ServerError,
    UnexpectedReply,
    api_error,
)
from asyncmig.events import Events, RequestDone, RequestSent

__all__ = ["Call", "Caller", "Secret"]

T = TypeVar("T")
Understand = Callable[["Call", Answer, bytes], Awaitable[T]]
"""Makes a value of a 2xx answer's body; raises `RetryableFailure` for one that another attempt may give whole."""
_AS_SIGNED = "%!#$&'()*+,/:;=?@[]~"
"""What a URL may hold: only what it may not is escaped, or its signature would not fit."""
_NO_SEGMENT = frozenset({"", ".", ".."})
"""Ids that no encoding keeps apart from a path without them."""
_LARGEST_ERROR = 64 * 1024
"""Bytes of a refusal's body that are read."""
_SHORT_KEY = 8
"""Characters of a key that no server gives out: in a body with data it would be found by chance."""


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
    body: bytes | None = field(default=None, repr=False)
    rank: float = 0.0
    max_wait: float | None = None
    sent: str = ""
    """What an `UnknownOutcome` may show of the body; never a secret."""
    secrets: tuple[str, ...] = field(default=(), repr=False)
    """What else the body holds: an answer that echoes it is not quoted in an error as it came."""

    def __post_init__(self) -> None:
        """Raise `InvalidInput` for an id that would make a path of another route, whoever named it."""
        for name, text in self.ids.items():
            if text in _NO_SEGMENT:
                raise InvalidInput(name, text, "would lead to another route")


@final
class Caller:
    """Sends calls to one API with one key."""

    __slots__ = (
        "_base_url",
        "_events",
        "_gate",
        "_guard",
        "_key",
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
        guard: LoopGuard,
        key: Secret,
        gate: Callable[[Endpoint], Gate],
        events: Events,
        rng: Random,
        on_refused_key: Callable[[AuthError], None],
        policy: RetryPolicy,
        timeouts: Timeouts,
        timeouts_by_endpoint: Mapping[str, Timeouts] | None = None,
    ) -> None:
        self._transport, self._timeouts = transport, timeouts
        self._timeouts_by_endpoint = dict(timeouts_by_endpoint or {})
        self._base_url, self._guard, self._key = base_url, guard, key
        self._gate, self._events, self._on_refused_key = gate, events, on_refused_key
        self._policy, self._outage = policy, RetryQueue(policy, rng)
        self.requests: Counter[tuple[str, str]] = Counter()
        """Requests sent, by endpoint key and lane name."""

    def attempts(self, endpoint: Endpoint, ids: Mapping[str, str], sent: str = "") -> Attempts:
        """Return the retry state of one call; compound steps share it over their parts."""
        return Attempts(
            endpoint, outage=self._outage, policy=self._policy, events=self._events, ids=ids, sent=sent
        )

    async def call(self, call: Call, kind: type[T]) -> T:
        """Send until there is an answer that a caller can use, and return it decoded.

        Raises the `ApiError` of a refusal; `NoAnswer`, `ServerError` or `UnexpectedReply` when the attempts are
        used up; `UnknownOutcome` where the server may have acted and a repeat could do it twice.
        """
        return await self._repeated(call, partial(self._decoded, kind))

    async def call_with_status(self, call: Call, kind: type[T]) -> tuple[int, T]:
        """Send as `call` does, and return the status, too, where several are a success."""
        return await self._repeated(call, partial(self._with_status, kind))

    async def reply(self, call: Call) -> Reply:
        """Send as `call` does, and return the answer as it is; a body that is not what it says it is, is none."""
        return await self._repeated(call, self._reply)

    async def _repeated(self, call: Call, understand: Understand[T]) -> T:
        tries = self.attempts(call.endpoint, call.ids, call.sent)
        while True:
            try:
                value = await self._through_the_gate(call, understand, tries.attempt)
            except ApiError as error:
                if refusal_is_doubtful(call.endpoint.repeat, error.status, tries.doubts):
                    raise tries.unknown(str(error)) from error
                error.after_doubt = tries.doubts > 0
                raise
            except RetryableFailure as failure:
                failed = failure
            else:
                await tries.succeeded()
                return value
            await tries.failed(failed)

    async def attempt(self, call: Call, kind: type[T], tries: Attempts) -> T:
        """Make one attempt of a compound step that counts its own; a 429 is waited out.

        Raises what `call` does, and `RetryableFailure` where another attempt of the step may succeed.
        """
        return await self._through_the_gate(call, partial(self._decoded, kind), tries.attempt)

    async def _through_the_gate(self, call: Call, understand: Understand[T], attempt: int) -> T:
        ticket: int | None = None
        while True:
            async with self._slot(call, ticket) as slot:
                try:
                    return await self._attempt(call, understand, slot, attempt)
                except RateLimited:
                    ticket = slot.ticket

    async def send_once(self, call: Call, kind: type[T], slot: Slot) -> T:
        """Make one attempt with a slot that the caller holds; raise what it comes to, unrepeated."""
        try:
            return await self._attempt(call, partial(self._decoded, kind), slot, 1)
        except RetryableFailure as failure:
            raise failure.error from failure

    @asynccontextmanager
    async def stream(self, call: Call) -> AsyncGenerator[Answer]:
        """Yield the answer at its headers; the body streams without holding a slot. One attempt.

        A 429 is waited out. Raises as `call` does, unrepeated; `NoAnswer` if the body breaks off.
        """
        ticket: int | None = None
        yielded = False
        while True:
            async with self._slot(call, ticket) as slot:
                try:
                    async with self._exchange(
                        call, slot, 1, self._patience(call.endpoint).streaming()
                    ) as answer:
                        yielded = True
                        yield answer
                        return
                except RateLimited:
                    if yielded:
                        raise  # the caller's own
                    ticket = slot.ticket
                except RetryableFailure as failure:
                    raise failure.error from failure

    async def put(
        self, url: str, body: Body, headers: Mapping[str, str], *, believe_pages: bool = False
    ) -> PutReply:
        """Send bytes to a URL that the server named, without the key; return what was answered. One attempt.

        Raises `UnexpectedReply` for a 200 with a page for people, unless those are to be believed: it may be a
        proxy's; and `InvalidInput` for a URL that would send the bytes in the clear where the API itself does not.
        """
        self._guard.loop()
        try:
            scheme = urlsplit(url).scheme.lower()
        except ValueError:
            scheme = ""
        if scheme != "https" and not (scheme == "http" and is_loopback(self._base_url)):
            raise InvalidInput("upload_url", f"{scheme}://...", "was named by the server, and is not https")
        try:
            async with self._transport.exchange(
                "PUT",
                quote(url, safe=_AS_SIGNED),
                headers=headers,
                body=body,
                timeouts=self._timeouts.streaming(),
            ) as answer:
                if not 200 <= answer.status < 300:
                    return await self._storage_refusal(answer, url)
                is_page = answer.status == 200 and is_html(answer) and await self._read_error(answer)
        except Lost as lost:
            raise NoAnswer("PUT", "{upload_url}", lost.reason) from lost
        if is_page and not believe_pages:
            raise UnexpectedReply("PUT", "{upload_url}", answer.status, "HTML instead of a storage's answer")
        return PutReply(status=answer.status)

    async def _storage_refusal(self, answer: Answer, url: str) -> PutReply:
        try:
            body = await self._read_error(answer)
        except Lost:
            body = b""
        return storage_error(answer.status, body, url, retry_after=retry_after(answer.headers) or 0.0)

    def _patience(self, endpoint: Endpoint) -> Timeouts:
        return self._timeouts_by_endpoint.get(endpoint.key, self._timeouts)

    def _slot(self, call: Call, ticket: int | None) -> AbstractAsyncContextManager[Slot]:
        self._guard.loop()
        return self._gate(call.endpoint).slot(
            lane=call.endpoint.lane, rank=call.rank, max_wait=call.max_wait, ticket=ticket
        )

    async def _attempt(self, call: Call, understand: Understand[T], slot: Slot, attempt: int) -> T:
        async with self._exchange(call, slot, attempt, self._patience(call.endpoint)) as answer:
            body = await self._read(answer, call.endpoint.largest_reply)
        return await understand(call, answer, body)

    async def _reply(self, call: Call, answer: Answer, body: bytes) -> Reply:
        if body and (is_json(answer) or is_html(answer)):
            await self._decoded(
                object, call, answer, body
            )  # cut JSON is none, and a page for people never was
        headers: dict[str, str] = {}
        for name, value in answer.headers.items():
            name, value = name.lower(), value.replace(self._key.reveal(), "***")
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        endpoint = call.endpoint
        return Reply(
            method=endpoint.method,
            endpoint=endpoint.template,
            status=answer.status,
            headers=headers,
            content=body,
        )

    @asynccontextmanager
    async def _exchange(
        self, call: Call, slot: Slot, attempt: int, timeouts: Timeouts
    ) -> AsyncGenerator[Answer]:
        """Send once and tell the gate the status at the headers.

        Raises `ApiError` or `RetryableFailure` unless the status is 2xx.
        """
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
                wait = retry_after(answer.headers, speed=loop_speed(loop))
                slot.answered(status, retry_after=wait)
                if status < 500:
                    self._outage.succeeded()
                if not 200 <= status < 300:
                    raise await self._refusal(call, answer, wait or 0.0)
                yield answer
        except Lost as lost:
            trouble = lost.reason
            if not lost.sent:
                slot.unsent()
            raise RetryableFailure(
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

    async def _refusal(self, call: Call, answer: Answer, retry_after: float) -> Exception:
        endpoint, status = call.endpoint, answer.status
        try:
            text, documented = error_text(without(await self._read_error(answer), call.secrets))
        except Lost as lost:
            text, documented = f"(the body was cut off: {lost.reason})", False
        error = api_error(endpoint.method, endpoint.template, status, text)
        error.is_documented = documented
        if isinstance(error, AuthError):
            self._on_refused_key(error)
        if isinstance(error, ServerError | UnexpectedReply) and status not in FINAL:
            return RetryableFailure(error, Doubt.MAYBE, retry_after=retry_after)
        return error

    async def _read(self, answer: Answer, most: int) -> bytes:
        """Read a body; raise `Lost` once more than `most` bytes of it have come, decompressed."""
        body = await beginning(answer, most)
        if len(body) > most:
            raise Lost(f"the body is larger than {most} bytes", sent=True)
        return self._without_key(answer, body)

    async def _read_error(self, answer: Answer) -> bytes:
        """Read as much of a refusal's body as a message can need, and drop the rest."""
        body = await beginning(answer, _LARGEST_ERROR)
        return self._without_key(answer, body[:_LARGEST_ERROR])

    def _without_key(self, answer: Answer, body: bytes) -> bytes:
        """Keep a key that the server echoes out of errors and logs."""
        key = self._key.reveal()
        if 200 <= answer.status < 300 and len(key) < _SHORT_KEY:
            return body
        return body.replace(key.encode(), b"***")

    async def _decoded(self, kind: type[T], call: Call, answer: Answer, body: bytes) -> T:
        try:
            return await decoded(body, kind)
        except Unreadable as error:
            endpoint = call.endpoint
            shown = without(body[:_LARGEST_ERROR], (*call.secrets, self._key.reveal()))
            raise RetryableFailure(
                unreadable(endpoint.method, endpoint.template, answer.status, shown, error), Doubt.MAYBE
            ) from error

    async def _with_status(self, kind: type[T], call: Call, answer: Answer, body: bytes) -> tuple[int, T]:
        return answer.status, await self._decoded(kind, call, answer, body)

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
