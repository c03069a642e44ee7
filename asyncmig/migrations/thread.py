"""The thread of a migration: everything that the agent does, as events.

`thread_pages` reads snapshots. `ThreadStream` holds one stream per migration for any number of listeners. It
reconnects after the last sequence that it saw: the frames have no ids, so `Last-Event-ID` means nothing. Where the
stream cannot be used, it reads snapshots instead.
"""

import asyncio
import enum
import logging
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Literal, TypeVar, cast, final

import anyio
import msgspec

from asyncmig._core.decode import Unreadable, convert, decode
from asyncmig._core.endpoint import Endpoint
from asyncmig._core.sse import Frame, SseDecoder
from asyncmig._io.call import Call
from asyncmig._io.context import SessionContext
from asyncmig._io.event_loop import start_task
from asyncmig._io.transport import Lost
from asyncmig._io.watch import fresh
from asyncmig.errors import (
    ApiError,
    AuthError,
    BadRequest,
    InvalidInput,
    NoAnswer,
    NotFound,
    SessionClosed,
)
from asyncmig.migrations import routes
from asyncmig.migrations.wire import Question

__all__ = [
    "BEGINNING",
    "Event",
    "Include",
    "StreamState",
    "ThreadStream",
    "checked_include",
    "last_sequence",
    "thread_pages",
]

T = TypeVar("T")
_log = logging.getLogger("asyncmig")
Include = Literal["user", "tools", "all"]
"""Which events: `user` (message, status, preview, request_input, completed, error), `tools` adds the agent's tool
calls and tasks, `all` adds its thinking."""
BEGINNING = -1
"""As a sequence: before the first event, which may be number 0."""
_PAGES = 10_000
_SHORTEST_PAUSE, _LONGEST_PAUSE = 10.0, 60.0
"""Seconds before the next connect; they double while connects bring nothing."""
_RECONNECT = 1.0
"""Seconds before the reconnect of a stream that was open for a while."""
_GIVE_UP = 3
"""After this many refused connects in a row, snapshots replace the stream."""
_NO_STREAM = frozenset({404, 405, 406, 429, 501})
"""The statuses of such a refusal. A 429 may concern streams only, and each connect would hold all reads."""
_MOST_WAITING = 1000
"""The most events that wait for a slow iteration; it reads what comes after them from snapshots."""


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One event of the thread."""

    sequence: int | None = None
    """Its position over all runs of the migration, with gaps. None if the server sent none."""
    type: str = ""
    """`message`, `status`, `preview`, `request_input`, `completed`, `error`, ...; others may come."""
    data: object = None
    """JSON as it came. Its shape depends on the type."""
    created_at: str | None = None

    @property
    def text(self) -> str:
        """The text of a message, a status or an error. A message is often a fragment, to be joined with the next."""
        if isinstance(self.data, str):
            return self.data
        fields = _fields(self.data)
        found = (fields.get(name) for name in ("text", "message", "error", "content"))
        return next((text for text in found if isinstance(text, str)), "")

    @property
    def questions(self) -> tuple[Question, ...]:
        """The questions of a `request_input`. They may be answered already: only the run says what it asks now."""
        fields = _fields(self.data)
        asked = next((fields[name] for name in ("questions", "requests", "inputs") if name in fields), None)
        if asked is None:
            asked = [self.data] if "id" in fields else self.data
        try:
            return convert(asked, tuple[Question, ...])
        except Unreadable:
            return ()


def _sequence(event: Event) -> int:
    return BEGINNING if event.sequence is None else event.sequence


def _fields(value: object) -> Mapping[str, object]:
    return cast("Mapping[str, object]", value) if isinstance(value, dict) else {}


class _Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    events: tuple[Event, ...] = ()
    last_sequence: int | None = None


class StreamState(enum.Enum):
    """What listeners of a stream are told besides its events."""

    CONNECTED = "connected"
    """Events come as they happen."""
    DISCONNECTED = "disconnected"
    """Events come only after the next connect."""
    DONE = "done"
    """The stream said that no run is active and that all events were sent. That may be too early."""


class _Last(msgspec.Struct, frozen=True, kw_only=True):
    last_sequence: int | None = None


def checked_include(include: Include) -> Include:
    """Return `include`; raise `InvalidInput` for another value."""
    if include not in ("user", "tools", "all"):
        raise InvalidInput("include", include, "is none of 'user', 'tools', 'all'")
    return include


def _call(endpoint: Endpoint, migration_id: str, after: int, include: Include) -> Call:
    """Return the request for the events after a sequence."""
    query = {"include": include} | ({"after": str(after)} if after > BEGINNING else {})
    return Call(endpoint=endpoint, ids={"id": migration_id}, query=query)


async def thread_pages(
    context: SessionContext, migration_id: str, *, after: int = BEGINNING, include: Include = "user"
) -> AsyncIterator[tuple[Event, ...]]:
    """Yield the events after a sequence, page by page. A page has each event once, in the order of the thread."""
    for _ in range(_PAGES):
        page = await context.caller.call(_call(routes.THREAD, migration_id, after, include), _Snapshot)
        numbered = {_sequence(event): event for event in page.events if _sequence(event) > after}
        events = (
            *(numbered[each] for each in sorted(numbered)),
            *(event for event in page.events if event.sequence is None),
        )
        if events:
            yield events
        last = max(map(_sequence, events), default=BEGINNING)
        if page.last_sequence is None or max(page.last_sequence, last) <= after:
            return
        after = max(page.last_sequence, last)


async def last_sequence(context: SessionContext, migration_id: str, after: int = BEGINNING) -> int:
    """Return the sequence of the last event; `after` without later ones, and if there is no thread yet."""
    with suppress(NotFound):
        async for page in thread_pages(context, migration_id, after=after):
            after = max(after, *map(_sequence, page))
    return after


Listener = Callable[[Event | StreamState | Exception], None]
"""Receives the events of a stream. An exception is the last item: no more events can come."""


@final
class ThreadStream:
    """One stream of a thread, which any number of listeners share. It is open while there is a listener."""

    __slots__ = (
        "_context",
        "_failed",
        "_include",
        "_listeners",
        "_migration_id",
        "_refused",
        "_task",
        "position",
    )

    def __init__(self, context: SessionContext, migration_id: str, include: Include) -> None:
        self._context, self._migration_id = context, migration_id
        self._include: Include = include
        self._listeners: dict[object, Listener] = {}
        self._task: asyncio.Task[None] | None = None
        self._failed: Exception | None = None
        self._refused = 0
        self.position: int = BEGINNING
        """The last sequence that was seen."""

    @asynccontextmanager
    async def listening(self, listener: Listener, *, after: int) -> AsyncGenerator[None]:
        """Call `listener` with each new event. The first listener also gets the earlier ones after a sequence."""
        token = object()
        self._listeners[token] = listener
        if self._task is None:
            self.position, self._failed = after, None
            self._task = start_task(self._run(), name="asyncmig thread")
        try:
            if self._failed is not None:
                listener(self._failed)
            yield
        finally:
            del self._listeners[token]
            if listener not in self._listeners.values():  # tasks that wait for the same run share it
                listener(StreamState.DISCONNECTED)
            if not self._listeners:
                with anyio.CancelScope(shield=True):
                    await self._stop()

    async def _stop(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def events(self, *, after: int) -> AsyncGenerator[Event | None]:
        """Yield each event after a sequence once, and None each time the stream says `done`; without an end."""
        waiting: deque[Event | Exception | None] = deque()
        wake, has_gap = asyncio.Event(), False

        def put(item: Event | StreamState | Exception) -> None:
            nonlocal has_gap
            if item in (StreamState.CONNECTED, StreamState.DISCONNECTED):
                return
            if len(waiting) >= _MOST_WAITING:
                waiting.clear()
                has_gap = True
            waiting.append(None if isinstance(item, StreamState) else item)
            wake.set()

        seen = after
        async with self.listening(put, after=after):
            has_gap = self.position > after  # others listen already
            while True:
                if has_gap:  # events that did not wait for this iteration come from a snapshot
                    has_gap = False
                    async for page in self._pages(seen):
                        for event in page:
                            seen = max(seen, _sequence(event))
                            yield event
                while waiting and not has_gap:
                    item = waiting.popleft()
                    if isinstance(item, Exception):
                        raise fresh(item)
                    if item is not None and item.sequence is not None:
                        if item.sequence <= seen:
                            continue
                        seen = item.sequence
                    yield item
                if not has_gap:
                    wake.clear()
                    await wake.wait()

    def _pages(self, after: int) -> AsyncIterator[tuple[Event, ...]]:
        return thread_pages(self._context, self._migration_id, after=after, include=self._include)

    async def _run(self) -> None:
        pause, loop = _SHORTEST_PAUSE, asyncio.get_running_loop()
        try:
            while True:
                before, began = self.position, loop.time()
                try:
                    is_done = self._refused < _GIVE_UP and await self._connected()
                    if self.position == before:  # the stream may fail every time, or say `done` too early
                        async for page in self._pages(before):
                            for event in page:
                                self._tell(event)
                        is_done = self.position == before
                    if is_done:
                        self._tell(StreamState.DONE)
                except (AuthError, BadRequest):
                    raise
                except (ApiError, NoAnswer) as error:
                    _log.debug("the thread cannot be read now: %s", error)
                # Each connect costs a request, so a stream that ends at once is not opened again at once.
                brought, is_long = self.position > before, loop.time() - began > _LONGEST_PAUSE
                await asyncio.sleep(_RECONNECT if is_long else pause)
                pause = _SHORTEST_PAUSE if brought else min(_LONGEST_PAUSE, 2 * pause)
        except Exception as error:  # the listeners must receive it, whatever it is
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        self._failed = error
        self._tell(error)

    async def aclose(self) -> None:
        """End the stream. Iterations that were not closed raise `SessionClosed`."""
        await self._stop()
        self._fail(SessionClosed())

    async def _connected(self) -> bool:
        """Read the stream until it ends. Return whether it said that no run is active and all events were sent."""
        try:
            return await self._connect()
        except (AuthError, BadRequest):
            raise
        except (ApiError, NoAnswer) as error:
            self._refused += isinstance(error, ApiError) and error.status in _NO_STREAM
            _log.debug("the stream of a thread cannot be read now: %s", error)
            return False

    async def _connect(self) -> bool:
        decoder = SseDecoder()
        call = _call(routes.STREAM_THREAD, self._migration_id, self.position, self._include)
        async with self._context.caller.stream(call, is_optional=True) as answer:
            self._refused = 0
            self._tell(StreamState.CONNECTED)
            try:
                async for chunk in answer.chunks():
                    for frame in decoder.feed(chunk):
                        if frame.event == "done":
                            last = _read(frame.data.encode(), _Last)
                            return last is None or (last.last_sequence or 0) <= max(self.position, 0)
                        if not self._take(frame):
                            return False
            except Lost as lost:  # the next stream continues where this one was
                _log.debug("the stream of a thread broke off: %s", lost.reason)
            finally:
                self._tell(StreamState.DISCONNECTED)
        return False

    def _take(self, frame: Frame) -> bool:
        """Pass a frame on; return whether more may follow."""
        event = _read(frame.data.encode(), Event)
        if event is None:
            return True
        if frame.event == "error" and event.sequence is None:
            _log.debug("the stream of a thread failed: %s", event.text or frame.data[:200])
            return False
        self._tell(event if event.type else msgspec.structs.replace(event, type=frame.event))
        return True

    def _tell(self, item: Event | StreamState | Exception) -> None:
        if isinstance(item, Event) and item.sequence is not None:
            if item.sequence <= self.position:
                return
            self.position = item.sequence
        for listener in tuple(self._listeners.values()):
            listener(item)


def _read(body: bytes, kind: type[T]) -> T | None:
    try:
        return decode(body, kind)
    except Unreadable:
        return None
