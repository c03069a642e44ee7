"""What an operator sees while a fleet runs: a live view on a terminal, plain lines elsewhere."""

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import contextmanager
from typing import final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from asyncmig.cli.terminal import clean, say
from asyncmig.companies.outcome import Delivered, Outcome, Pending
from asyncmig.events import Event, MigrationChanged, RequestDone
from asyncmig.session import Session

__all__ = ["STYLES", "Progress", "counted"]

STYLES = {"delivered": "green", "failed": "red", "parked": "yellow", "unknown": "magenta", "pending": "cyan"}
"""A colour for each outcome."""
_ACTIVE = ("checking", "creating", "uploading", "starting", "running", "deciding", "downloading", "exporting")
_WINDOW = 60.0
_LINE_EVERY = 5.0
"""Wall-clock seconds between lines about the whole fleet, where there is no terminal."""
_VIEW_EVERY = 0.2


@final
class Progress:
    """Follows a session's events and its fleet's outcomes, and shows them on `console`."""

    __slots__ = (
        "_answers",
        "_console",
        "_ended",
        "_known",
        "_now",
        "_pending",
        "_session",
        "_speed",
        "_steps",
        "_total",
    )

    def __init__(self, console: Console, external_ids: Sequence[str], *, speed: float = 1.0) -> None:
        self._console, self._speed, self._total = console, speed, len(external_ids)
        self._steps = dict.fromkeys(external_ids, "waiting")
        self._known: frozenset[str] = frozenset()
        self._pending: frozenset[str] = frozenset()
        self._ended: Counter[str] = Counter()
        self._answers: deque[float] = deque()
        self._session: Session | None = None
        self._now = 0.0

    @contextmanager
    def following(self, session: Session) -> Generator[None]:
        """Show what happens in `session` until the block ends."""
        self._session = session
        with session.events.subscribe(self._note):
            if not self._console.is_terminal:
                with self._every(_LINE_EVERY, lambda: say(self._console, self.status())):
                    yield
                return
            live = Live(self._view(), console=self._console, auto_refresh=False, transient=True)
            with live, self._every(_VIEW_EVERY, lambda: live.update(self._view(), refresh=True)):
                yield

    def known(self, delivered: Collection[str]) -> None:
        """Say which customers an earlier process has delivered: they are not shown one by one."""
        self._known = frozenset(delivered)
        if delivered:
            say(self._console, f"Delivered before: {counted(len(delivered), 'customer')}.", "dim")

    def ended(self, outcome: Outcome) -> None:
        """Show how one customer's migration ended, unless that is no news; on a terminal not if it was delivered."""
        kind = str(outcome.__struct_config__.tag)
        self._ended[kind] += 1
        self._steps[outcome.external_id] = kind
        if not self._hides(outcome):
            say(self._console, _line(kind, outcome), STYLES[kind])
        for note in outcome.notes:
            say(self._console, f"{'note':>9}  {outcome.external_id}  {clean(note)}", "dim")

    def _hides(self, outcome: Outcome) -> bool:
        if isinstance(outcome, Delivered):
            return self._console.is_terminal or outcome.external_id in self._known
        if isinstance(outcome, Pending):  # a refused key, or an interrupt, is the same for all of them
            said, self._pending = outcome.error in self._pending, self._pending | {outcome.error}
            return said
        return False

    def status(self) -> str:
        """Return one line about the whole fleet."""
        return " · ".join(part for part in (self._done(), self._under_way(), self._budget()) if part)

    def _done(self) -> str:
        ended = ", ".join(f"{count} {kind}" for kind, count in sorted(self._ended.items()))
        return f"{self._ended.total()} of {self._total} done" + (f" ({ended})" if ended else "")

    def _under_way(self) -> str:
        counts = Counter(self._steps.values())
        return ", ".join(f"{counts[step]} {step}" for step in ("waiting", *_ACTIVE) if counts[step])

    def _budget(self) -> str:
        """Return what was sent of late, and what the limit holds back at present."""
        while self._answers and self._answers[0] < self._now - _WINDOW:
            self._answers.popleft()
        sent = f"{counted(len(self._answers), 'request')} in the last minute"
        gates = self._session.stats().values() if self._session else ()
        waiting = sum(gate.waiting.get(lane, 0) for gate in gates for lane in ("DECIDE", "WORK"))
        return f"{sent}, {waiting} wait for the limit" if waiting else sent

    def _note(self, event: Event) -> None:
        now = self._now = asyncio.get_running_loop().time()
        match event:
            case MigrationChanged() if self._steps.get(event.external_id) not in STYLES:
                if event.step in _ACTIVE:
                    self._steps[event.external_id] = event.step
            case RequestDone():
                self._answers.append(now)
            case _:
                pass

    def _view(self) -> RenderableType:
        bar = Table.grid(padding=(0, 1))
        bar.add_row(
            ProgressBar(
                total=max(1, self._total),
                completed=self._ended.total(),
                width=30,
                complete_style="green",
                finished_style="green",
            ),
            self._done(),
        )
        return Group(bar, Text(self._under_way()), Text(self._budget(), style="dim"))

    @contextmanager
    def _every(self, seconds: float, show: Callable[[], None]) -> Generator[None]:
        """Call `show` every so many seconds of the wall-clock, in the loop's own thread."""
        loop, pause = asyncio.get_running_loop(), seconds * self._speed
        timer: asyncio.TimerHandle

        def tick() -> None:
            nonlocal timer
            self._now = loop.time()
            show()
            timer = loop.call_later(pause, tick)

        timer = loop.call_later(pause, tick)
        try:
            yield
        finally:
            timer.cancel()


def counted(count: int, noun: str) -> str:
    """Return a number and what it counts."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def _line(kind: str, outcome: Outcome) -> str:
    return f"{kind:>9}  {outcome.external_id}  {clean(outcome.name, 60)}: {_what(outcome)}"


def _what(outcome: Outcome) -> str:
    if not isinstance(outcome, Delivered):
        return clean(outcome.error)
    rows, sheets = sum(file.rows for file in outcome.files), len(outcome.files)
    flagged = outcome.report.invalid_rows if outcome.report else None
    bad = f", {flagged} with a bad cell" if flagged else ""
    return f"{counted(rows, 'row')} in {counted(sheets, 'sheet')}{bad} ({outcome.seconds:.0f} s)"
