"""What a run writes for programs: `report.json`, and the events that `--json` prints.

`report.json` has the status of every customer and the requests sent. It is rewritten while the fleet runs.

`--json` prints one JSON object per line (NDJSON). Each line has `schema` (2), `type`, `time` (wall clock, ISO 8601 in
UTC) and `at` (seconds since the start of the command, on the loop's clock). The first line is `Begun`, the last
`Ended`. Between them are the events of the session, with the names of their classes, and an `Outcome` per customer
with the fields of `report.json`. Later versions may add fields and types.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import cast, final

import msgspec

from asyncmig._core.limits import Rate
from asyncmig.cli.output import SCHEMA, escaped, print_line
from asyncmig.customers.files import write_whole
from asyncmig.customers.outcome import Outcome, Pending
from asyncmig.customers.status import CustomerRecord, CustomerStatus, SheetFile, status_of_outcome
from asyncmig.events import Event, RequestDone, RequestSent
from asyncmig.jobs.manifest import Manifest
from asyncmig.jobs.status import status_of
from asyncmig.session import Session

__all__ = [
    "Budget",
    "BudgetUse",
    "EventPrinter",
    "Report",
    "ReportFile",
    "SavedReport",
    "read_outcomes",
    "read_report",
    "reported",
]

_log = logging.getLogger("asyncmig")
_NOT_FINISHED = "not finished"


class BudgetUse(msgspec.Struct, frozen=True, kw_only=True):
    """The use of one budget by this process. Reports of earlier versions lack some of the fields."""

    limit: int = 0
    """The configured limit."""
    window: float = 0.0
    """The seconds in which the limit applies; 0 if the report does not say."""
    believed: int = 0
    """The limit learned from 429s and headers."""
    burst: int = 0
    """The requests that may be sent at once."""
    used: int = 0
    """The slots of the last window that were taken when the report was written."""
    requests: int = 0
    refused: int = 0
    """429s."""

    @property
    def rate(self) -> str:
        """The limit with its window, such as `30/60s`; without a known window only the limit."""
        return str(Rate(self.limit, self.window)) if self.limit > 0 and self.window > 0 else str(self.limit)


class Budget(msgspec.Struct, frozen=True, kw_only=True):
    """The requests that this process sent."""

    requests: int = 0
    refused: int = 0
    """429s."""
    polls: int = 0
    """Requests that only read the status of a run."""
    endpoints: dict[str, dict[str, int]] = {}
    """By endpoint: requests, polls, and 429s if the limit applies to each endpoint."""
    limits: dict[str, BudgetUse] = {}
    """By name of the budget; `*` is the budget of the whole key."""
    run_slots: dict[str, int] | msgspec.UnsetType = msgspec.UNSET
    """The limit of runs in progress, those that were known at the end, and 429s; absent if no run slot was used."""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The content of `report.json`."""

    schema: int = SCHEMA
    customers: tuple[CustomerStatus, ...]
    budget: Budget


class SavedCustomer(msgspec.Struct, frozen=True, kw_only=True):
    """What asyncmig reads of a customer in a `report.json`."""

    external_id: str
    outcome: str = "pending"


class SavedReport(msgspec.Struct, frozen=True, kw_only=True):
    """What asyncmig reads of an existing `report.json`, of schema 1 (`companies`) or 2 (`customers`)."""

    customers: tuple[SavedCustomer, ...] = ()
    companies: tuple[SavedCustomer, ...] = ()
    budget: Budget = Budget()

    @property
    def outcomes(self) -> dict[str, str]:
        """The outcome of each customer, by external id."""
        return {each.external_id: each.outcome for each in (*self.customers, *self.companies)}


@final
class ReportFile:
    """Keeps `report.json` up to date: each write is atomic, at most about one per second of the loop's clock."""

    __slots__ = ("_folder", "_path", "_rows", "_session", "_timer", "trouble")

    def __init__(self, folder: Path, manifest: Manifest, session: Session, api: str) -> None:
        self._folder, self._path, self._session = folder, folder / "report.json", session
        self._rows = {
            customer.external_id: CustomerStatus(
                external_id=customer.external_id, name=customer.name, api=api, error=_NOT_FINISHED
            )
            for customer in manifest.customers
        }
        self._timer: asyncio.TimerHandle | None = None
        self.trouble: str | None = None
        """Why the last write failed; None if it did not."""

    @property
    def rows(self) -> tuple[CustomerStatus, ...]:
        """The status of every customer, in the order of the manifest."""
        return tuple(self._rows.values())

    def begin(self, records: Mapping[str, CustomerRecord]) -> None:
        """Take the statuses of the journal, and write the first report. Raises `OSError` if it cannot be written."""
        for external_id in self._rows.keys() & records.keys():
            self._rows[external_id] = reported(status_of(records[external_id]), self._folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._write()

    def add(self, outcome: Outcome) -> CustomerStatus:
        """Take an outcome, and return the customer's status; the file is written within seconds."""
        before = self._rows[outcome.external_id]
        if isinstance(outcome, Pending) and before.outcome == "delivered":
            return before  # a run that is interrupted before this customer's turn does not undo its delivery
        status = reported(status_of_outcome(outcome, api=before.api), self._folder)
        status = msgspec.structs.replace(status, ids={**before.ids, **status.ids})
        self._rows[outcome.external_id] = status
        if self._timer is None:
            pause = max(1.0, len(self._rows) / 1000)  # a large file is written less often
            self._timer = asyncio.get_running_loop().call_later(pause, self._write_later)
        return status

    def end(self, records: Iterable[CustomerRecord], reason: str | None) -> Report:
        """Take ids and steps of unfinished customers from the journal, write the last report and return it.

        `reason`: why customers that did not start are pending.
        """
        for record in records:
            if row := self._rows.get(record.external_id):
                held = status_of(record).holds_run_slot and row.outcome == "parked"
                row = msgspec.structs.replace(row, ids={**record.ids, **row.ids}, holds_run_slot=held)
                if row.outcome == "pending":
                    row = msgspec.structs.replace(row, step=record.status.step, detail=record.status.detail)
                self._rows[record.external_id] = row
        for external_id, row in self._rows.items():
            if reason and row.outcome == "pending" and row.error == _NOT_FINISHED:
                self._rows[external_id] = msgspec.structs.replace(row, error=reason)
        return self._write_later()

    def _write_later(self) -> Report:
        """Write the file; an error becomes a warning and `trouble`, and the fleet continues."""
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
        return Report(customers=self.rows, budget=_budget_of(self._session))


def read_report(folder: Path) -> SavedReport:
    """Return the `report.json` in `folder`. Raises `OSError`, or `ValueError` if it is malformed."""
    try:
        return msgspec.json.decode((folder / "report.json").read_bytes(), type=SavedReport)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_outcomes(folder: Path) -> dict[str, str]:
    """Return the outcome of each customer of the last report in `folder`; empty if no report can be read."""
    try:
        return read_report(folder).outcomes
    except (OSError, ValueError):
        return {}


def reported(status: CustomerStatus, folder: Path) -> CustomerStatus:
    """Return a status for a report in `folder`: paths below it are relative, and a pending customer has an error."""
    files: list[SheetFile] = []
    for file in status.files:
        path = Path(file.path)
        path = path.relative_to(folder) if path.is_relative_to(folder) else path
        files.append(msgspec.structs.replace(file, path=path.as_posix()))
    waits = status.outcome == "pending" and status.error is None
    error = _NOT_FINISHED if waits else status.error
    return msgspec.structs.replace(status, files=tuple(files), error=error)


def _budget_of(session: Session) -> Budget:
    """Return the requests that a session has sent so far."""
    stats, slots = session.stats(), session.run_slots()
    endpoints: dict[str, dict[str, int]] = {}
    for (endpoint, lane), count in sorted(session.requests.items()):
        entry = endpoints.setdefault(endpoint, {"requests": 0, "polls": 0, "refused": 0})
        entry["requests"] += count
        entry["polls"] += count * (lane == "POLL")
        entry["refused"] = stats[endpoint].refused if endpoint in stats else 0
    return Budget(
        requests=sum(entry["requests"] for entry in endpoints.values()),
        refused=sum(gate.refused for gate in stats.values()),
        polls=sum(entry["polls"] for entry in endpoints.values()),
        endpoints=endpoints,
        limits={
            name: BudgetUse(
                limit=gate.limit,
                window=gate.window,
                believed=gate.slots,
                burst=gate.burst,
                used=gate.used,
                requests=gate.granted,
                refused=gate.refused,
            )
            for name, gate in sorted(stats.items())
        },
        run_slots={
            "limit": slots.limit,
            "in_progress": len(slots.runs),
            "waits_for_person": len(slots.waits_for_person),
            "others": slots.others,
            "refused": slots.refused,
        }
        if slots.limit is not None and slots.was_used
        else msgspec.UNSET,
    )


def _wall_clock() -> str:
    """Return the wall-clock time, ISO 8601 in UTC with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@final
class EventPrinter:
    """Prints each event when it happens, until stdout is closed."""

    __slots__ = ("_abandoned", "_clock", "_epoch", "_read", "_requests", "_wall")

    def __init__(
        self,
        *,
        clock: Callable[[], float],
        wall: Callable[[], str] = _wall_clock,
        requests: bool = False,
        abandoned: Callable[[], None],
    ) -> None:
        """`clock`: the loop's clock. `wall`: returns the wall-clock time. `requests`: also print each request.

        `abandoned` is called once, when stdout cannot be written.
        """
        self._clock, self._wall, self._requests, self._abandoned = clock, wall, requests, abandoned
        self._epoch, self._read = clock(), True

    def begin(self, customers: int) -> None:
        """Print the first line."""
        self._write("Begun", {"version": version("asyncmig"), "customers": customers})

    def note(self, event: Event) -> None:
        """Print an event."""
        if not self._requests and isinstance(event, RequestSent | RequestDone):
            return
        fields = cast("dict[str, object]", msgspec.to_builtins(event))
        self._write(str(fields.pop("type")), fields)

    def outcome(self, row: CustomerStatus) -> None:
        """Print how one customer ended."""
        self._write("Outcome", cast("dict[str, object]", msgspec.to_builtins(row)))

    def end(self, customers: Sequence[CustomerStatus], *, exit_code: int, reason: str | None) -> None:
        """Print the last line."""
        outcomes = Counter(customer.outcome for customer in customers)
        self._write(
            "Ended", {"exit_code": exit_code, "reason": reason, "outcomes": dict(sorted(outcomes.items()))}
        )

    def _write(self, kind: str, fields: "dict[str, object]") -> None:
        if not self._read:
            return
        times = {"at": self._clock()}
        for name in ("at", "until"):
            if isinstance(value := fields.pop(name, None), float):
                times[name] = value
        since = {name: round(value - self._epoch, 3) for name, value in times.items()}
        line = {"schema": SCHEMA, "type": kind, "time": self._wall(), **since, **fields}
        try:
            print_line(line)
        except OSError:  # a stdout that is not guarded
            self._read = False
            self._abandoned()
