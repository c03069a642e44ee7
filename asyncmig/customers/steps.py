"""The steps of a migration and the entries of a journal's log: the table that status, report and live view use."""

from collections.abc import Mapping
from typing import Final, Literal

__all__ = ["ACTIVE", "OUTCOMES", "PICTURED_AS", "STEP_AFTER", "Entry", "OutcomeName", "Picture", "Step"]

Step = Literal[
    "checking", "creating", "uploading", "starting", "running", "deciding", "downloading", "exporting"
]
"""The steps of a migration in progress, in order."""
OutcomeName = Literal["delivered", "failed", "parked", "unknown", "pending"]
"""The names of outcomes in JSON, journals and on the command line."""
Remark = Literal["retrying", "recovered"]
"""Entries that change no step."""
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
        "uploaded",
        "start",
        "waits for another import",
        "started",
        "found",
        "new epoch",
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
"""What an entry of the log is called. Type checkers accept no other name where one is written."""

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
"""What the report draws for each step; in order."""
ACTIVE: Final = tuple(PICTURED_AS)
"""The steps of a migration that is under way, in order."""
OUTCOMES: Final[tuple[OutcomeName, ...]] = ("delivered", "failed", "parked", "unknown", "pending")
"""How a customer can stand; pending stands for everything that has not ended."""
STEP_AFTER: Final[Mapping[str, Step | OutcomeName]] = {
    "input": "checking",
    "create": "creating",
    "refused": "creating",
    "created": "uploading",
    "adopt": "uploading",
    "uploads expired": "uploading",
    "uploaded": "uploading",
    "start": "starting",
    "waits for another import": "starting",
    "started": "running",
    "found": "running",
    "new epoch": "uploading",
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
"""What a customer is at after each entry of the log."""
