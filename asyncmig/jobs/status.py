"""How the customers of a journal stand, read while others write it: for a status page as for a command line."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Protocol

import msgspec

from asyncmig.companies.failures import LastFailure
from asyncmig.companies.uploads import Uploaded
from asyncmig.companies.workflow.record import ExportStep, FileInput, Record, read_record
from asyncmig.customers.outcome import Decision, Delivered, Failed, Outcome, Parked
from asyncmig.customers.questions import Action, Custom
from asyncmig.customers.steps import ACTIVE, OUTCOMES
from asyncmig.journal import Activity, Event

__all__ = [
    "OUTCOMES",
    "STEPS",
    "CustomerStatus",
    "LogEntry",
    "Readable",
    "follow",
    "read_records",
    "read_standings",
    "standing",
    "timeline",
    "words_of",
]

STEPS = ("waiting", *ACTIVE, "ended")
"""How far a migration came, in order; one that failed stays at the step at which it did."""
_IDLE_LOOKS = 3
"""How often nobody may be at work, in looks one after the other, until a journal counts as left alone."""


class Readable(Protocol):
    """A journal that can say who works on what; it may be open for reading only."""

    async def states(self) -> dict[str, bytes]: ...
    async def activity(self) -> dict[str, Activity]: ...
    async def events(
        self, external_id: str | None = None, *, after: int = 0, limit: int | None = None
    ) -> list[Event]: ...


class CustomerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How one customer stands."""

    external_id: str
    name: str
    outcome: str = "pending"
    """delivered, failed, parked, unknown; pending for everything that has not ended."""
    step: str = "waiting"
    """One of `STEPS`: how far it came."""
    error: str | None = None
    """Why it is not delivered; None while nothing is wrong."""
    company_id: str | None = None
    run_id: str | None = None
    rows: int | None = None
    """Rows in the delivered files."""
    destructive: tuple[Action, ...] = ()
    """What a parked run proposes and what destroys rows, or may."""
    changed_at: str | None = None
    """Wall-clock time of the last change, ISO 8601 in UTC."""
    last_failure: LastFailure | None = None
    """The last attempt that failed and was repeated; `is_over` says whether the customer came further since."""
    held_by: str | None = None
    """The process that works on it now."""

    @property
    def is_over(self) -> bool:
        """Whether nothing more happens unless somebody does something."""
        return self.outcome != "pending" and self.held_by is None


class LogEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One event of a customer's log, for people."""

    at: str
    """Wall-clock time, ISO 8601 in UTC."""
    waited: float
    """Real seconds since the one before; 0 where the wall clock was set back."""
    kind: str
    words: str
    """What is to be said about it; text of the server's stands in it as it came."""


async def read_records(journal: "_States", path: str) -> dict[str, Record]:
    """Return how far each customer came, the oldest first. Raises `JournalError` if the journal cannot be read.

    A customer whose record this version cannot decode has a failed outcome with the reason; see `Record.is_readable`.
    """
    states = await journal.states()
    return {external_id: read_record(external_id, state) for external_id, state in states.items()}


async def read_standings(journal: Readable, path: str) -> list[CustomerStatus]:
    """Return how each customer of a journal stands, the oldest first. Raises `JournalError`."""
    records, activity = await read_records(journal, path), await journal.activity()
    known = [standing(record, activity.get(external_id)) for external_id, record in records.items()]
    unknown = [
        CustomerStatus(external_id=external_id, name="", changed_at=seen.at, held_by=seen.holder)
        for external_id, seen in activity.items()
        if external_id not in records and seen.holder
    ]
    return [*known, *unknown]


def standing(record: Record, seen: Activity | None = None) -> CustomerStatus:
    """Return how the customer of a record stands."""
    outcome, holder = record.outcome, seen.holder if seen else None
    if holder is not None and not isinstance(outcome, Delivered):
        outcome = None  # what it came to earlier is no news while somebody works on it
    return CustomerStatus(
        external_id=record.external_id,
        name=record.name,
        outcome=_kind(outcome),
        step=_step(record),
        error=None if outcome is None or isinstance(outcome, Delivered) else outcome.error,
        company_id=record.company_id,
        run_id=record.run_id,
        rows=outcome.rows if isinstance(outcome, Delivered) else None,
        destructive=outcome.destructive if isinstance(outcome, Parked) else (),
        last_failure=record.last_failure,
        changed_at=seen.at if seen else None,
        held_by=holder,
    )


def timeline(events: Sequence[Event]) -> Iterator[LogEntry]:
    """Yield what happened to one customer, with the real time between."""
    before: datetime | None = None
    for event in events:
        at = datetime.fromisoformat(event.at)
        waited = max(0.0, (at - before).total_seconds()) if before else 0.0
        yield LogEntry(at=event.at, waited=waited, kind=event.kind, words=words_of(event))
        before = at


def words_of(event: Event) -> str:
    """Return what is to be said about an event; text of the server's stands in it as it came."""
    return _words(event.kind, _detail(event))


async def follow(journal: Readable, *, after: int = 0, every: float = 1.0) -> AsyncIterator[Event]:
    """Yield events after number `after` as they are written, until no process works on the journal any more.

    Looks every so many seconds of the loop's clock. Raises `JournalError`.
    """
    idle = 0
    while idle < _IDLE_LOOKS:
        busy = any(seen.holder for seen in (await journal.activity()).values())
        events = await journal.events(after=after)
        for event in events:
            after = event.seq
            yield event
        idle = 0 if busy or events else idle + 1
        await asyncio.sleep(every)


class _States(Protocol):
    async def states(self) -> dict[str, bytes]: ...


class _Detail(msgspec.Struct, frozen=True, kw_only=True):
    """What an event may hold: the fields of the record that it changed, and a decision."""

    company_id: str | None = None
    run_id: str | None = None
    epoch: int | None = None
    files: tuple[FileInput, ...] = ()
    uploads: tuple[Uploaded, ...] = ()
    decision: Decision | None = None
    exports: tuple[ExportStep, ...] = ()
    last_failure: LastFailure | None = None
    attempts: int | None = None
    outcome: Outcome | None = None


def _kind(outcome: Outcome | None) -> str:
    return "pending" if outcome is None else str(outcome.__struct_config__.tag)


def _step(record: Record) -> str:
    if isinstance(record.outcome, Failed) and record.outcome.step:
        return record.outcome.step
    if record.run_id is not None:
        return "ended" if isinstance(record.outcome, Delivered) else "running"
    if record.import_body is not None:
        return "starting"
    if record.company_id is not None:
        return "uploading"
    return "creating" if record.creating else "waiting"


def _detail(event: Event) -> _Detail:
    """Return what an event holds, as far as it is of this version's making."""
    try:
        return msgspec.json.decode(event.detail, type=_Detail)
    except (ValueError, TypeError, RecursionError):
        return _Detail()


def _words(kind: str, detail: _Detail) -> str:
    match kind:
        case "create" | "start":
            return f"asks for the {'company' if kind == 'create' else 'import'}"
        case "created" | "adopt":
            return f"company {detail.company_id}" + (", as a person said" if kind == "adopt" else "")
        case "started" | "found":
            return f"run {detail.run_id}"
        case "input":
            return _files(detail.files)
        case "uploaded":
            return _files(detail.uploads[-1:])
        case "export" | "export started" | "exported":
            return _export(detail.exports[-1:])
        case "retrying":
            return detail.last_failure.words if detail.last_failure else ""
        case "recovered":
            return f"after {detail.attempts} attempts"
        case "decide":
            return _decision(detail.decision)
        case "new epoch":
            return f"import number {(detail.epoch or 0) + 1} of this company; {_files(detail.files)}"
        case _:
            outcome = detail.outcome
            return "" if outcome is None or isinstance(outcome, Delivered) else outcome.error


def _files(files: Sequence[FileInput | Uploaded]) -> str:
    names = [Path(file.path).name if isinstance(file, FileInput) else file.name for file in files]
    size = sum(file.size for file in files)
    return f"{', '.join(names[:3])}{', ...' if len(names) > 3 else ''} ({size:,} bytes)" if names else ""


def _export(steps: Sequence[ExportStep]) -> str:
    """Return the words for the export that an entry is about, which stands last."""
    return "".join(f"{step.mode}, run {step.run_id}" if step.run_id else step.mode for step in steps)


def _decision(decision: Decision | None) -> str:
    if decision is None:
        return ""
    given = [f"{question}={_choice(choice)}" for question, choice in (decision.answers or {}).items()]
    return " ".join(["approve" if decision.approve else "reject", *given])


def _choice(choice: str | Custom) -> str:
    return choice if isinstance(choice, str) else repr(choice.text)
