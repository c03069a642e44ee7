"""Runs: wait for the end of an operation, answer its questions, cancel it."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import final

import msgspec

from asyncmig._core.arguments import checked_call
from asyncmig._core.endpoint import Repeat
from asyncmig._core.retry import Doubt
from asyncmig._core.secrets import secrets_of
from asyncmig._io.attempts import RetryableFailure
from asyncmig._io.call import Call
from asyncmig._io.context import SessionContext
from asyncmig.customers.questions import Custom
from asyncmig.errors import (
    Conflict,
    InvalidInput,
    NotFound,
)
from asyncmig.migrations import routes
from asyncmig.migrations.answers import AnswerNoted, AnswerPoint, checked_answers, checked_secrets
from asyncmig.migrations.operation import LAG, block_of, is_credentials
from asyncmig.migrations.thread import BEGINNING, ThreadReader
from asyncmig.migrations.tracker import Result, Tracker
from asyncmig.migrations.wire import (
    AnswersBody,
    CredentialsBody,
    Kind,
    RunStarted,
    RunState,
)

__all__ = ["Run"]

_FRESH = 10.0
"""Seconds for which a blocked run that was read may be answered without another read."""
_NOT_LISTENING, _LONGEST_PAUSE = 10.0, 60.0
"""Seconds before an answer is sent again because the agent was not listening yet; they double each time."""
_CANCEL_CHECKS = 6


@final
class Run:
    """The handle of one operation of a run: wait for it, answer its questions, cancel it.

    `update`, `clarify` and `execute` resume the run that `generate` opened, so several handles may have the same id.
    Each of them ends with its own operation.
    """

    __slots__ = ("_context", "_tracker")

    def __init__(self, context: SessionContext, tracker: Tracker) -> None:
        self._context, self._tracker = context, tracker

    def __repr__(self) -> str:
        kind, state = self.kind or "run", self.state
        return f"<Run {self.id}: {kind}, {state.status if state else 'not read yet'}>"

    @property
    def id(self) -> str:
        """The id of the run; "" if the response to its start was lost and the server does not show it."""
        return self._tracker.run_id

    @property
    def kind(self) -> Kind | None:
        """What was started; None if the run was opened by its id."""
        return self._tracker.operation.kind

    @property
    def after(self) -> int | None:
        """The last sequence of the thread before the last request that changed the run; None if unknown."""
        return self._tracker.operation.after

    @property
    def is_acknowledged(self) -> bool:
        """Whether the server has confirmed the start; otherwise it was inferred from what the server shows."""
        return self._tracker.operation.is_acknowledged

    def note_answer(self, point: AnswerPoint, *, age: float) -> None:
        """Take an answer into account that another process has sent `age` seconds ago."""
        self._tracker.operation.answered(point.shown, now=_now() - age, after=point.after)
        self._tracker.watch.resumed()

    @property
    def _noted(self) -> int:
        return BEGINNING if self.after is None else self.after

    @property
    def state(self) -> RunState | None:
        """The last reading of this operation; None before the first one."""
        latest = self._tracker.watch.latest
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
        tracker = self._tracker
        if not self.id:  # its start was lost, and only its preview shows that it has ended
            return await tracker.preview()
        async with AsyncExitStack() as stack:
            watch = tracker.watch
            if stream and not watch.ended and (through_parks or not watch.entry.parked):
                shared = tracker.shared.stream("user")
                await stack.enter_async_context(shared.heard(tracker.heard, after=self._noted))
            state = (await tracker.watch.wait(through_parks=through_parks)).value
        return await tracker.result(state)

    async def updates(self) -> AsyncIterator[RunState]:
        """Yield each change of status or progress text once, until the operation has ended.

        Raises `AuthError`, `SessionClosed`, and `NotFound` for a run that the server has not known for 30 s;
        `InvalidInput` for a run whose id is not known.
        """
        self._check_id()
        async for reading in self._tracker.watch.updates():
            yield reading.value

    async def read(self) -> RunState:
        """Read the run as soon as its pace allows (10 s after the last response). All tasks share the reading.

        Raises `InvalidInput` for a run whose id is not known.
        """
        self._check_id()
        return (await self._tracker.watch.refresh()).value

    async def messages(self) -> str:
        """Return what the agent wrote since the last request to the run, for example the answer to a clarify."""
        reader, texts = ThreadReader(self._context, self._tracker.migration_id), list[str]()
        async for page in reader.pages(after=self._noted):
            texts += [event.text for event in page if event.type == "message"]
        return "".join(texts)

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
        body = AnswersBody(answers=checked_answers(shown.questions, answers))
        await self._reply(
            Call(
                endpoint=routes.ANSWER,
                ids=self._tracker.ids,
                body=msgspec.json.encode(body),
                rank=rank,
                loggable_body=msgspec.json.encode(body).decode(),
            ),
            shown,
            noted,
        )

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
        await self._reply(
            Call(
                endpoint=routes.SUBMIT_CREDENTIALS,
                ids=self._tracker.ids,
                body=msgspec.json.encode(body),
                rank=rank,
                secrets=tuple(secrets_of(secrets)),
            ),
            shown,
            noted,
        )

    async def _shown(self, *, credentials: bool) -> RunState:
        """Return the block that is answered: that of the last reading, if the run still shows it."""
        watch, state = self._tracker.watch, self.state
        known = None if state is None else block_of(state)
        if state is None or known is None or _now() - watch.entry.last_seen > _FRESH:
            state = await self.read()
            if known is not None and block_of(state) is not None and block_of(state) != known:
                raise _not_sent("the run now asks something else")
        if block_of(state) is None:
            raise InvalidInput("run", self.id, "asks nothing now: only a blocked run can be answered")
        if is_credentials(state) is not credentials:
            raise _not_sent("the run waits for " + ("an answer" if credentials else "credentials"))
        return state

    async def _reply(self, call: Call, shown: RunState, noted: AnswerNoted | None) -> None:
        tracker, caller = self._tracker, self._context.caller
        after = await ThreadReader(self._context, tracker.migration_id).last_sequence(self._noted)
        repeatable = replace(call.endpoint, repeat=Repeat.ALWAYS)  # checked before each repeat
        call = msgspec.structs.replace(call, endpoint=repeatable)
        attempts = caller.repeated(call.endpoint, call.ids, loggable_body=call.loggable_body)

        async def before() -> None:
            """Read the run again: the slot may have taken an hour, and an earlier attempt may have arrived late."""
            is_old = _now() - tracker.watch.entry.last_seen > _FRESH
            if (is_old or attempts.attempt > 1) and not await self._still_shows(shown):
                raise _not_sent("the run now asks something else")
            if noted is not None and not attempts.doubts:
                await noted(AnswerPoint(shown=msgspec.structs.replace(shown, answers=None), after=after))

        while True:
            async with attempts:
                try:
                    await caller.attempt(call, RunStarted, attempts, before=before)
                except RetryableFailure as failure:
                    if failure.doubt is not Doubt.MAYBE:
                        raise
                    if await self._is_unanswered(shown, after):
                        unknown = attempts.unknown(str(failure.error))
                        unknown.__cause__ = failure.error
                        raise RetryableFailure(unknown, retry_after=failure.retry_after) from failure
                except Conflict as error:
                    if await self._still_shows(shown):  # the agent is not listening yet
                        pause = min(_LONGEST_PAUSE, _NOT_LISTENING * 2.0 ** (attempts.attempt - 1))
                        raise RetryableFailure(error, Doubt.NOT_SENT, retry_after=pause) from error
                    if not attempts.doubts:
                        raise
                tracker.operation.answered(shown, now=_now(), after=after)
                tracker.watch.resumed()
                return

    async def _is_unanswered(self, shown: RunState, after: int) -> bool:
        """Return whether the run waits for an answer that was in doubt: then it is sent once more."""
        if not await self._still_shows(shown):
            return False
        if await ThreadReader(self._context, self._tracker.migration_id).last_sequence(after) == after:
            return True
        await asyncio.sleep(
            LAG
        )  # the events may be late ones from before the answer, and the block an old reading
        return await self._still_shows(shown)

    async def _still_shows(self, shown: RunState) -> bool:
        await self.read()
        raw = self._tracker.raw
        return raw is not None and block_of(raw) == block_of(shown)

    async def cancel(self, *, rank: float = 0.0) -> RunState:
        """Cancel the run, and return what became of it: usually `canceled`, or the end that it had reached before.

        A run that awaits approval may end, stay as it is, or lose its preview: servers differ. `canceled` may come
        later than the server's response, so the run is read until it has ended, for up to a minute. Raises
        `InvalidInput` for a run whose id is not known.
        """
        self._check_id()
        tracker = self._tracker
        call = Call(
            endpoint=routes.CANCEL_RUN,
            ids=tracker.ids,
            body=b'{"status":"cancel_requested"}',
            rank=rank,
        )
        is_refused = False
        try:
            state = await self._soon(call)
        except Conflict:  # the run has ended, or cannot be canceled now
            is_refused = True
            state = await self._read_now()
        for _ in range(_CANCEL_CHECKS):
            if is_refused or state.status in ("canceled", "completed", "failed"):
                break
            await asyncio.sleep(routes.RUN.shortest_floor)
            state = await self._read_now()
        if state.status != "awaiting_approval":
            tracker.watch.observe(await tracker.taken(state, _now()))
        return state

    def _check_id(self) -> None:
        if not self.id:
            raise InvalidInput(
                "run", self.id, "has no known id: its start was lost, and only its preview shows"
            )

    async def _read_now(self) -> RunState:
        return await self._soon(Call(endpoint=routes.READ_RUN, ids=self._tracker.ids))

    async def _soon(self, call: Call) -> RunState:
        """Send a request about the run, again while the server may not know the run yet."""
        while True:
            try:
                return await self._context.caller.call(call, RunState)
            except NotFound:
                if _now() >= self._tracker.operation.requested_at + LAG:
                    raise
            await asyncio.sleep(routes.RUN.shortest_floor)


def _now() -> float:
    return asyncio.get_running_loop().time()


def _not_sent(reason: str) -> Conflict:
    return Conflict(routes.ANSWER.method, routes.ANSWER.template, 409, f"not sent: {reason}")
