"""Decide about a parked customer by policy or by a person, cancel it, or link it to a resource of the server."""

import asyncio
import inspect
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar, cast

import msgspec

from asyncmig._core.endpoint import Endpoint
from asyncmig._core.retry import TRANSIENT
from asyncmig._io.context import SessionContext
from asyncmig._io.failures import Owner
from asyncmig.customers.catalog import checked_id
from asyncmig.customers.decisions import Approve, Decision, Reject
from asyncmig.customers.outcome import Delivered, Failed, Outcome, Parked, Pending, Policy, Reviewed, Unknown
from asyncmig.customers.questions import NeedsAttention
from asyncmig.customers.spec import check_external_id
from asyncmig.errors import AuthError, InvalidInput, JournalError, NoAnswer, SessionClosed
from asyncmig.journal import JournalPort
from asyncmig.records.record import BaseRecord
from asyncmig.records.record_keeper import RecordKeeper

__all__ = [
    "adopt_resource",
    "answered_within",
    "cancel_customer",
    "decide_by_policy",
    "keep_shown",
    "parked_customer",
]

R = TypeVar("R", bound=BaseRecord)
_log = logging.getLogger("asyncmig")


async def decide_by_policy(
    policy: Policy,
    parked: Parked,
    check: Callable[[NeedsAttention, Decision], None],
    *,
    may_approve: bool = True,
    is_safe: bool,
) -> Decision | Parked | Pending:
    """Return the decision about a parked run; `Parked` if there is none or a wrong one, `Pending` if the caller's
    function fails.

    `check` raises `InvalidInput` for a decision that cannot be sent; its reason is in `Parked.refused`.
    `may_approve`: whether the run waits for something that an approval answers. `is_safe`: whether an approval
    destroys nothing.
    """
    if not callable(policy):
        if policy == "reject":
            return Reject()
        is_approved = policy == "approve" or (policy == "approve_safe" and is_safe)
        return Approve() if may_approve and is_approved else parked
    try:
        decision: object = policy(parked)
        if inspect.isawaitable(decision):
            decision = await cast("Awaitable[object]", decision)
    except (AuthError, SessionClosed, JournalError, *TRANSIENT):  # it may use the session itself
        raise
    except Exception as error:
        _log.exception("%s: the function that decides failed", parked.external_id)
        return _crashed(parked, f"the function `decide` raised {type(error).__name__}: {error}")
    if decision is None:
        return parked
    if not isinstance(decision, Decision):
        wrong = InvalidInput("decide", decision, "is what the function returned, not a Decision or None")
        return _crashed(parked, str(wrong))
    try:
        check(parked.attention, decision)
    except InvalidInput as error:
        return msgspec.structs.replace(parked, refused=str(error))
    return decision


def _crashed(parked: Parked, error: str) -> Pending:
    return Pending(
        external_id=parked.external_id,
        name=parked.name,
        ids=parked.ids,
        seconds=parked.seconds,
        error=error,
        reason="crashed",
    )


@asynccontextmanager
async def _claimed(
    context: SessionContext, journal: JournalPort, external_id: str, kind: type[R]
) -> AsyncGenerator[RecordKeeper[R]]:
    """Claim a customer, and yield the keeper of its record once the journal has all responses."""
    async with await journal.claim(external_id) as claim:
        with Owner(external_id):
            keeper = RecordKeeper(context, claim, kind)
            await keeper.catch_up()
            yield keeper


@asynccontextmanager
async def answered_within(seconds: float, endpoint: Endpoint) -> AsyncGenerator[None]:
    """Limit the time of the block for a person who waits: polls are repeated during an outage. Raises `NoAnswer`."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        reason = f"the run could not be read within {seconds:g} s"
        raise NoAnswer(endpoint.method, endpoint.template, reason) from error


@asynccontextmanager
async def parked_customer(
    context: SessionContext, journal: JournalPort, external_id: str, kind: type[R]
) -> AsyncGenerator[RecordKeeper[R]]:
    """Claim a parked customer for a decision. Raises `InvalidInput` for one that is not parked; `CustomerHeld`."""
    async with _claimed(context, journal, external_id, kind) as keeper:
        if not isinstance(keeper.record.outcome, Parked):
            raise InvalidInput("external_id", external_id, "is not parked: there is nothing to decide")
        yield keeper


async def keep_shown(
    keeper: RecordKeeper[R], attention: NeedsAttention | None, **changes: object
) -> Reviewed:
    """Record that a parked run now asks something else (`attention`), or nothing. `changes`: of its outcome."""
    if attention is None:
        await keeper.keep("decided elsewhere", outcome=None)
        return "gone"
    parked = keeper.record.outcome
    assert isinstance(parked, Parked)
    await keeper.keep("parked", outcome=msgspec.structs.replace(parked, attention=attention, **changes))
    return "changed"


async def cancel_customer(
    context: SessionContext,
    journal: JournalPort,
    external_id: str,
    kind: type[R],
    stop: Callable[[RecordKeeper[R]], Awaitable[str]],
) -> Outcome:
    """Record that a customer is canceled, and return its outcome; see `Generation.cancel`.

    `stop`: stops the customer's run, as far as the generation can, and returns what became of it.
    """
    async with _claimed(context, journal, external_id, kind) as keeper:
        if keeper.is_new:
            raise InvalidInput(
                "external_id", external_id, "is not in the journal: there is nothing to cancel"
            )
        _check_readable(keeper.record)
        outcome = keeper.record.outcome
        if isinstance(outcome, Delivered | Failed | Unknown):
            return outcome
        text = await stop(keeper)
        canceled = Pending(**keeper.outcome_fields(), error=text, reason="canceled")
        await keeper.keep("pending", outcome=canceled)
        keeper.tell("pending", text)
        return canceled


async def adopt_resource(
    journal: JournalPort,
    external_id: str,
    resource_id: str,
    kind: type[BaseRecord],
    *,
    segment: str,
    **changes: object,
) -> str:
    """Link a customer to a resource on the server, and return its id; see `Generation.adopt`.

    `segment`: what stands before the id in a URL of the dashboard. `changes`: of the record.
    """
    field = f"{kind.RESOURCE}_id"
    external_id = check_external_id(external_id.strip())
    resource_id = checked_id(field, resource_id, segment)
    async with await journal.claim(external_id) as claim:
        record = kind.read(external_id, claim.state)
        _check_readable(record)
        if (known := getattr(record, field)) not in (None, resource_id):
            raise InvalidInput(field, resource_id, f"is not the one that the journal has: {known}")
        for other, state in (await journal.states()).items():
            if other != external_id and getattr(kind.read(other, state), field) == resource_id:
                raise InvalidInput(field, resource_id, f"is the {kind.RESOURCE} of another customer: {other}")
        adopted = msgspec.structs.replace(
            record, **{field: resource_id}, create_sent=False, outcome=None, **changes
        )
        await claim.write("adopt", msgspec.json.encode({field: resource_id}), msgspec.json.encode(adopted))
    return resource_id


def _check_readable(record: BaseRecord) -> None:
    """Raise `InvalidInput` for a record that this version cannot read: it must stay as it is."""
    if not record.is_readable and isinstance(record.outcome, Failed):
        raise InvalidInput("external_id", record.external_id, record.outcome.error)
