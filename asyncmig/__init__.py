"""Drive hundreds of customer data migrations at once through a rate-limited Migration API."""

from asyncmig._core.endpoint import Lane
from asyncmig._core.retry import RetryPolicy
from asyncmig._io.gate import Gate, GateStatistics, Slot
from asyncmig._io.reply import Reply
from asyncmig._io.transport import Timeouts
from asyncmig.companies.adoption import adopt
from asyncmig.companies.catalog import Companies, Company
from asyncmig.companies.downloads import Downloaded
from asyncmig.companies.exports import ExportRun
from asyncmig.companies.imports import Custom, ImportRun
from asyncmig.companies.migrate import migrate
from asyncmig.companies.outcome import (
    Decision,
    Delivered,
    ExportSummary,
    Failed,
    Outcome,
    Parked,
    Pending,
    Unknown,
)
from asyncmig.companies.spec import Spec
from asyncmig.companies.uploads import Uploaded
from asyncmig.companies.wire import (
    Action,
    ImportReport,
    ImportState,
    NeedsAttention,
    Patch,
    Question,
    Sheet,
    Source,
    Template,
)
from asyncmig.errors import (
    ApiError,
    AsyncmigError,
    AuthError,
    BadRequest,
    CompanyHeld,
    Conflict,
    InvalidInput,
    JournalError,
    NoAnswer,
    NotFound,
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
from asyncmig.journal import Journal, MemoryJournal
from asyncmig.session import Session

__all__ = [
    "Action",
    "ApiError",
    "AsyncmigError",
    "AuthError",
    "BadRequest",
    "Companies",
    "Company",
    "CompanyHeld",
    "Conflict",
    "Custom",
    "Decision",
    "Delivered",
    "Downloaded",
    "ExportRun",
    "ExportSummary",
    "Failed",
    "Fleet",
    "Gate",
    "GateStatistics",
    "ImportReport",
    "ImportRun",
    "ImportState",
    "InvalidInput",
    "Journal",
    "JournalError",
    "Lane",
    "MemoryJournal",
    "NeedsAttention",
    "NoAnswer",
    "NotFound",
    "Outcome",
    "Parked",
    "Patch",
    "Pending",
    "Question",
    "RateLimited",
    "Reply",
    "RetryPolicy",
    "RunCanceled",
    "RunError",
    "RunFailed",
    "ServerError",
    "Session",
    "SessionClosed",
    "Sheet",
    "Slot",
    "Source",
    "Spec",
    "Template",
    "Timeouts",
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
