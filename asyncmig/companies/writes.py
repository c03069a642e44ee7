"""The payloads of destination exports: the request, and the report on each write. See `wire` for the conventions."""

from msgspec import UNSET, Struct, UnsetType, field

from asyncmig._core.lifecycle import HasStatus
from asyncmig.customers.outcome import ExportMode, ExportResult, ExportSummary

__all__ = ["ExportBody", "ExportReport", "ExportState", "Selection", "summary_of"]


class Selection(Struct, frozen=True, kw_only=True, omit_defaults=True):
    template_ids: tuple[str, ...] | UnsetType = UNSET
    row_filter: str | UnsetType = UNSET


class ExportBody(Struct, frozen=True, kw_only=True, omit_defaults=True):
    mode: str
    idempotency_key: str
    selection: Selection | UnsetType = UNSET


class ExportReport(Struct, frozen=True, kw_only=True):
    """The report of a destination export. A run completes even if writes failed.

    The report has counts and a list. If they disagree, the worse one is used.
    """

    mode: str | None = None
    total: int | None = None
    """The number of writes, as the server counts them."""
    succeeded: int | None = None
    failed_count: int | None = field(name="failed", default=None)
    """The number of failed writes, as the server counts them; `failed` has those that it lists."""
    results: tuple[ExportResult, ...] = ()

    @property
    def failed(self) -> tuple[ExportResult, ...]:
        """Writes that the destination refused or never received."""
        return tuple(result for result in self.results if result.is_failed)

    @property
    def hollow(self) -> tuple[ExportResult, ...]:
        """Writes that the destination accepted without keeping the fields."""
        return tuple(result for result in self.results if result.is_hollow)

    @property
    def unverified(self) -> tuple[ExportResult, ...]:
        """Writes that succeeded but were not read back."""
        return tuple(result for result in self.results if result.is_unverified)

    @property
    def unlisted(self) -> int:
        """The number of writes that were counted but not listed; they may be hollow."""
        return max(0, (self.total or 0) - len(self.results))

    @property
    def unlisted_failures(self) -> int:
        """The number of failed writes that were counted but not listed."""
        short = 0 if self.total is None or self.succeeded is None else self.total - self.succeeded
        listed = sum(result.is_failed or result.ok is False for result in self.results)
        return max(0, max(self.failed_count or 0, short) - listed)

    @property
    def is_clean(self) -> bool:
        """Whether the report shows no failed and no hollow write. Some writes may be unverified."""
        return not self.failed and not self.hollow and not self.unlisted_failures


class ExportState(HasStatus, frozen=True, kw_only=True):
    """One reading of an export run."""

    run_id: str | None = None
    progress_message: str | None = None
    """The current activity, as text for people."""
    report: ExportReport | None = None
    error: str | None = None


def summary_of(mode: ExportMode, run_id: str, report: ExportReport | None) -> ExportSummary:
    """Return the summary of a report. If it counts more losses than it lists, the count is used."""
    found = report or ExportReport()
    return ExportSummary(
        mode=mode,
        run_id=run_id,
        reported=report is not None,
        total=found.total,
        failed=len(found.failed) + found.unlisted_failures,
        hollow=len(found.hollow),
        lost=(*found.failed, *found.hollow),
    )
