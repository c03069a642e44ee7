"""Start the customers of a fleet when there is a place, and stop those that are canceled.

A customer that waits is an object in a queue, without a task.

Other tasks share the event loop, so one turn of it handles only a few customers: that many tasks are started or
cancelled, or that many customers end without a task.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from itertools import chain
from typing import final

from asyncmig._io.event_loop import gradually, start_task
from asyncmig.customers.outcome import Outcome
from asyncmig.errors import JournalError
from asyncmig.jobs.customers import RECHECK, cancel_when_free
from asyncmig.jobs.migrate import CustomerTask, FleetParts, pending

__all__ = ["Admission", "Cancellations"]

_log = logging.getLogger("asyncmig")

_PER_TURN = 8
"""The number of customers that are started, cancelled or ended in one turn of the loop."""
_MOST_RECORDING = 100
"""The number of customers that are written to the journal at the same time, before they wait for a place."""


@final
class Admission:
    """Starts the customers of a fleet in the order in which they come, at most `places` at a time."""

    __slots__ = (
        "_count",
        "_forget",
        "_free",
        "_held",
        "_idle",
        "_is_closed",
        "_is_draining",
        "_is_scheduled",
        "_on_done",
        "_recording",
        "_running",
        "_unrecorded",
        "_waiting",
    )

    def __init__(self, places: int, forget: Callable[[CustomerTask], None]) -> None:
        """`forget`: called with each customer that has ended, before its future is done."""
        self._free, self._forget = places, forget
        self._waiting: deque[CustomerTask] = deque()
        self._unrecorded: deque[CustomerTask] = deque()
        self._running: dict[asyncio.Task[Outcome | None], CustomerTask] = {}
        self._recording: dict[asyncio.Task[Outcome | None], CustomerTask] = {}
        self._held: dict[CustomerTask, asyncio.TimerHandle] = {}
        """The customers that other processes hold, with the timer of the next attempt."""
        self._count = 0
        """The customers that have not ended."""
        self._idle = asyncio.Event()
        self._is_closed = self._is_draining = self._is_scheduled = False
        self._on_done = self._done  # one object for all tasks

    def add(self, customer: CustomerTask) -> None:
        """Start a customer as soon as the journal has it and there is a place."""
        self._count += 1
        (self._waiting if customer.is_recorded else self._unrecorded).append(customer)
        self._schedule()

    def _schedule(self) -> None:
        if not self._is_scheduled and not self._is_closed:
            self._is_scheduled = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        """Take the next step of a few customers."""
        self._is_scheduled = False
        for _ in range(_PER_TURN):
            if self._unrecorded and len(self._recording) < _MOST_RECORDING and not self._is_closed:
                self._record(self._unrecorded.popleft())
            elif self._waiting and (self._is_draining or self._free > 0) and not self._is_closed:
                self._start(self._waiting.popleft())
            else:
                return
        self._schedule()

    def _record(self, customer: CustomerTask) -> None:
        if not customer.is_canceled:
            self._recording[self._begin(customer, customer.write())] = customer

    def _start(self, customer: CustomerTask) -> None:
        if customer.is_canceled:
            return
        if self._is_draining:
            interrupted = pending(customer.spec, "interrupted before it began", "interrupted")
            self._end(customer, customer.held or interrupted)
            return
        self._free -= 1
        self._running[self._begin(customer, customer.run())] = customer

    def _begin(
        self, customer: CustomerTask, work: Coroutine[object, object, Outcome | None]
    ) -> "asyncio.Task[Outcome | None]":
        """Return a task for a customer, in a copy of the context in which the customer was submitted."""
        name = f"asyncmig {customer.spec.external_id}"
        customer.task = task = start_task(work, name=name, context=customer.context.copy())
        task.add_done_callback(self._on_done, context=customer.context)
        return task

    def _done(self, task: "asyncio.Task[Outcome | None]") -> None:
        recorded = self._recording.pop(task, None)
        customer = recorded or self._running.pop(task)
        customer.task = None
        if recorded is None:
            self._free += 1
        is_stopped = self._is_closed or customer.is_canceled
        if task.cancelled():
            self._end(customer)
        elif (error := task.exception()) is not None:
            self._end(customer, error=error)
        elif (outcome := task.result()) is not None or is_stopped:
            self._end(customer, outcome)
        elif recorded is not None:
            self._waiting.append(customer)
        elif self._is_draining:
            self._end(customer, customer.held)
        else:
            timer = asyncio.get_running_loop().call_later(RECHECK, self._try_again, customer)
            self._held[customer] = timer
        self._schedule()

    def _try_again(self, customer: CustomerTask) -> None:
        del self._held[customer]
        self._waiting.append(customer)
        self._schedule()

    def _end(
        self, customer: CustomerTask, outcome: Outcome | None = None, error: BaseException | None = None
    ) -> None:
        self._count -= 1
        # Before the future is done, because its waiter may submit another spec of the customer.
        self._forget(customer)
        customer.end(outcome, error)
        if not self._count:
            self._idle.set()

    async def stop(self, customer: CustomerTask) -> None:
        """End the work for a customer without an outcome; the caller sets its future."""
        if customer.future.done():
            return
        customer.is_canceled = True
        if customer.task is not None:
            customer.task.cancel()
            await asyncio.wait([customer.task])
            return
        if timer := self._held.pop(customer, None):
            timer.cancel()
        self._end(customer)  # a queue drops it when its turn comes

    def drain(self) -> None:
        """Start nothing more; customers without a task end as `Pending`."""
        self._is_draining = True
        for customer, timer in self._held.items():
            timer.cancel()
            self._waiting.append(customer)
        self._held.clear()
        self._schedule()

    def cancel(self) -> None:
        """Begin to cancel all tasks, and to end the customers without one."""
        self._is_closed = True
        for timer in self._held.values():
            timer.cancel()
        left = [*self._waiting, *self._unrecorded, *self._held]
        for queue in (self._waiting, self._unrecorded, self._held):
            queue.clear()
        cancels = (task.cancel for task in (*self._running, *self._recording))
        ends = (partial(self._end, each) for each in left if not each.is_canceled)
        gradually(chain(cancels, ends), asyncio.get_running_loop())

    async def ended(self) -> None:
        """Wait until all customers have ended."""
        while self._count:
            self._idle.clear()
            await self._idle.wait()


@final
class Cancellations:
    """Carries out the cancel instructions about the customers of a fleet."""

    __slots__ = ("_admission", "_fleet", "_under_way", "_watcher", "_working")

    def __init__(
        self, fleet: FleetParts, under_way: Mapping[str, CustomerTask], admission: Admission
    ) -> None:
        """`under_way`: the customers of the fleet; this object reads the mapping while the fleet changes it."""
        self._fleet, self._under_way, self._admission = fleet, under_way, admission
        self._working: dict[str, asyncio.Task[Outcome]] = {}
        self._watcher: asyncio.Task[None] | None = None

    def start_watching(self) -> None:
        """Look for instructions of other processes while customers are under way."""
        if self._watcher is None:
            self._watcher = start_task(self._watch(), name="asyncmig: canceled customers")

    def carry_out(self, external_id: str) -> "asyncio.Task[Outcome]":
        """Return the task that ends the work for a customer, and returns its outcome."""
        if external_id not in self._working:
            task = start_task(self._carry_out(external_id), name=f"asyncmig: cancel {external_id}")
            self._working[external_id] = task
            task.add_done_callback(lambda _: self._working.pop(external_id))
        return self._working[external_id]

    async def aclose(self) -> None:
        """End everything."""
        tasks: list[asyncio.Task[Outcome] | asyncio.Task[None]] = list(self._working.values())
        if self._watcher is not None:
            tasks.append(self._watcher)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _carry_out(self, external_id: str) -> Outcome:
        customer = self._under_way.get(external_id)
        try:
            if customer is not None:
                await self._admission.stop(customer)
            outcome = await cancel_when_free(self._fleet.context, self._fleet.journal, external_id)
            if customer is not None and not customer.future.done():
                customer.future.set_result(outcome)
        finally:
            if customer is not None and not customer.future.done():
                stopped = pending(customer.spec, "canceled: this client stopped its work", "canceled")
                customer.future.set_result(stopped)
        return outcome

    async def _watch(self) -> None:
        try:
            while self._under_way:
                await asyncio.sleep(RECHECK)
                try:
                    found = await self._fleet.journal.instructions("cancel")
                    names = found.keys() & self._under_way.keys()
                    canceled = [name for name in names if await self._is_canceled(name)]
                except JournalError as error:
                    _log.debug("instructions cannot be read: %s", error)
                    continue
                for external_id in canceled:
                    if external_id in self._under_way:
                        self.carry_out(external_id).add_done_callback(_log_failure)
        finally:
            self._watcher = None

    async def _is_canceled(self, external_id: str) -> bool:
        """Return whether the journal says so after the fleet has recorded its own instruction.

        Before, the journal may have an older instruction that the fleet replaces.
        """
        customer = self._under_way.get(external_id)
        if customer is None or not customer.is_recorded:
            return False
        instruction = await self._fleet.journal.instruction(external_id)
        return instruction is not None and instruction.wanted == "cancel"


def _log_failure(task: "asyncio.Task[Outcome]") -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.warning("a customer that was canceled elsewhere: %s", error)
