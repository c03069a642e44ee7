"""The state of a fleet, collected from events: `LiveState` for the live view, `Timeline` for the HTML report.

Nothing here prints. Requests are counted by endpoint and minute, so memory grows with customers and minutes, not with
requests.
"""

from collections import Counter, defaultdict, deque
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple, cast, final

from asyncmig.cli.output import spoken_wait
from asyncmig.customers.status import CustomerStatus, LastFailure, RemainingWork
from asyncmig.events import (
    AttemptFailed,
    Event,
    Held,
    MigrationChanged,
    Recovered,
    RequestDone,
    RequestSent,
    RunChanged,
    RunEnded,
    SlotAwaited,
)
from asyncmig.steps import ACTIVE, CHART_BARS, OUTCOMES, OutcomeName, Progress

__all__ = ["KINDS", "Bar", "CustomerProgress", "Hold", "LiveState", "Segment", "Timeline"]

_WINDOW = 60.0


@dataclass(slots=True)
class CustomerProgress:
    """One customer: its step, the time of that step's start, and the server's progress text."""

    external_id: str
    files: int
    step: Progress | OutcomeName = "waiting"
    since: float = 0.0
    began: float = 0.0
    text: str = ""
    trouble: str = ""
    """The last failed attempt, until the customer advances."""
    uploads: int = 0


@final
class LiveState:
    """Collects events and outcomes, and returns what is in progress."""

    __slots__ = ("_answers", "_customers", "_owners", "_runs", "ended", "longest_run", "now")

    def __init__(self, files: Mapping[str, int]) -> None:
        """`files`: the number of files of each customer."""
        self._customers = {name: CustomerProgress(name, count) for name, count in files.items()}
        self._runs: dict[str, CustomerProgress] = {}
        self._owners: dict[str, str] = {}
        self._answers: deque[float] = deque()
        self.longest_run: float | None = None
        """The duration of the longest run that has ended, in seconds; None before the first end."""
        self.ended: Counter[str] = Counter()
        """Customers by outcome."""
        self.now: float = 0.0
        """The present time (loop's clock): that of the last event, or later if the view sets it."""

    def note(self, event: Event) -> None:
        """Record an event."""
        self.now = max(self.now, event.at)
        match event:
            case MigrationChanged():
                self._step(event)
            case RequestDone() if not event.is_external:
                self._answers.append(event.at)
            case AttemptFailed() if event.external_id in self._customers:
                self._customers[event.external_id].trouble = LastFailure.of(event).words
            case Recovered() if event.external_id in self._customers:
                self._customers[event.external_id].trouble = ""
            case RunChanged() if event.ids["run"] in self._runs:
                self._runs[event.ids["run"]].text = event.progress or ""
            case SlotAwaited() if event.external_id in self._customers:
                self._customers[event.external_id].text = _wait(event)
            case RunEnded() if event.seconds is not None:
                self.longest_run = max(event.seconds, self.longest_run or 0.0)
            case _:
                pass

    def own(self, ids: Mapping[str, str], external_id: str) -> None:
        """Record the server's ids of a customer."""
        self._owners.update(dict.fromkeys(ids.values(), external_id))

    def owner(self, resource_id: str) -> str:
        """Return the external id of the customer that an id of the server belongs to; the id if it is not known."""
        return self._owners.get(resource_id, resource_id)

    def finish(self, status: CustomerStatus) -> None:
        """Record how one customer's migration ended."""
        self.ended[status.outcome] += 1
        self._customers[status.external_id].step = status.outcome

    @property
    def total(self) -> int:
        """The number of customers."""
        return len(self._customers)

    @property
    def steps(self) -> Counter[str]:
        """The number of customers at each step, or with each outcome."""
        return Counter(customer.step for customer in self._customers.values())

    def requests(self) -> int:
        """Return the number of requests that were answered in the last minute."""
        while self._answers and self._answers[0] < self.now - _WINDOW:
            self._answers.popleft()
        return len(self._answers)

    def slowest(self, most: int) -> list[CustomerProgress]:
        """Return the customers that have been in progress for the longest time, the longest first."""
        active = [customer for customer in self._customers.values() if customer.step in ACTIVE]
        return sorted(active, key=lambda customer: customer.began)[:most]

    def in_trouble(self) -> list[CustomerProgress]:
        """Return the customers whose last attempt failed and is repeated, in the order of the manifest."""
        return [each for each in self._customers.values() if each.trouble and each.step in ACTIVE]

    def under_way(self) -> list[RemainingWork]:
        """Return the remaining work of each customer that has not ended."""
        return [
            RemainingWork(
                step=customer.step,
                files=max(0, customer.files - customer.uploads),
                age=self.now - customer.since if customer.step == "running" else None,
            )
            for customer in self._customers.values()
            if customer.step in ACTIVE or customer.step == "waiting"
        ]

    def _step(self, event: MigrationChanged) -> None:
        self.own(event.ids, event.external_id)
        customer = self._customers.get(event.external_id)
        if customer is None or event.step not in ACTIVE or customer.step in self.ended:
            return
        if customer.step == event.step == "uploading":
            customer.uploads += 1
        if customer.step == "waiting":
            customer.began = event.at
        if customer.step != event.step:
            customer.since, customer.text = event.at, ""
        customer.step, customer.trouble = event.step, ""
        if event.step == "running" and "run" in event.ids:
            self._runs[event.ids["run"]] = customer
        elif event.detail:
            customer.text = event.detail


def _wait(event: SlotAwaited) -> str:
    """Return what a request waits for, in words."""
    if event.seconds is None:
        return "waiting for a run slot"
    return f"waiting for `{event.budget}` {spoken_wait(event.seconds)}"


KINDS: Final = ("limit", "preparing", "uploading", "running", "unnoticed", "parked", "downloading")
"""The kinds of segments, in the order of the legend."""
_BARS: Final = cast("Mapping[str, str]", CHART_BARS)
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
        "_by_id",
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
        self._by_id: dict[str, Bar] = {}
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
                if bar := self._bar_of(event.ids):
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
        self._by_id.update(dict.fromkeys(event.ids.values(), bar))
        ends = event.step in OUTCOMES
        bar.turn("parked" if event.step == "parked" else _BARS.get(event.step), at)
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

    def _bar_of(self, ids: Mapping[str, str]) -> Bar | None:
        return next((self._by_id[each] for each in ids.values() if each in self._by_id), None)

    def _changed(self, event: RunChanged, at: float) -> None:
        bar = self._bar_of(event.ids)
        if bar is None or bar.kind is None:
            return
        if event.status == _PARKED:
            bar.turn("parked", at)
        elif bar.kind == "parked":
            bar.turn("running", at)
