"""A shared window in Redis: one rate limit for all processes that use an API key. Needs the extra `redis`.

    async with asyncmig.Session(shared=RedisWindow("redis://localhost")) as session:
        ...

A script in Redis keeps the budgets of an account. It applies the rules of the local limiter on Redis's clock, so that
the clocks of the processes may differ. Each request costs one round trip; while no request waits, there are none.
Redis stores a digest of the API key, and never the key. In a cluster, all budgets of an account are in one hash slot.

While Redis is unavailable, each process emits `SharedWindowLost`, and continues with its share of the last known
window until Redis answers again. If Redis has lost its data, each process reports again what it sent in the last
window.
"""

import asyncio
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib import resources
from random import Random
from typing import Never, cast, final
from uuid import uuid4

from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.connection import AbstractConnection, parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.commands.core import AsyncScript
from redis.credentials import UsernamePasswordCredentialProvider
from redis.exceptions import RedisError

from asyncmig._core.arguments import checked_call
from asyncmig._core.run_table import Reach, RunStore
from asyncmig._core.server_address import Server, parse_server
from asyncmig.distributed.budget_store import BudgetReply, BudgetStore, SharedBudget, SlotReport, name_of_set
from asyncmig.errors import InvalidInput

__all__ = ["RedisWindow", "checked_redis", "redis_client"]

_Answer = tuple[int, str, int, int, int, int, str, bytes, int, int]
_READ = """
local time = redis.call("TIME")
return {redis.call("GET", KEYS[1]) or "", time[1], time[2]}
"""
_REPLACE = """
if (redis.call("GET", KEYS[1]) or "") ~= ARGV[1] then
  return 0
end
redis.call("SET", KEYS[1], ARGV[2])
return 1
"""
_SCRIPT = resources.files("asyncmig.distributed").joinpath("window.lua").read_text(encoding="utf-8")


def checked_redis(field: str, url: str) -> Server:
    """Parse the URL of a Redis. Raises `InvalidInput` for `field`; the error does not show the URL."""
    server = parse_server(field, url, "redis")
    server.checked(field, lambda _: _unconnected(redis_client(server)))
    return server


def _unconnected(client: Redis) -> AbstractConnection:
    """Return a connection that is not open. Only its constructor checks most options of a URL."""
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

    redis-py sends with `asyncio.wait_for`. On Python 3.11, `wait_for` ignores a cancellation that arrives in the same
    turn of the event loop in which the bytes were sent. The caller would continue as if it had not been cancelled.
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

    def budgets(
        self, budgets: Sequence[SharedBudget], *, account: str, timeout: float, speed: float
    ) -> BudgetStore:
        """Return budgets that are charged together; see `asyncmig.distributed.budget_store.SharedWindow`."""
        base, parts = self._base(account, speed), ("state", "slots", "unanswered", "accepted")
        keys = [f"{base}:{budget.name}:{part}" for budget in budgets for part in parts]
        return _RedisBudgets(
            script=self._opened(speed).register_script(_SCRIPT),
            server=self._server,
            budgets=budgets,
            keys=[*keys, f"{base}:clients"],
            settings=[self._client, timeout, speed],
        )

    def runs(self, account: str) -> RunStore:
        """Return the run slots of an account; see `asyncmig.distributed.budget_store.SharedWindow`."""
        return _RedisRuns(self._opened, self._server, partial(self._base, account))

    def _base(self, account: str, speed: float) -> str:
        tag = account if speed == 1.0 else f"{account}x{speed:g}"
        return f"{self._prefix}:{{{tag}}}"

    def _opened(self, speed: float) -> Redis:
        """Return the client. It is made on first use, because its time-outs depend on the speed of the event loop."""
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
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _RedisBudgets:
    """Budgets that are charged together, kept by the script in several keys."""

    script: AsyncScript
    server: Server
    budgets: Sequence[SharedBudget]
    keys: list[str]
    settings: list[str | float]
    rng: Random = field(default_factory=Random)

    async def exchange(
        self, reports: Sequence[Sequence[SlotReport]], want: str | None
    ) -> Sequence[BudgetReply]:
        """Run the script once. Raises `ConnectionError` if Redis does not answer, or answers with an error."""
        arguments: list[str | float] = [*self.settings, self.rng.random(), want or "", ""]
        arguments.append(name_of_set(self.budgets))
        for budget, each in zip(self.budgets, reports, strict=True):
            arguments += [
                budget.limit,
                budget.window,
                len(each),
                *(part for report in each for part in report),
            ]
        with _errors_of(self.server):
            replies = cast("list[_Answer]", await self.script(self.keys, arguments))
        return [
            BudgetReply(
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
            for granted, wait, slots, burst, used, clients, held, epoch, turn, lost in replies
        ]


@final
@dataclass(frozen=True, slots=True, eq=False)
class _RedisRuns:
    """The run slots of an account, in one key. It is replaced only if it was not changed in the meantime."""

    opened: Callable[[float], Redis]
    """Returns the client for a speed of the event loop."""
    server: Server
    base: Callable[[float], str]
    """Returns the beginning of the key."""
    reach: Reach = "network"

    async def update(self, change: Callable[[bytes, float], bytes], *, speed: float) -> None:
        """Replace the state; see `asyncmig._core.run_table.RunStore`. Raises `ConnectionError`."""
        redis, key = self.opened(speed), f"{self.base(speed)}:runs"
        read, replace = redis.register_script(_READ), redis.register_script(_REPLACE)
        with _errors_of(self.server):
            while True:
                old, seconds, micros = cast("tuple[bytes, bytes, bytes]", await read([key]))
                new = change(old, (int(seconds) + int(micros) / 1e6) * speed)
                if new == old or await replace([key], [old, new]):
                    return


@contextmanager
def _errors_of(server: Server) -> Generator[None]:
    """Turn errors of the client or of Redis into a `ConnectionError` without the password."""
    try:
        yield
    except (RedisError, OSError) as error:
        server.scrub(error)
        raise ConnectionError(f"{type(error).__name__}: {error}") from error
