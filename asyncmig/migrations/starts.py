"""Start an operation exactly once: check the server before each repeat of a start whose response was lost.

A start has no key, and a repeat when nothing is active starts another run: a second `generate` uses the only start of
an hour and replaces the preview, a second `execute` imports again. So what is known is noted before the request
(`StartPoint`). After a lost response, the run, the log, the preview and the thread are read in this order. Three
looks over 30 s that show nothing newer mean that the request was never processed, and only then is it sent again. A
blocked run whose id is not known is the exception: nothing changes while it is blocked, so a repeat is refused with
its id. A blocked `execute` is not repeated even then, because a person may answer at any moment. What cannot be
determined is `UnknownOutcome`.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import final

import msgspec

from asyncmig._core.decode import Unreadable, decode
from asyncmig._core.endpoint import Repeat
from asyncmig._core.retry import Doubt
from asyncmig._io.attempts import RetryableFailure
from asyncmig._io.call import Call
from asyncmig._io.context import SessionContext
from asyncmig.errors import (
    ApiError,
    Conflict,
    NoAnswer,
    NotFound,
    ServerError,
    UnexpectedReply,
    UnknownOutcome,
)
from asyncmig.migrations import routes
from asyncmig.migrations.log import Log, read_log, status_of
from asyncmig.migrations.operation import (
    Operation,
    StartPoint,
    is_newer,
    mark_of,
    moment_of,
    newest,
    unknown_start,
)
from asyncmig.migrations.previews import PREVIEW_LOOKS, SECONDS_BETWEEN_LOOKS, read_preview
from asyncmig.migrations.runs import Run
from asyncmig.migrations.state import explained, state_of
from asyncmig.migrations.thread import BEGINNING, last_sequence, thread_pages
from asyncmig.migrations.wire import RunBody, RunStarted, RunState

__all__ = ["Noted", "Starter", "active_run_id"]

_UNAVAILABLE = (ServerError, UnexpectedReply, NoAnswer)
_MOST_ATTEMPTS = 3
"""How often a start is sent although its response is lost each time."""
_SETTLE = 30.0
"""Seconds between two looks for the id of a run that is in progress."""
_QUIET = 3 * routes.RUN.stall_alarm
"""Seconds without an event of the thread after which the search for the id of a run ends."""
_IN_FLIGHT = frozenset({"queued", "running", "blocked"})
_GENERATE, _RESUME = (replace(route, repeat=Repeat.ALWAYS) for route in (routes.GENERATE, routes.START_RUN))
"""The endpoints of `Starter`, which looks at the server before each repeat."""

Noted = Callable[[StartPoint], Awaitable[None]]
"""Called before a start is sent, for example to write the point to a journal; again after a 429."""


class _RunRef(msgspec.Struct, frozen=True, kw_only=True):
    run_id: str | None = None


def active_run_id(error: Conflict) -> str | None:
    """Return the id of the run that a refused start names as active; None if it names none."""
    try:
        return decode(error.body, _RunRef).run_id or None
    except Unreadable:
        return None


class _Found(Exception):
    """A look before a repeat has found the run."""

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self.run = run


class _Blocked(Exception):
    """The start has happened, and its run is blocked: only a refused repeat can name it."""


@final
class Starter:
    """Starts the operations of one migration."""

    __slots__ = ("_context", "_ids", "_migration_id", "_shared")

    def __init__(self, context: SessionContext, migration_id: str) -> None:
        self._context, self._migration_id, self._ids = context, migration_id, {"id": migration_id}
        self._shared = state_of(context, migration_id)

    async def start(
        self, body: RunBody, *, noted: Noted | None, rank: float, since: StartPoint | None = None
    ) -> Run:
        """Start an operation; see `Migration.generate` for the arguments and for what is raised."""
        caller, encoded = self._context.caller, msgspec.json.encode(body)
        endpoint = _GENERATE if body.kind == "generate" else _RESUME
        call = Call(endpoint=endpoint, ids=self._ids, body=encoded, rank=rank)
        attempts = caller.repeated(endpoint, self._ids, loggable_body=encoded.decode())
        points: list[StartPoint] = []
        if since is not None:  # an earlier process may have sent the request
            with contextlib.suppress(_Blocked):
                if run := await self._find(since):
                    return run
            points, attempts.doubts = [since], 1

        async def before() -> None:
            """Note what is known, or look once more: the slot may have taken an hour."""
            if not attempts.doubts:  # nothing was processed, also if it waited after a 429
                points[:] = [await self._point(body)]
                if noted is not None:
                    await noted(points[0])
                return
            with contextlib.suppress(_Blocked):
                if run := await self._look(points[0]):
                    raise _Found(run)

        while True:
            async with attempts:
                try:
                    started = await caller.attempt(call, RunStarted, attempts, before=before)
                    if started.run_id or points[0].run_id:
                        return self._run(points[0], started.run_id, is_acknowledged=True)
                    if run := await self.find(points[0]):
                        return run
                    raise unknown_start(
                        points[0].kind, "the response has no run id, and the server does not show the run"
                    )
                except _Found as found:
                    return found.run
                except RetryableFailure as failure:
                    if failure.doubt is Doubt.MAYBE:
                        with contextlib.suppress(_Blocked):
                            if run := await self._find(points[0]):
                                return run
                            if attempts.attempt >= _MOST_ATTEMPTS:  # an attempt may cost an hour
                                raise failure.error from failure
                    raise
                except NotFound:
                    if asyncio.get_running_loop().time() >= self._shared.known_by:
                        raise
                    await asyncio.sleep(SECONDS_BETWEEN_LOOKS)  # it was created some seconds ago
                except UnexpectedReply as error:
                    raise await explained(self._context, error) from None
                except Conflict as error:
                    return await self._after_conflict(error, points[0], is_doubtful=attempts.doubts > 0)

    async def _after_conflict(self, error: Conflict, point: StartPoint, *, is_doubtful: bool) -> Run:
        """Return the run that an earlier attempt has started. Raises `error` if the run in progress is not ours.

        `is_doubtful`: whether an earlier attempt may have been processed.
        """
        run_id = active_run_id(error)
        if run_id:
            self._context.runs.seen(self._migration_id)
        if not is_doubtful:
            raise _with_run_id(error, run_id) from None
        if run_id:
            if await self._may_be_own(point, run_id):
                return self._run(point, run_id)
            error.after_doubt = True
            raise _with_run_id(error, run_id) from None
        if run := await self.find(point):
            return run
        raise unknown_start(point.kind, str(error)) from error

    async def find(self, point: StartPoint) -> Run | None:
        """Return the run that a start has begun; None if it was never processed.

        Raises `UnknownOutcome` if the server does not tell.
        """
        try:
            return await self._find(point)
        except _Blocked:
            raise unknown_start(point.kind, "the run is blocked, and its id is not known") from None

    async def _find(self, point: StartPoint) -> Run | None:
        unknown: UnknownOutcome | None = None
        for look in range(PREVIEW_LOOKS):
            if look:
                await asyncio.sleep(SECONDS_BETWEEN_LOOKS)
            try:
                if run := await self._look(point):
                    return run
            except UnknownOutcome as error:
                if error.__cause__ is not None:  # the server could not be checked
                    raise
                unknown = error  # a later look may tell
        if unknown is not None:
            raise unknown
        return None

    async def _point(self, body: RunBody) -> StartPoint:
        run, state = self._shared.run, None
        noted, run_id = (run.after, run.id or None) if run else (None, None)
        if body.kind != "generate" and run_id is not None:
            state = await self._read_run(run_id)
        log, _ = await self._read_log()
        return StartPoint(
            kind=body.kind,
            after=await last_sequence(
                self._context, self._migration_id, BEGINNING if noted is None else noted
            ),
            run_id=run_id,
            state=None if state is None else msgspec.structs.replace(state, answers=None),
            logged=None if log is None else tuple(map(mark_of, log.runs)),
            logged_ids=() if log is None else tuple({entry.run_id for entry in log.runs}),
            at=None if log is None else log.generated_at,
            message=None if body.message is msgspec.UNSET else body.message,
        )

    async def _may_be_own(self, point: StartPoint, run_id: str) -> bool:
        """Return whether the lost request may have started the run that a refused repeat names as active."""
        if point.kind != "generate" and run_id == point.run_id:
            return True
        if run_id == point.run_id or run_id in point.logged_ids:
            return False  # somebody else resumed it
        state = await self._read_run(run_id)
        created, noted = moment_of(state.created_at if state else None), moment_of(point.at)
        return created is None or noted is None or created >= noted

    async def _look(self, point: StartPoint) -> Run | None:
        """Look once at the run, the log, the preview and the thread for anything newer than the point.

        An event of the thread alone proves nothing: it may be a late one of the previous operation, or one of an
        execution with a run of its own.
        """
        resumed = None if point.kind == "generate" else point.run_id
        try:
            state = None if resumed is None else await self._read_run(resumed)
            if resumed is not None and state is not None and is_newer(point, state):
                return self._run(point, resumed)
            log, status = await self._read_log()
            entry = None if log is None else newest(log.runs, point)
            if entry is not None and point.logged is not None:
                return self._run(point, entry.run_id)
            if status not in _IN_FLIGHT:
                is_settled = log is not None and point.logged is not None
                if is_settled and point.kind in ("generate", "execute"):
                    return None  # the log lists every run and every execution
                has_news = await self._has_news(point)
                if entry is not None and point.kind == "execute" and not has_news:
                    raise unknown_start(point.kind, "the log lists an execution, which may be an earlier one")
                if not has_news:
                    if point.kind == "execute" and not await self._has_preview():
                        raise unknown_start(point.kind, "the preview is gone, and nothing says why")
                    return None
                if point.kind == "execute" and state is not None:
                    resumed = None  # it may have a run of its own
            run_id = resumed or (entry.run_id if entry else None) or await self._id_of(point)
            return None if run_id is None else self._run(point, run_id)
        except _UNAVAILABLE as error:
            raise unknown_start(point.kind, f"the server could not be checked: {error}") from error

    async def _id_of(self, point: StartPoint) -> str | None:
        """Return the id of a run that was begun, once the server shows it; "" if only its preview shows.

        Returns None if the log shows that it was not begun. A log shows runs only when nothing is in progress. Raises
        `_Blocked` if the run is blocked.
        """
        looks, loop = Counter[str](), asyncio.get_running_loop()
        until, seen = loop.time() + _QUIET, point.after
        while True:
            log, status = await self._read_log()
            if log is not None and (entry := newest(log.runs, point)):
                return entry.run_id
            last, sequence = await self._last_event(point.after)
            if sequence > seen:
                until, seen = loop.time() + _QUIET, sequence
            # The status may be the migration's, which does not tell.
            if status == "blocked" or (status not in ("queued", "running") and last == "request_input"):
                if point.kind == "execute":
                    raise unknown_start(point.kind, "the run is blocked, and its id is not known")
                raise _Blocked
            looks["settled"] += log is not None and point.logged is not None
            looks["ended"] += last in ("preview", "completed", "error")
            if looks["settled"] == PREVIEW_LOOKS:
                return None
            if looks["ended"] >= PREVIEW_LOOKS or (loop.time() > until and status not in _IN_FLIGHT):
                if last == "preview" and point.run_id is None and not point.logged_ids:
                    return ""
                raise unknown_start(point.kind, "the server does not show the id of the run")
            await asyncio.sleep(_SETTLE)

    async def _last_event(self, after: int) -> tuple[str, int]:
        """Return the type of the last event after a sequence, and its sequence; "" and `after` without one."""
        last, sequence = "", after
        with contextlib.suppress(NotFound):
            async for page in thread_pages(self._context, self._migration_id, after=after):
                last = next((event.type for event in reversed(page) if event.type), last)
                sequence = max(sequence, *(event.sequence or 0 for event in page))
        return last, sequence

    async def _has_news(self, point: StartPoint) -> bool:
        try:
            return any(
                [page async for page in thread_pages(self._context, self._migration_id, after=point.after)]
            )
        except NotFound:
            if point.after > BEGINNING:  # there was a thread before
                raise unknown_start(point.kind, "the thread is gone") from None
            return False

    async def _has_preview(self) -> bool:
        try:
            await read_preview(self._context, self._migration_id, {})
        except NotFound:
            return False
        return True

    async def _read_run(self, run_id: str) -> RunState | None:
        """Return a run; None for a 404, which may last for some seconds."""
        call = Call(endpoint=routes.READ_RUN, ids={**self._ids, "run_id": run_id})
        try:
            return await self._context.caller.call(call, RunState)
        except NotFound:
            return None

    async def _read_log(self) -> tuple[Log | None, str]:
        """Return the log, or the status with which it is not settled yet; neither if it is away."""
        try:
            return await read_log(self._context, self._migration_id), ""
        except Conflict as error:
            return None, status_of(error)
        except (NotFound, ServerError, UnexpectedReply):
            return None, ""

    def _run(self, point: StartPoint, run_id: str, *, is_acknowledged: bool = False) -> Run:
        now, runs = self._context.poller.now(), self._context.runs
        run_id = run_id or point.run_id or ""
        if run_id:
            runs.seen(self._migration_id)
        else:  # only its preview is known, so it has ended
            runs.left(self._migration_id)
        operation = Operation(
            kind=point.kind,
            requested_at=now,
            after=point.after,
            before=point.state,
            earlier_runs=point.logged_ids,
            is_new_run=run_id != point.run_id,
            is_acknowledged=is_acknowledged,
        )
        return Run(self._context, self._migration_id, run_id, operation)


def _with_run_id(error: Conflict, run_id: str | None) -> ApiError:
    return error if run_id is None else error.with_text(f"{error.text} (active run: {run_id})")
