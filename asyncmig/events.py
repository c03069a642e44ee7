"""Events and logging: what happens inside a session, as frozen records.

A callback is called at once, in the task in which the event happens, and must not block. An async iterator has a
buffer and is meant for a task of its own:

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
from asyncmig.steps import OutcomeName, Step

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


class _Happening(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    at: float
    """The time on the event loop's clock, in seconds."""


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
    """The values of the route's placeholders."""
    lane: str
    attempt: int
    """Counted from 1. A repeat after a 429 has the number of the attempt that was refused."""
    waited: float = 0.0
    """Seconds that it waited for the limit, without earlier attempts and the pauses between them."""


class RequestDone(_Request, frozen=True, kw_only=True, tag=True):
    """One attempt of one request has ended."""

    ids: Mapping[str, str] = {}
    """What stands in the route's placeholders."""
    lane: str
    attempt: int
    waited: float = 0.0
    """Seconds that it waited for the limit before it was sent."""
    seconds: float
    """Seconds from the send to the end of the response, or to the failure."""
    status: int | None
    """None if no response arrived."""
    error: str | None = None
    """Why no response arrived, or not all of it."""


class AttemptFailed(_Happening, frozen=True, kw_only=True, tag=True):
    """An attempt failed and is repeated: a request, a whole upload or download, or a status check.

    It also reports a journal that cannot be written (`endpoint` is `journal`), and a shared window that is still
    unavailable after `SharedWindowLost` (`shared window of BUDGET`).

    Not every failure is reported: the first one of a step, and then one after 15 s, 30 s, 60 s, ... at most 10
    minutes.
    """

    external_id: str | None = None
    """The customer for whom the attempt was made; None for calls outside of `migrate` and `Fleet`."""
    endpoint: str
    """Method and route template."""
    ids: Mapping[str, str] = {}
    """The values of the route's placeholders, as far as they are known."""
    attempt: int
    """The number of failed attempts of the step, counted from 1."""
    attempts: int | None = None
    """The maximum number of attempts; None if `until` limits them, or if there is no limit.

    Status checks have no limit, and neither have calls during an outage of the server.
    """
    until: float | None = None
    """The time on the event loop's clock until which it is repeated; None if `attempts` limits it, or if there is no
    limit.
    """
    status: int | None
    """None if no response arrived, or not all of it."""
    error: str
    """The server's text, or why there is none."""


class Recovered(_Happening, frozen=True, kw_only=True, tag=True):
    """A step that `AttemptFailed` reported has succeeded."""

    external_id: str | None = None
    endpoint: str
    """Method and route template of the failure that was reported last."""
    ids: Mapping[str, str] = {}
    attempts: int
    """The number of attempts that it took."""
    seconds: float
    """Seconds since the failure that was reported last."""


class Held(_Happening, frozen=True, kw_only=True, tag=True):
    """A 429 arrived: no request of this budget is sent for a while, and then one probe is sent first."""

    budget: str
    """Method and route template; `*` if one budget covers all requests."""
    until: float
    seconds: float
    slots: int
    """W, the number of requests in a window that the gate currently assumes. `BudgetLearnt` reports what the 429
    taught.
    """
    burst: int
    """B, how many of them at once."""


class BudgetLearnt(_Happening, frozen=True, kw_only=True, tag=True):
    """The assumed limit of a budget changed: after a probe, after a window without a 429, or because a new limit was
    set.
    """

    budget: str
    """Method and route template; `*` where one budget is for all."""
    slots: int
    """W, the requests in a window."""
    burst: int
    """B, how many of them at once."""


class SharedWindowLost(_Happening, frozen=True, kw_only=True, tag=True):
    """The shared window cannot be reached. This process continues with its share of it."""

    budget: str
    """Method and route template; `*` where one budget is for all."""
    slots: int
    """The share: the last known window, divided by the number of processes."""
    processes: int
    error: str


class SharedWindowFound(_Happening, frozen=True, kw_only=True, tag=True):
    """The shared window can be reached again."""

    budget: str
    slots: int
    """W, the requests in a window of all processes."""
    seconds: float
    """Seconds for which it could not be reached."""


class SlotAwaited(_Happening, frozen=True, kw_only=True, tag=True):
    """A request begins to wait for more than a minute: an hourly budget is used up, or every run slot is taken."""

    external_id: str | None = None
    """The customer for whom it waits; None for calls outside of `migrate` and `Fleet`."""
    endpoint: str
    """Method and route template."""
    ids: Mapping[str, str] = {}
    """The values of the route's placeholders."""
    budget: str
    """The budget that delays it most, or `runs` for the run slots."""
    until: float | None
    """About when it is sent, on the event loop's clock; None for a run slot: how long runs take is not known."""
    seconds: float | None
    """About how long it waits."""


class RunSlotsChanged(_Happening, frozen=True, kw_only=True, tag=True):
    """The run slots of the account changed, as far as this process knows them."""

    limit: int | None
    """The runs that may be in progress at a time; None: any number."""
    in_progress: int
    """Known runs in progress: of this process, and of all that share the slots."""
    waits_for_person: int
    """Those of them that are blocked until a person answers."""
    others: int
    """Runs of other users of the account, as far as a 429 showed them."""
    waiting: int
    """Starts that wait for a slot or for a budget."""


class RunSlotsBlocked(_Happening, frozen=True, kw_only=True, tag=True):
    """A start waits, and every run slot of the account is held by a run that waits for a person.

    It is reported once until a slot is free.
    """

    runs: tuple[str, ...]
    """The resources whose runs wait: the ids of the migrations."""


class RunChanged(_Happening, frozen=True, kw_only=True, tag=True):
    """A run was read and has a new status or a new progress text."""

    status: str
    progress: str | None
    ids: Mapping[str, str]
    """The server's ids, by kind: `company` and `run` in the API generation "companies"."""


class RunEnded(_Happening, frozen=True, kw_only=True, tag=True):
    """A run was read and has ended. Its `RunChanged` precedes this event."""

    status: str
    seconds: float | None
    """Seconds for which it ran, without the time for which it was parked; None if its start is unknown."""
    noticed_within: float | None
    """Seconds since the last reading that showed it running: the delay with which its end was noticed is at most
    this. None if it was never seen running.
    """
    ids: Mapping[str, str]
    """The server's ids, by kind."""


class RunStalled(_Happening, frozen=True, kw_only=True, tag=True, omit_defaults=True):
    """A run takes longer than any run should. It is still polled."""

    external_id: str | None = None
    """The customer, if `migrate` or `Fleet` waits for the run."""
    seconds: float
    ids: Mapping[str, str]
    """The server's ids, by kind."""


class MigrationChanged(_Happening, frozen=True, kw_only=True, tag=True):
    """One customer's migration reached a step."""

    external_id: str
    step: Step | OutcomeName
    """The step that begins, or the outcome of a migration that ends."""
    detail: str = ""
    ids: Mapping[str, str] = {}
    """The server's ids that are known so far, by kind."""


Event = (
    RequestSent
    | RequestDone
    | Held
    | BudgetLearnt
    | SharedWindowLost
    | SharedWindowFound
    | RunChanged
    | RunEnded
    | RunSlotsBlocked
    | RunSlotsChanged
    | SlotAwaited
    | RunStalled
    | MigrationChanged
    | AttemptFailed
    | Recovered
)
"""Any event of a session."""
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
"""What is logged, and how. A request is logged once, when it is done; of a lost window those warn who notice."""


@final
class Events:
    """Passes each event to every subscriber, in order, in the task in which it happens."""

    __slots__ = ("_closed", "_streams", "_subscribers")

    def __init__(self) -> None:
        self._subscribers: list[_Subscriber] = []
        self._streams: list[EventStream[Event]] = []
        self._closed = False

    @contextmanager
    def subscribe(self, subscriber: Callable[[Event], None], *kinds: type[Event]) -> Generator[None]:
        """Call `subscriber` with each event, or those of some `kinds`, until the block ends. It must not block.

        A subscriber that raises is logged and removed. Raises `InvalidInput` for a coroutine function, because it
        would never be awaited: use `open` instead.
        """
        if inspect.iscoroutinefunction(subscriber):
            raise InvalidInput(
                "subscriber", subscriber, "is a coroutine function: iterate over `events.open()`"
            )
        entry = subscriber, kinds
        self._subscribers.append(entry)
        try:
            yield
        finally:
            self._drop(entry)

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
        """Return the events from now on, all or those of some `kinds`, as an async iterator. Use it in a `with`
        block.

        It keeps at most `buffer` events while its reader is busy. Further events replace the oldest ones, which
        are counted in `dropped`. The iteration ends when the session is left. Raises `InvalidInput` for a buffer
        of less than one event.
        """
        return EventStream(self._streams, kinds, buffer, ended=self._closed)

    @property
    def wants_requests(self) -> bool:
        """Whether there is any subscriber, stream or logger for requests; otherwise their events are not made."""
        if self._streams or _log.isEnabledFor(logging.DEBUG):
            return True
        return any(not kinds or not _REQUESTS.isdisjoint(kinds) for _, kinds in self._subscribers)

    def emit(self, event: Event) -> None:
        """Pass an event to every subscriber, every stream and the log."""
        for entry in tuple(self._subscribers):
            subscriber, kinds = entry
            if kinds and not isinstance(event, kinds):
                continue
            try:
                subscriber(event)
            except (Exception, asyncio.CancelledError):  # the call's own cancellation is not raised here
                _log.exception("a subscriber of events failed and is dropped")
                self._drop(entry)
        for stream in self._streams:
            stream.put(event)
        level = _LEVELS.get(type(event), logging.NOTSET)
        if level and _log.isEnabledFor(level):
            _write(level, event)

    def close(self) -> None:
        """End every stream after it has yielded what its buffer holds."""
        self._closed = True
        for stream in tuple(self._streams):
            stream.close()

    def _drop(self, entry: "_Subscriber") -> None:
        if entry in self._subscribers:
            self._subscribers.remove(entry)


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
        """The number of events that arrived while the buffer was full. Each of them replaced the oldest one."""
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
        """Accept no more events. The iteration ends after the buffered ones."""
        self._ended = True
        self._wake.set()
        this = cast("EventStream[Event]", self)
        if this in self._streams:
            self._streams.remove(this)


def _write(level: int, event: Event) -> None:
    """Log an event: a line of its fields, and the fields as attributes."""
    fields: dict[str, object] = msgspec.structs.asdict(event)
    name = type(event).__name__
    words = " ".join(f"{field}={value!r}" for field, value in fields.items() if value not in (None, "", {}))
    _log.log(level, "%s %s", name, words, extra={"event": name, **fields})
