"""Imports: start one, wait for it, decide it, find it again."""

import asyncio
import logging
from collections.abc import AsyncIterator, Hashable, Iterable, Mapping, MutableSequence, Sequence
from pathlib import Path
from typing import TypeAlias, cast, final

import msgspec

from asyncmig._core.arguments import checked_call, checked_text
from asyncmig._core.decode import Unreadable, convert
from asyncmig._core.lifecycle import HasStatus, Phase
from asyncmig._io.attempts import RetryableFailure
from asyncmig._io.call import Call
from asyncmig._io.context import SessionContext
from asyncmig._io.gate import Slot
from asyncmig._io.poller import Reading, SecondChannel, Unsure
from asyncmig._io.reply import Reply, unreadable
from asyncmig._io.threads import in_thread
from asyncmig.companies import routes
from asyncmig.companies.pages import Page, read_page
from asyncmig.companies.review import checked_answers, mark_of
from asyncmig.companies.rows import checked_rows, to_csv, to_json
from asyncmig.companies.runs import Run
from asyncmig.companies.state import ClientState, DecidedParks
from asyncmig.companies.uploads import ToUpload, Uploaded, upload_all
from asyncmig.companies.wire import (
    ActiveImport,
    DecisionBody,
    FileRef,
    ImportBody,
    ImportState,
    ListedImport,
    RunStarted,
)
from asyncmig.customers.ids import IMPORT, checked_id
from asyncmig.customers.paths import Inputs
from asyncmig.customers.questions import Custom, NeedsAttention
from asyncmig.errors import ApiError, BadRequest, Conflict, InvalidInput, UnknownOutcome

__all__ = ["ImportRun", "Imports"]

_log = logging.getLogger("asyncmig")
_FRESH = 10.0
"""Seconds for which a parked run that was read may be decided without another read."""
_PAGES = 1000
"""Maximum number of pages of a list, because a server could name a next page forever."""
_ROWS = "rows.csv"
_NO_LIST = frozenset({400, 404, 405, 501})
"""The statuses of a server that has no list of imports."""
# In `Imports` the name `list` is a method, where tools that evaluate annotations do not find the type.
_Runs: TypeAlias = MutableSequence["ImportRun"]
_Arrived: TypeAlias = dict[str, list[Uploaded]]


@final
class Imports:
    """The imports of one company, as `company.imports`."""

    __slots__ = ("_arrived", "_company_id", "_context", "_inputs", "_started")

    def __init__(self, context: SessionContext, company_id: str, inputs: Inputs) -> None:
        self._context, self._company_id, self._inputs = context, company_id, inputs
        self._started: _Runs = []
        self._arrived: _Arrived = {}
        """The uploads made under an idempotency key. A repeat must send the same references."""

    @property
    def started(self) -> "Sequence[ImportRun]":
        """The imports that this handle has started."""
        return self._started

    @checked_call
    async def start(
        self,
        *,
        files: Sequence[Path | str | Uploaded] | Path | str | Uploaded | None = (),
        rows: Iterable[Mapping[str, object]] | None = (),
        idempotency_key: str | None = None,
        max_inline_rows: int = 500,
        max_inline_bytes: int = 256_000,
    ) -> "ImportRun":
        """Upload `files` in parallel and start an import of them, or start an import of `rows`.

        ```python
        first = await company.imports.start(files=[Path("contacts.csv"), Path("deals.csv")])
        await first.wait()
        second = await company.imports.start(rows=[{"Email": "ada@example.com", "Last Name": "Lovelace"}])
        await second.wait()
        ```

        - `files`: paths, or uploads from `company.upload`.
        - `rows`: mappings of column to value. They are sent in the request, or as a CSV file if there are more
          than `max_inline_rows`, if they take more than `max_inline_bytes`, or if the server refuses them in the
          request. In the file, None is an empty cell, and any other value is the text of its JSON form: numbers,
          `true`, ISO 8601 dates.
        - `idempotency_key`: starting again with the same key and payload returns the same run; this handle then
          sends the uploads of the first attempt again. Drawn at random by default.

        Raises `InvalidInput` before a request is spent: if not exactly one of files and rows is given, for a
        missing or empty file, a column without a name, and a value without a JSON form. Raises `Conflict` if
        another import of the company runs, or if the key was used with another payload (`recover()` tells which).
        """
        given, listed = _checked_files(files), [] if rows is None else list(rows)
        if bool(given) == bool(listed):
            raise InvalidInput("files", given, "give files or rows, and not both")
        key = new_key(self._context) if idempotency_key is None else idempotency_key
        checked_text("idempotency_key", key)
        self._inputs.add(file for file in given if isinstance(file, Path))
        known = [] if idempotency_key is None else self._arrived.setdefault(key, [])
        if not listed:
            return await self._start_files(key, given, known)
        checked = await in_thread(checked_rows, listed)
        inline = await in_thread(to_json, checked, most_rows=max_inline_rows, most_bytes=max_inline_bytes)
        # Both forms go under the same key: a refusal makes no run and takes no key. But where the answer to the
        # inline form was lost, and only a repeat of it was refused (by another proxy, say), its rows may be imported
        # already: then the key makes the file a 409; under a key of its own it would be imported besides.
        if inline is not None:
            try:
                return await self.post(msgspec.json.encode(ImportBody(idempotency_key=key, rows=inline)))
            except BadRequest as error:  # 400 or 413: the limit of this form is not documented
                _log.info("%d rows were refused with %d, and go as a file", len(checked), error.status)
        return await self._start_files(key, [(_ROWS, await in_thread(to_csv, checked))], known)

    async def _start_files(self, key: str, files: Sequence[ToUpload], known: "list[Uploaded]") -> "ImportRun":
        uploaded = await upload_all(self._context, self._company_id, files, known=known)
        return await self.post(import_body(key, uploaded))

    async def post(self, body: bytes, *, rank: float = 0.0, group: Hashable = None) -> "ImportRun":
        """Start an import with this exact body, to repeat a request whose response was lost.

        `rank`: among waiting requests, the one with the lowest rank is sent first. `group`: runs with the same
        group are expected to take about the same time.
        """
        call = Call(
            endpoint=routes.START_IMPORT,
            ids={"id": self._company_id},
            body=body,
            rank=rank,
            loggable_body=body.decode(),
        )
        started = await self._context.caller.call(call, RunStarted)
        run = ImportRun(self._context, self._company_id, started.run_id, group=group, status=started.status)
        if run.id not in [known.id for known in self._started]:
            self._started.append(run)
        return run

    @checked_call
    def open(self, run_id: str, *, age: float | None = None, group: Hashable = None) -> "ImportRun":
        """Return the handle of an import run with a known id, without a request.

        ```python
        state = await session.companies.open(company.id).imports.open(run.id).wait()
        ```

        `age`: seconds since the run started, if known; older runs are polled less often. `group`: as in `post`.
        Raises `InvalidInput` if it is not an id.
        """
        checked = checked_id("run_id", run_id, IMPORT)
        return ImportRun(self._context, self._company_id, checked, age=age, group=group)

    async def active(self, *, rank: float = 0.0) -> ImportState | None:
        """Return the newest import that has not ended, or None. Its `run_id` may be missing.

        ```python
        if await company.imports.active() is None:
            started = await company.imports.start(files=[Path("contacts.csv")])
        ```
        """
        call = _active_import(self._company_id, rank)
        return (await self._context.caller.call(call, ActiveImport)).state()

    async def recover(self, *, rank: float = 0.0) -> "ImportRun | None":
        """Return the handle of the running import, or None: use it when the id of a run was lost.

        ```python
        try:
            started = await company.imports.start(files=[Path("contacts.csv")], idempotency_key="acme-1")
        except asyncmig.Conflict:
            started = await company.imports.recover()
        ```

        Its `id` is empty if the server names the run neither here nor in the list. Then only the end of the run
        can be noticed.
        """
        state = await self.active(rank=rank)
        if state is None:
            return None
        if not (state.run_id or state.id):
            try:
                async for listed in self.list(rank=rank):
                    if listed.status not in routes.IMPORT.terminal:
                        state = listed
                        break
            except ApiError as error:
                if error.status not in _NO_LIST:
                    raise
        return self.found(state)

    def found(self, state: ImportState) -> "ImportRun":
        """Return the handle for an import from a list or a lookup. If it has ended or is parked, it is read next."""
        run_id = state.run_id or state.id or ""
        return ImportRun(self._context, self._company_id, run_id, age=None, status=state.status)

    async def list(self, *, rank: float = 0.0) -> AsyncIterator[ImportState]:
        """Yield the imports of the company, newest first, each once, over all pages.

        ```python
        completed = [state async for state in company.imports.list() if state.status == "completed"]
        ```

        The contract does not describe the pagination, so every common form is understood, and without one a
        single request is made. A page without new items is the last one. Fields that an import lacks are None,
        and its status is "".
        """
        async for states, is_cut in self.pages(rank=rank):
            for state in states:
                yield state
            if is_cut:
                _log.warning("imports of company %s: there are more than the server gives", self._company_id)

    async def pages(self, *, rank: float = 0.0) -> AsyncIterator[tuple[Sequence[ImportState], bool]]:
        """Yield the items of `list` page by page, and whether the server withholds further items."""
        query: Mapping[str, str] = {}
        asked: set[frozenset[tuple[str, str]]] = set()
        seen: set[str] = set()
        while len(asked) < _PAGES:
            asked.add(frozenset(query.items()))
            reply = await self._context.caller.reply(_listing(self._company_id, query, rank))
            page, listed = await in_thread(_read_listing, reply)
            states = [state for state in listed if _mark(state) not in seen]
            seen.update(map(_mark, states))
            is_last = not states or page.next is None or frozenset(page.next.items()) in asked
            yield states, page.cut or (is_last and len(seen) < (page.total or 0))
            if is_last or page.next is None:
                return
            query = page.next


def _read_listing(reply: Reply) -> tuple[Page, tuple[ListedImport, ...]]:
    """Return a page of a list and its items. Raises `UnexpectedReply` for a page that cannot be decoded. May take
    long.
    """
    page = read_page(reply.json(), reply.headers.get("link", ""))
    try:
        return page, convert(list(page.items), tuple[ListedImport, ...])
    except Unreadable as error:
        raise unreadable(reply.method, reply.endpoint, reply.status, reply.content, error) from error


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
        return None if state is None or self._is_echo(state) else _asked(state)

    async def wait(self, *, through_parks: bool = False) -> ImportState:
        """Wait until the run completes or parks; `needs_attention` then has the questions. See `Run.wait`."""
        state = await super().wait(through_parks=through_parks)
        while self._is_echo(state):
            await self.read()
            state = await super().wait(through_parks=through_parks)
        return state

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

        The server decides what happens to questions without an answer: as proposed, or nothing. Answers concern
        only the questions; the patch may have further actions (`needs_attention.destructive`).

        Raises `InvalidInput` for an answer that was not offered; `Conflict` if the run was already decided, or if
        it asks something else than the last reading showed; `UnknownOutcome` when the attempts are used up. A
        decision whose response was lost is repeated only if the run still asks exactly the same.
        """
        shown = await self._shown()
        chosen = checked_answers(shown, answers) if answers else msgspec.UNSET
        await self._decide(DecisionBody(decision="approve", answers=chosen), shown, rank)

    async def reject(self, *, rank: float = 0.0) -> None:
        """Reject the patch. The run ends as failed, and `wait` raises `RunFailed`.

        ```python
        if run.needs_attention is not None:
            await run.reject()
        ```

        The server decides whether valid rows are kept. Raises the same errors as `approve`.
        """
        await self._decide(DecisionBody(decision="reject"), await self._shown(), rank)

    async def _shown(self) -> NeedsAttention:
        """Return the questions that are decided: those of the last reading, if the run still asks them."""
        shown = self.needs_attention
        if shown is None:
            state = await self.read()
            if self._is_echo(state):
                raise _not_sent("the question of the run was already decided")
            if self.needs_attention is None:
                raise InvalidInput("run", self.id, "asks nothing now: only a parked run can be decided")
            return self.needs_attention
        if asyncio.get_running_loop().time() - self._watch.entry.last_seen > _FRESH:
            await self.read()
            asked = self.needs_attention
            if asked is not None and asked != shown:  # question ids may start again in every park
                raise _not_sent("the run now asks something else")
        return shown

    async def _decide(self, body: DecisionBody, shown: NeedsAttention, rank: float) -> None:
        encoded = msgspec.json.encode(body)
        call = Call(
            endpoint=routes.DECIDE, ids=self._ids(), body=encoded, rank=rank, loggable_body=encoded.decode()
        )
        attempts = self._context.caller.repeated(routes.READ_IMPORT, self._ids())
        while True:
            async with attempts:
                status = ""
                try:
                    # An earlier attempt may have been slow rather than lost, so the run is read once more first.
                    if not attempts.doubts or await self._still_asks(shown):
                        status = (await self._context.caller.call(call, _DecisionReply)).status
                except UnknownOutcome as error:
                    if await self._still_asks(shown):
                        raise RetryableFailure(error) from error
                except Conflict:
                    if not attempts.doubts:
                        self.note_decision(mark_of(shown))  # another process or person decided
                        await self.read()
                        raise
                self.note_decision(mark_of(shown))
                self._watch.resumed()
                self._watch.announced(status)
                return

    def note_decision(self, mark: str, *, age: float = 0.0) -> None:
        """Remember that the park with this mark (`review.mark_of`) was decided `age` seconds ago.

        For 30 s after a decision, and for 16 readings, a reading that shows this park is outdated. This applies
        to every handle of the run in this session.
        """
        now = asyncio.get_running_loop().time()
        self._decided.add(self._watch.run, mark, at=now - age, now=now)

    async def _read(self, slot: Slot) -> Reading[ImportState]:
        reading = await super()._read(slot)
        asked = _asked(reading.value)
        ended = self.LIFECYCLE.phase(reading.status) is Phase.TERMINAL
        self._decided.saw(self._watch.run, None if asked is None else mark_of(asked), ended=ended)
        return reading

    @property
    def _decided(self) -> DecidedParks:
        return self._context.kept(ClientState).decided

    async def _still_asks(self, shown: NeedsAttention) -> bool:
        await self.read()
        return self.needs_attention == shown

    async def _look_up(self, slot: Slot) -> Reading[ImportState] | None:
        """Ask whether this run is the active one. If none or another one is active, this run has ended."""
        active = (
            await self._context.caller.send_once(_active_import(self.company_id), ActiveImport, slot)
        ).state()
        if active is None:
            return None
        run_id = active.run_id or active.id
        if run_id is None:
            raise Unsure
        if run_id != self.id:
            return None
        return Reading(status=active.status, progress=active.progress_message, value=active)

    def _is_echo(self, state: ImportState) -> bool:
        """Return whether this reading shows the park that was just decided, rather than a new one."""
        asked, now = _asked(state), asyncio.get_running_loop().time()
        return asked is not None and self._decided.is_echo(self._watch.run, mark_of(asked), now=now)


def _not_sent(reason: str) -> Conflict:
    return Conflict(routes.DECIDE.method, routes.DECIDE.template, 409, f"not sent: {reason}")


def _asked(state: ImportState) -> NeedsAttention | None:
    """Return the questions of a run, if it is parked."""
    return (state.needs_attention or NeedsAttention()) if state.status in routes.IMPORT.parked else None


class _DecisionReply(HasStatus, frozen=True, kw_only=True):
    """The response to a decision."""

    status: str = ""


def _checked_files(files: object) -> list[Path | Uploaded]:
    if isinstance(files, Path | str | Uploaded):
        files = [files]
    if files is not None and (not isinstance(files, Sequence) or isinstance(files, bytes)):
        raise InvalidInput("files", files, "must be a sequence of paths and uploads")
    checked: list[Path | Uploaded] = []
    for file in cast("Sequence[object]", files or ()):
        if not isinstance(file, Path | str | Uploaded):
            raise InvalidInput(
                "files", file, "is neither a path nor an Uploaded: give company.upload(...) it first"
            )
        checked.append(Path(file) if isinstance(file, str) else file)
    return checked


def _listing(company_id: str, query: Mapping[str, str], rank: float) -> Call:
    return Call(endpoint=routes.LIST_IMPORTS, ids={"id": company_id}, query=query, rank=rank)


def _active_import(company_id: str, rank: float = 0.0) -> Call:
    """Return the request for the active import."""
    return _listing(company_id, {"status": "active"}, rank)


def new_key(context: SessionContext) -> str:
    """Return a new random idempotency key."""
    return f"{context.rng.getrandbits(128):032x}"


def import_body(key: str, files: Iterable[Uploaded]) -> bytes:
    """Return the body that starts an import of `files`."""
    refs = tuple(FileRef(name=file.name, upload_ref=file.upload_ref) for file in files)
    return msgspec.json.encode(ImportBody(idempotency_key=key, files=refs))


def _mark(state: ImportState) -> str:
    """Return what identifies an import: its id, or else everything that is known of it."""
    return state.run_id or state.id or msgspec.json.encode(state).decode()
