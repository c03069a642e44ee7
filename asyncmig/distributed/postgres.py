"""The PostgreSQL journal, under its public path."""

from asyncmig.journal.postgres import PostgresJournal

__all__ = ["PostgresJournal"]
