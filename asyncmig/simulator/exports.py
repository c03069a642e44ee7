"""Destination exports: rows written to the customer's new system, some of them refused, some hollow."""

from dataclasses import dataclass
from random import Random
from typing import final

from asyncmig.simulator.messages import Json
from asyncmig.simulator.tables import Table
from asyncmig.simulator.variants import Variants

__all__ = ["ExportRun"]


@final
@dataclass(slots=True, kw_only=True)
class ExportRun:
    """One export. Like an import it is computed from `now`, without timers."""

    id: str
    created_at: float
    mode: str
    tables: list[Table]
    connected: bool
    rng: Random
    variants: Variants
    settles_at: float = 0.0
    _results: list[Json] | None = None

    def __post_init__(self) -> None:
        rows = sum(len(table.rows) for table in self.tables)
        self.settles_at = self.created_at + 5.0 + (1.0 if self.mode == "canary" else 0.1 * rows)

    def status(self, now: float) -> str:
        if now < self.settles_at:
            return "running"
        return "completed" if self.connected else "failed"

    def describe(self, now: float) -> Json:
        """Return the run as a read shows it."""
        status = self.status(now)
        if status == "running":
            return {"status": status, "progress_message": "Writing"}
        if status == "failed":
            return {"status": status, "error": "No destination is connected"}
        if self._results is None:
            self._results = [self._write(table) for table in self.tables for _ in self._chosen(table)]
        failed = sum(not result["ok"] for result in self._results)
        report = {
            "mode": self.mode,
            "total": len(self._results),
            "succeeded": len(self._results) - failed,
            "failed": failed,
            "results": self._results[: self.variants.listed_writes],
        }
        return {"status": status, "report": report}

    def _chosen(self, table: Table) -> list[list[str]]:
        return table.rows[:1] if self.mode == "canary" else table.rows

    def _write(self, table: Table) -> Json:
        fate, odds = self.rng.random(), self.variants
        fails = fate < odds.failed_writes
        hollow = not fails and fate < odds.failed_writes + odds.hollow_writes
        unread = fails or (not hollow and fate > 1.0 - odds.unread_writes)
        return {
            "template_id": table.schema.id if table.schema else None,
            "path": f"/{table.name.lower()}",
            "status": 422 if fails else 201,
            "ok": not fails,
            "error": "the destination refused the record" if fails else None,
            "fields_confirmed": None if unread else not hollow,
        }
