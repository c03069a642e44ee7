"""Events and logging: what happens inside a session, as frozen records.

A callback is called at once, in the task in which the event happens, and must not block. An async iterator has a
buffer and is meant for a task of its own:

```python
from asyncmig.events import Held, RequestDone, RunEnded

async with asyncmig.Session() as session:
    with session.events.subscribe(print), session.events.open(RequestDone, RunEnded, Held) as events:
        await session.companies.sources()
        event = await anext(events)
        print(event.endpoint, event.status)
```

A subscriber cannot break a call: one that raises is logged and removed. An iterator cannot slow a call down: if
its buffer is full, the oldest event is dropped and counted in `EventStream.dropped`. All times are seconds on the
event loop's clock, so the events of one session form one timeline.

`AttemptFailed` says which attempt failed, why, and until when it is repeated: at the first failure of a step, and
then at intervals that double. `Recovered` says that the step succeeded after all.

The logger `asyncmig` receives the same events. It is silent until you configure logging. Requests are logged as
DEBUG; holds, runs and migrations as INFO; stalled runs and failed attempts as WARNING. Each record carries the
event's fields, and its name as `event`.
"""

import asyncio
import inspect
import logging
from collections import deque
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Generic, Self, TypeVar, cast, final, overload

import msgspec

from asyncmig.errors import InvalidInput

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
    "RunStalled",
    "SharedWindowFound",
    "SharedWindowLost",
]

_log = logging.getLogger("asyncmig")
_log.addHandler(logging.NullHandler())


class _Happening(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    at: float
    """When, on the loop's clock."""


class _Request(_Happening, frozen=True, kw_only=True):
    endpoint: str
    """Method and route template; `PUT {upload_url}` for an upload to a URL that the server named."""

    @property
    def is_external(self) -> bool:
        """Whether the request goes to a URL that the server named: another host, outside of the API's rate limit."""
        return not self.endpoint.partition(" ")[2].startswith("/")


class RequestSent(_Request, frozen=True, kw_only=True, tag=True):
    """A request is sent now: its slot of the rate limit was granted."""

    ids: Mapping[str, str] = {}
    """What stands in the route's placeholders."""
    lane: str
    attempt: int
    """From 1. A repeat after a 429 has the number of the attempt that was refused."""
    waited: float = 0.0
    """For the limit; the attempts before this one and the pauses between them are not in it."""


class RequestDone(_Request, frozen=True, kw_only=True, tag=True):
    """One attempt of one request ended."""

    ids: Mapping[str, str] = {}
    """What stands in the route's placeholders."""
    lane: str
    attempt: int
    waited: float = 0.0
    """For the limit, before it was sent."""
    seconds: float
    """From the send to the answer's end, or to the failure."""
    status: int | None
    """None: no answer came."""
    error: str | None = None
    """Why no answer came, or not all of it."""


class AttemptFailed(_Happening, frozen=True, kw_only=True, tag=True):
    """An attempt failed, and it is repeated: a request, an upload or download as a whole, or a status check.

    Also told of a journal that cannot be written (`endpoint` is `journal`), and of a shared window that is still away
    after `SharedWindowLost` (`shared window of BUDGET`).

    Not every failure is told: the first one of a step, and then one after 15 s, 30 s, 60 s, ... at most 10 minutes.
    """

    external_id: str | None = None
    """The customer on whose behalf it was made; None for calls outside of `migrate` and `Fleet`."""
    endpoint: str
    """Method and route template."""
    ids: Mapping[str, str] = {}
    """What stands in the route's placeholders, as far as it is known."""
    attempt: int
    """From 1, counted over the whole step; so many have failed."""
    attempts: int | None = None
    """The most attempts that are made; None if `until` limits them, or nothing does.

    Nothing limits status checks, and calls that wait for a server that answers nobody.
    """
    until: float | None = None
    """Until when it is tried again, on the loop's clock; None if `attempts` limits that, or nothing does."""
    status: int | None
    """None: no answer came, or not all of it."""
    error: str
    """The server's text, or why there is none."""


class Recovered(_Happening, frozen=True, kw_only=True, tag=True):
    """A step of which `AttemptFailed` told went well after all."""

    external_id: str | None = None
    endpoint: str
    """Method and route template of the failure that was told last."""
    ids: Mapping[str, str] = {}
    attempts: int
    """How many it took."""
    seconds: float
    """Since the failure that was told last."""


class Held(_Happening, frozen=True, kw_only=True, tag=True):
    """A 429 came: nobody sends to this budget for a while, and then one probe goes first."""

    budget: str
    """Method and route template; `*` where one budget is for all."""
    until: float
    seconds: float
    slots: int
    """W, the requests in a window that are believed in so far; what the 429 taught comes as `BudgetLearnt`."""
    burst: int
    """B, how many of them at once."""


class BudgetLearnt(_Happening, frozen=True, kw_only=True, tag=True):
    """A probe after a 429, a window without one, or a new limit changed what is believed of a budget."""

    budget: str
    """Method and route template; `*` where one budget is for all."""
    slots: int
    """W, the requests in a window."""
    burst: int
    """B, how many of them at once."""


class SharedWindowLost(_Happening, frozen=True, kw_only=True, tag=True):
    """The window that processes share cannot be reached: this one goes on with its share of it."""

    budget: str
    """Method and route template; `*` where one budget is for all."""
    slots: int
    """The share: the last known window, divided by the processes."""
    processes: int
    error: str


class SharedWindowFound(_Happening, frozen=True, kw_only=True, tag=True):
    """The window that processes share is back."""

    budget: str
    slots: int
    """W, the requests in a window of all processes."""
    seconds: float
    """For which it was away."""


class RunChanged(_Happening, frozen=True, kw_only=True, tag=True):
    """A run was read and had a new status or a new progress text."""

    company_id: str
    run_id: str
    status: str
    progress: str | None


class RunEnded(_Happening, frozen=True, kw_only=True, tag=True):
    """A run was read and had ended; its `RunChanged` came just before."""

    company_id: str
    run_id: str
    status: str
    seconds: float | None
    """For which it ran, without the time for which it was parked; None if nobody knows when it began."""
    noticed_within: float | None
    """Since it was last known to go on: its end was noticed at most so late. None if that was never seen."""


class RunStalled(_Happening, frozen=True, kw_only=True, tag=True, omit_defaults=True):
    """A run has not ended for longer than any should take; it is polled on."""

    external_id: str | None = None
    """The customer, if somebody waits for the run in `migrate` or `Fleet`."""
    company_id: str
    run_id: str
    seconds: float


class MigrationChanged(_Happening, frozen=True, kw_only=True, tag=True):
    """One customer's migration came to a step."""

    external_id: str
    company_id: str | None = None
    """None until the company is there."""
    run_id: str | None = None
    """None until its import has started."""
    step: str
    """checking, creating, uploading, starting, running, parked, deciding, downloading, exporting, or an outcome."""
    detail: str = ""


Event = (
    RequestSent
    | RequestDone
    | Held
    | BudgetLearnt
    | SharedWindowLost
    | SharedWindowFound
    | RunChanged
    | RunEnded
    | RunStalled
    | MigrationChanged
    | AttemptFailed
    | Recovered
)
"""Any event of a session."""
EventT = TypeVar("EventT", bound=Event)
"""The kind of event that a stream yields."""

_LEVELS: dict[type[Event], int] = {
    RequestDone: logging.DEBUG,
    Held: logging.INFO,
    BudgetLearnt: logging.INFO,
    RunChanged: logging.INFO,
    RunEnded: logging.INFO,
    RunStalled: logging.WARNING,
    MigrationChanged: logging.INFO,
    AttemptFailed: logging.WARNING,
    Recovered: logging.INFO,
}
"""What is logged, and how. A request is logged once, when it is done; of a lost window those warn who notice."""


@final
class Events:
    """Hands each event to every subscriber, in order, in the task where it happened."""

    __slots__ = ("_closed", "_streams", "_subscribers")

    def __init__(self) -> None:
        self._subscribers: list[Callable[[Event], None]] = []
        self._streams: list[EventStream[Event]] = []
        self._closed = False

    @contextmanager
    def subscribe(self, subscriber: Callable[[Event], None]) -> Generator[None]:
        """Call `subscriber` with each event until the block ends. It must not block.

        One that raises is reported to the log and hears of nothing more. Raises `InvalidInput` for a coroutine
        function: nobody would wait for it, `open` is for that.
        """
        if inspect.iscoroutinefunction(subscriber):
            raise InvalidInput(
                "subscriber", subscriber, "is a coroutine function: iterate over `events.open()`"
            )
        self._subscribers.append(subscriber)
        try:
            yield
        finally:
            self._drop(subscriber)

    @overload
    def open(self, *, buffer: int = 10_000) -> "EventStream[Event]": ...
    @overload
    def open(self, *kinds: type[EventT], buffer: int = 10_000) -> "EventStream[EventT]": ...
    def open(self, *kinds: type[EventT], buffer: int = 10_000) -> "EventStream[EventT]":
        """Return the events from now on, or those of some `kinds`, as an async iterator; use it as `with`.

        It keeps at most `buffer` events for a reader that is busy; the oldest beyond them are dropped and counted in
        `dropped`. It ends when the session is left. Raises `InvalidInput` for a buffer that holds nothing.
        """
        return EventStream(self._streams, kinds, buffer, ended=self._closed)

    @property
    def wants_requests(self) -> bool:
        """Whether anybody hears of requests; if not, their events need not be made."""
        return bool(self._subscribers or self._streams) or _log.isEnabledFor(logging.DEBUG)

    def emit(self, event: Event) -> None:
        """Tell every subscriber, every stream and the log."""
        for subscriber in tuple(self._subscribers):
            try:
                subscriber(event)
            except (Exception, asyncio.CancelledError):  # the call's own cancellation is not raised here
                _log.exception("a subscriber of events failed and is dropped")
                self._drop(subscriber)
        for stream in self._streams:
            stream.put(event)
        level = _LEVELS.get(type(event), logging.NOTSET)
        if level and _log.isEnabledFor(level):
            _write(level, event)

    def close(self) -> None:
        """End every stream, once it has yielded what it holds."""
        self._closed = True
        for stream in tuple(self._streams):
            stream.close()

    def _drop(self, subscriber: Callable[[Event], None]) -> None:
        if subscriber in self._subscribers:
            self._subscribers.remove(subscriber)


@final
class EventStream(Generic[EventT]):
    """Events in the order in which they happened, for tasks that take their time."""

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
        """Events that came while the buffer was full; each cost the oldest one in it."""
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
        """Take in an event, if it is of the kinds that are wanted."""
        if self._kinds and not isinstance(event, self._kinds):
            return
        self.dropped += len(self._buffer) == self._buffer.maxlen
        self._buffer.append(cast("EventT", event))
        self._wake.set()

    def close(self) -> None:
        """Take in nothing more; iteration ends after what is there."""
        self._ended = True
        self._wake.set()
        this = cast("EventStream[Event]", self)
        if this in self._streams:
            self._streams.remove(this)


def _write(level: int, event: Event) -> None:
    """Log an event: a sentence of its fields, and the fields."""
    fields: dict[str, object] = msgspec.structs.asdict(event)
    name = type(event).__name__
    words = " ".join(f"{field}={value!r}" for field, value in fields.items() if value not in (None, "", {}))
    _log.log(level, "%s %s", name, words, extra={"event": name, **fields})
