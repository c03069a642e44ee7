"""SAQ's queues, made to outlast a server that is away, to sweep quickly, and to go by the server's clock.

SAQ compares one machine's clock with another's to tell whether a worker is dead. Here the times of a job are the
server's where it is stored, and this machine's in memory.
"""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from contextvars import ContextVar
from typing import ClassVar, TypeVar, cast, final

from saq.job import Job, Status
from saq.queue import Queue
from saq.types import WorkerInfo
from saq.utils import now

from asyncmig._core.server_address import Server, parse_server
from asyncmig.distributed._reasons import place_of, reason_of
from asyncmig.errors import QueueUnavailable

__all__ = ["AnyQueue", "RareWarnings", "open_queue", "real_seconds"]

T = TypeVar("T")
_log = logging.getLogger("asyncmig")
_sweeping: ContextVar[bool] = ContextVar("_sweeping", default=False)
"""Whether this task sweeps."""
_PAUSE = 1.0
_PATIENCE = 20.0
"""Real seconds without an answer after which a connection counts as cut."""
_CONNECT_WITHIN = 10.0
"""Real seconds until a server that does not answer counts as away, when a connection is opened."""
_CLOSE_WITHIN = 2.0
"""Real seconds that closing the connections may take."""
_SAY_EVERY = 30.0
"""Real seconds between two warnings of the same words."""
_ABORT_WITHIN = 0.5
"""Real seconds that a worker has to end a job that looks dead; SAQ's 5 s, for each job, are long after a kill."""


@final
class RareWarnings:
    """Warnings that a loop would repeat: each is logged at most once in 30 real seconds."""

    __slots__ = ("_quiet_until",)

    def __init__(self) -> None:
        self._quiet_until: dict[str, float] = {}
        """The loop's time until which a warning is not logged again."""

    def log(self, text: str, *, about: str | None = None) -> None:
        """Log `text`, unless one `about` the same was logged lately; by default the text tells what it is about."""
        now, key = asyncio.get_running_loop().time(), about or text
        self._quiet_until = {known: until for known, until in self._quiet_until.items() if until > now}
        if key not in self._quiet_until:
            self._quiet_until[key] = now + real_seconds(_SAY_EVERY)
            _log.warning("%s", text)


class AnyQueue(Queue):
    """What is common to the queues below."""

    away: ClassVar[tuple[type[Exception], ...]]
    """What is raised when the server cannot be reached."""

    async def connect_once(self) -> None:
        """Connect. Raises `QueueUnavailable` if that is not possible within some seconds."""
        raise NotImplementedError

    def warn(self, error: Exception) -> None:
        """Say that the server is away, unless that was said lately."""
        raise NotImplementedError

    async def stored(self, job: Job) -> Job | None:
        """Return the job as it is stored; None if it is lost, even if another one has its key by now."""
        stored = await self.job(job.key)
        return None if stored is None or stored.meta != job.meta else stored

    async def touch(self, job: Job) -> None:
        """Write that the job's worker lives, unless the job was aborted or is another worker's.

        SAQ's own `update` writes all of the job as this worker knows it, over the reason of an abort, too.
        """
        raise NotImplementedError

    async def abandon(self) -> None:
        """Close what a `connect` that failed has opened; the queue cannot be used again."""
        await self.disconnect()


@final
class _Clock:
    """How far the server's clock is ahead of this machine's, in milliseconds."""

    _TIMES = ("queued", "started", "touched", "completed")

    def __init__(self) -> None:
        self.ahead = 0

    def dump(self, job: Mapping[str, object]) -> bytes:
        return json.dumps(self._shifted(job, self.ahead)).encode()

    def load(self, stored: bytes | str) -> dict[str, object]:
        return self._shifted(json.loads(stored), -self.ahead)

    def _shifted(self, job: Mapping[str, object], by: int) -> dict[str, object]:
        return {
            name: value + by if name in self._TIMES and isinstance(value, int) and value else value
            for name, value in job.items()
        }


class _Steady(AnyQueue):
    clock: _Clock
    first_seen: dict[str, int]
    server: Server
    warnings: RareWarnings

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} {self.name} on {self.server}>"  # SAQ logs it, with what its client shows
        )

    def is_new(self, job: Job) -> bool:
        """Return whether a worker may have taken the job just now, and has not said so yet.

        SAQ's sweep on Redis would take it away again: it looks at a list that jobs join a moment before.
        """
        age = now() - self.first_seen.setdefault(job.key, now())
        if age > 1000 * job.heartbeat:
            del self.first_seen[job.key]
            return age > 3000 * job.heartbeat  # that was about an earlier time
        return True

    async def server_now(self) -> float:
        """Return the server's time in seconds."""
        raise NotImplementedError

    async def connect(self) -> None:
        """Connect; while the server is away, wait for it, and say so from time to time."""
        while True:
            try:
                return await self.connect_once()
            except QueueUnavailable as error:
                self.warn(error)
            await asyncio.sleep(real_seconds(_PAUSE))

    async def connect_once(self) -> None:
        try:
            async with asyncio.timeout(real_seconds(_CONNECT_WITHIN)):
                await self.reach()
                await super().connect()
                await self._set_clock()
            return
        except self.away as error:
            failure = QueueUnavailable(place_of(self.server), reason_of(error, self.server))
        raise failure  # here, so that it has no context: the messages of client libraries may hold parts of the URL

    async def disconnect(self) -> None:
        """Disconnect; a server that does not answer is not waited for."""
        for step in (super().disconnect, self.abandon):  # type: ignore[safe-super]  # of the queue below
            with suppress(*self.away):  # a time-out is among them
                async with asyncio.timeout(real_seconds(_CLOSE_WITHIN)):
                    await step()

    async def reach(self) -> None:
        """Ask the server for something, on a connection that is tried only once."""
        raise NotImplementedError

    def warn(self, error: Exception) -> None:
        if not isinstance(error, QueueUnavailable):
            error = QueueUnavailable(place_of(self.server), reason_of(error, self.server, was_used=True))
        self.warnings.log(f"{error}; waiting for it")

    async def _set_clock(self) -> None:
        self.clock.ahead = round(await self.server_now() * 1000) - now()

    async def dequeue(self, timeout: float = 0.0, poll_interval: float = 0.0) -> Job | None:  # noqa: ASYNC109 - SAQ's
        """Wait for a job; while the server is away, wait for that: SAQ would try again at once, and for ever."""
        try:
            return await super().dequeue(timeout / real_seconds(1.0), poll_interval)  # type: ignore[safe-super]  # of the queue below
        except self.away as error:
            self.warn(error)
            await asyncio.sleep(real_seconds(_PAUSE))
            return None

    async def schedule(self, lock: int = 1, /) -> list[str]:
        """Queue the jobs whose time has come."""
        try:
            return await super().schedule(lock)
        except self.away as error:
            self.warn(error)
            return []

    async def write_worker_info(self, worker_id: str, info: WorkerInfo, ttl: int) -> None:
        """Tell that a worker lives."""
        try:
            await super().write_worker_info(worker_id, info, ttl)  # type: ignore[safe-super]  # as above
        except self.away as error:
            self.warn(error)

    async def jobs(self, job_keys: Iterable[str]) -> list[Job | None]:
        """Return jobs by their keys; wait while the server is away."""
        keys = list(job_keys)
        return await self._outlast(lambda: super(_Steady, self).jobs(keys))  # type: ignore[safe-super]  # as above

    async def finish(self, job: Job, status: Status, **kwargs: object) -> None:
        """Write a job's end, unless the job is lost or another worker has it: the end would be another job's.

        Waits while the server is away: the end is what the worker knows and the queue does not.
        """
        if "connection" in kwargs:  # the job was read there, in the same transaction
            await super().finish(job, status, **kwargs)  # type: ignore[arg-type]  # as they came
            return

        async def finish() -> None:
            if await self._is_ours(job):
                await super(_Steady, self).finish(job, status, **kwargs)  # type: ignore[arg-type]  # as they came

        await self._outlast(finish)

    async def retry(self, job: Job, error: str | None) -> None:
        """Put a job back into the queue, unless it is lost or another worker has it.

        While the server is away, the job is left to the sweep of another worker: this one may be stopping.
        """
        try:
            if await self._is_ours(job):
                await super().retry(job, error)
        except self.away as failure:
            self.warn(failure)

    async def _outlast(self, step: Callable[[], Awaitable[T]]) -> T:
        """Do a step that is harmless to repeat; while the server is away, wait for it."""
        while True:
            try:
                return await step()
            except self.away as error:
                self.warn(error)
            await asyncio.sleep(real_seconds(_PAUSE))

    async def _is_ours(self, job: Job) -> bool:
        stored = await self.stored(job)
        return stored is not None and stored.worker_id == job.worker_id

    def is_at_work(self, job: Job, stored: Job | None) -> bool:
        """Return whether the job is stored as one that its worker is busy with."""
        if stored is None or stored.meta != job.meta or stored.worker_id != job.worker_id:
            return False
        return stored.status is Status.ACTIVE

    async def sweep(self, lock: int = 60, abort: float = _ABORT_WITHIN) -> list[str]:
        """Take jobs from workers that died."""
        lock, before = max(1, int(lock / real_seconds(1.0))), _sweeping.set(True)
        try:
            await self._set_clock()
            return await super().sweep(lock, real_seconds(abort))  # type: ignore[safe-super]  # as above
        except self.away as error:
            self.warn(error)
            return []
        finally:
            _sweeping.reset(before)


def open_queue(url: str, name: str) -> AnyQueue:
    """Return a queue on a Redis or PostgreSQL, not connected yet.

    Raises `InvalidInput` for another address, or one that is not valid; it shows nothing of it.
    """
    server = parse_server("queue", url)
    return _redis(server, name) if server.kind == "redis" else _postgres(server, name)


def _redis(server: Server, name: str) -> AnyQueue:
    from redis.exceptions import RedisError, WatchError
    from saq.queue.redis import RedisQueue

    from asyncmig.distributed.redis import checked_redis, redis_client

    checked_redis("queue", server.text)

    class SteadyRedisQueue(_Steady, RedisQueue):
        away = (RedisError, OSError)

        async def reach(self) -> None:
            # Longer than any wait for a job: a connection that was cut would be waited on for ever.
            pool = self.redis.connection_pool
            kwargs = cast("dict[str, object]", pool.connection_kwargs)  # pyright: ignore[reportUnknownMemberType]  # no types
            kwargs["socket_timeout"] = kwargs["socket_connect_timeout"] = real_seconds(_PATIENCE)
            await self.server_now()

        async def abandon(self) -> None:
            await self.redis.connection_pool.disconnect()

        async def touch(self, job: Job) -> None:
            async with self.redis.pipeline() as pipe:
                await pipe.watch(job.id)
                stored = cast("Awaitable[bytes | None]", pipe.get(job.id))
                if self.is_at_work(job, self.deserialize(await stored)):
                    job.touched = now()
                    pipe.multi()  # type: ignore[no-untyped-call]  # redis-py has no type for it
                    pipe.set(job.id, self.serialize(job))
                    with suppress(WatchError):  # it was aborted, or given to another worker, in this moment
                        await pipe.execute()

        async def _update(self, job: Job, status: Status | None = None, **kwargs: object) -> None:
            if await self.stored(job) is not None:  # SAQ would store it again
                await super()._update(job, status, **kwargs)

        def deserialize(
            self, payload: dict[str, object] | str | bytes | None, status: Status | str | None = None
        ) -> Job | None:
            job = super().deserialize(payload, status)  # pyright: ignore[reportUnknownMemberType]  # as it is
            if job is not None and _sweeping.get() and job.status is Status.QUEUED and self.is_new(job):
                job.status, job.touched = Status.ACTIVE, now()
            return job

        async def server_now(self) -> float:
            time = self.redis.time()  # pyright: ignore[reportUnknownMemberType]  # its options have no types
            seconds, micro = cast("tuple[int, int]", await time)
            return seconds + micro / 1e6

    clock = _Clock()
    queue = SteadyRedisQueue(redis_client(server), name=name, dump=clock.dump, load=clock.load)
    queue.clock, queue.first_seen, queue.server, queue.warnings = clock, {}, server, RareWarnings()
    return queue


def _postgres(server: Server, name: str) -> AnyQueue:
    import psycopg
    from psycopg.conninfo import conninfo_to_dict
    from saq.queue.postgres import ListenMultiplexer, PostgresQueue

    class SteadyPostgresQueue(_Steady, PostgresQueue):
        away = (psycopg.Error, OSError)

        async def reach(self) -> None:  # the pool would try for half a minute, and not say what is wrong
            self.pool.timeout = real_seconds(_PATIENCE)
            self._listener = SteadyListener(self.pool, self._channel)  # pyright: ignore[reportArgumentType]  # it is one
            seconds = int(real_seconds(_CONNECT_WITHIN))
            await (await psycopg.AsyncConnection.connect(server.text, connect_timeout=seconds)).close()

        async def touch(self, job: Job) -> None:
            if not self.is_at_work(job, await self.job(job.key)):
                return
            async with self.pool.connection() as connection, connection.transaction():
                status = await self.get_job_status(job.key, for_update=True, connection=connection)
                if status is Status.ACTIVE:
                    await self.update(job, status=status, connection=connection)

        async def abandon(self) -> None:
            await self.pool.close()  # SAQ does so only for a queue that is connected

        async def server_now(self) -> float:
            async with self.pool.connection() as connection:
                answer = await connection.execute("SELECT extract(epoch FROM clock_timestamp())::float8")
                (seconds,) = await answer.fetchone() or (0.0,)
                return float(seconds)

    class SteadyListener(ListenMultiplexer):
        async def _start(self) -> None:
            try:
                await super()._start()
            except SteadyPostgresQueue.away as error:  # the next `dequeue` starts it again
                queue.warn(error)

    server.checked("queue", conninfo_to_dict)
    clock = _Clock()
    queue = SteadyPostgresQueue(url=server.text, name=name, dump=clock.dump, load=clock.load)
    queue.clock, queue.first_seen, queue.server, queue.warnings = clock, {}, server, RareWarnings()
    return queue


def real_seconds(seconds: float) -> float:
    """Return how many of the running loop's seconds so many real ones are."""
    return seconds * float(getattr(asyncio.get_running_loop(), "speed", 1.0))
