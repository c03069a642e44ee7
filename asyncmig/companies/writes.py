"""What travels for a destination export: what is asked, and what became of each write. See `wire` for the habits."""

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
    """What a destination export did. A run completes even when writes failed.

    The server counts, and it lists; where the two disagree, the worse one is believed.
    """

    mode: str | None = None
    total: int | None = None
    """Writes, as the server counts them."""
    succeeded: int | None = None
    failed_count: int | None = field(name="failed", default=None)
    """Failed writes, as the server counts them; `failed` has those that it lists."""
    results: tuple[ExportResult, ...] = ()

    @property
    def failed(self) -> tuple[ExportResult, ...]:
        """Writes that the destination refused, or that never got there."""
        return tuple(result for result in self.results if result.is_failed)

    @property
    def hollow(self) -> tuple[ExportResult, ...]:
        """Writes that the destination accepted, and whose fields it did not keep."""
        return tuple(result for result in self.results if result.is_hollow)

    @property
    def unverified(self) -> tuple[ExportResult, ...]:
        """Writes that went well as far as anybody knows: nobody looked whether the fields were kept."""
        return tuple(result for result in self.results if result.is_unverified)

    @property
    def unlisted(self) -> int:
        """Writes that were counted and not listed: nobody can tell whether they are hollow."""
        return max(0, (self.total or 0) - len(self.results))

    @property
    def unlisted_failures(self) -> int:
        """Failed writes that were counted and not listed."""
        short = 0 if self.total is None or self.succeeded is None else self.total - self.succeeded
        listed = sum(result.is_failed or result.ok is False for result in self.results)
        return max(0, max(self.failed_count or 0, short) - listed)

    @property
    def is_clean(self) -> bool:
        """Whether no write failed or is hollow, as far as the report says; some may be unverified."""
        return not self.failed and not self.hollow and not self.unlisted_failures


class ExportState(HasStatus, frozen=True, kw_only=True):
    """One reading of an export run."""

    run_id: str | None = None
    progress_message: str | None = None
    """What it does at present, for people."""
    report: ExportReport | None = None
    error: str | None = None


def summary_of(mode: ExportMode, run_id: str, report: ExportReport | None) -> ExportSummary:
    """Return what a report says; where it counts more losses than it lists, the count holds."""
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
