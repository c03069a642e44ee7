"""The thread that writes, and the group commit before it.

What is asked for while a transaction is under way stands in line, and goes into the next one together: a hundred
companies that write at once cost one wait for the disk. The line lives on the event loop's side, so it needs no
lock, and only whole transactions go to the thread. They go by `loop.run_in_executor`, which a virtual clock knows
to wait for. The lease is renewed in real seconds by a timer of its own, also while the loop is busy.
"""

import asyncio
import logging
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Generic, Protocol, TypeVar, final

from asyncmig.errors import CustomerHeld, JournalError, UsageError
from asyncmig.journal.claims import ClaimedRow, WriteOp

__all__ = ["StorePort", "Writer"]

_T = TypeVar("_T")
_log = logging.getLogger("asyncmig.journal")


class StorePort(Protocol):
    """What does the steps; see `asyncmig.journal.claims.ClaimStore`. They run in one thread."""

    def open(self) -> None: ...
    def close(self) -> None: ...
    def transact(self, steps: Sequence[WriteOp]) -> None: ...
    def renew(self) -> None: ...
    def claim(self, external_id: str) -> ClaimedRow: ...
    def write(self, held: ClaimedRow, kind: str, detail: bytes, state: bytes) -> None: ...
    def release(self, held: ClaimedRow) -> None: ...
    def disown(self, held: ClaimedRow) -> None: ...


class _Waited(Protocol):
    def attempt(self) -> None: ...
    def fail(self, error: Exception) -> None: ...
    def deliver(self) -> None: ...


@final
class _Job(Generic[_T]):
    """A step of a transaction and the future of whoever asked for it.

    `attempt` and `fail` run in the thread, `deliver` on the loop once the thread is done with it.
    """

    __slots__ = ("_error", "_on_failure", "_step", "future", "result")

    def __init__(self, step: Callable[[], _T], on_failure: Callable[[], None] | None) -> None:
        self._step, self._on_failure = step, on_failure
        self._error: Exception | None = None
        self.result: _T | None = None
        self.future: asyncio.Future[_T] = asyncio.get_running_loop().create_future()

    def attempt(self) -> None:
        self.result, self._error = self._step(), None  # an earlier try may have failed

    def fail(self, error: Exception) -> None:
        self.result, self._error = None, error
        if self._on_failure is not None:
            self._on_failure()

    def deliver(self) -> None:
        if self._error is None:
            if not self.future.done():
                self.future.set_result(self.result)  # type: ignore[arg-type]  # None where _T is None
        elif not self.future.done():
            self.future.set_exception(self._error)
        elif not isinstance(self._error, CustomerHeld):
            _log.warning("a write whose caller was cancelled failed: %s", self._error)


def _one_thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="asyncmig-journal")


@final
class Writer:
    """Runs steps of a store, many in a transaction. `threaded=False` runs them at once, on the loop."""

    __slots__ = (
        "_beat",
        "_executor",
        "_lease",
        "_loop",
        "_pending",
        "_pid",
        "_place",
        "_running",
        "_stopped",
        "_store",
        "_threaded",
        "is_open",
    )

    def __init__(self, store: StorePort, place: str, *, lease: float, threaded: bool) -> None:
        """`place`: what errors call the journal."""
        self._store, self._place, self._lease, self._threaded = store, place, lease, threaded
        self._pending: list[_Waited] = []
        self._running: asyncio.Future[None] | None = None
        self._stopped = threading.Event()
        self._beat: threading.Thread | None = None
        self._executor = _one_thread()
        self._pid = os.getpid()
        self.is_open: bool = False

    async def open(self) -> None:
        """Open the store and start the thread. Raises `JournalError`; cancelled, nothing stays open."""
        if self.is_open and self._pid == os.getpid():
            if not self._is_abandoned():
                raise JournalError(self._place, "is open already")
            self._stop_beat()
            self._abandon()
        before, was_here = self._executor, self._pid == os.getpid()
        self._loop, self._pid = weakref.ref(asyncio.get_running_loop()), os.getpid()
        self._pending, self._running, self._beat = [], None, None
        self._executor = _one_thread()
        if was_here:
            self._call(before.shutdown)  # an attempt that failed or was cancelled ends first
        self._stopped.clear()
        try:
            await self._call(self._store.open)
            if self._threaded:
                beat = threading.Thread(target=self._beat_on, name="asyncmig-lease", daemon=True)
                beat.start()
                self._beat = beat
        except BaseException:
            self._executor.submit(self._store.close)
            self._executor.shutdown(wait=False)
            raise
        self.is_open = True

    async def close(self) -> None:
        """Write what stands in line, give up what is held, and close the store.

        Cancelled, it does the same at once, while the loop stands still for a moment.
        """
        if not self.is_open or self._pid != os.getpid():
            return
        if self._is_abandoned():
            self._stop_beat()
            self._abandon()
            return
        self._check_place()
        self.is_open = False
        try:
            self._start()
            while self._running is not None:
                await asyncio.wait((self._running,))
            await self._call(self._store.close)
        finally:
            self._stop_beat()
            left, self._pending = self._pending, []
            if left:
                self._executor.submit(self._store.transact, left)
            self._executor.submit(self._store.close)
            self._executor.shutdown(wait=True)
            for job in left:
                job.deliver()

    async def claim(self, external_id: str) -> ClaimedRow:
        """Take a company. Raises `CustomerHeld`, `JournalError`; cancelled, it is given back."""
        job = self._submit(partial(self._store.claim, external_id))
        try:
            return await job.future
        except asyncio.CancelledError:
            if self.is_open:
                self._submit_release(lambda: job.result)
            raise

    async def write(self, held: ClaimedRow, kind: str, detail: bytes, state: bytes) -> None:
        """Add an event and set the state, durably. Raises `CustomerHeld`, `JournalError`."""
        await self._submit(partial(self._store.write, held, kind, detail, state)).future

    async def release(self, held: ClaimedRow) -> None:
        """Give a company up. Raises `JournalError`; then this journal may claim it, and a heartbeat gives it up."""
        await self._submit_release(lambda: held).future

    def _submit_release(self, held: Callable[[], ClaimedRow | None]) -> _Job[None]:
        """Put the release of a claim in line, which may be in line itself."""

        def do(act: Callable[[ClaimedRow], None]) -> None:
            if (claimed := held()) is not None:
                act(claimed)

        return self._submit(partial(do, self._store.release), partial(do, self._store.disown))

    def _submit(self, step: Callable[[], _T], on_failure: Callable[[], None] | None = None) -> _Job[_T]:
        """Put a step in line; from here on it is done even if nobody waits for it."""
        if not self.is_open:
            raise JournalError(self._place, "is not open")
        self._check_place()
        job = _Job(step, on_failure)
        self._pending.append(job)
        if self._running is None and len(self._pending) == 1:
            # Not at once: what other tasks ask for in this same turn of the loop comes along.
            asyncio.get_running_loop().call_soon(self._start)
        return job

    def _check_place(self) -> None:
        """Raise `UsageError` in a process or on an event loop that did not open the journal."""
        if self._pid != os.getpid():
            raise UsageError(f"journal {self._place} was opened before this process was forked: open it anew")
        if self._loop() is not asyncio.get_running_loop():
            raise UsageError(f"journal {self._place} was opened on another event loop: open one on each loop")

    def _start(self) -> None:
        if self._running is not None or not self._pending:
            return
        batch, self._pending = self._pending, []
        self._running = self._call(partial(self._store.transact, batch))
        self._running.add_done_callback(partial(self._finish, batch))

    def _finish(self, batch: Sequence[_Waited], running: "asyncio.Future[None]") -> None:
        self._running = None
        error = running.exception()
        for job in batch:
            if isinstance(error, Exception):
                job.fail(error)
            job.deliver()
        self._start()

    def _call(self, work: Callable[[], None]) -> "asyncio.Future[None]":
        loop = asyncio.get_running_loop()
        if self._threaded:
            return loop.run_in_executor(self._executor, work)
        done = loop.create_future()
        try:
            work()
        except Exception as error:
            done.set_exception(error)
        else:
            done.set_result(None)
        return done

    def _beat_on(self) -> None:
        """Have the lease renewed, in real seconds, for as long as the event loop is there."""
        beat: Future[None] | None = None
        while not self._stopped.wait(self._lease / 3):
            try:
                if self._is_abandoned():
                    self._abandon()
                    return
                if beat is None or beat.done():  # one that waits for the database is enough
                    beat = self._executor.submit(self._store.renew)
            except RuntimeError:  # the interpreter ends, with a journal that was never closed
                return

    def _stop_beat(self) -> None:
        self._stopped.set()
        if self._beat is not None:
            self._beat.join()

    def _is_abandoned(self) -> bool:
        """Return whether the event loop ended, and the journal was never closed."""
        loop = self._loop()
        return loop is None or loop.is_closed()

    def _abandon(self) -> None:
        """Do what `close` does, for an event loop that is no more: nobody waits for what stands in line."""
        left, self._pending = self._pending, []
        if left:
            self._executor.submit(self._store.transact, left)
        self._executor.submit(self._store.close)
        self._executor.shutdown(wait=True)
        self.is_open = False
