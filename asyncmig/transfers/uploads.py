"""Uploads content to a signed URL, and to a new URL if that fails."""

import hashlib
import mimetypes
import re
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar, final

import anyio

from asyncmig._io.attempts import Attempts, RetryableFailure
from asyncmig._io.call import Call
from asyncmig._io.caller import Caller
from asyncmig._io.context import SessionContext
from asyncmig._io.reply import is_html, retry_after
from asyncmig._io.storage import PutReply, storage_error
from asyncmig._io.transport import Lost, Response
from asyncmig.errors import BadRequest, InvalidInput, NoAnswer, UnexpectedReply
from asyncmig.transfers.content import Attempt, ByteThrottle, Content, Progress

__all__ = [
    "PutTarget",
    "Sent",
    "UploadLimits",
    "checked_content_type",
    "content_type_of",
    "digest_of",
    "send_content",
]

T = TypeVar("T")
_CONTENT_TYPE = re.compile(r"[\w.+-]+/[\w.+-]+( *; *[!-~ ]+)?", re.ASCII)
_FINAL = frozenset(  # statuses of refusals that a new URL does not change
    {405, 411, 413, 414, 415, 501}
)
_FINAL_CODES = frozenset(
    {"EntityTooLarge", "EntityTooSmall", "MaxMessageLengthExceeded", "RequestBodyTooLarge"}
)
"""A storage's error codes for refusals that a new URL does not change."""
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
"""A storage's error codes for a temporary failure or a broken transfer. S3 sends some of them with status 400."""
_SAME, _REFUSALS = 3, 6
"""The number of refusals of one kind, and of all kinds, after which a new URL will not help."""
_TYPES = {  # types that the table of the operating system may lack
    ".csv": "text/csv",
    ".tsv": "text/tab-separated-values",
    ".xlsx": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
    ".xls": "application/vnd.ms-excel",
    ".json": "application/json",
    ".txt": "text/plain",
}


@final
class UploadLimits:
    """The limits of all uploads of a session together.

    `max_parallel`: uploads at a time. `bytes_per_second`: None for no limit.
    """

    __slots__ = ("slots", "throttle")

    def __init__(self, max_parallel: int = 16, bytes_per_second: float | None = None) -> None:
        self.slots: anyio.Semaphore = anyio.Semaphore(max_parallel, fast_acquire=True)
        self.throttle: ByteThrottle | None = None
        if bytes_per_second is not None:
            self.throttle = ByteThrottle(bytes_per_second)


@dataclass(frozen=True, slots=True, kw_only=True)
class PutTarget(Generic[T]):
    """The target of one upload: a signed URL, which is a secret. `ref` identifies the uploaded content afterwards."""

    url: str
    content_type: str
    ref: T

    def __repr__(self) -> str:
        return f"PutTarget(ref={self.ref!r})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent(Generic[T]):
    """The result of an upload: `ref` and the SHA-256 of the bytes that the storage has accepted."""

    ref: T
    sha256: str


def content_type_of(name: str) -> str:
    """Return the content type for a file name, by its suffix; `application/octet-stream` if that is unknown."""
    known = _TYPES.get(Path(name).suffix.lower())
    return known or mimetypes.guess_type(name)[0] or "application/octet-stream"


def digest_of(source: Path | bytes) -> str:
    """Return the SHA-256 of a file or of bytes, in hexadecimal. Blocks: call it in a thread."""
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    with source.open("rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


async def send_content(
    context: SessionContext,
    content: Content,
    *,
    request_target: Callable[[Attempts], Awaitable[PutTarget[T]]],
    put: Call,
    has_arrived: Callable[[T], Awaitable[bool]] | None = None,
    progress: Progress | None = None,
) -> Sent[T]:
    """Send `content` to a signed URL, and to a new URL if that fails.

    Each attempt requests a URL and sends the bytes to it. Each of the two requests is thus sent at most
    `RetryPolicy.attempts` times. At most `max_parallel_uploads` uploads of the session run at a time.

    - `request_target`: makes one attempt to get a signed URL, as `Caller.attempt` does.
    - `put`: the endpoint and the ids of the PUT, for events and errors.
    - `has_arrived`: returns whether the storage has the bytes. It is called after a PUT whose response was lost, or
      whose error may have occurred after the bytes were stored. Without it, the bytes are sent again.

    Raises `NoAnswer` or `UnexpectedReply` when the attempts are used up; `BadRequest` for a final refusal;
    `InvalidInput` for content that changed while it was read, and for a URL without encryption.
    """
    attempts = context.caller.repeated(put.endpoint, put.ids)
    limits, storage = context.kept(UploadLimits), _Storage(context.caller, put, content)
    while True:
        async with attempts, limits.slots:  # a slot is not held during the pause before the next attempt
            target = await request_target(attempts)
            async with content.attempt(limits.throttle, progress) as sending:
                await storage.put(target, sending, attempts, has_arrived)
            return Sent(ref=target.ref, sha256=sending.digest.hexdigest())


@final
@dataclass(slots=True)
class _Storage:
    """The storage of one upload: sends the bytes, and decides whether a new URL may help after a failure."""

    caller: Caller
    call: Call
    content: Content
    refusals: Counter[tuple[int, str]] = field(default_factory=Counter[tuple[int, str]])
    """The number of refusals by status and error code."""
    failures: int = 0
    """The number of failed PUTs."""
    pages: int = 0
    """The number of PUTs that were answered with an HTML page."""

    async def put(
        self,
        target: PutTarget[T],
        sending: Attempt,
        attempts: Attempts,
        has_arrived: Callable[[T], Awaitable[bool]] | None,
    ) -> None:
        """Send the bytes once. Raises `RetryableFailure` if a new URL may help."""
        # Some storages always respond with a page. The last attempt accepts it if all responses were pages.
        accepts_pages = self.content.once or (attempts.is_last and self.pages == self.failures)
        headers = {"Content-Type": target.content_type, "Content-Length": str(self.content.size)}
        try:
            async with self.caller.exchange_elsewhere(
                self.call, target.url, body=sending, headers=headers, attempt=attempts.attempt
            ) as answer:
                reply = await self._read(answer, target.url, accepts_pages=accepts_pages)
        except (NoAnswer, UnexpectedReply) as error:
            if sending.failure is not None:
                raise sending.failure from error
            if has_arrived is not None and await has_arrived(target.ref):
                return
            raise self._failure(error) from error
        if sending.failure is not None:
            raise sending.failure
        if not 200 <= reply.status < 300:
            if has_arrived is not None and _may_pass(reply) and await has_arrived(target.ref):
                return  # a proxy or the storage failed after it had stored the bytes
            raise self._failure(self._refusal(reply), retry_after=reply.retry_after)

    async def _read(self, answer: Response, url: str, *, accepts_pages: bool) -> PutReply:
        """Return the storage's answer. Raises `UnexpectedReply` for 200 with an HTML page, which a proxy may have
        sent."""
        if 200 <= answer.status < 300:
            is_page = answer.status == 200 and is_html(answer) and await self.caller.read_refusal(answer)
            if is_page and not accepts_pages:
                self.pages += 1
                put = self.call.endpoint
                raise UnexpectedReply(put.method, put.template, 200, "HTML instead of a storage's answer")
            return PutReply(status=answer.status)
        try:
            body = await self.caller.read_refusal(answer)
        except Lost:
            body = b""
        return storage_error(answer.status, body, url, retry_after=retry_after(answer.headers) or 0.0)

    def _refusal(self, reply: PutReply) -> UnexpectedReply:
        """Return the error for a refusal. Raises `BadRequest` for one that a new URL will not change."""
        method, endpoint = self.call.endpoint.method, self.call.endpoint.template
        text = "the storage refused the bytes" + (f": {reply.reason}" if reply.reason else "")
        if not _may_pass(reply):
            self.refusals[reply.status, reply.code] += 1
            if reply.status in _FINAL or reply.code in _FINAL_CODES:
                raise BadRequest(method, endpoint, reply.status, text)
            if self.refusals[reply.status, reply.code] >= _SAME or self.refusals.total() >= _REFUSALS:
                raise BadRequest(method, endpoint, reply.status, f"{text} (also with a new URL)")
        return UnexpectedReply(method, endpoint, reply.status, text)

    def _failure(self, error: NoAnswer | UnexpectedReply, *, retry_after: float = 0.0) -> Exception:
        """Count a failed PUT, and return what to raise: a final error if the content cannot be read again."""
        self.failures += 1
        if not (self.content.once and self.content.was_read):
            return RetryableFailure(error, retry_after=retry_after)
        advice = (
            f"the stream of {self.content.name} can be read only once, so it was not sent again, and no run uses "
            "it. Upload it again, or give a callable that opens it"
        )
        if isinstance(error, NoAnswer):
            return NoAnswer(error.method, error.endpoint, f"{error.reason}; {advice}")
        return UnexpectedReply(error.method, error.endpoint, error.status, f"{error.text}; {advice}")


def _may_pass(reply: PutReply) -> bool:
    """Return whether a repeat may succeed: the storage is busy or unavailable, or the transfer broke off.

    A redirect without an error code of the storage was sent by a proxy in front of it.
    """
    return (
        reply.code in _PASSING_CODES
        or reply.status in _PASSING
        or (reply.status < 400 and not reply.code)
        or (reply.status >= 500 and reply.status != 501)
    )


def checked_content_type(content_type: str) -> str:
    """Return `content_type`. Raises `InvalidInput` if it does not have the form of `text/csv`."""
    if not _CONTENT_TYPE.fullmatch(content_type):
        raise InvalidInput("content_type", content_type, "must be like text/csv")
    return str.__str__(content_type)  # not of a subclass, which cannot be encoded
