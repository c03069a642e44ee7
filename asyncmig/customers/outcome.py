"""How a customer's migration ended: a tagged union, each case a frozen struct that can be encoded as JSON."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Literal

import msgspec
from msgspec import Struct, field

from asyncmig.customers.decisions import Decision
from asyncmig.customers.questions import Action, NeedsAttention
from asyncmig.steps import Step

__all__ = [
    "LONGEST_ERROR",
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
    "shortened",
]


LONGEST_ERROR = 10_000
"""Characters of an error that the journal and the reports store. The rest of a longer one is left out."""


def shortened(error: str) -> str:
    """Return an error of at most `LONGEST_ERROR` characters; a longer one ends with the number of those left out."""
    if len(error) <= LONGEST_ERROR:
        return error
    kept = LONGEST_ERROR - 50
    return f"{error[:kept]}... ({len(error) - kept:,} more characters)"


RowFilter = Literal["valid", "all"]
"""Which rows a download contains: `"valid"` leaves out each row with a bad cell, `"all"` leaves out none."""


Flagged = Literal["none", "included", "unknown"]
"""Whether a file has rows with a bad cell: it has none, it has them all, or nothing tells."""


class Downloaded(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A sheet that was downloaded to a file."""

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
    """The number of rows of a sheet."""

    template_name: str | None = field(name="templateName", default=None)
    sheet_id: str | None = field(name="sheetId", default=None)
    rows: int | None = field(name="rowCount", default=None)


class ImportReport(Struct, frozen=True, kw_only=True, gc=False):
    """The counts of an import. While its run is parked, `inserted` counts valid rows only."""

    inserted: int | None = None
    per_sheet: tuple[SheetCount, ...] = field(name="perSheet", default=())
    invalid_rows: int | None = field(name="invalidCellCount", default=None)
    """Rows with at least one bad cell. The API calls this field a cell count, but it counts rows."""


class ExportResult(Struct, frozen=True, kw_only=True):
    """The result of writing one record to the destination: failed, hollow, unverified or confirmed."""

    template_id: str | None = None
    path: str | None = None
    status: int | None = None
    """The HTTP status of the destination's response."""
    ok: bool | None = None
    error: str | None = None
    fields_confirmed: bool | None = None
    """Whether reading the record back returned its fields; None if it was not read back."""

    @property
    def is_hollow(self) -> bool:
        """Whether the destination accepted the record but did not store its fields."""
        return self.fields_confirmed is False and (self._is_2xx or (self.status is None and self.ok is True))

    @property
    def is_failed(self) -> bool:
        """Whether the record was not written, as the server or the destination's response says."""
        if self.is_hollow:
            return False
        refused = not self._is_2xx if self.status is not None else self.ok is None and self.error is not None
        return self.ok is False or refused

    @property
    def is_unverified(self) -> bool:
        """Whether the record may have been written, without a confirmation."""
        return self.fields_confirmed is not True and not self.is_hollow and not self.is_failed

    @property
    def _is_2xx(self) -> bool:
        return self.status is not None and 200 <= self.status < 300


ExportMode = Literal["canary", "full"]
"""Which rows are exported to the destination: the first one of each template, or all. A canary comes first."""


class ExportSummary(msgspec.Struct, frozen=True, kw_only=True):
    """An export to the customer's destination, with the records that were lost."""

    mode: ExportMode
    run_id: str
    total: int | None = None
    """The number of records; None if the server did not say."""
    failed: int = 0
    """The number of records that the destination refused."""
    hollow: int = 0
    """The number of records that the destination accepted without storing their fields."""
    lost: tuple[ExportResult, ...] = ()
    """The failed and hollow records that the server lists."""
    reported: bool = True
    """Whether the server returned a report of the export."""

    @property
    def losses(self) -> int:
        """The number of records that the destination lacks, or has without their fields."""
        return self.failed + self.hollow

    @property
    def is_clean(self) -> bool:
        """Whether there is a report, without a loss."""
        return self.reported and not self.losses

    @property
    def trouble(self) -> str:
        """The reason why the export is not clean, as text."""
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
    """The duration of the call, on the loop's clock."""
    notes: tuple[str, ...] = ()
    """Further information for the user, for example that a file has changed since the import began."""


class Delivered(_Common, frozen=True, kw_only=True, tag="delivered"):
    """The import completed, its sheets were downloaded, and the requested exports were made."""

    files: tuple[Downloaded, ...]
    row_filter: RowFilter = "valid"
    """Which rows the files contain."""
    report: ImportReport | None = None
    exports: tuple[ExportSummary, ...] = ()
    rows: int = 0
    """The number of rows of all files. `rows`, `flagged` and `losses` are computed from the other fields."""
    flagged: int | None = None
    """Rows of the import with at least one bad cell; None if the server does not say."""
    replaced_existing_data: bool | None = None
    """Whether the import replaced rows that were there before; None if the server does not say."""
    losses: int = 0
    """The number of records that the destination lost; `exports` lists them."""

    def __post_init__(self) -> None:
        computed: dict[str, int | None] = {
            "rows": sum(file.rows for file in self.files),
            "flagged": self.report.invalid_rows if self.report else None,
            "losses": sum(each.losses for each in self.exports),
        }
        for name, value in computed.items():
            msgspec.structs.force_setattr(self, name, value)


class _Stopped(_Common, frozen=True, kw_only=True):
    error: str
    """The reason, for people; at most `LONGEST_ERROR` characters."""

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "error", shortened(self.error))


class Failed(_Stopped, frozen=True, kw_only=True, tag="failed"):
    """The run failed, the server refused a request, or the input is wrong; `error` is the reason."""

    report: ImportReport | None = None
    step: Step | Literal[""] = ""
    """The step that failed; empty in a journal of an earlier version."""
    status: str | None = None
    """The status with which the import's run ended, `failed` or `canceled`; None if something else failed."""
    files: tuple[Downloaded, ...] = ()
    """The sheets that were downloaded: before an export failed, or after an import was rejected."""
    exports: tuple[ExportSummary, ...] = ()


class Parked(_Common, frozen=True, kw_only=True, tag="parked"):
    """The run waits for a person's decision. `attention` contains its questions and the proposed patch."""

    attention: NeedsAttention
    report: ImportReport | None = None
    destructive: tuple[Action, ...] = ()
    """The actions of the proposed patch that destroy rows, or may."""
    refused: str = ""
    """Why a decision of the `decide` function was not sent; empty if there was no decision."""

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "destructive", self.attention.destructive)

    @property
    def error(self) -> str:
        """What the run waits for, in one sentence with the text of the first question."""
        asked = self._asked()
        what = "answer" if self.attention.kind == "questions" else "decision"
        return f"{asked} (no {what} was sent: {self.refused})" if self.refused else asked

    def _asked(self) -> str:
        attention, questions = self.attention, self.attention.questions
        if attention.kind == "credentials":
            request = attention.credentials
            name = request and (request.source_name or request.source_key)
            return f"waits for credentials: {name}" if name else "waits for credentials"
        if attention.kind == "preview":
            cells = attention.preview.invalid_cells if attention.preview else 0
            bad = f"{cells} invalid cell{'s' * (cells != 1)} in the sample" if cells else "no invalid cells"
            return f"waits for the approval of its preview: {bad}"
        if attention.kind == "questions" and not questions:
            return f"waits for the provider: {attention.reason or 'the run shows no question'}"
        count = len(questions)
        lost = f"; {len(self.destructive)} of the proposed actions destroy rows" if self.destructive else ""
        first = " ".join((questions[0].prompt or "").split()) if questions else ""
        wanted = "answers" if attention.kind == "questions" else "a decision"
        asked = f"waits for {wanted} ({count} question{'s' * (count != 1)}{lost})"
        return f"{asked}{': ' if count == 1 else ', first: '}{first}" if first else asked


class Unknown(_Stopped, frozen=True, kw_only=True, tag="unknown"):
    """It is unknown whether the server processed a request. `error` says what happened and what to do."""

    sent: str = ""
    """The body of the request, without secrets."""
    advice: str = ""
    """The part of `error` that says what to do."""


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
- `crashed`: an unexpected exception, for example in the function that decides. The same call would raise it again:
  correct the cause first.
"""


class Pending(_Stopped, frozen=True, kw_only=True, tag="pending"):
    """The migration has not ended. The same call continues it. After `reason="crashed"`, correct the cause first."""

    reason: PendingReason = "interrupted"


Outcome = Delivered | Failed | Parked | Unknown | Pending
"""How a migration ended. Distinguish the cases by `match` or `isinstance`."""


Reviewed = Literal["sent", "recorded", "gone", "changed"]
"""The result of a decision: it was sent; it was recorded, and the next call of `migrate` sends it; or it was not
sent, because the run now asks nothing (`gone`) or something else (`changed`)."""
Decide = Callable[[Parked], Awaitable[Decision | None]]
"""Decides about a parked run. None: the run stays parked."""
Policy = Literal["park", "approve_safe", "approve", "reject"] | Decide
"""What to do with a run that waits for a decision; see `MigrationOptions.decide`."""
