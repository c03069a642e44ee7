"""One operation of a run: its polls, its events and its result, shared by all handles of the run."""

import asyncio
import logging
from dataclasses import dataclass
from typing import TypeAlias, final

import anyio
import msgspec

from asyncmig._core.lifecycle import Phase
from asyncmig._io.call import Call
from asyncmig._io.context import SessionContext
from asyncmig._io.gate import Slot
from asyncmig._io.poller import Reading, Watch
from asyncmig.errors import (
    ApiError,
    AuthError,
    Conflict,
    NoAnswer,
    RunCanceled,
    RunFailed,
    SessionClosed,
    UnknownOutcome,
)
from asyncmig.events import RunChanged, RunEnded
from asyncmig.migrations import routes
from asyncmig.migrations.log import Log
from asyncmig.migrations.operation import Operation, is_credentials
from asyncmig.migrations.previews import Preview, read_preview
from asyncmig.migrations.state import ClientState, MigrationState
from asyncmig.migrations.thread import Connected, Disconnected, Done, Event, ThreadReader
from asyncmig.migrations.wire import (
    CredentialRequest,
    Question,
    Report,
    RunState,
)

__all__ = ["CredentialsNeeded", "Questions", "Result", "Tracker"]

_log = logging.getLogger("asyncmig")
_ASK_LOG = 120.0
"""Seconds of old readings after which the log is asked whether the operation has ended."""
_LOOKS_AT_LOG = 3
"""If so many settled logs do not list an operation, it is unknown whether it was started."""
_WHILE_STREAMING = 60.0
"""Seconds between the reads of a run while the stream of its thread announces its end."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Questions:
    """What a blocked run asks."""

    questions: tuple[Question, ...]
    reason: str | None = None
    """Why it is blocked, as the server says. With an unknown reason and no questions, only a person can help."""
    asked_again: bool = False
    """Whether the run asks exactly this again after an accepted answer. Another answer may not help."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class CredentialsNeeded:
    """Which credentials a blocked run waits for."""

    request: CredentialRequest
    asked_again: bool = False
    """Whether the credentials were submitted and rejected."""


Result: TypeAlias = Preview | Questions | CredentialsNeeded | Report
"""How an operation ended, or why it is blocked."""


@final
class Tracker:
    """One operation of a run, shared by all its handles: its polls, its events and its result."""

    __slots__ = (
        "_blocked_elsewhere",
        "_context",
        "_lock",
        "_next_log",
        "_preview",
        "_settled_without",
        "migration_id",
        "operation",
        "raw",
        "run_id",
        "shared",
        "watch",
    )

    def __init__(
        self,
        context: SessionContext,
        migration_id: str,
        run_id: str,
        operation: Operation,
        *,
        age: float | None = 0.0,
        status: str = "",
    ) -> None:
        """`age`: seconds since the operation started; None if unknown."""
        self._context = context
        self.migration_id: str = migration_id
        self.run_id: str = run_id
        self.operation: Operation = operation
        self.raw: RunState | None = None
        """The last reading as it came, which may be older than the operation."""
        self._next_log = operation.requested_at + _ASK_LOG
        self._settled_without = self._blocked_elsewhere = 0
        """How often the settled log did not list the operation, whose start was not acknowledged; and how often the
        thread asked something that the run does not show.
        """
        self._lock = anyio.Lock()
        self._preview: Preview | None = None
        self.shared: MigrationState = context.kept(ClientState).of(context, migration_id)
        self.shared.tracker = self
        self.watch: Watch[RunState] = context.poller.watch(
            (routes.READ_RUN.key, migration_id, run_id, id(operation)),
            gate=context.gate(routes.READ_RUN),
            read=self._read,
            lifecycle=routes.RUN,
            started=context.poller.now() - (age or 0.0),
            group=operation.kind or "of unknown age",
            ids=self.ids,
        )
        if operation.kind is None:
            self.watch.announced(status)

    @property
    def ids(self) -> dict[str, str]:
        """The ids in the route."""
        return {"id": self.migration_id, "run_id": self.run_id}

    def heard(self, event: Event | Done | Connected | Disconnected) -> None:
        """Take an event of the thread into account. One that may end or block the run is a reason to read it."""
        if isinstance(event, Connected | Disconnected):
            self.watch.relax(_WHILE_STREAMING if isinstance(event, Connected) else 0.0)
        if not isinstance(event, Event):
            return
        self.operation.saw_event(event.sequence)
        if event.type in ("preview", "completed", "error", "request_input"):
            self.watch.announced("completed")

    async def _read(self, slot: Slot) -> Reading[RunState]:
        call, sent_at = Call(endpoint=routes.READ_RUN, ids=self.ids), asyncio.get_running_loop().time()
        return await self.taken(await self._context.caller.send_once(call, RunState, slot), sent_at)

    async def taken(self, state: RunState, sent_at: float) -> Reading[RunState]:
        """Return the reading of this operation that a state of its run shows, which was requested at `sent_at`."""
        self.raw = state
        status = self.operation.effective(state, sent_at)
        if status != state.status:
            run_id = self.run_id
            await self._look_for_news()
            if self.run_id == run_id:  # otherwise this was the state of an earlier run
                status = self.operation.effective(state, sent_at)
        if status != state.status:
            state = msgspec.structs.replace(state, status=status, message=None)
        phase = routes.RUN.phase(status)
        if phase is Phase.TERMINAL:
            self._context.runs.left(self.migration_id)
        else:
            self._context.runs.seen(self.migration_id, is_blocked=phase is Phase.PARKED)
        reading = Reading(status=status, progress=state.message, value=state)
        latest = self.watch.latest
        if latest is None or (latest.status, latest.progress) != (reading.status, reading.progress):
            self._tell(reading)
        return reading

    async def _look_for_news(self) -> None:
        """Ask the thread, and later the log, whether anything is newer than the request."""
        now, operation, last = asyncio.get_running_loop().time(), self.operation, ""
        try:
            if operation.after is not None:
                async for page in ThreadReader(self._context, self.migration_id).pages(after=operation.after):
                    for event in page:
                        operation.saw_event(event.sequence)
                        last = event.type or last
            if now >= self._next_log:
                self._next_log = now + _ASK_LOG
                log = await self._context.caller.call(
                    Call(endpoint=routes.READ_LOG, ids={"id": self.migration_id}), Log
                )
                self._take_log(log)
        except (AuthError, SessionClosed):
            raise
        except (ApiError, NoAnswer) as error:  # without news, the reading stays old, and polling continues
            _log.debug("run %s: no news from the thread or the log: %s", self.run_id, error)
            if isinstance(error, Conflict) and not operation.is_acknowledged and last == "request_input":
                self._blocked_elsewhere += 1
        for count, reason in (
            (self._settled_without, "the server does not show that it happened"),
            (self._blocked_elsewhere, "its run is blocked, and the id of the run is not known"),
        ):
            if count >= _LOOKS_AT_LOG:
                start, kind = routes.START_RUN, f'{{"kind":"{operation.kind}"}}'
                text = f"its response was lost, and {reason}"
                raise UnknownOutcome(start.method, start.template, text, kind, start.advice)

    def _take_log(self, log: Log) -> None:
        """Take the settled log into account: it lists the operation, perhaps under the id of another run."""
        last, operation = log.runs[-1] if log.runs else None, self.operation
        is_executed = last is not None and operation.kind == "execute" and last.outcome is not None
        is_kind = last is not None and (last.kind == operation.kind or is_executed)
        if last is not None and is_kind:
            is_other = not operation.is_acknowledged and last.run_id not in operation.earlier_runs
            follows = bool(operation.earlier_runs) or self.run_id in [entry.run_id for entry in log.runs[:-1]]
            if last.run_id == self.run_id or (last.run_id and is_other and follows):
                self.run_id = last.run_id
                operation.saw_log()
                return
        if not operation.is_acknowledged:
            self._settled_without += 1

    def _tell(self, reading: Reading[RunState]) -> None:
        """Emit an event for a new status or progress text, and once for the end."""
        watch, now = self.watch, asyncio.get_running_loop().time()
        emit, ids = self._context.events.emit, {"migration": self.migration_id, "run": self.run_id}
        emit(RunChanged(at=now, ids=ids, status=reading.status, progress=reading.progress))
        if watch.ended or routes.RUN.phase(reading.status) is not Phase.TERMINAL:
            return
        began = self.operation.kind is not None
        emit(
            RunEnded(
                at=now,
                ids=ids,
                status=reading.status,
                seconds=watch.entry.age(now) if began else None,
                noticed_within=now - watch.entry.last_seen if began or watch.latest else None,
            )
        )

    async def preview(self) -> Preview:
        """Return the preview in which the operation ended. All waiting tasks share one request."""
        async with self._lock:
            if self._preview is None:
                self._preview = await read_preview(self._context, self.migration_id, {})
            return self._preview

    async def result(self, state: RunState) -> Result:
        """Return what an end or a block means. Raises `RunFailed` or `RunCanceled`."""
        if state.status == "failed":
            hint = "; rows may have been written: `migration.log()` says how many"
            raise RunFailed(
                self.run_id, (state.error or "") + (hint if self.operation.kind == "execute" else "")
            )
        if state.status == "canceled":
            raise RunCanceled(self.run_id, state.error or "canceled")
        if routes.RUN.phase(state.status) is Phase.PARKED:
            again = self.operation.is_asked_again(state)
            if is_credentials(state):
                request = state.credential_request or CredentialRequest()
                return CredentialsNeeded(request=request, asked_again=again)
            return Questions(questions=state.questions, reason=state.blocked_reason, asked_again=again)
        if state.status == "awaiting_approval" or self.operation.kind == "clarify":
            return await self.preview()
        return state.report or Report()
