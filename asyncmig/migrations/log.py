"""The log of a migration: what each run did, for people and for audits. See `wire` for the conventions."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from msgspec import Struct, field

from asyncmig._core.decode import Unreadable, decode
from asyncmig._core.lifecycle import HasStatus
from asyncmig._io.call import Call
from asyncmig._io.context import SessionContext
from asyncmig.errors import Conflict
from asyncmig.migrations.routes import READ_LOG

__all__ = [
    "Log",
    "LogAudit",
    "LogCovers",
    "LogOutcome",
    "LogRun",
    "LogSheet",
    "read_log",
    "retry_after_of",
    "settled",
    "status_of",
]

T = TypeVar("T")
_PAUSE, _SHORTEST_PAUSE, _LONGEST_PAUSE = 30.0, 10.0, 3600.0
"""Seconds before the log is read again: without a number from the server, and the bounds of that number."""


class LogSheet(Struct, frozen=True, kw_only=True):
    """How many rows a run wrote to one sheet."""

    sheet: str | None = None
    rows: int | None = None


class LogOutcome(Struct, frozen=True, kw_only=True):
    """What an executed run wrote. Rows may have been written although `ok` is False."""

    ok: bool | None = None
    rows_written: int | None = None
    per_sheet: tuple[LogSheet, ...] = ()
    invalid_rows: int | None = None
    error: str | None = None
    replaced_existing_data: bool | None = None


class LogAudit(Struct, frozen=True, kw_only=True):
    """One step of a run: `started`, `resumed`, `templates_adjusted`, `plan_approved`; others may come."""

    at: str | None = None
    event: str = ""
    actor: object = None


class LogRun(HasStatus, frozen=True, kw_only=True):
    """A run, or one operation of it: servers differ."""

    run_id: str = ""
    kind: str = ""
    """`generate`, `update`, `clarify`, `execute` or `reuse`; others may come."""
    status: str = ""
    started_at: str | None = None
    completed_at: str | None = None
    started_by: object = None
    """None: started through this API."""
    files: object = None
    plan: object = None
    questions: object = None
    answers: object = None
    outcome: LogOutcome | None = None
    audit: tuple[LogAudit, ...] = ()


class LogCovers(Struct, frozen=True, kw_only=True):
    """What a log covers: the number of runs, and the times of the first and the last of them."""

    runs: int | None = None
    from_: str | None = field(name="from", default=None)
    to: str | None = None


class Log(HasStatus, frozen=True, kw_only=True):
    """All runs of a migration, oldest first."""

    migration_id: str = ""
    generated_at: str | None = None
    status: str = ""
    covers: LogCovers | None = None
    runs: tuple[LogRun, ...] = ()


class _NotSettled(Struct, frozen=True, kw_only=True):
    status: str = ""
    retry_after_seconds: float | None = None


def status_of(error: Conflict) -> str:
    """Return the status with which a log is not settled: of the run or of the migration; "" if it says none."""
    try:
        return decode(error.body, _NotSettled).status
    except Unreadable:
        return ""


def retry_after_of(error: Conflict) -> float:
    """Return the seconds after which a log that is not settled may be read again."""
    try:
        wait = decode(error.body, _NotSettled).retry_after_seconds
    except Unreadable:
        wait = None
    return min(_LONGEST_PAUSE, max(_SHORTEST_PAUSE, _PAUSE if wait is None else wait))


async def read_log(context: SessionContext, migration_id: str) -> Log:
    """Return the log; one request. Raises `Conflict` while it is not settled."""
    return await context.caller.call(Call(endpoint=READ_LOG, ids={"id": migration_id}), Log)


async def settled(read: Callable[[], Awaitable[T]], *, wait: bool) -> T:
    """Return what `read` does; with `wait`, repeat it while the log is not settled (409)."""
    while True:
        try:
            return await read()
        except Conflict as error:
            if not wait:
                raise
            await asyncio.sleep(retry_after_of(error))
