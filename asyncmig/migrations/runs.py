"""Runs: wait for the end of an operation, answer its questions, cancel it."""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from functools import partial
from typing import TypeAlias, final

import anyio
import msgspec

from asyncmig._core.arguments import checked_call
from asyncmig._core.endpoint import Endpoint
from asyncmig._core.lifecycle import Phase
from asyncmig._core.secrets import secrets_of
from asyncmig._io.call import Call
from asyncmig._io.context import SessionContext
from asyncmig._io.gate import Slot
from asyncmig._io.poller import Reading, Watch
from asyncmig.customers.questions import Custom
from asyncmig.errors import (
    ApiError,
    AuthError,
    Conflict,
    InvalidInput,
    NoAnswer,
    NotFound,
    RunCanceled,
    RunFailed,
    SessionClosed,
)
from asyncmig.migrations import routes
from asyncmig.migrations.answers import (
    AnswerNoted,
    AnswerPoint,
    CredentialsNeeded,
    Questions,
    checked_answers,
    checked_secrets,
    not_sent,
    send_answer,
)
from asyncmig.migrations.log import read_log
from asyncmig.migrations.operation import LAG, Operation, block_of, is_credentials, unknown_start
from asyncmig.migrations.previews import Preview, read_preview
from asyncmig.migrations.state import MigrationState, once_known, state_of
from asyncmig.migrations.thread import BEGINNING, Event, StreamState, thread_pages
from asyncmig.migrations.wire import (
    AnswersBody,
    CredentialRequest,
    CredentialsBody,
    Kind,
    Report,
    RunState,
)

__all__ = ["Result", "Run"]

_log = logging.getLogger("asyncmig")
_FRESH = 10.0
"""Seconds for which a blocked run that was read may be answered without another read."""
_CANCEL_CHECKS = 6
_ASK_LOG = 120.0
"""Seconds of old readings after which the log is asked whether the operation has ended."""
_LOOKS_AT_LOG = 3
"""If so many settled logs do not list an operation, it is unknown whether it was started."""
_WHILE_STREAMING = 60.0
"""Seconds between the reads of a run while the stream of its thread announces its end."""

Result: TypeAlias = Preview | Questions | CredentialsNeeded | Report
"""How an operation ended, or why it is blocked."""


@final
class Run:
    """The handle of one operation of a run: wait for it, answer its questions, cancel it.

    `update`, `clarify` and `execute` resume the run that `generate` opened, so several handles may have the same id.
    Each of them ends with its own operation.
    """

    __slots__ = (
        "_blocked_elsewhere",
        "_context",
        "_lock",
        "_migration_id",
        "_next_log",
        "_operation",
        "_preview",
        "_raw",
        "_shared",
        "_watch",
        "id",
    )

    def __init__(
        self,
        context: SessionContext,
        migration_id: str,
        run_id: str,
        operation: Operation,
        *,
        age: float = 0.0,
    ) -> None:
        """`age`: seconds since the operation started."""
        self._context, self._migration_id, self._operation = context, migration_id, operation
        self.id: str = run_id
        """The id of the run; "" if the response to its start was lost and the server does not show it."""
        self._raw: RunState | None = None
        """The last reading as it came, which may be older than the operation."""
        self._next_log = operation.requested_at + _ASK_LOG
        self._blocked_elsewhere = 0
        """How often the thread asked something that the run, whose start was not acknowledged, does not show."""
        self._lock = anyio.Lock()
        self._preview: Preview | None = None
        self._shared: MigrationState = state_of(context, migration_id)
        self._shared.run = self
        self._watch: Watch[RunState] = context.poller.watch(
            (routes.READ_RUN.key, migration_id, run_id, id(operation)),
            gate=context.gate(routes.READ_RUN),
            read=self._poll,
            lifecycle=routes.RUN,
            started=context.poller.now() - age,
            group=operation.kind or "of unknown age",
            ids=self._ids,
            event_ids=self._event_ids,
        )

    def __repr__(self) -> str:
        kind, state = self.kind or "run", self.state
        return f"<Run {self.id}: {kind}, {state.status if state else 'not read yet'}>"

    def _event_ids(self) -> dict[str, str]:
        return {"migration": self._migration_id, "run": self.id}

    @property
    def _ids(self) -> dict[str, str]:
        return {"id": self._migration_id, "run_id": self.id}

    @property
    def kind(self) -> Kind | None:
        """What was started; None if the run was opened by its id."""
        return self._operation.kind

    @property
    def after(self) -> int | None:
        """The last sequence of the thread before the last request that changed the run; None if unknown."""
        return self._operation.after

    @property
    def is_acknowledged(self) -> bool:
        """Whether the server has confirmed the start; otherwise it was inferred from what the server shows."""
        return self._operation.is_acknowledged

    @property
    def _noted(self) -> int:
        return BEGINNING if self.after is None else self.after

    @property
    def state(self) -> RunState | None:
        """The last reading of this operation; None before the first one."""
        latest = self._watch.latest
        return latest.value if latest else None

    async def wait(self, *, through_parks: bool = False, stream: bool = True) -> Result:
        """Wait until this operation ends or the run is blocked, and return the result.

        ```python
        match await run.wait():
            case Preview() as preview:
                print(preview.invalid_cells)
            case Questions() as asked:
                await run.answer({question.id: question.options[0].id for question in asked.questions})
            case CredentialsNeeded() | Report() as other:
                print(other)
        ```

        - `Preview`: generate, update or clarify has ended. The answer to a clarify is in `messages()`.
        - `Report`: execute has ended.
        - `Questions`, `CredentialsNeeded`: the run is blocked. It keeps one of the account's places until it goes on.

        `through_parks=True` waits on while the run is blocked, for another process to answer. Any number of tasks may
        wait: they share the polls and one stream of the thread. `stream=False` uses polls alone. For a deadline, use
        `asyncio.timeout`. Raises `RunFailed` and `RunCanceled`.
        """
        watch = self._watch
        if not self.id:  # its start was lost, and only its preview shows that it has ended
            return await self._own_preview()
        async with AsyncExitStack() as stack:
            if stream and not watch.ended and (through_parks or not watch.entry.parked):
                shared = self._shared.stream("user")
                await stack.enter_async_context(shared.listening(self._hear, after=self._noted))
            state = (await watch.wait(through_parks=through_parks)).value
        return await self._result(state)

    async def updates(self) -> AsyncIterator[RunState]:
        """Yield each change of status or progress text once, until the operation has ended.

        Raises `AuthError`, `SessionClosed`, and `NotFound` for a run that the server has not known for 30 s;
        `InvalidInput` for a run whose id is not known.
        """
        self._check_id()
        async for reading in self._watch.updates():
            yield reading.value

    async def read(self) -> RunState:
        """Read the run as soon as its pace allows (10 s after the last response). All tasks share the reading.

        Raises `InvalidInput` for a run whose id is not known.
        """
        self._check_id()
        return (await self._watch.refresh()).value

    async def is_active(self) -> bool:
        """Read the run at once, without waiting for a poll. Return whether this operation is in progress."""
        if not self.id or self._watch.ended:
            return False
        try:
            state = await self._context.caller.call(Call(endpoint=routes.READ_RUN, ids=self._ids), RunState)
        except NotFound:
            return True  # it was just started
        return routes.RUN.phase(self._operation.effective(state, _now())) is not Phase.TERMINAL

    async def messages(self) -> str:
        """Return what the agent wrote since the last request to the run, for example the answer to a clarify."""
        pages = thread_pages(self._context, self._migration_id, after=self._noted)
        return "".join([event.text async for page in pages for event in page if event.type == "message"])

    # What the server shows of this operation

    def _hear(self, item: Event | StreamState | Exception) -> None:
        """Take an item of the stream into account. An event that may end or block the run is a reason to read it."""
        if item is StreamState.CONNECTED:
            self._watch.relax(_WHILE_STREAMING)
        elif item is StreamState.DISCONNECTED:
            self._watch.relax(0.0)
        elif isinstance(item, Event):
            self._operation.saw_event(item.sequence)
            if item.type in ("preview", "completed", "error", "request_input"):
                self._watch.announced("completed")

    async def _poll(self, slot: Slot) -> Reading[RunState]:
        call, sent_at = Call(endpoint=routes.READ_RUN, ids=self._ids), _now()
        return await self._taken(await self._context.caller.send_once(call, RunState, slot), sent_at)

    async def _taken(self, state: RunState, sent_at: float) -> Reading[RunState]:
        """Return the reading of this operation that a state of its run shows, which was requested at `sent_at`."""
        self._raw = state
        status = self._operation.effective(state, sent_at)
        if status != state.status:
            run_id = self.id
            await self._look_for_news()
            if self.id == run_id:  # otherwise this was the state of an earlier run
                status = self._operation.effective(state, sent_at)
        if status != state.status:
            state = msgspec.structs.replace(state, status=status, message=None)
        phase = routes.RUN.phase(status)
        if phase is Phase.TERMINAL:
            self._context.runs.left(self._migration_id)
        else:
            self._context.runs.seen(self._migration_id, is_blocked=phase is Phase.PARKED)
        reading = Reading(status=status, progress=state.message, value=state)
        self._watch.report(reading, began=self._operation.kind is not None)
        return reading

    async def _look_for_news(self) -> None:
        """Ask the thread, and later the log, whether anything is newer than the request."""
        now, operation, last = _now(), self._operation, ""
        try:
            if operation.after is not None:
                async for page in thread_pages(self._context, self._migration_id, after=operation.after):
                    for event in page:
                        operation.saw_event(event.sequence)
                        last = event.type or last
            if now >= self._next_log:
                self._next_log = now + _ASK_LOG
                log = await read_log(self._context, self._migration_id)
                self.id = operation.saw_log(log.runs, self.id)
        except (AuthError, SessionClosed):
            raise
        except (ApiError, NoAnswer) as error:  # without news, the reading stays old, and polling continues
            _log.debug("run %s: no news from the thread or the log: %s", self.id, error)
            if isinstance(error, Conflict) and not operation.is_acknowledged and last == "request_input":
                self._blocked_elsewhere += 1
        for count, reason in (
            (operation.unlisted, "the server does not show that it happened"),
            (self._blocked_elsewhere, "its run is blocked, and the id of the run is not known"),
        ):
            if count >= _LOOKS_AT_LOG:
                raise unknown_start(operation.kind, f"its response was lost, and {reason}")

    async def _own_preview(self) -> Preview:
        """Return the preview in which the operation ended. All waiting tasks share one request."""
        async with self._lock:
            if self._preview is None:
                self._preview = await read_preview(self._context, self._migration_id, {})
            return self._preview

    async def _result(self, state: RunState) -> Result:
        """Return what an end or a block means. Raises `RunFailed` or `RunCanceled`."""
        if state.status == "failed":
            hint = "; rows may have been written: `migration.log()` says how many"
            raise RunFailed(
                self.id, (state.error or "") + (hint if self._operation.kind == "execute" else "")
            )
        if state.status == "canceled":
            raise RunCanceled(self.id, state.error or "canceled")
        if routes.RUN.phase(state.status) is Phase.PARKED:
            again = self._operation.is_asked_again(state)
            if is_credentials(state):
                request = state.credential_request or CredentialRequest()
                return CredentialsNeeded(request=request, asked_again=again)
            return Questions(questions=state.questions, reason=state.blocked_reason, asked_again=again)
        if state.status == "awaiting_approval" or self._operation.kind == "clarify":
            return await self._own_preview()
        return state.report or Report()

    # Answers

    def note_answer(self, point: AnswerPoint, *, age: float) -> None:
        """Take an answer into account that another process has sent `age` seconds ago."""
        self._operation.answered(point.shown, now=_now() - age, after=point.after)
        self._watch.resumed()

    @checked_call
    async def answer(
        self,
        answers: Mapping[str, str | Custom] | str,
        *,
        noted: AnswerNoted | None = None,
        rank: float = 0.0,
    ) -> None:
        """Answer the questions of a blocked run: question ids to labels or ids of options, or to `Custom` texts.

        ```python
        await run.answer({"q1": "Day first", "q2": Custom("Use the billing address")})
        ```

        A plain text answers a single question. All questions need an answer, because a server may guess the missing
        ones. A question without options takes any text. `noted`: awaited before the request with what is known until
        then, for a process that may be interrupted.

        Raises `InvalidInput` for an answer that was not offered; `Conflict` if the run asks something else now, or
        waits for credentials; `UnknownOutcome` when the attempts are used up. An answer whose response was lost is
        sent again only if the run still asks exactly the same.
        """
        shown = await self._shown(credentials=False)
        body = msgspec.json.encode(AnswersBody(answers=checked_answers(shown.questions, answers)))
        call = Call(endpoint=routes.ANSWER, ids=self._ids, body=body, rank=rank, loggable_body=body.decode())
        await self._send(call, shown, noted)

    @checked_call
    async def submit_credentials(
        self,
        credentials: Mapping[str, object],
        *,
        connection_id: str | None = None,
        noted: AnswerNoted | None = None,
        rank: float = 0.0,
    ) -> None:
        """Submit the credentials for which a blocked run waits, named as its request asks.

        No repr, error, log or journal contains them. `connection_id`: the connection that they are for; the server
        refuses another one. Rejected credentials block the run again. Raises as `answer` does.
        """
        secrets = checked_secrets("credentials", credentials)
        shown = await self._shown(credentials=True)
        body = CredentialsBody(
            credentials=secrets, connection_id=msgspec.UNSET if connection_id is None else connection_id
        )
        call = Call(
            endpoint=routes.SUBMIT_CREDENTIALS,
            ids=self._ids,
            body=msgspec.json.encode(body),
            rank=rank,
            secrets=tuple(secrets_of(secrets)),
        )
        await self._send(call, shown, noted)

    async def _shown(self, *, credentials: bool) -> RunState:
        """Return the block that is answered: that of the last reading, if the run still shows it."""
        state = self.state
        known = None if state is None else block_of(state)
        if state is None or known is None or self._is_stale():
            state = await self.read()
            if known is not None and block_of(state) is not None and block_of(state) != known:
                raise not_sent("the run now asks something else")
        if block_of(state) is None:
            raise InvalidInput("run", self.id, "asks nothing now: only a blocked run can be answered")
        if is_credentials(state) is not credentials:
            raise not_sent("the run waits for " + ("an answer" if credentials else "credentials"))
        return state

    def _is_stale(self) -> bool:
        return _now() - self._watch.entry.last_seen > _FRESH

    async def _send(self, call: Call, shown: RunState, noted: AnswerNoted | None) -> None:
        async def read() -> RunState | None:
            await self.read()
            return self._raw

        after = await send_answer(
            self._context,
            call,
            shown,
            since=self._noted,
            is_stale=self._is_stale,
            read=read,
            noted=noted,
        )
        self._operation.answered(shown, now=_now(), after=after)
        self._watch.resumed()

    async def cancel(self, *, rank: float = 0.0) -> RunState:
        """Cancel the run, and return what became of it: usually `canceled`, or the end that it had reached before.

        A run that awaits approval may end, stay as it is, or lose its preview: servers differ. `canceled` may come
        later than the server's response, so the run is read until it has ended, for up to a minute. Raises
        `InvalidInput` for a run whose id is not known.
        """
        self._check_id()
        is_refused = False
        try:
            state = await self._send_soon(routes.CANCEL_RUN, b'{"status":"cancel_requested"}', rank)
        except Conflict:  # the run has ended, or cannot be canceled now
            is_refused = True
            state = await self._send_soon(routes.READ_RUN)
        for _ in range(_CANCEL_CHECKS):
            if is_refused or state.status in ("canceled", "completed", "failed"):
                break
            await asyncio.sleep(routes.RUN.shortest_floor)
            state = await self._send_soon(routes.READ_RUN)
        if state.status != "awaiting_approval":
            self._watch.observe(await self._taken(state, _now()))
        return state

    def _check_id(self) -> None:
        if not self.id:
            raise InvalidInput(
                "run", self.id, "has no known id: its start was lost, and only its preview shows"
            )

    async def _send_soon(self, endpoint: Endpoint, body: bytes | None = None, rank: float = 0.0) -> RunState:
        """Send a request about the run, again while the server may not know the run yet."""
        call = Call(endpoint=endpoint, ids=self._ids, body=body, rank=rank)
        send = partial(self._context.caller.call, call, RunState)
        return await once_known(send, until=self._operation.requested_at + LAG)


def _now() -> float:
    return asyncio.get_running_loop().time()
