"""The state of one account: its sources, templates and migrations with their files, runs and rows."""

from abc import ABC
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from random import Random
from typing import final

from asyncmig.simulator.migrations.data import SCHEMAS, SOURCES
from asyncmig.simulator.migrations.scripts import Question, Script
from asyncmig.simulator.migrations.tables import Schema, Sheet
from asyncmig.simulator.migrations.variants import Variants
from asyncmig.simulator.server.limits import Budgets, FixedWindow, Limits, Meter, SlidingLog
from asyncmig.simulator.server.messages import Json, Refusal
from asyncmig.simulator.server.settings import RunDurations
from asyncmig.simulator.server.tables import Rows
from asyncmig.simulator.server.world import BaseWorld, Ids

__all__ = [
    "EPOCH",
    "IN_PROGRESS",
    "Account",
    "Event",
    "ExportJob",
    "File",
    "Ids",
    "Knowledge",
    "Migration",
    "Phase",
    "Run",
    "Source",
]

EPOCH = datetime(2026, 1, 1, tzinfo=UTC).timestamp()
"""Unix seconds at second 0 of the event loop's clock, unless the world gets another value."""
IN_PROGRESS = ("queued", "running", "blocked")
"""The statuses in which a run takes one of the account's places."""


@final
@dataclass(slots=True, kw_only=True)
class File:
    """A signed URL, and the bytes that came to it."""

    name: str
    requested_name: str
    """The name in the request for the URL."""
    content_type: str
    storage_path: str
    expires_at: float
    content: bytes | None = None
    uploaded_at: float = 0.0


@final
@dataclass(slots=True, kw_only=True)
class Knowledge:
    """Free text of a source or a migration. `updated_at`: seconds, or None before the first write."""

    text: str | None = None
    updated_at: float | None = None


@final
@dataclass(slots=True)
class Source:
    """A source. Its name is its address."""

    name: str
    auth_url: str | None = None
    pinned: str | None = None
    knowledge: Knowledge = field(default_factory=Knowledge)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """A line of the thread. It is visible from `at` on."""

    at: float
    sequence: int
    kind: str
    data: object


@final
@dataclass(slots=True, kw_only=True)
class Phase:
    """One operation of a run, from its POST to its end."""

    kind: str
    started_at: float
    files: list[str]
    status: str = "running"
    completed_at: float | None = None
    questions: list[Json] = field(default_factory=list[Json])
    answers: Json = field(default_factory=dict[str, object])
    outcome: Json | None = None
    replaced: bool = False
    blocks: int = 0
    """How many of the script's blocks it has left behind."""
    pending: list[Question] = field(default_factory=list[Question])
    """Questions that an answer left out."""
    inputs: int = 0
    updates: int = 0
    """How often the inputs had changed, and the preview had been updated, when it started."""
    is_repeat: bool = False
    """It repeats what was done, with nothing new in between."""


@final
@dataclass(slots=True, kw_only=True)
class Run:
    """A run. Each POST that resumes it adds a phase."""

    id: str
    created_at: float
    phases: list[Phase]
    wakes_at: float
    """When the agent continues."""
    status: str = "running"
    message: str | None = None
    reason: str | None = None
    questions: list[Json] = field(default_factory=list[Json])
    asked: list[Question] = field(default_factory=list[Question])
    request: Json | None = None
    """The credential request."""
    answers: Json | None = None
    report: Json | None = None
    error: str | None = None
    is_canceling: bool = False
    changed_at: float = 0.0
    before: Json | None = None
    """What reads showed before it was resumed, and show until `shows_before`."""
    shows_before: float = 0.0

    @property
    def phase(self) -> Phase:
        """The operation in progress, or the last one."""
        return self.phases[-1]

    def enter(self, status: str, at: float, wakes_at: float = float("inf")) -> None:
        """Change the status."""
        self.status, self.changed_at, self.wakes_at = status, at, wakes_at
        self.phase.status = status
        if status not in IN_PROGRESS:
            self.phase.completed_at = at


@final
@dataclass(slots=True, kw_only=True)
class ExportJob:
    """An export to a file."""

    id: str
    slugs: list[str]
    format: str
    fields: list[str] | None
    omit_empty: bool
    total_rows: int
    runs_from: float
    ends_at: float
    expires_at: float
    error: str | None
    """Why it fails, if it does."""


@final
@dataclass(slots=True, kw_only=True)
class Migration:
    """The state of one migration."""

    id: str
    name: str
    source: str | None
    external_id: str | None
    schemas: list[Schema]
    created_at: float
    script: Script
    files: list[File] = field(default_factory=list[File])
    connections: dict[tuple[str, str | None], Json] = field(
        default_factory=dict[tuple[str, str | None], Json]
    )
    credentials: dict[str, Json] = field(default_factory=dict[str, Json])
    """Credentials by the id of their connection."""
    knowledge: Knowledge = field(default_factory=Knowledge)
    runs: list[Run] = field(default_factory=list[Run])
    thread: list[Event] = field(default_factory=list[Event])
    jobs: dict[str, ExportJob] = field(default_factory=dict[str, ExportJob])
    decisions: dict[str, str] = field(default_factory=dict[str, str])
    """Answers by the text of their question."""
    requests: list[str] = field(default_factory=list[str])
    """The messages of updates."""
    live: bool | None = None
    """Whether generate reads the live connection; None: only if there are no files."""
    preview: list[Sheet] | None = None
    preview_at: float = 0.0
    resumable: bool = True
    workbook: dict[str, Rows] = field(default_factory=dict[str, list[list[str]]])
    report: Json | None = None
    failed: Counter[str] = field(default_factory=Counter[str])
    """How many operations of a kind the script has failed."""
    touched_at: float = 0.0
    inputs: int = 0
    """How many files have arrived, and how often a connection was saved."""
    updates: int = 0
    accepted: list[tuple[str, float]] = field(default_factory=list[tuple[str, float]])
    """Starts that were accepted: kind and time."""

    @property
    def current(self) -> Run | None:
        """The latest run."""
        return self.runs[-1] if self.runs else None

    @property
    def active(self) -> Run | None:
        """The run that is in progress."""
        run = self.current
        return run if run is not None and run.status in IN_PROGRESS else None

    @property
    def arrived(self) -> list[File]:
        """The files whose bytes have arrived."""
        return [file for file in self.files if file.content is not None]

    def next_failure(self, kind: str) -> str | None:
        """Return the text with which the script lets an operation of this kind fail now, or None. It counts that."""
        times, text = self.script.times, self.script.fails.get(kind)
        if text is None or (times is not None and self.failed[kind] >= times):
            return None
        self.failed[kind] += 1
        return text

    def status(self) -> str:
        """Return the status of the migration."""
        if self.preview is not None and self.current is not None and self.current.status != "completed":
            return "awaiting_approval"
        if self.report is not None:
            return "completed"
        if self.preview is not None:
            return "awaiting_approval"
        return "ready" if self.arrived or self.connections else "awaiting_files"

    def describe(self) -> Json:
        """Return the migration as the API shows it."""
        return {
            "id": self.id,
            "name": self.name,
            "source": self.source,
            "status": self.status(),
            "templates": [{"slug": schema.slug, "name": schema.name} for schema in self.schemas],
            **({"external_id": self.external_id} if self.external_id else {}),
        }

    def tell(self, at: float, kind: str, data: object, rng: Random) -> None:
        """Add a line to the thread. Sequences have gaps."""
        last = self.thread[-1].sequence if self.thread else 0
        self.thread.append(Event(at=at, sequence=last + rng.randint(1, 3), kind=kind, data=data))

    def grids(self) -> list[Sheet]:
        """Return the sheets of the workbook."""
        return [Sheet(schema=schema, rows=self.workbook.get(schema.slug, [])) for schema in self.schemas]


class Account(BaseWorld[Variants], ABC):
    """Sources, templates and migrations, and what all routes share.

    `limits`: numbers of the limits; by default those that the variants choose. `scripts`: what happens to customers,
    by external id. `epoch`: Unix seconds at second 0 of the clock. `plan`: False for an account that can only read.
    """

    def __init__(
        self,
        *,
        key: str,
        sources: Iterable[str] = SOURCES,
        schemas: Iterable[Schema] = SCHEMAS,
        seed: int = 0,
        limits: Limits | None = None,
        pace: RunDurations | None = None,
        variants: Variants | None = None,
        scripts: Mapping[str, Script] | None = None,
        epoch: float = EPOCH,
        plan: bool = True,
    ) -> None:
        super().__init__(key=key, seed=seed, pace=pace, variants=variants or Variants())
        self.sources: dict[str, Source] = {name: Source(name) for name in sources}
        self.schemas: dict[str, Schema] = {schema.slug: schema for schema in schemas}
        self.migrations: dict[str, Migration] = {}
        self.limits: Limits = limits or Limits.parse(self.variants.limits)
        self.budgets: Budgets = Budgets(self._meter)
        self.scripts: Mapping[str, Script] = scripts or {}
        self.epoch: float = epoch
        self.plan: bool = plan
        self.tokens: dict[str, tuple[Migration, File]] = {}
        """Signed URLs by their token."""
        self.links: dict[str, tuple[float, bytes, str]] = {}
        """Download links by their token: expiry, content and content type."""

    def _meter(self, name: str) -> Meter | None:
        rate, variants = self.limits.rate_of(name), self.variants
        if rate is None:
            return None
        if variants.window == "sliding":
            return SlidingLog(*rate, count_rejects=variants.rejects_count)
        return FixedWindow(*rate, phase=variants.phase, count_rejects=variants.rejects_count)

    def time_text(self, at: float) -> str:
        """Return a time as the API shows it."""
        return datetime.fromtimestamp(self.epoch + at, UTC).isoformat(timespec="milliseconds")[:-6] + "Z"

    def find(self, ids: Ids, now: float) -> Migration:
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

    def in_progress(self) -> list[tuple[Migration, Run]]:
        """Return the migrations with a run in progress, and these runs."""
        return [(each, each.active) for each in self.migrations.values() if each.active is not None]

    def event_text(self, event: Event) -> Json:
        """Return an event of a thread as the API shows it."""
        return {
            "sequence": event.sequence,
            "type": event.kind,
            "data": event.data,
            "created_at": self.time_text(event.at),
        }
