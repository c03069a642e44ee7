"""Serve a world on loopback: the API on one port, its storage on another."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from aiohttp import web

from asyncmig.simulator.messages import Reply, Request
from asyncmig.simulator.world import World

__all__ = ["Serving", "serve"]

_LARGEST = 2 * 1024**3


@dataclass(frozen=True, slots=True)
class Serving:
    """Where a world is served."""

    base_url: str
    """The whole prefix, for `VERN_BASE_URL`."""
    world: World


@asynccontextmanager
async def serve(
    world: World, *, host: str = "127.0.0.1", port: int = 0, storage_port: int = 0
) -> AsyncGenerator[Serving]:
    """Serve `world` while the block runs; a port of 0 is any that is free. Time is the running loop's."""
    storage, storage_port = await _start(world.storage, host, storage_port)
    api, port = await _start(world.handle, host, port)
    world.storage_url = f"http://{host}:{storage_port}"
    try:
        yield Serving(f"http://{host}:{port}/api/v1", world)
    finally:
        await api.cleanup()
        await storage.cleanup()


async def _start(
    handle: Callable[[Request, float], Reply], host: str, port: int
) -> tuple[web.AppRunner, int]:
    app = web.Application(client_max_size=_LARGEST)
    app.router.add_route("*", "/{path:.*}", _handler(handle))
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    await web.TCPSite(runner, host, port).start()
    address = runner.addresses[0]
    return runner, int(address[1])


def _handler(
    handle: Callable[[Request, float], Reply],
) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def answer(request: web.Request) -> web.StreamResponse:
        asked = Request(
            method=request.method,
            path=request.path,
            query=dict(request.query),
            headers={name.lower(): value for name, value in request.headers.items()},
            body=await request.read(),
        )
        reply = handle(asked, asyncio.get_running_loop().time())
        return web.Response(
            status=reply.status, body=reply.body, headers={"Content-Type": reply.content_type}
        )

    return answer
