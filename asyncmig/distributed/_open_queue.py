"""Opens the queue at the address of a Redis or of a PostgreSQL.

The client libraries are imported only for the kind of server that is used.
"""

from collections.abc import Awaitable
from contextlib import suppress
from typing import cast

from saq.job import TERMINAL_STATUSES, Job, Status
from saq.utils import now

from asyncmig._core.server_address import Server, parse_server
from asyncmig.distributed._resilient_queue import ResilientQueue, real_seconds, sweeping

__all__ = ["open_queue"]


def open_queue(url: str, name: str) -> ResilientQueue:
    """Return an unconnected queue on a Redis or PostgreSQL.

    Raises `InvalidInput` for an invalid address or another kind of server. The error does not show the address.
    """
    server = parse_server("queue", url)
    return _redis(server, name) if server.kind == "redis" else _postgres(server, name)


def _redis(server: Server, name: str) -> ResilientQueue:
    from redis.exceptions import RedisError, WatchError
    from saq.queue.redis import RedisQueue

    from asyncmig.distributed.redis import checked_redis, redis_client

    checked_redis("queue", server.text)

    class ResilientRedisQueue(ResilientQueue, RedisQueue):
        unavailable_errors = (RedisError, OSError)

        async def check_connection(self) -> None:
            # A read on an interrupted connection would not end without a time-out. It is longer than any wait for a
            # job.
            pool = self.redis.connection_pool
            kwargs = cast("dict[str, object]", pool.connection_kwargs)  # pyright: ignore[reportUnknownMemberType]  # no types
            kwargs["socket_timeout"] = kwargs["socket_connect_timeout"] = real_seconds(self.patience)
            await self.server_now()

        async def abandon(self) -> None:
            await self.redis.connection_pool.disconnect()

        async def touch(self, job: Job) -> None:
            async with self.redis.pipeline() as pipe:
                await pipe.watch(job.id)
                stored = cast("Awaitable[bytes | None]", pipe.get(job.id))
                if self.is_active_here(job, self.deserialize(await stored)):
                    job.touched = now()
                    pipe.multi()  # type: ignore[no-untyped-call]  # redis-py has no type for it
                    pipe.set(job.id, self.serialize(job))
                    with suppress(WatchError):  # it was aborted or given to another worker in the meantime
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
            if job is not None and sweeping.get() and job.status is Status.QUEUED and self.is_new(job):
                job.status, job.touched = Status.ACTIVE, now()
            if job is not None and sweeping.get() and job.status is Status.ABORTING and not job.stuck:
                job.status = Status.ACTIVE  # its worker has time to end it
            return job

        async def server_now(self) -> float:
            time = self.redis.time()  # pyright: ignore[reportUnknownMemberType]  # its options have no types
            seconds, micro = cast("tuple[int, int]", await time)
            return seconds + micro / 1e6

    return ResilientRedisQueue(server, redis=redis_client(server), name=name)


def _postgres(server: Server, name: str) -> ResilientQueue:
    import psycopg
    from psycopg.conninfo import conninfo_to_dict
    from saq.queue.postgres import ListenMultiplexer, PostgresQueue

    class ResilientPostgresQueue(ResilientQueue, PostgresQueue):
        unavailable_errors = (psycopg.Error, OSError)

        # The pool would retry for 30 s, and its error would not show the reason.
        async def check_connection(self) -> None:
            self.pool.timeout = real_seconds(self.patience)
            self._listener = ResilientListener(self.pool, self._channel)  # pyright: ignore[reportArgumentType]  # it is one
            seconds = int(real_seconds(self.connect_within))
            await (await psycopg.AsyncConnection.connect(server.text, connect_timeout=seconds)).close()

        async def touch(self, job: Job) -> None:
            if not self.is_active_here(job, await self.job(job.key)):
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
            except ResilientPostgresQueue.unavailable_errors as error:  # the next `dequeue` starts it again
                queue.warn(error)

    server.checked("queue", conninfo_to_dict)
    queue = ResilientPostgresQueue(server, url=server.text, name=name)
    return queue
