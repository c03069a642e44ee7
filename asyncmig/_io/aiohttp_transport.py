"""The transport that sends requests with aiohttp.

It sends each request once, so that the limiter counts every request: aiohttp itself would send a GET or PUT again if
a reused connection breaks. It follows no redirect, because a redirect could send the key to another host. A POST,
PATCH or DELETE uses a new connection, unless a repeat is safe: on an idle one that the server has closed, the outcome
of the request is unknown.
"""

import asyncio
import math
import ssl
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import AbstractAsyncContextManager
from functools import lru_cache
from typing import Self, final

import aiohttp
import anyio
from aiohttp import ClientHandlerType, ClientMiddlewareType, ClientRequest, ClientResponse
from yarl import URL

from asyncmig._io.addresses import Proxies, Proxy
from asyncmig._io.aiohttp_connection import LARGEST_HEADER, Connector
from asyncmig._io.content_decoder import ACCEPTED, Undecodable, decoder_for
from asyncmig._io.event_loop import finish_all
from asyncmig._io.transport import Body, Lost, Response, Timeouts

__all__ = ["AiohttpResponse", "AiohttpTransport"]

_HEADERS = {"Accept-Encoding": ACCEPTED}
_CHUNK = 256 * 1024
_PIECE = 64 * 1024
"""Bytes of a request body that the peer must take within the stall time-out: the size of asyncio's buffer."""


@final
class AiohttpResponse:
    """A response of aiohttp; see `Response`."""

    __slots__ = ("_response", "_timeouts", "headers", "status")

    def __init__(self, response: ClientResponse, timeouts: Timeouts) -> None:
        self._response, self._timeouts = response, timeouts
        self.status: int = response.status
        self.headers: Mapping[str, str] = response.headers

    def arrived(self) -> bytes | None:
        """Return the body if it is small, uncompressed and has arrived completely; otherwise None."""
        content = self._response.content
        if not content.is_eof() or content.exception() is not None or content.total_bytes > _CHUNK:
            return None
        return None if "Content-Encoding" in self.headers else content.read_nowait()

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
        """Return the next bytes, still compressed; b"" at the end. Raises `Lost`, also if they arrive too slowly."""
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
    """Detects a transfer that is slower than `Timeouts.min_rate`.

    Counts the bytes in successive windows of the time in which this program waits for the peer.
    """

    __slots__ = ("_bytes", "_timeouts", "_waited")

    def __init__(self, timeouts: Timeouts) -> None:
        self._timeouts, self._bytes, self._waited = timeouts, 0, 0.0

    def __str__(self) -> str:
        return f"less than {self._timeouts.min_rate:g} bytes/s for {self._timeouts.rate_window:g} s"

    def patience(self) -> float:
        """Return the seconds that the peer may still need for the next bytes; infinity without a minimum rate."""
        if self._timeouts.min_rate is None:
            return math.inf
        window = self._timeouts.rate_window
        is_enough = self._bytes >= self._timeouts.min_rate * window
        return window - self._waited + (window if is_enough else 0.0)

    def moved(self, size: int, seconds: float) -> None:
        """Count transferred bytes, and the seconds that the peer needed for them."""
        self._bytes += size
        self._waited += seconds
        if self._waited >= self._timeouts.rate_window:
            self._bytes, self._waited = 0, 0.0


@final
class _Exchange:
    """Sends a request on entry, and releases its connection on exit."""

    __slots__ = ("_response", "_sending", "_timeouts")

    def __init__(self, sending: Awaitable[ClientResponse], timeouts: Timeouts) -> None:
        self._sending, self._timeouts = sending, timeouts

    async def __aenter__(self) -> Response:
        self._response = await self._sending
        return AiohttpResponse(self._response, self._timeouts)

    async def __aexit__(self, *exc_info: object) -> None:
        self._response.release()  # closes the connection if the body was not read to its end
        await self._response.wait_for_close()


@final
class AiohttpTransport:
    """Sends requests with aiohttp.

    `http`: an aiohttp session that sends all requests with its own settings; it is not closed. `trust_env`: take the
    proxies from the environment. Unlike in aiohttp, this does not take credentials from a netrc file.
    """

    __slots__ = ("_given", "_middlewares", "_pooled", "_proxies", "_single", "_timeouts")

    def __init__(self, http: aiohttp.ClientSession | None = None, *, trust_env: bool = True) -> None:
        self._given = http
        self._middlewares: tuple[ClientMiddlewareType, ...] = (_send_once,)
        self._proxies = Proxies() if trust_env and http is None else None
        self._pooled: aiohttp.ClientSession | None = None
        self._single: aiohttp.ClientSession | None = None
        self._timeouts: tuple[Timeouts | None, aiohttp.ClientTimeout] = (None, aiohttp.ClientTimeout())
        """The last time-outs, as aiohttp takes them."""

    def exchange(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        body: Body | None,
        timeouts: Timeouts,
        is_repeatable: bool = False,
    ) -> AbstractAsyncContextManager[Response]:
        """Send one request once; see `Transport.exchange`.

        `is_repeatable`: whether a second request changes nothing. Such a request may use an idle connection.
        """
        http = self._session(method, is_repeatable=is_repeatable)
        return _Exchange(self._send(http, method, url, headers, body, timeouts), timeouts)

    async def _send(
        self,
        http: aiohttp.ClientSession,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: Body | None,
        timeouts: Timeouts,
    ) -> ClientResponse:
        proxy = None if self._proxies is None else self._proxies.proxy_for(url)
        is_streamed = body is not None and not isinstance(body, bytes)
        # aiohttp's total time-out also limits the headers, unless the body is streamed first.
        is_watched = is_streamed or (timeouts.headers or math.inf) < (timeouts.total or math.inf)
        watch = _RequestTimer(timeouts) if is_watched else None
        response, lost = None, None
        try:
            if http is self._given:
                headers = {**_HEADERS, **headers}
            # For https, aiohttp sends the proxy's headers when it opens the tunnel.
            if proxy is not None and url.startswith("http:"):
                headers = {**headers, **proxy.headers}
            sending = http.request(
                method,
                URL(url, encoded=True),
                headers=headers,
                data=body
                if watch is None or body is None or isinstance(body, bytes)
                else _TimedBody(body, watch),
                allow_redirects=False,
                auto_decompress=False,
                middlewares=self._middlewares,
                proxy=None if proxy is None else proxy.url,
                proxy_headers=None if proxy is None else proxy.headers,
                timeout=self._client_timeout(timeouts),
            )
            if watch is None:
                response = await sending
            else:
                with watch.scope:
                    watch.headers()
                    response = await sending
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            lost = _lost(error)
        # Raised outside of `except`, so that it has no context: aiohttp's errors contain URLs and passwords.
        if response is None:
            reason = "" if watch is None else watch.reason
            raise lost or Lost(reason, sent=True, timed_out=True)
        return response

    def _client_timeout(self, timeouts: Timeouts) -> aiohttp.ClientTimeout:
        if timeouts is not self._timeouts[0]:  # nearly all requests have the same ones
            self._timeouts = timeouts, _client_timeout(timeouts)
        return self._timeouts[1]

    def proxy_for(self, url: str) -> Proxy | None:
        """Return the proxy for a request to `url`; None if it needs none. Raises `InvalidInput` for an unsupported
        proxy."""
        return self._proxies.proxy_for(url) if self._proxies is not None else None

    def _session(self, method: str, *, is_repeatable: bool) -> aiohttp.ClientSession:
        if self._given is not None:
            return self._given
        if method in ("POST", "PATCH", "DELETE") and not is_repeatable:
            self._single = self._single or self._open(force_close=True)
            return self._single
        self._pooled = self._pooled or self._open(force_close=False)
        return self._pooled

    def _open(self, *, force_close: bool) -> aiohttp.ClientSession:
        # No limit of connections, because the gate limits the requests. No cookies, because they would carry state
        # from one customer's request to the next.
        http = aiohttp.ClientSession(
            connector=Connector(limit=0, force_close=force_close),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=_HEADERS,
            max_line_size=LARGEST_HEADER,
            max_field_size=LARGEST_HEADER,
        )
        if hasattr(http, "_retry_connection"):  # faster than the middleware, with the same effect
            http._retry_connection = False  # pyright: ignore[reportPrivateUsage]
            self._middlewares = ()
        return http

    async def aclose(self) -> None:
        """Close the connections that this transport opened."""
        await finish_all([http.close for http in (self._pooled, self._single) if http is not None])


@final
class _RequestTimer:
    """Cancels a request if the peer takes its body too slowly, or sends the headers of the response too late.

    aiohttp itself limits only the time without a byte.
    """

    __slots__ = ("_rate", "_timeouts", "reason", "scope")

    def __init__(self, timeouts: Timeouts) -> None:
        self._timeouts, self._rate = timeouts, _ProgressMeter(timeouts)
        self.scope = anyio.CancelScope()
        self.reason = ""
        """Why the scope was cancelled."""

    def headers(self) -> None:
        """Begin to wait for the headers of the response."""
        self._limit(self._timeouts.headers, f"no complete headers within {self._timeouts.headers} s")

    def source(self) -> None:
        """Begin to wait for the next chunk of the body, which this program produces: without a limit."""
        self._limit(None, "")

    def piece(self) -> None:
        """Begin to wait until the peer takes the next piece of the body."""
        patience, stall = self._rate.patience(), self._timeouts.stall
        if stall is not None and stall <= patience:
            self._limit(stall, f"nothing of the body was taken for {stall} s")
        else:
            self._limit(patience, f"the body was taken too slowly: {self._rate}")

    def taken(self, size: int, seconds: float) -> None:
        """Report that the peer took `size` bytes of the body in `seconds`."""
        self._rate.moved(size, seconds)

    def _limit(self, seconds: float | None, reason: str) -> None:
        self.reason = reason
        now = asyncio.get_running_loop().time()
        self.scope.deadline = math.inf if seconds is None else now + seconds


@final
class _TimedBody:
    """A request body in pieces of 64 KiB, so that a timer can detect whether the peer takes them."""

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
        return "the headers of the response are too large or malformed"
    if type(error) is TimeoutError:
        return "no complete response within the total time-out"
    what = type(error).__name__
    return f"{what}: {error.strerror}" if isinstance(error, OSError) and error.strerror else what
