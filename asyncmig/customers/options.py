"""What a caller wants of a migration besides the migration: decisions, rows, repeats, exports."""

from dataclasses import dataclass
from pathlib import Path
from typing import final, get_args

from asyncmig._core.arguments import check_fields
from asyncmig.customers.outcome import ExportMode, Policy, RowFilter
from asyncmig.errors import InvalidInput

__all__ = ["MigrationOptions"]

_POLICIES = ("park", "approve_safe", "approve", "reject")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class MigrationOptions:
    """See `migrate` for what they mean. Raises `InvalidInput` for a value that is none."""

    decide: Policy = "park"
    row_filter: RowFilter = "valid"
    retries: int = 0
    retry_failed: bool = False
    deliver_rejected: bool = False
    export: ExportMode | None = None
    root: Path | str | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if not callable(self.decide) and self.decide not in _POLICIES:
            raise InvalidInput("decide", self.decide, f"is neither a function nor one of {list(_POLICIES)}")
        if self.row_filter not in get_args(RowFilter):
            raise InvalidInput("row_filter", self.row_filter, "is neither 'valid' nor 'all'")
        if self.retries < 0:
            raise InvalidInput("retries", self.retries, "must not be negative")
        if self.export is not None and self.export not in get_args(ExportMode):
            raise InvalidInput("export", self.export, "is neither None nor 'canary' nor 'full'")

    @property
    def may_reject(self) -> bool:
        """Whether it was perhaps this policy that rejected an import."""
        return callable(self.decide) or self.decide == "reject"

    @property
    def exports(self) -> tuple[ExportMode, ...]:
        """The exports to make, in their order."""
        modes = get_args(ExportMode)
        return modes[: modes.index(self.export) + 1] if self.export else ()
