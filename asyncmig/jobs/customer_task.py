"""One customer of a fleet: its spec, its migration, and the future of its outcome."""

import asyncio
from contextvars import Context
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, final

from asyncmig._io.context import SessionContext
from asyncmig.customers.files import customer_folder
from asyncmig.customers.options import MigrationCall, MigrationOptions
from asyncmig.customers.outcome import Outcome, Pending
from asyncmig.customers.paths import Inputs
from asyncmig.customers.spec import Spec
from asyncmig.errors import CustomerHeld, JournalError
from asyncmig.generations import Generation
from asyncmig.jobs.instructions import KnownCustomer, Work, fulfil, read_known
from asyncmig.jobs.migrate import migrate_claimed, pending
from asyncmig.jobs.turns import Turns
from asyncmig.journal import Instruction, JournalPort

__all__ = ["CustomerTask", "FleetParts", "WhenHeld"]

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
    when_held: WhenHeld


@final
class CustomerTask:
    """One customer from its submission to its outcome. It has a task only while it is recorded or migrated."""

    __slots__ = (
        "_fleet",
        "_has_waited",
        "_instruction",
        "_known",
        "_place",
        "_recorded",
        "_turns",
        "context",
        "future",
        "held",
        "is_canceled",
        "is_recorded",
        "spec",
        "task",
    )

    def __init__(
        self,
        fleet: FleetParts,
        spec: Spec,
        instruction: Instruction | None,
        *,
        context: Context,
        turns: Turns | None = None,
        is_recorded: bool,
        known: KnownCustomer | None = None,
    ) -> None:
        """`instruction`: what the journal has about the customer, or gets now unless `is_recorded`.

        `context`: its tasks run in copies of it. `turns`: the order of the customers that begin together. `known`:
        what the journal has of a customer that continues without a spec of the caller.
        """
        self._fleet, self._turns = fleet, turns
        self._place = 0 if turns is None else turns.place()
        self._instruction, self._known = instruction, known
        self._has_waited = False
        self._recorded: asyncio.Future[None] | None = None
        self.spec: Spec = spec
        self.context: Context = context
        self.future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self.is_recorded: bool = is_recorded or instruction is None
        """Whether the journal has the instruction. From then on, a cancel instruction in the journal is a
        newer one."""
        self.is_canceled: bool = False
        """Whether the work was stopped; then the code that stopped it sets the result of `future`."""
        self.held: Pending | None = None
        """The outcome while another process holds the customer."""
        self.task: asyncio.Task[Outcome | None] | asyncio.Task[None] | None = None

    def is_other(self, spec: Spec) -> bool:
        """Return whether `spec` differs from the one under way, in the fields of that one that the journal has."""
        if self._known is None:
            return self.spec != spec
        kept, given = Work.of(self.spec, "").spec, Work.of(spec, "").spec
        assert kept is not None
        assert given is not None
        if self._known.work.spec is not None:
            return kept != given
        # The record of a migration that has begun has ids where a spec may have names.
        return (kept.name, kept.files) != (given.name, given.files)

    async def record(self) -> None:
        """Return when the journal has the customer. Raises `JournalError`."""
        if self._instruction is None:
            self._instruction = Work.of(self.spec, self._fleet.generation.name).wanted("run")
            await self._fleet.journal.instruct(self.spec.external_id, self._instruction)
        elif not self.is_recorded:
            if self._recorded is None:
                self._recorded = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._recorded)

    async def write(self) -> None:
        """Write the instruction to the journal. Raises `JournalError`."""
        assert self._instruction is not None
        await self._fleet.journal.instruct(self.spec.external_id, self._instruction)
        self.is_recorded = True
        if self._recorded is not None and not self._recorded.done():
            self._recorded.set_result(None)

    async def run(self) -> Outcome | None:
        """Migrate the customer, and delete the instruction. Raises `JournalError`.

        Returns None if the fleet waits for another process that holds the customer; then `held` is set.
        """
        fleet, spec, options = self._fleet, self.spec, self._fleet.options
        outcome = await self._ended_elsewhere() if self._has_waited else None
        if outcome is None:
            if self._known is not None and self._known.wanted == "retry":
                options = replace(options, retry_failed=True)
            to = customer_folder(fleet.to, spec.external_id)
            try:
                call = MigrationCall(spec=spec, to=to, options=options, inputs=fleet.inputs, turn=self._come)
                outcome = await migrate_claimed(fleet.generation, fleet.context, fleet.journal, call)
            except CustomerHeld as error:
                self.held = outcome = pending(spec, str(error), "held")
                self._end_turn()
                self._has_waited = True
                if fleet.when_held == "wait":
                    return None
        await fulfil(fleet.journal, spec.external_id, self._instruction, outcome)
        return outcome

    def end(self, outcome: Outcome | None, error: BaseException | None) -> None:
        """Set the outcome or the error in the futures; without either, cancel them."""
        self._end_turn()
        if self._recorded is not None and not self._recorded.done():
            if isinstance(error, JournalError):
                self._recorded.set_exception(error)
                self._recorded.exception()  # not everybody waits for it
            else:
                self._recorded.cancel()
        if self.is_canceled or self.future.done():
            return
        if outcome is not None:
            self.future.set_result(outcome)
        elif error is not None:
            self.future.set_exception(error)
            if isinstance(error, JournalError):
                self.future.exception()  # `run` raises the first one; the others need not be retrieved
        else:
            self.future.cancel()

    async def _come(self) -> None:
        if self._turns is not None:
            await self._turns.come(self._place)

    def _end_turn(self) -> None:
        if self._turns is not None:
            self._turns.end(self._place)

    async def _ended_elsewhere(self) -> Outcome | None:
        """Return the outcome that another process has reached for a customer that this fleet only continues.

        That process may have delivered the sheets to a folder of another host.
        """
        if self._known is None:
            return None
        known = await read_known(self._fleet.journal, self.spec.external_id)
        outcome = None if known.record is None else known.record.outcome
        return None if known.instruction is not None or isinstance(outcome, Pending) else outcome
