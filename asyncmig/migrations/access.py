"""Whether the account may start work: what a 403 means. The first one stops every customer of the session."""

import asyncio
from collections.abc import Coroutine
from typing import TypeVar, final

import anyio

from asyncmig._io.call import Call
from asyncmig._io.context import SessionContext
from asyncmig._io.watch import fresh
from asyncmig.errors import ApiError, NoAnswer
from asyncmig.migrations import routes
from asyncmig.migrations.wire import Sources

__all__ = ["WorkPermit", "explained", "is_refusal"]

T = TypeVar("T")
_FORBIDDEN = 403
_WORK = frozenset(
    (endpoint.method, endpoint.template)
    for endpoint in (routes.CREATE_MIGRATION, routes.START_RUN, routes.START_EXPORT)
)


async def explained(context: SessionContext, error: ApiError) -> ApiError:
    """Return the error; for a 403, with what one read shows: no plan for work, or a proxy that refuses everything."""
    if error.status != _FORBIDDEN:
        return error
    try:
        await context.caller.call(Call(endpoint=routes.LIST_SOURCES), Sources)
    except (ApiError, NoAnswer):
        hint = "reads are refused as well: a proxy, or the account is closed"
    else:
        hint = "the account may read, but has no plan for this work"
    return error.with_text(f"{error.text} ({hint})" if error.text else hint)


def is_refusal(error: BaseException) -> bool:
    """Return whether an error says that the account may not start work. A 403 of a read is a proxy's."""
    if not isinstance(error, ApiError) or error.status != _FORBIDDEN:
        return False
    return (error.method, error.endpoint) in _WORK


@final
class WorkPermit:
    """The permission of a session's account to start work (create, start a run, start an export)."""

    __slots__ = ("_refused", "refusal")

    def __init__(self) -> None:
        self.refusal: ApiError | None = None
        """The first 403."""
        self._refused = asyncio.Event()

    def refuse(self, error: ApiError) -> None:
        """Report a 403."""
        self.refusal = self.refusal or error
        self._refused.set()

    async def working(self, step: Coroutine[object, object, T]) -> T:
        """Run a step that starts work. Raises the 403 of any customer of the session, also while the step waits.

        A step that was stopped can be repeated later, because the journal has its intent.
        """
        task, refused = asyncio.ensure_future(step), asyncio.ensure_future(self._refused.wait())
        try:
            await asyncio.wait((task, refused), return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                assert self.refusal is not None
                raise fresh(self.refusal)
            return task.result()
        except ApiError as error:
            if is_refusal(error):
                self.refuse(error)
            raise
        finally:
            refused.cancel()
            task.cancel()
            with anyio.CancelScope(shield=True):
                await asyncio.gather(task, refused, return_exceptions=True)
