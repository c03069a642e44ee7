"""Drive hundreds of customer data migrations at once through a rate-limited Migration API.

The guide is in the file `guide.md` of this package; `pdoc asyncmig` renders it here.

.. include:: guide.md
"""

from importlib.util import find_spec

from asyncmig._core.endpoint import Lane
from asyncmig._core.limits import Limits, Rate, RateHeaders, Scope
from asyncmig._core.retry import RetryPolicy
from asyncmig._io.gate import Gate, GateStatistics, Slot
from asyncmig._io.reply import Reply
from asyncmig._io.run_slots import RunSlotsStatistics
from asyncmig._io.transport import Timeouts, Transport
from asyncmig.customers.answer_rules import AnswerRule, read_answer_rules
from asyncmig.customers.catalog import ColumnSpec, Link
from asyncmig.customers.decisions import Answer, Approve, Cancel, Change, Credentials, Decision, Reject
from asyncmig.customers.outcome import (
    Decide,
    Delivered,
    Downloaded,
    ExportResult,
    ExportSummary,
    Failed,
    ImportReport,
    Outcome,
    Parked,
    Pending,
    Policy,
    RowFilter,
    SheetCount,
    Unknown,
)
from asyncmig.customers.questions import (
    Action,
    Custom,
    NeedsAttention,
    Option,
    Patch,
    Question,
    Target,
    check_answers,
)
from asyncmig.customers.spec import LiveSource, Spec
from asyncmig.errors import (
    ApiError,
    AsyncmigError,
    AuthError,
    BadRequest,
    Conflict,
    CustomerHeld,
    CustomerNotFound,
    InvalidInput,
    JournalError,
    JournalNotFound,
    JournalUnavailable,
    NoAnswer,
    NoRunSlot,
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
from asyncmig.jobs.fleet import Fleet
from asyncmig.jobs.migrate import adopt, migrate
from asyncmig.journal import Journal, JournalPort, MemoryJournal
from asyncmig.session import Session

__all__ = [
    "Action",
    "Answer",
    "AnswerRule",
    "ApiError",
    "Approve",
    "AsyncmigError",
    "AuthError",
    "BadRequest",
    "Cancel",
    "Change",
    "ColumnSpec",
    "Conflict",
    "Credentials",
    "Custom",
    "CustomerHeld",
    "CustomerNotFound",
    "Decide",
    "Decision",
    "Delivered",
    "Downloaded",
    "ExportResult",
    "ExportSummary",
    "Failed",
    "Fleet",
    "Gate",
    "GateStatistics",
    "ImportReport",
    "InvalidInput",
    "Journal",
    "JournalError",
    "JournalNotFound",
    "JournalPort",
    "JournalUnavailable",
    "Lane",
    "Limits",
    "Link",
    "LiveSource",
    "MemoryJournal",
    "NeedsAttention",
    "NoAnswer",
    "NoRunSlot",
    "NotFound",
    "Option",
    "Outcome",
    "Parked",
    "Patch",
    "Pending",
    "Policy",
    "Question",
    "QueueUnavailable",
    "Rate",
    "RateHeaders",
    "RateLimited",
    "Reject",
    "Reply",
    "RetryPolicy",
    "RowFilter",
    "RunCanceled",
    "RunError",
    "RunFailed",
    "RunSlotsStatistics",
    "Scope",
    "ServerError",
    "Session",
    "SessionClosed",
    "SheetCount",
    "Slot",
    "Spec",
    "Target",
    "Timeouts",
    "Transport",
    "TruncatedDownload",
    "UnexpectedReply",
    "Unknown",
    "UnknownOutcome",
    "UsageError",
    "WaitTooLong",
    "WebhookRefused",
    "adopt",
    "check_answers",
    "migrate",
    "read_answer_rules",
]
_MODULES = (
    *(
        "companies",
        "distributed",
        "errors",
        "events",
        "generations",
        "jobs",
        "journal",
        "migrations",
        "preflight",
    ),
    *("pytest_plugin", "simulator", "telemetry", "testing", "transport", "webhooks"),
)
"""Public modules, which `pdoc asyncmig` shows as chapters. They are imported only by name."""
_NEEDS = {"pytest_plugin": "pytest", "telemetry": "opentelemetry"}
__all__ += [name for name in _MODULES if name not in _NEEDS or find_spec(_NEEDS[name])]
