"""The journal record of one customer: its input, the state of its migration, and its entries in words."""

import hashlib
from collections.abc import Iterable, Mapping
from typing import ClassVar, Self, cast

import msgspec

from asyncmig._core.endpoint import Endpoint
from asyncmig.companies import routes
from asyncmig.companies.uploads import Uploaded
from asyncmig.companies.wire import Sheet
from asyncmig.customers.files import FileInput, files_in_words
from asyncmig.customers.outcome import Delivered, ExportMode, ExportSummary, Failed, Outcome
from asyncmig.customers.status import LastFailure
from asyncmig.journal import JournalEvent
from asyncmig.records.record import BaseRecord
from asyncmig.steps import Progress

__all__ = ["ExportStep", "Record", "export_key", "import_key", "words_of"]


class ExportStep(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One export to the destination. It is written before the export starts, and after each change."""

    mode: ExportMode
    idempotency_key: str
    run_id: str | None = None
    started_at: float = 0.0
    """Wall-clock time at which the run was first known."""
    result: ExportSummary | None = None


class Record(BaseRecord, frozen=True, kw_only=True, gc=False):
    """The state of one migration, as the journal holds it. It is written before and after each change."""

    API: ClassVar[str] = "companies"
    RESOURCE: ClassVar[str] = "company"
    DOWNLOAD: ClassVar[Endpoint] = routes.DOWNLOAD
    PUT_BYTES: ClassVar[Endpoint] = routes.PUT_BYTES

    api: str = msgspec.field(default_factory=lambda: "companies")  # a factory, so that it is always written
    create_sent: bool = msgspec.field(name="creating", default=False)
    """Whether the create request may have been sent without a recorded response."""
    company_id: str | None = None
    sheets: tuple[Sheet, ...] = ()
    uploads: tuple[Uploaded, ...] = ()
    uploaded_at: float = 0.0
    """Wall-clock time of the first of `uploads`."""
    import_body: str | None = None
    """The exact body that starts the import, from before the first request until the run is known."""
    run_id: str | None = None
    started_at: float = 0.0
    """Wall-clock time at which the run was first known."""
    adopted: bool = False
    """Whether a person linked the company. Its earlier imports must be read first."""
    has_other_rows: bool = msgspec.field(name="foreign", default=False)
    """Whether the company may hold rows of another import, for example of one that was rejected or canceled. The row
    counts of this import's report then say nothing about the downloads."""
    exported_again: int = 0
    """How often the exports of the present import were started again."""
    rejected: bool = False
    """Whether we rejected the patch of the import, or were about to."""
    decided: str = ""
    """The mark of the questions that were decided last, or were about to be. A delayed read may show them again."""
    decided_at: float = 0.0
    """Wall-clock time of that decision."""
    exports: tuple[ExportStep, ...] = ()

    @classmethod
    def read(cls, external_id: str, state: bytes | None) -> Self:
        """Return the record in a state of the journal; see `BaseRecord.read`."""
        record = super().read(external_id, state)
        if record.outcome is not None and not record.outcome.ids:  # an earlier version wrote them elsewhere
            outcome = msgspec.structs.replace(record.outcome, ids=record.ids)
            return msgspec.structs.replace(record, outcome=outcome)
        return record

    @property
    def ids(self) -> Mapping[str, str]:
        known = (("company", self.company_id), ("run", self.run_id))
        return {kind: each for kind, each in known if each}

    @property
    def has_started(self) -> bool:
        """Whether the import may have started, so that missing input files do not matter."""
        return not self.is_readable or self.import_body is not None or self.run_id is not None

    @property
    def step(self) -> Progress:
        if isinstance(self.outcome, Failed) and self.outcome.step:
            return self.outcome.step
        if self.run_id is not None:
            return "ended" if isinstance(self.outcome, Delivered) else "running"
        if self.import_body is not None:
            return "starting"
        if self.company_id is not None:
            return "uploading"
        return "creating" if self.create_sent else "waiting"

    @property
    def detail(self) -> str:
        """The number of the import, if it is not the first one."""
        return f"import number {self.epoch + 1} of this company" if self.epoch else ""

    @property
    def bytes_sent(self) -> Iterable[int]:
        return (each.size for each in self.uploads)

    @property
    def sheet_names(self) -> Mapping[str, str]:
        return {sheet.id: sheet.name or sheet.id for sheet in self.sheets}


def import_key(record: Record) -> str:
    """Return the idempotency key of an import. It is the same for the same input in every process."""
    return _derived(record.external_id, "import", str(record.epoch), *(file.sha256 for file in record.files))


def export_key(record: Record, mode: ExportMode) -> str:
    """Return the idempotency key of an export. It is the same for the same import, even if the journal was lost."""
    return _derived(record.external_id, f"export {mode}", str(record.run_id), str(record.exported_again))


def _derived(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


# Entries in words


class _Detail(msgspec.Struct, frozen=True, kw_only=True):
    """The content of a journal entry: the changed fields of the record, and a decision."""

    company_id: str | None = None
    run_id: str | None = None
    epoch: int | None = None
    files: tuple[FileInput, ...] = ()
    uploads: tuple[Uploaded, ...] = ()
    decision: Mapping[str, object] | None = None
    exports: tuple[ExportStep, ...] = ()
    last_failure: LastFailure | None = None
    attempts: int | None = None
    outcome: Outcome | None = None


def words_of(event: JournalEvent) -> str:
    """Return a description of an entry. It may contain unescaped text of the server."""
    try:
        detail = msgspec.json.decode(event.detail, type=_Detail)
    except (ValueError, TypeError, RecursionError):
        detail = _Detail()  # of another version
    match event.kind:
        case "create" | "start":
            return f"asks for the {'company' if event.kind == 'create' else 'import'}"
        case "created" | "adopt":
            return f"company {detail.company_id}" + (", as a person said" if event.kind == "adopt" else "")
        case "started" | "found":
            return f"run {detail.run_id}"
        case "input":
            return files_in_words(detail.files)
        case "uploaded":
            return files_in_words(detail.uploads[-1:])
        case "export" | "export started" | "exported":
            steps = detail.exports[-1:]  # the one that the entry is about
            return "".join(f"{step.mode}, run {step.run_id}" if step.run_id else step.mode for step in steps)
        case "retrying":
            return detail.last_failure.words if detail.last_failure else ""
        case "recovered":
            return f"after {detail.attempts} attempts"
        case "decide":
            return _decision(detail.decision)
        case "new epoch":
            return f"import number {(detail.epoch or 0) + 1} of this company; {files_in_words(detail.files)}"
        case _:
            outcome = detail.outcome
            return "" if outcome is None or isinstance(outcome, Delivered) else outcome.error


def _decision(decision: Mapping[str, object] | None) -> str:
    """Return a description of a decision. Earlier versions wrote `approve` instead of a type."""
    if decision is None:
        return ""
    kind = decision.get("type") or ("approve" if decision.get("approve") else "reject")
    answers = cast("Mapping[str, object]", decision.get("answers") or {})
    given = [f"{question}={_choice(choice)}" for question, choice in answers.items()]
    return " ".join([str(kind), *given])


def _choice(choice: object) -> str:
    return (
        repr(cast("Mapping[str, object]", choice).get("text")) if isinstance(choice, Mapping) else str(choice)
    )
