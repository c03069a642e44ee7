"""The one seam to the network: a protocol with two methods, and its aiohttp form.

The aiohttp form switches off what would go past the limiter or carry the key elsewhere: it follows no
redirect, and it does not send a request a second time when a reused connection breaks (aiohttp would,
for GET and PUT). Requests that change the server travel on connections of their own: one that the
server closed while it lay idle would leave their outcome unknown.
"""

import asyncio
import math
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Protocol, Self, final

import aiohttp
import anyio
from aiohttp import ClientHandlerType, ClientRequest, ClientResponse
from yarl import URL

from asyncmig._io.coding import ACCEPTED, Inflater, Undecodable

__all__ = ["AiohttpTransport", "Answer", "Body", "Lost", "Timeouts", "Transport"]

Body = bytes | AsyncIterator[bytes]
_CHUNK = 256 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """Time-outs in seconds; None is none.

    `connect`: until a connection stands. `total`: until the whole answer was read. `stall`: without a byte.
    """

    connect: float | None = 10.0
    total: float | None = 60.0
    stall: float | None = 30.0

    def streaming(self) -> "Timeouts":
        """Return the same without a total: a transfer takes as long as it takes, unless it stalls."""
        return Timeouts(connect=self.connect, total=None, stall=self.stall)


class Lost(Exception):
    """No answer, or not all of it. `sent` is False where the request cannot have arrived."""

    def __init__(self, reason: str, *, sent: bool, timed_out: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.sent = sent
        self.timed_out = timed_out


class Answer(Protocol):
    """An answer whose headers are there; reading its body may raise `Lost`."""

    @property
    def status(self) -> int: ...
    @property
    def headers(self) -> Mapping[str, str]: ...
    def chunks(self) -> AsyncIterator[bytes]: ...


class Transport(Protocol):
    """Sends one request, once."""

    def exchange(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        body: Body | None,
        timeouts: Timeouts,
    ) -> AbstractAsyncContextManager[Answer]:
        """Send and yield the answer at its headers. Raises `Lost`; leaves nothing open behind it."""
        ...

    async def aclose(self) -> None:
        """Close what is open; nothing is sent afterwards."""
        ...


@final
class _AiohttpAnswer:
    __slots__ = ("_response",)

    def __init__(self, response: ClientResponse) -> None:
        self._response = response

    @property
    def status(self) -> int:
        return self._response.status

    @property
    def headers(self) -> Mapping[str, str]:
        return self._response.headers

    async def chunks(self) -> AsyncIterator[bytes]:
        coding = self._response.headers.get("Content-Encoding", "").strip().lower()
        try:
            inflater = Inflater(coding) if coding not in ("", "identity") else None
            async for chunk in self._response.content.iter_chunked(_CHUNK):
                for piece in inflater.feed(chunk) if inflater else (chunk,):
                    yield piece
            if inflater:
                inflater.close()
        except Undecodable as error:
            raise Lost(str(error), sent=True) from error
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise _lost(error) from error


@final
class AiohttpTransport:
    """Requests through aiohttp. A given `http` session is used for everything, and is not closed.

    `trust_env`: take proxies from the environment, as aiohttp does.
    """

    __slots__ = ("_given", "_pooled", "_single", "_trust_env")

    def __init__(self, http: aiohttp.ClientSession | None = None, *, trust_env: bool = True) -> None:
        self._given = http
        self._trust_env = trust_env
        self._pooled: aiohttp.ClientSession | None = None
        self._single: aiohttp.ClientSession | None = None

    @asynccontextmanager
    async def exchange(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        body: Body | None,
        timeouts: Timeouts,
    ) -> AsyncGenerator[Answer]:
        response: ClientResponse | None = None
        try:
            with anyio.CancelScope() as scope:
                response = await self._session(method).request(
                    method,
                    URL(url, encoded=True),
                    headers={"Accept-Encoding": ACCEPTED, **headers},
                    data=body if isinstance(body, bytes | None) else _Watched(body, scope, timeouts.stall),
                    allow_redirects=False,
                    auto_decompress=False,
                    middlewares=(_send_once,),
                    timeout=aiohttp.ClientTimeout(
                        total=timeouts.total, connect=timeouts.connect, sock_read=timeouts.stall
                    ),
                )
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            raise _lost(error) from error
        if response is None:
            raise Lost(f"nothing of the body was taken for {timeouts.stall} s", sent=True, timed_out=True)
        async with response:
            yield _AiohttpAnswer(response)

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
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, force_close=force_close),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=self._trust_env,
        )

    async def aclose(self) -> None:
        for session in (self._pooled, self._single):
            if session is not None:
                await session.close()


@final
class _Watched:
    """A body that gives up once a chunk of it is not taken in time: aiohttp has a time-out only for reading."""

    __slots__ = ("_chunks", "_scope", "_stall")

    def __init__(self, chunks: AsyncIterator[bytes], scope: anyio.CancelScope, stall: float | None) -> None:
        self._chunks, self._scope, self._stall = chunks, scope, stall

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        self._scope.deadline = math.inf
        chunk = await anext(self._chunks)
        if self._stall is not None:
            self._scope.deadline = asyncio.get_running_loop().time() + self._stall
        return chunk


async def _send_once(request: ClientRequest, handler: ClientHandlerType) -> ClientResponse:
    """Keep aiohttp from sending a GET or PUT again when a reused connection breaks (RFC 9112, 9.3.1)."""
    try:
        return await handler(request)
    except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError):
        raise
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        raise Lost(_name(error), sent=True) from error


def _lost(error: Exception) -> Lost:
    sent = not isinstance(
        error,
        aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError | ValueError | ssl.SSLError,
    )
    return Lost(_name(error), sent=sent, timed_out=isinstance(error, TimeoutError))


def _name(error: Exception) -> str:
    """Say what happened without the URL, which some of aiohttp's messages carry and which may be signed."""
    what = type(error).__name__
    return f"{what}: {error.strerror}" if isinstance(error, OSError) and error.strerror else what
