"""A worker: its settings for SAQ, and what it does with a job.

A worker has one session and one journal for all jobs. For each job it migrates a customer, and sends heartbeats until
it has finished. If another worker holds the customer, the job waits for that worker. If the queue has lost the job,
it stops.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypedDict, cast, final

import msgspec
from saq.job import Job, Status
from saq.types import Context
from saq.worker import Worker

from asyncmig import generations
from asyncmig._core.arguments import checked_call
from asyncmig._io.threads import in_thread
from asyncmig.customers.decisions import Decision
from asyncmig.customers.files import customer_folder
from asyncmig.customers.options import MigrationCall, MigrationOptions, OptionOverrides
from asyncmig.customers.paths import Inputs, same_folder
from asyncmig.customers.spec import Connections, LiveSource, Spec, failed
from asyncmig.distributed._open_queue import open_queue
from asyncmig.distributed._resilient_queue import RareWarnings, ResilientQueue, real_seconds
from asyncmig.errors import CustomerHeld, InvalidInput, JournalError, JournalUnavailable, SessionClosed
from asyncmig.events import Event, MigrationChanged
from asyncmig.generations import Generation
from asyncmig.jobs.customers import cancel_when_free
from asyncmig.jobs.instructions import fulfil, take_up
from asyncmig.jobs.migrate import migrate_claimed
from asyncmig.jobs.runners import with_decision
from asyncmig.journal import Instruction, JournalPort
from asyncmig.session import Session, context_of
from asyncmig.steps import OutcomeName, Step

__all__ = ["FUNCTION", "QUEUE_NAME", "RECHECK", "JobRunner", "worker_settings"]

_log = logging.getLogger("asyncmig")
JsonObject = Mapping[str, object]
_REPORT_AFTER = 30.0
"""Real seconds after which a warning reports a journal that is still being opened."""
RECHECK = 0.5
"""Real seconds between checks of jobs, and of a customer that another process holds."""
FUNCTION = "asyncmig.migrate"
"""The function that jobs call, by the name that SAQ stores."""
QUEUE_NAME = "asyncmig"
_DRAIN = 30.0
"""Seconds that a stopping worker gives its requests in flight."""


class _JobContext(TypedDict):
    worker: Worker[Context]
    job: Job


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
    name: str = QUEUE_NAME,
    sweep: int = 20,
) -> dict[str, object]:
    """Return the settings of a worker for SAQ's command, `saq MODULE.NAME`.

    - `queue`: the URL of a Redis or PostgreSQL. `name`: the name of the queue.
    - `session`, `journal`: functions that are called once in each worker.
    - `to`: the folder of the sheets, `to/EXTERNAL_ID/SHEET.csv`.
    - `api`: the API generation of jobs that do not name one.
    - `options`: the default options of all customers.
    - `connections`: returns a customer's secrets by its external id, as `Spec.connections` or `Spec.connection` takes
      them. The queue does not store secrets.
    - `concurrency`: the most customers at the same time in one worker. On Redis, each of them uses a connection.
    - `sweep`: seconds between searches for jobs of dead workers.

    Raises `InvalidInput`.
    """
    options = options or MigrationOptions()
    generations.check_options(generations.find(api), options)
    work = JobRunner(session, journal, Path(to), api, options, connections)
    return {
        "queue": open_queue(queue, name),
        "functions": [(FUNCTION, work.migrate)],
        "concurrency": concurrency,
        "startup": work.start,
        "shutdown": work.stop,
        "timers": {"schedule": 1, "worker_info": 10, "sweep": sweep, "abort": 1},
        "dequeue_timeout": 5.0,
        "cancellation_hard_deadline_s": _DRAIN,
    }


@final
@dataclass(slots=True, eq=False, repr=False)  # the functions may contain an address with a password
class JobRunner:
    """The session and the journal of a worker, and the function that SAQ calls for each job."""

    open_session: Callable[[], Session]
    open_journal: Callable[[], AbstractAsyncContextManager[JournalPort]]
    to: Path
    api: str
    options: MigrationOptions
    connections: Callable[[str], Connections | LiveSource | None] | None
    _session: Session = field(init=False)
    _journal: JournalPort = field(init=False)
    _exits: AsyncExitStack = field(init=False, default_factory=AsyncExitStack)
    _inputs: Inputs = field(init=False, default_factory=Inputs)
    _warnings: RareWarnings = field(init=False, default_factory=RareWarnings)
    _steps: dict[str, Step | OutcomeName] = field(init=False, default_factory=dict[str, Step | OutcomeName])
    """The current step of each customer, by external id."""

    async def start(self, context: _JobContext) -> None:
        """Open the journal and the session. Wait while the journal is unavailable, until the worker is stopped."""
        opening = asyncio.ensure_future(self._open())
        stopped = asyncio.ensure_future(context["worker"].event.wait())
        pause = real_seconds(_REPORT_AFTER)
        try:
            while not (
                await asyncio.wait([opening, stopped], timeout=pause, return_when=asyncio.FIRST_COMPLETED)
            )[0]:
                self._warnings.log("the journal cannot be opened yet; waiting for it")
        finally:
            opening.cancel()
            stopped.cancel()
            await asyncio.wait([opening, stopped])
        if not opening.cancelled():
            opening.result()

    async def _open(self) -> None:
        async with AsyncExitStack() as exits:
            while True:
                try:
                    self._journal = await exits.enter_async_context(self.open_journal())
                    break
                except JournalUnavailable as error:
                    self._warnings.log(f"{error}; waiting for it")
                await asyncio.sleep(real_seconds(RECHECK))
            self._session = await exits.enter_async_context(self.open_session())
            exits.enter_context(self._session.events.subscribe(self._note_step))
            self._exits = exits.pop_all()

    async def stop(self, context: _JobContext) -> None:
        """Close the session and the journal."""
        await self._exits.aclose()

    async def migrate(
        self,
        context: _JobContext,
        *,
        spec: JsonObject,
        asked: OptionOverrides | None = None,
        decision: JsonObject | None = None,
        shown: str = "",
        api: str | None = None,
        cancel: bool = False,
    ) -> object:
        """Migrate a customer, or carry out the instruction to cancel it. Return the outcome as JSON types.

        If the job is aborted, the migration is cancelled. If the worker stops, it closes the session, and requests in
        flight end normally.
        """
        worker, job = context["worker"], context["job"]
        answer = None if decision is None else msgspec.convert(decision, Decision)
        wanted = replace(self.options, **(asked or {}))
        if job.attempts > 1:  # a worker that has died may have retried it already
            wanted = replace(wanted, retry_failed=False)
        if answer is not None:
            wanted = with_decision(wanted, answer, shown)
        customer = msgspec.convert(spec, Spec, dec_hook=_path)
        if self.connections is not None:
            secrets = self.connections(customer.external_id)
            field = "connection" if isinstance(secrets, LiveSource) else "connections"
            customer = msgspec.structs.replace(customer, **{field: secrets})
        generation = generations.find(api or self.api)
        work = asyncio.ensure_future(self._with_heartbeat(job, customer, wanted, generation, cancel=cancel))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            if worker.event.is_set():  # the worker stops
                self._session.close(SessionClosed("the worker stops: another worker continues"))
            else:
                work.cancel()
            try:
                await asyncio.wait([work])
            finally:
                work.cancel()
            raise

    async def _with_heartbeat(
        self, job: Job, spec: Spec, options: MigrationOptions, generation: Generation, *, cancel: bool
    ) -> object:
        """Migrate the customer, and send heartbeats until that has ended.

        If the queue has lost the job, stop and return None: the submitter will enqueue another job.
        """
        done = asyncio.Event()
        work = asyncio.ensure_future(self._work(job, spec, options, generation, cancel=cancel))

        def stop() -> bool:
            """Stop, unless the create request is in flight: without its answer, the outcome would be unknown."""
            return self._steps.get(spec.external_id) != "creating" and work.cancel()

        heartbeat = asyncio.ensure_future(_heartbeat(job, done, on_lost=stop))
        try:
            return await work
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            return None
        finally:
            done.set()
            self._steps.pop(spec.external_id, None)
            await asyncio.wait([heartbeat])  # a late heartbeat would overwrite the result of the job

    def _note_step(self, event: Event) -> None:
        if isinstance(event, MigrationChanged):
            self._steps[event.external_id] = event.step

    async def _work(
        self, job: Job, spec: Spec, options: MigrationOptions, generation: Generation, *, cancel: bool
    ) -> object:
        """Migrate the customer, or carry out the instruction to cancel it.

        Wait while the journal is unavailable, or while another worker holds the customer.
        """
        to = customer_folder(self.to, spec.external_id)
        if not cancel and (other := await in_thread(same_folder, to)):
            reason = f"has the same folder as another customer on this file system: {other}"
            return msgspec.to_builtins(failed(spec, InvalidInput("external_id", spec.external_id, reason)))
        context, journal = context_of(self._session), self._journal
        call = MigrationCall(spec=spec, to=to, options=options, inputs=self._inputs)
        instruction: Instruction | None = None
        while True:
            try:
                if cancel:
                    return msgspec.to_builtins(await cancel_when_free(context, journal, spec.external_id))
                instruction = instruction or await take_up(journal, spec.external_id)
                outcome = await migrate_claimed(generation, context, journal, call)
                await fulfil(journal, spec.external_id, instruction, outcome)
                return msgspec.to_builtins(outcome)
            except CustomerHeld as error:
                _log.debug("%s: %s", spec.external_id, error)
                if (result := await _result_of_another(job)) is not None:
                    return result
            except JournalError as error:
                self._warnings.log(f"{error}; {spec.external_id} waits for it", about=str(error))
            await asyncio.sleep(real_seconds(RECHECK))


async def _result_of_another(job: Job) -> object:
    """Return the result of the job if another worker has written it; otherwise None."""
    queue = cast("ResilientQueue", job.get_queue())
    try:
        stored = await queue.stored(job)
    except queue.unavailable_errors:
        return None  # the heartbeat logs a warning
    return stored.result if stored is not None and stored.status is Status.COMPLETE else None


async def _heartbeat(job: Job, done: asyncio.Event, *, on_lost: Callable[[], bool]) -> None:
    """Send heartbeats until `done` is set; see `ResilientQueue.touch`.

    `on_lost` is called if the queue has lost the job. It stops the job's task, or returns False if the task must not
    stop yet.
    """
    queue = cast("ResilientQueue", job.get_queue())
    while True:
        with suppress(TimeoutError):
            async with asyncio.timeout(real_seconds(job.heartbeat / 3)):
                await done.wait()
                return
        try:
            stored = await queue.stored(job)
            if stored is None:
                if on_lost():
                    _log.warning("the queue has lost %s: its task stops", job.key)
                    return
                continue
            await queue.touch(job)
        except queue.unavailable_errors as error:
            queue.warn(error)


def _path(kind: type, value: object) -> object:
    if kind is Path:
        return Path(str(value))
    raise NotImplementedError(kind)
