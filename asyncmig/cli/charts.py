"""The charts of the HTML report, drawn as SVG from a `Timeline`.

Each chart is stretched to the width of the page, so it contains no text; labels are HTML beside it. `plain` escapes
text that comes from a server or a manifest.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from html import escape
from typing import Final

from asyncmig.cli.fleet_state import KINDS, Bar, Hold, Timeline
from asyncmig.cli.output import clean, spoken
from asyncmig.customers.status import CustomerStatus

__all__ = ["KIND_WORDS", "axis", "delays", "fleet", "plain", "requests"]

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
