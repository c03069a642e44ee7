"""The words for a migration's progress: its steps, its outcomes, and the entries of its log.

Events, journal records, statuses, reports and the live view use these words, for every API generation. What a
generation adds to a step is the text `detail` beside it. A generation that writes a new kind of log entry adds its
name to `Entry`, and the step that follows it to `STEP_AFTER`.
"""

from collections.abc import Mapping
from typing import Final, Literal, get_args

__all__ = [
    "ACTIVE",
    "OUTCOMES",
    "PICTURED_AS",
    "STEPS",
    "STEP_AFTER",
    "Entry",
    "OutcomeName",
    "Picture",
    "Progress",
    "Remark",
    "Step",
]

Step = Literal[
    "checking", "creating", "uploading", "starting", "running", "deciding", "downloading", "exporting"
]
"""The steps of a migration in progress, in order."""
Progress = Literal["waiting", Step, "ended"]
"""How far a migration has come. A failed migration stays at the step at which it failed."""
OutcomeName = Literal["delivered", "failed", "parked", "unknown", "pending"]
"""The names of outcomes in JSON, journals and on the command line. `pending`: the migration has not ended."""
Remark = Literal["retrying", "recovered"]
"""The log entries that change no step."""
Picture = Literal["preparing", "uploading", "running", "parked", "downloading"]
"""The kinds of bars that the HTML report draws."""
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

PICTURED_AS: Final[Mapping[Step, Picture]] = {
    "checking": "preparing",
    "creating": "preparing",
    "uploading": "uploading",
    "starting": "preparing",
    "running": "running",
    "deciding": "parked",
    "downloading": "downloading",
    "exporting": "downloading",
}
"""The kind of bar for each step."""
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
