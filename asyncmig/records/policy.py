"""What the option `decide` says about a parked run: a word of `Policy`, or the caller's function."""

import inspect
import logging
from collections.abc import Awaitable, Callable
from typing import cast

import msgspec

from asyncmig._core.retry import TRANSIENT
from asyncmig.customers.decisions import Approve, Decision, Reject
from asyncmig.customers.outcome import Decide, Parked, Pending, Policy
from asyncmig.customers.questions import NeedsAttention
from asyncmig.errors import AuthError, InvalidInput, JournalError, SessionClosed
from asyncmig.records.record_keeper import OutcomeFields

__all__ = ["decide_by_policy"]

_log = logging.getLogger("asyncmig")


async def decide_by_policy(
    policy: Policy,
    parked: Parked,
    fields: OutcomeFields,
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
    if callable(policy):
        return await _ask_function(policy, parked, fields, check)
    if policy == "reject":
        return Reject()
    is_approved = policy == "approve" or (policy == "approve_safe" and is_safe)
    return Approve() if may_approve and is_approved else parked


async def _ask_function(
    policy: Decide,
    parked: Parked,
    fields: OutcomeFields,
    check: Callable[[NeedsAttention, Decision], None],
) -> Decision | Parked | Pending:
    try:
        decision: object = policy(parked)
        if inspect.isawaitable(decision):
            decision = await cast("Awaitable[object]", decision)
    except (AuthError, SessionClosed, JournalError, *TRANSIENT):  # it may use the session itself
        raise
    except Exception as error:
        _log.exception("%s: the function that decides failed", parked.external_id)
        text = f"the function `decide` raised {type(error).__name__}: {error}"
        return Pending(**fields, error=text, reason="crashed")
    if decision is None:
        return parked
    if not isinstance(decision, Decision):
        text = str(InvalidInput("decide", decision, "is what the function returned, not a Decision or None"))
        return Pending(**fields, error=text, reason="crashed")
    try:
        check(parked.attention, decision)
    except InvalidInput as error:
        return msgspec.structs.replace(parked, refused=str(error))
    return decision
