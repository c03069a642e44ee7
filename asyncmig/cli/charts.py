"""The charts of the HTML report: what each customer did when, collected from the events of a session, as SVG.

Each customer has a bar of segments. Requests are counted by endpoint and minute, so memory grows with customers and
minutes, not with requests. Each chart is stretched to the width of the page, so it contains no text; labels are HTML
beside it. `plain` escapes text that comes from a server or a manifest.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Final, NamedTuple, cast, final

from asyncmig.cli.options import spoken
from asyncmig.cli.output import clean
from asyncmig.customers.status import CustomerStatus
from asyncmig.events import (
    Event,
    Held,
    MigrationChanged,
    RequestDone,
    RequestSent,
    RunChanged,
    RunEnded,
)
from asyncmig.steps import CHART_BARS, OUTCOMES

__all__ = [
    "KINDS",
    "KIND_WORDS",
    "Bar",
    "Hold",
    "Segment",
    "Timeline",
    "axis",
    "delays",
    "fleet",
    "plain",
    "requests",
]


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


KIND_WORDS: Final[Mapping[str, str]] = {
    "limit": "waiting for the limit",
    "preparing": "checking, creating, starting",
    "uploading": "uploading",
    "running": "running on the server",
    "unnoticed": "perhaps ended, not noticed yet",
    "parked": "parked: waiting for a decision",
    "downloading": "downloading",
}
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


def plain(text: str, longest: int = 300) -> str:
    """Return text as one line, escaped for HTML."""
    return escape(clean(text, longest))


def fleet(timeline: Timeline, rows: Sequence[CustomerStatus]) -> str:
    """Return the chart of all customers, a bar each, in the order in which they started."""
    together = timeline.length * _TOGETHER
    bars = sorted(
        ((timeline.bar(row.external_id), row) for row in rows), key=lambda each: _order(each[0], together)
    )
    named = len(bars) <= _LABELLED
    pitch = _PITCH if named else min(_SPACED, _TALLEST / len(bars))
    size = math.ceil(_PIECE / pitch)
    pieces = [bars[start : start + size] for start in range(0, len(bars), size)]
    kind = "fleet named" if named else "fleet"
    drawn = "".join(
        f'<div class="{kind}">{_names(piece) if named else ""}{_piece(piece, timeline.length, pitch)}</div>'
        for piece in pieces
    )
    return f'{drawn}<div class="{kind}">{"<div></div>" if named else ""}{axis(timeline.length)}</div>'


def _names(bars: Sequence[tuple[Bar, CustomerStatus]]) -> str:
    names = "".join(f"<li>{plain(row.external_id, 60)}</li>" for _, row in bars)
    return f'<ol class="names" aria-hidden="true">{names}</ol>'


def _piece(bars: Sequence[tuple[Bar, CustomerStatus]], length: float, pitch: float) -> str:
    scale = _WIDE / max(length, 1e-9)
    drawn = "".join(_bar(bar, row, scale, n * pitch, pitch) for n, (bar, row) in enumerate(bars))
    return _svg(pitch * len(bars), drawn, length, "each customer over time")


def _order(bar: Bar, together: float) -> tuple[float, ...]:
    """Return the sort key of a bar. Customers that started within `together` seconds are sorted by the end of their
    first segment."""
    if not bar.segments:
        return (math.inf,)
    first = bar.segments[0]
    return first.start // max(together, 1e-9), first.end, bar.segments[-1].end


def _bar(bar: Bar, row: CustomerStatus, scale: float, y: float, pitch: float) -> str:
    height = pitch * (0.7 if pitch > 2 else 1.0)
    paths: defaultdict[str, list[str]] = defaultdict(list)
    spent: defaultdict[str, float] = defaultdict(float)
    for kind, start, end in bar.segments:
        x, width = start * scale, (end - start) * scale
        spent[kind] += end - start
        paths[kind].append(f"M{x:.2f} {y:.2f}h{width:.2f}v{height:.2f}h-{width:.2f}z")
    shapes = "".join(f'<path class="{kind}" d="{"".join(paths[kind])}"/>' for kind in KINDS if kind in paths)
    times = "; ".join(f"{KIND_WORDS[kind]} {spoken(spent[kind])}" for kind in KINDS if kind in spent)
    title = f"{plain(row.external_id, 60)} · {plain(row.name, 60)} · {row.outcome}"
    if bar.segments and row.outcome == "failed":
        shapes += (
            f'<path class="fell" d="M{bar.segments[-1].end * scale:.2f} {y:.2f}v{max(height, 2.0):.2f}"/>'
        )
    return f'<g class="bar"><title>{title}{f": {times}" if times else ""}</title>{shapes}</g>'


def _svg(height: float, inside: str, length: float, name: str) -> str:
    lines = "".join(
        f'<path class="grid" d="M{at / length * _WIDE:.2f} 0v{height:.2f}"/>' for at in _ticks(length) if at
    )
    return (
        f'<svg role="img" aria-label="{name}" viewBox="0 0 {_WIDE} {height:.2f}" preserveAspectRatio="none" '
        f'style="height:{height:.0f}px">{lines}{inside}</svg>'
    )


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
    if not seconds:
        return "0"
    hours, rest = divmod(seconds, 3600)
    minutes, rest = divmod(rest, 60)
    parts = ((hours, " h"), (minutes, " min"), (rest, " s"))
    return " ".join(f"{amount:g}{unit}" for amount, unit in parts if amount)


def requests(timeline: Timeline, endpoint: str, limit: float | None) -> str:
    """Return the chart of an endpoint's requests per bin (`*`: of all endpoints), with its limit, 429s and holds."""
    sent, refused = _counts(timeline.sent, endpoint), _counts(timeline.refused, endpoint)
    top = max(limit or 0.0, *sent.values(), 1) * 1.08
    scale, up = _WIDE / max(timeline.length, 1e-9), _RATE_TALL / top
    inside = "".join(_hold(hold, scale) for hold in timeline.holds.get(endpoint, ()))
    for number, count in sorted(sent.items()):
        start, end = number * timeline.bin, min((number + 1) * timeline.bin, timeline.length)
        x, width = start * scale, max(1.0, (end - start) * scale * 0.94)
        title = f"from {_short(start)}: {count:,} sent" + (
            f", {refused[number]:,} of them answered 429" if refused[number] else ""
        )
        inside += f"<g><title>{title}</title>{_column('sent', x, width, count * up)}"
        inside += (_column("refused", x, width, refused[number] * up) if refused[number] else "") + "</g>"
    if limit is not None:
        inside += f'<path class="cap" d="M0 {_RATE_TALL - limit * up:.2f}h{_WIDE}"/>'
    return _svg(_RATE_TALL, inside, timeline.length, "requests over time")


def _counts(by_endpoint: Mapping[str, Counter[int]], endpoint: str) -> Counter[int]:
    if endpoint != "*":
        return by_endpoint.get(endpoint, Counter())
    return sum(by_endpoint.values(), Counter[int]())


def _column(kind: str, x: float, width: float, height: float, base: float = _RATE_TALL) -> str:
    return f'<path class="{kind}" d="M{x:.2f} {base:g}v-{height:.2f}h{width:.2f}v{height:.2f}z"/>'


def _hold(hold: Hold, scale: float) -> str:
    x, width = hold.start * scale, max(1.0, (hold.end - hold.start) * scale)
    title = f"held after a 429 for {spoken(hold.end - hold.start)}"
    return f'<g><title>{title}</title><path class="held" d="M{x:.2f} 0h{width:.2f}v{_RATE_TALL}h-{width:.2f}z"/></g>'


def delays(noticed: Sequence[float]) -> str:
    """Return a histogram of how late the ends of runs were noticed."""
    longest = max(*noticed, 1e-9)
    step = next((each for each in _STEPS if longest / each <= _DELAY_BINS), longest / _DELAY_BINS)
    counts = Counter(int(delay // step) for delay in noticed)
    most, bins = max(counts.values()), int(longest // step) + 1
    inside = "".join(_delay(n, count, step, bins, most) for n, count in sorted(counts.items()))
    return f'<div class="plot">{_svg(_DELAY_TALL, inside, bins * step, "detection delays")}{axis(bins * step)}</div>'


def _delay(number: int, count: int, step: float, bins: int, most: int) -> str:
    width = _WIDE / bins
    words = f"{_short(number * step)} to {_short((number + 1) * step)}: {count:,} run{'s' * (count != 1)}"
    column = _column(
        "unnoticed", number * width, width * 0.94, count / most * _DELAY_TALL * 0.95, _DELAY_TALL
    )
    return f"<g><title>{words}</title>{column}</g>"
