"""One window for all processes that use an API key, in Redis; needs the extra `redis`.

    async with asyncmig.Session(shared=RedisWindow("redis://localhost")) as session:
        ...

One script keeps the budget of each endpoint: the rules of the local limiter, on Redis's own clock, so that the clocks
of the processes do not matter. It costs one round trip a request, and nothing while nobody waits. Redis learns no API
key, only a digest of it. All keys of an account stand in one slot of a cluster.

Where Redis cannot be reached, each process goes on with its share of the last known window, warns
(`SharedWindowLost`), and shares again once it can. Where Redis has lost its data, each process tells it again what
was sent in the last window.
"""

import asyncio
from collections.abc import Sequence
from importlib import resources
from random import Random
from typing import Never, cast, final
from uuid import uuid4

from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.connection import AbstractConnection, parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.credentials import UsernamePasswordCredentialProvider
from redis.exceptions import RedisError

from asyncmig._core.arguments import checked_call
from asyncmig._core.server_address import Server, parse_server
from asyncmig._io.shared import BudgetStore, Reply, SlotReport
from asyncmig.errors import InvalidInput

__all__ = ["RedisWindow", "checked_redis", "redis_client"]

_Answer = tuple[int, str, int, int, int, int, str, bytes, int, int]
_SCRIPT = resources.files("asyncmig.distributed").joinpath("window.lua").read_text(encoding="utf-8")


def checked_redis(field: str, url: str) -> Server:
    """Return the server that a URL names. Raises `InvalidInput` for `field`, without the URL."""
    server = parse_server(field, url, "redis")
    server.checked(field, lambda _: _unconnected(redis_client(server)))
    return server


def _unconnected(client: Redis) -> AbstractConnection:
    """Return a connection that is not open: redis-py checks most options of a URL only here."""
    pool = client.connection_pool
    return pool.connection_class(**pool.connection_kwargs)


def redis_client(server: Server, **options: object) -> Redis:
    """Return a client, not connected yet, whose `repr` shows no password; options of the URL go before `options`."""
    settings: dict[str, object] = {**options, **parse_url(server.text)}
    user, password = settings.pop("username", None), settings.pop("password", None)
    if user or password:
        settings["credential_provider"] = UsernamePasswordCredentialProvider(
            cast("str | None", user), cast("str | None", password)
        )
    pool = ConnectionPool(**cast("dict[str, Never]", settings))
    kind = pool.connection_class
    pool.connection_class = type(f"Heeding{kind.__name__}", (_HeedsCancellation, kind), {})
    return Redis.from_pool(pool)


class _HeedsCancellation(AbstractConnection):
    """A connection on which no cancellation is lost.

    redis-py sends under `asyncio.wait_for`. On Python 3.11 that swallows a cancellation which comes in the turn of
    the loop in which the bytes were sent: it returns as if nothing had happened, and the caller goes on for ever.
    """

    async def send_packed_command(self, command: object, check_health: bool = True) -> None:
        task = asyncio.current_task()
        before = task.cancelling() if task else 0
        await super().send_packed_command(command, check_health)  # type: ignore[arg-type]
        if task and task.cancelling() > before:
            await self.disconnect(nowait=True)  # its reply would be taken for that of the next command
            raise asyncio.CancelledError


@final
class RedisWindow:
    """Keeps a session's budgets in Redis, 6.2 or later; give it to one `Session`, which closes its connections.

    `url`: as redis-py takes it (`redis://`, `rediss://`, `unix://`). `processes`: how many to reckon with when Redis
    is away before it has said how many there are. `timeout`: real seconds after which Redis counts as away. `prefix`
    begins all keys. Raises `InvalidInput` for a URL that is none, and what is not positive.
    """

    __slots__ = ("_client", "_prefix", "_redis", "_server", "_timeout", "processes")

    @checked_call
    def __init__(
        self, url: str, *, processes: int = 4, timeout: float = 1.0, prefix: str = "asyncmig"
    ) -> None:
        if processes < 1:
            raise InvalidInput("processes", processes, "must be at least 1")
        if not timeout > 0:
            raise InvalidInput("timeout", timeout, "must be more than 0 seconds")
        self.processes: int = processes
        self._prefix, self._client = prefix, uuid4().hex
        self._server, self._timeout = checked_redis("url", url), timeout
        self._redis: Redis | None = None

    def __repr__(self) -> str:
        return f"<RedisWindow {self._prefix} on {self._server}>"

    def budget(
        self, name: str, *, account: str, limit: int, window: float, timeout: float, speed: float
    ) -> BudgetStore:
        """Return the budget of one endpoint; see `asyncmig._io.shared.SharedWindow`."""
        tag = account if speed == 1.0 else f"{account}x{speed:g}"
        base = f"{self._prefix}:{{{tag}}}"
        keys = [f"{base}:{name}:{part}" for part in ("state", "slots", "unanswered", "accepted")]
        return _RedisBudget(
            self._opened(speed),
            self._server,
            keys=[*keys, f"{base}:clients"],
            settings=[self._client, limit, window, timeout, speed],
        )

    def _opened(self, speed: float) -> Redis:
        """Return the client, which counts its time-outs in the loop's seconds."""
        if self._redis is None:
            timeout = self._timeout * speed
            self._redis = redis_client(
                self._server,
                socket_timeout=timeout,
                socket_connect_timeout=timeout,
                retry=Retry(NoBackoff(), 0),
            )
        return self._redis

    async def aclose(self) -> None:
        """Close the connections."""
        if self._redis is not None:
            await self._redis.aclose()


@final
class _RedisBudget:
    """One budget: the script, and its keys."""

    __slots__ = ("_keys", "_rng", "_script", "_server", "_settings")

    def __init__(self, redis: Redis, server: Server, *, keys: list[str], settings: list[str | float]) -> None:
        self._script = redis.register_script(_SCRIPT)
        self._keys, self._settings, self._server = keys, settings, server
        self._rng = Random()

    async def exchange(self, happened: Sequence[SlotReport], want: str | None) -> Reply:
        """Run the script once. Raises `ConnectionError`, also for a Redis that answers with an error."""
        told = [part for one in happened for part in one]
        arguments = [*self._settings, self._rng.random(), want or "", "", *told]
        try:
            reply = cast(_Answer, await self._script(self._keys, arguments))
        except (RedisError, OSError) as error:
            self._server.scrub(error)
            raise ConnectionError(f"{type(error).__name__}: {error}") from error
        granted, wait, slots, burst, used, clients, held, epoch, turn, lost = reply
        return Reply(
            granted=bool(granted),
            wait=float(wait),
            slots=slots,
            burst=burst,
            used=used,
            clients=clients,
            held=float(held),
            epoch=epoch.decode(),
            turn=turn,
            lost=bool(lost),
        )
