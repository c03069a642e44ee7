"""One migration on the server: files, connections, thread, runs, preview, workbook."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import final

from asyncmig.simulator.migrations.scripts import Question, Script
from asyncmig.simulator.migrations.tables import Schema, Sheet
from asyncmig.simulator.server.messages import Json

__all__ = ["IN_PROGRESS", "Event", "ExportJob", "File", "Knowledge", "Migration", "Phase", "Run"]

IN_PROGRESS = ("queued", "running", "blocked")
"""The statuses in which a run takes one of the account's places."""


@final
@dataclass(slots=True, kw_only=True)
class File:
    """A signed URL, and the bytes that came to it."""

    name: str
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
    workbook: dict[str, list[list[str]]] = field(default_factory=dict[str, list[list[str]]])
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

    def grids(self) -> Sequence[Sheet]:
        """Return the sheets of the workbook."""
        return [Sheet(schema=schema, rows=self.workbook.get(schema.slug, [])) for schema in self.schemas]
