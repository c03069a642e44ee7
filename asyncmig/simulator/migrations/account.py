"""The state of one account, and what all its routes share."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from random import Random
from typing import cast, final

from asyncmig.simulator.migrations.migration import Event, File, Knowledge, Migration
from asyncmig.simulator.migrations.scripts import Script
from asyncmig.simulator.migrations.tables import Schema
from asyncmig.simulator.migrations.variants import Variants
from asyncmig.simulator.server.messages import Json, Refusal, Reply, drifted, json_reply, new_uuid
from asyncmig.simulator.server.settings import RunDurations

__all__ = ["EPOCH", "Account", "Source"]

EPOCH = datetime(2026, 1, 1, tzinfo=UTC).timestamp()
"""Unix seconds at second 0 of the event loop's clock, unless the world gets another value."""


@final
class Source:
    """A source. Its name is its address."""

    def __init__(self, name: str) -> None:
        self.name: str = name
        self.auth_url: str | None = None
        self.pinned: str | None = None
        self.knowledge: Knowledge = Knowledge()


@final
class Account:
    """Sources, templates and migrations; and the variants, durations and random numbers that routes use."""

    def __init__(
        self,
        *,
        sources: Iterable[str],
        schemas: Iterable[Schema],
        seed: int,
        variants: Variants,
        pace: RunDurations,
        scripts: Mapping[str, Script],
        epoch: float,
        plan: bool,
    ) -> None:
        self.sources: dict[str, Source] = {name: Source(name) for name in sources}
        self.schemas: dict[str, Schema] = {schema.slug: schema for schema in schemas}
        self.migrations: dict[str, Migration] = {}
        self.rng: Random = Random(seed)
        self.seed: int = seed
        self.variants: Variants = variants
        self.pace: RunDurations = pace
        self.scripts: Mapping[str, Script] = scripts
        self.epoch: float = epoch
        self.plan: bool = plan
        self.base_url: str = "https://api.invalid/api/v1"
        self.storage_url: str = "https://storage.invalid"
        self.tokens: dict[str, tuple[Migration, File]] = {}
        """Signed URLs by their token."""
        self.links: dict[str, tuple[float, bytes, str]] = {}
        """Download links by their token: expiry, content and content type."""

    def new_id(self) -> str:
        """Return a new id: a UUID."""
        return new_uuid(self.rng)

    def time_text(self, at: float) -> str:
        """Return a time as the API shows it."""
        return datetime.fromtimestamp(self.epoch + at, UTC).isoformat(timespec="milliseconds")[:-6] + "Z"

    def shown(self, status: int, value: Json) -> Reply:
        """Return a JSON reply, as this version of the API sends it."""
        if self.variants.drift:
            lists = {name: each for name, each in value.items() if each == []}  # they are the whole answer
            value = {**cast("Json", drifted(value)), **lists}
        return json_reply(status, value)

    def migration(self, ids: Mapping[str, str], now: float) -> Migration:
        """Return the migration of a path. Raises `Refusal` (404) if it is unknown, too new or deleted."""
        migration = self.migrations.get(ids["id"])
        if migration is None or now < migration.created_at + self.variants.lag:
            raise Refusal(404, "Migration not found")
        lives = self.variants.retention
        if lives is not None and migration.active is None and now > migration.touched_at + lives:
            del self.migrations[migration.id]
            raise Refusal(404, "Migration not found")
        return migration

    def require_plan(self) -> None:
        """Raise `Refusal` (403) if the account has no plan for work."""
        if not self.plan:
            raise Refusal(403, "Your account has no plan for this")

    def require_unique(self, source: str | None) -> None:
        """Raise `Refusal` (409) if more than one source may have a name."""
        if source is not None and self.variants.source_names == "ambiguous":
            raise Refusal(409, f"The source name {source!r} is ambiguous")

    def in_progress(self) -> list[tuple[Migration, str]]:
        """Return the migrations with a run in progress, and the ids of these runs."""
        return [
            (migration, migration.active.id)
            for migration in self.migrations.values()
            if migration.active is not None
        ]

    def event_text(self, event: Event) -> Json:
        """Return an event of a thread as the API shows it."""
        return {
            "sequence": event.sequence,
            "type": event.kind,
            "data": event.data,
            "created_at": self.time_text(event.at),
        }
