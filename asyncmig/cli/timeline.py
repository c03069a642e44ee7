"""What each customer did when, collected from the events of a session, for the charts of the HTML report.

Each customer has a bar of segments. Requests are counted by endpoint and minute, so that memory grows with customers
and minutes, not with requests. The module reads no clock and draws nothing.
"""

from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple, cast, final

from asyncmig.customers.steps import OUTCOMES, PICTURED_AS
from asyncmig.events import (
    Event,
    Held,
    MigrationChanged,
    RequestDone,
    RequestSent,
    RunChanged,
    RunEnded,
)

__all__ = ["KINDS", "Bar", "Hold", "Segment", "Timeline"]

KINDS: Final = ("limit", "preparing", "uploading", "running", "unnoticed", "parked", "downloading")
"""The kinds of segments, in the order of the legend."""
_PICTURES: Final = cast("Mapping[str, str]", PICTURED_AS)
_PARKED = "needs_attention"
_MINUTE = 60.0
_LEAST = 0.01
"""Seconds; shorter segments are left out."""
_MOST = 256
"""The most segments of one customer; later time is added to the last one."""


class Segment(NamedTuple):
    """A period in which a customer was in one state. Times are seconds since the start."""

    kind: str
    start: float
    end: float


class Hold(NamedTuple):
    """A period after a 429 in which no request of a budget was sent. Times are seconds since the start."""

    start: float
    end: float


@dataclass(slots=True)
class Bar:
    """The states of one customer, in order."""

    external_id: str
    segments: list[Segment] = field(default_factory=list["Segment"])
    kind: str | None = None
    """The present state; None before the start and after the end."""
    since: float = 0.0
    refused_at: float | None = None
    """When a request of the customer got a 429 that has not been repeated yet; otherwise None."""

    def turn(self, kind: str | None, at: float) -> None:
        """Change to another state at time `at`."""
        self._add(self.kind, at)
        self.kind = kind

    def cut(self, kind: str, start: float, at: float) -> None:
        """Record the time from `start` to `at` as `kind`; then the present state continues."""
        if self.kind is not None:
            self._add(self.kind, max(self.since, start))
            self._add(kind, at)

    def _add(self, kind: str | None, end: float) -> None:
        if kind is not None and end - self.since > _LEAST:
            last = self.segments[-1] if self.segments else None
            if last and last.end == self.since and (last.kind == kind or len(self.segments) >= _MOST):
                self.segments[-1] = last._replace(end=end)
            else:
                self.segments.append(Segment(kind, self.since, end))
        self.since = end


@final
class Timeline:
    """Collects events; after `end` its attributes describe what happened."""

    __slots__ = (
        "_at_work",
        "_bars",
        "_companies",
        "_epoch",
        "bin",
        "holds",
        "length",
        "longest_waits",
        "noticed",
        "refused",
        "sent",
    )

    def __init__(self, *, began: float, window: float = _MINUTE) -> None:
        """`began`: the loop's time at the start. `window`: seconds of the server's rate-limit window."""
        self._epoch = began
        self._bars: dict[str, Bar] = {}
        self._companies: dict[str, Bar] = {}
        self._at_work: dict[Hashable, Bar] = {}
        self.bin: float = max(_MINUTE, window)
        """Width in seconds of the bins in which requests are counted."""
        self.sent: defaultdict[str, Counter[int]] = defaultdict(Counter)
        """Requests by endpoint and bin."""
        self.refused: defaultdict[str, Counter[int]] = defaultdict(Counter)
        """429s by endpoint and bin."""
        self.longest_waits: dict[str, float] = {}
        """The longest wait for the limit, in seconds, by endpoint; without the waits of polls."""
        self.holds: defaultdict[str, list[Hold]] = defaultdict(list)
        """By budget; `*` is the budget of the whole key."""
        self.noticed: list[float] = []
        """For each run whose end was observed: the most seconds by which it was noticed late."""
        self.length: float = 0.0
        """Seconds from the start to the last event."""

    def note(self, event: Event, by: Hashable = None) -> None:
        """Record an event. `by`: the task that emitted it; it identifies the customer of a request."""
        at = self._since(event.at)
        match event:
            case MigrationChanged():
                self._step(event, at, by)
            case RequestSent() if not event.is_external:
                self._sent(event, at, by)
            case RequestDone() if event.status == 429 and not event.is_external:
                self._refused(event, at, by)
            case Held():
                self._hold(event, at)
            case RunChanged():
                self._changed(event, at)
            case RunEnded() if event.noticed_within is not None:
                self.noticed.append(event.noticed_within)
                if bar := self._companies.get(event.company_id):
                    bar.cut("unnoticed", at - event.noticed_within, at)
            case _:
                pass

    def end(self, now: float) -> None:
        """End all bars at time `now`."""
        at = self._since(now)
        for bar in self._bars.values():
            bar.turn(None, at)
        self._at_work.clear()

    @property
    def kinds(self) -> frozenset[str]:
        """The kinds of all segments."""
        return frozenset(segment.kind for bar in self._bars.values() for segment in bar.segments)

    def bar(self, external_id: str) -> Bar:
        """Return the bar of a customer; empty if it had no events."""
        return self._bars.get(external_id) or Bar(external_id)

    def _since(self, at: float) -> float:
        since = max(0.0, at - self._epoch)
        self.length = max(self.length, since)
        return since

    def _step(self, event: MigrationChanged, at: float, by: Hashable) -> None:
        bar = self._bars.setdefault(event.external_id, Bar(event.external_id))
        if event.company_id:
            self._companies[event.company_id] = bar
        ends = event.step in OUTCOMES
        bar.turn("parked" if event.step == "parked" else _PICTURES.get(event.step), at)
        if by is not None and ends:
            self._at_work.pop(by, None)
        elif by is not None:
            self._at_work[by] = bar

    def _sent(self, event: RequestSent, at: float, by: Hashable) -> None:
        self.sent[event.endpoint][int(at // self.bin)] += 1
        bar = self._at_work.get(by)
        if bar is None:
            return
        waited_since = at - event.waited
        if bar.refused_at is not None:
            waited_since, bar.refused_at = min(waited_since, bar.refused_at), None
        if at - waited_since > _LEAST:
            longest = self.longest_waits.get(event.endpoint, 0.0)
            self.longest_waits[event.endpoint] = max(longest, at - waited_since)
            bar.cut("limit", waited_since, at)

    def _refused(self, event: RequestDone, at: float, by: Hashable) -> None:
        self.refused[event.endpoint][int(at // self.bin)] += 1
        if bar := self._at_work.get(by):
            bar.refused_at = at

    def _hold(self, event: Held, at: float) -> None:
        holds, until = self.holds[event.budget], at + max(0.0, event.until - event.at)
        if holds and at <= holds[-1].end:
            holds[-1] = Hold(holds[-1].start, max(until, holds[-1].end))
        else:
            holds.append(Hold(at, until))

    def _changed(self, event: RunChanged, at: float) -> None:
        bar = self._companies.get(event.company_id)
        if bar is None or bar.kind is None:
            return
        if event.status == _PARKED:
            bar.turn("parked", at)
        elif bar.kind == "parked":
            bar.turn("running", at)
