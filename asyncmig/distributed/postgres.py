"""The journal in PostgreSQL, under its public path; see `asyncmig.journal.postgres`. Needs the extra `postgres`."""

from asyncmig.journal.postgres import PostgresJournal

__all__ = ["PostgresJournal"]
