"""Upload content to signed URLs: send the bytes, and request a new URL if that fails."""

import hashlib
import mimetypes
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar, final

import anyio

from asyncmig._core.endpoint import Endpoint
from asyncmig._io.attempts import Attempts, RetryableFailure
from asyncmig._io.byte_throttle import ByteThrottle
from asyncmig._io.call import Call
from asyncmig._io.caller import Caller
from asyncmig._io.context import SessionContext
from asyncmig._io.reply import is_html, retry_after
from asyncmig._io.storage import PutReply, storage_error
from asyncmig._io.transport import Answer, Lost
from asyncmig.errors import AsyncmigError, BadRequest, InvalidInput, NoAnswer, UnexpectedReply
from asyncmig.transfers.content import Content, Progress

__all__ = [
    "Sent",
    "Target",
    "UploadLimits",
    "UploadRoutes",
    "checked_content_type",
    "content_type_of",
    "digest_of",
    "send_content",
]

T = TypeVar("T")
_CONTENT_TYPE = re.compile(r"[\w.+-]+/[\w.+-]+( *; *[!-~ ]+)?", re.ASCII)
_FINAL = frozenset({405, 411, 413, 414, 415, 501})
_FINAL_CODES = frozenset(
    {"EntityTooLarge", "EntityTooSmall", "MaxMessageLengthExceeded", "RequestBodyTooLarge"}
)
"""Storage error codes that a new URL does not change."""
_PASSING = frozenset({408, 425, 429})
_PASSING_CODES = frozenset(
    {
        "BadDigest",
        "IncompleteBody",
        "InternalError",
        "OperationAborted",
        "OperationTimedOut",
        "RequestTimeout",
        "ServerBusy",
        "ServiceUnavailable",
        "SlowDown",
    }
)
"""Storage error codes for a busy storage or a broken transfer. S3 sends some of them with status 400."""
_SAME, _REFUSALS = 3, 6
"""Number of refusals of one kind, or of any kind, after which a new URL will not help."""
_REFUSED = "the storage refused the bytes"
_TYPES = {  # what the platform's own table may lack
    ".csv": "text/csv",
    ".tsv": "text/tab-separated-values",
    ".xlsx": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
    ".xls": "application/vnd.ms-excel",
    ".json": "application/json",
    ".txt": "text/plain",
}


@final
class UploadLimits:
    """What all uploads of a session share: how many run at a time, and the bytes per second of all together."""

    __slots__ = ("slots", "throttle")

    def __init__(self, max_parallel: int = 16, bytes_per_second: float | None = None) -> None:
        self.slots: anyio.CapacityLimiter = anyio.CapacityLimiter(max_parallel)
        self.throttle: ByteThrottle | None = None
        if bytes_per_second is not None:
            self.throttle = ByteThrottle(bytes_per_second)


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadRoutes:
    """The endpoints of an upload: the one that returns a signed URL, and the PUT to that URL."""

    create: Endpoint
    put: Endpoint
    ids: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target(Generic[T]):
    """Where the bytes of one upload go: a signed URL, which is a secret, and what names the upload afterwards."""

    url: str
    content_type: str
    ref: T

    def __repr__(self) -> str:
        return f"Target(ref={self.ref!r})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent(Generic[T]):
    """Content that the storage has accepted."""

    ref: T
    sha256: str


def content_type_of(name: str) -> str:
    """Return the content type for a file's name, `application/octet-stream` where it says nothing."""
    known = _TYPES.get(Path(name).suffix.lower())
    return known or mimetypes.guess_type(name)[0] or "application/octet-stream"


def digest_of(source: Path | bytes) -> str:
    """Return the SHA-256 of a file or of bytes, in hexadecimal. Blocks: call it in a thread."""
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    with source.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


async def send_content(
    context: SessionContext,
    content: Content,
    *,
    request_target: Callable[[Attempts], Awaitable[Target[T]]],
    routes: UploadRoutes,
    has_arrived: Callable[[T], Awaitable[bool]] | None = None,
    progress: Progress | None = None,
) -> Sent[T]:
    """Send `content` to a signed URL, and to a new one if that fails.

    `request_target`: makes one attempt to get a signed URL, as `Caller.attempt` does. `has_arrived`: asked after a
    PUT whose response was lost; without it, the bytes are sent again.
    """
    upload = _Upload(context, content, request_target, routes, has_arrived, progress)
    return await upload.run()


@final
class _Upload(Generic[T]):
    """The attempts of one upload."""

    __slots__ = (
        "_asks",
        "_content",
        "_context",
        "_has_arrived",
        "_progress",
        "_refusals",
        "_request_target",
        "_routes",
        "_tries",
    )

    def __init__(
        self,
        context: SessionContext,
        content: Content,
        request_target: Callable[[Attempts], Awaitable[Target[T]]],
        routes: UploadRoutes,
        has_arrived: Callable[[T], Awaitable[bool]] | None,
        progress: Progress | None,
    ) -> None:
        self._context, self._content, self._routes, self._progress = context, content, routes, progress
        self._request_target, self._has_arrived = request_target, has_arrived
        self._refusals = _Refusals(routes.put)
        self._tries = context.caller.repeated(routes.put, routes.ids)
        self._asks = self._new_asks()

    def _new_asks(self) -> Attempts:
        return self._context.caller.repeated(self._routes.create, self._routes.ids)

    async def run(self) -> Sent[T]:
        content, tries, pages = self._content, self._tries, 0
        limits = self._context.kept(UploadLimits)
        while True:
            # Some storages always respond with a page. If there is no other response, the page is accepted.
            believes = content.once or (tries.is_last and pages == tries.attempt - 1)
            try:
                async with limits.slots:  # the slot is not held during the pause before a repeat
                    sent = await self._attempt(limits, believe_pages=believes)
            except RetryableFailure as failure:  # the request for the URL failed, and has its own attempts
                try:
                    await self._asks.failed(failure)
                    continue
                except (NoAnswer, UnexpectedReply) as error:
                    trouble, pause, self._asks = error, 0.0, self._new_asks()
            except _Refused as refused:
                trouble, pause = self._refusals.error(refused.reply), refused.reply.retry_after
            except (NoAnswer, UnexpectedReply) as error:
                trouble, pause = error, 0.0
                pages += isinstance(error, UnexpectedReply) and 200 <= error.status < 300
            else:
                await self._asks.succeeded()
                await tries.succeeded()
                return sent
            if content.spent:
                raise _cannot_repeat(content, trouble) from trouble
            await tries.failed(RetryableFailure(trouble, retry_after=pause))

    async def _attempt(self, limits: UploadLimits, *, believe_pages: bool) -> Sent[T]:
        target = await self._request_target(self._asks)
        put = Call(endpoint=self._routes.put, ids=self._routes.ids)
        headers = {"Content-Type": target.content_type, "Content-Length": str(self._content.size)}
        async with self._content.attempt(limits.throttle, self._progress) as attempt:
            try:
                async with self._context.caller.exchange_elsewhere(
                    put, target.url, body=attempt, headers=headers, attempt=self._tries.attempt
                ) as answer:
                    reply = await self._read_reply(answer, target.url, believe_pages=believe_pages)
            except (NoAnswer, UnexpectedReply) as error:
                if attempt.failure is not None:
                    raise attempt.failure from error
                if self._has_arrived is None or not await self._has_arrived(target.ref):
                    raise
                reply = PutReply(status=200)
        if attempt.failure is not None:
            raise attempt.failure
        if not 200 <= reply.status < 300:
            raise _Refused(reply)
        return Sent(ref=target.ref, sha256=attempt.digest.hexdigest())

    async def _read_reply(self, answer: Answer, url: str, *, believe_pages: bool) -> PutReply:
        """Return the storage's response.

        Raises `UnexpectedReply` for a 200 with an HTML page, which a proxy may have sent, unless pages are accepted.
        """
        caller: Caller = self._context.caller
        if 200 <= answer.status < 300:
            is_page = answer.status == 200 and is_html(answer) and await caller.read_refusal(answer)
            if is_page and not believe_pages:
                put = self._routes.put
                raise UnexpectedReply(put.method, put.template, 200, "HTML instead of a storage's answer")
            return PutReply(status=answer.status)
        try:
            body = await caller.read_refusal(answer)
        except Lost:
            body = b""
        return storage_error(answer.status, body, url, retry_after=retry_after(answer.headers) or 0.0)


def checked_content_type(content_type: str) -> str:
    """Return a content type; raise `InvalidInput` for a text that is none."""
    if not _CONTENT_TYPE.fullmatch(content_type):
        raise InvalidInput("content_type", content_type, "must be like text/csv")
    return content_type


class _Refused(Exception):
    """The storage responded and did not accept the bytes."""

    def __init__(self, reply: PutReply) -> None:
        super().__init__(reply)
        self.reply = reply


@final
class _Refusals:
    """Distinguishes a refusal that a new URL may change, such as an expired URL, from a final one."""

    __slots__ = ("_put", "_times")

    def __init__(self, put: Endpoint) -> None:
        self._put = put
        self._times: Counter[tuple[int, str]] = Counter()

    def error(self, reply: PutReply) -> UnexpectedReply:
        """Return the error of a refusal that a new URL may change. Raises `BadRequest` for a final one."""
        method, endpoint = self._put.method, self._put.template
        text = f"{_REFUSED}: {reply.reason}" if reply.reason else _REFUSED
        if _may_pass(reply):
            return UnexpectedReply(method, endpoint, reply.status, text)
        self._times[reply.status, reply.code] += 1
        times = self._times[reply.status, reply.code]
        if reply.status in _FINAL or reply.code in _FINAL_CODES:
            raise BadRequest(method, endpoint, reply.status, text)
        if times >= _SAME or self._times.total() >= _REFUSALS:
            raise BadRequest(method, endpoint, reply.status, f"{text} (also with a new URL)")
        return UnexpectedReply(method, endpoint, reply.status, text)


def _may_pass(reply: PutReply) -> bool:
    """Return whether this means that the storage is busy or unavailable, or that the transfer broke.

    A redirect without a code of the storage comes from a proxy in front of it.
    """
    return (
        reply.code in _PASSING_CODES
        or reply.status in _PASSING
        or (reply.status < 400 and not reply.code)
        or (reply.status >= 500 and reply.status != 501)
    )


def _cannot_repeat(content: Content, error: NoAnswer | UnexpectedReply) -> AsyncmigError:
    """Return the error of a stream that can be read only once and broke off."""
    advice = (
        f"the stream of {content.name} can be read only once, so it was not sent again; no run has seen it. "
        "Upload it again, or give a callable that opens it anew"
    )
    if isinstance(error, NoAnswer):
        return NoAnswer(error.method, error.endpoint, f"{error.reason}; {advice}")
    return UnexpectedReply(error.method, error.endpoint, error.status, f"{error.text}; {advice}")
