"""What travels: one struct for each payload of the contract.

Replies are tolerant: unknown fields pass, what is documented as optional may be null or absent, and open
sets (statuses, actions) are plain text. Requests are exact. Where the server's word misleads, the name
here says what it is.
"""

from typing import ClassVar

from msgspec import UNSET, Raw, Struct, UnsetType, field

__all__ = [
    "Action",
    "ActiveImport",
    "Answer",
    "ColumnSpec",
    "CompanyBody",
    "CompanyCreated",
    "CompanyInfo",
    "Connection",
    "DecisionBody",
    "FileRef",
    "ImportBody",
    "ImportReport",
    "ImportState",
    "Link",
    "ListedImport",
    "NeedsAttention",
    "Option",
    "Patch",
    "Question",
    "RunStarted",
    "Sheet",
    "SheetCount",
    "Source",
    "Sources",
    "Target",
    "Template",
    "Templates",
    "UploadBody",
    "UploadTarget",
]

_HARMLESS = frozenset({"set_value", "keep"})


class _Discreet(Struct, frozen=True, kw_only=True):
    """Holds a secret, and shows only what its class names."""

    _SHOWN: ClassVar[tuple[str, ...]] = ()

    def __rich_repr__(self) -> list[tuple[str, object]]:
        return [(name, getattr(self, name)) for name in self._SHOWN]

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.__rich_repr__())})"
        )


# Catalogue


class Source(Struct, frozen=True, kw_only=True):
    """Published import logic for one system that customers come from."""

    id: str
    name: str = ""
    logo_url: str | None = None


class Sources(Struct, frozen=True, kw_only=True):
    sources: tuple[Source, ...]


class Link(Struct, frozen=True, kw_only=True):
    """A column that a link rule points to."""

    template_id: str | None = field(name="templateId", default=None)
    column_name: str | None = field(name="columnName", default=None)


class ColumnSpec(Struct, frozen=True, kw_only=True):
    """One column of a template and the rule that its cells must obey."""

    name: str
    description: str | None = None
    required: bool = False
    unique: bool = False
    rule: str | None = field(name="desiredRule", default=None)
    """`none`, `ai`, `strict` or `link`; others may come."""
    pattern: str | None = field(name="strictRule", default=None)
    """A regular expression, where the rule is strict."""
    links: tuple[Link, ...] = field(name="linkRule", default=())


class Template(Struct, frozen=True, kw_only=True):
    """A target schema."""

    id: str
    name: str = ""
    description: str | None = None
    columns: tuple[ColumnSpec, ...] = ()


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
    """One table of a company's workbook."""

    id: str
    name: str = ""
    template_id: str | None = None


class Connection(Struct, frozen=True, kw_only=True):
    """A connection of a company as the server shows it: without its secrets."""

    id: str | None = None
    kind: str | None = None
    """`destination`; others may come."""
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


class RunStarted(Struct, frozen=True, kw_only=True):
    """The answer to a start or a decision. Its `poll_url` is not read: URLs are built from ids alone."""

    run_id: str
    status: str = "queued"


class SheetCount(Struct, frozen=True, kw_only=True):
    """How many rows one sheet got."""

    template_name: str | None = field(name="templateName", default=None)
    sheet_id: str | None = field(name="sheetId", default=None)
    rows: int | None = field(name="rowCount", default=None)


class ImportReport(Struct, frozen=True, kw_only=True):
    """What an import did. While a run is parked, `inserted` counts valid rows only."""

    inserted: int | None = None
    per_sheet: tuple[SheetCount, ...] = field(name="perSheet", default=())
    invalid_rows: int | None = field(name="invalidCellCount", default=None)
    """Rows with at least one bad cell, whatever the field's name in the API suggests."""


class Option(Struct, frozen=True, kw_only=True):
    """One proposed answer to a question."""

    id: str
    label: str | None = None


class Target(Struct, frozen=True, kw_only=True):
    """What a question is about."""

    sheet_id: str | None = None
    column: str | None = None
    affected_count: int | None = None
    sample_values: tuple[str, ...] = ()
    error: str | None = None


class Question(Struct, frozen=True, kw_only=True):
    """What a person is asked while a run is parked."""

    id: str
    prompt: str | None = None
    context: str | None = None
    target: Target | None = None
    relevant_columns: tuple[str, ...] = ()
    options: tuple[Option, ...] = ()
    allow_custom: bool = False


class Action(Struct, frozen=True, kw_only=True):
    """One step of a proposed patch."""

    action: str | None = None
    """`set_value`, `keep`, `delete_invalid_rows` or `dedup_keep_first`; others may come."""
    sheet_id: str | None = None
    column: str | None = None
    value: str | None = None
    key_column: str | None = None

    @property
    def is_destructive(self) -> bool:
        """Whether it destroys rows, or may: an action that is not known counts as one that does."""
        return self.action not in _HARMLESS


class Patch(Struct, frozen=True, kw_only=True):
    """What an approval without answers applies as it is."""

    summary: str | None = None
    actions: tuple[Action, ...]

    @property
    def is_destructive(self) -> bool:
        """Whether any of its actions destroys rows, or may."""
        return any(action.is_destructive for action in self.actions)


class NeedsAttention(Struct, frozen=True, kw_only=True):
    """Why a run is parked: questions, and a patch that answers them unless somebody says otherwise."""

    questions: tuple[Question, ...] = ()
    proposed_patch: Patch | None = None

    @property
    def destructive(self) -> tuple[Action, ...]:
        """The actions of the patch that destroy rows, or may: they can concern rows that no question asked about."""
        patch = self.proposed_patch
        return tuple(action for action in patch.actions if action.is_destructive) if patch else ()

    @property
    def is_destructive(self) -> bool:
        """Whether approving it destroys rows, or may: a patch that cannot be read counts as one that does."""
        return self.proposed_patch is None or self.proposed_patch.is_destructive


class ImportState(Struct, frozen=True, kw_only=True):
    """One reading of an import run."""

    status: str
    run_id: str | None = None
    id: str | None = None
    progress_message: str | None = None
    report: ImportReport | None = None
    needs_attention: NeedsAttention | None = None
    error: str | None = None


class ListedImport(ImportState, frozen=True, kw_only=True):
    """An import as a list shows it, perhaps with less than a read of it would say."""

    status: str = ""


class ActiveImport(ListedImport, frozen=True, kw_only=True):
    """The answer to "does anything run": a run bare, or wrapped in `run`, or `run` null for nothing."""

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
