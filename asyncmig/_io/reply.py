"""Reads a response: its body without secrets, its decoded value, the error of a refusal, and its rate headers."""

import asyncio
import contextlib
import email.utils
import json
import math
import re
from collections.abc import AsyncGenerator, Iterable, Mapping
from datetime import UTC, datetime
from typing import TypeVar, final, overload

import msgspec

from asyncmig._core.decode import Unreadable, decode, decode_documented, repaired
from asyncmig._core.limits import RateHeaders
from asyncmig._core.retry import Doubt
from asyncmig._io.aiohttp_transport import AiohttpResponse
from asyncmig._io.attempts import RetryableFailure
from asyncmig._io.call import Call, Secret
from asyncmig._io.event_loop import loop_speed
from asyncmig._io.threads import in_thread
from asyncmig._io.transport import Lost, Response
from asyncmig.errors import ApiError, UnexpectedReply, api_error

__all__ = [
    "Reply",
    "ReplyReader",
    "decoded",
    "is_html",
    "rate_headers",
    "retry_after",
    "too_many_runs",
    "unreadable",
]

T = TypeVar("T")
_LONGEST_TEXT = 200
"""The most characters of an unexpected body in an error."""
_AT_ONCE, _AT_ONCE_IN_PARTS = 64 * 1024, 2048
"""The largest bodies, in bytes, that are decoded on the event loop: in the documented form, and in any other. The
latter takes 10 ms at worst."""
_LARGEST_REFUSAL = 64 * 1024
"""The number of bytes of a refusal's body that are read and kept."""
_SHORT_KEY = 8
"""A key with fewer characters is not replaced in 2xx bodies, where it could match data by chance. Real keys are
longer."""
_SHORTEST_SECRET = 4
_URL = re.compile(
    r"""[a-z][a-z0-9+.-]{0,20}(?::|%3a)(?:/|\\{1,4}/|\\{1,4}u002f|%2f){2}[^\s"'<>]*""", re.IGNORECASE
)
"""A URL, even if JSON or a form has escaped its slashes."""
_TEXT = re.compile(r'"(?:[^"\\]|\\.)*(?:"(\s*:)?|$)')
"""A text in JSON, which may have been cut; the group matches if it is the name of a field."""
_LONGEST_RETRY_AFTER = 60.0
"""The default bound of `retry_after`, in seconds."""
_TOO_MANY_RUNS = b"run_concurrency_limit"
_MOST = 1e9
"""The largest number of requests that a header can mean."""
_SECONDS = re.compile(r"[0-9]+(\.[0-9]+)?")
"""RFC 9110 allows only whole seconds, but some proxies send fractions."""


@final
class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """A 2xx answer to `session.request`."""

    method: str
    endpoint: str
    """The route template."""
    status: int
    headers: Mapping[str, str]
    """By name in lower case. The values of a repeated header are joined by commas."""
    content: bytes

    def __repr__(self) -> str:
        return f"<Reply {self.status} to {self.method} {self.endpoint}: {len(self.content)} bytes>"

    @overload
    def json(self) -> object: ...
    @overload
    def json(self, kind: type[T]) -> T: ...
    def json(self, kind: type[T] | type[object] = object) -> T | object:
        """Return the decoded body, as `kind` if given: a msgspec struct, a dataclass, `dict[str, int]`, ...

        NaN, infinities and values that are nested deeper than 100 levels become null. Raises `UnexpectedReply` for a
        body that is not JSON, or not of that kind.
        """
        with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return msgspec.json.decode(self.content, type=kind)
        try:
            return msgspec.json.decode(repaired(self.content), type=kind)
        except (msgspec.DecodeError, RecursionError, Unreadable) as error:
            raise unreadable(self.method, self.endpoint, self.status, self.content, error) from error


@final
class ReplyReader:
    """Reads the responses to the requests of one API key.

    The result contains neither the key nor a secret of the request, even if the server echoes it: `***` replaces it.
    """

    __slots__ = ("_key",)

    def __init__(self, key: Secret) -> None:
        self._key = key

    async def body(self, answer: Response, most: int) -> bytes:
        """Return a body. Raises `Lost` if it breaks off, or has more than `most` bytes after decompression."""
        body = answer.arrived() if isinstance(answer, AiohttpResponse) else None
        if body is None:
            body = await _beginning(answer, most)
        if len(body) > most:
            raise Lost(f"the body is larger than {most} bytes", sent=True)
        return self._without_key(answer, body)

    async def beginning(self, answer: Response) -> bytes:
        """Return the first 64 KiB of a body. Raises `Lost` if it breaks off before."""
        body = await _beginning(answer, _LARGEST_REFUSAL)
        return self._without_key(answer, body[:_LARGEST_REFUSAL])

    def _without_key(self, answer: Response, body: bytes) -> bytes:
        key = self._key.reveal()
        if 200 <= answer.status < 300 and len(key) < _SHORT_KEY:
            return body
        return body.replace(key.encode(), b"***")

    async def refusal(self, call: Call, answer: Response) -> ApiError:
        """Return the error for a response with a status outside 2xx, with the server's text and body."""
        try:
            body = _without(await self.beginning(answer), (*call.secrets, self._key.reveal()))
            text, is_documented = _error_text(body)
        except Lost as lost:
            body, text, is_documented = b"", f"(the body was cut off: {lost.reason})", False
        error = api_error(call.endpoint.method, call.endpoint.template, answer.status, text)
        error.is_documented, error.body = is_documented, body
        return error

    async def decoded(self, kind: type[T], call: Call, answer: Response, body: bytes) -> T:
        """Return a body as `kind`. Raises `RetryableFailure` if that is not possible: it may be cut short."""
        if len(body) <= _AT_ONCE and (value := decode_documented(body, kind)) is not None:
            return value
        try:
            return await decoded(body, kind)
        except Unreadable as error:
            endpoint = call.endpoint
            shown = _without(body[:_LARGEST_REFUSAL], (*call.secrets, self._key.reveal()))
            raise RetryableFailure(
                unreadable(endpoint.method, endpoint.template, answer.status, shown, error), Doubt.MAYBE
            ) from error

    async def reply(self, call: Call, answer: Response, body: bytes) -> Reply:
        """Return the response undecoded. Raises `RetryableFailure` for JSON that is cut short, and for HTML."""
        media_type = _media_type(answer)
        is_text = media_type.endswith("json") or media_type == "text/html"
        if body and is_text and _decoded_now(body, msgspec.Raw) is None:
            await self.decoded(object, call, answer, body)
        headers: dict[str, str] = {}
        key = self._key.reveal()
        for name, value in answer.headers.items():
            name, value = name.lower(), value.replace(key, "***")
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        endpoint = call.endpoint
        return Reply(
            method=endpoint.method,
            endpoint=endpoint.template,
            status=answer.status,
            headers=headers,
            content=body,
        )


async def _beginning(answer: Response, most: int) -> bytes:
    """Return a decompressed body, or its beginning with more than `most` bytes if it is larger."""
    body, chunks = bytearray(), answer.chunks()
    try:
        async for chunk in chunks:
            body += chunk
            if len(body) > most:
                break
    finally:
        if isinstance(chunks, AsyncGenerator):
            await chunks.aclose()
    return bytes(body)


async def decoded(body: bytes, kind: type[T]) -> T:
    """Return `body` as `kind`, decoded in a thread if it is large. Raises `Unreadable`."""
    if (documented := _decoded_now(body, kind)) is not None:
        return documented
    if len(body) <= _AT_ONCE_IN_PARTS:
        return decode(body, kind)
    return await in_thread(decode, body, kind)


def _decoded_now(body: bytes, kind: type[T]) -> T | None:
    """Return `body` as `kind` if it has at most 64 KiB and the documented form; otherwise None."""
    return decode_documented(body, kind) if len(body) <= _AT_ONCE else None


def unreadable(method: str, endpoint: str, status: int, body: bytes, why: Exception) -> UnexpectedReply:
    """Return the error for a body that cannot be decoded as the expected type.

    Of JSON, it shows the names of fields, and no text: that may be a secret, such as the token of an upload.
    """
    shown = _excerpt(body)
    if shown.lstrip().startswith(("{", "[")):
        shown = _TEXT.sub(lambda text: text[0] if text[1] else '"***"', shown)
    return UnexpectedReply(method, endpoint, status, f"{why}; it begins {shown!r}")


def is_html(answer: Response) -> bool:
    """Return whether the response is an HTML page. A proxy sends pages with any status."""
    return _media_type(answer) == "text/html"


def _media_type(answer: Response) -> str:
    return answer.headers.get("Content-Type", "").partition(";")[0].strip().lower()


def _excerpt(body: bytes) -> str:
    """Return at most 200 characters of an unexpected body, with `***` for each URL.

    A URL may be a secret: an upload URL, or a link that logs in.
    """
    return _URL.sub("***", body[: _LONGEST_TEXT * 40].decode("utf-8", "replace"))[:_LONGEST_TEXT]


def _without(body: bytes, secrets: Iterable[str]) -> bytes:
    """Return `body` with `***` for each of `secrets`, also where JSON escapes spell it.

    A secret of fewer than 4 characters is not replaced, because it would match in any text.
    """
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) >= _SHORTEST_SECRET:
            body = re.sub(b"".join(map(_spellings, secret)), b"***", body)
    return body


def _spellings(character: str) -> bytes:
    """Return a pattern for a character in UTF-8, and for its escapes in JSON (RFC 8259, section 7)."""
    units = character.encode("utf-16-be", "surrogatepass").hex()
    escaped = "".join(f"\\\\u(?i:{units[at : at + 4]})" for at in range(0, len(units), 4))
    short = re.escape(json.dumps(character, ensure_ascii=False)[1:-1])
    plain = re.escape(character)
    return f"(?:{plain}|{short}|\\\\{plain}|{escaped})".encode("utf-8", "surrogatepass")


def _error_text(body: bytes) -> tuple[str, bool]:
    """Return the text of a refusal, and whether the body has the API's form: JSON with an `error`."""
    try:
        return decode(body, _ErrorBody).error, True
    except Unreadable:
        return _excerpt(body), False


class _ErrorBody(msgspec.Struct):
    error: str


class _TooManyRuns(msgspec.Struct):
    code: str = ""
    runs: list[object] | None = None


def too_many_runs(body: bytes) -> tuple[bool, int | None]:
    """Return whether a 429 is about the runs in progress, and how many of them it lists, if it does."""
    try:
        refusal = decode(body, _TooManyRuns)
    except Unreadable:
        refusal = _TooManyRuns()
    is_about_runs = _TOO_MANY_RUNS in body or refusal.runs is not None
    return is_about_runs, None if refusal.runs is None else len(refusal.runs)


def rate_headers(headers: Mapping[str, str]) -> RateHeaders | None:
    """Return the values of `Retry-After` and `X-RateLimit-*`; None without any of them. Ignores invalid values.

    `X-RateLimit-Reset` is a Unix time of the server's clock. It is compared with the response's own `Date`, and with
    the wall clock if there is none.
    """
    if not ("Retry-After" in headers or "X-RateLimit-Limit" in headers or "X-RateLimit-Remaining" in headers):
        return None
    speed = loop_speed(asyncio.get_running_loop())
    wait = retry_after(headers, speed=speed, most=math.inf)
    limit, remaining, at = (
        float(text) if _SECONDS.fullmatch(text := headers.get(f"X-RateLimit-{name}", "").strip()) else None
        for name in ("Limit", "Remaining", "Reset")
    )
    if wait is limit is remaining is None:
        return None
    reset = None
    if at is not None:
        now = _http_date(headers.get("Date", "")) or datetime.now(UTC)
        reset = (at - now.timestamp()) * speed
    return RateHeaders(
        retry_after=wait,
        limit=None if limit is None else int(min(limit, _MOST)),
        remaining=None if remaining is None else int(min(remaining, _MOST)),
        reset=reset,
    )


def retry_after(
    headers: Mapping[str, str], *, speed: float = 1.0, most: float = _LONGEST_RETRY_AFTER
) -> float | None:
    """Return the seconds that `Retry-After` requests (RFC 9110, 10.2.3), from 0 to `most`; None without the header.

    A date is compared with the response's own `Date`, because the server's clock may differ from this machine's.
    Without `Date` it is compared with the wall clock; then a date in the past is ignored, because it only shows that
    the clocks differ. `speed`: see `loop_speed`.
    """
    value = headers.get("Retry-After", "").strip()
    if not value:
        return None
    if _SECONDS.fullmatch(value):
        seconds = float(value)
    else:
        at = _http_date(value)
        if at is None:
            return None
        date = _http_date(headers.get("Date", ""))
        seconds = (at - (date or datetime.now(UTC))).total_seconds() * speed
        if date is None and seconds <= 0:
            return None
    return min(max(seconds, 0.0), most)


def _http_date(text: str) -> datetime | None:
    """Return the time in a header, in UTC; None if it is not a valid date."""
    try:
        at = email.utils.parsedate_to_datetime(text)
        return (at if at.tzinfo else at.replace(tzinfo=UTC)).astimezone(UTC)
    except (
        ValueError,
        OverflowError,
        TypeError,
        IndexError,
    ):  # the parser raises all of these for malformed dates
        return None
