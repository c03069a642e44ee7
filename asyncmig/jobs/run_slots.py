"""Recovers from the journal which runs of earlier processes may still hold a run slot of the account.

A journal in PostgreSQL also shares the run slots of all processes that use it.
"""

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import final

from asyncmig import generations
from asyncmig._io.context import SessionContext
from asyncmig._io.threads import in_thread
from asyncmig.customers.outcome import Parked
from asyncmig.customers.status import CustomerRecord
from asyncmig.generations import Generation
from asyncmig.journal import DatabaseJournal, JournalPort

__all__ = ["recover_run_slots"]


@final
class _Recovered:
    """What one session has recovered."""

    __slots__ = ("journals", "lock")

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.journals: list[tuple[JournalPort, Mapping[str, str]]] = []


async def recover_run_slots(
    context: SessionContext, generation: Generation, journal: JournalPort
) -> Mapping[str, str]:
    """Report the runs that may be in progress, so that no start exceeds the limit of runs.

    Return the ids under which they hold run slots, by external id. The journal is read once for each session, and not
    at all for a generation whose runs have no limit. Raises `JournalError`.
    """
    if all(endpoint.run_order is None for endpoint in generation.endpoints.values()):
        return {}
    recovered = context.kept(_Recovered)
    async with recovered.lock:
        for known, runs in recovered.journals:
            if known is journal:
                return runs
        if isinstance(journal, DatabaseJournal) and (store := journal.run_slots(context.account)):
            context.runs.share(store)
        # In a thread, because a journal may have ten thousand records.
        records = await in_thread(_in_progress, generation, await journal.states())
        for run, record in records.values():
            if isinstance(record.outcome, Parked):
                context.runs.waits_for_person(run, partial(generation.questions, context, record))
            else:
                context.runs.seen(run)
        in_progress = {external_id: run for external_id, (run, _) in records.items()}
        recovered.journals.append((journal, in_progress))
        return in_progress


def _in_progress(
    generation: Generation, states: Mapping[str, bytes]
) -> dict[str, tuple[str, CustomerRecord]]:
    """Return the records of this generation whose run may be in progress, each with the id of its run slot."""
    found: dict[str, tuple[str, CustomerRecord]] = {}
    for external_id, state in states.items():
        if generations.api_of(state) == generation.name:
            record = generations.read(external_id, state)
            if record.run_slot is not None:
                found[external_id] = record.run_slot, record
    return found
