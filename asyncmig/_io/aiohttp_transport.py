"""The transport that sends requests with aiohttp.

It disables what would bypass the limiter or send the key to another host. It follows no redirect, and it does not
send a request again when a reused connection breaks, as aiohttp does for GET and PUT. Each request that changes the
server uses a new connection, because the outcome would be unknown if the server had closed an idle one.
"""

import asyncio
import math
import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from functools import lru_cache, partial
from typing import Self, final

import aiohttp
import anyio
from aiohttp import ClientHandlerType, ClientMiddlewareType, ClientRequest, ClientResponse
from aiohttp.client_proto import ResponseHandler
from yarl import URL

from asyncmig._io.addresses import Proxies, Proxy
from asyncmig._io.content_decoder import ACCEPTED, Undecodable, decoder_for
from asyncmig._io.event_loop import finish_all
from asyncmig._io.transport import Body, Lost, Response, Timeouts

__all__ = ["AiohttpResponse", "AiohttpTransport"]

_CHUNK = 256 * 1024
_PIECE = 64 * 1024
"""Bytes of a body that the peer must take within the stall time-out: as many as asyncio buffers."""
_BODY = re.compile(rb"\r\n(?:content-length:[ \t]*0*[1-9]|transfer-encoding:)", re.IGNORECASE)
"""Headers of an answer that announce a body."""
_WITHOUT_BODY = re.compile(rb"HTTP/1\.[01] +(204|1[0-9]{2})(?![0-9])")
"""The first line of an answer without a body: a 204, or an interim answer before the final one."""
_WITH_BODY = re.compile(rb"HTTP/1\.[01] (?:20[0-35-9]|[345][0-9]{2}) ")
"""The first line of any other answer, as servers usually write it."""
_STATUS_LINE = len(b"HTTP/1.1 204 ")
_LARGEST_HEADER = 64 * 1024
"""The most bytes of one header of an answer."""


@final
class AiohttpResponse:
    __slots__ = ("_response", "_timeouts")

    def __init__(self, response: ClientResponse, timeouts: Timeouts) -> None:
        self._response, self._timeouts = response, timeouts

    @property
    def status(self) -> int:
        return self._response.status

    @property
    def headers(self) -> Mapping[str, str]:
        return self._response.headers

    async def release(self) -> None:
        """Return the connection to the pool, or close it if the body was not read to its end."""
        self._response.release()
        await self._response.wait_for_close()

    def arrived(self) -> bytes | None:
        """Return a small uncompressed body that has arrived as a whole; None for any other."""
        content = self._response.content
        if not content.is_eof() or content.exception() is not None or content.total_bytes > _CHUNK:
            return None
        return None if "Content-Encoding" in self._response.headers else content.read_nowait()

    async def chunks(self) -> AsyncIterator[bytes]:
        rate = _ProgressMeter(self._timeouts)
        try:
            decoder = decoder_for(self._response.headers.getall("Content-Encoding", ()))
            while chunk := await self._read(rate):
                for number, piece in enumerate(decoder.feed(chunk) if decoder else (chunk,)):
                    if number:
                        await asyncio.sleep(0)  # a small chunk can inflate to many pieces
                    yield piece
            if decoder:
                decoder.close()
        except Undecodable as error:
            raise Lost(str(error), sent=True) from error

    async def _read(self, rate: "_ProgressMeter") -> bytes:
        """Return the next bytes as received, b"" at the end. Raises `Lost`, also if they arrive too slowly."""
        content = self._response.content
        if content.is_eof() and content.exception() is None:
            return content.read_nowait(_CHUNK)  # everything has arrived, so no time-out is needed
        chunk, lost, loop = None, None, asyncio.get_running_loop()
        started = loop.time()
        with anyio.move_on_after(rate.patience()):
            try:
                chunk = await content.read(_CHUNK)
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                lost = _lost(error)
        if chunk is None:
            raise lost or Lost(f"the body came too slowly: {rate}", sent=True, timed_out=True)
        rate.moved(len(chunk), loop.time() - started)
        return chunk


@final
class _ProgressMeter:
    """Detects a body that moves too slowly. Counts bytes in successive windows of time spent waiting for the peer."""

    __slots__ = ("_bytes", "_timeouts", "_waited")

    def __init__(self, timeouts: Timeouts) -> None:
        self._timeouts, self._bytes, self._waited = timeouts, 0, 0.0

    def __str__(self) -> str:
        return f"less than {self._timeouts.min_rate:g} bytes/s for {self._timeouts.rate_window:g} s"

    def patience(self) -> float:
        """Return the seconds for which the peer may still move nothing."""
        if self._timeouts.min_rate is None:
            return math.inf
        window = self._timeouts.rate_window
        is_enough = self._bytes >= self._timeouts.min_rate * window
        return window - self._waited + (window if is_enough else 0.0)

    def moved(self, size: int, seconds: float) -> None:
        """Count moved bytes and the seconds that the peer took."""
        self._bytes += size
        self._waited += seconds
        if self._waited >= self._timeouts.rate_window:
            self._bytes, self._waited = 0, 0.0


@final
class _Exchange:
    """Sends a request on entry, and releases its connection on exit."""

    __slots__ = ("_response", "_send")

    def __init__(self, send: Callable[[], Awaitable[AiohttpResponse]]) -> None:
        self._send = send

    async def __aenter__(self) -> Response:
        self._response = await self._send()
        return self._response

    async def __aexit__(self, *exc_info: object) -> None:
        await self._response.release()


@final
class AiohttpTransport:
    """Sends requests with aiohttp. A given `http` session is used unchanged for all requests, and is not closed.

    `trust_env`: take proxies from the environment (but no credentials from a netrc file, as aiohttp would).
    """

    __slots__ = ("_given", "_middlewares", "_pooled", "_proxies", "_single")

    def __init__(self, http: aiohttp.ClientSession | None = None, *, trust_env: bool = True) -> None:
        self._given = http
        self._middlewares: tuple[ClientMiddlewareType, ...] = (_send_once,)
        self._proxies = Proxies() if trust_env and http is None else None
        self._pooled: aiohttp.ClientSession | None = None
        self._single: aiohttp.ClientSession | None = None

    def exchange(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        body: Body | None,
        timeouts: Timeouts,
    ) -> AbstractAsyncContextManager[Response]:
        """Send one request once; see `Transport.exchange`."""
        return _Exchange(partial(self._send, method, url, headers, body, timeouts))

    async def _send(
        self, method: str, url: str, headers: Mapping[str, str], body: Body | None, timeouts: Timeouts
    ) -> AiohttpResponse:
        proxy = None if self._proxies is None else self._proxies.proxy_for(url)
        # The total of aiohttp begins with the request: it also limits the headers, unless a body is streamed first.
        is_watched = not isinstance(body, bytes | None) or (
            (timeouts.headers or math.inf) < (timeouts.total or math.inf)
        )
        watch = _RequestTimer(timeouts) if is_watched else None
        response, lost = None, None
        try:
            http = self._session(method)  # opened first, because that decides about the middlewares
            sending = http.request(
                method,
                URL(url, encoded=True),
                headers={"Accept-Encoding": ACCEPTED, **headers, **_for_proxy(url, proxy)},
                data=body if isinstance(body, bytes | None) or watch is None else _TimedBody(body, watch),
                allow_redirects=False,
                auto_decompress=False,
                middlewares=self._middlewares,
                proxy=None if proxy is None else proxy.url,
                proxy_headers=None if proxy is None else proxy.headers,
                timeout=_client_timeout(timeouts),
            )
            if watch is None:
                response = await sending
            else:
                with watch.scope:
                    watch.headers()
                    response = await sending
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            lost = _lost(error)
        # Raised outside of the `except`, so that it has no context: aiohttp's errors contain URLs and passwords.
        if response is None:
            reason = "" if watch is None else watch.reason
            raise lost or Lost(reason, sent=True, timed_out=True)
        return AiohttpResponse(response, timeouts)

    def proxy_for(self, url: str) -> Proxy | None:
        """Return the proxy that a request to `url` would use; raise `InvalidInput` for one that is not supported."""
        return self._proxies.proxy_for(url) if self._proxies is not None else None

    def _session(self, method: str) -> aiohttp.ClientSession:
        if self._given is not None:
            return self._given
        if method in ("POST", "PATCH", "DELETE"):
            self._single = self._single or self._open(force_close=True)
            return self._single
        self._pooled = self._pooled or self._open(force_close=False)
        return self._pooled

    def _open(self, *, force_close: bool) -> aiohttp.ClientSession:
        # Cookies would carry state from one customer's request to the next; the gate bounds the connections.
        http = aiohttp.ClientSession(
            connector=_Connector(limit=0, force_close=force_close),
            cookie_jar=aiohttp.DummyCookieJar(),
            max_line_size=_LARGEST_HEADER,
            max_field_size=_LARGEST_HEADER,
        )
        if hasattr(http, "_retry_connection"):  # has the effect of the middleware, and is faster
            http._retry_connection = False  # pyright: ignore[reportPrivateUsage]
            self._middlewares = ()
        return http

    async def aclose(self) -> None:
        """Close the connections that this transport opened."""
        await finish_all([http.close for http in (self._pooled, self._single) if http is not None])


@final
class _Connection(ResponseHandler):
    """A connection that accepts a 204 followed by a body, as some storages send it.

    aiohttp would parse that body as the next answer, and fail this one.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._is_at_head, self._head = False, b""
        self._silent_until: float | None = None
        """When the time-out between two bytes ends; None while no byte is expected."""

    def set_response_params(self, **options: object) -> None:
        """Expect an answer: aiohttp calls this before it sends a request."""
        self._is_at_head, self._head = True, b""
        super().set_response_params(**options)  # type: ignore[arg-type]  # passed on as they are

    def data_received(self, data: bytes) -> None:
        if self._is_at_head:
            if not self._head and _WITH_BODY.match(data):
                self._is_at_head = False
            else:
                data = data[: len(data) - self._bytes_after_204(data)]
        super().data_received(data)

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        if self._read_timeout_handle is not None:
            self._read_timeout_handle.cancel()
            self._read_timeout_handle = None

    # aiohttp replaces the timer of the time-out at each byte; here the timer looks whether a byte has come since.

    def _reschedule_timeout(self) -> None:
        if not self._read_timeout:
            self._drop_timeout()
            return
        at = self._silent_until = self._loop.time() + self._read_timeout
        timer = self._read_timeout_handle
        if timer is None or timer.when() > at:
            if timer is not None:
                timer.cancel()
            self._read_timeout_handle = self._loop.call_at(at, self._end_silence)

    def _drop_timeout(self) -> None:
        self._silent_until = None

    def _end_silence(self) -> None:
        self._read_timeout_handle, at = None, self._silent_until
        if at is None:
            return
        if at > self._loop.time():
            self._read_timeout_handle = self._loop.call_at(at, self._end_silence)
        else:
            self._on_read_timeout()

    def _bytes_after_204(self, data: bytes) -> int:
        """Return how many of the next bytes of an answer belong to the body of a 204."""
        at, self._head = max(0, len(self._head) - 3), self._head + data
        while found := _WITHOUT_BODY.match(self._head):
            end = self._head.find(b"\r\n\r\n", at) + 4
            if end < 4:
                break
            at, head, self._head = 0, self._head[:end], self._head[end:]
            if found[1] == b"204":
                if self._head or _BODY.search(head):
                    self.force_close()
                self._is_at_head = False
                return len(self._head)
        longest = _LARGEST_HEADER if found else _STATUS_LINE
        self._is_at_head = len(self._head) < longest
        return 0


@final
class _Connector(aiohttp.TCPConnector):
    """A connector with such connections; aiohttp has no public way to choose their class."""

    def __init__(self, *, limit: int, force_close: bool) -> None:
        super().__init__(limit=limit, force_close=force_close)  # pyright: ignore[reportUnknownMemberType]  # of aiohttp
        connection: type[ResponseHandler] = _Connection
        self._factory = partial(connection, loop=asyncio.get_running_loop())


@final
class _RequestTimer:
    """Cancels a request if the peer takes its body too slowly, or sends its headers too late.

    aiohttp itself only limits the time without a byte.
    """

    __slots__ = ("_rate", "_timeouts", "reason", "scope")

    def __init__(self, timeouts: Timeouts) -> None:
        self._timeouts, self._rate = timeouts, _ProgressMeter(timeouts)
        self.scope = anyio.CancelScope()
        self.reason = ""
        """Why the scope was cancelled."""

    def headers(self) -> None:
        """Begin to wait for the headers of the answer."""
        self._limit(self._timeouts.headers, f"no complete headers within {self._timeouts.headers} s")

    def source(self) -> None:
        """Begin to wait for this program, without a limit."""
        self._limit(None, "")

    def piece(self) -> None:
        """Begin to wait until the peer takes the next piece of the body."""
        patience, stall = self._rate.patience(), self._timeouts.stall
        if stall is not None and stall <= patience:
            self._limit(stall, f"nothing of the body was taken for {stall} s")
        else:
            self._limit(patience, f"the body was taken too slowly: {self._rate}")

    def taken(self, size: int, seconds: float) -> None:
        """Report that the peer took a piece of `size` bytes in so many seconds."""
        self._rate.moved(size, seconds)

    def _limit(self, seconds: float | None, reason: str) -> None:
        self.reason = reason
        now = asyncio.get_running_loop().time()
        self.scope.deadline = math.inf if seconds is None else now + seconds


@final
class _TimedBody:
    """A body in pieces small enough to detect whether the peer takes them."""

    __slots__ = ("_chunks", "_given_at", "_piece", "_rest", "_watch")

    def __init__(self, chunks: AsyncIterator[bytes], watch: _RequestTimer) -> None:
        self._chunks, self._watch = chunks, watch
        self._rest = memoryview(b"")
        self._piece, self._given_at = b"", 0.0

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        loop = asyncio.get_running_loop()
        self._watch.taken(len(self._piece), loop.time() - self._given_at if self._piece else 0.0)
        if not self._rest:
            self._watch.source()
            try:
                self._rest = memoryview(await anext(self._chunks))
            except BaseException:
                self._watch.headers()
                raise
        self._piece, self._rest = bytes(self._rest[:_PIECE]), self._rest[_PIECE:]
        self._given_at = loop.time()
        self._watch.piece()
        return self._piece


@lru_cache
def _client_timeout(timeouts: Timeouts) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=timeouts.total, connect=timeouts.connect, sock_read=timeouts.stall)


def _for_proxy(url: str, proxy: Proxy | None) -> Mapping[str, str]:
    """Return the headers for the proxy of an http request. For https, aiohttp sends them when it opens the tunnel."""
    return proxy.headers if proxy is not None and url.startswith("http:") else {}


async def _send_once(request: ClientRequest, handler: ClientHandlerType) -> ClientResponse:
    """Prevent aiohttp from sending a GET or PUT again when a reused connection breaks (RFC 9112, 9.3.1)."""
    try:
        return await handler(request)
    except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError):
        raise
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        raise Lost(_name(error), sent=True) from error


def _lost(error: Exception) -> Lost:
    sent = not isinstance(
        error,
        aiohttp.ClientConnectorError
        | aiohttp.ClientHttpProxyError
        | aiohttp.ConnectionTimeoutError
        | ValueError
        | ssl.SSLError,
    )
    return Lost(_name(error), sent=sent, timed_out=isinstance(error, TimeoutError))


def _name(error: Exception) -> str:
    """Describe an error without aiohttp's own message, which may contain a signed URL."""
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return f"the proxy refused the connection with status {error.status}"
    if isinstance(error, aiohttp.ClientResponseError):
        return "the headers of the answer are too large or malformed"
    if type(error) is TimeoutError:
        return "no complete answer within the total time-out"
    what = type(error).__name__
    return f"{what}: {error.strerror}" if isinstance(error, OSError) and error.strerror else what
