"""Methods for single customers by external id, with a journal, for any API generation.

`CustomerMethods` has the methods that `Fleet` and `MigrationQueue` share. They need the journal only, so they work in
every process, whichever process drives the customer.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from itertools import islice
from typing import Final, Literal, get_args

import msgspec

from asyncmig import generations
from asyncmig._core.arguments import checked_call
from asyncmig._io.context import SessionContext
from asyncmig._io.threads import in_thread
from asyncmig.customers.decisions import Decision, checked_decision
from asyncmig.customers.outcome import Outcome, Parked, Pending, Reviewed
from asyncmig.customers.status import CustomerStatus
from asyncmig.errors import CustomerHeld, CustomerNotFound, InvalidInput
from asyncmig.generations import Generation
from asyncmig.jobs.instructions import KnownCustomer, read_known, read_known_of
from asyncmig.jobs.runners import digest_of
from asyncmig.jobs.status import read_all, read_status, status_of_known
from asyncmig.journal import Activity, JournalPort
from asyncmig.steps import OUTCOMES, STEPS

__all__ = [
    "RECHECK",
    "CustomerMethods",
    "SortBy",
    "cancel_when_free",
    "decide_when_free",
    "parked_as_shown",
]

RECHECK: Final = 2.0
"""Seconds between attempts to claim a customer that another process holds."""
_LOOK = 1.0
"""Seconds between reads of the journal while a customer is followed."""
_LOOKS = 5
"""The number of reads without a change after which the status is read again, because its estimates change."""
SortBy = Literal["begun", "external_id", "name", "changed", "-begun", "-external_id", "-name", "-changed"]
"""The order of `customers`: as they came into the journal, by id, by name, by the last change; `-` reverses it."""


class CustomerMethods(ABC):
    """The operations on a customer by its external id.

    All methods raise `CustomerNotFound` for a customer that the journal does not know, and `JournalError`.
    """

    __slots__ = ()

    @abstractmethod
    def _opened_journal(self) -> JournalPort:
        """Return the journal; raise `UsageError` if this object cannot use one now."""

    @checked_call
    async def status(self, external_id: str) -> CustomerStatus:
        """Return the status of a customer. The time does not depend on the number of customers."""
        return await read_status(self._opened_journal(), external_id)

    async def follow(self, external_id: str) -> AsyncGenerator[CustomerStatus]:
        """Yield the status of a customer now, and then after each change; end with the one that has the outcome.

        Works in any process; changes are noticed within a second. The last status `is_over`, and a customer that is
        over yields one status.
        """
        shown: CustomerStatus | None = None
        while True:
            seen = await self._last_activity(external_id)
            status = await self.status(external_id)
            known = msgspec.structs.replace(status, held_by=None)  # its text changes each second
            if known != shown or status.is_over:
                yield status
            if status.is_over:
                return
            shown = known
            for _ in range(_LOOKS):
                has_news = await self._news(external_id, _LOOK)
                if has_news or await self._last_activity(external_id) != seen:
                    break

    async def _last_activity(self, external_id: str) -> tuple[str | None, bool]:
        """Return the time of a customer's last event in the journal, and whether a process holds the customer."""
        found = (await self._opened_journal().activity(external_id)).get(external_id)
        return (None, False) if found is None else (found.at, found.holder is not None)

    async def _news(self, external_id: str, seconds: float) -> bool:
        """Wait so many seconds, or for a change that this process notices; return whether there was one."""
        await asyncio.sleep(seconds)
        return False

    @checked_call
    async def questions(self, external_id: str) -> Parked | None:
        """Return the questions of a parked customer in the journal; None if it asks nothing now. Sends no request.

        A customer on which a process works asks nothing.
        """
        journal = self._opened_journal()
        known = await read_known(journal, external_id)
        outcome = None if known.record is None else known.record.outcome
        if not isinstance(outcome, Parked) or known.wanted is not None:
            return None
        seen = (await journal.activity(external_id)).get(external_id)
        return outcome if seen is None or seen.holder is None else None

    @checked_call
    async def customers(
        self,
        *,
        outcome: str | Collection[str] | None = None,
        step: str | Collection[str] | None = None,
        sort: SortBy = "begun",
        after: str | None = None,
        limit: int | None = None,
    ) -> list[CustomerStatus]:
        """Return the statuses of customers.

        `outcome` and `step`: only customers with one of these. `after`: begin after this customer in the order of
        `sort`, for the next page. `limit`: the length of a page. Reads the states of all customers.

        Raises `InvalidInput` for an unknown outcome, step or order, and `CustomerNotFound` for `after`.
        """
        outcomes, steps = _chosen("outcome", outcome, OUTCOMES), _chosen("step", step, STEPS)
        if sort not in get_args(SortBy):
            raise InvalidInput("sort", sort, f"is not one of {list(get_args(SortBy))}")
        if limit is not None and limit < 1:
            raise InvalidInput("limit", limit, "must be at least 1")
        found = await read_all(self._opened_journal())
        if after is not None and after not in {known.external_id for known, _ in found}:
            raise CustomerNotFound("after", after, "is not in the journal")
        return await in_thread(_page, found, sort, after, limit, outcomes, steps)

    @checked_call
    async def forget(self, external_id: str, *, force: bool = False) -> None:
        """Delete a delivered customer from the journal; with `force`, any customer.

        The files and what the server has remain. If the same external id is migrated again, the outcome may be
        `unknown`. Raises `InvalidInput` for a customer that is not delivered, without `force`; `CustomerHeld` while a
        task works on the customer.
        """
        journal = self._opened_journal()
        status = await read_status(journal, external_id)
        await self._check_idle(external_id)
        if status.held_by is not None:
            raise CustomerHeld("the journal", external_id, status.held_by)
        if status.outcome != "delivered" and not force:
            reason = f"is not delivered ({status.outcome}); with force=True it is forgotten anyway"
            raise InvalidInput("external_id", external_id, reason)
        await journal.forget(external_id)

    @abstractmethod
    async def _check_idle(self, external_id: str) -> None:
        """Raise `CustomerHeld` if work is planned here for a customer that no task holds yet."""


async def decide_when_free(
    generation: Generation,
    context: SessionContext,
    journal: JournalPort,
    external_id: str,
    decision: Decision,
    shown: Parked | str | None,
) -> Reviewed:
    """Send a decision about a parked customer; while a task or process holds the customer, wait for it.

    `shown`: see `parked_as_shown`. Raises `InvalidInput` for a customer that asks nothing or belongs to another API
    generation, `CustomerNotFound`, and what `Generation.decide` raises.
    """
    checked_decision(decision, generation.supported_decisions, generation.name)
    while True:
        parked = await parked_as_shown(journal, await read_known_of(generation, journal, external_id), shown)
        if parked is None:
            return "changed"
        try:
            return await generation.decide(
                context, journal, external_id, decision, shown=parked.attention, allow_destructive=True
            )
        except CustomerHeld:
            await asyncio.sleep(RECHECK)


async def parked_as_shown(
    journal: JournalPort, known: KnownCustomer, shown: Parked | str | None
) -> Parked | None:
    """Return the outcome of a parked customer; None if it asks something else than was shown.

    `shown`: the questions that the person saw, or their digest; None: those in the journal. Raises `InvalidInput` for
    a customer that asks nothing.
    """
    outcome = None if known.record is None else known.record.outcome
    if not isinstance(outcome, Parked):
        status = await read_status(journal, known.external_id)
        asks = f"asks nothing now: it is {status.outcome}, at the step {status.step}"
        raise InvalidInput("external_id", known.external_id, asks)
    mark = digest_of(shown) if isinstance(shown, Parked) else shown
    return outcome if mark in (None, digest_of(outcome)) else None


async def cancel_when_free(context: SessionContext, journal: JournalPort, external_id: str) -> Outcome:
    """Carry out the cancel instruction in the journal once no task or process holds the customer; return its outcome.

    The tasks and processes that hold the customer see the instruction and stop. It stays in the journal, unless the
    customer has ended otherwise. Raises what `Generation.cancel` raises.
    """
    while True:
        known = await read_known(journal, external_id)
        work, name = known.work, known.name
        if known.instruction is None or known.wanted != "cancel":  # it was carried out, or replaced
            ended = None if known.record is None else known.record.outcome
            return (
                _canceled(external_id, name, "it was submitted again meanwhile") if ended is None else ended
            )
        generation = generations.find(work.api)
        try:
            if known.state is None:
                async with await journal.claim(external_id) as claim:
                    if claim.state is None:
                        return _canceled(external_id, name, "it had not begun")
            outcome = await generation.cancel(context, journal, external_id, reject_parked=work.reject_parked)
        except CustomerHeld:
            await asyncio.sleep(RECHECK)
            continue
        if not isinstance(outcome, Pending):
            await journal.delete_instruction(external_id, known.instruction)
        return outcome


def _canceled(external_id: str, name: str, why: str) -> Pending:
    return Pending(external_id=external_id, name=name, error=f"canceled: {why}", reason="canceled")


def _chosen(field: str, given: str | Collection[str] | None, known: Sequence[str]) -> Collection[str]:
    """Return the given names; all known names for None. Raises `InvalidInput` for an unknown name."""
    if given is None:
        return known
    names = [given] if isinstance(given, str) else list(given)
    for name in names:
        if name not in known:
            raise InvalidInput(field, name, f"is not one of {list(known)}")
    return names


def _page(
    found: list[tuple[KnownCustomer, Activity | None]],
    sort: SortBy,
    after: str | None,
    limit: int | None,
    outcomes: Collection[str],
    steps: Collection[str],
) -> list[CustomerStatus]:
    """Return a page of `customers`. Decodes only the records that it needs."""
    keys: Mapping[str, Callable[[KnownCustomer, Activity | None], str]] = {
        "external_id": lambda known, seen: known.external_id,
        "name": lambda known, seen: known.name,
        "changed": lambda known, seen: (seen.at if seen else None) or "",
    }
    if (key := keys.get(sort.removeprefix("-"))) is not None:
        found.sort(key=lambda each: (key(*each), each[0].external_id))
    ordered = iter(reversed(found) if sort.startswith("-") else found)
    if after is not None:
        next(known for known, _ in ordered if known.external_id == after)
    statuses = (status_of_known(*each) for each in ordered)
    return list(islice((each for each in statuses if each.outcome in outcomes and each.step in steps), limit))
