"""The names of a migration's steps, of its outcomes, and of the entries of its log.

Events, journal records, statuses, reports and the live view use these names for every API generation. The field
`detail` beside a step has the details of a generation. A generation that writes a new kind of log entry adds its name
to `Entry`, and the step after it to `STEP_AFTER`.
"""

from collections.abc import Mapping
from typing import Final, Literal, get_args

__all__ = [
    "ACTIVE",
    "CHART_BARS",
    "OUTCOMES",
    "STEPS",
    "STEP_AFTER",
    "ChartBar",
    "Entry",
    "OutcomeName",
    "Progress",
    "Remark",
    "Step",
]

Step = Literal[
    "checking", "creating", "uploading", "starting", "running", "deciding", "downloading", "exporting"
]
"""The steps of a migration in progress, in order."""
Progress = Literal["waiting", Step, "ended"]
"""The progress of a migration. A failed migration stays at the step that failed."""
OutcomeName = Literal["delivered", "failed", "parked", "unknown", "pending"]
"""The names of outcomes in JSON, in journals and on the command line. `pending`: the migration has not ended."""
Remark = Literal["retrying", "recovered"]
"""The log entries that change no step."""
ChartBar = Literal["preparing", "uploading", "running", "parked", "downloading"]
"""The kinds of bars in the charts of the HTML report."""
Entry = (
    Literal[
        "input",
        "create",
        "refused",
        "created",
        "adopt",
        "uploads expired",
        "upload",
        "uploaded",
        "start",
        "waits for another import",
        "started",
        "found",
        "new epoch",
        "connect",
        "connected",
        "previewed",
        "blocked",
        "answer",
        "answered",
        "executed",
        "cancel",
        "canceled",
        "decide",
        "decided",
        "decided elsewhere",
        "export again",
        "export",
        "export started",
        "exported",
    ]
    | OutcomeName
    | Remark
)
"""The kinds of log entries."""

CHART_BARS: Final[Mapping[Step, ChartBar]] = {
    "checking": "preparing",
    "creating": "preparing",
    "uploading": "uploading",
    "starting": "preparing",
    "running": "running",
    "deciding": "parked",
    "downloading": "downloading",
    "exporting": "downloading",
}
"""The kind of bar in which the charts show each step."""
ACTIVE: Final[tuple[Step, ...]] = get_args(Step)
"""The steps of a migration in progress, in order."""
STEPS: Final[tuple[Progress, ...]] = get_args(Progress)
"""All values of `Progress`, in order."""
OUTCOMES: Final[tuple[OutcomeName, ...]] = get_args(OutcomeName)
"""All outcomes, in the order in which summaries list them."""
STEP_AFTER: Final[Mapping[str, Step | OutcomeName]] = {
    "input": "checking",
    "create": "creating",
    "refused": "creating",
    "created": "uploading",
    "adopt": "uploading",
    "uploads expired": "uploading",
    "upload": "uploading",
    "uploaded": "uploading",
    "start": "starting",
    "waits for another import": "starting",
    "started": "running",
    "found": "running",
    "new epoch": "uploading",
    "connect": "uploading",
    "connected": "uploading",
    "previewed": "running",
    "blocked": "deciding",
    "answer": "deciding",
    "answered": "running",
    "executed": "downloading",
    "cancel": "deciding",
    "canceled": "deciding",
    "decide": "deciding",
    "decided": "running",
    "decided elsewhere": "running",
    "export again": "exporting",
    "export": "exporting",
    "export started": "exporting",
    "exported": "exporting",
    "delivered": "delivered",
    "failed": "failed",
    "parked": "parked",
    "unknown": "unknown",
    "pending": "pending",
}
"""The step or outcome of a customer after each kind of log entry."""
