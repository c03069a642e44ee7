"""The HTTP transport sends nothing twice, follows no redirect, and reports a lost answer as lost."""

import asyncio
import gzip
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from asyncmig._io.aiohttp_transport import AiohttpTransport
from asyncmig._io.transport import Lost, Timeouts

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
async def test_a_request_on_a_reused_connection_that_breaks_is_not_sent_again(method: str) -> None:
    """aiohttp itself would send these methods again, without the limiter."""
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


@pytest.mark.parametrize(("is_repeatable", "connections"), [(False, 3), (True, 1)])
async def test_requests_that_are_not_repeatable_use_new_connections(
    is_repeatable: bool, connections: int
) -> None:
    """If the server closed an idle connection, the outcome of such a request would be unknown."""
    peers: set[object] = set()

    async def handler(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        peers.add(request.transport.get_extra_info("peername"))
        return web.Response()

    transport = AiohttpTransport()
    async with serving(handler) as url:
        for _ in range(3):
            async with transport.exchange(
                "POST", url, headers={}, body=b"{}", timeouts=Timeouts(), is_repeatable=is_repeatable
            ):
                pass
        await transport.aclose()
    assert len(peers) == connections


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_returned_and_not_followed(status: int) -> None:
    paths: list[str] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        paths.append(request.path)
        return web.Response(status=status, headers={"Location": "/elsewhere"})

    transport = AiohttpTransport()
    async with serving(handler) as url:
        assert (await send(transport, url))[0] == status
        await transport.aclose()
    assert paths == ["/"]


async def test_a_request_to_a_closed_port_is_reported_as_not_sent() -> None:
    server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    transport = AiohttpTransport()
    with pytest.raises(Lost) as lost:
        await send(transport, f"http://127.0.0.1:{port}")
    await transport.aclose()
    assert not lost.value.sent


async def test_a_truncated_body_is_reported_as_lost() -> None:
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


async def test_a_request_without_an_answer_times_out() -> None:
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


async def test_an_upload_that_the_server_does_not_read_times_out() -> None:
    """The time-outs of aiohttp begin only after the body was sent."""
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


# Compression


@asynccontextmanager
async def answering(body: bytes, **headers: str) -> AsyncIterator[tuple[AiohttpTransport, str]]:
    async def handler(request: web.Request) -> web.StreamResponse:
        assert request.headers["Accept-Encoding"] == "gzip"
        return web.Response(
            body=body, headers={name.replace("_", "-"): text for name, text in headers.items()}
        )

    transport = AiohttpTransport()
    try:
        async with serving(handler) as url:
            yield transport, url
    finally:
        await transport.aclose()


TEXT = b"name,mail\n" + b"ada,ada@example.org\n" * 40_000
RAW = zlib.compressobj(wbits=-15)
BODIES = {
    "gzip": ("gzip", gzip.compress(TEXT)),
    "upper case": ("GZIP", gzip.compress(TEXT)),
    "old name": ("x-gzip", gzip.compress(TEXT)),
    "members": ("gzip", gzip.compress(TEXT[:70_000]) + gzip.compress(TEXT[70_000:])),
    "padded": ("gzip", gzip.compress(TEXT) + bytes(512)),
    "deflate": ("deflate", zlib.compress(TEXT)),
    "deflate without header": ("deflate", RAW.compress(TEXT) + RAW.flush()),
    "identity": ("identity", TEXT),
}


@pytest.mark.parametrize(("coding", "body"), BODIES.values(), ids=BODIES)
async def test_a_compressed_body_is_decompressed(coding: str, body: bytes) -> None:
    async with answering(body, Content_Encoding=coding) as (transport, url):
        assert await send(transport, url) == (200, TEXT)


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        ("gzip", gzip.compress(TEXT)[:-1]),  # the whole text, but an incomplete trailer
        ("gzip", gzip.compress(TEXT)[:1000]),
        ("gzip", gzip.compress(TEXT) + b"something else"),
        ("gzip", TEXT),
        ("deflate", zlib.compress(TEXT)[:-1]),
        ("br", TEXT),
        ("gzip, gzip", gzip.compress(gzip.compress(TEXT))),
    ],
)
async def test_an_incomplete_or_invalid_compressed_body_is_reported_as_lost(coding: str, body: bytes) -> None:
    """`Content-Length` is correct. aiohttp would accept the first two bodies as complete."""
    async with answering(body, Content_Encoding=coding) as (transport, url):
        with pytest.raises(Lost):
            await send(transport, url)


async def test_an_empty_body_with_a_content_encoding_is_accepted() -> None:
    async with answering(b"", Content_Encoding="gzip") as (transport, url):
        assert await send(transport, url) == (200, b"")


async def test_a_decompression_bomb_is_read_in_little_memory() -> None:
    bomb, size = gzip.compress(bytes(1 << 24), 9), 0
    async with answering(bomb, Content_Encoding="gzip") as (transport, url):
        tracemalloc.start()
        try:
            async with transport.exchange("GET", url, headers={}, body=None, timeouts=Timeouts()) as answer:
                async for chunk in answer.chunks():
                    size += len(chunk)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert size == 1 << 24
    assert peak < 4 << 20


@pytest.mark.parametrize("head", [b"Content-Length: 5", b"Transfer-Encoding: chunked", b"Connection: close"])
@pytest.mark.parametrize("status", [b"HTTP/1.1 204 No Content", b"HTTP/1.1 204", b"HTTP/1.0 204 OK"])
@pytest.mark.parametrize("interim", [b"", b"HTTP/1.1 103 H\r\nA: b\r\n\r\n" * 2])
@pytest.mark.parametrize("size", [1, 1000], ids="{} bytes at a time".format)
@pytest.mark.parametrize("apart", [False, True])
async def test_a_204_with_a_body_is_accepted_and_ends_its_connection(
    interim: bytes, status: bytes, head: bytes, size: int, apart: bool
) -> None:
    connections: list[asyncio.Task[None] | None] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(asyncio.current_task())
        await reader.readuntil(b"\r\n\r\n")
        parts = [interim + status + b"\r\n" + head + b"\r\n\r\n", b"hello"]
        with suppress(ConnectionError):
            for part in parts if apart else [b"".join(parts)]:
                for at in range(0, len(part), size):
                    writer.write(part[at : at + size])
                    await writer.drain()
                    await asyncio.sleep(0)
                await asyncio.sleep(0.01 if apart else 0)
            await reader.read()
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        transport = AiohttpTransport()
        for _ in range(3):
            async with transport.exchange("PUT", url, headers={}, body=b"x", timeouts=Timeouts()) as got:
                assert got.status == 204
        await transport.aclose()
        await asyncio.gather(*filter(None, connections))
    assert len(connections) == 3
