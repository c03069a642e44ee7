"""The journal's writer: one thread that writes, and group commit.

Operations that arrive while a transaction runs are queued, and the next transaction executes all of them. A hundred
customers that write at the same time therefore wait for the disk only once. Only the thread of the event loop uses
the queue, so it needs no lock. The writer's thread executes whole transactions. They are started with
`loop.run_in_executor`, so that a loop with a virtual clock waits for them.

Another thread renews the lease, in real seconds, even while the event loop is busy.
"""

import asyncio
import logging
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Generic, TypeVar, final

from asyncmig.errors import CustomerHeld, JournalError, UsageError
from asyncmig.journal.claims import ClaimStore

__all__ = ["Op", "Writer"]

_T = TypeVar("_T")
_T_co = TypeVar("_T_co", covariant=True)
_log = logging.getLogger("asyncmig.journal")
_MOST_TOGETHER = 500
"""The most operations in one transaction, because other processes wait for its end."""
_WOKEN_PER_TURN = 8
"""The most callers that continue in one turn of the event loop."""


@final
class Op(Generic[_T_co]):
    """An operation and the future of its caller.

    `attempt` and `fail` run in the writer's thread. `deliver` runs on the event loop after the transaction.
    """

    __slots__ = ("_error", "_on_failure", "_work", "future", "result")

    def __init__(self, work: Callable[[], _T_co], on_failure: Callable[[], None] | None) -> None:
        self._work, self._on_failure = work, on_failure
        self._error: Exception | None = None
        self.result: _T_co | None = None
        self.future: asyncio.Future[_T_co] = asyncio.get_running_loop().create_future()

    def attempt(self) -> None:
        """Run the operation; see `WriteOp`."""
        self.result, self._error = self._work(), None  # an earlier attempt may have failed

    def fail(self, error: Exception) -> None:
        """Keep the error; see `WriteOp`."""
        self.result, self._error = None, error
        if self._on_failure is not None:
            self._on_failure()

    def deliver(self) -> None:
        """Give the caller the result or the error."""
        if self._error is None:
            if not self.future.done():
                self.future.set_result(self.result)  # type: ignore[arg-type]  # None where _T_co is None
        elif not self.future.done():
            self.future.set_exception(self._error)
        elif not isinstance(self._error, CustomerHeld):
            _log.warning("a write failed after its caller was cancelled: %s", self._error)


def _one_thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="asyncmig-journal")


@final
class Writer:
    """Runs the operations of a store, several in one transaction.

    `threaded=False` runs them at once on the event loop.
    """

    __slots__ = (
        "_executor",
        "_lease",
        "_loop",
        "_pending",
        "_pid",
        "_renewer",
        "_running",
        "_stopped",
        "_store",
        "_threaded",
        "is_open",
    )

    def __init__(self, store: ClaimStore, *, lease: float, threaded: bool) -> None:
        """`lease`: real seconds; a third of it is the time between heartbeats."""
        self._store, self._lease, self._threaded = store, lease, threaded
        self._pending: list[Op[object]] = []
        self._running: asyncio.Future[None] | None = None
        self._stopped = threading.Event()
        self._renewer: threading.Thread | None = None
        self._executor = _one_thread()
        self._pid = os.getpid()
        self.is_open: bool = False

    async def open(self) -> None:
        """Open the store and start its threads. Raises `JournalError`. If cancelled, nothing stays open."""
        if self.is_open and self._pid == os.getpid():
            if not self._is_abandoned():
                raise JournalError(self._store.place, "is open already")
            self._end_abandoned()
        before, was_here = self._executor, self._pid == os.getpid()
        self._loop, self._pid = weakref.ref(asyncio.get_running_loop()), os.getpid()
        self._pending, self._running, self._renewer = [], None, None
        self._executor = _one_thread()
        if was_here:
            self._call(before.shutdown)  # wait until a failed or cancelled attempt to open has ended
        self._stopped.clear()
        try:
            await self._call(self._store.open)
            if self._threaded:
                renewer = threading.Thread(target=self._renew_lease, name="asyncmig-lease", daemon=True)
                renewer.start()
                self._renewer = renewer
        except BaseException:
            self._executor.submit(self._store.close)
            self._executor.shutdown(wait=False)
            raise
        self.is_open = True

    async def close(self) -> None:
        """Commit the queued operations, release all claims, and close the store.

        If cancelled, it does the same at once and blocks the event loop meanwhile.
        """
        if not self.is_open or self._pid != os.getpid():
            return
        if self._is_abandoned():
            self._end_abandoned()
            return
        self._check_place()
        self.is_open = False
        try:
            self._start()
            while self._running is not None:
                await asyncio.wait((self._running,))
            await self._call(self._store.close)
        finally:
            self._stop_renewing()
            for op in self._shut_down():
                op.deliver()

    def submit(self, work: Callable[[], _T], on_failure: Callable[[], None] | None = None) -> Op[_T]:
        """Queue an operation of the store. It runs even if its caller is cancelled.

        `on_failure`: called in the writer's thread if the operation has no effect. Raises `JournalError`.
        """
        if not self.is_open:
            raise JournalError(self._store.place, "is not open")
        self._check_place()
        op = Op(work, on_failure)
        self._pending.append(op)
        if self._running is None and len(self._pending) == 1:
            # In the next turn of the loop, so that the operations of other tasks in this turn join the transaction.
            asyncio.get_running_loop().call_soon(self._start)
        return op

    def _check_place(self) -> None:
        """Raise `UsageError` in a process or on an event loop that did not open the journal."""
        if self._pid != os.getpid():
            raise UsageError(
                f"journal {self._store.place} was opened before this process was forked: open it again"
            )
        if self._loop() is not asyncio.get_running_loop():
            raise UsageError(
                f"journal {self._store.place} was opened on another event loop: open one on each loop"
            )

    def _start(self) -> None:
        if self._running is not None or not self._pending:
            return
        batch, self._pending = self._pending[:_MOST_TOGETHER], self._pending[_MOST_TOGETHER:]
        self._running = self._call(partial(self._store.transact, batch))
        self._running.add_done_callback(partial(self._finish, batch))

    def _finish(self, batch: Sequence[Op[object]], running: "asyncio.Future[None]") -> None:
        self._running = None
        error = running.exception()
        if isinstance(error, Exception):
            for op in batch:
                op.fail(error)
        self._deliver(deque(batch))
        self._start()

    def _deliver(self, done: "deque[Op[object]]") -> None:
        """Wake the callers of operations, a few in each turn of the loop, so that other tasks run in between."""
        for _ in range(min(len(done), _WOKEN_PER_TURN)):
            done.popleft().deliver()
        if done:
            asyncio.get_running_loop().call_soon(self._deliver, done)

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

    def _renew_lease(self) -> None:
        """Renew the lease until the journal is closed or its event loop has ended. Runs in a thread of its own."""
        renewal: Future[None] | None = None
        while not self._stopped.wait(self._lease / 3):
            try:
                if self._is_abandoned():
                    self._abandon()
                    return
                if renewal is None or renewal.done():  # one waiting renewal is enough
                    renewal = self._executor.submit(self._store.renew)
            except RuntimeError:  # the interpreter ends while the journal is open
                return

    def _stop_renewing(self) -> None:
        self._stopped.set()
        if self._renewer is not None:
            self._renewer.join()

    def _is_abandoned(self) -> bool:
        """Return whether the event loop ended before the journal was closed."""
        loop = self._loop()
        return loop is None or loop.is_closed()

    def _end_abandoned(self) -> None:
        """Close after the event loop has ended, unless the thread that renews the lease has done it."""
        self._stop_renewing()
        if self.is_open:
            self._abandon()

    def _abandon(self) -> None:
        """Close after the event loop has ended. No caller waits for the queued operations any more."""
        self._shut_down()
        self.is_open = False

    def _shut_down(self) -> list[Op[object]]:
        """Commit the queued operations, and end the store and its thread. Return these operations."""
        left, self._pending = self._pending, []
        if left:
            self._executor.submit(self._store.transact, left)
        self._executor.submit(self._store.close)
        self._executor.shutdown(wait=True)
        return left
