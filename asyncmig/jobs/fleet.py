"""Any number of migrations at once: admission, order, outcomes as they come, an orderly end."""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, Unpack, cast, final, get_args

import anyio

from asyncmig import generations
from asyncmig._core.arguments import checked_call, checked_path
from asyncmig._io.event_loop import AsyncOnly, LoopGuard
from asyncmig._io.threads import in_thread
from asyncmig.customers.file_names import check_utf8, customer_folder
from asyncmig.customers.options import MigrationKeywords, MigrationOptions, combined
from asyncmig.customers.outcome import Outcome
from asyncmig.customers.paths import FolderLookup, Inputs, Key, keys_of
from asyncmig.customers.spec import CheckedSpec, Spec, check_different, checked_spec, each_spec, failed
from asyncmig.errors import CustomerHeld, InvalidInput, JournalError, SessionClosed, UsageError
from asyncmig.jobs.migrate import migrate_safely, pending
from asyncmig.jobs.run_slots import recover_run_slots
from asyncmig.journal import DatabaseJournal, JournalPlace, JournalPort, open_journal
from asyncmig.session import Session, context_of

__all__ = ["Fleet", "WhenHeld", "WhenNoRunSlot"]

_LEFT = UsageError("this Fleet was left: submit and run inside its `async with` block, or open a new one")
WhenHeld = Literal["wait", "return"]
"""What a fleet does with a customer that another live process holds."""
WhenNoRunSlot = Literal["wait", "return"]
"""What a fleet does with a start while every run slot is held by a run that waits for a person."""
_RECHECK = 2.0
"""Seconds between attempts to claim a customer that another process holds."""
_LONGEST_READ = 60.0
"""Seconds that a customer waits for others to read their files: reads of a network drive may hang."""
_AT_ONCE = 50
"""Migrations that are begun in one turn of the loop: others who share it need not wait for all of them."""


@final
class Fleet(AsyncOnly):
    """Drives migrations of one session, at most `concurrency` at once, the longest first.

    `journal`: a journal that is open, or the place of one (see `open_journal`).

    `to`: the folder that gets `EXTERNAL_ID/SHEET.csv`. `options`: the
    options of every migration; its fields can also be given as keywords, which take precedence.
    `api`: the API generation. `protected`: files that no sheet replaces, besides those of the specs.

    `when_held`: what to do with a customer that another live process holds: `"wait"` until it is free and continue
    it, or `"return"` a `Pending` outcome with the reason `held`. A customer that waits does not count towards
    `concurrency`.

    `when_no_run_slot`: what to do with a customer that cannot start a run because every run slot of the account is
    held by a run that waits for a person: `"wait"` until one was answered, or `"return"` a `Pending` outcome with the
    reason `no_run_slot`. The event `RunSlotsBlocked` reports it.

    Leaving the block cancels the migrations that have not ended. Their runs continue on the server, and the same
    specs continue from there. A failure or bad input of one customer never affects another.
    Used outside its `async with` block, or on another event loop, it raises `UsageError`.
    """

    __slots__ = (
        "_draining",
        "_generation",
        "_guard",
        "_inputs",
        "_journal",
        "_options",
        "_own_journal",
        "_places",
        "_session",
        "_submitted",
        "_tasks",
        "_to",
        "_when_held",
        "_when_no_run_slot",
    )

    @checked_call
    def __init__(
        self,
        session: Session,
        *,
        journal: JournalPort | Path | str,
        to: Path | str = "out",
        api: str = generations.DEFAULT,
        options: MigrationOptions | None = None,
        concurrency: int = 500,
        when_held: WhenHeld = "wait",
        when_no_run_slot: WhenNoRunSlot = "wait",
        protected: Iterable[Path] = (),
        **keywords: Unpack[MigrationKeywords],
    ) -> None:
        if when_held not in get_args(WhenHeld):
            raise InvalidInput("when_held", when_held, "is neither 'wait' nor 'return'")
        if when_no_run_slot not in get_args(WhenNoRunSlot):
            raise InvalidInput("when_no_run_slot", when_no_run_slot, "is neither 'wait' nor 'return'")
        if concurrency < 1:
            raise InvalidInput("concurrency", concurrency, "must be at least 1")
        check_utf8("to", to)
        self._session, self._to = session, checked_path("to", to)
        self._options = combined(options, keywords)
        self._generation = generations.find(api)
        generations.check_options(self._generation, self._options)
        self._inputs = Inputs()
        self._inputs.add(protected)
        self._own_journal: DatabaseJournal | None = None
        if isinstance(journal, str | Path):
            if path := JournalPlace(str(journal)).path:
                self._inputs.add([path])
            journal = self._own_journal = open_journal(journal)
        self._journal: JournalPort = journal
        self._places = anyio.CapacityLimiter(concurrency)
        self._draining = asyncio.Event()
        self._when_held, self._when_no_run_slot = when_held, when_no_run_slot
        self._guard = LoopGuard("Fleet")
        self._tasks: set[asyncio.Task[None]] = set()
        self._submitted: dict[str, tuple[Spec, asyncio.Future[Outcome]]] = {}

    async def __aenter__(self) -> Self:
        self._session.check_open()
        self._guard.enter()
        try:
            if self._own_journal is not None:
                await self._own_journal.__aenter__()
            if isinstance(self._journal, DatabaseJournal):
                with suppress(OSError):  # the send log warns that it cannot be used
                    self._journal.send_log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                await context_of(self._session).remember(self._journal.send_log)
            context_of(self._session).runs.gives_up = self._when_no_run_slot == "return"
        except BaseException:
            self._guard.forget()
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._guard.leave(_LEFT)
        context_of(self._session).runs.gives_up = False
        self._cancel()
        # Shielded, because no task may outlive the fleet and the journal must be closed, also in a cancelled task.
        with anyio.CancelScope(shield=True):
            try:
                await asyncio.gather(*self._tasks, return_exceptions=True)
            finally:
                if self._own_journal is not None:
                    await self._own_journal.__aexit__(None, None, None)

    def _cancel(self) -> None:
        for task in tuple(self._tasks):
            task.cancel()

    def submit(self, spec: Spec) -> "asyncio.Future[Outcome]":
        """Start a migration as soon as there is a place; the future gives its outcome.

        A customer that is under way already is not started twice: the same spec gets the same future, and another
        one raises `InvalidInput`. Leaving the fleet's block cancels the migration; cancelling the future does not.
        """
        return self._submit(*checked_spec(spec), _Turn())

    def _submit(self, spec: Spec, refused: InvalidInput | None, turn: "_Turn") -> "asyncio.Future[Outcome]":
        loop = self._guard.loop()
        if refused is not None:
            turn.end()
            future: asyncio.Future[Outcome] = loop.create_future()
            future.set_result(failed(spec, refused))
            return future
        self._check_not_other(spec)
        under_way = self._submitted.get(spec.external_id)
        if under_way is not None:
            turn.end()
            return under_way[1]
        future = loop.create_future()
        self._submitted[spec.external_id] = spec, future
        task = asyncio.ensure_future(self._work(spec, future, turn))
        # A task that is cancelled before its first step runs none of its own cleanup.
        task.add_done_callback(partial(self._ended, spec, future, turn))
        self._tasks.add(task)
        return future

    def _check_not_other(self, spec: Spec) -> None:
        """Raise `InvalidInput` if another spec of this customer is under way: this one would be ignored."""
        under_way = self._submitted.get(spec.external_id)
        if under_way is not None and under_way[0] != spec:
            reason = "is under way with another spec: wait for its outcome, and submit this one then"
            raise InvalidInput("external_id", spec.external_id, reason)

    async def run(self, specs: Iterable[Spec] | AsyncIterable[Spec]) -> AsyncIterator[Outcome]:
        """Migrate all of `specs`, the longest first, and yield each outcome as it comes.

        All specs are read before the first one begins. Bad input of one is its `Failed` outcome, and so is a file
        below a folder that gets the sheets of any of them. Raises `InvalidInput`, before anything is sent, for two
        specs of one external id, and for a customer that is under way with another spec; `JournalError` if the
        journal cannot be written.
        """
        given = [checked_spec(each) async for each in each_spec(specs)]
        check_different([spec for spec, refused in given if refused is None])
        keys, ready = await in_thread(self._prepared, given)
        for spec, refused in given:
            if refused is None:
                self._check_not_other(spec)
        context = context_of(self._session)
        in_progress = await recover_run_slots(context, self._generation, self._journal)
        for spec, _ in given:
            if run := in_progress.get(spec.external_id):
                context.runs.seen(run)  # its migration finds out whether it still waits for a person
        futures: list[asyncio.Future[Outcome]] = []
        with self._inputs.holding(keys):
            turn: _Turn | None = None
            for spec, refused in ready:
                turn = _Turn(turn)
                futures.append(self._submit(spec, refused, turn))
                if len(futures) % _AT_ONCE == 0:
                    await asyncio.sleep(0)
            for finished in asyncio.as_completed(futures):
                yield await finished

    def _prepared(self, given: Sequence[CheckedSpec]) -> tuple[list[Key], list[CheckedSpec]]:
        """Return what protects the files of `given`, and these, the longest first, with what is wrong with each."""
        specs = sorted((spec for spec, refused in given if refused is None), key=_size, reverse=True)
        folders = FolderLookup(self._folder(spec) for spec in specs)
        bad = [each for each in given if each[1] is not None]
        ready = [*bad, *((spec, self._misplaced(folders, spec)) for spec in specs)]
        files = (path for spec, _ in given for path in cast("tuple[object, ...]", spec.files))
        return keys_of(path for path in files if isinstance(path, Path)), ready

    def _misplaced(self, folders: FolderLookup, spec: Spec) -> InvalidInput | None:
        """Return the error of a customer whose sheets would replace its files, or another customer's sheets."""
        if other := folders.same.get(self._folder(spec)):
            reason = f"has the same folder as another customer on this file system: {other}"
            return InvalidInput("external_id", spec.external_id, reason)
        for path in spec.files:
            if folder := folders.above(path):
                reason = f"lies below {folder}, where sheets are delivered: choose another folder"
                return InvalidInput("files", str(path), reason)
        return None

    @checked_call
    async def drain(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - what is left then is cancelled
        """Start nothing new, let requests in flight end, and leave the runs alive on the server.

        Every migration that has not ended comes to `Pending`. This closes the session for everybody. After
        `timeout` seconds what is still in flight is cancelled.
        """
        self._guard.loop()
        self._draining.set()
        self._session.close(SessionClosed("interrupted: the same command continues from here"))
        with anyio.move_on_after(timeout):
            await asyncio.gather(*(future for _, future in self._submitted.values()), return_exceptions=True)
            return
        self._cancel()

    async def _work(self, spec: Spec, future: "asyncio.Future[Outcome]", turn: "_Turn") -> None:
        try:
            try:
                outcome = await self._outcome(spec, turn)
            finally:  # before the future is done: its waiter may submit another spec of the customer
                del self._submitted[spec.external_id]
        except JournalError as error:
            if not future.done():
                future.set_exception(error)
                future.exception()  # `run` raises the first one; the others need not be retrieved
        else:
            if not future.done():
                future.set_result(outcome)

    async def _outcome(self, spec: Spec, turn: "_Turn") -> Outcome:
        """Migrate a customer; while another process holds it, wait without a place if that is wanted."""
        while True:
            try:
                async with self._places:
                    if self._draining.is_set():
                        return pending(spec, "interrupted before it began", "interrupted")
                    return await migrate_safely(
                        self._generation,
                        context_of(self._session),
                        spec,
                        self._journal,
                        self._folder(spec),
                        self._options,
                        self._inputs,
                        turn.come,
                    )
            except CustomerHeld as error:
                outcome = pending(spec, str(error), "held")
            turn.end()
            if self._when_held == "wait":
                with anyio.move_on_after(_RECHECK):
                    await self._draining.wait()
            if self._when_held == "return" or self._draining.is_set():
                return outcome

    def _ended(
        self, spec: Spec, future: "asyncio.Future[Outcome]", turn: "_Turn", task: "asyncio.Task[None]"
    ) -> None:
        self._tasks.discard(task)
        turn.end()
        if self._submitted.get(spec.external_id, (spec, None))[1] is future:  # cancelled before it began
            del self._submitted[spec.external_id]
        if not task.cancelled() and (error := task.exception()) is not None and not future.done():
            future.set_exception(error)
        future.cancel()

    def _folder(self, spec: Spec) -> Path:
        return customer_folder(self._to, spec.external_id)


@final
class _Turn:
    """The place of a customer among those of one `run`: their first requests are sent in this order.

    Their files are read in threads, which takes longest for the largest. Without an order, small customers would
    spend the limit meanwhile.
    """

    __slots__ = ("_before", "_is_over")

    def __init__(self, before: "_Turn | None" = None) -> None:
        self._before, self._is_over = before, asyncio.Event()

    async def come(self) -> None:
        """Wait until each customer before this one had its turn or has ended, at most `_LONGEST_READ` seconds."""
        with anyio.move_on_after(_LONGEST_READ):
            while self._before is not None:
                await self._before._is_over.wait()
                self._before = self._before._before  # one that ended without a turn did not wait
        self._before = None
        self.end()

    def end(self) -> None:
        """Let no other customer wait for this one."""
        self._is_over.set()


def _size(spec: Spec) -> int:
    """Return the bytes of a customer's files; bad input sorts last, and its migration says what is wrong."""
    try:
        return spec.validate()
    except (InvalidInput, OSError):
        return 0
