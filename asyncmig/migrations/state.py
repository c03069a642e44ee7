"""What the client of this generation keeps for a whole session, by migration and for the account.

By migration: its streams, and its last operation. For the account: whether it may start work. The first 403 stops
every customer of the session.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, TypeVar, final

import anyio

from asyncmig._io.call import Call
from asyncmig._io.context import SessionContext
from asyncmig._io.event_loop import finish_all
from asyncmig._io.watch import fresh
from asyncmig.errors import ApiError, NoAnswer, NotFound
from asyncmig.migrations import routes
from asyncmig.migrations.thread import Include, ThreadStream
from asyncmig.migrations.wire import Sources

if TYPE_CHECKING:
    from asyncmig.migrations.runs import Run

__all__ = ["ClientState", "MigrationState", "WorkPermit", "explained", "is_refusal", "once_known", "state_of"]

T = TypeVar("T")
_FORBIDDEN = 403
_WORK = frozenset(
    (endpoint.method, endpoint.template)
    for endpoint in (routes.CREATE_MIGRATION, routes.START_RUN, routes.START_EXPORT)
)


async def once_known(step: Callable[[], Awaitable[T]], *, until: float) -> T:
    """Return the result of `step`. After a 404, repeat it until the time `until`: the resource may be too new."""
    while True:
        try:
            return await step()
        except NotFound:
            if asyncio.get_running_loop().time() >= until:
                raise
        await asyncio.sleep(routes.RUN.shortest_floor)


@final
class MigrationState:
    """What all handles of one migration share."""

    __slots__ = ("_created_at", "_stream", "_streams", "run", "sent_names")

    def __init__(self, context: SessionContext, migration_id: str) -> None:
        self._created_at = -math.inf
        self._stream = partial(ThreadStream, context, migration_id)
        self._streams: dict[Include, ThreadStream] = {}
        self.run: Run | None = None
        """The last operation that this session started or opened."""
        self.sent_names: dict[str, str] = {}
        """The names of the files for which URLs were requested, by storage path. The server may list other names."""

    def created(self, at: float) -> None:
        """Report that the server created the migration at the time `at` of the loop's clock."""
        self._created_at = max(self._created_at, at)

    @property
    def known_by(self) -> float:
        """The time of the loop's clock until which the server may not know the migration, because it is too new."""
        return self._created_at + routes.RUN.read_lag

    def stream(self, include: Include) -> ThreadStream:
        """Return the stream of the thread with these events."""
        if include not in self._streams:
            self._streams[include] = self._stream(include)
        return self._streams[include]

    async def aclose(self) -> None:
        """End the streams."""
        await finish_all([stream.aclose for stream in self._streams.values()])


@final
class ClientState:
    """The state that all `Migrations` objects and handles of one session share."""

    __slots__ = ("by_migration", "ends_lines", "honours_filter")

    def __init__(self) -> None:
        self.by_migration: dict[str, MigrationState] = {}
        """By the id of the migration; see `state_of`."""
        self.honours_filter: bool = True
        """False once the server has refused the row filter of downloads."""
        self.ends_lines: bool = True
        """False once the server has sent the same sheet twice without a line end after the last line; true again
        after a sheet with it."""

    async def aclose(self) -> None:
        """End the streams of all migrations; the session calls this when it is left."""
        await finish_all([state.aclose for state in self.by_migration.values()])


def state_of(context: SessionContext, migration_id: str) -> MigrationState:
    """Return the state of one migration."""
    known = context.kept(ClientState).by_migration
    if migration_id not in known:
        known[migration_id] = MigrationState(context, migration_id)
    return known[migration_id]


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
