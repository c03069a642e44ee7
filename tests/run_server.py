"""A simulated run and its reads, for the tests of the poller."""

import asyncio
from collections.abc import Callable
from dataclasses import replace

from asyncmig._io.gate import Slot
from asyncmig._io.poller import Reading, Watch
from asyncmig.companies.routes import IMPORT
from asyncmig.errors import ApiError, NoAnswer

LIFE = replace(IMPORT, terminal=frozenset({"completed", "failed"}))


class Server:
    """One run on a server: its statuses with their times, and the times and errors of its reads."""

    def __init__(self, *states: tuple[float, str], latency: float = 0.1) -> None:
        """Start the run. `states`: each status after its start in seconds; a progress text may follow a colon."""
        self.started = now()
        self.states, self.latency = list(states), latency
        self.troubles: list[Exception] = []
        self.sent: list[float] = []
        self.answered: list[float] = []

    async def __call__(self, slot: Slot) -> Reading[str]:
        self.sent.append(now())
        await asyncio.sleep(self.latency / 2)
        text = [status for since, status in self.states if self.started + since <= now()][-1]
        await asyncio.sleep(self.latency / 2)
        self.answered.append(now())
        if self.troubles:
            self._fail(slot, self.troubles.pop(0))
        slot.answered(200)
        return reading(text)

    def _fail(self, slot: Slot, trouble: Exception) -> None:
        if isinstance(trouble, ApiError):
            slot.answered(trouble.status)
        raise trouble


def reading(text: str) -> Reading[str]:
    """Return the reading for a status, which may have a progress text after a colon."""
    status, _, progress = text.partition(":")
    return Reading(status=status, progress=progress or None, value=text)


def refusal(kind: type[ApiError], status: int) -> ApiError:
    return kind("GET", "/runs/{run_id}", status, "the server's text")


def no_answer() -> NoAnswer:
    return NoAnswer("GET", "/runs/{run_id}", "time-out")


def now() -> float:
    return asyncio.get_running_loop().time()


def other_tasks() -> set["asyncio.Task[object]"]:
    """Return the tasks that have not ended, without the test's own task."""
    return {task for task in asyncio.all_tasks() if task is not asyncio.current_task()}


async def settle() -> None:
    """Run the tasks that are ready."""
    for _ in range(20):
        await asyncio.sleep(0)


OpenWatch = Callable[..., Watch[str]]
