"""Take over a company that exists: its creation was never answered, or its journal was lost."""

from functools import partial

import msgspec

from asyncmig.companies import routes
from asyncmig.companies.catalog import check_external_id
from asyncmig.companies.company import Company
from asyncmig.companies.progress import Progress, read_record, wall_clock
from asyncmig.companies.wire import ImportState
from asyncmig.errors import InvalidInput, UnknownOutcome
from asyncmig.journal import JournalPort

__all__ = ["adopt", "look_first"]


async def adopt(journal: JournalPort, external_id: str, company_id: str) -> None:
    """Write down which company a customer is whose creation was never answered, or whose journal was lost.

    The next `migrate` goes on from there: an import of the company that runs is waited for, one that completed is
    delivered and not repeated, and without any the import is started. Raises `InvalidInput` if the journal knows
    another company for the customer, `CompanyHeld` if a process works on it.
    """
    check_external_id(external_id)
    if not company_id.strip():
        raise InvalidInput("company_id", company_id, "is empty")
    async with await journal.claim(external_id) as claim:
        record = read_record(external_id, claim.state)
        if record.company_id not in (None, company_id):
            raise InvalidInput(
                "company_id", company_id, f"is not the one that the journal has: {record.company_id}"
            )
        adopted = msgspec.structs.replace(
            record, company_id=company_id, creating=False, adopted=True, outcome=None
        )
        await claim.write(
            "adopt", msgspec.json.encode({"company_id": company_id}), msgspec.json.encode(adopted)
        )


async def look_first(company: Company, progress: Progress) -> None:
    """Find the import that an adopted company has had: the one that runs, or the newest that completed."""
    progress.begin("starting", "looks for an earlier import")
    states = await progress.patiently(partial(_list, company))
    running = [state for state in states if state.status not in routes.IMPORT.terminal]
    for state in running or [state for state in states if state.status == "completed"]:
        run_id = state.run_id or state.id
        if run_id is None:
            reason = f"the company has an import that is {state.status}, and the server does not say its id"
            endpoint = routes.START_IMPORT
            raise UnknownOutcome(endpoint.method, endpoint.template, reason, "", endpoint.advice)
        progress.notes.append(f"the company had an import that is {state.status}; it was not repeated")
        await progress.write("found", run_id=run_id, started_at=wall_clock(), foreign=True)
        return


async def _list(company: Company) -> list[ImportState]:
    return [state async for state in company.imports.list()]
