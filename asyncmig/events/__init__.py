"""Events and logging: what happens inside a session, as frozen records.

There are two ways to receive events. `subscribe` registers a callback, which is called at once, in the task in which
the event happens; it must not block. `open` returns an async iterator with a buffer, for a task of its own:

```python
from asyncmig.events import Held, RequestDone, RunEnded

async with asyncmig.Session() as session:
    with session.events.subscribe(print), session.events.open(RequestDone, RunEnded, Held) as events:
        await session.companies.sources()
        event = await anext(events)
        match event:
            case RequestDone():
                print(event.endpoint, event.status)
            case RunEnded() | Held():
                print(event)
```

A callback cannot break a call: if it raises, the error is logged and the callback is removed. An iterator cannot slow
a call down: if its buffer is full, the oldest event is dropped and counted in `EventStream.dropped`. All times are
seconds on the event loop's clock, so that the events of one session form one timeline.

`AttemptFailed` states which attempt failed, why, and how long the step is repeated. It reports the first failure of a
step, and further ones at intervals that double. `Recovered` states that the step has succeeded.

The logger `asyncmig` receives the same events. It prints nothing until you configure logging. Requests have the level
DEBUG; holds, runs and migrations INFO; stalled runs, blocked run slots and failed attempts WARNING. Each log record
has the event's fields as attributes, and its name as the attribute `event`.
"""

import asyncio
import inspect
import logging
from collections import deque
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import TracebackType
from typing import Generic, Self, TypeVar, cast, final, overload

import msgspec

from asyncmig.errors import InvalidInput
from asyncmig.events.records import (
    AttemptFailed,
    BudgetLearnt,
    Event,
    Held,
    MigrationChanged,
    Recovered,
    RequestDone,
    RequestSent,
    RunChanged,
    RunEnded,
    RunSlotsBlocked,
    RunSlotsChanged,
    RunStalled,
    SharedWindowFound,
    SharedWindowLost,
    SlotAwaited,
)

__all__ = [
    "AttemptFailed",
    "BudgetLearnt",
    "Event",
    "EventStream",
    "EventT",
    "Events",
    "Held",
    "MigrationChanged",
    "Recovered",
    "RequestDone",
    "RequestSent",
    "RunChanged",
    "RunEnded",
    "RunSlotsBlocked",
    "RunSlotsChanged",
    "RunStalled",
    "SharedWindowFound",
    "SharedWindowLost",
    "SlotAwaited",
]

_log = logging.getLogger("asyncmig")
_log.addHandler(logging.NullHandler())

EventT = TypeVar("EventT", bound=Event)
"""The kind of event that a stream yields."""
_B = TypeVar("_B", bound=Event)
_C = TypeVar("_C", bound=Event)

_Subscriber = tuple[Callable[[Event], None], tuple[type[Event], ...]]
"""A callback, and the kinds of events that it gets; without any, it gets all."""
_REQUESTS = frozenset({RequestSent, RequestDone})

_LEVELS: dict[type[Event], int] = {
    RequestDone: logging.DEBUG,
    Held: logging.INFO,
    BudgetLearnt: logging.INFO,
    RunChanged: logging.INFO,
    RunEnded: logging.INFO,
    RunSlotsBlocked: logging.WARNING,
    SlotAwaited: logging.INFO,
    RunStalled: logging.WARNING,
    MigrationChanged: logging.INFO,
    AttemptFailed: logging.WARNING,
    Recovered: logging.INFO,
}
"""The log level of each event; other events are not logged.

A request is logged once, when it is done. The loss of a shared window is logged where it is detected.
"""


@final
class Events:
    """Passes each event to every subscriber, in order, in the task in which it happens."""

    __slots__ = ("_closed", "_has_request_subscriber", "_streams", "_subscribers")

    def __init__(self) -> None:
        self._subscribers: list[_Subscriber] = []
        self._streams: list[EventStream[Event]] = []
        self._closed = self._has_request_subscriber = False

    @contextmanager
    def subscribe(self, subscriber: Callable[[Event], None], *kinds: type[Event]) -> Generator[None]:
        """Call `subscriber` with each event, or with those of some `kinds`, until the `with` block ends.

        `subscriber` must not block. If it raises, the error is logged and `subscriber` is removed. Raises
        `InvalidInput` for a coroutine function, because nothing would await it: use `open` instead.
        """
        if inspect.iscoroutinefunction(subscriber):
            raise InvalidInput(
                "subscriber", subscriber, "is a coroutine function: iterate over `events.open()`"
            )
        entry = subscriber, kinds
        self._subscribers.append(entry)
        self._find_request_subscriber()
        try:
            yield
        finally:
            self._remove(entry)

    @overload
    def open(self, *, buffer: int = 10_000) -> "EventStream[Event]": ...
    @overload
    def open(
        self, a: type[EventT], b: type[_B], /, *, buffer: int = 10_000
    ) -> "EventStream[EventT | _B]": ...
    @overload
    def open(
        self, a: type[EventT], b: type[_B], c: type[_C], /, *, buffer: int = 10_000
    ) -> "EventStream[EventT | _B | _C]": ...
    @overload
    def open(self, *kinds: type[EventT], buffer: int = 10_000) -> "EventStream[EventT]": ...
    def open(  # pyright: ignore[reportInconsistentOverload] - a stream is invariant
        self, *kinds: type[EventT], buffer: int = 10_000
    ) -> "EventStream[EventT]":
        """Return an async iterator over the events from now on, or over those of some `kinds`. Use it in a `with`
        block.

        `buffer`: the most events that are kept until the iterator's user takes them. Further events replace the
        oldest ones, which are counted in `dropped`. The iteration ends when the session is closed. Raises
        `InvalidInput` for a buffer of less than one event.
        """
        return EventStream(self._streams, kinds, buffer, ended=self._closed)

    @property
    def wants_requests(self) -> bool:
        """Whether a subscriber, a stream or the logger receives requests. If not, callers make no events of
        requests."""
        return self._has_request_subscriber or bool(self._streams) or _log.isEnabledFor(logging.DEBUG)

    def emit(self, event: Event) -> None:
        """Pass an event to every subscriber, every stream and the log."""
        for entry in tuple(self._subscribers):
            subscriber, kinds = entry
            if kinds and not isinstance(event, kinds):
                continue
            try:
                subscriber(event)
            # Nothing is awaited here, so this is not a cancellation of the task.
            except (Exception, asyncio.CancelledError):
                _log.exception("a subscriber of events failed and is removed")
                self._remove(entry)
        for stream in self._streams:
            stream.put(event)
        level = _LEVELS.get(type(event), logging.NOTSET)
        if level and _log.isEnabledFor(level):
            _log_event(level, event)

    def close(self) -> None:
        """End every stream after the events in its buffer."""
        self._closed = True
        for stream in tuple(self._streams):
            stream.close()

    def _remove(self, entry: "_Subscriber") -> None:
        if entry in self._subscribers:
            self._subscribers.remove(entry)
            self._find_request_subscriber()

    def _find_request_subscriber(self) -> None:
        self._has_request_subscriber = any(
            not kinds or not _REQUESTS.isdisjoint(kinds) for _, kinds in self._subscribers
        )


@final
class EventStream(Generic[EventT]):
    """An async iterator over events, in the order in which they happened."""

    __slots__ = ("_buffer", "_ended", "_kinds", "_streams", "_wake", "dropped")

    def __init__(
        self,
        streams: "list[EventStream[Event]]",
        kinds: tuple[type[EventT], ...],
        buffer: int,
        *,
        ended: bool,
    ) -> None:
        if not isinstance(cast(object, buffer), int) or buffer < 1:
            raise InvalidInput("buffer", buffer, "must hold at least one event")
        self._streams, self._kinds, self._ended = streams, kinds, ended
        self._buffer: deque[EventT] = deque(maxlen=buffer)
        self._wake = asyncio.Event()
        self.dropped: int = 0
        """The number of events that arrived while the buffer was full. Each of them replaced the oldest event."""
        if not ended:
            streams.append(cast("EventStream[Event]", self))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> EventT:
        while not self._buffer:
            if self._ended:
                raise StopAsyncIteration
            self._wake.clear()
            await self._wake.wait()
        return self._buffer.popleft()

    def put(self, event: Event) -> None:
        """Buffer an event, if it is of a requested kind."""
        if self._kinds and not isinstance(event, self._kinds):
            return
        self.dropped += len(self._buffer) == self._buffer.maxlen
        self._buffer.append(cast("EventT", event))
        self._wake.set()

    def close(self) -> None:
        """Accept no more events. The iteration ends after the events in the buffer."""
        self._ended = True
        self._wake.set()
        this = cast("EventStream[Event]", self)
        if this in self._streams:
            self._streams.remove(this)


def _log_event(level: int, event: Event) -> None:
    """Log an event: its fields are the text of the line, and attributes of the log record."""
    fields: dict[str, object] = msgspec.structs.asdict(event)
    name = type(event).__name__
    words = " ".join(f"{field}={value!r}" for field, value in fields.items() if value not in (None, "", {}))
    _log.log(level, "%s %s", name, words, extra={"event": name, **fields})
