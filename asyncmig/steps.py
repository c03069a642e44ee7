"""The names of a migration's steps, of its outcomes, and of the entries of its log.

Events, journal records, statuses, reports and the live view use these names for every API generation. The field
`detail` beside a step has the details of a generation. A generation that writes a new kind of log entry adds its name
to the `Literal` of the step after it.
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
_Creating = Literal["create", "refused"]
_Uploading = Literal[
    "created", "adopt", "uploads expired", "upload", "uploaded", "new epoch", "connect", "connected"
]
_Starting = Literal["start", "waits for another import"]
_Running = Literal["started", "found", "previewed", "answered", "decided", "decided elsewhere"]
_Deciding = Literal["blocked", "answer", "cancel", "canceled", "decide"]
_Exporting = Literal["export again", "export", "export started", "exported"]
Entry = (
    Literal["input", _Creating, _Uploading, _Starting, _Running, _Deciding, "executed", _Exporting]
    | OutcomeName
    | Remark
)
"""The kinds of log entries, by the step after them."""

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
_ENTRIES: Final[Mapping[Step, object]] = {
    "checking": Literal["input"],
    "creating": _Creating,
    "uploading": _Uploading,
    "starting": _Starting,
    "running": _Running,
    "deciding": _Deciding,
    "downloading": Literal["executed"],
    "exporting": _Exporting,
}
STEP_AFTER: Final[Mapping[str, Step | OutcomeName]] = {
    **{entry: step for step, entries in _ENTRIES.items() for entry in get_args(entries)},
    **{outcome: outcome for outcome in OUTCOMES},
}
"""The step or outcome of a customer after each kind of log entry."""
