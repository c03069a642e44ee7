"""Ask the caller's function what to do with a parked run."""

import inspect
import logging
from collections.abc import Awaitable, Callable
from typing import cast

import msgspec

from asyncmig._core.retry import TRANSIENT
from asyncmig.customers.decisions import Decision
from asyncmig.customers.outcome import Decide, Parked, Pending
from asyncmig.errors import AuthError, InvalidInput, JournalError, SessionClosed
from asyncmig.records.record_keeper import OutcomeFields

__all__ = ["ask_function"]

_log = logging.getLogger("asyncmig")


async def ask_function(
    policy: Decide,
    parked: Parked,
    fields: OutcomeFields,
    check: Callable[[Parked, Decision], None],
) -> Decision | Parked | Pending:
    """Return what the function decides: `Parked` for None or a wrong decision, `Pending` if it fails.

    `check` raises `InvalidInput` for a decision that cannot be sent; its reason is in `Parked.refused`.
    """
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
        check(parked, decision)
    except InvalidInput as error:
        return msgspec.structs.replace(parked, refused=str(error))
    return decision
