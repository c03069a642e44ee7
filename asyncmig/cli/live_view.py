"""What an operator sees while a fleet runs: a live view on a terminal, otherwise a line for each change."""

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from asyncmig._io.gate import GateStatistics
from asyncmig._io.run_slots import RunSlotsStatistics
from asyncmig.cli.output import (
    STYLES,
    clean,
    counted,
    draws,
    failure_line,
    listed,
    say,
    shortened,
    spoken,
    spoken_wait,
    whose,
)
from asyncmig.cli.settings import Display, Settings
from asyncmig.cli.summary import outcome_line
from asyncmig.customers.status import CustomerStatus, LastFailure, RemainingWork
from asyncmig.events import (
    AttemptFailed,
    Event,
    Held,
    MigrationChanged,
    Recovered,
    RequestDone,
    RunChanged,
    RunEnded,
    RunStalled,
    SlotAwaited,
)
from asyncmig.jobs.plan import forecast
from asyncmig.session import Session
from asyncmig.steps import ACTIVE, OutcomeName, Progress

__all__ = ["CustomerProgress", "LiveState", "LiveView", "full_run_slots"]

_WINDOW = 60.0
"""Seconds in which requests are counted."""
_SLOWEST = 10
_BUDGETS = 3
_BESIDES = 9
"""Lines of the view that are not about the slowest customers, with a margin."""
_LINE_EVERY = 5.0
"""Wall-clock seconds between lines about the whole fleet, without a terminal."""
_VIEW_EVERY = 0.25


@dataclass(slots=True)
class CustomerProgress:
    """One customer: its step, the time of that step's start, and the server's progress text."""

    external_id: str
    files: int
    """Files that are not uploaded yet."""
    step: Progress | OutcomeName = "waiting"
    since: float = 0.0
    began: float = 0.0
    text: str = ""
    trouble: str = ""
    """The last failed attempt, until the customer advances."""


@final
@dataclass(slots=True)
class LiveState:
    """Collects what is in progress from events and outcomes. It is told the time, and prints nothing."""

    customers: dict[str, CustomerProgress]
    owners: dict[str, str] = field(default_factory=dict[str, str])
    """The external id of the customer that each id of the server belongs to."""
    answers: deque[float] = field(default_factory=deque[float])
    """When the requests of the last minute were answered."""
    longest_run: float | None = None
    """The duration of the longest run that has ended, in seconds; None before the first end."""
    ended: Counter[str] = field(default_factory=Counter[str])
    """Customers by outcome."""
    now: float = 0.0
    """The present time (loop's clock): that of the last event, or later if the view sets it."""

    @property
    def active(self) -> list[CustomerProgress]:
        """The customers in progress, in the order of the manifest."""
        return [customer for customer in self.customers.values() if customer.step in ACTIVE]

    def note(self, event: Event) -> None:
        """Record an event."""
        self.now = max(self.now, event.at)
        match event:
            case MigrationChanged():
                self._step(event)
            case RequestDone() if not event.is_external:
                self.answers.append(event.at)
            case AttemptFailed() if event.external_id in self.customers:
                self.customers[event.external_id].trouble = LastFailure.of(event).words
            case Recovered() if event.external_id in self.customers:
                self.customers[event.external_id].trouble = ""
            case RunChanged() if (name := self.owners.get(event.ids["run"])) in self.customers:
                self.customers[name].text = event.progress or ""
            case SlotAwaited() if event.external_id in self.customers:
                wait = None if event.seconds is None else f"`{event.budget}` {spoken_wait(event.seconds)}"
                self.customers[event.external_id].text = f"waiting for {wait or 'a run slot'}"
            case RunEnded() if event.seconds is not None:
                self.longest_run = max(event.seconds, self.longest_run or 0.0)
            case _:
                pass
        while self.answers and self.answers[0] < self.now - _WINDOW:
            self.answers.popleft()

    def _step(self, event: MigrationChanged) -> None:
        self.owners.update(dict.fromkeys(event.ids.values(), event.external_id))
        customer = self.customers.get(event.external_id)
        if customer is None or event.step not in ACTIVE or customer.step in self.ended:
            return
        if customer.step == event.step == "uploading":
            customer.files = max(0, customer.files - 1)
        if customer.step == "waiting":
            customer.began = event.at
        if customer.step != event.step:
            customer.since, customer.text = event.at, ""
        customer.step, customer.trouble = event.step, ""
        if event.detail and not (event.step == "running" and "run" in event.ids):
            customer.text = event.detail

    def finish(self, status: CustomerStatus) -> None:
        """Record how one customer's migration ended."""
        self.ended[status.outcome] += 1
        self.customers[status.external_id].step = status.outcome

    def left(self) -> list[RemainingWork]:
        """Return the remaining work of each customer that has not ended."""
        return [
            RemainingWork(
                step=customer.step,
                files=customer.files,
                age=self.now - customer.since if customer.step == "running" else None,
            )
            for customer in self.customers.values()
            if customer.step in ACTIVE or customer.step == "waiting"
        ]


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
        "_state",
    )

    def __init__(
        self,
        session: Session,
        console: Console,
        files: Mapping[str, int],
        settings: Settings,
        display: Display,
    ) -> None:
        """`files`: the number of files of each customer."""
        self._session, self._console, self._settings, self._display = session, console, settings, display
        self._draws = draws(console) and not display.quiet
        self._state = LiveState({name: CustomerProgress(name, count) for name, count in files.items()})
        self._known: frozenset[str] = frozenset()
        self._pending: set[str] = set()
        self._last = ""

    @contextmanager
    def following(self) -> Generator[None]:
        """Show the events of the session until the block ends."""
        events = self._session.events
        with events.subscribe(self._state.note), events.subscribe(self._tell):
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

    @contextmanager
    def _every(self, seconds: float, show: Callable[[], None]) -> Generator[None]:
        """Call `show` at this interval (wall-clock seconds), on the event loop."""
        loop, pause = asyncio.get_running_loop(), seconds * self._settings.speed
        timer: asyncio.TimerHandle

        def tick() -> None:
            nonlocal timer
            self._state.now = loop.time()
            show()
            timer = loop.call_later(pause, tick)

        timer = loop.call_later(pause, tick)
        try:
            yield
        finally:
            timer.cancel()

    def known(self, rows: Collection[CustomerStatus]) -> None:
        """Take the statuses in the journal. Customers that were delivered before are only counted."""
        for row in rows:
            self._state.owners.update(dict.fromkeys(row.ids.values(), row.external_id))
        self._known = frozenset(row.external_id for row in rows if row.outcome == "delivered")
        if self._known and not self._display.quiet:
            say(self._console, f"Delivered before: {counted(len(self._known), 'customer')}.", "dim")

    def ended(self, status: CustomerStatus) -> None:
        """Print how one customer's migration ended, unless the line would be redundant."""
        self._state.finish(status)
        if not self._hides(status):
            say(self._console, outcome_line(status), STYLES[status.outcome])
        for note in () if self._display.quiet else status.notes:
            say(self._console, f"{'note':>9}  {status.external_id}  {clean(note)}", "dim")

    def _hides(self, status: CustomerStatus) -> bool:
        if status.outcome == "delivered":
            return self._draws or self._display.quiet or status.external_id in self._known
        if status.outcome == "pending":  # all pending customers have the same reason, such as a refused key
            error = status.error or ""
            printed = error in self._pending
            self._pending.add(error)
            return printed
        return False

    def status(self) -> str:
        """Return one line about the whole fleet."""
        parts = (self._done(), self._under_way(), self._failing(), self._budgets(), *self._waits())
        return " · ".join(part for part in parts if part)

    def _say_if_changed(self) -> None:
        """Print the line about the whole fleet if it has changed."""
        counts = f"{self._done()} {self._under_way()} {bool(self._failing())}"
        if counts != self._last:
            self._last = counts
            say(self._console, self.status())

    def _tell(self, event: Event) -> None:
        """Print an event that gets a line of its own."""
        if not self._display.quiet and (line := _news(event, verbose=self._display.verbose)):
            say(self._console, line, "dim")

    def _view(self) -> RenderableType:
        """Return the view for the terminal's size. Lines are cut between words."""
        state, width = self._state, self._console.width
        bar = Table.grid(padding=(0, 1))
        bar.add_row(
            ProgressBar(
                total=max(1, len(state.customers)),
                completed=state.ended.total(),
                width=30,
                complete_style="green",
                finished_style="green",
            ),
            " · ".join(part for part in (self._done(), self._time_left()) if part),
        )
        lines = [(self._under_way(), ""), (self._budgets(), "dim")]
        lines += [(text, "yellow") for text in (self._failing(), *self._waits()) if text]
        lines += self._slowest(min(_SLOWEST, max(0, self._console.height - _BESIDES)))
        return Group(bar, *(Text(shortened(text, width), style=style) for text, style in lines))

    def _done(self) -> str:
        """Return how many customers have ended, and with which outcomes."""
        ended = self._state.ended
        each = ", ".join(f"{count} {kind}" for kind, count in sorted(ended.items()))
        return f"{ended.total()} of {len(self._state.customers)} done" + (f" ({each})" if each else "")

    def _under_way(self) -> str:
        """Return how many customers are at each step."""
        steps = Counter[str](customer.step for customer in self._state.customers.values())
        return ", ".join(f"{steps[step]} {step}" for step in ("waiting", *ACTIVE) if steps[step])

    def _failing(self) -> str:
        """Return how many customers repeat a failed attempt, and the failure of the first one."""
        troubled = [each for each in self._state.active if each.trouble]
        first = next((f"{each.external_id}: {clean(each.trouble, 300)}" for each in troubled), "")
        return f"{counted(len(troubled), 'customer')} retrying, {first}" if first else ""

    def _slowest(self, most: int) -> Iterator[tuple[str, str]]:
        """Yield a line and its style for each of the customers that have been in progress for the longest time."""
        slowest = sorted(self._state.active, key=lambda customer: customer.began)[:most]
        names = [clean(each.external_id) for each in slowest]
        widest = max(map(len, names), default=0)
        for name, each in zip(names, slowest, strict=True):
            since = spoken(max(0.0, self._state.now - each.since))
            line = f"{name:<{widest}}  {each.step:<11}  {since:<12}  {clean(each.trouble or each.text)}"
            yield line.rstrip(), "yellow" if each.trouble else "cyan"

    def _budgets(self) -> str:
        """Return the requests of the last minute, and the budgets that are used most."""
        gates = sorted(self._session.stats().values(), key=lambda gate: gate.used / gate.slots, reverse=True)
        shares = [f"{_short(gate.name)} {gate.used}/{gate.slots}" for gate in gates[:_BUDGETS] if gate.used]
        answered = sum(at >= self._state.now - _WINDOW for at in self._state.answers)
        sent = f"{counted(answered, 'request')} in the last minute"
        return f"{sent}; used of the limit: {', '.join(shares)}" if shares else sent

    def _waits(self) -> Iterator[str]:
        """Yield the budgets that hold requests back now, and the run slots if they do. Waiting polls do not count."""
        now = self._state.now
        for gate in self._session.stats().values():
            if gate.held_until is not None and gate.held_until > now:
                wait = spoken_wait(gate.held_until - now)
                when = wait if wait.startswith("until") else f"for {wait}"
                yield f"{_short(gate.name)}: over the limit (429), nothing is sent {when}"
            elif waiting := _work_waiting(gate):
                requests = counted(waiting, "request")
                wait = spoken_wait(self._session.budget(gate.name).wait_estimate())
                yield f"{_short(gate.name)}: {requests} waiting for the limit, {wait}"
        yield from full_run_slots(self._session.run_slots(), now, self._state.owners)

    def _time_left(self) -> str:
        """Return the time that is left; empty if there is no estimate."""
        session, settings = self._session, self._settings
        left = forecast(
            self._state.left(),
            self._state.longest_run,
            limits=settings.all_limits,
            concurrency=settings.concurrency,
            api=settings.api,
        )
        waiting = (gate.name for gate in session.stats().values() if _work_waiting(gate))
        waits = [session.budget(name).wait_estimate() for name in waiting]
        seconds = max(left.seconds, *waits, 0.0)
        return f"{'at least' if left.is_bound else 'about'} {spoken(seconds)} left" if seconds else ""


def full_run_slots(slots: RunSlotsStatistics, now: float, owners: Mapping[str, str]) -> Iterator[str]:
    """Yield a line about runs that wait for a person, and one if no further run can be started now."""
    if slots.waits_for_person:
        names = listed([clean(owners.get(each, each)) for each in slots.waits_for_person])
        keeps = "keeps a run slot" if len(slots.waits_for_person) == 1 else "keep a run slot each"
        yield f"{names}: waiting for a person (asyncmig review), {keeps} until then"
    taken = len(slots.runs) + slots.others
    if slots.limit is None or (taken < slots.limit and slots.held_until is None):
        return
    others = f", {slots.others} of them not ours" if slots.others else ""
    again = f"; the next try in {spoken(slots.held_until - now)}" if slots.held_until is not None else ""
    yield f"{taken} of {slots.limit} runs in progress{others}{again}"


def _work_waiting(gate: GateStatistics) -> int:
    """Return how many requests wait that are not polls."""
    return sum(gate.waiting.get(lane, 0) for lane in ("DECIDE", "WORK"))


def _short(name: str) -> str:
    if name == "*":
        return "all requests"
    return name.replace("/companies/{id}", "…").replace("/migrations/{id}", "…")


def _news(event: Event, *, verbose: bool) -> str | None:
    """Return the line about an event; None if it gets none."""
    match event:
        case Held():
            what = f"answered 429, nothing is sent there for {event.seconds:.1f} s"
            return f"{'limit':>9}  {event.budget}: {what}"
        case RunStalled():
            run = f"run {clean(event.ids['run'])}" + (f" of {event.external_id}" if event.external_id else "")
            return f"{'stalled':>9}  {run} has not ended after {event.seconds / 60:.0f} min"
        case MigrationChanged() if verbose:
            return f"{event.step:>11}  {event.external_id}  {clean(event.detail)}".rstrip()
        case AttemptFailed() if verbose:
            return failure_line(event)
        case Recovered() if verbose:
            return f"{'recovered':>11}  {whose(event)}  {event.endpoint}: after {event.attempts} attempts"
        case RunChanged() if verbose:
            run = f"run {clean(event.ids['run'])}"
            return f"{clean(event.status):>11}  {run}  {clean(event.progress or '')}".rstrip()
        case _:
            return None
