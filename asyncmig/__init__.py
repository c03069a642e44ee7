"""Drive hundreds of customer data migrations at once through a rate-limited Migration API."""

from asyncmig._core.endpoint import Lane
from asyncmig._core.retry import RetryPolicy
from asyncmig._io.gate import Gate, GateStatistics, Slot
from asyncmig._io.reply import Reply
from asyncmig._io.transport import Timeouts, Transport
from asyncmig.companies.adoption import adopt
from asyncmig.companies.catalog import Companies
from asyncmig.companies.company import Company
from asyncmig.companies.connections import Destination
from asyncmig.companies.downloads import Downloaded
from asyncmig.companies.expected import RowFilter
from asyncmig.companies.exports import ExportOutcome, ExportRun, Exports, ExportStage
from asyncmig.companies.imports import ImportRun, Imports
from asyncmig.companies.migrate import migrate
from asyncmig.companies.outcome import (
    Decide,
    Decision,
    Delivered,
    ExportSummary,
    Failed,
    Outcome,
    Parked,
    Pending,
    Policy,
    Unknown,
)
from asyncmig.companies.review import Custom
from asyncmig.companies.spec import Spec
from asyncmig.companies.uploads import Uploaded
from asyncmig.companies.wire import (
    Action,
    ColumnSpec,
    Connection,
    ImportReport,
    ImportState,
    Link,
    NeedsAttention,
    Option,
    Patch,
    Question,
    Sheet,
    SheetCount,
    Source,
    Target,
    Template,
)
from asyncmig.companies.writes import ExportReport, ExportResult, ExportState
from asyncmig.errors import (
    ApiError,
    AsyncmigError,
    AuthError,
    BadRequest,
    CompanyHeld,
    Conflict,
    InvalidInput,
    JournalError,
    JournalUnavailable,
    NoAnswer,
    NotFound,
    QueueUnavailable,
    RateLimited,
    RunCanceled,
    RunError,
    RunFailed,
    ServerError,
    SessionClosed,
    TruncatedDownload,
    UnexpectedReply,
    UnknownOutcome,
    UsageError,
    WaitTooLong,
    WebhookRefused,
)
from asyncmig.fleet import Fleet
from asyncmig.journal import Journal, JournalPort, MemoryJournal
from asyncmig.session import Scope, Session

__all__ = [
    "Action",
    "ApiError",
    "AsyncmigError",
    "AuthError",
    "BadRequest",
    "ColumnSpec",
    "Companies",
    "Company",
    "CompanyHeld",
    "Conflict",
    "Connection",
    "Custom",
    "Decide",
    "Decision",
    "Delivered",
    "Destination",
    "Downloaded",
    "ExportOutcome",
    "ExportReport",
    "ExportResult",
    "ExportRun",
    "ExportStage",
    "ExportState",
    "ExportSummary",
    "Exports",
    "Failed",
    "Fleet",
    "Gate",
    "GateStatistics",
    "ImportReport",
    "ImportRun",
    "ImportState",
    "Imports",
    "InvalidInput",
    "Journal",
    "JournalError",
    "JournalPort",
    "JournalUnavailable",
    "Lane",
    "Link",
    "MemoryJournal",
    "NeedsAttention",
    "NoAnswer",
    "NotFound",
    "Option",
    "Outcome",
    "Parked",
    "Patch",
    "Pending",
    "Policy",
    "Question",
    "QueueUnavailable",
    "RateLimited",
    "Reply",
    "RetryPolicy",
    "RowFilter",
    "RunCanceled",
    "RunError",
    "RunFailed",
    "Scope",
    "ServerError",
    "Session",
    "SessionClosed",
    "Sheet",
    "SheetCount",
    "Slot",
    "Source",
    "Spec",
    "Target",
    "Template",
    "Timeouts",
    "Transport",
    "TruncatedDownload",
    "UnexpectedReply",
    "Unknown",
    "UnknownOutcome",
    "Uploaded",
    "UsageError",
    "WaitTooLong",
    "WebhookRefused",
    "adopt",
    "migrate",
]
