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

from collections.abc import Collection
from datetime import UTC, datetime
from typing import ClassVar, final

import msgspec

from asyncmig._core.lifecycle import Phase
from asyncmig._core.secrets import HidesSecrets
from asyncmig.migrations.log import LogRun
from asyncmig.migrations.routes import RUN
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
class Operation:
    """One operation of a run, from its start to its end.

    `kind`: None for a run that was opened by its id, for which every reading counts. `after`: the last sequence of
    the thread before the request; None if unknown. `before`: the last reading before the request; None if unknown.
    `earlier_runs`: the runs that were there before the request: a start that was not acknowledged may have begun
    another one. `is_new_run`: the start returned the id of another run. A read may still show the old run's end for
    a while, because some servers show one run under both ids.
    `is_acknowledged`: the server has confirmed the start; otherwise it was inferred from what the server shows.
    """

    __slots__ = (
        "_before",
        "_has_events",
        "_is_answered",
        "_is_in_log",
        "_is_new_run",
        "_is_newer",
        "after",
        "earlier_runs",
        "is_acknowledged",
        "kind",
        "requested_at",
    )

    def __init__(
        self,
        kind: Kind | None,
        *,
        now: float,
        after: int | None = None,
        before: RunState | None = None,
        is_new_run: bool = False,
        is_acknowledged: bool = False,
        earlier_runs: Collection[str] = (),
    ) -> None:
        self.kind: Kind | None = kind
        self.after: int | None = after
        self.requested_at: float = now
        self.is_acknowledged: bool = is_acknowledged
        self.earlier_runs: Collection[str] = earlier_runs
        self._before = None if is_new_run else before
        self._is_answered = False
        self._is_new_run = is_new_run
        self._is_newer = kind in (None, "generate")
        self._has_events = self._is_in_log = False

    def answered(self, state: RunState | None, *, now: float, after: int | None) -> None:
        """Report that an answer to the block in `state` was accepted."""
        self._before, self.requested_at, self._is_answered = state, now, True
        self.after = self.after if after is None else after
        self._is_newer = self._has_events = self._is_in_log = self._is_new_run = False

    def saw_event(self, sequence: int | None) -> None:
        """Report an event of the thread."""
        if sequence is not None and (self.after is None or sequence > self.after):
            self._has_events = True

    def saw_log(self) -> None:
        """Report that the log lists this operation as ended: a block that a read still shows is an old one."""
        self._is_in_log = True

    def effective(self, state: RunState, now: float) -> str:
        """Return the status that this reading shows of this operation; `running` if the reading is old."""
        phase = RUN.phase(state.status)
        if phase is Phase.ACTIVE:
            self._is_newer = True
        elif phase is Phase.PARKED:
            is_echo = self._before is not None and block_of(state) == block_of(self._before)
            if is_echo and not self._is_newer and now < self.requested_at + LAG:
                return _RUNNING
            self._is_newer = True
        elif not self._is_end(state, now):
            return _RUNNING
        return state.status

    def is_asked_again(self, state: RunState) -> bool:
        """Return whether a block is the one that was answered."""
        return self._is_answered and self._before is not None and block_of(state) == block_of(self._before)

    def _is_end(self, state: RunState, now: float) -> bool:
        if self._is_newer or self._is_in_log or self.kind is None:
            return True
        before = self._before
        if state.status in ("failed", "canceled"):
            return before is None or before.status != state.status or self._has_evidence(now)
        if self.kind == "generate":
            return True
        is_fresh = now >= self.requested_at + LAG
        if self._is_new_run:
            return is_fresh
        if is_fresh and before and (before.status, before.report) != (state.status, state.report):
            return True  # also an end that this kind does not have: another client resumed the run
        if state.status not in _ENDS[self.kind]:
            return False
        if self.kind == "execute":
            if state.report is None:
                return False  # the end of an earlier operation; only a later reading or the log can tell otherwise
            is_other = before is not None and before.report != state.report
            return is_other or self._has_evidence(now)  # the old report may look the same
        if self._is_answered:  # it was blocked, which no state before the operation was
            return self._has_evidence(now) or now >= self.requested_at + LAG
        return self._has_evidence(now)

    def _has_evidence(self, now: float) -> bool:
        return self._is_newer or (self._has_events and now >= self.requested_at + LAG)


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
