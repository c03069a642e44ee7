"""The journal record of one customer: its input, and the state of its migration and of the present operation.

`words_of` describes the entries with which the record was changed.
"""

from collections.abc import Iterable, Mapping
from typing import ClassVar, Literal, cast

import msgspec

from asyncmig._core.endpoint import Endpoint
from asyncmig.customers.decisions import Approve, Change
from asyncmig.customers.files import FileInput, files_in_words
from asyncmig.customers.outcome import Delivered, Failed, Outcome, Parked
from asyncmig.customers.questions import NeedsAttention
from asyncmig.customers.status import LastFailure
from asyncmig.journal import JournalEvent
from asyncmig.migrations import routes
from asyncmig.migrations.answers import AnswerPoint
from asyncmig.migrations.operation import Operation, StartPoint
from asyncmig.migrations.uploads import Uploaded
from asyncmig.migrations.wire import Kind, Report, Sheet
from asyncmig.records.record import BaseRecord
from asyncmig.steps import Progress

__all__ = [
    "OperationRecord",
    "Record",
    "SentAnswer",
    "marks_of",
    "words_of",
]


def marks_of(attention: NeedsAttention) -> set[str]:
    """Return what identifies each question, and each request for credentials, whatever its id is.

    Ids of questions may start again in the next block, or be new although the question is the same.
    """
    if attention.credentials is not None:
        return {f"credentials {attention.credentials.connection_id}"}
    return {
        "\n".join([question.prompt or "", *(option.label or option.id for option in question.options)])
        for question in attention.questions
    }


class SentAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The last answer (or credentials, without their values) that was sent to a blocked run, or may have been."""

    point: AnswerPoint
    marks: tuple[str, ...] = ()
    """What is answered; see `marks_of`."""
    at: float
    """Wall-clock time at which it was sent."""
    is_acknowledged: bool = False


class OperationRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The present operation of the run: written before it is started, and after each change."""

    kind: Kind | None
    """None for a run that another client started, or whose operation is not known: every end counts."""
    message: str | None = None
    """What an update changes."""
    point: StartPoint | None = None
    """What was known before the start."""
    run_id: str | None = None
    """None: the start may have been sent, and its response is not recorded. "": only its preview is known."""
    is_acknowledged: bool = False
    started_at: float = 0.0
    """Wall-clock time at which the start was known to have happened."""
    answer: SentAnswer | None = None
    """None once the run was seen to wait for something after the answer."""
    answered: tuple[str, ...] = ()
    """The marks of the questions whose answers were accepted, and of the credentials."""
    is_over: bool = False
    """Whether its end was read."""

    def resumed(self, now: float, age: float) -> Operation:
        """Return the operation as another process left it. `age`: seconds since its start."""
        point = self.point
        return Operation(
            kind=None if self.is_over else self.kind,  # its end was read, so that every end counts
            requested_at=now - age,
            after=point.after if point else None,
            before=point.state if point else None,
            earlier_runs=point.logged_ids if point else (),
            is_new_run=self.is_over or point is None or self.run_id != point.run_id,  # its end is no old one
            is_acknowledged=self.is_acknowledged,
        )


class Record(BaseRecord, frozen=True, kw_only=True):
    """The state of one migration, as the journal holds it. It is written before and after each change."""

    API: ClassVar[str] = "migrations"
    RESOURCE: ClassVar[str] = "migration"
    DOWNLOAD: ClassVar[Endpoint] = routes.DOWNLOAD
    PUT_BYTES: ClassVar[Endpoint] = routes.PUT_BYTES

    api: str = msgspec.field(default_factory=lambda: "migrations")  # a factory, so that it is always written
    source: str = ""
    """Name of the source; empty for a migration without one."""
    create_sent: bool = False
    """Whether the create request may have been sent without a recorded response."""
    migration_id: str | None = None
    created_at: float = 0.0
    """Wall-clock time of the response to the create request."""
    sheets: tuple[Sheet, ...] = ()
    existed: bool = False
    """Whether the migration existed before, or a person linked it. Its earlier runs must be read first."""
    remarks: tuple[str, ...] = ()
    """Notes about the migration that stay: how an existing one differs from what was asked for."""
    connection: str | None = None
    """A digest of the live connection that was saved, without its secrets."""
    earlier_files: tuple[str, ...] | None = None
    """The storage paths of the files that an existing migration had before the first upload; None if unknown."""
    upload_sent: bool = False
    """Whether files may have been uploaded: from then on, they cannot be replaced."""
    sent_names: Mapping[str, str] = {}
    """The names of the files that may have been uploaded since `uploads` was written, by storage path."""
    uploads: tuple[Uploaded, ...] = ()
    """The files that have arrived."""
    generated_with: int | None = None
    """How many files had arrived when the last `generate` was started; None if another client started it."""
    operation: OperationRecord | None = None
    previewed: str | None = None
    """A digest of the preview that was read last."""
    decision: Approve | Change | None = None
    """What a person or a policy decided about a preview; it is carried out next."""
    decided_for: str = ""
    """A digest of what was decided."""
    cancel: Literal["", "rejected", "canceled", "slot"] = ""
    """Why the run is being canceled; empty if it is not."""
    blocked_at: float = 0.0
    """Wall-clock time at which the run was seen to wait for a person; 0 if it does not."""
    regenerated: int = 0
    """How often in a row a preview was generated again because it could not be executed any more."""
    report: Report | None = None
    """What the executed run did."""
    rows_written: int | None = None
    """The rows that a failed execution has written, as the log says; None if it does not say."""

    @property
    def ids(self) -> Mapping[str, str]:
        run = self.operation.run_id if self.operation else None
        return {kind: each for kind, each in (("migration", self.migration_id), ("run", run)) if each}

    @property
    def has_started(self) -> bool:
        """Whether a run may have started, so that missing input files do not matter."""
        return not self.is_readable or self.operation is not None or self.report is not None

    @property
    def run_goes_on(self) -> bool:
        """Whether there is a run that has not failed."""
        return self.has_started and not (isinstance(self.outcome, Failed) and self.outcome.status)

    @property
    def may_start_again(self) -> bool:
        """Whether the run may be started anew: it has written nothing."""
        return self.report is None and self.rows_written == 0

    @property
    def run_slot(self) -> str | None:
        """The id under which a run may hold a run slot; None if none is in progress."""
        is_active = self.operation is not None and not self.operation.is_over
        return self.migration_id if is_active else None

    @property
    def step(self) -> Progress:
        if isinstance(self.outcome, Failed) and self.outcome.step:
            return self.outcome.step
        if isinstance(self.outcome, Delivered):
            return "ended"
        if self.report is not None:
            return "downloading"
        if self.operation is not None:
            if self.operation.run_id is None:
                return "starting"
            return "deciding" if self.operation.is_over else "running"
        if self.migration_id is not None:
            return "starting" if self.files and len(self.uploads) >= len(self.files) else "uploading"
        return "creating" if self.create_sent else "waiting"

    @property
    def detail(self) -> str:
        """The number of the run, what was decided, what the run waits for, and the operation."""
        parts = [f"run number {self.epoch + 1}"] if self.epoch else []
        if self.decision is not None:
            parts.append(f"{type(self.decision).__name__.lower()} was decided")
        if isinstance(self.outcome, Parked):
            parts.append(f"waits for {self.outcome.attention.kind}")
        elif self.operation is not None and self.operation.kind is not None and self.report is None:
            parts.append(self.operation.kind)
        return ", ".join(parts)

    @property
    def bytes_sent(self) -> Iterable[int]:
        return (each.size for each in self.uploads)

    @property
    def sheet_names(self) -> Mapping[str, str]:
        return {sheet.id: sheet.name or sheet.id for sheet in self.sheets}


# The words for journal entries


class _Detail(msgspec.Struct, frozen=True, kw_only=True):
    """The content of a journal entry: the changed fields of the record, and facts for people."""

    migration_id: str | None = None
    epoch: int | None = None
    files: tuple[FileInput, ...] = ()
    uploads: tuple[Uploaded, ...] = ()
    operation: OperationRecord | None = None
    answers: Mapping[str, object] = {}
    decision: Mapping[str, object] | None = None
    invalid_cells: int | None = None
    report: Report | None = None
    cancel: str = ""
    last_failure: LastFailure | None = None
    attempts: int | None = None
    outcome: Outcome | None = None


def words_of(event: JournalEvent) -> str:
    """Return a description of an entry. It may contain unescaped text of the server."""
    try:
        detail = msgspec.json.decode(event.detail, type=_Detail)
    except (ValueError, TypeError, RecursionError):
        detail = _Detail()  # of another version
    operation = detail.operation
    match event.kind:
        case "create":
            return "asks for the migration"
        case "created" | "adopt":
            return f"migration {detail.migration_id}" + (
                ", as a person said" if event.kind == "adopt" else ""
            )
        case "input" | "uploaded":
            return files_in_words(detail.files or detail.uploads)
        case "start":
            return operation.kind or "" if operation else ""
        case "started" | "found" | "waits for another import":
            return f"run {operation.run_id}" if operation and operation.run_id else ""
        case "previewed":
            cells = detail.invalid_cells or 0
            return f"{cells} invalid cell{'s' * (cells != 1)} in the sample"
        case "executed":
            rows = detail.report.inserted if detail.report else None
            return "" if rows is None else f"{rows} rows"
        case "answer":
            given = [f"{question}={_choice(choice)}" for question, choice in detail.answers.items()]
            return " ".join(given) or "credentials"
        case "decide":
            return _decision(detail.decision)
        case "cancel":
            return "to release the run slot" if detail.cancel == "slot" else detail.cancel
        case "retrying":
            return detail.last_failure.words if detail.last_failure else ""
        case "recovered":
            return f"after {detail.attempts} attempts"
        case "new epoch":
            return f"run number {(detail.epoch or 0) + 1}"
        case _:
            outcome = detail.outcome
            return "" if outcome is None or isinstance(outcome, Delivered) else outcome.error


def _choice(choice: object) -> str:
    text = cast("Mapping[str, object]", choice).get("text") if isinstance(choice, Mapping) else choice
    return repr(text)


def _decision(decision: Mapping[str, object] | None) -> str:
    if decision is None:
        return ""
    message = decision.get("message")
    return str(decision.get("type")) + (f": {message}" if message else "")
