"""What the client of this generation keeps for a whole session, by migration: its streams and its last operation."""

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar, final

from asyncmig._core.lifecycle import Phase
from asyncmig._io.call import Call
from asyncmig._io.context import SessionContext
from asyncmig._io.event_loop import finish_all
from asyncmig.errors import NotFound
from asyncmig.migrations.routes import READ_RUN, RUN
from asyncmig.migrations.thread import Include, ThreadStream
from asyncmig.migrations.wire import RunState

if TYPE_CHECKING:
    from asyncmig.migrations.tracker import Tracker

__all__ = ["ClientState", "MigrationState"]

T = TypeVar("T")
_PAUSE = 10.0


@final
class MigrationState:
    """What all handles of one migration share."""

    __slots__ = ("_context", "_created_at", "_migration_id", "_streams", "tracker")

    def __init__(self, context: SessionContext, migration_id: str) -> None:
        self._context, self._migration_id = context, migration_id
        self._created_at = -math.inf
        self._streams: dict[Include, ThreadStream] = {}
        self.tracker: Tracker | None = None
        """The last operation that this session started or opened."""

    def created(self, *, age: float = 0.0) -> None:
        """Report that the server has created the migration `age` seconds ago."""
        self._created_at = max(self._created_at, self._context.poller.now() - age)

    @property
    def is_young(self) -> bool:
        """Whether the server may not know the migration yet, because it was just created."""
        return self._context.poller.now() < self._created_at + RUN.read_lag

    async def soon(self, step: Callable[[], Awaitable[T]]) -> T:
        """Return the result of `step`; repeat it while the server does not know the migration yet."""
        while True:
            try:
                return await step()
            except NotFound:
                if not self.is_young:
                    raise
                await asyncio.sleep(_PAUSE)

    def stream(self, include: Include) -> ThreadStream:
        """Return the stream of the thread with these events."""
        if include not in self._streams:
            self._streams[include] = ThreadStream(self._context, self._migration_id, include)
        return self._streams[include]

    async def is_active(self) -> bool:
        """Return whether the last known run is in progress: a stream may say `done` too early."""
        tracker = self.tracker
        if tracker is None or not tracker.run_id or tracker.watch.ended:
            return False
        call = Call(endpoint=READ_RUN, ids=tracker.ids)
        try:
            state = await self._context.caller.call(call, RunState)
        except NotFound:
            return True  # it was just started
        now = self._context.poller.now()
        return RUN.phase(tracker.operation.effective(state, now)) is not Phase.TERMINAL

    async def aclose(self) -> None:
        """End the streams."""
        await finish_all([stream.aclose for stream in self._streams.values()])


@final
class ClientState:
    """The state that all `Migrations` objects and handles of one session share."""

    __slots__ = ("_by_migration", "ends_lines", "honours_filter")

    def __init__(self) -> None:
        self._by_migration: dict[str, MigrationState] = {}
        self.honours_filter: bool = True
        """False once the server has refused the row filter of downloads."""
        self.ends_lines: bool = True
        """False once the server has sent the same sheet twice without a line end after the last line; true again
        after a sheet with it."""

    async def aclose(self) -> None:
        """End the streams of all migrations; the session calls this when it is left."""
        await finish_all([state.aclose for state in self._by_migration.values()])

    def of(self, context: SessionContext, migration_id: str) -> MigrationState:
        """Return the state of one migration."""
        if migration_id not in self._by_migration:
            self._by_migration[migration_id] = MigrationState(context, migration_id)
        return self._by_migration[migration_id]
