"""Decides which reading of a run is newer than our last request that changed it.

`update`, `clarify` and `execute` resume a run under the id that it had before. After such a request, and after an
answer, a read may still show the old state for a while. So an end, or a block, counts only after evidence that it is
newer than the request:

- a read showed `queued`, `running` or an unknown status, or another block;
- the thread has an event after the sequence that was noted before the request, and `LAG` seconds have passed, because
  it may be our own message, or a late event of the previous operation;
- the reading differs from the old state, and only this operation can have caused it: a report after `execute`, a
  failure, a cancellation.

If the response to a start was lost, the same question is whether the run or the log shows anything that is newer than
the start: `is_newer` and `newest` compare them with the `StartPoint`.

Nothing here awaits. Times are seconds on the caller's clock.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import ClassVar, final

import msgspec

from asyncmig._core.lifecycle import Phase
from asyncmig._core.secrets import HidesSecrets
from asyncmig.errors import UnknownOutcome
from asyncmig.migrations.log import LogRun
from asyncmig.migrations.routes import RUN, START_RUN
from asyncmig.migrations.wire import Kind, RunState

__all__ = [
    "LAG",
    "Operation",
    "StartPoint",
    "block_of",
    "is_credentials",
    "is_newer",
    "mark_of",
    "moment_of",
    "newest",
    "unknown_start",
]

LAG = RUN.read_lag
"""Seconds for which a read may show an old state."""
_RUNNING = "running"
_ENDS = {
    "update": frozenset({"awaiting_approval"}),
    "clarify": frozenset({"awaiting_approval", "completed"}),
    "execute": frozenset({"completed"}),
}
"""The statuses in which an operation ends regularly."""


def block_of(state: RunState) -> bytes | None:
    """Return what identifies a block: its reason, its questions and its request for credentials; None if not blocked.

    Ids of questions may start again in the next block, so their texts count.
    """
    if RUN.phase(state.status) is not Phase.PARKED:
        return None
    return msgspec.json.encode((state.blocked_reason, state.questions, state.credential_request))


def is_credentials(state: RunState) -> bool:
    """Return whether a blocked run waits for credentials."""
    return state.blocked_reason == "credentials" or (
        not state.questions and state.credential_request is not None
    )


@final
@dataclass(slots=True, kw_only=True, eq=False)
class Operation:
    """One operation of a run, from its start to its end."""

    kind: Kind | None
    """None for a run that was opened by its id, for which every reading counts."""
    requested_at: float
    after: int | None = None
    """The last sequence of the thread before the last request; None if unknown."""
    before: RunState | None = None
    """The last reading before that request; None if unknown."""
    earlier_runs: Collection[str] = ()
    """The runs that were there before the start: one that was not acknowledged may have begun another run."""
    is_new_run: bool = False
    """Whether the start returned the id of another run. A read may still show the old run's end for a while, because
    some servers show one run under both ids."""
    is_acknowledged: bool = False
    """Whether the server has confirmed the start; otherwise it was inferred from what the server shows."""
    unlisted: int = field(default=0, init=False)
    """How many settled logs did not list the operation, whose start was not acknowledged."""
    _is_answered: bool = field(default=False, init=False)
    _is_newer: bool = field(default=False, init=False)
    _has_events: bool = field(default=False, init=False)
    _is_in_log: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self._is_newer = self.kind in (None, "generate")
        if self.is_new_run:
            self.before = None

    def answered(self, state: RunState, *, now: float, after: int | None) -> None:
        """Report that an answer to the block in `state` was accepted."""
        self.before, self.requested_at, self._is_answered = state, now, True
        self.after = self.after if after is None else after
        self._is_newer = self._has_events = self._is_in_log = self.is_new_run = False

    def saw_event(self, sequence: int | None) -> None:
        """Report an event of the thread."""
        if sequence is not None and (self.after is None or sequence > self.after):
            self._has_events = True

    def saw_log(self, entries: Sequence[LogRun], run_id: str) -> str:
        """Take the settled log into account. Return the id of the run, which may be another one in the log."""
        last = entries[-1] if entries else LogRun()
        is_executed = self.kind == "execute" and last.outcome is not None
        is_other = last.run_id and not self.is_acknowledged and last.run_id not in self.earlier_runs
        follows = bool(self.earlier_runs) or run_id in [entry.run_id for entry in entries[:-1]]
        if (last.kind == self.kind or is_executed) and (last.run_id == run_id or (is_other and follows)):
            self._is_in_log = True
            return last.run_id
        self.unlisted += not self.is_acknowledged
        return run_id

    def effective(self, state: RunState, now: float) -> str:
        """Return the status that this reading shows of this operation; `running` if the reading is old."""
        phase = RUN.phase(state.status)
        if phase is Phase.ACTIVE:
            self._is_newer = True
        elif phase is Phase.PARKED:
            is_echo = self.before is not None and block_of(state) == block_of(self.before)
            if is_echo and not self._is_newer and now < self.requested_at + LAG:
                return _RUNNING
            self._is_newer = True
        elif not self._is_end(state, now):
            return _RUNNING
        return state.status

    def is_asked_again(self, state: RunState) -> bool:
        """Return whether a block is the one that was answered."""
        return self._is_answered and self.before is not None and block_of(state) == block_of(self.before)

    def _is_end(self, state: RunState, now: float) -> bool:
        if self._is_newer or self._is_in_log or self.kind in (None, "generate"):
            return True
        before, is_fresh = self.before, now >= self.requested_at + LAG
        has_evidence = self._has_events and is_fresh
        if state.status in ("failed", "canceled"):
            return before is None or before.status != state.status or has_evidence
        if self.is_new_run:
            return is_fresh
        if is_fresh and before and (before.status, before.report) != (state.status, state.report):
            return True  # also an end that this kind does not have: another client resumed the run
        if state.status not in _ENDS[self.kind]:
            return False
        if self.kind == "execute":
            if state.report is None:
                return False  # the end of an earlier operation; only a later reading or the log can tell otherwise
            if before is not None and before.report != state.report:
                return True
        return has_evidence  # the old preview or report may look the same


# Evidence of a start whose response was lost


class StartPoint(HidesSecrets, frozen=True, kw_only=True):
    """What was known before a start. With it, another process can find out whether the start happened.

    It has no read-back of answers, which may be secrets.
    """

    kind: Kind
    after: int
    """The last sequence of the thread; -1 without events."""
    run_id: str | None = None
    """The run that is resumed; None for `generate`, or if unknown."""
    state: RunState | None = None
    """The last reading of that run."""
    logged: tuple[str, ...] | None = None
    """What identifies the runs in the log; None if the log could not be read."""
    logged_ids: tuple[str, ...] = ()
    """The ids of the runs in the log."""
    at: str | None = None
    """The time on the server's clock, ISO 8601, as its log says; None if the log could not be read."""
    message: str | None = None
    """The message of an update or a clarify, which the thread may show."""

    _SHOWN: ClassVar = ("kind", "after", "run_id", "at")


def unknown_start(kind: Kind | None, reason: str) -> UnknownOutcome:
    """Return the error for a start of which the server does not show whether it happened."""
    route = START_RUN
    return UnknownOutcome(route.method, route.template, reason, f'{{"kind":"{kind}"}}', route.advice)


def mark_of(entry: LogRun) -> str:
    """Return what changes if a run, or an operation of it, is added to the log or ends in it."""
    parts = (entry.run_id, entry.kind, entry.status, entry.started_at, entry.completed_at)
    return f"{parts} {entry.outcome is not None}"


def moment_of(text: str | None) -> datetime | None:
    """Return a time of the server; None if it cannot be read."""
    try:
        moment = datetime.fromisoformat(text or "")
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def is_newer(point: StartPoint, state: RunState) -> bool:
    """Return whether a run is in progress, or has another end than before."""
    if RUN.phase(state.status) is not Phase.TERMINAL:
        return True
    before = point.state
    return before is not None and (before.status, before.report) != (state.status, state.report)


def newest(entries: tuple[LogRun, ...], point: StartPoint) -> LogRun | None:
    """Return the newest entry of this kind that was not in the log before."""
    known = point.logged or ()
    for entry in reversed(entries):
        is_old_run = point.kind == "generate" and entry.run_id == point.run_id
        # A log may have one entry for a run, of which `execute` only adds the outcome.
        is_executed = point.kind == "execute" and entry.outcome is not None
        is_kind = entry.kind == point.kind or is_executed
        if is_kind and entry.run_id and not is_old_run and mark_of(entry) not in known:
            return entry
    return None
