"""End a fleet early: on a signal, at a limit of the command, and if stdout or stderr cannot be written.

The first signal drains the fleet. A second SIGINT or SIGTERM cancels it.
"""

import asyncio
import contextlib
import signal
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import TracebackType
from typing import Self, final

from rich.console import Console

from asyncmig._io.event_loop import start_task
from asyncmig.cli.output import GuardedStream, guarded_streams, say
from asyncmig.errors import SessionClosed
from asyncmig.jobs.fleet import Fleet
from asyncmig.session import Session

__all__ = ["Interrupts", "handling_signals", "stopping_on_failure"]

_HANGUP: signal.Signals | None = getattr(signal, "SIGHUP", None)
"""Sent when the terminal closes; Windows does not have it."""


@contextmanager
def handling_signals(interrupted: Callable[[], None], hung_up: Callable[[], None]) -> Generator[None]:
    """Call `interrupted` for each SIGINT and SIGTERM, and `hung_up` for each SIGHUP, until the block ends.

    A SIGHUP that was ignored when the process started (nohup) stays ignored. Outside the main thread, and on a loop
    without signal handlers, nothing is called.
    """
    loop, is_gone = asyncio.get_running_loop(), asyncio.Event()

    def hang_up() -> None:
        is_gone.set()
        hung_up()

    handlers = {signal.SIGINT: interrupted, signal.SIGTERM: interrupted}
    if _HANGUP is not None and signal.getsignal(_HANGUP) is not signal.SIG_IGN:
        handlers[_HANGUP] = hang_up
    installed: list[signal.Signals] = []
    with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
        for number, handler in handlers.items():
            loop.add_signal_handler(number, handler)
            installed.append(number)
    try:
        yield
    finally:
        for number in installed:
            loop.remove_signal_handler(number)
        if _HANGUP is not None and is_gone.is_set():
            signal.signal(
                _HANGUP, signal.SIG_IGN
            )  # the shell may send a second one while the report is written


@final
class Interrupts:
    """Inside the block, the first signal drains the fleet; a second one cancels the task that entered the block."""

    __slots__ = ("_drain", "_session", "_signals", "_task", "_words", "count", "fleet", "over", "reason")

    def __init__(self, session: Session, words: Console) -> None:
        self._session, self._words = session, words
        self.count: int = 0
        self.fleet: Fleet | None = None
        """The fleet to drain. While it is None, the session is closed instead."""
        self.reason: str | None = None
        """Why the run ends early; None if it does not."""
        self.over: asyncio.Event = asyncio.Event()
        """Set when `reason` is."""
        self._drain: asyncio.Task[None] | None = None

    def __enter__(self) -> Self:
        self._task = asyncio.current_task()
        self._signals = handling_signals(self.interrupt, self.hang_up)
        self._signals.__enter__()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._signals.__exit__(None, None, None)

    def interrupt(self) -> None:
        """Handle SIGINT or SIGTERM."""
        self.count += 1
        if self.count > 1:
            if self.count == 2 and self._task is not None:
                say(self._words, "Stopping at once.", "yellow")
                self._task.cancel()
            return
        words = "Interrupted: no new work is started; requests in flight may end. Press Ctrl-C again to stop at once."
        self.stop("interrupted", words)

    def hang_up(self) -> None:
        """Handle SIGHUP: drain. The kernel and the shell may both send one, so a second one is ignored."""
        if self.count == 0:
            self.count = 1
            self.stop("the terminal was closed (SIGHUP)")

    def stop(self, reason: str, words: str | None = None) -> None:
        """Drain the fleet, as the first signal does; a second call is ignored."""
        if self.reason is not None:
            return
        self.reason = reason
        self.over.set()
        say(self._words, words or f"Ending early: {reason}. Requests in flight may end.", "yellow")
        if self.fleet is None:
            self._session.close(SessionClosed("interrupted: the same command continues from here"))
        else:
            self._drain = start_task(self.fleet.drain(), name="asyncmig drain")

    async def settled(self) -> None:
        """Wait until the fleet is drained, if `stop` was called."""
        if self._drain is not None:
            await self._drain


@contextmanager
def stopping_on_failure(interrupts: Interrupts) -> Generator[None]:
    """Drain the fleet if stdout or stderr cannot be written, until the block ends."""
    loop = asyncio.get_running_loop()

    def failed(stream: GuardedStream) -> None:  # later, because a console is in the middle of a line
        loop.call_soon_threadsafe(interrupts.stop, stream.trouble)

    with contextlib.ExitStack() as exits:
        for stream in guarded_streams():
            exits.enter_context(stream.on_failure(failed))
        yield
