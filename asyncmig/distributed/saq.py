"""A fleet on SAQ: a job for each customer, any number of workers, on Redis or PostgreSQL; needs the extra `saq`.

    # worker.py, started as often as you like with SAQ's own command: saq worker.settings
    settings = worker_settings(
        "redis://localhost",
        session=lambda: asyncmig.Session(shared=RedisWindow("redis://localhost")),
        journal=lambda: PostgresJournal("postgresql://localhost/migrations"),
    )

    # anywhere
    async with MigrationQueue("redis://localhost") as queue:
        async for outcome in queue.run(specs):
            ...

A job is named by the customer's external id, so that nobody is migrated twice at a time; it has no time-out, shows
by a heartbeat that its worker lives, and its result is the outcome. A parked run ends its job; `decide` begins it
again. A worker that is stopped lets requests in flight end and gives its jobs back; what one had that died is taken
over by the sweep of the others. Whoever it is goes on where the journal says. Files must be where the workers run.
"""

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self, TypedDict, Unpack, cast, final
from uuid import uuid4

import anyio
import msgspec
from saq.job import TERMINAL_STATUSES, Job, Status
from saq.types import Context
from saq.worker import Worker

from asyncmig import generations
from asyncmig._core.arguments import checked_call
from asyncmig.customers.connections import Connections
from asyncmig.customers.file_names import customer_folder
from asyncmig.customers.options import MigrationOptions, OptionOverrides
from asyncmig.customers.outcome import Decision, Outcome, Parked
from asyncmig.customers.paths import Inputs
from asyncmig.customers.spec import Spec, check_different, checked_spec, each_spec, failed
from asyncmig.distributed._environment import read_environment
from asyncmig.distributed._steady_queue import AnyQueue, RareWarnings, open_queue, real_seconds
from asyncmig.errors import CustomerHeld, InvalidInput, JournalError, JournalUnavailable, SessionClosed
from asyncmig.events import Event, MigrationChanged
from asyncmig.generations import Generation
from asyncmig.jobs.migrate import migrate_safely, pending
from asyncmig.journal import JournalPort
from asyncmig.session import Session, context_of

__all__ = ["MigrationQueue", "OptionOverrides", "settings", "worker_settings"]

_log = logging.getLogger("asyncmig")
Builtins = Mapping[str, object]

_FUNCTION = "asyncmig.migrate"
_NAME = "asyncmig"
_ATTEMPTS = 1000
"""How often a job may lose its worker; what the customer's migration may cost is limited elsewhere."""
_KEPT = 7 * 24 * 3600
"""Seconds for which a result is kept."""
_DRAIN = 30.0
"""Seconds that requests in flight have to end in when a worker is stopped."""
_SLOW = 30.0
"""Real seconds after which a journal that is still being opened is reported."""
_LOOK_AGAIN = 0.5
"""Real seconds between looks at jobs, or at a customer that somebody else holds."""


@checked_call
def worker_settings(
    queue: str,
    *,
    session: Callable[[], Session],
    journal: Callable[[], AbstractAsyncContextManager[JournalPort]],
    to: Path | str = "out",
    api: str = generations.DEFAULT,
    options: MigrationOptions | None = None,
    connections: Callable[[str], Connections | None] | None = None,
    concurrency: int = 100,
    name: str = _NAME,
    sweep: int = 20,
) -> dict[str, object]:
    """Return the settings of a worker for SAQ's command, `saq MODULE.NAME`.

    `queue`: the URL of a Redis or PostgreSQL. `session` and `journal` are called once in each worker. Sheets come to
    `to/EXTERNAL_ID/SHEET.csv`. `api`: the API generation of jobs that name none.
    `options`: how all customers are migrated, by default `MigrationOptions()`.
    `connections` returns the secrets of a customer's destination, by its external id: no queue holds them.
    `concurrency`: customers at once in one worker; on Redis each is a connection. `sweep`: seconds between looks for
    jobs whose worker died.
    """
    options = options or MigrationOptions()
    generations.check_options(generations.find(api), options)
    work = _Work(session, journal, Path(to), api, options, connections)
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

    `ASYNCMIG_QUEUE`: URL of Redis or PostgreSQL. `ASYNCMIG_DATABASE`: where the journal is, a URL of PostgreSQL, or a
    file for workers of one machine. `ASYNCMIG_WINDOW`: URL of Redis; without it the limit is not shared.
    `ASYNCMIG_CONCURRENCY` (100) and `ASYNCMIG_API` (companies) as above. As for `asyncmig run`: `ASYNCMIG_RATE`,
    `ASYNCMIG_SCOPE`, `ASYNCMIG_BASE_URL` and `ASYNCMIG_OUT`, which a job cannot choose; `ASYNCMIG_DECIDE`,
    `ASYNCMIG_FILTER`, `ASYNCMIG_RETRIES` and `ASYNCMIG_DELIVER_REJECTED`, where a job does not.
    `ASYNCMIG_ROOT`: a folder that all files must lie below, symbolic links followed; set it, because a job names the
    paths that its worker reads. Any other `ASYNCMIG_...` is a warning. Raises `InvalidInput`.
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
class MigrationQueue:
    """Submits customers to the workers, follows them, decides. Use it as `async with`.

    Entering raises `QueueUnavailable` if the server cannot be used; one that goes away later is waited for.

    `api`: the API generation of its jobs.
    `heartbeat`: seconds without a sign of life after which a job's worker counts as dead. `root`: a folder that all
    files must lie below, also once symbolic links are followed; workers have their own (`MigrationOptions`).
    The queue is trusted: whoever can write to it makes workers read files and answer questions.
    """

    __slots__ = ("_generation", "_heartbeat", "_open", "_queue", "_root")

    @checked_call
    def __init__(
        self,
        url: str,
        *,
        name: str = _NAME,
        heartbeat: int = 30,
        root: Path | str | None = None,
        api: str = generations.DEFAULT,
    ) -> None:
        if heartbeat < 1:
            raise InvalidInput("heartbeat", heartbeat, "must be at least 1 second")
        self._open, self._heartbeat = partial(open_queue, url, name), heartbeat
        self._generation = generations.find(api)
        self._queue, self._root = self._open(), root

    async def __aenter__(self) -> Self:
        try:
            await self._queue.connect_once()
        except BaseException:
            failed, self._queue = self._queue, self._open()
            with anyio.CancelScope(shield=True):
                await failed.abandon()
            raise
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._queue.disconnect()

    async def submit(self, spec: Spec, **asked: Unpack[OptionOverrides]) -> bool:
        """Have a customer migrated; False if that is under way already. What is not `asked` is as the workers do it.

        Raises `InvalidInput` for a wrong spec, for options that make no sense, and for a function that decides.
        """
        spec, refused = checked_spec(spec)
        if refused is not None:
            raise refused
        spec.validate(root=self._root)
        return await self._enqueue(spec, asked)

    @checked_call
    async def decide(
        self, spec: Spec, parked: Parked, decision: Decision, **asked: Unpack[OptionOverrides]
    ) -> bool:
        """Have a parked customer's questions answered; False if its migration is under way already.

        If the run asks something else by then, it stays parked.
        """
        shown = {"decision": msgspec.to_builtins(decision), "shown": _digest(parked)}
        return await self._enqueue(spec, asked, **shown)

    @checked_call
    async def abort(self, external_id: str) -> None:
        """Stop a customer's migration where it is; submitted again, it goes on."""
        job = await self._queue.job(self._key(external_id))
        if job is not None and job.status not in TERMINAL_STATUSES:
            await self._queue.abort(job, "aborted")

    async def run(
        self, specs: Iterable[Spec] | AsyncIterable[Spec], **asked: Unpack[OptionOverrides]
    ) -> AsyncIterator[Outcome]:
        """Submit all of `specs` and yield each outcome as it comes. Cancelled, the jobs go on without it.

        What is not `asked` is as the workers do it. Bad values of a spec are its `Failed` outcome. Raises
        `InvalidInput` for options as `submit` does, for a spec with connections, and for two specs of one external
        id.
        """
        given = [checked_spec(each, self._root) async for each in each_spec(specs)]
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
                await asyncio.sleep(real_seconds(_LOOK_AGAIN))
                found = await self._queue.jobs([self._key(external_id) for external_id in waiting])
                jobs = dict(zip(waiting, found, strict=True))
            except self._queue.away as error:
                self._queue.warn(error)
                await asyncio.sleep(real_seconds(_LOOK_AGAIN))
                continue
            for external_id, job in jobs.items():
                if job is None or self._is_between(job):
                    missing.add(external_id)
                elif job.status in TERMINAL_STATUSES:
                    yield _outcome(waiting.pop(external_id), job)

    def _key(self, external_id: str) -> str:
        """Return the job's name; in PostgreSQL all queues of a table share their names."""
        return f"{self._queue.name}/{external_id}"

    def _is_between(self, job: Job) -> bool:
        """Return whether a job was taken from a worker, and is given to the next in a moment, or should be."""
        if job.status is Status.COMPLETE:
            return job.result is None  # a heartbeat of the worker before can have come in between
        return job.status is Status.ABORTED and job.error == self._queue.swept_error_message

    async def _enqueue(self, spec: Spec, asked: OptionOverrides, **more: object) -> bool:
        _check_no_secret(spec)
        if callable(MigrationOptions(**asked).decide):
            why = "is a function, which no queue can hold: give it to the workers, in `worker_settings(options=...)`"
            raise InvalidInput("decide", asked.get("decide"), why)
        generations.check_options(self._generation, MigrationOptions(**asked))
        job = await self._queue.enqueue(
            _FUNCTION,
            key=self._key(spec.external_id),
            timeout=0,  # SAQ's own is 10 s
            heartbeat=self._heartbeat,
            retries=_ATTEMPTS,
            ttl=_KEPT,
            meta={
                "id": uuid4().hex
            },  # tells it from another job of the same name, after the queue lost this one
            spec=msgspec.to_builtins(spec, enc_hook=str),
            asked=dict(asked),
            api=self._generation.name,
            **more,
        )
        return job is not None


class _Context(TypedDict):
    worker: Worker[Context]
    job: Job


@final
class _Work:
    """What a worker has, and what it does with a job."""

    __slots__ = (
        "_api",
        "_connections",
        "_exits",
        "_inputs",
        "_journal",
        "_open_journal",
        "_open_session",
        "_options",
        "_session",
        "_steps",
        "_to",
        "_warnings",
    )

    def __init__(
        self,
        session: Callable[[], Session],
        journal: Callable[[], AbstractAsyncContextManager[JournalPort]],
        to: Path,
        api: str,
        options: MigrationOptions,
        connections: Callable[[str], Connections | None] | None,
    ) -> None:
        self._steps: dict[str, str] = {}
        """The step that each customer is at, by external id."""
        self._open_session, self._open_journal, self._exits = session, journal, AsyncExitStack()
        self._to, self._options, self._connections = to, options, connections
        self._inputs, self._warnings = Inputs(), RareWarnings()
        self._api = api

    async def start(self, context: _Context) -> None:
        """Open the journal and the session; while the journal is away, wait for it, unless the worker is stopped."""
        opening, stopped = (
            asyncio.ensure_future(self._open()),
            asyncio.ensure_future(context["worker"].event.wait()),
        )
        try:
            while not (opening.done() or stopped.done()):
                pause = real_seconds(_SLOW)
                await asyncio.wait([opening, stopped], timeout=pause, return_when=asyncio.FIRST_COMPLETED)
                if not (opening.done() or stopped.done()):
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
                    self._journal = await exits.enter_async_context(self._open_journal())
                    break
                except JournalUnavailable as error:
                    self._warnings.log(f"{error}; waiting for it")
                await asyncio.sleep(real_seconds(_LOOK_AGAIN))
            self._session = await exits.enter_async_context(self._open_session())
            exits.enter_context(self._session.events.subscribe(self._note))
            self._exits = exits.pop_all()

    async def stop(self, context: _Context) -> None:
        await self._exits.aclose()

    async def migrate(
        self,
        context: _Context,
        *,
        spec: Builtins,
        asked: OptionOverrides | None = None,
        decision: Builtins | None = None,
        shown: str = "",
        api: str | None = None,
    ) -> object:
        """Migrate a customer, and return the outcome as JSON's types.

        A job that is aborted is cancelled. When the worker stops, the session is closed: requests in flight end.
        """
        worker, job = context["worker"], context["job"]
        answer = None if decision is None else msgspec.convert(decision, Decision)
        wanted = replace(self._options, **(asked or {}))
        if job.attempts > 1:  # a worker that died may have done it
            wanted = replace(wanted, retry_failed=False)
        if answer is not None:
            wanted = _deciding(wanted, answer, shown)
        customer = msgspec.convert(spec, Spec, dec_hook=_path)
        if self._connections is not None:
            secrets = self._connections(customer.external_id)
            customer = msgspec.structs.replace(customer, connections=secrets)
        work = asyncio.ensure_future(self._beating(job, customer, wanted, generations.find(api or self._api)))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            if worker.event.is_set():  # it stops
                self._session.close(SessionClosed("the worker stops: another one goes on"))
            else:
                work.cancel()
            try:
                await asyncio.wait([work])
            finally:
                work.cancel()
            raise

    async def _beating(
        self, job: Job, spec: Spec, options: MigrationOptions, generation: Generation
    ) -> object:
        """Migrate; stop, and return None, if the queue loses the job: whoever wants it done enqueues another one."""
        done = asyncio.Event()
        work = asyncio.ensure_future(self._once_free(job, spec, options, generation))

        def stop() -> bool:
            """Stop, unless a company is being created: nobody could find out later whether it was."""
            return self._steps.get(spec.external_id) != "creating" and work.cancel()

        beat = asyncio.ensure_future(_beat(job, done, on_lost=stop))
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
            await asyncio.wait([beat])  # one that came late would undo the job's end

    def _note(self, event: Event) -> None:
        if isinstance(event, MigrationChanged):
            self._steps[event.external_id] = event.step

    async def _once_free(
        self, job: Job, spec: Spec, options: MigrationOptions, generation: Generation
    ) -> object:
        """Migrate; or wait, for the journal, or for a worker that has the customer: a slow one, or our successor."""
        to = customer_folder(self._to, spec.external_id)
        while True:
            try:
                outcome = await migrate_safely(
                    generation, context_of(self._session), spec, self._journal, to, options, self._inputs
                )
                return msgspec.to_builtins(outcome)
            except CustomerHeld as error:
                _log.debug("%s: %s", spec.external_id, error)
                if (result := await _result_of_another(job)) is not None:
                    return result
            except JournalError as error:
                self._warnings.log(f"{error}; {spec.external_id} waits for it", about=str(error))
            await asyncio.sleep(real_seconds(_LOOK_AGAIN))


async def _result_of_another(job: Job) -> object:
    """Return the result that another worker, which had the job too, has written; None if there is none."""
    queue = cast("AnyQueue", job.get_queue())
    try:
        stored = await queue.stored(job)
    except queue.away:
        return None  # the heartbeat says so
    return stored.result if stored is not None and stored.status is Status.COMPLETE else None


async def _beat(job: Job, done: asyncio.Event, *, on_lost: Callable[[], bool]) -> None:
    """Show in time that the worker lives, as long as the job is this worker's: SAQ writes all of it.

    `on_lost` stops the task of a job that the queue has lost; it returns False where that has to wait.
    """
    queue = cast("AnyQueue", job.get_queue())
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
        except queue.away as error:
            queue.warn(error)


def _deciding(options: MigrationOptions, decision: Decision, shown: str) -> MigrationOptions:
    """Return options that answer what was shown, once; anything else stays parked."""
    left = [decision]

    async def decide(parked: Parked) -> Decision | None:
        return left.pop() if left and _digest(parked) == shown else None

    return replace(options, decide=decide)


def _digest(parked: Parked) -> str:
    """Return what tells one park from another: question ids may begin again in each."""
    return hashlib.sha256(msgspec.json.encode(parked.attention)).hexdigest()


def _outcome(spec: Spec, job: Job) -> Outcome:
    if job.status is Status.COMPLETE:
        return cast(Outcome, msgspec.convert(job.result, Outcome, strict=False))
    reason = (job.error or "").strip().splitlines()
    return pending(spec, f"its job was {job.status.value}: {reason[-1] if reason else 'nobody says why'}")


def _check_no_secret(spec: Spec) -> None:
    if spec.connections is not None:
        why = "are secrets, which a queue would keep: give the workers `connections=`"
        raise InvalidInput("connections", "***", why)


def _path(kind: type, value: object) -> object:
    if kind is Path:
        return Path(str(value))
    raise NotImplementedError(kind)
