"""`report.json`: the status of every customer, rewritten as a whole while the fleet runs."""

import asyncio
import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import final

import msgspec
from rich.console import Console

from asyncmig.cli.output import clean, counted, escaped, say, write_whole
from asyncmig.customers.outcome import Delivered, Downloaded, Outcome, Pending
from asyncmig.customers.status import CustomerRecord
from asyncmig.jobs.manifest import Manifest
from asyncmig.jobs.status import OUTCOMES
from asyncmig.session import Session

__all__ = [
    "Budget",
    "CustomerRow",
    "Report",
    "ReportFile",
    "RowCounts",
    "SheetFile",
    "budget_of",
    "by_reason",
    "read_statuses",
    "reason",
    "row_of",
    "warn_of_lost_journal",
]


_log = logging.getLogger("asyncmig")


class RowCounts(msgspec.Struct, frozen=True, kw_only=True):
    """What the import's own report says; null where it says nothing."""

    inserted: int | None = None
    flagged: int | None = None
    """Rows with at least one bad cell."""


class SheetFile(msgspec.Struct, frozen=True, kw_only=True):
    """A sheet that was delivered; `path` is relative to the folder of the report where it lies below it."""

    sheet: str
    path: str
    rows: int
    bytes: int


class CustomerRow(msgspec.Struct, frozen=True, kw_only=True):
    """How one customer stands."""

    external_id: str
    name: str
    outcome: str = "pending"
    error: str | None = None
    company_id: str | None = None
    run_id: str | None = None
    rows: RowCounts = RowCounts()
    files: tuple[SheetFile, ...] = ()
    seconds: float = 0.0
    notes: tuple[str, ...] = ()


class Budget(msgspec.Struct, frozen=True, kw_only=True):
    """The requests of this process."""

    requests: int = 0
    refused: int = 0
    """429s."""
    polls: int = 0
    """Requests that only looked whether a run has ended."""
    endpoints: dict[str, dict[str, int]] = {}
    """By endpoint: requests sent, and 429s where they are counted by endpoint."""
    limits: dict[str, dict[str, int]] = {}
    """By budget (`*`: one for the whole key): what was configured, and what the server is believed to allow."""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The whole file."""

    schema: int = 1
    companies: tuple[CustomerRow, ...]
    budget: Budget


@final
class ReportFile:
    """Keeps `report.json` up to date: atomically, at most about once in a second of the loop's clock."""

    __slots__ = ("_folder", "_path", "_rows", "_session", "_timer", "trouble")

    def __init__(self, folder: Path, manifest: Manifest, session: Session) -> None:
        self._folder, self._path, self._session = folder, folder / "report.json", session
        self._rows = {
            customer.external_id: CustomerRow(
                external_id=customer.external_id, name=customer.name, error="not finished"
            )
            for customer in manifest.customers
        }
        self._timer: asyncio.TimerHandle | None = None
        self.trouble: str | None = None
        """Why the last write was not possible; None if it was."""

    @property
    def rows(self) -> tuple[CustomerRow, ...]:
        """How every customer stands, in the order of the manifest."""
        return tuple(self._rows.values())

    def begin(self, records: Mapping[str, CustomerRecord]) -> None:
        """Take what the journal knows, and write the first report. Raises `OSError` if it cannot be written."""
        for external_id, record in records.items():
            if external_id not in self._rows:
                continue
            if record.outcome is not None:
                self._rows[external_id] = row_of(record.outcome, self._folder)
            self._know(external_id, record.ids.get("company"), record.ids.get("run"))
        self._folder.mkdir(parents=True, exist_ok=True)
        self._write()

    def add(self, outcome: Outcome) -> CustomerRow:
        """Take an outcome, and return how the customer stands now; the file follows soon."""
        before = self._rows[outcome.external_id]
        if isinstance(outcome, Pending) and before.outcome == "delivered":
            return before  # interrupted before its turn came: what was delivered earlier still is
        self._rows[outcome.external_id] = row_of(outcome, self._folder)
        self._know(outcome.external_id, before.company_id, before.run_id)
        if self._timer is None:
            pause = max(1.0, len(self._rows) / 1000)  # a large file is written less often
            self._timer = asyncio.get_running_loop().call_later(pause, self._write_later)
        return self._rows[outcome.external_id]

    def end(self, records: Iterable[CustomerRecord], reason: str | None) -> Report:
        """Take the ids that the journal has of unfinished customers, write the last report and return it.

        `reason`: why those that began nothing are pending.
        """
        for record in records:
            if record.external_id in self._rows:
                self._know(record.external_id, record.ids.get("company"), record.ids.get("run"))
        for external_id, row in self._rows.items():
            if reason and row.outcome == "pending" and row.error == "not finished":
                self._rows[external_id] = msgspec.structs.replace(row, error=reason)
        return self._write_later()

    def _know(self, external_id: str, company_id: str | None, run_id: str | None) -> None:
        row = self._rows[external_id]
        self._rows[external_id] = msgspec.structs.replace(
            row, company_id=row.company_id or company_id, run_id=row.run_id or run_id
        )

    def _write_later(self) -> Report:
        """Write, or remember why that was not possible: the fleet goes on all the same."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        try:
            report, self.trouble = self._write(), None
        except OSError as error:
            report, self.trouble = self._report(), f"{self._path} cannot be written: {error}"
            _log.warning("%s", self.trouble)
        return report

    def _write(self) -> Report:
        report = self._report()
        text = msgspec.json.format(msgspec.json.encode(report), indent=1).decode()
        write_whole(self._path, f"{escaped(text)}\n".encode())
        return report

    def _report(self) -> Report:
        return Report(companies=self.rows, budget=budget_of(self._session))


def warn_of_lost_journal(journal: Path, folder: Path, words: Console) -> None:
    """Warn if the report in `folder` lists deliveries and there is no journal of them."""
    if journal.exists() and journal.stat().st_size:
        return
    try:
        report = msgspec.json.decode((folder / "report.json").read_bytes(), type=Report)
    except (OSError, ValueError, RecursionError):
        return
    if delivered := sum(row.outcome == "delivered" for row in report.companies):
        say(
            words,
            f"warning: {journal} is missing or empty, but {folder}/report.json lists "
            f"{counted(delivered, 'customer')} as delivered. Was the journal lost, or is --journal wrong? Without it "
            "their companies are not found again. To stop, press Ctrl-C; then restore the journal.",
            "yellow",
        )


def read_statuses(folder: Path) -> dict[str, str]:
    """Return how the customers of the last report in `folder` stand; nothing if there is none that can be read."""
    try:
        report = msgspec.json.decode((folder / "report.json").read_bytes(), type=Report)
    except (OSError, msgspec.MsgspecError):
        return {}
    return {row.external_id: row.outcome for row in report.companies}


def row_of(outcome: Outcome, folder: Path) -> CustomerRow:
    """Return how a customer stands; paths of files are relative to `folder` where they lie below it."""
    report = getattr(outcome, "report", None)
    return CustomerRow(
        external_id=outcome.external_id,
        name=outcome.name,
        outcome=str(outcome.__struct_config__.tag),
        error=None if isinstance(outcome, Delivered) else outcome.error,
        company_id=outcome.company_id,
        run_id=outcome.run_id,
        rows=RowCounts(inserted=report.inserted, flagged=report.invalid_rows) if report else RowCounts(),
        files=tuple(_file(file, folder) for file in outcome.files) if isinstance(outcome, Delivered) else (),
        seconds=round(outcome.seconds, 3),
        notes=outcome.notes,
    )


def _file(file: Downloaded, folder: Path) -> SheetFile:
    path = Path(file.path)
    if path.is_relative_to(folder):
        path = path.relative_to(folder)
    return SheetFile(sheet=file.sheet, path=path.as_posix(), rows=file.rows, bytes=file.size)


def budget_of(session: Session) -> Budget:
    """Return what a session has spent so far."""
    stats = session.stats()
    endpoints: dict[str, dict[str, int]] = {}
    for (endpoint, lane), count in session.requests.items():
        entry = endpoints.setdefault(endpoint, {"requests": 0, "polls": 0, "refused": 0})
        entry["requests"] += count
        entry["polls"] += count * (lane == "POLL")
        entry["refused"] = stats[endpoint].refused if endpoint in stats else 0
    return Budget(
        requests=sum(entry["requests"] for entry in endpoints.values()),
        refused=sum(gate.refused for gate in stats.values()),
        polls=sum(entry["polls"] for entry in endpoints.values()),
        endpoints=dict(sorted(endpoints.items())),
        limits={
            name: {"limit": gate.limit, "believed": gate.slots, "burst": gate.burst, "refused": gate.refused}
            for name, gate in sorted(stats.items())
        },
    )


_NUMBER = re.compile(r"0x[0-9a-f]+|\d+|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def by_reason(companies: Sequence[CustomerRow]) -> list[list[CustomerRow]]:
    """Return customers of one outcome and reason together, the good ones first; numbers make no difference."""
    groups: defaultdict[tuple[str, str], list[CustomerRow]] = defaultdict(list)
    for company in companies:
        groups[company.outcome, _NUMBER.sub("#", reason(company))].append(company)
    return sorted(groups.values(), key=lambda group: (OUTCOMES.index(group[0].outcome), -len(group)))


def reason(company: CustomerRow) -> str:
    """Return why a customer is not delivered, as one line."""
    return "" if company.outcome == "delivered" else clean(company.error or "")
