"""The handle of one import run: wait for it, and decide it while it is parked.

A run may park several times. Reads may lag, so a reading can still show a park that was already decided; such a
reading is outdated. The digest of the questions tells the parks of a run apart.
"""

import asyncio
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from typing import final

import msgspec

from asyncmig._core.arguments import checked_call
from asyncmig._core.endpoint import Repeat
from asyncmig._core.lifecycle import HasStatus, Phase
from asyncmig._core.retry import Doubt
from asyncmig._io.attempts import RetryableFailure
from asyncmig._io.call import Call
from asyncmig._io.context import SessionContext
from asyncmig._io.gate import Slot
from asyncmig._io.poller import Reading, SecondChannel, Unsure
from asyncmig.companies import routes
from asyncmig.companies.runs import Run
from asyncmig.companies.wire import ActiveImport, AnswerBody, DecisionBody, ImportState
from asyncmig.customers.questions import Custom, NeedsAttention, check_answers
from asyncmig.errors import Conflict, InvalidInput

__all__ = ["ImportRun", "active_import"]

_READ_AND_DECIDE = replace(routes.DECIDE, repeat=Repeat.ALWAYS)
"""A decision that may be repeated, because the run is read before each repeat."""
_FRESH = 10.0
"""Seconds after a reading for which its questions may be decided without another reading."""
_ECHO_SECONDS = 30.0
"""Seconds after a decision for which a reading may still show the park (contract: reads may lag)."""
_ECHO_READS = 16
"""Readings that may show the park even later: an old run is read only every 30 s."""
_FORGET_AFTER = 3600.0
"""Seconds after which the decision about a run is forgotten."""


@final
class ImportRun(Run[ImportState]):
    """The handle of one import run: wait for it, and decide it."""

    ENDPOINT = routes.READ_IMPORT
    LIFECYCLE = routes.IMPORT
    __slots__ = ()

    def __init__(
        self,
        context: SessionContext,
        company_id: str,
        run_id: str,
        *,
        age: float | None = 0.0,
        group: Hashable = None,
        status: str = "",
    ) -> None:
        second = SecondChannel(gate=context.gate(routes.LIST_IMPORTS), lookup=self._look_up)
        super().__init__(
            context, ImportState, company_id, run_id, age=age, group=group, second=second, status=status
        )

    @property
    def needs_attention(self) -> NeedsAttention | None:
        """The questions of the run, if the last reading showed it parked. None after a decision that was just made.

        ```python
        if run.needs_attention is not None:
            for question in run.needs_attention.questions:
                print(question.prompt, [option.label for option in question.options])
        ```
        """
        state = self.state
        return None if state is None or self._is_outdated(state) else _questions_of(state)

    @checked_call
    async def approve(self, answers: Mapping[str, str | Custom] | None = None, *, rank: float = 0.0) -> None:
        """Approve the proposed patch as it is, or with `answers`: question ids to option ids or `Custom` texts.

        ```python
        asked = run.needs_attention
        if asked is not None and not asked.is_destructive:
            await run.approve()
        elif asked is not None:
            await run.approve(answers={question.id: question.options[0].id for question in asked.questions})
        ```

        The server decides what happens to questions without an answer: the proposed action, or none. Answers
        concern only the questions; the patch may have further actions (`needs_attention.destructive`). `rank`:
        among waiting requests, the one with the lowest rank is sent first.

        Raises `InvalidInput` for an answer that was not offered; `Conflict` if the run was already decided, or if
        it now asks other questions than the last reading showed; `UnknownOutcome` when the attempts are used up. A
        decision whose response was lost is repeated only if the run still asks exactly the same questions.
        """
        shown = await self._shown()
        check_answers(shown, answers or {})
        chosen = _bodies(answers) if answers else msgspec.UNSET
        await self._decide(DecisionBody(decision="approve", answers=chosen), shown, rank)

    async def reject(self, *, rank: float = 0.0) -> None:
        """Reject the proposed patch. The run ends as failed, and `wait` raises `RunFailed`.

        ```python
        if run.needs_attention is not None:
            await run.reject()
        ```

        The server decides whether valid rows are kept. Raises the same errors as `approve`.
        """
        await self._decide(DecisionBody(decision="reject"), await self._shown(), rank)

    async def _shown(self) -> NeedsAttention:
        """Return the questions to decide: those of the last reading, if the run still asks them."""
        shown = self.needs_attention
        if shown is None:
            state = await self.read()
            if self._is_outdated(state):
                raise _not_sent("the question of the run was already decided")
            if self.needs_attention is None:
                raise InvalidInput("run", self.id, "asks nothing now: only a parked run can be decided")
            return self.needs_attention
        if asyncio.get_running_loop().time() - self._watch.entry.last_seen > _FRESH:
            await self.read()
            asked = self.needs_attention
            if asked is not None and asked != shown:  # question ids may be the same in every park
                raise _not_sent("the run now asks something else")
        return shown

    async def _decide(self, body: DecisionBody, shown: NeedsAttention, rank: float) -> None:
        caller, encoded = self._context.caller, msgspec.json.encode(body)
        call = Call(endpoint=_READ_AND_DECIDE, ids=self._ids(), body=encoded, rank=rank)
        attempts = caller.repeated(call.endpoint, call.ids, loggable_body=encoded.decode())
        while True:
            async with attempts:
                status = ""
                try:
                    # The previous attempt may have arrived late, so read the run again before another one.
                    if not attempts.doubts or await self._still_asks(shown):
                        status = (await caller.attempt(call, _DecisionReply, attempts)).status
                except RetryableFailure as failure:
                    if failure.doubt is not Doubt.MAYBE:
                        raise
                    if await self._still_asks(shown):
                        unknown = attempts.unknown(str(failure.error))
                        unknown.__cause__ = failure.error
                        raise RetryableFailure(unknown, retry_after=failure.retry_after) from failure
                except Conflict:
                    if not attempts.doubts:
                        self.note_decision(shown.digest)  # another process or person decided
                        await self.read()
                        raise
                self.note_decision(shown.digest)
                self._watch.resumed()
                self._watch.announced(status)
                return

    def note_decision(self, mark: str, *, age: float = 0.0) -> None:
        """Remember that the park with this mark (the digest of its questions) was decided `age` seconds ago.

        For 30 s after a decision, and for 16 readings, a reading that shows this park is outdated. This applies
        to every handle of the run in this session.
        """
        now = asyncio.get_running_loop().time()
        self._decided.add(self._watch.run, mark, at=now - age, now=now)

    async def _read(self, slot: Slot) -> Reading[ImportState]:
        reading = await super()._read(slot)
        asked = _questions_of(reading.value)
        ended = self.LIFECYCLE.phase(reading.status) is Phase.TERMINAL
        self._decided.saw(self._watch.run, None if asked is None else asked.digest, ended=ended)
        return reading

    @property
    def _decided(self) -> "_DecidedParks":
        return self._context.kept(_DecidedParks)

    def _is_outdated(self, state: ImportState) -> bool:
        """Return whether this reading shows a park that was already decided."""
        asked, now = _questions_of(state), asyncio.get_running_loop().time()
        return asked is not None and self._decided.is_echo(self._watch.run, asked.digest, now=now)

    async def _still_asks(self, shown: NeedsAttention) -> bool:
        await self.read()
        return self.needs_attention == shown

    async def _look_up(self, slot: Slot) -> Reading[ImportState] | None:
        """Return a reading of this run if it is the active import, or None: then it has ended.

        Raises `Unsure` if the response does not say which run is active.
        """
        reply = await self._context.caller.send_once(active_import(self.company_id), ActiveImport, slot)
        active = reply.state()
        if active is None:
            return None
        run_id = active.run_id or active.id
        if run_id is None:
            raise Unsure
        if run_id != self.id:
            return None
        return Reading(status=active.status, progress=active.progress_message, value=active)


class _DecisionReply(HasStatus, frozen=True, kw_only=True):
    """The response to a decision."""

    status: str = ""


def active_import(company_id: str, rank: float = 0.0) -> Call:
    """Return the request for the import of a company that has not ended."""
    return Call(endpoint=routes.LIST_IMPORTS, ids={"id": company_id}, query={"status": "active"}, rank=rank)


def _not_sent(reason: str) -> Conflict:
    return Conflict(routes.DECIDE.method, routes.DECIDE.template, 409, f"not sent: {reason}")


def _questions_of(state: ImportState) -> NeedsAttention | None:
    """Return the questions of a parked run, or None if it is not parked."""
    return (state.needs_attention or NeedsAttention()) if state.status in routes.IMPORT.parked else None


# Decided parks


@dataclass(slots=True)
class _Decided:
    mark: str
    at: float
    reads: int = 0


@final
class _DecidedParks:
    """The last decided park of each run, for as long as a reading may still show it.

    Kept for the whole session: several handles may read the same run, and the handle that decided may be gone.
    Times are on the loop's clock.
    """

    __slots__ = ("_by_run",)

    def __init__(self) -> None:
        self._by_run: dict[Hashable, _Decided] = {}

    def add(self, run: Hashable, mark: str, *, at: float, now: float) -> None:
        """Remember that the park of `run` with this mark was decided at `at`."""
        for other in [each for each, decided in self._by_run.items() if decided.at + _FORGET_AFTER <= now]:
            del self._by_run[other]
        self._by_run[run] = _Decided(mark, at)

    def saw(self, run: Hashable, mark: str | None, *, ended: bool) -> None:
        """Record a reading of `run`. `mark`: the park that it shows, or None."""
        decided = self._by_run.get(run)
        if decided is None:
            return
        if ended:
            del self._by_run[run]
        elif decided.mark == mark:
            decided.reads += 1
        else:
            decided.reads = _ECHO_READS

    def is_echo(self, run: Hashable, mark: str, *, now: float) -> bool:
        """Return whether a reading may show this park only because it lags: the park was decided recently."""
        decided = self._by_run.get(run)
        if decided is None or decided.mark != mark:
            return False
        return now < decided.at + _ECHO_SECONDS or decided.reads < _ECHO_READS


# Answers


def _bodies(answers: Mapping[str, str | Custom]) -> tuple[AnswerBody, ...]:
    """Return answers in the form in which they are sent."""
    return tuple(
        AnswerBody(question_id=question_id, custom=choice.text)
        if isinstance(choice, Custom)
        else AnswerBody(question_id=question_id, option_id=choice)
        for question_id, choice in answers.items()
    )
