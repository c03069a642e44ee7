"""A queue of customers and its workers, on SAQ with Redis or PostgreSQL; needs the extra `saq`.

    # worker.py; start any number of workers with SAQ's command: saq worker.settings
    settings = worker_settings(
        "redis://localhost",
        session=lambda: asyncmig.Session(shared=RedisWindow("redis://localhost")),
        journal=lambda: PostgresJournal("postgresql://localhost/migrations"),
    )

    # in any process
    async with MigrationQueue("redis://localhost", journal="postgresql://localhost/migrations") as queue:
        async for outcome in queue.run(specs):
            ...
        status = await queue.status("acme-001")

Each customer is one job. The job's key contains the customer's external id, so a customer has at most one job at a
time. A job has no time-out. Its worker sends heartbeats, and its result is the outcome. A parked run ends its job,
and `decide` starts a new one.

A stopping worker lets its requests in flight end and requeues its jobs. The sweep of the other workers takes over the
jobs of a dead worker. Each worker continues from the journal. Input files must exist where the workers run.
"""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self, Unpack, cast, final
from uuid import uuid4

import anyio
import msgspec
from saq.job import TERMINAL_STATUSES, Job, Status

from asyncmig import generations
from asyncmig._core.arguments import checked_call
from asyncmig.customers.decisions import Decision
from asyncmig.customers.options import MigrationOptions, OptionOverrides, overrides
from asyncmig.customers.outcome import Outcome, Parked, Reviewed
from asyncmig.customers.spec import Connections, LiveSource, Spec, check_different, each_spec, failed
from asyncmig.distributed._environment import read_environment
from asyncmig.distributed._job_runner import RECHECK, JobRunner
from asyncmig.distributed._resilient_queue import open_queue, real_seconds
from asyncmig.errors import CustomerHeld, InvalidInput, UsageError
from asyncmig.jobs.customers import CustomerMethods, parked_as_shown
from asyncmig.jobs.instructions import KnownCustomer, Work, read_known_of
from asyncmig.jobs.migrate import pending
from asyncmig.jobs.runners import decision_for
from asyncmig.journal import DatabaseJournal, Instruction, JournalPort, open_journal
from asyncmig.session import Session

__all__ = ["MigrationQueue", "OptionOverrides", "settings", "worker_settings"]


_FUNCTION = "asyncmig.migrate"
_NAME = "asyncmig"
_ATTEMPTS = 1000
"""How often a job may lose its worker. The retry policy and the journal limit the requests of a migration."""
_KEPT = 7 * 24 * 3600
"""Seconds for which a result is kept."""
_DRAIN = 30.0
"""Seconds that a stopping worker gives its requests in flight."""


@checked_call
def worker_settings(
    queue: str,
    *,
    session: Callable[[], Session],
    journal: Callable[[], AbstractAsyncContextManager[JournalPort]],
    to: Path | str = "out",
    api: str = generations.DEFAULT,
    options: MigrationOptions | None = None,
    connections: Callable[[str], Connections | LiveSource | None] | None = None,
    concurrency: int = 100,
    name: str = _NAME,
    sweep: int = 20,
) -> dict[str, object]:
    """Return the settings of a worker for SAQ's command, `saq MODULE.NAME`.

    `queue`: the URL of a Redis or PostgreSQL. `session` and `journal` are called once in each worker. Sheets are
    written to `to/EXTERNAL_ID/SHEET.csv`. `api`: the API generation of jobs that do not name one. `options`: the
    default options of all customers. `connections` returns a customer's secrets by its external id, because the queue
    does not store them: what `Spec.connections` or `Spec.connection` takes. `concurrency`: customers at the same time
    in one worker; on Redis each uses a connection. `name`: the name of the queue. `sweep`: seconds between searches
    for jobs of dead workers.
    """
    options = options or MigrationOptions()
    generations.check_options(generations.find(api), options)
    work = JobRunner(session, journal, Path(to), api, options, connections)
    return {
        "queue": open_queue(queue, name),
        "functions": [(_FUNCTION, work.migrate)],
        "concurrency": concurrency,
        "startup": work.start,
        "shutdown": work.stop,
        "timers": {"schedule": 1, "worker_info": 10, "sweep": sweep, "abort": 1},
        "dequeue_timeout": 5.0,
        "cancellation_hard_deadline_s": _DRAIN,
    }


def settings() -> dict[str, object]:
    """Return settings from the environment, for `saq asyncmig.distributed.saq.settings`.

    - `ASYNCMIG_QUEUE`: the URL of a Redis or PostgreSQL.
    - `ASYNCMIG_DATABASE`: the journal: the address of a PostgreSQL, or a file if all workers run on one machine.
    - `ASYNCMIG_WINDOW`: the URL of a Redis. Without it, the processes do not share the rate limit.
    - `ASYNCMIG_CONCURRENCY` (default 100) and `ASYNCMIG_API` (default `companies`): see `worker_settings`.
    - `ASYNCMIG_RATE`, `ASYNCMIG_SCOPE`, `ASYNCMIG_BASE_URL`, `ASYNCMIG_OUT`: as for `asyncmig run`. A job cannot
      override them.
    - `ASYNCMIG_DECIDE`, `ASYNCMIG_ANSWERS`, `ASYNCMIG_CANCEL_BLOCKED_AFTER`, `ASYNCMIG_FILTER`, `ASYNCMIG_RETRIES`,
      `ASYNCMIG_DELIVER_REJECTED`, `ASYNCMIG_IF_CHANGED`: as for `asyncmig run`. A job can override them.
    - `ASYNCMIG_ROOT`: a folder that all input files must lie below, after symbolic links are resolved. Set it: a job
      names the paths that its worker reads.

    Any other `ASYNCMIG_...` variable logs a warning. Raises `InvalidInput`.
    """
    worker = read_environment()
    return worker_settings(
        worker.queue,
        session=worker.session,
        journal=worker.journal,
        to=worker.out,
        api=worker.api,
        options=worker.options,
        concurrency=worker.concurrency,
    )


@final
class MigrationQueue(CustomerMethods):
    """Submits customers to the workers, returns their outcomes, and sends decisions. Use it as `async with`.

    Entering raises `QueueUnavailable` if the server cannot be used. If the server becomes unavailable later, `run`
    waits for it. `submit`, `retry`, `decide`, `cancel` and `abort` raise `QueueUnavailable`, at the latest after 20 s
    without an answer; such a call may have taken effect and can safely be repeated.

    `journal`: the journal of the workers, open or as its place (see `open_journal`). The methods that read it raise
    `UsageError` without it.

    `api`: the API generation of the jobs. `heartbeat`: seconds without a heartbeat after which a job's worker counts
    as dead. `root`: a folder that all input files must lie below, after symbolic links are resolved; workers have a
    setting of their own (`MigrationOptions.root`).

    The queue is trusted: everyone who can write to it decides which files the workers read and how questions are
    answered.
    """

    __slots__ = ("_generation", "_heartbeat", "_journal", "_open", "_own_journal", "_queue", "_root")

    @checked_call
    def __init__(
        self,
        url: str,
        *,
        name: str = _NAME,
        heartbeat: int = 30,
        root: Path | str | None = None,
        api: str = generations.DEFAULT,
        journal: JournalPort | Path | str | None = None,
    ) -> None:
        if heartbeat < 1:
            raise InvalidInput("heartbeat", heartbeat, "must be at least 1 second")
        self._open, self._heartbeat = partial(open_queue, url, name), heartbeat
        self._generation = generations.find(api)
        self._queue, self._root = self._open(), root
        self._own_journal: DatabaseJournal | None = None
        if isinstance(journal, str | Path):
            journal = self._own_journal = open_journal(journal)
        self._journal: JournalPort | None = journal

    async def __aenter__(self) -> Self:
        try:
            await self._queue.connect_once()
            if self._own_journal is not None:
                await self._own_journal.__aenter__()
        except BaseException:
            failed, self._queue = self._queue, self._open()
            with anyio.CancelScope(shield=True):
                await failed.abandon()
            raise
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        try:
            await self._queue.disconnect()
        finally:
            if self._own_journal is not None:
                await self._own_journal.__aexit__(None, None, None)

    async def submit(
        self, spec: Spec, *, options: MigrationOptions | None = None, **keywords: Unpack[OptionOverrides]
    ) -> bool:
        """Submit a customer. Return False if it has an unfinished job.

        `options`: a `MigrationOptions`, whose fields that differ from their defaults override the workers' options.
        `keywords`: fields of it, which override the workers' options with any value and take precedence.

        Raises `InvalidInput` for a wrong spec, for wrong options, and for a function that decides, which a queue
        cannot store; `QueueUnavailable`.
        """
        asked = self._overrides(options, keywords)
        spec, refused = generations.check_spec(self._generation, spec)
        if refused is not None:
            raise refused
        spec.validate(root=self._root)
        _check_no_secret(spec)
        return await self._instruct_and_enqueue(
            spec, Work.of(spec, self._generation.name).wanted("run"), asked
        )

    @checked_call
    async def retry(
        self,
        external_id: str,
        *,
        options: MigrationOptions | None = None,
        **keywords: Unpack[OptionOverrides],
    ) -> bool:
        """Continue a customer, or start again what failed, with what the journal has of it.

        Return False if the customer has an unfinished job. `options` and `keywords`: see `submit`. Raises
        `CustomerNotFound`, `InvalidInput`, `JournalError` and `QueueUnavailable`.
        """
        asked = self._overrides(options, {**keywords, "retry_failed": True})
        known = await self._known(external_id)
        return await self._instruct_and_enqueue(known.spec(), known.again().wanted("retry"), asked)

    @checked_call
    async def decide(
        self,
        external_id: str,
        decision: Decision,
        *,
        shown: Parked | str | None = None,
        options: MigrationOptions | None = None,
        **keywords: Unpack[OptionOverrides],
    ) -> Reviewed:
        """Give a decision about a parked customer to a new job, which sends it and continues.

        `shown`: the questions that the person saw, or their digest (`digest_of`); without it, those in the journal.
        Returns `recorded`, or `changed` if the customer asks something else by now. While the customer has an
        unfinished job, the decision waits for its end. `options` and `keywords`: see `submit`. If the run asks other
        questions than the journal, the customer stays parked.

        Raises `InvalidInput` for a customer that asks nothing, for a decision that the API generation lacks, for
        answers that were not offered, and for credentials, which a queue must not store; `CustomerNotFound`,
        `JournalError`, `QueueUnavailable`.
        """
        asked = self._overrides(options, keywords)
        while True:
            known = await self._known(external_id)
            parked = await parked_as_shown(self._opened_journal(), known, shown)
            if parked is None:
                return "changed"
            answer, spec = decision_for(parked, decision, api=self._generation.name), known.spec()
            await self._opened_journal().instruct(external_id, known.work.wanted("run"))
            if await self._queue.attempt(partial(self._enqueue, spec, asked, **answer)):
                return "recorded"
            await asyncio.sleep(real_seconds(RECHECK))

    @checked_call
    async def cancel(self, external_id: str, *, reject_parked: bool = False) -> Outcome:
        """Stop a customer's job, and return the outcome of the customer.

        That is `Pending` with the reason `canceled`, unless the customer has ended before. A worker records it;
        `reject_parked`: whether it rejects a parked run. Waits until a worker has time. The run of a generation that
        cannot cancel runs continues at the server. `submit` and `retry` continue the customer.

        Raises `CustomerNotFound`, `InvalidInput`, `JournalError` and `QueueUnavailable`.
        """
        known = await self._known(external_id)
        work, spec = msgspec.structs.replace(known.work, reject_parked=reject_parked), known.spec()
        await self._opened_journal().instruct(external_id, work.wanted("cancel"))
        await self.abort(external_id)
        is_enqueued = False
        while True:
            if not is_enqueued:  # once the worker has ended the aborted job
                is_enqueued = await self._queue.attempt(lambda: self._enqueue(spec, {}, cancel=True))
            job = await self._queue.attempt(lambda: self._queue.job(self._key(external_id)))
            if job is None or self._is_between(job):
                is_enqueued = False
            elif is_enqueued and job.status in TERMINAL_STATUSES:
                return _outcome(spec, job)
            await asyncio.sleep(real_seconds(RECHECK))

    async def _instruct_and_enqueue(
        self, spec: Spec, instruction: Instruction, asked: OptionOverrides
    ) -> bool:
        """Record an instruction and enqueue its job; withdraw it if the customer has an unfinished job."""
        if self._journal is None:
            return await self._queue.attempt(lambda: self._enqueue(spec, asked))
        await self._journal.instruct(spec.external_id, instruction)
        is_enqueued = await self._queue.attempt(lambda: self._enqueue(spec, asked))
        if not is_enqueued:
            await self._journal.delete_instruction(spec.external_id, instruction)
        return is_enqueued

    async def _known(self, external_id: str) -> KnownCustomer:
        """Return what the journal has of a customer of this API generation."""
        return await read_known_of(self._generation, self._opened_journal(), external_id)

    def _opened_journal(self) -> JournalPort:
        if self._journal is None:
            reason = "was made without the journal of the workers: MigrationQueue(url, journal=...)"
            raise UsageError(f"this MigrationQueue {reason}")
        return self._journal

    async def _check_idle(self, external_id: str) -> None:
        job = await self._queue.attempt(lambda: self._queue.job(self._key(external_id)))
        if job is not None and job.status not in TERMINAL_STATUSES:
            raise CustomerHeld("the queue", external_id, "an unfinished job")

    @checked_call
    async def abort(self, external_id: str) -> None:
        """Stop a customer's job. A customer that is submitted again continues from the journal.

        Raises `QueueUnavailable`.
        """

        async def abort() -> None:
            job = await self._queue.job(self._key(external_id))
            if job is not None and job.status not in TERMINAL_STATUSES:
                await self._queue.abort(job, "aborted")

        await self._queue.attempt(abort)

    async def run(
        self,
        specs: Iterable[Spec] | AsyncIterable[Spec],
        *,
        options: MigrationOptions | None = None,
        **keywords: Unpack[OptionOverrides],
    ) -> AsyncIterator[Outcome]:
        """Submit all `specs` and yield the outcomes as the jobs end. If cancelled, the jobs continue.

        `options` and `keywords`: see `submit`. Invalid values of a spec become its `Failed` outcome. Raises
        `InvalidInput` for options like `submit`, for a spec with secrets, and for two specs with the same external
        id.
        """
        asked = self._overrides(options, keywords)
        given = [
            generations.check_spec(self._generation, each, self._root) async for each in each_spec(specs)
        ]
        good = [spec for spec, refused in given if refused is None]
        check_different(good)
        waiting = {spec.external_id: spec for spec in good}
        for spec in waiting.values():
            _check_no_secret(spec)
        for spec, refused in given:
            if refused is not None:
                yield failed(spec, refused)
        missing = set(waiting)
        while waiting:
            try:
                for external_id in sorted(missing, key=list(waiting).index):
                    await self._enqueue(waiting[external_id], asked)
                    missing.discard(external_id)
                await asyncio.sleep(real_seconds(RECHECK))
                found = await self._queue.jobs([self._key(external_id) for external_id in waiting])
                jobs = dict(zip(waiting, found, strict=True))
            except self._queue.away as error:
                self._queue.warn(error)
                await asyncio.sleep(real_seconds(RECHECK))
                continue
            for external_id, job in jobs.items():
                if job is None or self._is_between(job):
                    missing.add(external_id)
                elif job.status in TERMINAL_STATUSES:
                    yield _outcome(waiting.pop(external_id), job)

    def _key(self, external_id: str) -> str:
        """Return the job's key.

        It contains the queue's name, because all queues of a PostgreSQL table share the keys.
        """
        return f"{self._queue.name}/{external_id}"

    def _is_between(self, job: Job) -> bool:
        """Return whether a job was taken from a dead worker but not yet queued again."""
        if job.status is Status.COMPLETE:
            return job.result is None  # a late heartbeat of the earlier worker can overwrite the job
        return self._queue.was_swept(job)

    def _overrides(self, options: MigrationOptions | None, keywords: OptionOverrides) -> OptionOverrides:
        asked = overrides(options, keywords)
        generations.check_options(self._generation, MigrationOptions(**asked))
        return asked

    async def _enqueue(self, spec: Spec, asked: OptionOverrides, **more: object) -> bool:
        _check_no_secret(spec)
        job = await self._queue.enqueue(
            _FUNCTION,
            key=self._key(spec.external_id),
            timeout=0,  # SAQ's default is 10 s
            heartbeat=self._heartbeat,
            retries=_ATTEMPTS,
            ttl=_KEPT,
            # Distinguishes the job from a later one with the same key, if the queue loses this one.
            meta={"id": uuid4().hex},
            spec=msgspec.to_builtins(spec, enc_hook=str),
            asked=msgspec.to_builtins(dict(asked)),
            api=self._generation.name,
            **more,
        )
        return job is not None


def _outcome(spec: Spec, job: Job) -> Outcome:
    if job.status is Status.COMPLETE:
        return cast(Outcome, msgspec.convert(job.result, Outcome, strict=False))
    reason = (job.error or "").strip().splitlines()
    text = f"its job was {job.status.value}: {reason[-1] if reason else 'no reason is known'}"
    return pending(spec, text, "canceled" if job.status is Status.ABORTED else "crashed")


def _check_no_secret(spec: Spec) -> None:
    why = "has secrets, which a queue must not store: pass `connections=` to the workers"
    if spec.connections is not None:
        raise InvalidInput("connections", "***", why)
    if spec.connection is not None:
        raise InvalidInput("connection", spec.connection.source_key, why)
