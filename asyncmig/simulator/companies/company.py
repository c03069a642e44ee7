"""One company on the server: its sheets, uploads, runs and idempotency keys, and what its clients did wrong.

The structs `...In` are the request bodies of the contract.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Annotated, Literal, final

import msgspec

from asyncmig.simulator.companies.runs import ExportRun, ImportRun
from asyncmig.simulator.companies.tables import Table
from asyncmig.simulator.companies.webhooks import Workbook
from asyncmig.simulator.server.ledger import BaseVerdict, Ledger, mistake, shared_counts
from asyncmig.simulator.server.messages import ExternalId, Filled, Json, Refusal
from asyncmig.simulator.server.tables import Rows, Unreadable, read_csv, to_table

__all__ = ["Company", "CompanyIn", "ExportIn", "ImportIn", "Upload", "UploadIn", "Verdict", "judge"]


class CompanyIn(msgspec.Struct, kw_only=True):
    name: Filled
    source: Filled
    external_id: ExternalId | None = None
    template_ids: list[str] | None = None
    connections: dict[str, msgspec.Raw] | None = None


class UploadIn(msgspec.Struct, kw_only=True):
    name: Filled
    content_type: Filled
    size: Annotated[int, msgspec.Meta(gt=0)]


class FileIn(msgspec.Struct, kw_only=True):
    name: Filled
    upload_ref: Filled


class ImportIn(msgspec.Struct, kw_only=True):
    idempotency_key: Filled
    files: list[FileIn] | None = None
    rows: list[dict[str, str | int | float | bool | None]] | None = None

    def payload(self, *, refs_count: bool = True) -> bytes:
        """Return the payload that an idempotency key identifies."""
        files = self.files if refs_count else [file.name for file in self.files or ()]
        return msgspec.json.encode([files, self.rows], order="deterministic")


class SelectionIn(msgspec.Struct, kw_only=True):
    template_ids: list[str] | None = None
    row_filter: str | None = None


class ExportIn(msgspec.Struct, kw_only=True):
    mode: Literal["full", "canary"]
    idempotency_key: Filled
    selection: SelectionIn | None = None

    def payload(self) -> bytes:
        """Return what an idempotency key stands for."""
        return msgspec.json.encode([self.mode, self.selection], order="deterministic")


@final
@dataclass(slots=True, kw_only=True)
class Upload:
    """One signed URL, and the bytes that came to it."""

    name: str
    content_type: str
    size: int
    expires_at: float
    content: bytes | None = None
    is_used: bool = False
    """An import has it."""


@final
@dataclass(slots=True, kw_only=True)
class Company:
    """The state of one company."""

    id: str
    name: str
    source: str
    external_id: str | None
    tables: list[Table]
    connected: bool = False
    workbook_id: str = ""
    uploads: dict[str, Upload] = field(default_factory=dict[str, Upload])
    runs: dict[str, ImportRun] = field(default_factory=dict[str, ImportRun])
    exports: dict[str, ExportRun] = field(default_factory=dict[str, ExportRun])
    keys: dict[str, tuple[bytes, str]] = field(default_factory=dict[str, tuple[bytes, str]])
    """Idempotency keys of imports and exports (under `i` and `e`): payload and run id."""

    def describe(self) -> Json:
        """Return the company as the response to its creation."""
        return {
            "id": self.id,
            "name": self.name,
            "external_id": self.external_id,
            "created_at": "2026-01-01T00:00:00Z",
        }

    def known(self, key: str, payload: bytes) -> str | None:
        """Return the run of an idempotency key; refuse another payload."""
        known, run_id = self.keys.get(key, (payload, None))
        if known != payload:
            raise Refusal(409, "The idempotency key was used with another payload")
        return run_id

    def workbook(self) -> Workbook:
        """Return the company's workbook, as webhooks deliver it."""
        return Workbook(
            id=self.workbook_id, company_name=self.name, external_id=self.external_id, tables=self.tables
        )

    def take_uploads(self, body: ImportIn, *, once: bool) -> None:
        """Mark the uploads of an import as used. Raises `Refusal` for an unknown one; with `once`, for a used one."""
        uploads = [self.uploads.get(file.upload_ref) for file in body.files or ()]
        for upload in uploads:
            if upload is None:
                raise Refusal(400, "upload_ref is not known")
            if once and upload.is_used:
                raise Refusal(400, "upload_ref was used by another import")
        for upload in uploads:
            if upload is not None:
                upload.is_used = True

    def rows_of(self, body: ImportIn, new_id: Callable[[], str]) -> list[tuple[Table, Rows]]:
        """Return the rows of `body` by table. For a file that fits no template, that is a new table.

        Raises `Unreadable` for bytes that are not CSV or never arrived.
        """
        schemas = [table.schema for table in self.tables if table.schema]
        found: list[tuple[Table, Rows]] = []
        for name, header, records in self._contents(body):
            schema, header, rows = to_table(header, records, schemas)
            table = next((each for each in self.tables if schema and each.schema is schema), None)
            if table is None:
                table = Table(sheet_id=new_id(), name=name.rsplit(".", 1)[0], schema=None, header=header)
            found.append((table, rows))
        return found

    def _contents(self, body: ImportIn) -> Iterator[tuple[str, list[str], Rows]]:
        """Yield name, header and records of each file of an import, or of its rows."""
        if body.rows:
            header = list(dict.fromkeys(name for row in body.rows for name in row))
            cells = [["" if row.get(n) is None else str(row[n]) for n in header] for row in body.rows]
            yield "Rows", header, cells
        for file in body.files or ():
            upload = self.uploads[file.upload_ref]
            if upload.content is None:
                raise Unreadable(f"{upload.name}: its bytes never arrived")
            yield upload.name, *read_csv(upload.name, upload.content)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict(BaseVerdict):
    """How often a client did what it should not do. `str(verdict)` says it in words: a clean one is "no faults"."""

    duplicate_imports: int = mistake("imports of rows that the company already had")
    duplicate_companies: int = mistake("companies created twice for one customer")
    duplicate_exports: int = mistake("exports started twice")
    """Exports of a company with the mode and selection of an earlier one, under another key."""
    polls_after_the_end: int = mistake("reads of a run that was known to have ended")
    hasty_polls: int = mistake("reads of a run too soon after the one before")
    """Sooner than `Ledger.shortest_pause` seconds."""
    blind_decisions: int = mistake("decisions about questions that were not read")
    unaccounted: int = mistake("imports whose end was never read")
    """For example because the test ended before."""


def judge(companies: Collection[Company], ledger: Ledger, now: float) -> Verdict:
    """Return the number of duplicates, of unread ends, and of the faults in the ledger."""
    unread = duplicates = exports = 0
    for company in companies:
        asked = [payload for key, (payload, _) in company.keys.items() if key.startswith("e")]
        exports += len(asked) - len(set(asked))
        good: set[str] = set()
        for run in company.runs.values():
            run.status(now)
            unread += run.ended and run.id not in ledger.detection
            inserted = run.failure is None and not run.canceled
            duplicates += inserted and run.digest in good
            good |= {run.digest} if inserted else set()
    names = Counter((company.name, company.source) for company in companies)
    shown = {(run_id, park) for run_id, readings in ledger.readings.items() for _, park in readings}
    times = [[at for at, _ in readings] for readings in ledger.readings.values()]
    return Verdict(
        **shared_counts(ledger),
        duplicate_imports=duplicates,
        duplicate_companies=sum(count - 1 for count in names.values()),
        duplicate_exports=exports,
        polls_after_the_end=sum(
            at > ended for run_id, ended in ledger.end_read_at.items() for at, _ in ledger.readings[run_id]
        ),
        hasty_polls=sum(
            late - early < ledger.shortest_pause for reads in times for early, late in pairwise(reads)
        ),
        blind_decisions=sum(decision not in shown for decision in ledger.decisions),
        unaccounted=unread,
    )
