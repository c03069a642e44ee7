"""What the client of this generation keeps for a whole session, by migration: its streams and its last operation."""

from typing import TYPE_CHECKING, final

from asyncmig._io.context import SessionContext
from asyncmig.migrations.thread import Include, ThreadStream

if TYPE_CHECKING:
    from asyncmig.migrations.tracker import Tracker

__all__ = ["ClientState", "MigrationState"]


@final
class MigrationState:
    """What all handles of one migration share."""

    __slots__ = ("_context", "_migration_id", "_streams", "tracker")

    def __init__(self, context: SessionContext, migration_id: str) -> None:
        self._context, self._migration_id = context, migration_id
        self._streams: dict[Include, ThreadStream] = {}
        self.tracker: Tracker | None = None
        """The last operation that this session started or opened."""

    def stream(self, include: Include) -> ThreadStream:
        """Return the stream of the thread with these events."""
        if include not in self._streams:
            self._streams[include] = ThreadStream(self._context, self._migration_id, include)
        return self._streams[include]


@final
class ClientState:
    """The state that all `Migrations` objects and handles of one session share."""

    __slots__ = ("_by_migration", "honours_filter")

    def __init__(self) -> None:
        self._by_migration: dict[str, MigrationState] = {}
        self.honours_filter: bool = True
        """False once the server has refused the row filter of downloads."""

    def of(self, context: SessionContext, migration_id: str) -> MigrationState:
        """Return the state of one migration."""
        if migration_id not in self._by_migration:
            self._by_migration[migration_id] = MigrationState(context, migration_id)
        return self._by_migration[migration_id]
