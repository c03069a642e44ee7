"""Imports: start one, wait for it, answer its questions, find it again."""

import asyncio
from collections.abc import AsyncIterator, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import msgspec

from asyncmig._io.caller import Call
from asyncmig._io.engine import Engine
from asyncmig._io.gate import Slot
from asyncmig._io.poller import Reading, SecondChannel, Unsure
from asyncmig.companies import routes
from asyncmig.companies.runs import Run
from asyncmig.companies.uploads import Uploaded, upload
from asyncmig.companies.wire import (
    ActiveImport,
    Answer,
    DecisionBody,
    FileRef,
    ImportBody,
    ImportList,
    ImportState,
    NeedsAttention,
    Question,
    RunStarted,
)
from asyncmig.errors import Conflict, InvalidInput, UnknownOutcome

__all__ = ["Custom", "ImportRun", "Imports"]

_ECHO = 30.0
"""Seconds for which a reading may still show the park that was decided (contract: reads may lag)."""


@dataclass(frozen=True, slots=True)
class Custom:
    """An answer in one's own words, where a question allows it."""

    text: str


@final
class Imports:
    """The imports of one company."""

    __slots__ = ("_company_id", "_engine", "_started")

    def __init__(self, engine: Engine, company_id: str) -> None:
        self._engine, self._company_id = engine, company_id
        self._started: list[ImportRun] = []

    @property
    def started(self) -> "Sequence[ImportRun]":
        """The imports that this handle has started."""
        return self._started

    async def start(
        self,
        *,
        files: Sequence[Path | Uploaded] = (),
        rows: Sequence[Mapping[str, object]] = (),
        idempotency_key: str | None = None,
    ) -> "ImportRun":
        """Upload `files` and start an import of them; or of `rows`, column by value.

        `idempotency_key`: starting again with it, and the same payload, returns the same run; drawn at random
        if not given. Raises `InvalidInput` unless there is exactly one of files and rows, `Conflict` when another
        import of the company runs or the key was used with another payload (`active()` tells which).
        """
        if bool(files) == bool(rows):
            raise InvalidInput("files", list(files), "give files or rows, and not both")
        key = new_key(self._engine) if idempotency_key is None else idempotency_key
        if not key:
            raise InvalidInput("idempotency_key", key, "is empty")
        if rows:
            return await self.post(msgspec.json.encode(ImportBody(idempotency_key=key, rows=_plain(rows))))
        uploaded = [
            file if isinstance(file, Uploaded) else await upload(self._engine, self._company_id, file)
            for file in files
        ]
        return await self.post(import_body(key, uploaded))

    async def post(self, body: bytes, *, rank: float = 0.0, group: Hashable = None) -> "ImportRun":
        """Start an import with this exact body: the way to repeat one whose answer was lost.

        `rank`: a lower one goes first among requests that wait. `group`: runs that are expected to take alike.
        """
        call = Call(
            endpoint=routes.START_IMPORT,
            ids={"id": self._company_id},
            body=body,
            rank=rank,
            sent=body.decode(),
        )
        started = await self._engine.caller.call(call, RunStarted)
        run = ImportRun(self._engine, self._company_id, started.run_id, group=group)
        if run.id not in [known.id for known in self._started]:
            self._started.append(run)
        return run

    def open(self, run_id: str, *, age: float | None = None, group: Hashable = None) -> "ImportRun":
        """Return the handle of a run that is known by its id; `age`: seconds since it started, if known."""
        return ImportRun(self._engine, self._company_id, run_id, age=age, group=group)

    async def active(self) -> ImportState | None:
        """Return the newest import that has not ended, or None. Its `run_id` may be missing."""
        call = _active_import(self._company_id)
        return (await self._engine.caller.call(call, ActiveImport)).state()

    async def recover(self) -> "ImportRun | None":
        """Return the import that runs now, or None: the way back to a run whose id was lost.

        Its `id` is empty if the server says neither here nor in the list which run it is.
        """
        state = await self.active()
        if state is None:
            return None
        run_id = state.run_id or state.id or ""
        if not run_id:
            async for listed in self.list():
                if listed.status not in routes.IMPORT.terminal:
                    run_id = listed.run_id or listed.id or ""
                    break
        return ImportRun(self._engine, self._company_id, run_id, age=None)

    async def list(self) -> AsyncIterator[ImportState]:
        """Yield the imports, newest first, over all pages that the server offers."""
        query: dict[str, str] = {}
        while True:
            page = await self._engine.caller.call(_listing(self._company_id, query), ImportList)
            for state in page.imports or page.runs:
                yield state
            if not page.next_cursor or query.get("cursor") == page.next_cursor:
                return
            query = {"cursor": page.next_cursor}


@final
class ImportRun(Run[ImportState]):
    """One import: wait for it, and answer what it asks."""

    ENDPOINT = routes.READ_IMPORT
    LIFECYCLE = routes.IMPORT
    __slots__ = ("_decided", "_decided_at")

    def __init__(
        self, engine: Engine, company_id: str, run_id: str, *, age: float | None = 0.0, group: Hashable = None
    ) -> None:
        second = SecondChannel(gate=engine.gate(routes.LIST_IMPORTS), lookup=self._look_up)
        super().__init__(engine, ImportState, company_id, run_id, age=age, group=group, second=second)
        self._decided: NeedsAttention | None = None
        self._decided_at = 0.0

    @property
    def needs_attention(self) -> NeedsAttention | None:
        """What the run asks, if the last reading showed it parked."""
        state = self.state
        if state is None or state.status not in routes.IMPORT.parked:
            return None
        return state.needs_attention or NeedsAttention()

    async def wait(self, *, through_parks: bool = False) -> ImportState:
        """Wait until the run completes, or parks: `needs_attention` then says what it asks. See `Run.wait`."""
        state = await super().wait(through_parks=through_parks)
        while self._is_echo(state):
            await self.read()
            state = await super().wait(through_parks=through_parks)
        return state

    async def approve(self, answers: Mapping[str, str | Custom] | None = None) -> None:
        """Approve the proposed patch; with `answers`, question ids to option ids or `Custom` texts.

        Raises `InvalidInput` for an answer that was not offered, `Conflict` if somebody else decided first.
        A decision whose answer is lost is repeated only if the run still asks exactly the same.
        """
        shown = await self._shown()
        chosen = tuple(_answer(shown, *pair) for pair in answers.items()) if answers else msgspec.UNSET
        await self._decide(DecisionBody(decision="approve", answers=chosen), shown)

    async def reject(self) -> None:
        """Reject the patch: the run ends as failed. Raises `Conflict` if somebody else decided first."""
        await self._decide(DecisionBody(decision="reject"), await self._shown())

    async def _shown(self) -> NeedsAttention:
        if self.needs_attention is None:
            await self.read()
        if self.needs_attention is None:
            raise InvalidInput("run", self.id, "asks nothing at present: only a parked run can be decided")
        return self.needs_attention

    async def _decide(self, body: DecisionBody, shown: NeedsAttention) -> None:
        encoded = msgspec.json.encode(body)
        call = Call(endpoint=routes.DECIDE, ids=self._ids(), body=encoded, sent=encoded.decode())
        tries = self._engine.caller.tries(routes.READ_IMPORT)
        while True:
            try:
                await self._engine.caller.call(call, _Decided)
            except UnknownOutcome as error:
                state = await self.read()
                if state.needs_attention == shown and state.status in routes.IMPORT.parked:
                    await tries.failed(error)
                    continue
            except Conflict:
                if not tries.doubts:
                    await self.read()
                    raise
            self._decided, self._decided_at = shown, asyncio.get_running_loop().time()
            self._watch.resumed()
            return

    async def _look_up(self, slot: Slot) -> Reading[ImportState] | None:
        """Ask whether this run is the active one: nothing, or another one, says that it has ended."""
        active = (await self._engine.caller.once(_active_import(self.company_id), ActiveImport, slot)).state()
        if active is None:
            return None
        run_id = active.run_id or active.id
        if run_id is None:
            raise Unsure
        if run_id != self.id:
            return None
        return Reading(status=active.status, progress=active.progress_message, value=active)

    def _is_echo(self, state: ImportState) -> bool:
        """Return whether this shows the park that was decided a moment ago, rather than a new one."""
        return (
            self._decided is not None
            and state.status in routes.IMPORT.parked
            and state.needs_attention == self._decided
            and asyncio.get_running_loop().time() < self._decided_at + _ECHO
        )


class _Decided(msgspec.Struct, frozen=True):
    """The answer to a decision: nothing of it is needed."""

    status: str | None = None


def _listing(company_id: str, query: dict[str, str]) -> Call:
    return Call(endpoint=routes.LIST_IMPORTS, ids={"id": company_id}, query=query)


def _active_import(company_id: str) -> Call:
    """Return the call that asks which import runs."""
    return _listing(company_id, {"status": "active"})


def new_key(engine: Engine) -> str:
    """Return an idempotency key that nobody used before."""
    return f"{engine.rng.getrandbits(128):032x}"


def import_body(key: str, files: Iterable[Uploaded]) -> bytes:
    """Return the body that starts an import of `files`."""
    refs = tuple(FileRef(name=file.name, upload_ref=file.upload_ref) for file in files)
    return msgspec.json.encode(ImportBody(idempotency_key=key, files=refs))


def _plain(rows: Iterable[Mapping[str, object]]) -> tuple[dict[str, object], ...]:
    return tuple(dict(row) for row in rows)


def _answer(shown: NeedsAttention, question_id: str, choice: str | Custom) -> Answer:
    question = _question(shown, question_id)
    if isinstance(choice, Custom):
        if not question.allow_custom:
            raise InvalidInput(
                f"answers[{question_id!r}]", choice.text, "this question takes only its options"
            )
        if not choice.text.strip():
            raise InvalidInput(f"answers[{question_id!r}]", choice.text, "is empty")
        return Answer(question_id=question_id, custom=choice.text)
    offered = [option.id for option in question.options]
    if choice not in offered:
        raise InvalidInput(f"answers[{question_id!r}]", choice, f"is not one of {offered}")
    return Answer(question_id=question_id, option_id=choice)


def _question(shown: NeedsAttention, question_id: str) -> Question:
    for question in shown.questions:
        if question.id == question_id:
            return question
    asked = [question.id for question in shown.questions]
    raise InvalidInput("answers", question_id, f"was not asked; asked were {asked}")
