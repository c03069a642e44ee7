"""How one customer's migration ended: a tagged union, each case a frozen struct that encodes to JSON."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Literal

import msgspec

from asyncmig.companies.downloads import Downloaded, RowFilter
from asyncmig.companies.imports import Custom
from asyncmig.companies.wire import Action, ImportReport, NeedsAttention

__all__ = ["Decide", "Decision", "Delivered", "Failed", "Outcome", "Parked", "Pending", "Policy", "Unknown"]


class _Common(msgspec.Struct, frozen=True, kw_only=True):
    external_id: str
    name: str
    company_id: str | None = None
    run_id: str | None = None
    seconds: float = 0.0
    """On the loop's clock, in this process."""
    notes: tuple[str, ...] = ()
    """What the user should know besides: a file that changed since, a row that was renamed."""


class Delivered(_Common, frozen=True, kw_only=True, tag="delivered"):
    """The import completed and its sheets are on disk."""

    files: tuple[Downloaded, ...]
    row_filter: RowFilter = "valid"
    """Which rows the files hold."""
    report: ImportReport | None = None


class Failed(_Common, frozen=True, kw_only=True, tag="failed"):
    """The run failed, or the server or the input says that it cannot be done; `error` is the reason."""

    error: str
    report: ImportReport | None = None


class Parked(_Common, frozen=True, kw_only=True, tag="parked"):
    """The run asks something that the policy leaves to a person."""

    attention: NeedsAttention
    report: ImportReport | None = None

    @property
    def destructive(self) -> tuple[Action, ...]:
        """The actions of the proposed patch that destroy rows, or may."""
        patch = self.attention.proposed_patch
        return tuple(action for action in patch.actions if action.is_destructive) if patch else ()

    @property
    def error(self) -> str:
        """What it waits for, in one sentence."""
        count = len(self.attention.questions)
        lost = f", {len(self.destructive)} of the proposed actions destroy rows" if self.destructive else ""
        return f"waits for a decision: {count} question{'s' * (count != 1)}{lost}"


class Unknown(_Common, frozen=True, kw_only=True, tag="unknown"):
    """Nobody can tell whether a request was processed; `error` says what to do."""

    error: str
    sent: str = ""
    """The body of that request, without secrets."""


class Pending(_Common, frozen=True, kw_only=True, tag="pending"):
    """Not finished: interrupted, the key refused, the server away. The same call again goes on."""

    error: str


Outcome = Delivered | Failed | Parked | Unknown | Pending


class Decision(msgspec.Struct, frozen=True):
    """What to answer a parked run."""

    approve: bool
    answers: Mapping[str, str | Custom] | None = None


Decide = Callable[[Parked], Awaitable[Decision | None]]
"""Decides about a parked run; None leaves it parked."""
Policy = Literal["park", "approve_safe", "approve", "reject"] | Decide
