"""Says what a 403 means: the account has no plan for work, or a proxy lets nothing through."""

from asyncmig._io.call import Call
from asyncmig._io.context import SessionContext
from asyncmig.errors import ApiError, NoAnswer
from asyncmig.migrations import routes
from asyncmig.migrations.wire import Sources

__all__ = ["explained"]

_FORBIDDEN = 403


async def explained(context: SessionContext, error: ApiError) -> ApiError:
    """Return the error; that of a 403 with what one cheap read shows."""
    if error.status != _FORBIDDEN:
        return error
    try:
        await context.caller.call(Call(endpoint=routes.LIST_SOURCES), Sources)
    except (ApiError, NoAnswer):
        hint = "reads are refused as well: a proxy, or the account is closed"
    else:
        hint = "the account may read, but has no plan for this work"
    return error.with_text(f"{error.text} ({hint})" if error.text else hint)
