"""A shared window in Redis: one rate limit for all processes that use an API key. Needs the extra `redis`.

    async with asyncmig.Session(shared=RedisWindow("redis://localhost")) as session:
        ...

A script in Redis keeps the budget of each endpoint. It applies the rules of the local limiter on Redis's clock, so
the clocks of the processes do not matter. It costs one round trip for each request, and none while no request waits.
Redis stores a digest of the API key, never the key. All budgets of an account are in one hash slot of a cluster.

While Redis is unavailable, each process continues with its share of the last known window, emits `SharedWindowLost`,
and returns to the shared window when Redis answers again. If Redis lost its data, each process reports again what it
sent in the last window.
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
from asyncmig.distributed.budget_store import BudgetReply, BudgetStore, SlotReport
from asyncmig.errors import InvalidInput

__all__ = ["RedisWindow", "checked_redis", "redis_client"]

_Answer = tuple[int, str, int, int, int, int, str, bytes, int, int]
_SCRIPT = resources.files("asyncmig.distributed").joinpath("window.lua").read_text(encoding="utf-8")


def checked_redis(field: str, url: str) -> Server:
    """Parse the URL of a Redis. Raises `InvalidInput` for `field`; the error does not show the URL."""
    server = parse_server(field, url, "redis")
    server.checked(field, lambda _: _unconnected(redis_client(server)))
    return server


def _unconnected(client: Redis) -> AbstractConnection:
    """Return a connection that is not open: redis-py checks most options of a URL only here."""
    pool = client.connection_pool
    settings = cast("dict[str, Never]", pool.connection_kwargs)  # pyright: ignore[reportUnknownMemberType]  # no types
    return pool.connection_class(**settings)


def redis_client(server: Server, **options: object) -> Redis:
    """Return an unconnected client whose `repr` shows no password. Options in the URL override `options`."""
    settings: dict[str, object] = {**options, **parse_url(server.text)}
    user, password = settings.pop("username", None), settings.pop("password", None)
    if user or password:
        settings["credential_provider"] = UsernamePasswordCredentialProvider(
            cast("str | None", user), cast("str | None", password)
        )
    pool = ConnectionPool(**cast("dict[str, Never]", settings))
    kind = pool.connection_class
    pool.connection_class = type(f"Cancellable{kind.__name__}", (_Cancellable, kind), {})
    return Redis.from_pool(pool)


class _Cancellable(AbstractConnection):
    """A connection that does not lose cancellations.

    redis-py sends under `asyncio.wait_for`. On Python 3.11, `wait_for` swallows a cancellation that arrives in the
    same turn of the event loop in which the bytes were sent. The caller would continue as if it was not cancelled.
    """

    async def send_packed_command(self, command: object, check_health: bool = True) -> None:
        task = asyncio.current_task()
        before = task.cancelling() if task else 0
        await super().send_packed_command(command, check_health)  # type: ignore[arg-type]
        if task and task.cancelling() > before:
            await self.disconnect(nowait=True)  # otherwise the next command would receive this reply
            raise asyncio.CancelledError


@final
class RedisWindow:
    """Keeps a session's budgets in Redis 6.2 or later. Pass it to one `Session`, which closes its connections.

    `url`: a URL that redis-py accepts (`redis://`, `rediss://`, `unix://`). `processes`: the number of processes to
    assume if Redis is unavailable before it has reported a number. `timeout`: real seconds without an answer after
    which Redis counts as unavailable. `prefix`: the prefix of all Redis keys.

    Raises `InvalidInput` for an invalid URL, and for `processes` or `timeout` that is not positive.
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
        """Return the budget of one endpoint; see `asyncmig.distributed.budget_store.SharedWindow`."""
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
        """Return the client. It measures time-outs in the event loop's seconds."""
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
    """One budget: the script and its keys."""

    __slots__ = ("_keys", "_rng", "_script", "_server", "_settings")

    def __init__(self, redis: Redis, server: Server, *, keys: list[str], settings: list[str | float]) -> None:
        self._script = redis.register_script(_SCRIPT)
        self._keys, self._settings, self._server = keys, settings, server
        self._rng = Random()

    async def exchange(self, reports: Sequence[SlotReport], want: str | None) -> BudgetReply:
        """Run the script once. Raises `ConnectionError` if Redis does not answer, or answers with an error."""
        report_parts = [part for report in reports for part in report]
        arguments = [*self._settings, self._rng.random(), want or "", "", *report_parts]
        try:
            reply = cast(_Answer, await self._script(self._keys, arguments))
        except (RedisError, OSError) as error:
            self._server.scrub(error)
            raise ConnectionError(f"{type(error).__name__}: {error}") from error
        granted, wait, slots, burst, used, clients, held, epoch, turn, lost = reply
        return BudgetReply(
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
