"""`--report`: follows a session's events, and writes the HTML report at the end."""

import asyncio
import logging
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import final

from asyncmig.cli.files import write_whole
from asyncmig.cli.options import Options
from asyncmig.cli.page import Page, render
from asyncmig.cli.report import Budget, CompanyRow
from asyncmig.cli.timeline import Timeline
from asyncmig.errors import InvalidInput
from asyncmig.events import Event
from asyncmig.jobs.outputs import check_replaceable
from asyncmig.session import Session

__all__ = ["Recorder", "check_place", "write_page", "written_now"]

_log = logging.getLogger("asyncmig")


@final
class Recorder:
    """Keeps what the report of a run needs; without `options.report` it does nothing."""

    __slots__ = ("_loop", "_options", "_session", "_timeline")

    def __init__(self, session: Session, options: Options) -> None:
        self._session, self._options, self._loop = session, options, asyncio.get_running_loop()
        self._timeline = Timeline(began=self._loop.time(), window=options.rate.window)

    @contextmanager
    def following(self) -> Generator[None]:
        """Follow the session until the block ends."""
        if self._options.report is None:
            yield
            return
        with self._session.events.subscribe(self._note):
            yield
        self._timeline.end(self._loop.time())

    def write(self, rows: Sequence[CompanyRow], budget: Budget, reason: str | None) -> None:
        """Write the report, or warn that it cannot be written: what was migrated is migrated all the same."""
        place = self._options.report
        if place is None:
            return
        try:
            write_page(place, self._page(rows, budget, reason))
        except OSError as error:
            _log.warning("%s cannot be written: %s", place, error)

    def _note(self, event: Event) -> None:
        self._timeline.note(event, by=asyncio.current_task())

    def _page(self, rows: Sequence[CompanyRow], budget: Budget, reason: str | None) -> Page:
        options = self._options
        return Page(
            title=options.manifest.name,
            written=written_now(),
            rows=rows,
            timeline=self._timeline,
            budget=budget,
            rate=options.rate,
            by_key=options.scope == "key",
            reason=reason,
            notes=tuple(_notes(options.speed)),
        )


def _notes(speed: float) -> Iterator[str]:
    if speed != 1:
        yield (
            f"The clock ran {speed:g} times as fast as the wall's: all times are that clock's, and a moment in which "
            "this computer was slow counts so many times, too."
        )
    yield "What happened before this run of the command is not in the pictures."
    yield "Waits for the limit are those of a customer's own requests, with the pauses after a 429."
    yield "When an import ended only the server knows: since the last look at which it went on counts as not noticed."
    yield "“Rows in” are those that the server says it imported, “rows out” those in the files that were fetched."


def check_place(path: Path | None) -> None:
    """Raise `InvalidInput` for a report that has no place, or would replace another file, before anything begins."""
    if path is None:
        return
    if path.is_dir() or not path.parent.is_dir():
        reason = "is a folder" if path.is_dir() else "lies in a folder that does not exist"
        raise InvalidInput("report", str(path), f"{reason}: name a file")
    check_replaceable("report", path, "a report")


def write_page(path: Path, page: Page) -> None:
    """Write a page, whole or not at all. Raises `OSError`."""
    write_whole(path, render(page).encode())


def written_now() -> str:
    """Return when a page is written, and by whom."""
    return f"Written {datetime.now(UTC):%Y-%m-%d %H:%M} UTC by asyncmig {version('asyncmig')}"
