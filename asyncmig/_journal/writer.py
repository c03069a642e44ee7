"""The thread that writes, and the group commit before it.

What is asked for while a transaction is under way stands in line, and goes into the next one together: a hundred
companies that write at once cost one wait for the disk. The line lives on the event loop's side, so it needs no
lock, and only whole transactions go to the thread. They go by `loop.run_in_executor`, which a virtual clock knows
to wait for. The lease is renewed in real seconds by a timer of its own, also while the loop is busy.
"""

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Generic, Protocol, TypeVar, final

from asyncmig._journal.store import Held, Step
from asyncmig.errors import CompanyHeld, JournalError

__all__ = ["StorePort", "Writer"]

_T = TypeVar("_T")
_log = logging.getLogger("asyncmig.journal")


class StorePort(Protocol):
    """What does the steps; see `asyncmig._journal.store.Store`. They run in one thread."""

    def open(self) -> None: ...
    def close(self) -> None: ...
    def transact(self, steps: Sequence[Step]) -> None: ...
    def renew(self) -> None: ...
    def claim(self, external_id: str) -> Held: ...
    def write(self, held: Held, kind: str, detail: bytes, state: bytes) -> None: ...
    def release(self, held: Held) -> None: ...


class _Waited(Protocol):
    def attempt(self) -> None: ...
    def fail(self, error: Exception) -> None: ...
    def deliver(self) -> None: ...


@final
class _Job(Generic[_T]):
    """A step of a transaction and the future of whoever asked for it.

    `attempt` and `fail` run in the thread, `deliver` on the loop once the thread is done with it.
    """

    __slots__ = ("_error", "_step", "future", "result")

    def __init__(self, step: Callable[[], _T]) -> None:
        self._step = step
        self._error: Exception | None = None
        self.result: _T | None = None
        self.future: asyncio.Future[_T] = asyncio.get_running_loop().create_future()

    def attempt(self) -> None:
        self.result, self._error = self._step(), None  # an earlier try may have failed

    def fail(self, error: Exception) -> None:
        self.result, self._error = None, error

    def deliver(self) -> None:
        if self._error is None:
            if not self.future.done():
                self.future.set_result(self.result)  # type: ignore[arg-type]  # None where _T is None
        elif not self.future.done():
            self.future.set_exception(self._error)
        elif not isinstance(self._error, CompanyHeld):
            _log.warning("a write whose caller was cancelled failed: %s", self._error)


@final
class Writer:
    """Runs steps of a store, many in a transaction. `threaded=False` runs them at once, on the loop."""

    __slots__ = (
        "_beat",
        "_executor",
        "_lease",
        "_pending",
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
        self.is_open: bool = False

    async def open(self) -> None:
        """Open the store and start the thread. Raises `JournalError`; cancelled, nothing stays open."""
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="asyncmig-journal")
        try:
            await self._call(self._store.open)
        except BaseException:
            self._executor.submit(self._store.close)
            self._executor.shutdown(wait=False)
            raise
        self._stopped.clear()
        self.is_open = True
        if self._threaded:
            self._beat = threading.Thread(target=self._beat_on, name="asyncmig-lease", daemon=True)
            self._beat.start()

    async def close(self) -> None:
        """Write what stands in line, give up what is held, and close the store.

        Cancelled, it does the same at once, while the loop stands still for a moment.
        """
        if not self.is_open:
            return
        self.is_open = False
        try:
            self._start()
            while self._running is not None:
                await asyncio.wait((self._running,))
            await self._call(self._store.close)
        finally:
            self._stopped.set()
            if self._beat is not None:
                self._beat.join()
            left, self._pending = self._pending, []
            if left:
                self._executor.submit(self._store.transact, left)
            self._executor.submit(self._store.close)
            self._executor.shutdown(wait=True)
            for job in left:
                job.deliver()

    async def claim(self, external_id: str) -> Held:
        """Take a company. Raises `CompanyHeld`, `JournalError`; cancelled, it is given back."""
        job = self._submit(partial(self._store.claim, external_id))
        try:
            return await job.future
        except asyncio.CancelledError:
            if self.is_open:
                self._submit(partial(self._give_back, job))
            raise

    async def write(self, held: Held, kind: str, detail: bytes, state: bytes) -> None:
        """Add an event and set the state, durably. Raises `CompanyHeld`, `JournalError`."""
        await self._submit(partial(self._store.write, held, kind, detail, state)).future

    async def release(self, held: Held) -> None:
        """Give a company up. Raises `JournalError`."""
        await self._submit(partial(self._store.release, held)).future

    def _give_back(self, claim: _Job[Held]) -> None:
        if claim.result is not None:
            self._store.release(claim.result)

    def _submit(self, step: Callable[[], _T]) -> _Job[_T]:
        """Put a step in line; from here on it is done even if nobody waits for it."""
        if not self.is_open:
            raise JournalError(self._place, "is not open")
        job = _Job(step)
        self._pending.append(job)
        if self._running is None and len(self._pending) == 1:
            # Not at once: what other tasks ask for in this same turn of the loop comes along.
            asyncio.get_running_loop().call_soon(self._start)
        return job

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
        """Have the lease renewed, in real seconds."""
        while not self._stopped.wait(self._lease / 3):
            try:
                self._executor.submit(self._store.renew)
            except RuntimeError:  # the interpreter ends, with a journal that was never closed
                return
