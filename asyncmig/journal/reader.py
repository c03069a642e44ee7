"""Reading, by a connection of its own: it sees what was committed, and stops nobody."""

from dataclasses import dataclass
from pathlib import Path
from typing import final

from asyncmig.errors import JournalError
from asyncmig.journal.file import Connect, open_for_reading
from asyncmig.journal.lease import Holder, Moment, Renewal

__all__ = ["Activity", "Event", "check_file", "read_activity", "read_events", "read_states"]


@final
@dataclass(frozen=True, slots=True)
class Event:
    """One line of the log. `seq` grows; `at` is the wall-clock of the commit, ISO 8601 in UTC."""

    seq: int
    external_id: str
    at: str
    kind: str
    detail: bytes


@final
@dataclass(frozen=True, slots=True)
class Activity:
    """Who works on a company, and when something was last written about it (ISO 8601 in UTC)."""

    at: str | None
    holder: str | None
    """A process that lives; None if nobody works on it."""


def read_states(path: Path, connect: Connect) -> dict[str, bytes]:
    """Return the state of each company that has one. Raises `JournalError`."""
    query = "SELECT external_id, CAST(state AS BLOB) FROM companies WHERE state IS NOT NULL ORDER BY id"
    with open_for_reading(path, connect) as db:
        return dict(db.execute(query))


def read_events(path: Path, connect: Connect, external_id: str | None, after: int, limit: int) -> list[Event]:
    """Return events in order; a negative `limit` is none. Raises `JournalError`."""
    query = """SELECT seq, external_id, at, kind, CAST(detail AS BLOB)
        FROM events JOIN companies ON companies.id = company
        WHERE seq > ? AND (? IS NULL OR external_id = ?) ORDER BY seq LIMIT ?"""
    with open_for_reading(path, connect) as db:
        return [Event(*row) for row in db.execute(query, (after, external_id, external_id, limit))]


def read_activity(path: Path, connect: Connect) -> dict[str, Activity]:
    """Return the activity of each company. Raises `JournalError`."""
    query = """SELECT external_id,
        (SELECT at FROM events WHERE company = companies.id ORDER BY seq DESC LIMIT 1), holder FROM companies"""
    with open_for_reading(path, connect) as db:
        now = Moment.now()
        renewals = (
            Renewal(Holder(*row[:7]), row[7], Moment(*row[8:])) for row in db.execute("SELECT * FROM holders")
        )
        alive = {
            renewal.holder.instance: renewal.describe(now) for renewal in renewals if not renewal.is_over(now)
        }
        return {external_id: Activity(at, alive.get(holder)) for external_id, at, holder in db.execute(query)}


def check_file(path: Path, connect: Connect) -> None:
    """Read the whole file; raise `JournalError` if anything in it is damaged."""
    with open_for_reading(path, connect) as db:
        found = [str(row[0]) for row in db.execute("PRAGMA quick_check(3)")]
    if found != ["ok"]:
        raise JournalError(str(path), f"the file is damaged; keep a copy of it ({'; '.join(found)})")
