"""What an operator sees while a fleet runs: a live view on a terminal, otherwise a line for each change.

`LiveState` collects the state from the session's events; it is told the time and prints nothing.
"""

import asyncio
from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from asyncmig._io.gate import GateStatistics
from asyncmig._io.run_slots import RunSlotsStatistics
from asyncmig.cli.fleet_state import LiveState
from asyncmig.cli.output import clean, counted, draws, listed, say, shortened, spoken, spoken_wait
from asyncmig.cli.settings import Display, Settings
from asyncmig.customers.status import CustomerStatus, LastFailure
from asyncmig.events import AttemptFailed, Event, Held, MigrationChanged, Recovered, RunChanged, RunStalled
from asyncmig.jobs.plan import Forecast, forecast
from asyncmig.session import Session
from asyncmig.steps import ACTIVE

__all__ = ["STYLES", "LiveView", "failure_line", "full_run_slots"]

_SLOWEST = 10
_BUDGETS = 3
_BESIDES = 9
"""Lines of the view that are not about the slowest customers, with a margin."""


def _view(
    tracker: LiveState,
    stats: Mapping[str, GateStatistics],
    left: Forecast,
    waiting: Iterator[str],
    width: int,
    height: int,
) -> RenderableType:
    """Return the view for a terminal of this many columns and lines. Lines are cut between words."""
    bar = Table.grid(padding=(0, 1))
    bar.add_row(
        ProgressBar(
            total=max(1, tracker.total),
            completed=tracker.ended.total(),
            width=30,
            complete_style="green",
            finished_style="green",
        ),
        " · ".join(part for part in (_done(tracker), _time_left(left)) if part),
    )
    lines = [(_under_way(tracker), ""), (_budget(tracker, stats), "dim")]
    lines += [(text, "yellow") for text in (_failing(tracker), *waiting) if text]
    lines += _slowest(tracker, min(_SLOWEST, max(0, height - _BESIDES)))
    return Group(bar, *(Text(shortened(text, width), style=style) for text, style in lines))


def _done(tracker: LiveState) -> str:
    """Return how many customers have ended, and with which outcomes."""
    ended = ", ".join(f"{count} {kind}" for kind, count in sorted(tracker.ended.items()))
    return f"{tracker.ended.total()} of {tracker.total} done" + (f" ({ended})" if ended else "")


def _time_left(left: Forecast) -> str:
    """Return the time that is left; empty if there is no estimate."""
    if left.seconds <= 0:
        return ""
    return f"{'at least' if left.is_bound else 'about'} {spoken(left.seconds)} left"


def _under_way(tracker: LiveState) -> str:
    """Return how many customers are at each step."""
    return ", ".join(f"{tracker.steps[step]} {step}" for step in ("waiting", *ACTIVE) if tracker.steps[step])


def _budget(tracker: LiveState, stats: Mapping[str, GateStatistics]) -> str:
    """Return the requests of the last minute, and the budgets that are used most."""
    fullest = sorted(stats.values(), key=lambda gate: gate.used / gate.slots, reverse=True)[:_BUDGETS]
    shares = [f"{_short(gate.name)} {gate.used}/{gate.slots}" for gate in fullest if gate.used]
    sent = f"{counted(tracker.requests(), 'request')} in the last minute"
    return f"{sent}; used of the limit: {', '.join(shares)}" if shares else sent


def _waits(
    stats: Mapping[str, GateStatistics], estimate: Callable[[str], float], now: float
) -> Iterator[str]:
    """Yield the budgets that hold requests back now. Waiting polls do not count."""
    for gate in stats.values():
        waiting = _work_waiting(gate)
        if gate.held_until is not None and gate.held_until > now:
            wait = spoken_wait(gate.held_until - now)
            when = wait if wait.startswith("until") else f"for {wait}"
            yield f"{_short(gate.name)}: over the limit (429), nothing is sent {when}"
        elif waiting:
            requests = counted(waiting, "request")
            yield f"{_short(gate.name)}: {requests} waiting for the limit, {spoken_wait(estimate(gate.name))}"


def full_run_slots(slots: RunSlotsStatistics, now: float, name: Callable[[str], str] = str) -> Iterator[str]:
    """Yield a line if no further run can be started now, and one about runs that wait for a person.

    `name`: returns the external id of a resource with a run.
    """
    if slots.waits_for_person:
        names = listed([clean(name(each)) for each in slots.waits_for_person], 5)
        keeps = "keeps a run slot" if len(slots.waits_for_person) == 1 else "keep a run slot each"
        yield f"{names}: waiting for a person (asyncmig review), {keeps} until then"
    taken = len(slots.runs) + slots.others
    if slots.limit is None or (taken < slots.limit and slots.held_until is None):
        return
    others = f", {slots.others} of them not ours" if slots.others else ""
    again = f"; the next try in {spoken(slots.held_until - now)}" if slots.held_until is not None else ""
    yield f"{taken} of {slots.limit} runs in progress{others}{again}"


def _failing(tracker: LiveState) -> str:
    """Return how many customers repeat a failed attempt, and the failure of the first one."""
    troubled = tracker.in_trouble()
    if not troubled:
        return ""
    first = troubled[0]
    return f"{counted(len(troubled), 'customer')} retrying, {first.external_id}: {clean(first.trouble, 300)}"


def _work_waiting(gate: GateStatistics) -> int:
    """Return how many requests wait that are not polls."""
    return sum(gate.waiting.get(lane, 0) for lane in ("DECIDE", "WORK"))


def _short(name: str) -> str:
    if name == "*":
        return "all requests"
    return name.replace("/companies/{id}", "…").replace("/migrations/{id}", "…")


def _slowest(tracker: LiveState, most: int) -> list[tuple[str, str]]:
    """Return a line and its style for each of the customers that have been in progress for the longest time."""
    slowest = [(each, clean(each.external_id)) for each in tracker.slowest(most)]
    widest = max((len(name) for _, name in slowest), default=0)
    return [
        (
            f"{name:<{widest}}  {each.step:<11}  {spoken(max(0.0, tracker.now - each.since)):<12}  "
            f"{clean(each.trouble or each.text)}".rstrip(),
            "yellow" if each.trouble else "cyan",
        )
        for each, name in slowest
    ]


STYLES = {"delivered": "green", "failed": "red", "parked": "yellow", "unknown": "magenta", "pending": "cyan"}
"""The colour of each outcome."""
_LINE_EVERY = 5.0
"""Wall-clock seconds between lines about the whole fleet, without a terminal."""
_VIEW_EVERY = 0.25


@final
class LiveView:
    """Shows the events of a session and the outcomes of its fleet on `console`."""

    __slots__ = (
        "_console",
        "_display",
        "_draws",
        "_known",
        "_last",
        "_pending",
        "_session",
        "_settings",
        "_tracker",
    )

    def __init__(
        self, console: Console, files: Mapping[str, int], settings: Settings, display: Display
    ) -> None:
        """`files`: the number of files of each customer."""
        self._console, self._settings, self._display = console, settings, display
        self._draws = draws(console) and not display.quiet
        self._tracker = LiveState(files)
        self._known: frozenset[str] = frozenset()
        self._pending: frozenset[str] = frozenset()
        self._session: Session | None = None
        self._last = ""

    @contextmanager
    def following(self, session: Session) -> Generator[None]:
        """Show the events of `session` until the block ends."""
        self._session = session
        with session.events.subscribe(self._tracker.note), session.events.subscribe(self._tell):
            if self._display.quiet:
                yield
            elif not self._draws:
                with self._every(_LINE_EVERY, self._say_if_changed):
                    yield
            else:
                live = Live(
                    self._view(),
                    console=self._console,
                    auto_refresh=False,
                    transient=True,
                    redirect_stdout=False,  # `--json` prints there
                )
                with live, self._every(_VIEW_EVERY, lambda: live.update(self._view(), refresh=True)):
                    yield

    def known(self, rows: Collection[CustomerStatus]) -> None:
        """Take the statuses in the journal. Customers that were delivered before are only counted."""
        for row in rows:
            self._tracker.own(row.ids, row.external_id)
        delivered = [row.external_id for row in rows if row.outcome == "delivered"]
        self._known = frozenset(delivered)
        if delivered and not self._display.quiet:
            say(self._console, f"Delivered before: {counted(len(delivered), 'customer')}.", "dim")

    def ended(self, status: CustomerStatus) -> None:
        """Print how one customer's migration ended, unless the line would be redundant."""
        self._tracker.finish(status)
        if not self._hides(status):
            say(self._console, _line(status), STYLES[status.outcome])
        for note in () if self._display.quiet else status.notes:
            say(self._console, f"{'note':>9}  {status.external_id}  {clean(note)}", "dim")

    def _hides(self, status: CustomerStatus) -> bool:
        if status.outcome == "delivered":
            return self._draws or self._display.quiet or status.external_id in self._known
        if status.outcome == "pending":  # all pending customers have the same reason, such as a refused key
            error = status.error or ""
            printed, self._pending = error in self._pending, self._pending | {error}
            return printed
        return False

    def status(self) -> str:
        """Return one line about the whole fleet."""
        parts = (
            *self._counts(),
            _failing(self._tracker),
            _budget(self._tracker, self._stats()),
            *self._waits(),
        )
        return " · ".join(part for part in parts if part)

    def _stats(self) -> Mapping[str, GateStatistics]:
        return {} if self._session is None else self._session.stats()

    def _counts(self) -> tuple[str, str]:
        return _done(self._tracker), _under_way(self._tracker)

    def _say_if_changed(self) -> None:
        """Print the line about the whole fleet if it has changed."""
        counts = " · ".join((*self._counts(), "retrying" if self._tracker.in_trouble() else ""))
        if counts != self._last:
            self._last = counts
            say(self._console, self.status())

    def _tell(self, event: Event) -> None:
        """Print an event that gets a line of its own."""
        line = _news(event) or (_step(event) if self._display.verbose else None)
        if line is not None and not self._display.quiet:
            say(self._console, line, "dim")

    def _waits(self) -> Iterator[str]:
        session = self._session
        if session is not None:
            yield from _waits(session.stats(), lambda name: _gate_wait(session, name), self._tracker.now)
            yield from full_run_slots(session.run_slots(), self._tracker.now, self._tracker.owner)

    def _forecast(self) -> Forecast:
        settings = self._settings
        left = forecast(
            self._tracker.under_way(),
            self._tracker.longest_run,
            limits=settings.all_limits,
            concurrency=settings.concurrency,
            api=settings.api,
        )
        longest = (
            [_gate_wait(session, gate.name) for gate in self._waiting()] if (session := self._session) else []
        )
        return replace(left, seconds=max([left.seconds, *longest]))

    def _waiting(self) -> Iterator[GateStatistics]:
        return (gate for gate in self._stats().values() if _work_waiting(gate))

    def _view(self) -> RenderableType:
        console = self._console
        return _view(
            self._tracker, self._stats(), self._forecast(), self._waits(), console.width, console.height
        )

    @contextmanager
    def _every(self, seconds: float, show: Callable[[], None]) -> Generator[None]:
        """Call `show` at this interval (wall-clock seconds), on the event loop."""
        loop, pause = asyncio.get_running_loop(), seconds * self._settings.speed
        timer: asyncio.TimerHandle

        def tick() -> None:
            nonlocal timer
            self._tracker.now = loop.time()
            show()
            timer = loop.call_later(pause, tick)

        timer = loop.call_later(pause, tick)
        try:
            yield
        finally:
            timer.cancel()


def _gate_wait(session: Session, name: str) -> float:
    """Return the seconds that a request would wait for the budget with this name in `session.stats()`."""
    return session.budget(name).wait_estimate()


def _news(event: Event) -> str | None:
    match event:
        case Held():
            return (
                f"{'limit':>9}  {event.budget}: answered 429, nothing is sent there for {event.seconds:.1f} s"
            )
        case RunStalled():
            run = f"run {clean(event.ids['run'])}" + (f" of {event.external_id}" if event.external_id else "")
            return f"{'stalled':>9}  {run} has not ended after {event.seconds / 60:.0f} min"
        case _:
            return None


def _step(event: Event) -> str | None:
    match event:
        case MigrationChanged():
            return f"{event.step:>11}  {event.external_id}  {clean(event.detail)}".rstrip()
        case AttemptFailed():
            return failure_line(event)
        case Recovered():
            return f"{'recovered':>11}  {_whose(event)}  {event.endpoint}: after {event.attempts} attempts"
        case RunChanged():
            return f"{clean(event.status):>11}  run {clean(event.ids['run'])}  {clean(event.progress or '')}".rstrip()
        case _:
            return None


def failure_line(event: AttemptFailed) -> str:
    """Return a line about an attempt that failed and is repeated."""
    return f"{'retrying':>11}  {_whose(event)}  {clean(LastFailure.of(event).words, 1000)}"


def _whose(event: AttemptFailed | Recovered) -> str:
    return event.external_id or event.ids.get("id") or "all customers"


def _line(status: CustomerStatus) -> str:
    return f"{status.outcome:>9}  {status.external_id}  {clean(status.name, 60)}: {_result(status)}"


def _result(status: CustomerStatus) -> str:
    if status.outcome != "delivered":
        return clean(status.error or "")
    bad = f", {status.rows.flagged} with a bad cell" if status.rows.flagged else ""
    rows, sheets = counted(status.rows.delivered or 0, "row"), counted(len(status.files), "sheet")
    return f"{rows} in {sheets}{bad} ({status.seconds:.0f} s)"
