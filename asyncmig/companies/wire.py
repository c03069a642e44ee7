"""The payloads of the contract, one struct each.

Replies are decoded tolerantly: unknown fields are ignored, optional fields may be null or absent, and open sets
(statuses, actions) are plain text. Requests are exact. If the server's name for a field misleads, the attribute's
name says what it is.
"""

from typing import ClassVar

from msgspec import UNSET, Raw, Struct, UnsetType

from asyncmig._core.lifecycle import HasStatus
from asyncmig.customers.questions import NeedsAttention
from asyncmig.customers.report import ImportReport
from asyncmig.customers.template_rules import CatalogueItem, TemplateRules

__all__ = [
    "ActiveImport",
    "Answer",
    "CompanyBody",
    "CompanyCreated",
    "CompanyInfo",
    "Connection",
    "DecisionBody",
    "FileRef",
    "ImportBody",
    "ImportState",
    "ListedImport",
    "RunStarted",
    "Sheet",
    "Source",
    "Sources",
    "Template",
    "Templates",
    "UploadBody",
    "UploadTarget",
]


class _Discreet(Struct, frozen=True, kw_only=True):
    """The base of structs with secrets; the repr shows only the listed fields."""

    _SHOWN: ClassVar[tuple[str, ...]] = ()

    def __rich_repr__(self) -> list[tuple[str, object]]:
        return [(name, getattr(self, name)) for name in self._SHOWN]

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.__rich_repr__())})"
        )


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


class CompanyBody(_Discreet, frozen=True, kw_only=True, omit_defaults=True):
    name: str
    source: str
    external_id: str | UnsetType = UNSET
    template_ids: tuple[str, ...] | UnsetType = UNSET
    connections: dict[str, object] | UnsetType = UNSET

    _SHOWN: ClassVar = ("name", "source", "external_id", "template_ids")


class CompanyInfo(Struct, frozen=True, kw_only=True):
    id: str
    name: str | None = None
    external_id: str | None = None
    created_at: str | None = None


class Sheet(Struct, frozen=True, kw_only=True):
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


class CompanyCreated(_Discreet, frozen=True, kw_only=True):
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


class UploadTarget(_Discreet, frozen=True, kw_only=True):
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


class ImportState(HasStatus, frozen=True, kw_only=True):
    """One reading of an import run."""

    run_id: str | None = None
    id: str | None = None
    progress_message: str | None = None
    report: ImportReport | None = None
    needs_attention: NeedsAttention | None = None
    error: str | None = None


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


class Answer(Struct, frozen=True, kw_only=True, omit_defaults=True):
    question_id: str
    option_id: str | UnsetType = UNSET
    custom: str | UnsetType = UNSET


class DecisionBody(Struct, frozen=True, kw_only=True, omit_defaults=True):
    decision: str
    answers: tuple[Answer, ...] | UnsetType = UNSET
