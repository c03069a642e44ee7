"""What a blocked run asks, and the answers to it, each sent exactly once.

An answer has no key, and a blind repeat could answer the next questions. So the run is read before each attempt that
may be a repeat. An answer whose response was lost is sent again only if the run still asks exactly the same.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, final

import msgspec

from asyncmig._core.endpoint import Repeat
from asyncmig._core.retry import Doubt
from asyncmig._core.secrets import HidesSecrets, json_secrets
from asyncmig._io.attempts import RetryableFailure
from asyncmig._io.call import Call
from asyncmig._io.context import SessionContext
from asyncmig.customers.questions import Custom
from asyncmig.errors import Conflict, InvalidInput
from asyncmig.migrations import routes
from asyncmig.migrations.operation import LAG, block_of
from asyncmig.migrations.thread import last_sequence
from asyncmig.migrations.wire import AnswerBody, CredentialRequest, Question, RunStarted, RunState

__all__ = [
    "AnswerNoted",
    "AnswerPoint",
    "CredentialsNeeded",
    "Questions",
    "checked_answers",
    "checked_secrets",
    "not_sent",
    "send_answer",
]

_NOT_LISTENING, _LONGEST_PAUSE = 10.0, 60.0
"""Seconds before an answer is sent again because the agent was not listening yet; they double each time."""
_CHECKED = {each: replace(each, repeat=Repeat.ALWAYS) for each in (routes.ANSWER, routes.SUBMIT_CREDENTIALS)}
"""The endpoints of `send_answer`, which checks the run before each repeat."""


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


class AnswerPoint(HidesSecrets, frozen=True, kw_only=True):
    """What was known before an answer. With it, another process can find out whether the answer was accepted."""

    shown: RunState
    """The block that is answered."""
    after: int
    """The last sequence of the thread; -1 without events."""

    _SHOWN: ClassVar = ("after",)


AnswerNoted = Callable[[AnswerPoint], Awaitable[None]]
"""Called before an answer is sent, for example to write the point to a journal; again after a 429."""


def checked_secrets(field: str, secrets: Mapping[str, object]) -> dict[str, object]:
    """Return credentials as JSON values. Raises `InvalidInput`, which shows no value, for others."""
    if not secrets:
        raise InvalidInput(field, "***", "is empty")
    return json_secrets(field, secrets)


def checked_answers(
    asked: Sequence[Question], answers: Mapping[str, str | Custom] | str
) -> tuple[AnswerBody, ...]:
    """Return the answers to send: one for each question. Raises `InvalidInput` for others."""
    ids = [question.id for question in asked]
    if not asked:
        raise InvalidInput(
            "answers", answers, "the run is blocked and shows no questions; only a person can help"
        )
    if isinstance(answers, str):
        if len(asked) > 1:
            raise InvalidInput("answers", answers, f"a plain text cannot answer {len(ids)} questions: {ids}")
        answers = {ids[0]: answers}
    for question_id in answers:
        if question_id not in ids:
            raise InvalidInput("answers", question_id, f"is not a question of this run, which asks {ids}")
    if len(set(ids)) < len(ids):
        raise InvalidInput(
            "answers", ids, "several questions have the same id: an answer cannot distinguish them"
        )
    if missing := [each for each in ids if each not in answers]:
        raise InvalidInput("answers", missing, "have no answer: the server may guess it")
    return tuple(AnswerBody(id=each.id, value=_value(each, answers[each.id])) for each in asked)


def _value(question: Question, choice: str | Custom) -> str:
    """Return the text to send: the label of an option, or free text."""
    field, labels = f"answers[{question.id!r}]", [option.label or option.id for option in question.options]
    text = choice.text if isinstance(choice, Custom) else choice
    if not text.strip():
        raise InvalidInput(field, text, "is empty")
    if text in labels or not labels:
        return text
    if isinstance(choice, Custom):
        if not question.allow_custom:
            raise InvalidInput(field, text, f"this question takes only its options: {labels}")
        return text
    by_id = [label for option, label in zip(question.options, labels, strict=True) if option.id == text]
    if len(by_id) != 1:
        hint = "; use Custom(...) for your own text" if question.allow_custom else ""
        raise InvalidInput(field, text, f"is not one of {labels}{hint}")
    return by_id[0]


async def send_answer(
    context: SessionContext,
    call: Call,
    shown: RunState,
    *,
    since: int,
    is_stale: Callable[[], bool],
    read: Callable[[], Awaitable[RunState | None]],
    noted: AnswerNoted | None,
) -> int:
    """Send the answer to the block in `shown`. Return the last sequence of the thread before it; `since` at least.

    `is_stale`: says whether the last reading of the run is too old. `read`: reads the run. Raises as `Run.answer`.
    """
    call = msgspec.structs.replace(call, endpoint=_CHECKED[call.endpoint])
    after = await last_sequence(context, call.ids["id"], since)
    attempts = context.caller.repeated(call.endpoint, call.ids, loggable_body=call.loggable_body)

    async def is_shown() -> bool:
        state = await read()
        return state is not None and block_of(state) == block_of(shown)

    async def is_unanswered() -> bool:
        """Return whether the run waits for an answer that was in doubt: then it is sent once more."""
        if not await is_shown():
            return False
        if await last_sequence(context, call.ids["id"], after) == after:
            return True
        await asyncio.sleep(LAG)  # the events may be from before the answer, and the block an old reading
        return await is_shown()

    async def before() -> None:
        """Read the run again: the slot may have taken an hour, and an earlier attempt may have arrived late."""
        if (is_stale() or attempts.attempt > 1) and not await is_shown():
            raise not_sent("the run now asks something else")
        if noted is not None and not attempts.doubts:
            await noted(AnswerPoint(shown=msgspec.structs.replace(shown, answers=None), after=after))

    while True:
        async with attempts:
            try:
                await context.caller.attempt(call, RunStarted, attempts, before=before)
            except RetryableFailure as failure:
                if failure.doubt is not Doubt.MAYBE:
                    raise
                if await is_unanswered():
                    unknown = attempts.unknown(str(failure.error))
                    unknown.__cause__ = failure.error
                    raise RetryableFailure(unknown, retry_after=failure.retry_after) from failure
            except Conflict as error:
                if await is_shown():  # the agent is not listening yet
                    pause = min(_LONGEST_PAUSE, _NOT_LISTENING * 2.0 ** (attempts.attempt - 1))
                    raise RetryableFailure(error, Doubt.NOT_SENT, retry_after=pause) from error
                if not attempts.doubts:
                    raise
            return after


def not_sent(reason: str) -> Conflict:
    """Return the error for an answer that does not fit what the run asks now."""
    return Conflict(routes.ANSWER.method, routes.ANSWER.template, 409, f"not sent: {reason}")
