"""Serve a world on loopback: the API on one port, its storage on another; on a clock that may run faster."""

import asyncio
import logging
import selectors
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar, final

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from asyncmig.simulator.server.faults import Fault, Faults
from asyncmig.simulator.server.messages import Reply, Request, Stream

__all__ = ["STREAM_INTERVAL", "Served", "Serving", "fast_loop", "serve"]

STREAM_INTERVAL = 1.0
"""Seconds between two looks at a stream."""
_LARGEST = 2 * 1024**3
_FOR_EVER = 86_400.0
_Handle = Callable[[Request, float], Reply]


def _is_unexpected(record: logging.LogRecord) -> bool:
    """Return False for a log record about a malformed request, which aiohttp answers with 400 itself."""
    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


_log = logging.getLogger("aiohttp.server.asyncmig")
_log.addFilter(_is_unexpected)


class Served(Protocol):
    """The world of an API generation, as the server needs it. The server sets both addresses."""

    base_url: str
    """The prefix of all URLs of the API."""
    storage_url: str
    """The origin of the storage."""

    def handle(self, request: Request, now: float) -> Reply:
        """Respond to a request to the API's host."""
        ...

    def storage(self, request: Request, now: float) -> Reply:
        """Respond to a request to the storage's host."""
        ...

    def endpoint_of(self, request: Request) -> str:
        """Return method and route template of a request."""
        ...


W = TypeVar("W", bound=Served)


@dataclass(frozen=True, slots=True)
class Serving(Generic[W]):
    """The address of a served world."""

    base_url: str
    """The whole prefix, for `VERN_BASE_URL`."""
    world: W


@asynccontextmanager
async def serve(
    world: W,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    storage_port: int = 0,
    faults: Faults | None = None,
    tls: ssl.SSLContext | None = None,
) -> AsyncGenerator[Serving[W]]:
    """Serve `world` while the block runs. Port 0 selects any free port. Time is the running event loop's.

    `tls`: serve https with this context, under the name `localhost`, which its certificate must contain.
    """
    faults = faults or Faults()
    async with AsyncExitStack() as running:
        storage_port = await _start(_handler(world, world.storage, faults), host, storage_port, tls, running)
        port = await _start(_handler(world, world.handle, faults), host, port, tls, running)
        place = f"http://{host}" if tls is None else "https://localhost"
        world.storage_url = f"{place}:{storage_port}"
        world.base_url = f"{place}:{port}/api/v1"
        yield Serving(world.base_url, world)


async def _start(
    handler: Callable[[web.Request], Awaitable[web.StreamResponse]],
    host: str,
    port: int,
    tls: ssl.SSLContext | None,
    running: AsyncExitStack,
) -> int:
    """Serve until `running` is closed; return the port."""
    app = web.Application(client_max_size=_LARGEST)
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, access_log=None, logger=_log, shutdown_timeout=1.0)
    running.push_async_callback(runner.cleanup)
    await runner.setup()
    await web.TCPSite(runner, host, port, ssl_context=tls).start()
    return int(runner.addresses[0][1])


def _handler(
    world: Served, handle: _Handle, faults: Faults
) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def answer(request: web.Request) -> web.StreamResponse:
        asked = Request(
            method=request.method,
            path=request.rel_url.raw_path,
            query=dict(request.query),
            headers={name.lower(): value for name, value in request.headers.items()},
            body=await request.read(),
        )
        loop = asyncio.get_running_loop()
        fault = faults.pick(world.endpoint_of(asked), loop.time())
        if fault.lost_before or fault.refused:
            return _break_off(request, web.Response())
        reply = fault.reply(lambda: handle(asked, loop.time()))
        if fault.hangs:
            await asyncio.sleep(_FOR_EVER)
        if fault.lost_after:
            return _break_off(request, web.Response())
        headers = {**reply.headers, "Content-Type": reply.content_type}
        if reply.stream is not None:
            return await _send_stream(request, reply.stream, headers, fault)
        if fault.cut_to is None:
            return web.Response(status=reply.status, body=reply.body, headers=headers)
        headers["Content-Length"] = str(len(reply.body) + 1)
        response = web.StreamResponse(status=reply.status, headers=headers)
        await response.prepare(request)
        await response.write(reply.body[: fault.cut_to])
        return _break_off(request, response)

    return answer


async def _send_stream(
    request: web.Request, stream: Stream, headers: dict[str, str], fault: Fault
) -> web.StreamResponse:
    """Send the new bytes of a stream every second, until it ends, the client leaves, or the fault cuts it."""
    response = web.StreamResponse(headers=headers)
    left = fault.cut_to if fault.cut_to is not None else fault.truncated_to
    try:
        await response.prepare(request)
        while True:
            new = stream.read(asyncio.get_running_loop().time())
            await response.write(new if left is None else new[:left])
            left = None if left is None else left - len(new)
            if left is not None and left <= 0:
                return _break_off(request, response) if fault.cut_to is not None else response
            if stream.ended:
                return response
            await asyncio.sleep(STREAM_INTERVAL)
    except ConnectionError:
        return response  # the client left


def _break_off(request: web.Request, response: web.StreamResponse) -> web.StreamResponse:
    if request.transport is not None:
        request.transport.abort()
    return response


# The clock


@final
class _FastLoop(asyncio.SelectorEventLoop):
    """Its `time()` runs faster, and its selector sleeps shorter, so timers and time-outs of every library follow."""

    def __init__(self, speed: float) -> None:
        self.speed = speed
        selector = selectors.DefaultSelector()
        select = selector.select

        def select_shorter(timeout: float | None = None) -> object:
            return select(None if timeout is None else timeout / speed)

        selector.select = select_shorter  # type: ignore[method-assign, assignment]
        super().__init__(selector)

    def time(self) -> float:
        return super().time() * self.speed


def fast_loop(speed: float) -> asyncio.AbstractEventLoop:
    """Return a new event loop whose clock runs `speed` times faster than the wall's.

    Raises `ValueError` unless `speed` is more than 0.
    """
    if not speed > 0:
        raise ValueError(f"speed={speed!r}: must be more than 0")
    return _FastLoop(speed)
