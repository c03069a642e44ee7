"""The options of a migration: what to do at a decision, which rows to deliver, how often to retry, what to export."""

import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Final, Literal, TypedDict, cast, final, get_args

from asyncmig._core.arguments import check_fields
from asyncmig.customers.answer_rules import AnswerRule, checked_rules
from asyncmig.customers.outcome import ExportMode, Policy, RowFilter
from asyncmig.customers.paths import Inputs
from asyncmig.customers.spec import Spec
from asyncmig.errors import InvalidInput

__all__ = [
    "RETRY_SECONDS",
    "IfChanged",
    "MigrationCall",
    "MigrationKeywords",
    "MigrationOptions",
    "OptionOverrides",
    "Turn",
    "combined",
    "overrides",
]

Turn = Callable[[], Awaitable[None]]
"""An async function that returns when the customer may send its first request."""
RETRY_SECONDS: Final = 900.0
"""The default of `MigrationOptions.retry_seconds`, in seconds."""
IfChanged = Literal["ignore", "refuse", "import_again"]
"""What to do with files that have changed since their import."""
_POLICIES = ("park", "approve_safe", "approve", "reject")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class MigrationOptions:
    """The options of `migrate`, `Fleet` and the workers of a queue. Raises `InvalidInput` for a wrong value."""

    decide: Policy = "park"
    """What to do when the run asks for a decision: `"park"` ends the call with `Parked`; `"approve_safe"` approves a
    proposal that destroys no rows, and parks otherwise; `"approve"` and `"reject"` always do so. Or a function, async
    or not, that takes the `Parked` outcome and returns a `Decision`, or None to park."""
    row_filter: RowFilter = "valid"
    """Which rows the delivered files contain."""
    retries: int = 0
    """The maximum number of times that a failed run is started again with the same files, counted over all calls. A
    rejected run is not started again if `decide` may reject."""
    retry_failed: bool = False
    """Start a customer again, once, that had failed before this call, regardless of `retries`."""
    deliver_rejected: bool = False
    """Download the rows that the server still returns after an import was rejected."""
    export: ExportMode | None = None
    """Export the rows to the customer's destination after delivery: `"canary"` exports the first row of each
    template; `"full"` exports all rows, after a canary without losses. The outcome lists the rows that the
    destination lost. A repeat with the same idempotency key is not a second export. An export that is started again
    (`retries`) may write a record twice: that depends on the natural key of the destination's writer, which a client
    can neither see nor set."""
    answers: Sequence[AnswerRule] = ()
    """Rules that answer a run's questions in the API generation "migrations"; `read_answer_rules` reads them from a
    file. A question without a rule parks the customer, and nothing is answered."""
    cancel_blocked_after: float | None = None
    """Seconds after which a run that waits for a person is canceled, so that its run slot is free for another
    customer. The customer continues later with a new run. An execution is not canceled, because it may have written
    rows. None: no run is canceled. Only in "migrations"."""
    if_changed: IfChanged = "ignore"
    """What to do if files of a delivered or parked customer have changed since their import began. `"ignore"` keeps
    the outcome, with a note that is also logged. `"refuse"` raises `InvalidInput` with the names of the files from
    `migrate` and `Fleet.accept`, and gives this customer of a fleet a `Failed` outcome; the journal keeps the
    outcome. `"import_again"` imports the files again, for a parked customer after a rejection; the
    server may append their rows to those of the first import. "migrations" refuses that: it cannot replace files."""
    root: Path | str | None = None
    """A folder that must contain all files, after symbolic links are resolved."""
    retry_seconds: float = RETRY_SECONDS
    """Seconds for which a step is repeated while its requests fail, or while the journal is unavailable; only steps
    that are safe to repeat are. After that the outcome is `Pending` with the reason `server_away`, or `JournalError`
    is raised. While the server answers no request at all, there is no limit: drain the fleet or cancel the call to
    end the wait. `AttemptFailed` reports a failure and the end of the time (`until`), `Recovered` the success."""

    def __post_init__(self) -> None:
        check_fields(self)
        if not callable(self.decide) and self.decide not in _POLICIES:
            raise InvalidInput("decide", self.decide, f"is neither a function nor one of {list(_POLICIES)}")
        if self.row_filter not in get_args(RowFilter):
            raise InvalidInput("row_filter", self.row_filter, "is neither 'valid' nor 'all'")
        if self.retries < 0:
            raise InvalidInput("retries", self.retries, "must not be negative")
        if not 0 <= self.retry_seconds < math.inf:
            raise InvalidInput("retry_seconds", self.retry_seconds, "must be a finite number of seconds")
        if self.cancel_blocked_after is not None and not 0 < self.cancel_blocked_after < math.inf:
            reason = "must be a finite number of seconds above 0"
            raise InvalidInput("cancel_blocked_after", self.cancel_blocked_after, reason)
        object.__setattr__(self, "answers", checked_rules(self.answers))
        if self.if_changed not in get_args(IfChanged):
            raise InvalidInput("if_changed", self.if_changed, f"is not one of {list(get_args(IfChanged))}")
        if self.export is not None and self.export not in get_args(ExportMode):
            raise InvalidInput("export", self.export, "is neither None nor 'canary' nor 'full'")

    @property
    def may_reject(self) -> bool:
        """Whether `decide` may reject an import."""
        return callable(self.decide) or self.decide == "reject"

    @property
    def exports(self) -> tuple[ExportMode, ...]:
        """The exports to make, in order."""
        modes = get_args(ExportMode)
        return modes[: modes.index(self.export) + 1] if self.export else ()


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class MigrationCall:
    """What one call of `Generation.migrate` migrates, and how."""

    spec: Spec
    to: Path
    """The folder that gets the sheets."""
    options: MigrationOptions
    inputs: Inputs
    """The files of migrations that run at the same time; no sheet may replace them."""
    turn: Turn | None = None
    """Awaited after the files were read and before the first request."""


class OptionOverrides(TypedDict, total=False):
    """The fields of `MigrationOptions` that a job of a queue may override; the workers' options apply otherwise."""

    decide: Policy
    row_filter: RowFilter
    retries: int
    retry_failed: bool
    deliver_rejected: bool
    export: ExportMode | None
    if_changed: IfChanged
    answers: Sequence[AnswerRule]
    cancel_blocked_after: float | None
    retry_seconds: float


class MigrationKeywords(OptionOverrides, total=False):
    """The fields of `MigrationOptions` as keyword arguments."""

    root: Path | str | None


def overrides(options: MigrationOptions | None, keywords: OptionOverrides) -> OptionOverrides:
    """Return the fields of `options` that differ from their defaults, and the fields that `keywords` sets.

    Raises `InvalidInput` for a wrong value, for a function that decides, and for a `root`, which is the workers' own.
    """
    given, default = combined(options, cast("MigrationKeywords", keywords)), MigrationOptions()
    changed = {
        field.name: getattr(given, field.name)
        for field in fields(given)
        if field.name in keywords or getattr(given, field.name) != getattr(default, field.name)
    }
    if callable(given.decide):
        why = "is a function, which a queue cannot store: pass it to `worker_settings(options=...)`"
        raise InvalidInput("decide", given.decide, why)
    if "root" in changed:
        why = "is an option of the workers: pass it to `worker_settings(options=...)`"
        raise InvalidInput("root", str(given.root), why)
    return cast("OptionOverrides", changed)


def combined(options: MigrationOptions | None, keywords: MigrationKeywords) -> MigrationOptions:
    """Return `options` with the fields that `keywords` sets; raise `InvalidInput` for a wrong value.

    Raises `TypeError` for a keyword that is not a field, as a function without it would.
    """
    names = [field.name for field in fields(MigrationOptions)]
    if unknown := sorted(keywords.keys() - set(names)):
        raise TypeError(f"unexpected keyword argument {unknown[0]!r}; the options are {', '.join(names)}")
    if options is not None and not isinstance(options, MigrationOptions):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidInput("options", options, "must be MigrationOptions")
    return replace(options or MigrationOptions(), **keywords)
