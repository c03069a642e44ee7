"""How one customer's migration ended: a tagged union, each case a frozen struct that encodes to JSON."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Literal

import msgspec
from msgspec import Struct, field

from asyncmig.customers.decisions import Decision
from asyncmig.customers.questions import Action, NeedsAttention
from asyncmig.steps import Step

__all__ = [
    "Decide",
    "Delivered",
    "Downloaded",
    "ExportMode",
    "ExportResult",
    "ExportSummary",
    "Failed",
    "Flagged",
    "ImportReport",
    "Outcome",
    "Parked",
    "Pending",
    "PendingReason",
    "Policy",
    "Reviewed",
    "RowFilter",
    "SheetCount",
    "Unknown",
]


RowFilter = Literal["valid", "all"]
"""Which rows a download contains: `"valid"` drops every row with a bad cell, `"all"` keeps them."""


Flagged = Literal["none", "included", "unknown"]
"""Whether a file has rows with a bad cell: it has none, it has them all, or nothing tells."""


class Downloaded(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One sheet on disk."""

    sheet: str
    path: str
    rows: int
    """Records below the header."""
    size: int
    """Bytes."""
    slug: str | None = None
    """The template's address, in an API generation that has slugs."""
    flagged: Flagged | None = None
    """Whether the file has rows with a bad cell, in an API generation that may not separate them."""
    is_verified: bool | None = None
    """Whether a count of the server confirms that no row is missing; None if it is checked in another way."""


class SheetCount(Struct, frozen=True, kw_only=True, gc=False):
    """How many rows one sheet got."""

    template_name: str | None = field(name="templateName", default=None)
    sheet_id: str | None = field(name="sheetId", default=None)
    rows: int | None = field(name="rowCount", default=None)


class ImportReport(Struct, frozen=True, kw_only=True, gc=False):
    """What an import did. While a run is parked, `inserted` counts valid rows only."""

    inserted: int | None = None
    per_sheet: tuple[SheetCount, ...] = field(name="perSheet", default=())
    invalid_rows: int | None = field(name="invalidCellCount", default=None)
    """Rows with at least one bad cell, whatever the field's name in the API suggests."""


class ExportResult(Struct, frozen=True, kw_only=True):
    """One write to the destination: failed, hollow, unverified, or confirmed."""

    template_id: str | None = None
    path: str | None = None
    status: int | None = None
    """The destination's answer."""
    ok: bool | None = None
    error: str | None = None
    fields_confirmed: bool | None = None
    """Whether the record was read back with its fields; None where nobody looked."""

    @property
    def is_hollow(self) -> bool:
        """Whether the destination said yes and did not keep the fields."""
        return self.fields_confirmed is False and (self._is_2xx or (self.status is None and self.ok is True))

    @property
    def is_failed(self) -> bool:
        """Whether it was not written: the server says so, or the destination's answer does."""
        if self.is_hollow:
            return False
        refused = not self._is_2xx if self.status is not None else self.ok is None and self.error is not None
        return self.ok is False or refused

    @property
    def is_unverified(self) -> bool:
        """Whether it may have been kept, and nobody confirms it."""
        return self.fields_confirmed is not True and not self.is_hollow and not self.is_failed

    @property
    def _is_2xx(self) -> bool:
        return self.status is not None and 200 <= self.status < 300


ExportMode = Literal["canary", "full"]
"""What is written to the destination, in this order: the first row of each template; everything."""


class ExportSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One export to the customer's destination, and every write that it lost."""

    mode: ExportMode
    run_id: str
    total: int | None = None
    """Writes, as far as the server says."""
    failed: int = 0
    """Writes that the destination refused."""
    hollow: int = 0
    """Writes that the destination accepted, and did not keep the fields."""
    lost: tuple[ExportResult, ...] = ()
    """Those that failed or are hollow, as far as the server lists them."""
    reported: bool = True
    """Whether the export came with a report."""

    @property
    def losses(self) -> int:
        """Writes that the destination has not, or not whole."""
        return self.failed + self.hollow

    @property
    def is_clean(self) -> bool:
        """Whether there is a report, and it speaks of no loss."""
        return self.reported and not self.losses

    @property
    def trouble(self) -> str:
        """Why it is not clean, in words."""
        if not self.reported:
            return f"the {self.mode} export has no report, so the result of its writes is unknown"
        writes = "the writes" if self.total is None else f"{self.total} writes"
        reason = next((f": {result.error}" for result in self.lost if result.error), "")
        return f"of {writes} of the {self.mode} export {self.failed} failed and {self.hollow} were hollow{reason}"


class _Common(msgspec.Struct, frozen=True, kw_only=True):
    external_id: str
    name: str
    ids: Mapping[str, str] = {}
    """The server's ids, by kind: `company` and `run` in the API generation "companies"."""
    seconds: float = 0.0
    """On the loop's clock, in this process."""
    notes: tuple[str, ...] = ()
    """What the user should know besides: a file that changed since, a row that was renamed."""


class Delivered(_Common, frozen=True, kw_only=True, tag="delivered"):
    """The import completed, its sheets are on disk, and what was to be exported was exported."""

    files: tuple[Downloaded, ...]
    row_filter: RowFilter = "valid"
    """Which rows the files hold."""
    report: ImportReport | None = None
    exports: tuple[ExportSummary, ...] = ()
    rows: int = 0
    """Of all files; told by them, like the next two, and here so that JSON has it."""
    flagged: int | None = None
    """Rows of the import with at least one bad cell; None if the server does not say."""
    losses: int = 0
    """Writes to the destination that it refused, or accepted and did not keep: `exports` lists them."""

    def __post_init__(self) -> None:
        told: dict[str, int | None] = {
            "rows": sum(file.rows for file in self.files),
            "flagged": self.report.invalid_rows if self.report else None,
            "losses": sum(each.losses for each in self.exports),
        }
        for name, value in told.items():
            msgspec.structs.force_setattr(self, name, value)


class Failed(_Common, frozen=True, kw_only=True, tag="failed"):
    """The run failed, or the server or the input says that it cannot be done; `error` is the reason."""

    error: str
    report: ImportReport | None = None
    step: Step | Literal[""] = ""
    """The step that failed; empty in a journal of an earlier version."""
    status: str | None = None
    """How the import's run ended, `failed` or `canceled`; None if that is not why."""
    files: tuple[Downloaded, ...] = ()
    """What came all the same: before an export that failed, or of an import that was rejected."""
    exports: tuple[ExportSummary, ...] = ()


class Parked(_Common, frozen=True, kw_only=True, tag="parked"):
    """The run asks something that the policy leaves to a person: `attention` has the questions and the patch."""

    attention: NeedsAttention
    report: ImportReport | None = None
    destructive: tuple[Action, ...] = ()
    """The actions of the proposed patch that destroy rows, or may."""
    refused: str = ""
    """Why the decision of the `decide` function was not sent; empty if it returned none or was not called."""

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "destructive", self.attention.destructive)

    @property
    def error(self) -> str:
        """What it waits for, in one sentence, with the text of the first question."""
        attention, questions = self.attention, self.attention.questions
        wrong = f" (the decision was not sent: {self.refused})" if self.refused else ""
        if attention.kind == "credentials":
            request = attention.credentials
            name = request and (request.source_name or request.source_key)
            return f"waits for credentials{wrong}" + (f": {name}" if name else "")
        if attention.kind == "preview":
            cells = attention.preview.invalid_cells if attention.preview else 0
            bad = f"{cells} invalid cell{'s' * (cells != 1)} in the sample" if cells else "no invalid cells"
            return f"waits for the approval of its preview{wrong}: {bad}"
        if attention.kind == "questions" and not questions:
            return f"waits for the provider{wrong}: {attention.reason or 'the run shows no question'}"
        count = len(questions)
        lost = f", {len(self.destructive)} of the proposed actions destroy rows" if self.destructive else ""
        first = " ".join((questions[0].prompt or "").split()) if questions else ""
        asked = f"waits for a decision{wrong}: {count} question{'s' * (count != 1)}{lost}"
        return f"{asked}: {first}" if first else asked


class Unknown(_Common, frozen=True, kw_only=True, tag="unknown"):
    """Nobody can tell whether a request was processed; `error` says what happened, and what to do."""

    error: str
    sent: str = ""
    """The body of that request, without secrets."""
    advice: str = ""
    """What to do, alone."""


PendingReason = Literal[
    "held",
    "interrupted",
    "canceled",
    "key_refused",
    "account_refused",
    "server_away",
    "no_run_slot",
    "crashed",
]
"""Why a migration has not ended:

- `held`: another live process works on the customer.
- `interrupted`: the session was closed, or this computer lacks disk space, file descriptors or memory.
- `canceled`: the caller stopped the work.
- `key_refused`: the server refused the API key (401).
- `account_refused`: the account may not start work (403).
- `server_away`: a step still failed after `MigrationOptions.retry_seconds` seconds.
- `no_run_slot`: other runs of the account occupy every run slot.
- `crashed`: an exception nobody expected, for example in the function that decides. The same call would raise it
  again: fix the cause first.
"""


class Pending(_Common, frozen=True, kw_only=True, tag="pending"):
    """Not ended. The same call continues, except after `reason="crashed"`: fix the cause first."""

    error: str
    reason: PendingReason = "interrupted"


Outcome = Delivered | Failed | Parked | Unknown | Pending
"""How one migration ended. Distinguish the cases by `match` or `isinstance`."""


Reviewed = Literal["sent", "recorded", "gone", "changed"]
"""What became of a decision: sent; written to the journal, so that the next call of `migrate` sends it; or not sent,
because the run asks nothing any more, or something else."""
Decide = Callable[[Parked], Awaitable[Decision | None]]
"""Decides about a parked run; None leaves it parked."""
Policy = Literal["park", "approve_safe", "approve", "reject"] | Decide
"""What happens when an import parks: it stays parked, a patch that destroys no rows is approved, any patch is
approved, any patch is rejected, or a function decides."""
