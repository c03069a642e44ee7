"""Stop the customers of a fleet that were canceled in this process or in another one."""

import asyncio
import logging
from collections.abc import Mapping
from typing import final

from asyncmig._io.event_loop import start_task
from asyncmig.customers.outcome import Outcome
from asyncmig.errors import JournalError
from asyncmig.jobs.admission import Admission
from asyncmig.jobs.customer_task import CustomerTask, FleetParts
from asyncmig.jobs.customers import RECHECK, cancel_when_free
from asyncmig.jobs.migrate import pending

__all__ = ["Cancellations"]

_log = logging.getLogger("asyncmig")


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
                recorded = [name for name, each in self._under_way.items() if each.is_recorded]
                try:
                    canceled = await self._fleet.journal.instructions("cancel")
                except JournalError as error:
                    _log.debug("instructions cannot be read: %s", error)
                    continue
                for external_id in canceled.keys() & recorded & self._under_way.keys():
                    self.carry_out(external_id).add_done_callback(_log_failure)
        finally:
            self._watcher = None


def _log_failure(task: "asyncio.Task[Outcome]") -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.warning("a customer that was canceled elsewhere: %s", error)
