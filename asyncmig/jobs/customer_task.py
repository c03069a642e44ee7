"""One customer of a fleet: the task that drives its migration, and the future of its outcome."""

import asyncio
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, final

import anyio

from asyncmig._io.context import SessionContext
from asyncmig.customers.file_names import customer_folder
from asyncmig.customers.options import MigrationOptions
from asyncmig.customers.outcome import Outcome, Pending
from asyncmig.customers.paths import Inputs
from asyncmig.customers.spec import Spec
from asyncmig.errors import CustomerHeld, JournalError
from asyncmig.generations import Generation
from asyncmig.jobs.customers import RECHECK
from asyncmig.jobs.instructions import Work, read_known
from asyncmig.jobs.migrate import migrate_claimed, pending
from asyncmig.jobs.turns import Turn
from asyncmig.journal import Instruction, JournalPort

__all__ = ["CustomerTask", "FleetParts", "WhenHeld"]

_log = logging.getLogger("asyncmig")
WhenHeld = Literal["wait", "return"]
"""What a fleet does with a customer that another live process holds."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class FleetParts:
    """What the customers of a fleet share."""

    generation: Generation
    context: SessionContext
    journal: JournalPort
    to: Path
    options: MigrationOptions
    inputs: Inputs
    places: anyio.CapacityLimiter
    """Places of migrations that are under way."""
    draining: asyncio.Event
    when_held: WhenHeld


@final
class CustomerTask:
    """Drives one customer from its submission to its outcome."""

    __slots__ = (
        "_fleet",
        "_instruction",
        "_is_from_journal",
        "_turn",
        "future",
        "is_canceled",
        "recorded",
        "spec",
        "task",
    )

    def __init__(
        self,
        fleet: FleetParts,
        spec: Spec,
        turn: Turn,
        instruction: Instruction | None,
        *,
        is_recorded: bool,
        is_from_journal: bool = False,
    ) -> None:
        """`instruction`: what the journal has about the customer, or gets now unless `is_recorded`."""
        self._fleet, self._turn = fleet, turn
        self._instruction, self._is_from_journal = instruction, is_from_journal
        loop = asyncio.get_running_loop()
        self.spec = spec
        self.future: asyncio.Future[Outcome] = loop.create_future()
        self.recorded: asyncio.Future[None] = loop.create_future()
        """Done as soon as the journal has the instruction; then a cancel instruction that is read is a newer one."""
        if is_recorded or instruction is None:
            self.recorded.set_result(None)
        self.is_canceled: bool = False
        """Whether `stop` was called."""
        self.task: asyncio.Task[None] | None = None

    def is_other(self, spec: Spec) -> bool:
        """Return whether `spec` differs from the one under way, as far as the journal has kept that one."""
        if not self._is_from_journal:
            return self.spec != spec
        kept, given = Work.of(self.spec, "").spec, Work.of(spec, "").spec
        assert kept is not None
        assert given is not None
        # The record of a migration that has begun has ids where a spec may have names.
        is_whole = self._instruction is not None
        return kept != given if is_whole else (kept.name, kept.files) != (given.name, given.files)

    async def record(self) -> None:
        """Return when the journal has the customer. Raises `JournalError`."""
        if self._instruction is None:
            self._instruction = Work.of(self.spec, self._fleet.generation.name).wanted("run")
            await self._fleet.journal.instruct(self.spec.external_id, self._instruction)
        await asyncio.shield(self.recorded)

    async def stop(self) -> None:
        """End the work without an outcome; `future` is left to the caller."""
        assert self.task is not None
        self.is_canceled = True
        self.task.cancel()
        await asyncio.wait([self.task])

    async def run(self) -> Outcome:
        """Record the instruction, migrate the customer, and delete the instruction. Raises `JournalError`."""
        fleet, external_id = self._fleet, self.spec.external_id
        if self._instruction is not None and not self.recorded.done():
            try:
                await fleet.journal.instruct(external_id, self._instruction)
            except JournalError as error:
                self.recorded.set_exception(error)
                self.recorded.exception()  # not everybody waits for it
                raise
            self.recorded.set_result(None)
        outcome = await self._outcome()
        if self._instruction is not None and not isinstance(outcome, Pending):
            try:
                await fleet.journal.fulfilled(external_id, self._instruction)
            except JournalError as error:
                _log.warning("%s: the journal still has the instruction to run it: %s", external_id, error)
        return outcome

    async def _outcome(self) -> Outcome:
        """Migrate the customer; while another process holds it, wait without a place if that is wanted."""
        fleet, spec, has_waited = self._fleet, self.spec, False
        options = fleet.options
        if self._instruction is not None and self._instruction.wanted == "retry":
            options = replace(options, retry_failed=True)
        while True:
            if has_waited and (outcome := await self._ended_elsewhere()) is not None:
                return outcome
            try:
                async with fleet.places:
                    if fleet.draining.is_set():
                        return pending(spec, "interrupted before it began", "interrupted")
                    return await migrate_claimed(
                        fleet.generation,
                        fleet.context,
                        spec,
                        fleet.journal,
                        customer_folder(fleet.to, spec.external_id),
                        options,
                        fleet.inputs,
                        self._turn.come,
                    )
            except CustomerHeld as error:
                outcome = pending(spec, str(error), "held")
            self._turn.end()
            has_waited = True
            if fleet.when_held == "wait":
                with anyio.move_on_after(RECHECK):
                    await fleet.draining.wait()
            if fleet.when_held == "return" or fleet.draining.is_set():
                return outcome

    async def _ended_elsewhere(self) -> Outcome | None:
        """Return the outcome to which another process has brought a customer that is only to be continued.

        That process may have delivered the sheets to a folder of another host.
        """
        if not self._is_from_journal:
            return None
        known = await read_known(self._fleet.journal, self.spec.external_id)
        outcome = None if known.record is None else known.record.outcome
        return None if known.instruction is not None or isinstance(outcome, Pending) else outcome
