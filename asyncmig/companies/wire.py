"""The payloads of the contract, one struct each.

Replies are decoded tolerantly: unknown fields are ignored, optional fields may be null or absent, and open sets
(statuses, actions) are plain text. Requests are exact. If the server's name for a field misleads, the attribute's
name says what it is.
"""

from collections.abc import Mapping
from typing import ClassVar

from msgspec import UNSET, Raw, Struct, UnsetType, field

from asyncmig._core.lifecycle import HasStatus
from asyncmig._core.secrets import HidesSecrets
from asyncmig.customers.catalog import CatalogueItem, TemplateRules
from asyncmig.customers.outcome import ExportResult, ImportReport
from asyncmig.customers.questions import NeedsAttention

__all__ = [
    "ActiveImport",
    "AnswerBody",
    "CompanyBody",
    "CompanyCreated",
    "CompanyInfo",
    "Connection",
    "DecisionBody",
    "ExportBody",
    "ExportReport",
    "ExportState",
    "FileRef",
    "ImportBody",
    "ImportState",
    "ListedImport",
    "RunStarted",
    "RunState",
    "Selection",
    "Sheet",
    "Source",
    "Sources",
    "Template",
    "Templates",
    "UploadBody",
    "UploadTarget",
]


# Catalogue


class Source(CatalogueItem, frozen=True, kw_only=True):
    """A source: published import logic for one system that customers come from."""

    logo_url: str | None = None


class Sources(Struct, frozen=True, kw_only=True):
    sources: tuple[Source, ...]


class Template(TemplateRules, frozen=True, kw_only=True):
    """A target schema."""

    description: str | None = None


class Templates(Struct, frozen=True, kw_only=True):
    templates: tuple[Template, ...]


# Companies


class CompanyBody(HidesSecrets, frozen=True, kw_only=True, omit_defaults=True):
    name: str
    source: str
    external_id: str | UnsetType = UNSET
    template_ids: tuple[str, ...] | UnsetType = UNSET
    connections: Mapping[str, object] | UnsetType = UNSET

    _SHOWN: ClassVar = ("name", "source", "external_id", "template_ids")


class CompanyInfo(Struct, frozen=True, kw_only=True):
    id: str
    name: str | None = None
    external_id: str | None = None
    created_at: str | None = None


class Sheet(Struct, frozen=True, kw_only=True, gc=False):
    """A sheet: one table of a company's workbook."""

    id: str
    name: str = ""
    template_id: str | None = None


class Connection(Struct, frozen=True, kw_only=True):
    """A connection of a company, without its secrets."""

    id: str | None = None
    kind: str | None = None
    """`destination`; other kinds may be added."""
    creds_configured: bool | None = None


class CompanyCreated(HidesSecrets, frozen=True, kw_only=True):
    company: CompanyInfo
    workbook_id: str | None = None
    sheets: tuple[Sheet, ...] = ()
    connections: tuple[Connection, ...] = ()
    magic_link_url: str | None = None

    _SHOWN: ClassVar = ("company", "workbook_id", "sheets", "connections")


# Uploads


class UploadBody(Struct, frozen=True, kw_only=True, omit_defaults=True):
    name: str
    content_type: str
    size: int


class UploadTarget(HidesSecrets, frozen=True, kw_only=True):
    upload_url: str
    upload_ref: str

    _SHOWN: ClassVar = ("upload_ref",)


# Imports


class FileRef(Struct, frozen=True, kw_only=True, omit_defaults=True):
    name: str
    upload_ref: str


class ImportBody(Struct, frozen=True, kw_only=True, omit_defaults=True):
    idempotency_key: str
    files: tuple[FileRef, ...] | UnsetType = UNSET
    rows: Raw | UnsetType = UNSET


class RunStarted(HasStatus, frozen=True, kw_only=True):
    """The response to a start or a decision. Its `poll_url` is not used: URLs are built from ids alone."""

    run_id: str
    status: str = "queued"


class RunState(HasStatus, frozen=True, kw_only=True, gc=False):
    """One reading of an import or export run."""

    run_id: str | None = None
    progress_message: str | None = None
    """The current activity, as text for people."""
    error: str | None = None


class ImportState(RunState, frozen=True, kw_only=True, gc=False):
    """One reading of an import run."""

    id: str | None = None
    report: ImportReport | None = None
    needs_attention: NeedsAttention | None = None


class ListedImport(ImportState, frozen=True, kw_only=True):
    """An import in a list, which may have fewer fields than a read of it."""

    status: str = ""


class ActiveImport(ListedImport, frozen=True, kw_only=True):
    """The response to the request for the active import: a run, a run in the field `run`, or `run: null` for none."""

    run: ListedImport | None = None

    def state(self) -> ImportState | None:
        """Return the run that is active, or None."""
        state = self if self.run is None else self.run
        return state if state.status or state.run_id or state.id else None


class AnswerBody(Struct, frozen=True, kw_only=True, omit_defaults=True):
    question_id: str
    option_id: str | UnsetType = UNSET
    custom: str | UnsetType = UNSET


class DecisionBody(Struct, frozen=True, kw_only=True, omit_defaults=True):
    decision: str
    answers: tuple[AnswerBody, ...] | UnsetType = UNSET


# Destination exports


class Selection(Struct, frozen=True, kw_only=True, omit_defaults=True):
    template_ids: tuple[str, ...] | UnsetType = UNSET
    row_filter: str | UnsetType = UNSET


class ExportBody(Struct, frozen=True, kw_only=True, omit_defaults=True):
    mode: str
    idempotency_key: str
    selection: Selection | UnsetType = UNSET


class ExportReport(Struct, frozen=True, kw_only=True):
    """The report of a destination export. A run completes even if writes failed.

    The report has counts and a list. If they disagree, the worse one is used.
    """

    mode: str | None = None
    total: int | None = None
    """The number of writes, as the server counts them."""
    succeeded: int | None = None
    failed_count: int | None = field(name="failed", default=None)
    """The number of failed writes, as the server counts them; `failed` has those that it lists."""
    results: tuple[ExportResult, ...] = ()

    @property
    def failed(self) -> tuple[ExportResult, ...]:
        """Writes that the destination refused or never received."""
        return tuple(result for result in self.results if result.is_failed)

    @property
    def hollow(self) -> tuple[ExportResult, ...]:
        """Writes that the destination accepted without keeping the fields."""
        return tuple(result for result in self.results if result.is_hollow)

    @property
    def unverified(self) -> tuple[ExportResult, ...]:
        """Writes that succeeded but were not read back."""
        return tuple(result for result in self.results if result.is_unverified)

    @property
    def unlisted(self) -> int:
        """The number of writes that were counted but not listed; they may be hollow."""
        return max(0, (self.total or 0) - len(self.results))

    @property
    def unlisted_failures(self) -> int:
        """The number of failed writes that were counted but not listed."""
        short = 0 if self.total is None or self.succeeded is None else self.total - self.succeeded
        listed = sum(result.is_failed or result.ok is False for result in self.results)
        return max(0, max(self.failed_count or 0, short) - listed)

    @property
    def is_clean(self) -> bool:
        """Whether the report shows no failed and no hollow write. Some writes may be unverified."""
        return not self.failed and not self.hollow and not self.unlisted_failures


class ExportState(RunState, frozen=True, kw_only=True):
    """One reading of an export run."""

    report: ExportReport | None = None
