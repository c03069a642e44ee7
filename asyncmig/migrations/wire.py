"""The payloads of the contract, one struct each; see `log` for those of the log.

Replies are decoded tolerantly: unknown fields are ignored, optional fields may be null or absent, numbers may be
text, and open sets (statuses, kinds, event types) are plain text. Values without a fixed shape are `object`: JSON as
it came. Requests are exact. If the server's name for a field misleads, the attribute's name says what it is.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal

from msgspec import UNSET, Struct, UnsetType, field
from msgspec.structs import force_setattr

from asyncmig._core.lifecycle import HasStatus
from asyncmig._core.secrets import HidesSecrets
from asyncmig.customers import questions
from asyncmig.customers.catalog import CatalogueItem, TemplateRules
from asyncmig.customers.outcome import ImportReport
from asyncmig.customers.questions import CredentialRequest, Guidance, GuidanceLink

__all__ = [
    "AnswerBody",
    "AnswersBody",
    "Connection",
    "ConnectionBody",
    "ConnectionReply",
    "CredentialRequest",
    "CredentialsBody",
    "Deleted",
    "ExportBody",
    "ExportState",
    "FileBody",
    "FilesBody",
    "Guidance",
    "GuidanceLink",
    "Kind",
    "KnowledgeBody",
    "KnowledgeText",
    "MigrationBody",
    "MigrationCreated",
    "MigrationInfo",
    "Option",
    "Pin",
    "Question",
    "Report",
    "RunBody",
    "RunStarted",
    "RunState",
    "Sheet",
    "Source",
    "SourceReply",
    "Sources",
    "StoredFile",
    "StoredFiles",
    "Template",
    "Templates",
    "UploadTarget",
    "UploadTargets",
]

Kind = Literal["generate", "update", "clarify", "execute"]
"""What a run is started for."""


# Catalogue


class Source(CatalogueItem, frozen=True, kw_only=True):
    """A source: a system that customers come from. Its name is its id."""

    id: str = ""
    name: str = ""
    logo_url: str | None = None
    auth_url: str | None = None

    def __post_init__(self) -> None:
        force_setattr(self, "id", self.name)


class Sources(Struct, frozen=True, kw_only=True):
    sources: tuple[Source, ...]


class SourceReply(Struct, frozen=True, kw_only=True):
    source: Source


class Pin(Struct, frozen=True, kw_only=True):
    """The recipe that new runs of a source start from."""

    source: str = ""
    run_id: str | None = field(name="pinned_recipe_run_id", default=None)
    """The run whose recipe is pinned; None if no run is."""


class Template(TemplateRules, frozen=True, kw_only=True):
    """A target schema. Its slug is its id."""

    id: str = field(name="slug")
    description: str | None = None
    enforces_all: ClassVar[bool] = True

    @property
    def slug(self) -> str:
        """The address of the template, which never changes."""
        return self.id


class Templates(Struct, frozen=True, kw_only=True):
    templates: tuple[Template, ...]


class KnowledgeText(Struct, frozen=True, kw_only=True):
    """A text that the agent reads before each run."""

    text: str | None = field(name="knowledge", default=None)
    """None if there is no text."""
    updated_at: str | None = None
    """ISO 8601, as the server sent it. A guarded write sends it back."""


class KnowledgeBody(Struct, frozen=True, kw_only=True, omit_defaults=True):
    text: str = field(name="knowledge")
    if_unmodified_since: str | UnsetType = UNSET


# Migrations


class Sheet(CatalogueItem, frozen=True, kw_only=True):
    """A sheet: one table of a migration's workbook. The slug of its template is its id."""

    id: str = field(name="slug")


class MigrationBody(Struct, frozen=True, kw_only=True, omit_defaults=True):
    name: str
    source: str | UnsetType = UNSET
    external_id: str | UnsetType = UNSET
    templates: tuple[str, ...] | UnsetType = UNSET


class MigrationInfo(Struct, frozen=True, kw_only=True):
    id: str
    name: str | None = None
    source: str | None = None
    status: str = ""
    templates: tuple[Sheet, ...] | None = None
    external_id: str | None = None


class MigrationCreated(Struct, frozen=True, kw_only=True):
    migration: MigrationInfo


# Files


class FileBody(Struct, frozen=True, kw_only=True):
    name: str
    content_type: str


class FilesBody(Struct, frozen=True, kw_only=True):
    files: tuple[FileBody, ...]


class UploadTarget(HidesSecrets, frozen=True, kw_only=True):
    name: str = ""
    storage_path: str = ""
    signed_url: str
    content_type: str | None = None

    _SHOWN: ClassVar = ("name", "storage_path")


class UploadTargets(Struct, frozen=True, kw_only=True):
    files: tuple[UploadTarget, ...]


class StoredFile(Struct, frozen=True, kw_only=True):
    """A file that has arrived."""

    name: str = ""
    storage_path: str = ""
    size: int | None = None
    """Bytes."""
    content_type: str | None = None
    uploaded_at: str | None = None


class StoredFiles(Struct, frozen=True, kw_only=True):
    files: tuple[StoredFile, ...]


# Connections


class ConnectionBody(HidesSecrets, frozen=True, kw_only=True, omit_defaults=True):
    source_key: str
    profile_id: str | UnsetType | None = UNSET
    config: Mapping[str, object] | UnsetType = UNSET
    selected_streams: tuple[str, ...] | UnsetType | None = UNSET
    stream_state: Mapping[str, object] | UnsetType = UNSET
    credentials: Mapping[str, object] | UnsetType = UNSET

    _SHOWN: ClassVar = ("source_key", "profile_id", "selected_streams")


class Connection(HidesSecrets, frozen=True, kw_only=True):
    """A live connection to a customer's source system, without its secrets."""

    id: str | None = None
    profile_id: str | None = None
    """None: the connection belongs to the workbook."""
    source_key: str | None = None
    name: str | None = None
    category: str | None = None
    config: object = None
    selected_streams: tuple[str, ...] | None = None
    stream_state: object = None
    creds_configured: bool | None = None
    bound_source_extractor_id: str | None = None
    last_snapshot: object = None
    last_sync_at: str | None = None

    _SHOWN: ClassVar = ("id", "profile_id", "source_key", "name", "creds_configured")


class ConnectionReply(Struct, frozen=True, kw_only=True):
    source_connection: Connection


class Deleted(Struct, frozen=True, kw_only=True):
    deleted: bool = True


class CredentialsBody(HidesSecrets, frozen=True, kw_only=True, omit_defaults=True):
    credentials: Mapping[str, object]
    connection_id: str | UnsetType = UNSET

    _SHOWN: ClassVar = ("connection_id",)


# Runs


class RunBody(Struct, frozen=True, kw_only=True, omit_defaults=True):
    kind: Kind
    message: str | UnsetType = UNSET
    extract_via_api: bool | UnsetType = UNSET


class RunStarted(HasStatus, frozen=True, kw_only=True):
    """The response to a start or an answer. Its `poll_url` is not used: URLs are built from ids alone."""

    run_id: str = ""
    status: str = "queued"


class Option(questions.Option, frozen=True, kw_only=True):
    """One proposed answer to a question. The label is what is sent."""

    id: str = ""


class Question(questions.Question, frozen=True, kw_only=True):
    """What a person is asked while a run is blocked. Its text is all that is known."""

    id: str = ""
    options: tuple[Option, ...] = ()
    prompt: str | None = field(name="question", default=None)
    allow_custom: bool = field(name="allowCustom", default=False)


class Report(ImportReport, frozen=True, kw_only=True):
    """What an executed run did."""

    coverage: object = None
    """Fill and distinct statistics per column of inputs and outputs; None if the server sent none."""


class RunState(HasStatus, HidesSecrets, frozen=True, kw_only=True):
    """One reading of a run. Its repr shows no answers, which may be secrets."""

    run_id: str | None = None
    created_at: str | None = None
    message: str | None = None
    """The current activity, as text for people."""
    blocked_reason: str | None = None
    """`question` or `credentials`; others may come. None: the questions decide."""
    questions: tuple[Question, ...] = ()
    credential_request: CredentialRequest | None = None
    report: Report | None = None
    error: str | None = None
    answers: object = None
    """A read-back of the last answers."""

    _SHOWN: ClassVar = ("run_id", "status", "created_at", "message", "blocked_reason")


class AnswerBody(Struct, frozen=True, kw_only=True):
    id: str
    value: str


class AnswersBody(Struct, frozen=True, kw_only=True):
    answers: tuple[AnswerBody, ...]


# Exports


class ExportBody(Struct, frozen=True, kw_only=True, omit_defaults=True):
    slug: str | UnsetType = UNSET
    slugs: tuple[str, ...] | UnsetType = UNSET
    fields: tuple[str, ...] | UnsetType = UNSET
    omit_empty: bool | UnsetType = UNSET


class ExportState(HasStatus, HidesSecrets, frozen=True, kw_only=True):
    """One reading of an export job. Its link is a secret."""

    job_id: str = ""
    status: str = "pending"
    format: str | None = None
    rows_processed: int | None = None
    total_rows: int | None = None
    file_size: int | None = None
    """Bytes."""
    error: str | None = None
    expires_at: str | None = None
    download_url: str | None = None

    _SHOWN: ClassVar = ("job_id", "status", "format", "rows_processed", "total_rows", "error", "expires_at")

    @property
    def progress_message(self) -> str | None:
        """The rows processed so far, as text for people."""
        return None if self.rows_processed is None else f"{self.rows_processed} rows"
