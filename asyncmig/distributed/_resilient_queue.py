"""SAQ's queues with three changes: they wait for an unavailable server, sweep quickly, and use the server's clock.

To detect a dead worker, SAQ compares the clocks of different machines. Here the times of a stored job are on the
server's clock, and the times of a job in memory on this machine's.
"""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import ClassVar, TypeVar, final

from saq.job import Job, Status
from saq.queue import Queue
from saq.types import WorkerInfo
from saq.utils import now

from asyncmig._core.server_address import Server
from asyncmig._io.event_loop import loop_speed
from asyncmig.distributed._connection_errors import place_of, reason_of
from asyncmig.errors import QueueUnavailable

__all__ = ["RareWarnings", "ResilientQueue", "ServerClock", "real_seconds", "sweeping"]

T = TypeVar("T")
_log = logging.getLogger("asyncmig")
sweeping: ContextVar[bool] = ContextVar("sweeping", default=False)
"""Whether the current task runs a sweep."""
_TIMES = ("queued", "started", "touched", "completed")
"""The fields of a job that are times."""
_PAUSE = 1.0
"""Real seconds between two attempts to use an unavailable server."""
_CLOSE_WITHIN = 2.0
"""Real seconds after which closing the connections is aborted."""
_WARN_EVERY = 30.0
"""Real seconds between two warnings about the same problem."""
_ABORT_WITHIN = 0.5
"""Real seconds that a worker has to end a job that was taken from it.

SAQ waits 5 s for each job, which would delay the recovery of many jobs after a worker was killed.
"""


@final
@dataclass(slots=True)
class RareWarnings:
    """Logs warnings of a retry loop, each at most once in 30 real seconds."""

    _quiet_until: dict[str, float] = field(default_factory=dict[str, float])
    """The time until which each warning is suppressed, on the loop's clock."""

    def log(self, text: str, *, about: str | None = None) -> None:
        """Log `text`, unless a warning with the same `about` (default: the text) was logged recently."""
        now, key = asyncio.get_running_loop().time(), about or text
        self._quiet_until = {known: until for known, until in self._quiet_until.items() if until > now}
        if key not in self._quiet_until:
            self._quiet_until[key] = now + real_seconds(_WARN_EVERY)
            _log.warning("%s", text)


@final
@dataclass(slots=True)
class ServerClock:
    """Converts a job's times between the server's clock and this machine's."""

    ahead: int = 0
    """Milliseconds by which the server's clock is ahead of this machine's."""

    def dump(self, job: Mapping[str, object]) -> bytes:
        """Return a job as JSON, with times on the server's clock."""
        return json.dumps(self._shifted(job, self.ahead)).encode()

    def load(self, stored: bytes | str) -> dict[str, object]:
        """Return a stored job, with times on this machine's clock."""
        return self._shifted(json.loads(stored), -self.ahead)

    def _shifted(self, job: Mapping[str, object], by: int) -> dict[str, object]:
        return {
            name: value + by if name in _TIMES and isinstance(value, int) and value else value
            for name, value in job.items()
        }


class ResilientQueue(Queue):
    """The part of both queues that does not depend on the kind of server."""

    unavailable_errors: ClassVar[tuple[type[Exception], ...]]
    """The errors of the client library that show an unavailable server."""
    patience: ClassVar[float] = 20.0
    """Real seconds without an answer after which the server counts as unavailable."""
    connect_within: ClassVar[float] = 10.0
    """Real seconds after which a server that does not accept a connection counts as unavailable."""

    def __init__(self, server: Server, **options: object) -> None:
        """`options`: the arguments of SAQ's queue."""
        self.server, self.clock, self.warnings = server, ServerClock(), RareWarnings()
        self.first_seen: dict[str, int] = {}
        """When a sweep first saw each job that was not marked as active, in milliseconds."""
        super().__init__(dump=self.clock.dump, load=self.clock.load, **options)  # type: ignore[arg-type]  # passed on unchanged

    def __repr__(self) -> str:
        # SAQ logs the repr of a queue, and SAQ's own contains the address.
        return f"<{type(self).__name__} {self.name} on {self.server}>"

    def is_new(self, job: Job) -> bool:
        """Return whether a worker may have taken the job just now, without having marked it as active yet.

        On Redis, a job is in the list that SAQ sweeps before it is marked as active. The sweep must not take it
        away.
        """
        age = now() - self.first_seen.setdefault(job.key, now())
        if age > 1000 * job.heartbeat:
            del self.first_seen[job.key]
            return age > 3000 * job.heartbeat  # then it was seen first in an earlier attempt
        return True

    async def server_now(self) -> float:
        """Return the server's time in seconds."""
        raise NotImplementedError

    async def connect(self) -> None:
        """Connect. Wait while the server is unavailable, and log warnings."""
        while True:
            try:
                return await self.connect_once()
            except QueueUnavailable as error:
                self.warn(error)
            await asyncio.sleep(real_seconds(_PAUSE))

    async def connect_once(self) -> None:
        """Connect. Raises `QueueUnavailable` if that fails or takes longer than 10 real seconds."""
        await self.attempt(self._connect, was_used=False)

    async def _connect(self) -> None:
        async with asyncio.timeout(real_seconds(self.connect_within)):
            await self.check_connection()
            await super().connect()
            await self._set_clock()

    async def attempt(self, step: Callable[[], Awaitable[T]], *, was_used: bool = True) -> T:
        """Run a step once, for at most 20 real seconds. Raises `QueueUnavailable` instead of the library's error.

        `was_used`: whether the server was used before. Then it is certainly a server of the right kind.
        """
        try:
            # Without a time-out, a step may wait until the server is available again.
            async with asyncio.timeout(real_seconds(self.patience)):
                return await step()
        except self.unavailable_errors as error:  # includes the time-out
            failure = self._unavailable(error, was_used=was_used)
        # Outside `except`, so that the error has no context: messages of client libraries may contain parts of the
        # URL.
        raise failure

    def _unavailable(self, error: Exception, *, was_used: bool) -> QueueUnavailable:
        return QueueUnavailable(place_of(self.server), reason_of(error, self.server, was_used=was_used))

    async def disconnect(self) -> None:
        """Disconnect. If the server does not answer, stop waiting after 2 s."""
        for step in (super().disconnect, self.abandon):  # type: ignore[safe-super]  # a concrete queue implements it
            with suppress(*self.unavailable_errors):  # includes time-outs
                async with asyncio.timeout(real_seconds(_CLOSE_WITHIN)):
                    await step()

    async def abandon(self) -> None:
        """Close the connections that a failed `connect` has opened. The queue cannot be used again."""
        raise NotImplementedError

    async def check_connection(self) -> None:
        """Send one request to the server, on a connection without retries."""
        raise NotImplementedError

    def warn(self, error: Exception) -> None:
        """Log that the server is unavailable, unless that was logged recently."""
        if not isinstance(error, QueueUnavailable):
            error = self._unavailable(error, was_used=True)
        self.warnings.log(f"{error}; waiting for it", about="the queue")

    async def stored(self, job: Job) -> Job | None:
        """Return the job as it is stored; None if the queue has lost it, even if another job has its key now."""
        stored = await self.job(job.key)
        return None if stored is None or stored.meta != job.meta else stored

    def was_swept(self, job: Job) -> bool:
        """Return whether a sweep took the job from its worker, and it is not queued again yet."""
        return job.status is Status.ABORTED and job.error == self.swept_error_message

    async def touch(self, job: Job) -> None:
        """Store a heartbeat of the job's worker, unless the job was aborted or belongs to another worker.

        SAQ's own `update` stores the whole job as this worker has it, and would overwrite the reason of an abort.
        """
        raise NotImplementedError

    async def _set_clock(self) -> None:
        self.clock.ahead = round(await self.server_now() * 1000) - now()

    async def dequeue(self, timeout: float = 0.0, poll_interval: float = 0.0) -> Job | None:  # noqa: ASYNC109 - SAQ's
        """Wait for a job. Pause if the server is unavailable, because SAQ would retry at once, endlessly."""
        try:
            return await super().dequeue(timeout / real_seconds(1.0), poll_interval)  # type: ignore[safe-super]  # a concrete queue implements it
        except self.unavailable_errors as error:
            self.warn(error)
            await asyncio.sleep(real_seconds(_PAUSE))
            return None

    async def schedule(self, lock: int = 1, /) -> list[str]:
        """Enqueue the jobs whose scheduled time has come."""
        try:
            return await super().schedule(lock)
        except self.unavailable_errors as error:
            self.warn(error)
            return []

    async def write_worker_info(self, worker_id: str, info: WorkerInfo, ttl: int) -> None:
        """Publish that a worker is alive."""
        try:
            await super().write_worker_info(worker_id, info, ttl)  # type: ignore[safe-super]  # as above
        except self.unavailable_errors as error:
            self.warn(error)

    async def jobs(self, job_keys: Iterable[str]) -> list[Job | None]:
        """Return jobs by their keys. Wait while the server is unavailable."""
        keys = list(job_keys)
        return await self._repeated(lambda: super(ResilientQueue, self).jobs(keys))  # type: ignore[safe-super]  # as above

    async def finish(self, job: Job, status: Status, **kwargs: object) -> None:
        """Store the result of a job, unless the job is lost or belongs to another worker.

        Waits while the server is unavailable, because only this worker has the result. A job that a sweep took from
        its worker is requeued instead, because the process that swept may have died. That does not wait: see `retry`.
        """
        if status is Status.ABORTED and kwargs.get("error") == self.swept_error_message and job.retryable:
            await self.retry(job, self.swept_error_message)
            return
        if "connection" in kwargs:  # the caller read the job on that connection, in the same transaction
            await super().finish(job, status, **kwargs)  # type: ignore[arg-type]  # passed on unchanged
            return

        async def finish() -> None:
            stored = await self.stored(job)
            if stored is not None and stored.worker_id == job.worker_id:
                await super(ResilientQueue, self).finish(job, status, **kwargs)  # type: ignore[arg-type]  # passed on unchanged

        await self._repeated(finish)

    async def retry(self, job: Job, error: str | None) -> None:
        """Requeue a job, unless it is lost, was aborted, has ended, is queued or belongs to another worker.

        Does not wait for an unavailable server, because this worker may be stopping: another worker sweeps the job.
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
        except self.unavailable_errors as failure:
            self.warn(failure)

    async def abort(self, job: Job, error: str, ttl: float = 5) -> None:
        """Ask the worker of a job to stop it. A sweep ends a job that was aborted before its worker died."""
        if sweeping.get() and self._is_aborted(job):
            await self.finish(job, Status.ABORTED, error=job.error)
        else:
            await self.mark_aborting(job, error, ttl)

    async def mark_aborting(self, job: Job, error: str, ttl: float) -> None:
        """Store that the worker of a job must stop it, with the reason `error`."""
        await super().abort(job, error, ttl)  # type: ignore[safe-super]  # a concrete queue implements it

    def _is_aborted(self, job: Job) -> bool:
        """Return whether somebody aborted the job, and its worker has not ended it yet."""
        return job.status is Status.ABORTING and job.error != self.swept_error_message

    async def _repeated(self, step: Callable[[], Awaitable[T]]) -> T:
        """Run a step that is safe to repeat. Repeat it while the server is unavailable."""
        while True:
            try:
                return await step()
            except self.unavailable_errors as error:
                self.warn(error)
            await asyncio.sleep(real_seconds(_PAUSE))

    def is_active_here(self, job: Job, stored: Job | None) -> bool:
        """Return whether the stored job is the same job, is active, and belongs to the same worker."""
        if stored is None or stored.meta != job.meta or stored.worker_id != job.worker_id:
            return False
        return stored.status is Status.ACTIVE

    async def sweep(self, lock: int = 60, abort: float = _ABORT_WITHIN) -> list[str]:
        """Take the jobs of dead workers from them."""
        lock, before = max(1, int(lock / real_seconds(1.0))), sweeping.set(True)
        try:
            await self._set_clock()
            return await super().sweep(lock, real_seconds(abort))  # type: ignore[safe-super]  # as above
        except self.unavailable_errors as error:
            self.warn(error)
            return []
        finally:
            sweeping.reset(before)


def real_seconds(seconds: float) -> float:
    """Convert real seconds to seconds of the running event loop's clock."""
    return seconds * loop_speed(asyncio.get_running_loop())
