"""A peer below the minimum rate cannot keep a request open. The time that this program takes does not count."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from asyncmig import InvalidInput
from asyncmig.transport import AiohttpTransport, Lost, Timeouts

pytestmark = pytest.mark.looptime(noop_cycles=42)
Peer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n"


@asynccontextmanager
async def serving(peer: Peer) -> AsyncIterator[str]:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await peer(reader, writer)
        except ConnectionError:
            pass
        finally:
            writer.close()

    async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"


async def send_slowly(
    writer: asyncio.StreamWriter, data: bytes, *, size: int = 1, every: float = 20.0
) -> None:
    for start in range(0, len(data), size):
        writer.write(data[start : start + size])
        await writer.drain()
        await asyncio.sleep(every)


async def fetch(
    url: str,
    timeouts: Timeouts,
    *,
    method: str = "GET",
    body: AsyncIterator[bytes] | None = None,
    pause: float = 0.0,
) -> int:
    """Return the size of the answer's body, reading a chunk after each `pause`."""
    transport, size = AiohttpTransport(), 0
    try:
        async with transport.exchange(method, url, headers={}, body=body, timeouts=timeouts) as answer:
            async for chunk in answer.chunks():
                size += len(chunk)
                await asyncio.sleep(pause)
    finally:
        await transport.aclose()
    return size


async def pieces(count: int, size: int = 65_536, every: float = 0.0) -> AsyncIterator[bytes]:
    for _ in range(count):
        await asyncio.sleep(every)
        yield bytes(size)


def elapsed() -> float:
    return asyncio.get_running_loop().time()


async def slow_headers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    await send_slowly(writer, HEAD % 5 + b"hello")


async def slow_body(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(HEAD % 1000)
    await send_slowly(writer, bytes(1000))


async def late_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Read the body at once, and send the answer slowly."""
    await reader.readuntil(b"0\r\n\r\n")
    await send_slowly(writer, HEAD % 0)


async def never_reads(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(10_000)


@pytest.mark.parametrize("timeouts", [Timeouts(), Timeouts().streaming(), Timeouts(total=None, stall=None)])
@pytest.mark.parametrize("peer", [slow_headers, slow_body])
async def test_a_byte_in_20_seconds_does_not_keep_an_answer_open(peer: Peer, timeouts: Timeouts) -> None:
    async with serving(peer) as url:
        with pytest.raises(Lost) as lost:
            await fetch(url, timeouts)
        assert 60.0 <= elapsed() <= 62.0
    assert lost.value.timed_out
    assert lost.value.sent


async def test_a_byte_in_20_seconds_does_not_keep_the_answer_to_an_upload_open() -> None:
    async with serving(late_answer) as url:
        with pytest.raises(Lost, match="no complete headers within 60") as lost:
            await fetch(url, Timeouts().streaming(), method="PUT", body=pieces(3, 1000, every=100.0))
        assert 360.0 <= elapsed() <= 362.0  # the time of the source of the body does not count
    assert lost.value.timed_out


@pytest.mark.parametrize(
    ("timeouts", "reason", "ends"),
    [
        (Timeouts(), "nothing of the body was taken for 30", 30.0),
        (Timeouts(stall=None), "the body was taken too slowly: less than 100 bytes/s for 60 s", 60.0),
        (Timeouts(stall=None, min_rate=1e6, rate_window=5.0), "too slowly", 5.0),
    ],
)
async def test_an_upload_that_the_peer_does_not_read_ends(
    timeouts: Timeouts, reason: str, ends: float
) -> None:
    async with serving(never_reads) as url:
        with pytest.raises(Lost, match=reason) as lost:
            await fetch(url, timeouts.streaming(), method="PUT", body=pieces(10_000))
        assert ends <= elapsed() <= 2 * ends
    assert lost.value.timed_out


async def test_a_download_below_the_minimum_rate_ends_and_one_above_it_does_not() -> None:
    async def at_50_bytes_a_second(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(HEAD % 30_000)
        await send_slowly(writer, bytes(30_000), size=50, every=1.0)

    async with serving(at_50_bytes_a_second) as url:
        with pytest.raises(Lost, match="the body came too slowly: less than 100 bytes/s for 60 s"):
            await fetch(url, Timeouts().streaming())
        assert await fetch(url, Timeouts(min_rate=40.0).streaming()) == 30_000
        assert await fetch(url, Timeouts(min_rate=None).streaming()) == 30_000


async def test_the_time_of_a_slow_reader_does_not_count() -> None:
    async def at_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(HEAD % 1_000_000 + bytes(1_000_000))
        await writer.drain()

    async with serving(at_once) as url:
        assert await fetch(url, Timeouts(min_rate=1e6, rate_window=1.0).streaming(), pause=50.0) == 1_000_000
    assert elapsed() >= 200.0


async def test_a_download_without_a_byte_for_a_whole_rate_window_ends() -> None:
    """The stall time-out is off."""

    async def begins(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(HEAD % 1_000_000 + bytes(100_000))
        await asyncio.sleep(10_000)

    async with serving(begins) as url:
        with pytest.raises(Lost, match="too slowly"):
            await fetch(url, Timeouts(stall=None).streaming())
        assert 60.0 <= elapsed() <= 121.0


@pytest.mark.parametrize("field", ["connect", "headers", "total", "stall", "min_rate", "rate_window"])
@pytest.mark.parametrize("value", [0, -1.0, float("nan")])
def test_a_limit_that_is_not_positive_is_refused(field: str, value: float) -> None:
    with pytest.raises(InvalidInput) as refused:
        Timeouts(**{field: value})
    assert refused.value.field == field
