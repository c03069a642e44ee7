"""The status of a customer: one shape for `status --json`, `report.json`, NDJSON and the live view."""

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import cast, final

import msgspec

from asyncmig.customers.files import FileInput
from asyncmig.customers.outcome import (
    Delivered,
    Failed,
    Flagged,
    Outcome,
    Parked,
    Pending,
    PendingReason,
    shortened,
)
from asyncmig.customers.questions import Action
from asyncmig.events import AttemptFailed
from asyncmig.steps import OutcomeName, Progress

__all__ = [
    "CustomerRecord",
    "CustomerStatus",
    "LastFailure",
    "MigrationProgress",
    "RemainingWork",
    "RowCounts",
    "RunUpdate",
    "SheetFile",
    "is_new",
    "status_of_outcome",
    "unreadable_outcome",
    "unreadable_record",
    "wall_clock",
]


class RowCounts(msgspec.Struct, frozen=True, kw_only=True):
    """The row counts of a customer; None if a count is not known."""

    inserted: int | None = None
    """Inserted rows, as the import's report counts them."""
    flagged: int | None = None
    """Rows of the import with at least one bad cell, as its report counts them."""
    delivered: int | None = None
    """Rows in the delivered files."""


class SheetFile(msgspec.Struct, frozen=True, kw_only=True):
    """A delivered sheet."""

    sheet: str
    path: str
    rows: int
    """Records below the header."""
    bytes: int
    flagged: Flagged | None = None
    """Whether the file contains rows with a bad cell; null in the API generation "companies"."""
    is_verified: bool | None = None
    """Whether a count of the server confirms that no row is missing; null in the API generation "companies"."""


class MigrationProgress(msgspec.Struct, frozen=True, kw_only=True):
    """The progress of a customer in numbers; null if a number is not known."""

    bytes_sent: int | None = None
    """Bytes of the input files that were uploaded; each file counts when it is complete."""
    bytes_total: int | None = None
    """Bytes of all input files."""
    percent: float | None = None
    """How far the run is, as the server reports it: 0 to 100."""
    rows: int | None = None
    """Rows that the run has processed, as the server reports them."""
    total_rows: int | None = None
    """Rows that the run has to process, as the server reports them."""
    seconds_left: float | None = None
    """An estimate of the seconds until the run ends: from its own progress, or from how long other runs took."""

    @classmethod
    def of_uploads(cls, files: Sequence[FileInput], sent: Iterable[int]) -> "MigrationProgress | None":
        """Return the progress of uploads from the bytes of each file sent; None before the files were read."""
        return cls(bytes_sent=sum(sent), bytes_total=sum(file.size for file in files)) if files else None


class LastFailure(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A failed attempt that was repeated: the first one of a step, or a later one that was reported."""

    at: float
    """Wall-clock time, in seconds."""
    endpoint: str
    """Method and route template."""
    status: int | None = None
    """None if no complete response arrived."""
    error: str = ""
    """The server's text, or the reason why there is none; at most `LONGEST_ERROR` characters."""
    attempt: int = 1
    """The number of the attempt in the step, from 1."""
    attempts: int | None = None
    """The maximum number of attempts, if it is limited."""
    until: float | None = None
    """Wall-clock time until which the step is repeated, if its time is limited."""
    is_over: bool = False
    """Whether the migration has continued since."""

    @classmethod
    def of(cls, event: AttemptFailed) -> "LastFailure":
        """Return the record of an event of the running loop."""
        loop = asyncio.get_running_loop()
        now, wall, speed = loop.time(), wall_clock(), float(getattr(loop, "speed", 1.0))
        return cls(
            at=wall - (now - event.at) / speed,
            endpoint=event.endpoint,
            status=event.status,
            error=shortened(event.error),
            attempt=event.attempt,
            attempts=event.attempts,
            until=None if event.until is None else wall + (event.until - now) / speed,
        )

    @property
    def words(self) -> str:
        """The failure in one line, for people. It contains unescaped text of the server."""
        answered = f" answered {self.status}" if self.status is not None else ""
        which = f"attempt {self.attempt}" + (f" of {self.attempts}" if self.attempts else "")
        if self.is_over:
            what = "the migration has continued since"
        elif self.until is not None:
            what = f"tried again until {datetime.fromtimestamp(self.until, UTC):%H:%M:%S} UTC"
        else:
            what = "tried again" if self.attempts else "tried again until it is answered"
        return f"{self.endpoint}{answered} ({which}; {what}): {self.error}"


def wall_clock() -> float:
    """Return the wall-clock time in seconds, because the journal outlives the loop's clock."""
    return time.time()  # noqa: TID251 - see above


class CustomerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The status of one customer, of any API generation."""

    external_id: str
    name: str
    api: str = "companies"
    """The API generation that the customer is migrated with."""
    outcome: OutcomeName = "pending"
    """`pending`: the migration has not ended."""
    pending_reason: PendingReason | None = None
    """Why the last call ended without an outcome; see `PendingReason`."""
    step: Progress = "waiting"
    """The step that the migration has reached."""
    detail: str = ""
    """What the API generation adds to the step, for people."""
    ids: Mapping[str, str] = {}
    """The server's ids, by kind: `company` and `run` in the generation "companies"."""
    error: str | None = None
    """Why the customer is not delivered; None if there is no error."""
    files: tuple[SheetFile, ...] = ()
    """The delivered sheets."""
    rows: RowCounts = RowCounts()
    replaced_existing_data: bool | None = None
    """Whether the import replaced data of an earlier one, as the server's log says; null if it does not say."""
    notes: tuple[str, ...] = ()
    """Further information for the user, for example that a file has changed since the import began."""
    destructive: tuple[Action, ...] = ()
    """The actions of a parked run's proposed patch that destroy rows, or may."""
    seconds: float = 0.0
    """How long the migration took, on the loop's clock of the process that ended it."""
    holds_run_slot: bool = False
    """Whether the customer is parked and its run occupies one of the account's run slots until a person decides."""
    changed_at: str | None = None
    """Wall-clock time of the last change, ISO 8601 in UTC."""
    last_failure: LastFailure | None = None
    """The last attempt that failed and was repeated; `is_over` says whether the migration has continued since."""
    held_by: str | None = None
    """The process that works on the customer now."""
    progress: MigrationProgress | None = None
    """None before the files were read, and in `report.json`. Only the process that waits for the run knows more than
    the bytes."""

    @property
    def is_over(self) -> bool:
        """Whether nothing more happens without a new command or a decision."""
        is_stopped = self.outcome != "pending" or self.pending_reason in ("canceled", "crashed")
        return is_stopped and self.held_by is None


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class CustomerRecord:
    """The content of a customer's journal record that is independent of the API generation."""

    status: CustomerStatus
    outcome: Outcome | None = None
    """The outcome of the last call of `migrate`; None if that call has not ended."""
    is_readable: bool = True
    """Whether this version can decode the record; if not, `outcome` says why, and the record must not be changed."""
    has_started: bool = False
    """Whether the server may have begun to import. From then on the input files are not needed."""
    source: str = ""
    """The id of the source."""
    templates: tuple[str, ...] | None = None
    """The ids of the templates; None: all templates of the account."""
    files: tuple[FileInput, ...] = ()
    """The input files."""
    run_slot: str | None = None
    """The id under which a run of the customer may hold a run slot of the account; None if none is in progress."""
    sheets: Mapping[str, str] = field(default_factory=dict[str, str])
    """The names of the sheets, by id."""
    details: object = None
    """The generation's own record; only that generation uses it."""

    @property
    def external_id(self) -> str:
        return self.status.external_id

    @property
    def name(self) -> str:
        return self.status.name

    @property
    def api(self) -> str:
        return self.status.api

    @property
    def ids(self) -> Mapping[str, str]:
        return self.status.ids


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RunUpdate:
    """A reading of a customer's run that differs from the one before."""

    status: str
    """The server's word."""
    text: str = ""
    """The server's error or progress text; empty if it says nothing."""
    waits_for_person: bool = False
    state: object = None
    """The reading as the API generation decodes it; JSON can encode it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RemainingWork:
    """The work that is left for a customer."""

    step: Progress = "waiting"
    files: int = 1
    """The number of files to upload."""
    age: float | None = None
    """Seconds for which the import has been running; None if it has not started."""
    is_repeated: bool = False
    """Whether a failed import is started again."""


def is_new(record: CustomerRecord | None, api: str) -> bool:
    """Return whether a customer has nothing on the server of `api` yet, so that names of its source are looked up."""
    if record is None:
        return True
    has_ended = isinstance(record.outcome, Delivered) or not record.is_readable
    return record.api == api and not record.ids and not has_ended


def status_of_outcome(outcome: Outcome, *, api: str = "companies") -> CustomerStatus:
    """Return the status of a customer whose call of `migrate` ended with `outcome`."""
    report = None if not isinstance(outcome, Delivered | Failed | Parked) else outcome.report
    files = outcome.files if isinstance(outcome, Delivered) else ()
    return CustomerStatus(
        external_id=outcome.external_id,
        name=outcome.name,
        api=api,
        outcome=cast("OutcomeName", outcome.__struct_config__.tag),
        pending_reason=outcome.reason if isinstance(outcome, Pending) else None,
        step=_last_step(outcome),
        ids=outcome.ids,
        error=None if isinstance(outcome, Delivered) else outcome.error,
        files=tuple(
            SheetFile(
                sheet=each.sheet,
                path=each.path,
                rows=each.rows,
                bytes=each.size,
                flagged=each.flagged,
                is_verified=each.is_verified,
            )
            for each in files
        ),
        rows=RowCounts(
            inserted=report.inserted if report else None,
            flagged=report.invalid_rows if report else None,
            delivered=outcome.rows if isinstance(outcome, Delivered) else None,
        ),
        replaced_existing_data=outcome.replaced_existing_data if isinstance(outcome, Delivered) else None,
        notes=outcome.notes,
        destructive=outcome.destructive if isinstance(outcome, Parked) else (),
        seconds=round(outcome.seconds, 3),
    )


def _last_step(outcome: Outcome) -> Progress:
    if isinstance(outcome, Failed) and outcome.step:
        return outcome.step
    if isinstance(outcome, Delivered):
        return "ended"
    return "running" if "run" in outcome.ids else "waiting"


def unreadable_outcome(
    external_id: str, reason: str, *, name: str = "", ids: Mapping[str, str] | None = None
) -> Failed:
    """Return the outcome of a customer whose journal record this version cannot use."""
    return Failed(
        external_id=external_id,
        name=name,
        ids=ids or {},
        error=f"this version of asyncmig cannot read the customer's record in the journal ({reason}); the record "
        "was left as it is, and nothing was sent: use the version that wrote it, or restore a copy of the journal",
        step="checking",
    )


def unreadable_record(external_id: str, api: str, reason: str) -> CustomerRecord:
    """Return the record of a customer whose journal record this version cannot use."""
    outcome = unreadable_outcome(external_id, reason)
    return CustomerRecord(
        status=status_of_outcome(outcome, api=api), outcome=outcome, is_readable=False, has_started=True
    )
