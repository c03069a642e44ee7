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
time. A job has no time-out. Its worker sends heartbeats, and its result is the outcome. When a run is parked, the job
ends; `decide` starts a new one.

A worker that stops waits for its requests in flight, and requeues its jobs. Other workers take over the jobs of a
dead worker. Each worker continues from the journal. Input files must exist on the machines of the workers.
"""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Iterable
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
from asyncmig.customers.spec import Spec, check_different, each_spec, failed
from asyncmig.distributed._environment import settings
from asyncmig.distributed._job_runner import FUNCTION, QUEUE_NAME, RECHECK, worker_settings
from asyncmig.distributed._open_queue import open_queue
from asyncmig.distributed._resilient_queue import real_seconds
from asyncmig.errors import CustomerHeld, InvalidInput, UsageError
from asyncmig.jobs.customers import CustomerMethods, parked_as_shown
from asyncmig.jobs.instructions import KnownCustomer, Work, read_known_of
from asyncmig.jobs.migrate import check_unchanged, pending
from asyncmig.jobs.runners import decision_for
from asyncmig.journal import DatabaseJournal, Instruction, JournalPort, open_journal

__all__ = ["MigrationQueue", "OptionOverrides", "settings", "worker_settings"]


_ATTEMPTS = 1000
"""How often a job may lose its worker. This does not limit the requests: the retry policy and the journal do."""
_KEPT = 7 * 24 * 3600
"""Seconds for which a result is kept."""


@final
class MigrationQueue(CustomerMethods):
    """Submits customers to the workers, returns their outcomes, and passes on decisions. Use it as `async with`.

    Entering raises `QueueUnavailable` if the queue's server cannot be used. If the server becomes unavailable later,
    `run` waits for it. `submit`, `retry`, `decide`, `cancel` and `abort` raise `QueueUnavailable` after at most 20 s
    without an answer. Such a call may have taken effect, and can safely be repeated.

    `journal`: the journal of the workers: an open one, or its place (see `open_journal`). Without it, the methods
    that need it raise `UsageError`.

    `api`: the API generation of the jobs. `heartbeat`: seconds without a heartbeat after which a job's worker counts
    as dead. `root`: a folder that must contain all input files, after symbolic links are resolved; workers have their
    own setting (`MigrationOptions.root`).

    The queue is trusted: anyone who can write to it decides which files the workers read and how questions are
    answered.
    """

    __slots__ = ("_generation", "_heartbeat", "_journal", "_open", "_own_journal", "_queue", "_root")

    @checked_call
    def __init__(
        self,
        url: str,
        *,
        name: str = QUEUE_NAME,
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

        `options`: its fields that differ from their defaults override the workers' options. `keywords`: single fields
        of `MigrationOptions`; they override the workers' options with any value, and take precedence over `options`.

        Raises `InvalidInput` for a wrong spec, for wrong options, for changed files that the given option
        `if_changed="refuse"` refuses, and for a function as `decide`, which a queue cannot store; `QueueUnavailable`.
        """
        asked = self._overrides(options, keywords)
        spec, refused = generations.check_spec(self._generation, spec)
        if refused is not None:
            raise refused
        spec.validate(root=self._root)
        _check_no_secret(spec)
        if asked.get("if_changed") == "refuse":
            await check_unchanged(self._generation, spec, self._opened_journal())
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
        """Continue a customer, or retry what failed, with the spec and the options in the journal.

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
        """Create a job for a parked customer, which sends a decision and continues the migration.

        `shown`: the questions that the person saw, or their digest (`digest_of`); by default those in the journal.
        Returns `recorded`, or `changed` if the customer's questions are others now. While the customer has an
        unfinished job, this waits for its end. `options` and `keywords`: see `submit`. If the run asks other
        questions than the journal has, the customer stays parked.

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

        The outcome is `Pending` with the reason `canceled`, unless the migration had ended before. A worker records
        it, so this waits until a worker has time. `reject_parked`: whether the worker rejects a parked run. In an API
        generation that cannot cancel runs, the run continues at the server. `submit` and `retry` continue the
        customer.

        Raises `CustomerNotFound`, `InvalidInput`, `JournalError` and `QueueUnavailable`.
        """
        known = await self._known(external_id)
        work, spec = msgspec.structs.replace(known.work, reject_parked=reject_parked), known.spec()
        await self._opened_journal().instruct(external_id, work.wanted("cancel"))
        await self.abort(external_id)
        is_enqueued = False
        while True:
            if not is_enqueued:  # not possible before the worker has ended the aborted job
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
        """Record an instruction and enqueue its job. If the customer has an unfinished job, delete the
        instruction."""
        if self._journal is None:
            return await self._queue.attempt(lambda: self._enqueue(spec, asked))
        await self._journal.instruct(spec.external_id, instruction)
        is_enqueued = await self._queue.attempt(lambda: self._enqueue(spec, asked))
        if not is_enqueued:
            await self._journal.delete_instruction(spec.external_id, instruction)
        return is_enqueued

    async def _known(self, external_id: str) -> KnownCustomer:
        """Return the customer as the journal has it. Raises `CustomerNotFound`, and `InvalidInput` for another
        generation."""
        return await read_known_of(self._generation, self._opened_journal(), external_id)

    def _opened_journal(self) -> JournalPort:
        if self._journal is None:
            raise UsageError(
                "this MigrationQueue has no journal: give it that of the workers, MigrationQueue(url, journal=...)"
            )
        return self._journal

    async def _check_idle(self, external_id: str) -> None:
        job = await self._queue.attempt(lambda: self._queue.job(self._key(external_id)))
        if job is not None and job.status not in TERMINAL_STATUSES:
            raise CustomerHeld("the queue", external_id, "an unfinished job")

    @checked_call
    async def abort(self, external_id: str) -> None:
        """Stop a customer's job. If the customer is submitted again, it continues from the journal.

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
        """Submit all `specs`, and yield each outcome when its job ends. If this is cancelled, the jobs continue.

        `options` and `keywords`: see `submit`. The outcome of an invalid spec is `Failed`. Raises `InvalidInput` for
        wrong options, for a spec with secrets, and for two specs with the same external id.
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
            except self._queue.unavailable_errors as error:
                self._queue.warn(error)
                await asyncio.sleep(real_seconds(RECHECK))
                continue
            for external_id, job in jobs.items():
                if job is None or self._is_between(job):
                    missing.add(external_id)
                elif job.status in TERMINAL_STATUSES:
                    yield _outcome(waiting.pop(external_id), job)

    def _key(self, external_id: str) -> str:
        """Return the key of a customer's job. It contains the queue's name, because queues in PostgreSQL share the
        keys."""
        return f"{self._queue.name}/{external_id}"

    def _is_between(self, job: Job) -> bool:
        """Return whether a job was taken from a dead worker, and not requeued yet."""
        if job.status is Status.COMPLETE:
            return job.result is None  # a late heartbeat of the earlier worker has overwritten the job
        return self._queue.was_swept(job)

    def _overrides(self, options: MigrationOptions | None, keywords: OptionOverrides) -> OptionOverrides:
        asked = overrides(options, keywords)
        generations.check_options(self._generation, MigrationOptions(**asked))
        return asked

    async def _enqueue(self, spec: Spec, asked: OptionOverrides, **more: object) -> bool:
        _check_no_secret(spec)
        job = await self._queue.enqueue(
            FUNCTION,
            key=self._key(spec.external_id),
            timeout=0,  # SAQ's default is 10 s
            heartbeat=self._heartbeat,
            retries=_ATTEMPTS,
            ttl=_KEPT,
            # Distinguishes this job, if the queue loses it, from a later job with the same key.
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
    text = f"its job was {job.status.value}: {reason[-1] if reason else 'the reason is unknown'}"
    return pending(spec, text, "canceled" if job.status is Status.ABORTED else "crashed")


def _check_no_secret(spec: Spec) -> None:
    why = "has secrets, which a queue must not store: pass `connections=` to the workers"
    if spec.connections is not None:
        raise InvalidInput("connections", "***", why)
    if spec.connection is not None:
        raise InvalidInput("connection", spec.connection.source_key, why)
