"""A durable record of what was done for each customer; a killed run resumes from it.

`Journal` keeps it in an SQLite file, `MemoryJournal` in this process, `asyncmig.distributed.postgres.PostgresJournal`
in a PostgreSQL database. A journal stores bytes and does not know what they mean.
"""

from asyncmig.journal.memory import MemoryClaim, MemoryJournal
from asyncmig.journal.ports import ClaimPort, JournalPort
from asyncmig.journal.reader import Activity, Event
from asyncmig.journal.sqlite import Claim, Journal

__all__ = [
    "Activity",
    "Claim",
    "ClaimPort",
    "Event",
    "Journal",
    "JournalPort",
    "MemoryClaim",
    "MemoryJournal",
]
