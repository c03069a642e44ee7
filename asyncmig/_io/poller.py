"""The polls of all runs of a session. Any number of tasks can wait for a run, and share its polls."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Mapping
from dataclasses import replace
from typing import TypeVar, cast, final
from weakref import WeakValueDictionary

from asyncmig._core.lifecycle import Lifecycle
from asyncmig._io.event_loop import finish_all
from asyncmig._io.gate import Gate, Slot
from asyncmig._io.poll_group import PollGroup, RunWarnings
from asyncmig._io.watch import Reading, SecondChannel, Unsure, Watch
from asyncmig.errors import AsyncmigError, SessionClosed
from asyncmig.events import Events

__all__ = ["Poller", "Reading", "SecondChannel", "Unsure", "Watch"]

T = TypeVar("T")
_NO_IDS: Mapping[str, str] = {}


@final
class Poller:
    """Polls runs, with a schedule for each gate. `aclose` must end it.

    `second_channel`: whether to look runs up through their second channel while the budget of their reads is short.
    `events`: receives failed reads, and changed, ended and stalled runs. `loop`: returns the event loop; raises
    `UsageError` on another one.
    """

    __slots__ = (
        "_classes",
        "_closed",
        "_groups",
        "_loop",
        "_second_channel",
        "_warnings",
        "_watches",
        "shortest_floor",
    )

    def __init__(
        self,
        *,
        second_channel: bool = False,
        events: Events | None = None,
        loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.get_running_loop,
    ) -> None:
        self._loop = loop
        self._classes: dict[tuple[Lifecycle, Hashable], tuple[Lifecycle, Hashable]] = {}
        """One object for each class of runs, to which many runs refer."""
        self.shortest_floor: float | None = None
        """Replaces the floor of young runs, in seconds, for a simulated server in this process. For older runs, the
        floor is then a tenth of their age."""
        self._second_channel, self._warnings = second_channel, RunWarnings(events or Events())
        self._groups: dict[Gate, PollGroup] = {}
        self._watches: WeakValueDictionary[Hashable, Watch[object]] = WeakValueDictionary()
        self._closed: AsyncmigError | None = None

    async def aclose(self) -> None:
        """Stop polling; every wait ends with `SessionClosed`. The runs continue on the server."""
        self.close()
        await finish_all([group.aclose for group in self._groups.values()])

    def close(self, error: AsyncmigError | None = None) -> None:
        """End every wait, present and future, with `error` (default `SessionClosed`). Reads in progress continue."""
        if self._closed is None:
            self._closed = error or SessionClosed()
            for group in self._groups.values():
                group.break_off(self._closed)

    def now(self) -> float:
        """Return the loop's time. Raises `UsageError` on another event loop."""
        return self._loop().time()

    def watch(
        self,
        run: Hashable,
        *,
        gate: Gate,
        read: Callable[[Slot], Awaitable[Reading[T]]],
        lifecycle: Lifecycle,
        started: float,
        group: Hashable = None,
        second: SecondChannel[T] | None = None,
        ids: Mapping[str, str] = _NO_IDS,
        event_ids: Callable[[], Mapping[str, str]] = lambda: _NO_IDS,
    ) -> Watch[T]:
        """Return the watch of `run`. All callers get the same watch, as long as any of them has a reference to it.

        `read`: makes one attempt with the given slot. After `RateLimited`, `ServerError`, `NoAnswer`,
        `UnexpectedReply`, and `NotFound` within `Lifecycle.read_lag`, the run is polled again later. `AuthError` and
        `SessionClosed` end all polling. Any other error ends the waits for this run.

        `started`: a time on the loop's clock. `group`: the durations of all runs of a group have the same estimate;
        use few groups. `second`: the second channel of the run. `ids`: the values of the placeholders in the route of
        the reads, for events about reads. `event_ids`: returns the server's ids by kind, for events about the run.
        """
        found = self._watches.get(run)
        if found is None or found.closed:
            if self.shortest_floor is not None:
                lifecycle = replace(lifecycle, shortest_floor=self.shortest_floor, age_per_floor=10.0)
            if not self._second_channel or (second is not None and second.gate is gate):
                second = None  # it is not enabled, or has no budget of its own
            polls = self._group_of(gate)
            if second is not None:
                polls.use_second(second.gate)
            made = Watch(
                run,
                polls,
                started=started,
                group=self._classes.setdefault((lifecycle, group), (lifecycle, group)),
                read=read,
                lifecycle=lifecycle,
                second=second,
                ids=ids,
                event_ids=event_ids,
            )
            found = self._watches[run] = cast("Watch[object]", made)
        return cast("Watch[T]", found)  # all reads of a run return the same type

    def _group_of(self, gate: Gate) -> PollGroup:
        group = self._groups.get(gate)
        if group is None:
            group = self._groups[gate] = PollGroup(
                gate, warnings=self._warnings, close=self.close, loop=self._loop
            )
            if self._closed is not None:
                group.break_off(self._closed)
        return group
