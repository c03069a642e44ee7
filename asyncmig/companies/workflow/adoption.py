"""Link a customer to an existing company, after the response to the create request or the journal was lost."""

from functools import partial

import msgspec

from asyncmig._core.arguments import checked_call
from asyncmig.companies import routes
from asyncmig.companies.company import Company
from asyncmig.companies.import_run import ImportRun
from asyncmig.companies.wire import ImportState
from asyncmig.companies.workflow.record import Record, read_record
from asyncmig.customers.failures import wall_clock
from asyncmig.customers.ids import COMPANY, checked_id
from asyncmig.customers.outcome import Failed
from asyncmig.customers.spec import check_external_id
from asyncmig.errors import InvalidInput, UnknownOutcome
from asyncmig.journal import JournalPort
from asyncmig.records.record_keeper import RecordKeeper

__all__ = ["adopt", "look_first"]


@checked_call
async def adopt(journal: JournalPort, external_id: str, company_id: str) -> str:
    """Link a customer to its company when the response to the create request, or the journal, was lost.

    The next `migrate` continues from there: it waits for a running import of the company, delivers a completed one
    without repeating it, reports a failed one as failed (`retries` starts it again), and starts one if there is none.
    `company_id` may have spaces around it, or be a URL of the dashboard.

    Returns the id of the company. Raises `InvalidInput` for a value that is not an id, if the journal has another
    company for the customer, or if it has the company for another customer; `CustomerHeld` if a process works on the
    customer.
    """
    external_id = check_external_id(external_id.strip())
    company_id = checked_id("company_id", company_id, COMPANY)
    async with await journal.claim(external_id) as claim:
        record = read_record(external_id, claim.state)
        if not record.is_readable and isinstance(record.outcome, Failed):
            raise InvalidInput("external_id", external_id, record.outcome.error)
        if record.company_id not in (None, company_id):
            raise InvalidInput(
                "company_id", company_id, f"is not the one that the journal has: {record.company_id}"
            )
        if owner := await _owner(journal, company_id, besides=external_id):
            raise InvalidInput("company_id", company_id, f"is the company of another customer: {owner}")
        adopted = msgspec.structs.replace(
            record, company_id=company_id, create_sent=False, adopted=True, outcome=None
        )
        await claim.write(
            "adopt", msgspec.json.encode({"company_id": company_id}), msgspec.json.encode(adopted)
        )
    return company_id


async def _owner(journal: JournalPort, company_id: str, *, besides: str) -> str | None:
    """Return the other customer that the journal links to this company, or None."""
    for external_id, state in (await journal.states()).items():
        if external_id != besides and read_record(external_id, state).company_id == company_id:
            return external_id
    return None


async def look_first(company: Company, progress: RecordKeeper[Record]) -> ImportRun | None:
    """Return an earlier import of an adopted company: the running one, the newest completed one, or a failed one."""
    progress.begin("starting", "looks for an earlier import")
    states, is_cut = await progress.retry_while_away(partial(_list, company, progress.rank))
    running = [state for state in states if state.status not in routes.IMPORT.terminal]
    found = running or [state for state in states if state.status == "completed"]
    if is_cut and not found:
        raise _unknown("the server does not give all imports of the company, and one may be among the others")
    for state in found or states:
        run_id = state.run_id or state.id
        if run_id is None:
            raise _unknown(
                f"the company has an import that is {state.status}, and the server does not say its id"
            )
        progress.notes.append(f"the company had an import that is {state.status}; it was not repeated")
        epoch = max(progress.record.epoch, len(states) - 1)  # each of them may have used an idempotency key
        await progress.keep("found", run_id=run_id, started_at=wall_clock(), has_other_rows=True, epoch=epoch)
        return company.imports.found(state)
    return None


async def _list(company: Company, rank: float) -> tuple[list[ImportState], bool]:
    pages = [page async for page in company.imports.pages(rank=rank)]
    return [state for states, _ in pages for state in states], any(is_cut for _, is_cut in pages)


def _unknown(reason: str) -> UnknownOutcome:
    endpoint = routes.START_IMPORT
    return UnknownOutcome(endpoint.method, endpoint.template, reason, "", endpoint.advice)
