"""Answers of any size, compressed or not, use a bounded amount of memory and do not block the event loop."""

import asyncio
import gzip
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from asyncmig import BadRequest, NoAnswer, RetryPolicy, Session, UnexpectedReply, UnknownOutcome
from asyncmig._io.reply import decoded
from asyncmig.companies import wire

MIB = 1024 * 1024
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def session_with(handler: Handler) -> AsyncIterator[Session]:
    """Yield a session with a server that answers each request with `handler`."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    policy = RetryPolicy(attempts=1)
    async with (
        TestServer(app) as server,
        Session("key-of-a-test", str(server.make_url("/api")), retry=policy) as session,
    ):
        yield session


def answering(body: bytes, status: int = 200, **headers: str) -> Handler:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(
            status=status,
            body=body,
            content_type="application/json",
            headers={name.replace("_", "-"): value for name, value in headers.items()},
        )

    return handler


def sources(size: int) -> bytes:
    """Return a valid list of sources of about `size` bytes."""
    item = b'{"id":"s1","name":"%b","logo_url":null}' % (b"x" * 1000)
    return b'{"sources":[' + b",".join([item] * (size // len(item))) + b"]}"


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
async def test_a_decompression_bomb_is_refused_at_the_size_limit(coding: str) -> None:
    text = b'{"run_id":"r","status":"completed","x":[' + b"[]," * (20 * MIB) + b"[]]}"
    bomb = gzip.compress(text, 9) if coding == "gzip" else zlib.compress(text, 9)
    assert (len(text), len(bomb)) > (60 * MIB, 0)
    assert len(bomb) < 100_000
    del text
    async with session_with(answering(bomb, Content_Encoding=coding)) as session:
        tracemalloc.start()
        try:
            with pytest.raises(UnknownOutcome, match=f"larger than {4 * MIB} bytes"):
                await session.companies.create(name="A", source="s", external_id="a")
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert peak < 16 * MIB


async def test_a_list_has_a_higher_size_limit_than_other_replies() -> None:
    async with session_with(answering(sources(15 * MIB))) as session:
        assert len(await session.companies.sources()) > 10_000
    async with session_with(answering(sources(17 * MIB))) as session:
        with pytest.raises(NoAnswer, match=f"larger than {16 * MIB} bytes"):
            await session.companies.sources()


@pytest.mark.parametrize("compressed", [False, True])
async def test_only_the_beginning_of_an_endless_refusal_is_read(compressed: bool) -> None:
    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(status=400)
        if compressed:
            response.headers["Content-Encoding"] = "gzip"
        await response.prepare(request)
        compressor = zlib.compressobj(wbits=31)
        while True:
            chunk = b"no such source. " * 10_000
            await response.write(compressor.compress(chunk) if compressed else chunk)

    async with session_with(endless) as session:
        with pytest.raises(BadRequest, match="no such source") as refused:
            await session.companies.sources()
    assert len(str(refused.value)) < 500


async def test_a_decompression_bomb_does_not_block_the_event_loop() -> None:
    bomb, ticks = gzip.compress(bytes(32 * MIB), 9), 0
    async with session_with(answering(bomb, Content_Encoding="gzip")) as session:
        asked = asyncio.ensure_future(session.companies.sources())
        while not asked.done():
            ticks += 1
            await asyncio.sleep(0)
        with pytest.raises(NoAnswer):
            await asked
    assert ticks > 60  # one for each 256 KiB


async def test_the_decoding_of_a_large_body_does_not_block_the_event_loop() -> None:
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0)

    ticker = asyncio.create_task(tick())
    strange = b'{"sources":[' + b",".join([b'{"id":"s","name":[7]}'] * 1000) + b"]}"
    for body in (sources(4 * MIB), strange):
        ticks = 0
        assert (await decoded(body, wire.Sources)).sources
        assert ticks > 0
    ticker.cancel()


@pytest.mark.parametrize(
    "coding", ["br", "zstd", "compress", "gzip, gzip", "gzip, br", "something else", "gzip;q=1"]
)
async def test_an_encoding_that_was_not_requested_is_refused(coding: str) -> None:
    async with session_with(answering(gzip.compress(b'{"sources":[]}'), Content_Encoding=coding)) as session:
        with pytest.raises(NoAnswer, match="which the request did not accept"):
            await session.companies.sources()


@pytest.mark.parametrize("coding", ["identity, gzip", "GZIP, identity", " , gzip"])
async def test_identity_and_empty_encodings_are_ignored(coding: str) -> None:
    async with session_with(answering(gzip.compress(sources(5000)), Content_Encoding=coding)) as session:
        assert len(await session.companies.sources()) == 4


@pytest.mark.parametrize("lines", [["gzip", "gzip"], ["identity", "gzip"]])
async def test_encodings_in_several_header_lines_are_combined(lines: list[str]) -> None:
    body = sources(5000)
    for line in lines:
        body = gzip.compress(body) if line == "gzip" else body

    async def handler(request: web.Request) -> web.Response:
        response = web.Response(body=body)
        for line in lines:
            response.headers.add("Content-Encoding", line)
        return response

    async with session_with(handler) as session:
        if lines.count("gzip") == 1:
            assert len(await session.companies.sources()) == 4
        else:
            with pytest.raises(NoAnswer, match="which the request did not accept"):
                await session.companies.sources()


@asynccontextmanager
async def raw(head: bytes) -> AsyncIterator[tuple[str, list[int]]]:
    """Run a server that answers with `head` and an empty list of sources. Yield its URL and its requests."""
    asked: list[int] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        asked.append(1)
        try:
            writer.write(head + b"Content-Length: 14\r\nConnection: close\r\n\r\n" + b'{"sources":[]}')
            await writer.drain()
            writer.close()
            await writer.wait_closed()
        except ConnectionError:
            pass

    async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/api", asked


OK = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    "head",
    [
        OK + b"X: " + b"a" * 100_000 + b"\r\n",
        OK + b"X: " + b"a" * 10_000_000 + b"\r\n",
        OK + b"".join(b"X-%d: a\r\n" % n for n in range(10_000)),
        OK + b"X: a\r\n" * 100_000,
        OK + b"a" * 100_000 + b": x\r\n",
        b"HTTP/1.1 200 " + b"a" * 100_000 + b"\r\n",
        b"HTTP/1.1 " + b"9" * 1000 + b" OK\r\n",
        b"HTTP/1.1 -1 OK\r\n",
        b"HTTP/9.9 200 OK\r\n",
        b"\0" * 1000,
        b"not http at all\r\n",
        OK + b"X: a\0b\r\n",
        OK + b": nameless\r\n",
        OK + b"Content-Length: -5\r\n",
        OK + b"Content-Length: 5, 6\r\n",
        OK + b"Content-Length: " + b"9" * 5000 + b"\r\n",
        OK + b"Transfer-Encoding: chunked\r\n",
        OK + b"Transfer-Encoding: gzip\r\n",
    ],
    ids=lambda head: f"{head[9:30]!r} {len(head)}",
)
async def test_a_reply_with_too_large_or_invalid_headers_is_retried_and_reported(head: bytes) -> None:
    async with raw(head) as (url, asked):
        policy = RetryPolicy(attempts=3, floor=0.001, ceiling=0.002)
        async with Session("key-of-a-test", url, retry=policy) as session:
            with pytest.raises((NoAnswer, UnexpectedReply)):
                await session.companies.sources()
    assert len(asked) == 3


@pytest.mark.parametrize(
    "head", [OK + b"X: " + b"a" * 60_000 + b"\r\n", OK + b"".join(b"X-%d: a\r\n" % n for n in range(120))]
)
async def test_large_headers_are_read(head: bytes) -> None:
    async with raw(head) as (url, _), Session("key-of-a-test", url) as session:
        assert await session.companies.sources() == ()


async def test_a_raw_reply_that_is_not_strict_json_is_decoded() -> None:
    async with session_with(
        answering(b'{"notes": [1, NaN], "deep": ' + b"[" * 3000 + b"]" * 3000 + b"}")
    ) as session:
        reply = await session.request("GET", "/notes")
    assert reply.json(dict[str, object])["notes"] == [1, None]


@pytest.mark.parametrize(
    "url",
    [
        "https://s3.example/put/a?X-Amz-Signature=HIDDEN",
        "https:\\/\\/s3.example\\/put\\/a?X-Amz-Signature=HIDDEN",
        "https:\\u002F\\u002Fs3.example/put/a?X-Amz-Signature=HIDDEN",
        "https%3A%2F%2Fs3.example%2FHIDDEN",
        "HTTPS://user:HIDDEN@s3.example/" + "a" * 9000,
    ],
    ids=lambda url: url[:20],
)
@pytest.mark.parametrize(
    "body", ['{"upload_url": "URL", "upload_ref": "r"', "<a href='URL'>", "URL", '[{"u": "URL"}]']
)
async def test_an_error_about_a_reply_shows_no_url_of_its_body(body: str, url: str) -> None:
    async with session_with(answering(body.replace("URL", url).encode())) as session:
        with pytest.raises(UnexpectedReply) as unexpected:
            await session.companies.open("c1").upload(b"a,b\n1,2\n", name="a.csv")
    assert "HIDDEN" not in f"{unexpected.value!r} {unexpected.value}"
    assert "***" in str(unexpected.value)
