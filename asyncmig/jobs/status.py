"""The status of the customers of a journal, also while other processes write it.

The journal may be open for reading only.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import datetime

import msgspec

from asyncmig import generations
from asyncmig._io.threads import in_thread
from asyncmig.customers.status import CustomerRecord, CustomerStatus
from asyncmig.errors import CustomerNotFound
from asyncmig.jobs.instructions import KnownCustomer, read_known
from asyncmig.journal import Activity, JournalEvent, JournalPort, Wanted
from asyncmig.steps import OUTCOMES, STEPS

__all__ = [
    "OUTCOMES",
    "STEPS",
    "CustomerStatus",
    "LogEntry",
    "follow",
    "read_all",
    "read_record",
    "read_records",
    "read_status",
    "read_statuses",
    "status_of",
    "status_of_known",
    "timeline",
    "words_of",
]

_IDLE_LOOKS = 3
"""The number of consecutive checks without a working process after which `follow` ends."""


class LogEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One event of a customer's log, for people."""

    at: str
    """Wall-clock time, ISO 8601 in UTC."""
    waited: float
    """Real seconds since the entry before; 0 if the wall clock was set back."""
    kind: str
    words: str
    """A description of the entry. It may contain unescaped text of the server."""


async def read_record(journal: JournalPort, external_id: str) -> CustomerRecord:
    """Return the record of one customer; see `read_records`. Raises `CustomerNotFound`, `JournalError`."""
    state = await journal.state(external_id)
    if state is None:
        raise CustomerNotFound("external_id", external_id, "is not in the journal")
    return generations.read(external_id, state)


async def read_status(journal: JournalPort, external_id: str) -> CustomerStatus:
    """Return the status of one customer, in a time that does not depend on the number of customers.

    Raises `CustomerNotFound`, `JournalError`.
    """
    known = await read_known(journal, external_id)
    return status_of_known(known, (await journal.activity(external_id)).get(external_id))


async def read_records(journal: JournalPort) -> dict[str, CustomerRecord]:
    """Return the record of each customer, the oldest first. Raises `JournalError` if the journal cannot be read.

    A record that this version cannot use is not `is_readable`, and its outcome is `Failed` with the reason.
    """
    states = await journal.states()
    return {external_id: generations.read(external_id, state) for external_id, state in states.items()}


async def read_statuses(journal: JournalPort) -> list[CustomerStatus]:
    """Return the status of each customer of a journal, the oldest first. Raises `JournalError`."""
    found = await read_all(journal)
    return await in_thread(lambda: [status_of_known(*each) for each in found])


async def read_all(journal: JournalPort) -> list[tuple[KnownCustomer, Activity | None]]:
    """Return what a journal knows of each customer, the oldest first, without decoding it. Raises `JournalError`."""
    states, instructions = await journal.states(), await journal.instructions()
    activity = await journal.activity()
    names = [*states, *(name for name in activity if name not in states)]
    known = [KnownCustomer(name, states.get(name), instructions.get(name)) for name in names]
    return [
        (each, seen)
        for each in known
        for seen in [activity.get(each.external_id)]
        if each.state is not None or each.instruction is not None or (seen is not None and seen.holder)
    ]


def status_of_known(known: KnownCustomer, seen: Activity | None) -> CustomerStatus:
    """Return the status of a customer, which may not have begun."""
    if (record := known.record) is not None:
        return status_of(record, seen, known.wanted)
    status = CustomerStatus(
        external_id=known.external_id,
        name=known.name,
        api=known.work.api,
        pending_reason="canceled" if known.wanted == "cancel" else None,
    )
    return (
        status if seen is None else msgspec.structs.replace(status, changed_at=seen.at, held_by=seen.holder)
    )


def status_of(
    record: CustomerRecord, seen: Activity | None = None, wanted: Wanted | None = None
) -> CustomerStatus:
    """Return the status of a customer. `seen`: its last change and its holder, from the journal.

    While a process works on the customer, or is to do so (`wanted`), an earlier outcome other than a delivery no
    longer counts.
    """
    status = record.status
    is_wanted = wanted in ("run", "retry") or (seen is not None and seen.holder is not None)
    if is_wanted and status.outcome != "delivered":
        status = msgspec.structs.replace(
            status, outcome="pending", pending_reason=None, error=None, destructive=()
        )
    elif record.run_slot is not None and status.outcome == "parked":
        status = msgspec.structs.replace(status, holds_run_slot=True)
    if seen is None:
        return status
    return msgspec.structs.replace(status, changed_at=seen.at, held_by=seen.holder)


def timeline(events: Sequence[JournalEvent], api: str = generations.DEFAULT) -> Iterator[LogEntry]:
    """Yield the journal entries of one customer, with the real time between them."""
    before: datetime | None = None
    for event in events:
        at = datetime.fromisoformat(event.at)
        waited = max(0.0, (at - before).total_seconds()) if before else 0.0
        yield LogEntry(at=event.at, waited=waited, kind=event.kind, words=words_of(event, api))
        before = at


def words_of(event: JournalEvent, api: str = generations.DEFAULT) -> str:
    """Return a description of a journal entry. It may contain unescaped text of the server.

    `api`: the API generation of the customer's record; for an unknown one the text is empty.
    """
    return generations.find(api).describe(event) if api in generations.known() else ""


async def follow(journal: JournalPort, *, after: int = 0, every: float = 1.0) -> AsyncIterator[JournalEvent]:
    """Yield events after number `after` as they are written, until no process works on any customer.

    `every`: seconds of the loop's clock between checks. Raises `JournalError`.
    """
    idle = 0
    while idle < _IDLE_LOOKS:
        busy = any(seen.holder for seen in (await journal.activity()).values())
        events = await journal.events(after=after)
        for event in events:
            after = event.seq
            yield event
        idle = 0 if busy or events else idle + 1
        await asyncio.sleep(every)
