"""The charts of the HTML report: `Timeline` collects what happened from events, and the functions draw it as SVG.

Requests are counted by endpoint and minute, so memory grows with customers and minutes, not with requests. Each chart
is stretched to the width of the page, so it contains no text; labels are HTML beside it.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Final, NamedTuple, cast, final

from asyncmig.cli.output import clean, counted, spoken
from asyncmig.customers.status import CustomerStatus
from asyncmig.events import Event, Held, MigrationChanged, RequestDone, RequestSent, RunChanged, RunEnded
from asyncmig.steps import CHART_BARS, OUTCOMES

__all__ = [
    "KINDS",
    "Hold",
    "Segment",
    "Timeline",
    "axis",
    "counts_of",
    "delays",
    "fleet",
    "plain",
    "requests",
]

KINDS: Final[Mapping[str, str]] = {
    "limit": "waiting for the limit",
    "preparing": "checking, creating, starting",
    "uploading": "uploading",
    "running": "running on the server",
    "unnoticed": "perhaps ended, not noticed yet",
    "parked": "parked: waiting for a decision",
    "downloading": "downloading",
}
"""The kinds of segments in the order of the legend, each in words."""
_KIND_OF_STEP: Final[Mapping[str, str]] = {**cast("Mapping[str, str]", CHART_BARS), "parked": "parked"}
_MINUTE = 60.0
_LEAST = 0.01
"""Seconds; shorter segments are left out."""
_MOST = 256
"""The most segments of one customer; later time is added to the last one."""
_WIDE = 1000
_LABELLED = 80
"""The most bars that have their names beside them."""
_PITCH, _SPACED = 20.0, 8.0
"""Pixels from bar to bar, with names and (at most) without."""
_TALLEST = 1600.0
_PIECE = 400.0
"""About the height of one piece of a chart, so that a printer can break pages between pieces."""
_TOGETHER = 0.02
"""Fraction of the whole time within which two starts count as simultaneous."""
_RATE_TALL = 64
_DELAY_TALL = 96
_DELAY_BINS = 24
_MOST_TICKS = 6
_STEPS: Final = (1.0, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400)


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
class _Bar:
    """The states of one customer, in order."""

    segments: list[Segment] = field(default_factory=list[Segment])
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


_Counts = defaultdict[str, Counter[int]]


@final
@dataclass(slots=True, kw_only=True)
class Timeline:
    """What happened in a fleet, from its events; `end` completes it."""

    began: float
    """The loop's time at the start."""
    window: float = _MINUTE
    """Seconds of the server's rate-limit window."""
    sent: _Counts = field(default_factory=lambda: _Counts(Counter))
    """Requests by endpoint and bin."""
    refused: _Counts = field(default_factory=lambda: _Counts(Counter))
    """429s by endpoint and bin."""
    longest_waits: dict[str, float] = field(default_factory=dict[str, float])
    """The longest wait for the limit, in seconds, by endpoint; without the waits of polls."""
    holds: defaultdict[str, list[Hold]] = field(default_factory=lambda: defaultdict[str, list[Hold]](list))
    """By budget; `*` is the budget of the whole key."""
    noticed: list[float] = field(default_factory=list[float])
    """For each run whose end was observed: the most seconds by which it was noticed late."""
    length: float = 0.0
    """Seconds from the start to the last event."""
    _bars: dict[str, _Bar] = field(default_factory=dict[str, _Bar], init=False)
    _by_id: dict[str, _Bar] = field(default_factory=dict[str, _Bar], init=False)
    _at_work: dict[Hashable, _Bar] = field(default_factory=dict[Hashable, _Bar], init=False)
    """The customer that each task works on."""

    @property
    def bin(self) -> float:
        """Width in seconds of the bins in which requests are counted."""
        return max(_MINUTE, self.window)

    @property
    def kinds(self) -> frozenset[str]:
        """The kinds of all segments."""
        return frozenset(segment.kind for bar in self._bars.values() for segment in bar.segments)

    def segments(self, external_id: str) -> Sequence[Segment]:
        """Return the segments of a customer, in order; empty if it had no events."""
        return bar.segments if (bar := self._bars.get(external_id)) else ()

    def note(self, event: Event, by: Hashable = None) -> None:
        """Record an event. `by`: the task that emitted it; it identifies the customer of a request."""
        at = self._since(event.at)
        match event:
            case MigrationChanged():
                self._step(event, at, by)
            case RequestSent() if not event.is_external:
                self._sent(event, at, self._at_work.get(by))
            case RequestDone() if event.status == 429 and not event.is_external:
                self.refused[event.endpoint][int(at // self.bin)] += 1
                if bar := self._at_work.get(by):
                    bar.refused_at = at
            case Held():
                self._hold(self.holds[event.budget], at, at + max(0.0, event.until - event.at))
            case RunChanged() if (bar := self._bar_of(event.ids)) and bar.kind is not None:
                if event.status == "needs_attention":
                    bar.turn("parked", at)
                elif bar.kind == "parked":
                    bar.turn("running", at)
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

    def _since(self, at: float) -> float:
        since = max(0.0, at - self.began)
        self.length = max(self.length, since)
        return since

    def _bar_of(self, ids: Mapping[str, str]) -> _Bar | None:
        return next((self._by_id[each] for each in ids.values() if each in self._by_id), None)

    def _step(self, event: MigrationChanged, at: float, by: Hashable) -> None:
        bar = self._bars.setdefault(event.external_id, _Bar())
        self._by_id.update(dict.fromkeys(event.ids.values(), bar))
        bar.turn(_KIND_OF_STEP.get(event.step), at)
        if by is not None and event.step in OUTCOMES:
            self._at_work.pop(by, None)
        elif by is not None:
            self._at_work[by] = bar

    def _sent(self, event: RequestSent, at: float, bar: _Bar | None) -> None:
        self.sent[event.endpoint][int(at // self.bin)] += 1
        if bar is None:
            return
        waited_since = at - event.waited
        if bar.refused_at is not None:
            waited_since, bar.refused_at = min(waited_since, bar.refused_at), None
        if at - waited_since > _LEAST:
            longest = self.longest_waits.get(event.endpoint, 0.0)
            self.longest_waits[event.endpoint] = max(longest, at - waited_since)
            bar.cut("limit", waited_since, at)

    @staticmethod
    def _hold(holds: list[Hold], at: float, until: float) -> None:
        if holds and at <= holds[-1].end:
            holds[-1] = Hold(holds[-1].start, max(until, holds[-1].end))
        else:
            holds.append(Hold(at, until))


def plain(text: str, longest: int = 300) -> str:
    """Return text as one line, escaped for HTML."""
    return escape(clean(text, longest))


def fleet(timeline: Timeline, rows: Sequence[CustomerStatus]) -> str:
    """Return the chart of all customers, a bar each, in the order in which they started."""
    together = max(timeline.length * _TOGETHER, 1e-9)
    bars = sorted(
        ((timeline.segments(row.external_id), row) for row in rows),
        key=lambda each: _order(each[0], together),
    )
    named = len(bars) <= _LABELLED
    kind = "fleet named" if named else "fleet"
    pitch = _PITCH if named else min(_SPACED, _TALLEST / len(bars))
    size, scale = math.ceil(_PIECE / pitch), _WIDE / max(timeline.length, 1e-9)
    drawn = ""
    for start in range(0, len(bars), size):
        piece = bars[start : start + size]
        names = "".join(f"<li>{plain(row.external_id, 60)}</li>" for _, row in piece)
        beside = f'<ol class="names" aria-hidden="true">{names}</ol>' if named else ""
        shapes = "".join(_bar(*each, scale, n * pitch, pitch) for n, each in enumerate(piece))
        chart = _svg(pitch * len(piece), shapes, timeline.length, "each customer over time")
        drawn += f'<div class="{kind}">{beside}{chart}</div>'
    return f'{drawn}<div class="{kind}">{"<div></div>" if named else ""}{axis(timeline.length)}</div>'


def _order(segments: Sequence[Segment], together: float) -> tuple[float, ...]:
    """Return the sort key of a bar. Customers that started within `together` seconds are sorted by the end of their
    first segment."""
    if not segments:
        return (math.inf,)
    return segments[0].start // together, segments[0].end, segments[-1].end


def _bar(segments: Sequence[Segment], row: CustomerStatus, scale: float, y: float, pitch: float) -> str:
    height = pitch * (0.7 if pitch > 2 else 1.0)
    paths: defaultdict[str, list[str]] = defaultdict(list)
    spent: defaultdict[str, float] = defaultdict(float)
    for kind, start, end in segments:
        spent[kind] += end - start
        paths[kind].append(_box(start * scale, y, (end - start) * scale, height))
    shapes = "".join(f'<path class="{kind}" d="{"".join(paths[kind])}"/>' for kind in KINDS if kind in paths)
    times = "; ".join(f"{words} {spoken(spent[kind])}" for kind, words in KINDS.items() if kind in spent)
    if segments and row.outcome == "failed":
        shapes += f'<path class="fell" d="M{segments[-1].end * scale:.2f} {y:.2f}v{max(height, 2.0):.2f}"/>'
    title = f"{plain(row.external_id, 60)} · {plain(row.name, 60)} · {row.outcome}"
    return f'<g class="bar"><title>{title}{f": {times}" if times else ""}</title>{shapes}</g>'


def _svg(height: float, inside: str, length: float, name: str) -> str:
    lines = "".join(
        f'<path class="grid" d="M{at / length * _WIDE:.2f} 0v{height:.2f}"/>' for at in _ticks(length) if at
    )
    return (
        f'<svg role="img" aria-label="{name}" viewBox="0 0 {_WIDE} {height:.2f}" preserveAspectRatio="none" '
        f'style="height:{height:.0f}px">{lines}{inside}</svg>'
    )


def _box(x: float, y: float, width: float, height: float) -> str:
    """Return a rectangle as the data of an SVG path."""
    return f"M{x:.2f} {y:.2f}h{width:.2f}v{height:.2f}h-{width:.2f}z"


def _ticks(length: float) -> list[float]:
    """Return at most seven round times from 0 to `length`."""
    if length <= 0:
        return []
    days = 86400 * -(-length // (86400 * _MOST_TICKS))
    step = next((each for each in _STEPS if length / each <= _MOST_TICKS), days)
    return [n * step for n in range(int(length / step) + 1)]


def axis(length: float) -> str:
    """Return the labels of a time axis, without a last one that would not fit."""
    marks = (
        f'<span style="left:{at / length * 100:.2f}%">{_short(at)}</span>'
        for at in _ticks(length)
        if at <= length * 0.95
    )
    return f'<div class="axis" aria-hidden="true">{"".join(marks)}</div>'


def _short(seconds: float) -> str:
    hours, rest = divmod(seconds, 3600)
    minutes, rest = divmod(rest, 60)
    parts = ((hours, " h"), (minutes, " min"), (rest, " s"))
    return " ".join(f"{amount:g}{unit}" for amount, unit in parts if amount) or "0"


def counts_of(by_endpoint: Mapping[str, Counter[int]], endpoint: str) -> Counter[int]:
    """Return the requests of an endpoint by bin; of all endpoints for `*`."""
    if endpoint != "*":
        return by_endpoint.get(endpoint, Counter())
    return sum(by_endpoint.values(), Counter[int]())


def requests(timeline: Timeline, endpoint: str, limit: float | None) -> str:
    """Return the chart of an endpoint's requests per bin (`*`: of all endpoints), with its limit, 429s and holds."""
    sent, refused = counts_of(timeline.sent, endpoint), counts_of(timeline.refused, endpoint)
    top = max(limit or 0.0, *sent.values(), 1) * 1.08
    scale, up = _WIDE / max(timeline.length, 1e-9), _RATE_TALL / top
    inside = ""
    for start, end in timeline.holds.get(endpoint, ()):
        box = _box(start * scale, 0, max(1.0, (end - start) * scale), _RATE_TALL)
        title = f"held after a 429 for {spoken(end - start)}"
        inside += f'<g><title>{title}</title><path class="held" d="{box}"/></g>'
    for number, count in sorted(sent.items()):
        start, end = number * timeline.bin, min((number + 1) * timeline.bin, timeline.length)
        title, shapes = f"from {_short(start)}: {count:,} sent", ""
        if refused[number]:
            title += f", {refused[number]:,} of them answered 429"
        for kind, height in (("sent", count * up), ("refused", refused[number] * up)):
            if height:
                box = _box(start * scale, _RATE_TALL - height, max(1.0, (end - start) * scale * 0.94), height)
                shapes += f'<path class="{kind}" d="{box}"/>'
        inside += f"<g><title>{title}</title>{shapes}</g>"
    if limit is not None:
        inside += f'<path class="cap" d="M0 {_RATE_TALL - limit * up:.2f}h{_WIDE}"/>'
    return _svg(_RATE_TALL, inside, timeline.length, "requests over time")


def delays(noticed: Sequence[float]) -> str:
    """Return a histogram of how late the ends of runs were noticed."""
    longest = max(*noticed, 1e-9)
    step = next((each for each in _STEPS if longest / each <= _DELAY_BINS), longest / _DELAY_BINS)
    counts = Counter(int(delay // step) for delay in noticed)
    most, bins = max(counts.values()), int(longest // step) + 1
    width, inside = _WIDE / bins, ""
    for number, count in sorted(counts.items()):
        words = f"{_short(number * step)} to {_short((number + 1) * step)}: {counted(count, 'run')}"
        height = count / most * _DELAY_TALL * 0.95
        box = _box(number * width, _DELAY_TALL - height, width * 0.94, height)
        inside += f'<g><title>{words}</title><path class="unnoticed" d="{box}"/></g>'
    return f'<div class="plot">{_svg(_DELAY_TALL, inside, bins * step, "detection delays")}{axis(bins * step)}</div>'
