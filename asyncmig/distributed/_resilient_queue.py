"""SAQ's queues with three changes: they wait for an unavailable server, sweep quickly, and use the server's clock.

SAQ compares the clocks of different machines to detect a dead worker. Here the times of a stored job are the
server's, and the times of a job in memory are this machine's.
"""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from contextvars import ContextVar
from typing import ClassVar, TypeVar, cast, final

from saq.job import TERMINAL_STATUSES, Job, Status
from saq.queue import Queue
from saq.types import WorkerInfo
from saq.utils import now

from asyncmig._core.server_address import Server, parse_server
from asyncmig.distributed._connection_errors import place_of, reason_of
from asyncmig.errors import QueueUnavailable

__all__ = ["AnyQueue", "RareWarnings", "open_queue", "real_seconds"]

T = TypeVar("T")
_log = logging.getLogger("asyncmig")
_sweeping: ContextVar[bool] = ContextVar("_sweeping", default=False)
"""Whether the current task runs a sweep."""
_PAUSE = 1.0
_PATIENCE = 20.0
"""Real seconds without an answer after which a connection counts as interrupted."""
_CONNECT_WITHIN = 10.0
"""Real seconds after which a server that does not accept a connection counts as unavailable."""
_CLOSE_WITHIN = 2.0
"""Real seconds after which closing the connections is aborted."""
_SAY_EVERY = 30.0
"""Real seconds between two warnings about the same thing."""
_ABORT_WITHIN = 0.5
"""Real seconds that a worker gets to end a job that looks dead.

SAQ waits 5 s for each job, which delays the recovery of many jobs after a kill.
"""


@final
class RareWarnings:
    """Logs warnings of a retry loop, each at most once in 30 real seconds."""

    __slots__ = ("_quiet_until",)

    def __init__(self) -> None:
        self._quiet_until: dict[str, float] = {}
        """The loop's time until which each warning is suppressed."""

    def log(self, text: str, *, about: str | None = None) -> None:
        """Log `text`, unless a warning with the same `about` (default: the text) was logged recently."""
        now, key = asyncio.get_running_loop().time(), about or text
        self._quiet_until = {known: until for known, until in self._quiet_until.items() if until > now}
        if key not in self._quiet_until:
            self._quiet_until[key] = now + real_seconds(_SAY_EVERY)
            _log.warning("%s", text)


class AnyQueue(Queue):
    """The interface that both queues add to SAQ's."""

    away: ClassVar[tuple[type[Exception], ...]]
    """The errors that an unavailable server raises."""

    async def connect_once(self) -> None:
        """Connect. Raises `QueueUnavailable` if that fails or takes longer than 10 real seconds."""
        raise NotImplementedError

    async def attempt(self, step: Callable[[], Awaitable[T]], *, was_used: bool = True) -> T:
        """Run a step once, for at most 20 real seconds. Raises `QueueUnavailable` instead of the client's error.

        `was_used`: whether the server could be used before, so that it is the right kind of server.
        """
        raise NotImplementedError

    def warn(self, error: Exception) -> None:
        """Log that the server is unavailable, unless that was logged recently."""
        raise NotImplementedError

    async def stored(self, job: Job) -> Job | None:
        """Return the stored job; None if it is lost, also if another job has its key now."""
        stored = await self.job(job.key)
        return None if stored is None or stored.meta != job.meta else stored

    async def touch(self, job: Job) -> None:
        """Store a heartbeat of the job's worker, unless the job was aborted or belongs to another worker.

        SAQ's own `update` stores the whole job as this worker knows it, and would overwrite the reason of an abort.
        """
        raise NotImplementedError

    def was_swept(self, job: Job) -> bool:
        """Return whether a sweep took the job from its worker, and it is not queued again yet."""
        return job.status is Status.ABORTED and job.error == self.swept_error_message

    async def abandon(self) -> None:
        """Close what a failed `connect` opened. The queue cannot be used again."""
        await self.disconnect()


@final
class _ServerClock:
    """Converts a job's times between the server's clock and this machine's.

    `ahead`: milliseconds by which the server's clock is ahead.
    """

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


class _ResilientQueue(AnyQueue):
    clock: _ServerClock
    first_seen: dict[str, int]
    server: Server
    warnings: RareWarnings

    def __repr__(self) -> str:
        # SAQ logs the repr of a queue, and SAQ's own contains the address.
        return f"<{type(self).__name__} {self.name} on {self.server}>"

    def is_new(self, job: Job) -> bool:
        """Return whether a worker may have just taken the job without having marked it as active.

        SAQ's sweep on Redis would take such a job away, because a job joins the swept list before it is active.
        """
        age = now() - self.first_seen.setdefault(job.key, now())
        if age > 1000 * job.heartbeat:
            del self.first_seen[job.key]
            return age > 3000 * job.heartbeat  # it was first seen in an earlier attempt
        return True

    async def server_now(self) -> float:
        """Return the server's time in seconds."""
        raise NotImplementedError

    async def connect(self) -> None:
        """Connect. While the server is unavailable, wait for it and log a warning now and then."""
        while True:
            try:
                return await self.connect_once()
            except QueueUnavailable as error:
                self.warn(error)
            await asyncio.sleep(real_seconds(_PAUSE))

    async def connect_once(self) -> None:
        await self.attempt(self._connect, was_used=False)

    async def _connect(self) -> None:
        async with asyncio.timeout(real_seconds(_CONNECT_WITHIN)):
            await self.reach()
            await super().connect()
            await self._set_clock()

    async def attempt(self, step: Callable[[], Awaitable[T]], *, was_used: bool = True) -> T:
        try:
            async with asyncio.timeout(
                real_seconds(_PATIENCE)
            ):  # a step may wait for the server to come back
                return await step()
        except self.away as error:  # includes the time-out
            failure = self._unavailable(error, was_used=was_used)
        # Outside `except`, so that it has no context: messages of client libraries may contain parts of the URL.
        raise failure

    def _unavailable(self, error: Exception, *, was_used: bool) -> QueueUnavailable:
        return QueueUnavailable(place_of(self.server), reason_of(error, self.server, was_used=was_used))

    async def disconnect(self) -> None:
        """Disconnect. Do not wait for a server that does not answer."""
        for step in (super().disconnect, self.abandon):  # type: ignore[safe-super]  # a concrete queue implements it
            with suppress(*self.away):  # includes time-outs
                async with asyncio.timeout(real_seconds(_CLOSE_WITHIN)):
                    await step()

    async def reach(self) -> None:
        """Send one request to the server, on a connection without retries."""
        raise NotImplementedError

    def warn(self, error: Exception) -> None:
        if not isinstance(error, QueueUnavailable):
            error = self._unavailable(error, was_used=True)
        self.warnings.log(f"{error}; waiting for it", about="the queue")

    async def _set_clock(self) -> None:
        self.clock.ahead = round(await self.server_now() * 1000) - now()

    async def dequeue(self, timeout: float = 0.0, poll_interval: float = 0.0) -> Job | None:  # noqa: ASYNC109 - SAQ's
        """Wait for a job. While the server is unavailable, pause: SAQ would retry at once, without end."""
        try:
            return await super().dequeue(timeout / real_seconds(1.0), poll_interval)  # type: ignore[safe-super]  # a concrete queue implements it
        except self.away as error:
            self.warn(error)
            await asyncio.sleep(real_seconds(_PAUSE))
            return None

    async def schedule(self, lock: int = 1, /) -> list[str]:
        """Queue the jobs whose scheduled time has come."""
        try:
            return await super().schedule(lock)
        except self.away as error:
            self.warn(error)
            return []

    async def write_worker_info(self, worker_id: str, info: WorkerInfo, ttl: int) -> None:
        """Publish that a worker is alive."""
        try:
            await super().write_worker_info(worker_id, info, ttl)  # type: ignore[safe-super]  # as above
        except self.away as error:
            self.warn(error)

    async def jobs(self, job_keys: Iterable[str]) -> list[Job | None]:
        """Return jobs by their keys. Wait while the server is unavailable."""
        keys = list(job_keys)
        return await self._outlast(lambda: super(_ResilientQueue, self).jobs(keys))  # type: ignore[safe-super]  # as above

    async def finish(self, job: Job, status: Status, **kwargs: object) -> None:
        """Write a job's end, unless the job is lost or belongs to another worker.

        A job that a sweep took from its worker is queued again instead, because the process that swept may have died.
        Waits while the server is unavailable, because only this worker knows the result.
        """
        if status is Status.ABORTED and kwargs.get("error") == self.swept_error_message and job.retryable:
            await self.retry(job, self.swept_error_message)
            return
        if "connection" in kwargs:  # the caller read the job on that connection, in the same transaction
            await super().finish(job, status, **kwargs)  # type: ignore[arg-type]  # passed on unchanged
            return

        async def finish() -> None:
            if await self._is_ours(job):
                await super(_ResilientQueue, self).finish(job, status, **kwargs)  # type: ignore[arg-type]  # passed on unchanged

        await self._outlast(finish)

    async def retry(self, job: Job, error: str | None) -> None:
        """Queue a job again, unless it is lost, was aborted, has ended, is queued or belongs to another worker.

        If the server is unavailable, leaves the job to the sweep of another worker, because this one may be stopping.
        """
        try:
            stored = await self.stored(job)
            if stored is None or stored.worker_id != job.worker_id:
                return
            if stored.status is Status.ACTIVE or (
                stored.status in (Status.ABORTING, Status.ABORTED)
                and stored.error == self.swept_error_message
            ):
                await super().retry(job, error)
        except self.away as failure:
            self.warn(failure)

    async def abort(self, job: Job, error: str, ttl: float = 5) -> None:
        """Ask the worker of a job to stop it. A sweep ends a job that was aborted before its worker died."""
        if _sweeping.get() and self._is_aborted(job):
            await self.finish(job, Status.ABORTED, error=job.error)
        else:
            await self.mark_aborting(job, error, ttl)

    async def mark_aborting(self, job: Job, error: str, ttl: float) -> None:
        await super().abort(job, error, ttl)  # type: ignore[safe-super]  # a concrete queue implements it

    def _is_aborted(self, job: Job) -> bool:
        """Return whether somebody aborted the job, and its worker has not ended it yet."""
        return job.status is Status.ABORTING and job.error != self.swept_error_message

    async def _outlast(self, step: Callable[[], Awaitable[T]]) -> T:
        """Run a step that is safe to repeat. While the server is unavailable, wait for it."""
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
        """Return whether the stored job is active and belongs to the same worker."""
        if stored is None or stored.meta != job.meta or stored.worker_id != job.worker_id:
            return False
        return stored.status is Status.ACTIVE

    async def sweep(self, lock: int = 60, abort: float = _ABORT_WITHIN) -> list[str]:
        """Take jobs from dead workers."""
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
    """Return an unconnected queue on a Redis or PostgreSQL.

    Raises `InvalidInput` for an invalid address or another kind of server. The error does not show the address.
    """
    server = parse_server("queue", url)
    return _redis(server, name) if server.kind == "redis" else _postgres(server, name)


def _redis(server: Server, name: str) -> AnyQueue:
    from redis.exceptions import RedisError, WatchError
    from saq.queue.redis import RedisQueue

    from asyncmig.distributed.redis import checked_redis, redis_client

    checked_redis("queue", server.text)

    class ResilientRedisQueue(_ResilientQueue, RedisQueue):
        away = (RedisError, OSError)

        async def reach(self) -> None:
            # Longer than any wait for a job. Without it, a read on an interrupted connection would not end.
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
                    with suppress(WatchError):  # at the same time it was aborted or given to another worker
                        await pipe.execute()

        async def mark_aborting(self, job: Job, error: str, ttl: float) -> None:
            # SAQ's own removes the job from the list that a sweep reads: if the worker and the process that aborts
            # die now, no process finds the job again. It also overwrites the result of a job that has just ended.
            job.status, job.error, dequeued = Status.ABORTING, error, 0
            async with self.redis.pipeline() as pipe:
                while True:
                    await pipe.watch(job.id)
                    stored = self.deserialize(await cast("Awaitable[bytes | None]", pipe.get(job.id)))
                    if stored is None or stored.status in TERMINAL_STATUSES or self._is_aborted(stored):
                        return
                    pipe.multi()  # type: ignore[no-untyped-call]  # redis-py has no type for it
                    pipe.lrem(self._queued, 0, job.id)
                    pipe.set(job.id, self.serialize(job))
                    with suppress(WatchError):  # it has changed at the same time
                        dequeued, *_ = await pipe.execute()
                        break
            if dequeued:
                await self.finish(job, Status.ABORTED, error=error)

        async def _update(self, job: Job, status: Status | None = None, **kwargs: object) -> None:
            if await self.stored(job) is not None:  # otherwise SAQ would store the lost job again
                await super()._update(job, status, **kwargs)

        def deserialize(
            self, payload: dict[str, object] | str | bytes | None, status: Status | str | None = None
        ) -> Job | None:
            job = super().deserialize(payload, status)  # pyright: ignore[reportUnknownMemberType]  # as it is
            if job is not None and _sweeping.get() and job.status is Status.QUEUED and self.is_new(job):
                job.status, job.touched = Status.ACTIVE, now()
            if job is not None and _sweeping.get() and job.status is Status.ABORTING and not job.stuck:
                job.status = Status.ACTIVE  # its worker has time to end it
            return job

        async def server_now(self) -> float:
            time = self.redis.time()  # pyright: ignore[reportUnknownMemberType]  # its options have no types
            seconds, micro = cast("tuple[int, int]", await time)
            return seconds + micro / 1e6

    clock = _ServerClock()
    queue = ResilientRedisQueue(redis_client(server), name=name, dump=clock.dump, load=clock.load)
    queue.clock, queue.first_seen, queue.server, queue.warnings = clock, {}, server, RareWarnings()
    return queue


def _postgres(server: Server, name: str) -> AnyQueue:
    import psycopg
    from psycopg.conninfo import conninfo_to_dict
    from saq.queue.postgres import ListenMultiplexer, PostgresQueue

    class ResilientPostgresQueue(_ResilientQueue, PostgresQueue):
        away = (psycopg.Error, OSError)

        async def reach(self) -> None:  # the pool would retry for 30 s and hide the reason
            self.pool.timeout = real_seconds(_PATIENCE)
            self._listener = ResilientListener(self.pool, self._channel)  # pyright: ignore[reportArgumentType]  # it is one
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
            await self.pool.close()  # SAQ closes the pool only of a connected queue

        async def server_now(self) -> float:
            async with self.pool.connection() as connection:
                answer = await connection.execute("SELECT extract(epoch FROM clock_timestamp())::float8")
                (seconds,) = await answer.fetchone() or (0.0,)
                return float(seconds)

    class ResilientListener(ListenMultiplexer):
        async def _start(self) -> None:
            try:
                await super()._start()
            except ResilientPostgresQueue.away as error:  # the next `dequeue` starts it again
                queue.warn(error)

    server.checked("queue", conninfo_to_dict)
    clock = _ServerClock()
    queue = ResilientPostgresQueue(url=server.text, name=name, dump=clock.dump, load=clock.load)
    queue.clock, queue.first_seen, queue.server, queue.warnings = clock, {}, server, RareWarnings()
    return queue


def real_seconds(seconds: float) -> float:
    """Convert real seconds to seconds of the running event loop's clock."""
    return seconds * float(getattr(asyncio.get_running_loop(), "speed", 1.0))
