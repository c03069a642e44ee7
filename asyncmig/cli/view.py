"""The live view: how far a fleet is, what holds it back, and who takes longest."""

from collections.abc import Callable, Iterator, Mapping

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from asyncmig._io.gate import GateStatistics
from asyncmig.cli.amounts import spoken
from asyncmig.cli.terminal import clean, counted
from asyncmig.cli.tracker import Tracker
from asyncmig.companies.steps import ACTIVE
from asyncmig.forecast import Forecast

__all__ = ["budget", "done", "failing", "time_left", "under_way", "view", "waits", "work_waiting"]

_SLOWEST = 10
_BUDGETS = 3
_BESIDES = 9
"""Lines of the view besides the slowest, and some room."""


def view(
    tracker: Tracker, stats: Mapping[str, GateStatistics], left: Forecast, waiting: Iterator[str], height: int
) -> RenderableType:
    """Return what is to be drawn on a terminal of so many lines."""
    bar = Table.grid(padding=(0, 1))
    bar.add_row(
        ProgressBar(
            total=max(1, tracker.total),
            completed=tracker.ended.total(),
            width=30,
            complete_style="green",
            finished_style="green",
        ),
        " · ".join(part for part in (done(tracker), time_left(left)) if part),
    )
    lines = [_line(under_way(tracker)), _line(budget(tracker, stats), "dim")]
    lines += [_line(text, "yellow") for text in (failing(tracker), *waiting) if text]
    return Group(bar, *lines, _slowest(tracker, min(_SLOWEST, max(0, height - _BESIDES))))


def _line(text: str, style: str = "") -> Text:
    return Text(text, style=style, overflow="ellipsis", no_wrap=True)


def done(tracker: Tracker) -> str:
    """Return how many have ended, and how."""
    ended = ", ".join(f"{count} {kind}" for kind, count in sorted(tracker.ended.items()))
    return f"{tracker.ended.total()} of {tracker.total} done" + (f" ({ended})" if ended else "")


def time_left(left: Forecast) -> str:
    """Return when it will be over, as far as that can be said."""
    if left.seconds <= 0:
        return ""
    return f"{'at least' if left.is_bound else 'about'} {spoken(left.seconds)} left"


def under_way(tracker: Tracker) -> str:
    """Return how many are at which step."""
    return ", ".join(f"{tracker.steps[step]} {step}" for step in ("waiting", *ACTIVE) if tracker.steps[step])


def budget(tracker: Tracker, stats: Mapping[str, GateStatistics]) -> str:
    """Return what was sent of late, and how much of the limit that is where it is most."""
    fullest = sorted(stats.values(), key=lambda gate: gate.used / gate.slots, reverse=True)[:_BUDGETS]
    shares = [f"{_short(gate.name)} {gate.used}/{gate.slots}" for gate in fullest if gate.used]
    sent = f"{counted(tracker.requests(), 'request')} in the last minute"
    return f"{sent}; of the limit: {', '.join(shares)}" if shares else sent


def waits(stats: Mapping[str, GateStatistics], estimate: Callable[[str], float], now: float) -> Iterator[str]:
    """Yield what the limit holds back at present; polls that wait are no news."""
    for gate in stats.values():
        waiting = work_waiting(gate)
        if gate.held_until is not None and gate.held_until > now:
            yield f"{_short(gate.name)}: over the limit (429), nothing is sent for {spoken(gate.held_until - now)}"
        elif waiting:
            yield f"{_short(gate.name)}: {waiting} waiting for the limit, {spoken(estimate(gate.name))}"


def failing(tracker: Tracker) -> str:
    """Return how many customers repeat what failed, and what failed for one of them."""
    troubled = tracker.in_trouble()
    if not troubled:
        return ""
    first = troubled[0]
    return f"{counted(len(troubled), 'customer')} retrying, {first.external_id}: {clean(first.trouble, 300)}"


def work_waiting(gate: GateStatistics) -> int:
    """Return how many requests wait that are no polls."""
    return sum(gate.waiting.get(lane, 0) for lane in ("DECIDE", "WORK"))


def _short(name: str) -> str:
    return "all requests" if name == "*" else name.replace("/companies/{id}", "…")


def _slowest(tracker: Tracker, most: int) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    for customer in tracker.slowest(most):
        table.add_row(
            Text(clean(customer.external_id), overflow="ellipsis", no_wrap=True),
            Text(customer.step, style="cyan"),
            Text(spoken(max(0.0, tracker.now - customer.since))),
            Text(
                clean(customer.trouble or customer.text, 200 if customer.trouble else 80),
                style="yellow" if customer.trouble else "dim",
                overflow="ellipsis",
                no_wrap=True,
            ),
        )
    return table
