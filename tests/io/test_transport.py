"""The seam to the network: nothing is sent twice, no redirect is followed, what is lost is known to be lost."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from asyncmig._io.transport import AiohttpTransport, Lost, Timeouts

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    async with TestServer(app) as server:
        yield str(server.make_url("/")).rstrip("/")


async def send(
    transport: AiohttpTransport, url: str, method: str = "GET", body: bytes | None = None, **timeouts: float
) -> tuple[int, bytes]:
    async with transport.exchange(
        method, url, headers={"x-api-key": "k"}, body=body, timeouts=Timeouts(**timeouts)
    ) as answer:
        return answer.status, b"".join([chunk async for chunk in answer.chunks()])


@pytest.mark.parametrize("method", ["GET", "PUT"])
async def test_a_reused_connection_that_breaks_is_not_used_for_a_second_try(method: str) -> None:
    """aiohttp would send these methods again by itself, past every limiter."""
    calls = 0

    async def handler(request: web.Request) -> web.StreamResponse:
        nonlocal calls
        calls += 1
        if calls == 2:
            assert request.transport is not None
            request.transport.abort()
        return web.Response(text="hello")

    transport = AiohttpTransport()
    async with serving(handler) as url:
        assert await send(transport, url, method) == (200, b"hello")
        with pytest.raises(Lost) as lost:
            await send(transport, url, method)
        await transport.aclose()
    assert calls == 2
    assert lost.value.sent


async def test_requests_that_change_something_have_connections_of_their_own() -> None:
    """One that the server closed while it lay idle would leave their outcome unknown."""
    peers: set[object] = set()

    async def handler(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        peers.add(request.transport.get_extra_info("peername"))
        return web.Response()

    transport = AiohttpTransport()
    async with serving(handler) as url:
        for _ in range(3):
            await send(transport, url, "POST", b"{}")
        await transport.aclose()
    assert len(peers) == 3


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_an_answer_like_any_other(status: int) -> None:
    paths: list[str] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        paths.append(request.path)
        return web.Response(status=status, headers={"Location": "/elsewhere"})

    transport = AiohttpTransport()
    async with serving(handler) as url:
        assert (await send(transport, url))[0] == status
        await transport.aclose()
    assert paths == ["/"]


async def test_where_nobody_listens_nothing_was_sent() -> None:
    server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    transport = AiohttpTransport()
    with pytest.raises(Lost) as lost:
        await send(transport, f"http://127.0.0.1:{port}")
    await transport.aclose()
    assert not lost.value.sent


async def test_a_body_that_breaks_off_is_lost() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "100"})
        await response.prepare(request)
        await response.write(b"half")
        assert request.transport is not None
        request.transport.abort()
        return response

    transport = AiohttpTransport()
    async with serving(handler) as url:
        with pytest.raises(Lost):
            await send(transport, url)
        await transport.aclose()


async def test_silence_is_a_time_out() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(30)
        return web.Response()

    transport = AiohttpTransport()
    async with serving(handler) as url:
        with pytest.raises(Lost) as lost:
            await send(transport, url, total=0.05)
        await transport.aclose()
    assert lost.value.timed_out
    assert lost.value.sent


async def test_a_body_that_nobody_takes_is_a_time_out() -> None:
    """aiohttp's own time-outs begin when the body has gone."""
    stalled = asyncio.Event()

    async def never(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await stalled.wait()
        writer.close()

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 262_144

    transport = AiohttpTransport()
    async with await asyncio.start_server(never, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        body, patience = endless(), Timeouts(stall=0.1).streaming()
        with pytest.raises(Lost, match="nothing of the body was taken") as lost:
            async with (
                asyncio.timeout(10),
                transport.exchange("PUT", url, headers={}, body=body, timeouts=patience),
            ):
                pass
        stalled.set()
    await transport.aclose()
    assert lost.value.timed_out
    assert lost.value.sent


async def test_a_given_session_is_used_and_not_closed() -> None:
    agents: list[str] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        agents.append(request.headers["User-Agent"])
        return web.Response()

    async with serving(handler) as url, aiohttp.ClientSession(headers={"User-Agent": "ours"}) as http:
        transport = AiohttpTransport(http)
        await send(transport, url)
        await send(transport, url, "POST", b"{}")
        await transport.aclose()
        assert not http.closed
    assert agents == ["ours", "ours"]


async def test_no_error_shows_a_url() -> None:
    transport = AiohttpTransport()
    for url in (
        "http://127.0.0.1:1/path?signature=abc",
        "http://[broken?signature=abc",
        "nonsense?signature=abc",
    ):
        with pytest.raises(Lost) as lost:
            await send(transport, url)
        assert "signature" not in str(lost.value) + lost.value.reason
    await transport.aclose()
