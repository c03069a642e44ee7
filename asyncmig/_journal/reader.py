"""Reading, by a connection of its own: it sees what was committed, and stops nobody."""

from dataclasses import dataclass
from pathlib import Path
from typing import final

from asyncmig._journal.file import Connect, open_for_reading

__all__ = ["Event", "read_events", "read_states"]


@final
@dataclass(frozen=True, slots=True)
class Event:
    """One line of the log. `seq` grows; `at` is the wall-clock of the commit, ISO 8601 in UTC."""

    seq: int
    external_id: str
    at: str
    kind: str
    detail: bytes


def read_states(path: Path, connect: Connect) -> dict[str, bytes]:
    """Return the state of each company that has one. Raises `JournalError`."""
    query = "SELECT external_id, state FROM companies WHERE state IS NOT NULL ORDER BY id"
    with open_for_reading(path, connect) as db:
        return dict(db.execute(query))


def read_events(path: Path, connect: Connect, external_id: str | None, after: int, limit: int) -> list[Event]:
    """Return events in order; a negative `limit` is none. Raises `JournalError`."""
    query = """SELECT seq, external_id, at, kind, detail FROM events JOIN companies ON companies.id = company
        WHERE seq > ? AND (? IS NULL OR external_id = ?) ORDER BY seq LIMIT ?"""
    with open_for_reading(path, connect) as db:
        return [Event(*row) for row in db.execute(query, (after, external_id, external_id, limit))]
