"""What ends a fleet early: Ctrl-C and SIGTERM (the first one in order, the second one at once), and limits."""

import asyncio
import contextlib
import signal
from types import TracebackType
from typing import Self, final

from rich.console import Console

from asyncmig._io.tasks import start_task
from asyncmig.cli.terminal import say
from asyncmig.errors import SessionClosed
from asyncmig.fleet import Fleet
from asyncmig.session import Session

__all__ = ["Interrupts"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@final
class Interrupts:
    """While the block runs, a signal drains the fleet, and a second one cancels the task that entered it.

    Signals belong to the main thread; elsewhere, and on a loop without signal handlers, this does nothing.
    """

    __slots__ = ("_drain", "_session", "_task", "_words", "count", "fleet", "reason")

    def __init__(self, session: Session, words: Console) -> None:
        self._session, self._words = session, words
        self.count: int = 0
        self.fleet: Fleet | None = None
        """The fleet to drain, once there is one; until then the session is closed."""
        self.reason: str | None = None
        """Why nothing new is started; None while all goes on."""
        self._drain: asyncio.Task[None] | None = None

    def __enter__(self) -> Self:
        self._task = asyncio.current_task()
        loop = asyncio.get_running_loop()
        with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
            for number in _SIGNALS:
                loop.add_signal_handler(number, self.interrupt)
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
            for number in _SIGNALS:
                loop.remove_signal_handler(number)

    def interrupt(self) -> None:
        """Do what the next signal does."""
        self.count += 1
        if self.count > 1:
            if self.count == 2 and self._task is not None:
                say(self._words, "Stopping at once.", "yellow")
                self._task.cancel()
            return
        words = (
            "Interrupted: nothing new is started, requests in flight may end (again Ctrl-C: stop at once)."
        )
        self.stop("interrupted", words)

    def stop(self, reason: str, words: str | None = None) -> None:
        """End in order, as the first signal does; nothing happens if that was begun already."""
        if self.reason is not None:
            return
        self.reason = reason
        say(self._words, words or f"Ending early: {reason}. Requests in flight may end.", "yellow")
        if self.fleet is None:
            self._session.close(SessionClosed("interrupted: the same command goes on from here"))
        else:
            self._drain = start_task(self.fleet.drain(), name="asyncmig drain")

    async def settled(self) -> None:
        """Wait for the orderly end, if one was begun."""
        if self._drain is not None:
            await self._drain
