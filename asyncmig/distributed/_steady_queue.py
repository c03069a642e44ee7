"""SAQ's queues, made to outlast a server that is away, and to sweep quickly."""

import asyncio
import logging
from typing import ClassVar
from urllib.parse import urlsplit

from saq.job import Job
from saq.queue import Queue

from asyncmig.errors import InvalidInput

__all__ = ["AnyQueue", "open_queue", "real_seconds"]

_log = logging.getLogger("asyncmig")
_PAUSE = 1.0
_ABORT_WITHIN = 0.5
"""Real seconds that a worker has to end a job that looks dead; SAQ's 5 s, for each job, are long after a kill."""


class AnyQueue(Queue):
    """What is common to the queues below."""

    away: ClassVar[tuple[type[Exception], ...]]
    """What is raised when the server cannot be reached."""


class _Steady(AnyQueue):
    _has_swept = False

    async def dequeue(self, timeout: float = 0.0, poll_interval: float = 0.0) -> Job | None:  # noqa: ASYNC109 - SAQ's
        """Wait for a job; while the server is away, wait for that: SAQ would try again at once, and for ever."""
        try:
            return await super().dequeue(timeout / real_seconds(1.0), poll_interval)  # type: ignore[safe-super]  # of the queue below
        except self.away as error:
            _log.warning("the queue cannot be reached: %s", type(error).__name__)
            await asyncio.sleep(real_seconds(_PAUSE))
            return None

    async def sweep(self, lock: int = 60, abort: float = _ABORT_WITHIN) -> list[str]:
        """Take jobs from workers that died. Not at the start: SAQ takes also one whose worker has just got it."""
        if not self._has_swept:
            self._has_swept = True
            return []
        lock = max(1, int(lock / real_seconds(1.0)))
        return await super().sweep(lock, real_seconds(abort))  # type: ignore[safe-super]  # as above


def open_queue(url: str, name: str) -> AnyQueue:
    """Return a queue on a Redis or PostgreSQL, not connected yet. Raises `InvalidInput` for another URL."""
    scheme = urlsplit(url).scheme
    if scheme in ("redis", "rediss", "unix"):
        return _redis(url, name)
    if scheme in ("postgres", "postgresql"):
        return _postgres(url, name)
    raise InvalidInput("queue", f"{scheme}://...", "must be the URL of a Redis or a PostgreSQL")


def _redis(url: str, name: str) -> AnyQueue:
    from redis.asyncio import Redis
    from redis.exceptions import RedisError
    from saq.queue.redis import RedisQueue

    class SteadyRedisQueue(_Steady, RedisQueue):
        away = (RedisError, OSError)

    # A time-out, longer than any wait for a job: a connection that was cut would be waited on for ever.
    redis = Redis.from_url(  # pyright: ignore[reportUnknownMemberType]  # its options have no types
        url, socket_timeout=20.0, socket_connect_timeout=5.0
    )
    return SteadyRedisQueue(redis, name=name)


def _postgres(url: str, name: str) -> AnyQueue:
    import psycopg
    from saq.queue.postgres import PostgresQueue

    class SteadyPostgresQueue(_Steady, PostgresQueue):
        away = (psycopg.Error, OSError)

    return SteadyPostgresQueue(url=url, name=name)


def real_seconds(seconds: float) -> float:
    """Return how many of the running loop's seconds so many real ones are."""
    return seconds * float(getattr(asyncio.get_running_loop(), "speed", 1.0))
