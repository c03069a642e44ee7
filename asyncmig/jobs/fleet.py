"""Drive any number of migrations at once: admission, order, outcomes as they arrive, an orderly end."""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from contextlib import AsyncExitStack, suppress
from contextvars import Context, copy_context
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, Unpack, final, get_args

import anyio
import msgspec

from asyncmig import generations
from asyncmig._core.arguments import checked_call, checked_path
from asyncmig._io.event_loop import AsyncOnly, LoopGuard
from asyncmig._io.threads import in_thread
from asyncmig.customers.decisions import Decision
from asyncmig.customers.files import check_utf8
from asyncmig.customers.options import MigrationKeywords, MigrationOptions, combined
from asyncmig.customers.outcome import Outcome, Parked, Reviewed
from asyncmig.customers.paths import Inputs
from asyncmig.customers.spec import CheckedSpec, Spec, each_spec, failed
from asyncmig.customers.status import CustomerStatus
from asyncmig.errors import CustomerHeld, InvalidInput, SessionClosed, UsageError
from asyncmig.jobs.admission import Admission, Cancellations
from asyncmig.jobs.customers import CustomerMethods, decide_when_free
from asyncmig.jobs.instructions import KnownCustomer, Secrets, Work, read_known_of, spec_with_secrets
from asyncmig.jobs.migrate import CustomerTask, FleetParts, WhenHeld, check_unchanged, recover_run_slots
from asyncmig.jobs.progress import LiveProgress
from asyncmig.jobs.turns import Turns, largest_first
from asyncmig.journal import DatabaseJournal, Instruction, JournalPlace, JournalPort, open_journal
from asyncmig.session import Session, context_of

__all__ = ["Fleet", "Secrets", "WhenHeld", "WhenNoRunSlot"]

_LEFT = UsageError("this Fleet was left: submit and run inside its `async with` block, or open a new one")
WhenNoRunSlot = Literal["wait", "return"]
"""What a fleet does with a start while every run slot is held by a run that waits for a person."""
_AT_ONCE = 50
"""Customers that are checked or submitted in one turn of the loop, because other tasks share it."""


@final
class Fleet(AsyncOnly, CustomerMethods):
    """Drives migrations of one session, at most `concurrency` at once, the longest first.

    With thousands of customers at once, each full garbage collection of Python pauses the event loop: with 10,000 for
    about half a second. `gc.set_threshold` makes full collections rare.

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

    `secrets`: called with each spec that comes from the journal, which has no secrets; returns the spec with its
    `connections`, or with the credentials of its `connection`. It may be a coroutine function.

    Leaving the block cancels the migrations that have not ended. Their runs continue on the server, and the same
    specs continue from there. A failure or bad input of one customer never affects another.
    Used outside its `async with` block, or on another event loop, it raises `UsageError`.
    """

    __slots__ = (
        "_admission",
        "_cancellations",
        "_exits",
        "_guard",
        "_own_journal",
        "_parts",
        "_progress",
        "_secrets",
        "_session",
        "_submitted",
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
        secrets: Secrets | None = None,
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
        inputs = Inputs()
        inputs.add(protected)
        self._own_journal: DatabaseJournal | None = None
        if isinstance(journal, str | Path):
            if path := JournalPlace(str(journal)).path:
                inputs.add([path])
            journal = self._own_journal = open_journal(journal)
        self._parts = parts = FleetParts(
            generation=generations.find(api),
            context=context_of(session),
            journal=journal,
            to=checked_path("to", to),
            options=combined(options, keywords),
            inputs=inputs,
            when_held=when_held,
        )
        generations.check_options(parts.generation, parts.options)
        self._session, self._when_no_run_slot, self._secrets = session, when_no_run_slot, secrets
        self._guard = LoopGuard("Fleet")
        self._submitted: dict[str, CustomerTask] = {}
        self._admission = Admission(concurrency, self._forget)
        self._cancellations = Cancellations(parts, self._submitted, self._admission)
        self._progress, self._exits = LiveProgress(), AsyncExitStack()

    async def __aenter__(self) -> Self:
        self._session.check_open()
        self._guard.enter()
        context, journal = self._parts.context, self._parts.journal
        try:
            async with AsyncExitStack() as exits:  # closes in reverse order
                if self._own_journal is not None:
                    await exits.enter_async_context(self._own_journal)
                if isinstance(journal, DatabaseJournal):
                    with suppress(OSError):  # the send log warns that it cannot be used
                        journal.send_log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                    await context.remember(journal.send_log)
                exits.push_async_callback(self._admission.ended)
                exits.push_async_callback(self._cancellations.aclose)
                context.runs.gives_up = self._when_no_run_slot == "return"
                events = self._session.events
                exits.enter_context(events.subscribe(self._progress.take, *LiveProgress.KINDS))
                self._exits = exits.pop_all()
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
        self._parts.context.runs.gives_up = False
        self._admission.cancel()
        # Shielded, because no task may outlive the fleet and the journal must be closed, also in a cancelled task.
        with anyio.CancelScope(shield=True):
            await self._exits.aclose()

    def submit(self, spec: Spec) -> "asyncio.Future[Outcome]":
        """Start a migration as soon as there is a place; the future gives its outcome.

        The journal gets the customer in the background; see `accept`. A canceled customer continues. A customer that
        is under way already is not started twice: the same spec gets the same future, and another one raises
        `InvalidInput`. Leaving the fleet's block cancels the migration; cancelling the future does not.
        """
        spec, refused = generations.check_spec(self._parts.generation, spec)
        instruction = None if refused else Work.of(spec, self._parts.generation.name).wanted("run")
        return self._submit(spec, refused, instruction, context=copy_context())

    @checked_call
    async def accept(self, spec: Spec) -> "asyncio.Future[Outcome]":
        """Do what `submit` does; return once the journal has the customer: then `resume` continues it after a crash.

        Raises `InvalidInput` for wrong values, for missing files, and for changed ones that `if_changed="refuse"`
        refuses; `JournalError`.
        """
        self._guard.loop()
        spec, refused = generations.check_spec(self._parts.generation, spec)
        if refused is not None:
            raise refused
        await in_thread(partial(spec.validate, root=self._parts.options.root))
        if self._parts.options.if_changed == "refuse":
            await check_unchanged(self._parts.generation, spec, self._parts.journal)
        future = self.submit(spec)
        if (under_way := self._submitted.get(spec.external_id)) is not None:
            await under_way.record()
        return future

    def _submit(
        self,
        spec: Spec,
        refused: InvalidInput | None,
        instruction: Instruction | None,
        *,
        context: Context,
        turns: Turns | None = None,
        is_recorded: bool = False,
        known: KnownCustomer | None = None,
    ) -> "asyncio.Future[Outcome]":
        loop = self._guard.loop()
        if refused is not None:
            future: asyncio.Future[Outcome] = loop.create_future()
            future.set_result(failed(spec, refused))
            return future
        self._check_not_other(spec)
        under_way = self._submitted.get(spec.external_id)
        if under_way is not None:
            return under_way.future
        customer = CustomerTask(
            self._parts, spec, instruction, context=context, turns=turns, is_recorded=is_recorded, known=known
        )
        self._submitted[spec.external_id] = customer
        self._admission.add(customer)
        self._cancellations.start_watching()
        return customer.future

    def _check_not_other(self, spec: Spec) -> None:
        """Raise `InvalidInput` if another spec of this customer is under way: this one would be ignored."""
        under_way = self._submitted.get(spec.external_id)
        if under_way is not None and under_way.is_other(spec):
            reason = "is under way with another spec: wait for its outcome, and submit this one then"
            raise InvalidInput("external_id", spec.external_id, reason)

    async def run(self, specs: Iterable[Spec] | AsyncIterable[Spec]) -> AsyncIterator[Outcome]:
        """Migrate all of `specs`, the longest first, and yield each outcome as it comes.

        All specs are read before the first one begins. Bad input of one is its `Failed` outcome, and so is a file
        below a folder that gets the sheets of any of them. Raises `InvalidInput`, before anything is sent, for two
        specs of one external id, and for a customer that is under way with another spec; `JournalError` if the
        journal cannot be written.
        """
        given: list[CheckedSpec] = []
        async for each in each_spec(specs):
            given.append(generations.check_spec(self._parts.generation, each))
            await _let_others_run(len(given))
        keys, ready = await in_thread(largest_first, given, self._parts.to)
        good = {spec.external_id: spec for spec, refused in given if refused is None}
        for number, spec in enumerate(good.values()):
            self._check_not_other(spec)
            await _let_others_run(number)
        context = self._parts.context
        in_progress = await recover_run_slots(context, self._parts.generation, self._parts.journal)
        for external_id in in_progress.keys() & good:
            run = in_progress[external_id]
            context.runs.seen(run)  # its migration finds out whether it waits for a person
        instructions = await self._parts.journal.instructions()
        for external_id in instructions.keys() & good:
            if instructions[external_id].wanted == "cancel":
                await self._parts.journal.delete_instruction(external_id, instructions.pop(external_id))
        del given, good
        with self._parts.inputs.holding(keys):
            turns, own, ended = Turns(), copy_context(), asyncio.Queue[asyncio.Future[Outcome]]()
            count, add = len(ready), ended.put_nowait
            for number, (spec, refused) in enumerate(ready):
                instruction = None if refused else instructions.get(spec.external_id)
                future = self._submit(spec, refused, instruction, context=own, turns=turns, is_recorded=True)
                future.add_done_callback(add, context=own)
                await _let_others_run(number)
            del ready
            for _ in range(count):
                yield await (await ended.get())

    async def resume(self) -> "dict[str, asyncio.Future[Outcome]]":
        """Continue everything in the journal that has not ended, without specs; return the futures by external id.

        Skips customers that are delivered, failed, parked, unknown or canceled, unless more was asked for and not
        done, and customers of another API generation. What another process holds is waited for; see `when_held`.
        Raises `JournalError`.
        """
        self._guard.loop()
        generation, journal = self._parts.generation, self._parts.journal
        states, instructions = await journal.states(), await journal.instructions()
        names = dict.fromkeys([*states, *instructions])
        every = [KnownCustomer(name, states.get(name), instructions.get(name)) for name in names]
        unfinished = await in_thread(lambda: [each for each in every if each.is_unfinished(generation.name)])
        futures = {
            each.external_id: under_way.future
            for each in unfinished
            if (under_way := self._submitted.get(each.external_id)) is not None
        }
        left = {each.external_id: each for each in unfinished if each.external_id not in futures}
        checked = [await spec_with_secrets(generation, known, self._secrets) for known in left.values()]
        _, ready = await in_thread(largest_first, checked, self._parts.to)
        turns, own = Turns(), copy_context()
        for number, (spec, refused) in enumerate(ready):
            known = left[spec.external_id]
            futures[spec.external_id] = self._submit(
                spec, refused, known.instruction, context=own, turns=turns, is_recorded=True, known=known
            )
            await _let_others_run(number)
        return futures

    @checked_call
    async def retry(self, external_id: str) -> "asyncio.Future[Outcome]":
        """Continue a customer, or start again what failed, with what the journal has of it.

        A customer that is under way is not started twice. Raises `CustomerNotFound`, `JournalError`, and
        `InvalidInput` for a customer of another API generation.
        """
        if (under_way := self._submitted.get(external_id)) is not None:
            await under_way.record()
            return under_way.future
        known = await self._known(external_id)
        return await self._instruct(known, known.again().wanted("retry"))

    @checked_call
    async def decide(
        self, external_id: str, decision: Decision, *, shown: Parked | str | None = None
    ) -> Reviewed:
        """Send a decision about a parked customer, which then continues.

        `shown`: the questions that the person saw, or their digest (`digest_of`): if the customer asks something else
        by now, nothing is sent, and the result is `changed`. Without it, the decision is about the questions in the
        journal. A decision may destroy rows: `Parked.destructive` lists what an approval destroys. While a task or
        another process holds the customer, the decision waits for it.

        Raises `InvalidInput` for a customer that asks nothing, a decision that the API generation lacks, and answers
        that were not offered; `CustomerNotFound`, `JournalError`, and what a request raises.
        """
        self._guard.loop()
        parts = self._parts
        reviewed = await decide_when_free(
            parts.generation, parts.context, parts.journal, external_id, decision, shown
        )
        if reviewed != "changed" and external_id not in self._submitted:
            known = await self._known(external_id)
            await self._instruct(known, known.work.wanted("run"))
        return reviewed

    @checked_call
    async def cancel(self, external_id: str, *, reject_parked: bool = False) -> Outcome:
        """Stop the work for a customer, in this and in every other process, and return its outcome.

        That is `Pending` with the reason `canceled`, unless the customer has ended before. `reject_parked`: whether a
        parked run is rejected. The run of a generation that cannot cancel runs continues at the server. `resume`
        skips the customer; `submit`, `accept` and `retry` continue it. Another process notices within two seconds.

        Raises `CustomerNotFound`, `JournalError`, and what `Generation.cancel` raises.
        """
        if (under_way := self._submitted.get(external_id)) is not None:
            await under_way.record()
        known = await self._known(external_id)
        work = msgspec.structs.replace(known.work, reject_parked=reject_parked)
        await self._parts.journal.instruct(external_id, work.wanted("cancel"))
        return await asyncio.shield(self._cancellations.carry_out(external_id))

    async def _known(self, external_id: str) -> KnownCustomer:
        """Return the journal's record and instruction of a customer of this API generation."""
        self._guard.loop()
        return await read_known_of(self._parts.generation, self._parts.journal, external_id)

    async def _instruct(self, known: KnownCustomer, instruction: Instruction) -> "asyncio.Future[Outcome]":
        """Write an instruction about a customer to the journal, and submit the customer."""
        await self._parts.journal.instruct(known.external_id, instruction)
        known = replace(known, instruction=instruction)
        checked = await spec_with_secrets(self._parts.generation, known, self._secrets)
        return self._submit(*checked, instruction, context=copy_context(), is_recorded=True, known=known)

    async def status(self, external_id: str) -> CustomerStatus:
        """Return the status of a customer. The time does not depend on the number of customers."""
        if (under_way := self._submitted.get(external_id)) is not None:
            await under_way.record()
        return self._progress.added_to(await super().status(external_id))

    async def _news(self, external_id: str, seconds: float) -> bool:
        return await self._progress.news(external_id, seconds)

    def _opened_journal(self) -> JournalPort:
        self._guard.loop()
        return self._parts.journal

    async def _check_idle(self, external_id: str) -> None:
        if external_id in self._submitted:
            raise CustomerHeld("this fleet", external_id, "a task of this fleet")

    @checked_call
    async def drain(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - what is left then is cancelled
        """Start nothing new, let requests in flight end, and leave the runs alive on the server.

        Every migration that has not ended comes to `Pending`. This closes the session for everybody. After
        `timeout` seconds what is still in flight is cancelled.
        """
        self._guard.loop()
        self._admission.drain()
        self._session.close(SessionClosed("interrupted: the same command continues from here"))
        with anyio.move_on_after(timeout):
            await self._admission.ended()
            return
        self._admission.cancel()

    def _forget(self, customer: CustomerTask) -> None:
        if self._submitted.get(customer.spec.external_id) is customer:
            del self._submitted[customer.spec.external_id]


async def _let_others_run(number: int) -> None:
    """Let other tasks of the loop run after every `_AT_ONCE` customers."""
    if number % _AT_ONCE == _AT_ONCE - 1:
        await asyncio.sleep(0)
