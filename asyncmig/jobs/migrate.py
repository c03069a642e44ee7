"""Migrate one customer: check the spec, claim the customer in the journal, run the generation's workflow."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Unpack

import msgspec

from asyncmig import generations
from asyncmig._core.arguments import checked_call, checked_path
from asyncmig._io.context import SessionContext
from asyncmig._io.threads import in_thread
from asyncmig.customers.files import FilesChanged, check_utf8
from asyncmig.customers.options import MigrationCall, MigrationKeywords, MigrationOptions, combined
from asyncmig.customers.outcome import Delivered, Outcome, Parked, Pending, PendingReason
from asyncmig.customers.paths import Inputs, keys_of
from asyncmig.customers.spec import Spec, failed
from asyncmig.errors import InvalidInput, JournalError
from asyncmig.generations import Generation
from asyncmig.jobs.instructions import fulfil, take_up
from asyncmig.jobs.run_slots import recover_run_slots
from asyncmig.journal import ClaimPort, JournalPort
from asyncmig.session import Session, context_of

__all__ = ["adopt", "check_unchanged", "migrate", "migrate_claimed", "pending"]

_log = logging.getLogger("asyncmig")


@checked_call
async def migrate(
    session: Session,
    spec: Spec,
    *,
    journal: JournalPort,
    to: Path | str,
    api: str = generations.DEFAULT,
    options: MigrationOptions | None = None,
    **keywords: Unpack[MigrationKeywords],
) -> Outcome:
    """Migrate one customer and write its sheets to `to/SHEET.csv`. A later call continues where this one ended.

    `options`: a `MigrationOptions`; its fields can also be given as keywords, which take precedence:
    `migrate(session, spec, journal=journal, to="out", decide="approve_safe", retries=1)`. `api`: the API generation.

    A delivered customer is not migrated again. A file of the spec that lies in `to` is refused, because a sheet could
    replace it. Raises `InvalidInput` for wrong options, and for changed files that `if_changed="refuse"` refuses;
    `JournalError` if the journal cannot be used, and its
    subclass `CustomerHeld` if another process works on this customer. Every other fault is an `Outcome`.
    """
    options = combined(options, keywords)
    check_utf8("to", to)
    generation = generations.find(api)
    generations.check_options(generation, options)
    folder = checked_path("to", to)
    spec, refused = generations.check_spec(generation, spec)
    if refused is not None:
        return failed(spec, refused)
    if options.if_changed == "refuse":
        await check_unchanged(generation, spec, journal)
    instruction = await take_up(journal, spec.external_id)
    call = MigrationCall(spec=spec, to=folder, options=options, inputs=Inputs())
    outcome = await migrate_claimed(generation, context_of(session), journal, call)
    await fulfil(journal, spec.external_id, instruction, outcome)
    return outcome


@checked_call
async def adopt(
    journal: JournalPort, external_id: str, company_id: str, *, api: str = generations.DEFAULT
) -> str:
    """Link a customer to its company when the response to the create request, or the journal, was lost.

    The next `migrate` continues from there: it waits for a running import of the company, delivers a completed one
    without repeating it, reports a failed one as failed (`retries` starts it again), and starts one if there is none.
    `company_id` may have spaces around it, or be a URL of the dashboard. `api`: the API generation.

    Returns the id of the company. Raises `InvalidInput` for a value that is not an id, if the journal has another
    company for the customer, or if the generation has nothing to adopt; `CustomerHeld` if a process works on the
    customer.
    """
    return await generations.find(api).adopt(journal, external_id, company_id)


async def check_unchanged(generation: Generation, spec: Spec, journal: JournalPort) -> None:
    """Raise `InvalidInput` for files that `if_changed="refuse"` refuses; `JournalError`."""
    state = await journal.state(spec.external_id)
    record = None if state is None else generations.read(spec.external_id, state)
    if record is None or record.api != generation.name or not isinstance(record.outcome, Delivered | Parked):
        return
    try:
        await generation.check_unchanged(spec, record)
    except FilesChanged:
        raise
    except InvalidInput as error:  # the migration needs files that cannot be read only if no run has started
        _log.debug("%s: %s", spec.external_id, error)


async def migrate_claimed(
    generation: Generation, context: SessionContext, journal: JournalPort, call: MigrationCall
) -> Outcome:
    """Claim a customer, migrate it, and release the claim.

    An unexpected exception becomes a `Pending` outcome. Raises `JournalError`, and `CustomerHeld` if another process
    works on the customer.
    """
    spec, refused = generations.check_spec(generation, call.spec)
    if refused is not None:
        return failed(spec, refused)
    outcome: Outcome | None = None
    try:
        await recover_run_slots(context, generation, journal)
        with call.inputs.holding(await in_thread(keys_of, spec.files)):
            async with await journal.claim(spec.external_id) as claim:
                outcome = _refused_record(generation, context, spec, claim) or await generation.migrate(
                    context, claim, call
                )
    except JournalError as error:
        if outcome is None:
            raise
        _log.warning("%s: the claim was not released; the journal retries that: %s", spec.external_id, error)
    except Exception as error:
        _log.exception("%s: the migration crashed", spec.external_id)
        return pending(spec, f"{type(error).__name__}: {error}", "crashed")
    assert outcome is not None
    return outcome


def _refused_record(
    generation: Generation, context: SessionContext, spec: Spec, claim: ClaimPort
) -> Outcome | None:
    """Return the outcome of a customer whose journal record `generation` must not continue; None if it may.

    Reports a run of the customer that may be in progress.
    """
    if claim.state is None:
        return None
    api = generations.api_of(claim.state)
    if api != generation.name:
        reason = (
            f"the journal has this customer under the API generation {api!r}, and this call uses "
            f"{generation.name!r}: continue with api={api!r}, or use another external id or journal"
        )
        return failed(spec, InvalidInput("external_id", spec.external_id, reason))
    record = generations.read(spec.external_id, claim.state)
    if record.run_slot is not None:
        context.runs.seen(record.run_slot)
    if record.is_readable or record.outcome is None:
        return None
    return msgspec.structs.replace(record.outcome, name=record.name or spec.name)


def pending(
    spec: Spec, error: str, reason: PendingReason, *, ids: Mapping[str, str] | None = None
) -> Pending:
    """Return the outcome of a customer whose migration has not ended in this call."""
    return Pending(external_id=spec.external_id, name=spec.name, error=error, reason=reason, ids=ids or {})
