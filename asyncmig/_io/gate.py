"""The line of callers before one budget: who goes next, and how nobody is lost on the way."""

import asyncio
import copy
import heapq
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import count
from random import Random
from types import TracebackType
from typing import final

from aiolimiter import AsyncLimiter

from asyncmig._core.endpoint import Lane
from asyncmig._core.limiter import Limiter
from asyncmig.errors import AsyncmigError, InvalidInput, SessionClosed, WaitTooLong

__all__ = ["Gate", "GateStatistics", "Slot"]

_EVERY = 20
"""Every 20th grant goes to a ready poll, so that polls never starve."""
_TOO_MANY = 429
_TOKEN = 1.0 - 1e-9
TICK = 1e-6
"""Seconds by which an event loop may fire a timer early; waiting once more for them could go on for ever."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GateStatistics:
    """A snapshot of one budget. Times are on the loop's clock."""

    name: str
    limit: int
    """The limit that was configured."""
    slots: int
    """W: the requests in a window that are believed in now."""
    burst: int
    """B: how many of them at once."""
    used: int
    """Slots taken: unanswered, or answered less than a window ago."""
    waiting: dict[str, int]
    """Callers in line, by lane."""
    granted: int
    refused: int
    """429s."""
    held_until: float | None
    """When the hold after a 429 ends; None if there is none."""


@final
class Slot:
    """The right to send one request; also the context in which it is held.

    Call `answered` as soon as the status is known. Without that the request counts as one that may have arrived until
    the context ended.
    """

    __slots__ = ("_gate", "_lane", "_max_wait", "_open", "_rank", "_sent_at", "ticket")

    def __init__(self, gate: "Gate", lane: Lane, rank: float, max_wait: float | None, ticket: int) -> None:
        self._gate, self._lane, self._rank, self._max_wait = gate, lane, rank, max_wait
        self._open, self._sent_at = False, 0.0
        self.ticket = ticket
        """The place in line; a request that was refused may ask for the same again."""

    async def __aenter__(self) -> "Slot":
        self._sent_at = await self._gate.enter(self._lane, self._rank, self._max_wait, self.ticket)
        self._open = True
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if self._open:
            self._open = False
            self._gate.left("lost", self._sent_at)

    def held(self) -> "_Held":
        """Return a context for a slot that was entered elsewhere: leaving it leaves the slot."""
        return _Held(self)

    def answered(self, status: int, *, retry_after: float | None = None) -> None:
        """Tell the status of the answer; a 429 holds everybody, for `retry_after` seconds at least (at most 60)."""
        if self._open:
            self._open = False
            kind = "rejected" if status == _TOO_MANY else "accepted"
            self._gate.left(kind, self._sent_at, retry_after)

    def unsent(self) -> None:
        """Nothing was sent: the slot goes to the next in line."""
        if self._open:
            self._open = False
            self._gate.left("unsent", self._sent_at)


@final
class _Held:
    """The second half of a slot's context, for whoever it was handed to."""

    __slots__ = ("_slot",)

    def __init__(self, slot: Slot) -> None:
        self._slot = slot

    async def __aenter__(self) -> Slot:
        return self._slot

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        await self._slot.__aexit__(exc_type, exc, tb)


@final
class Gate:
    """Lets requests to one budget go as fast as the limit allows, and no faster, however the server counts.

    `limit` requests in `window` seconds. `recent`: ages in seconds of the answers that another process got in its
    last window. Usable alone, wherever the same key is used:

        async with gate.slot() as slot:
            response = await send()
            slot.answered(response.status)

    Cancellation is safe at every point: no slot is lost and nobody is stranded. Raises `InvalidInput` for a limit or
    window that is not positive. Algorithm: see `asyncmig._core.limiter`.
    """

    __slots__ = (
        "_bucket",
        "_bucket_shape",
        "_closed",
        "_dispatcher",
        "_granted",
        "_has_token",
        "_limit",
        "_limiter",
        "_lines",
        "_numbers",
        "_recent",
        "_wake",
        "_window",
        "name",
    )

    def __init__(
        self,
        *,
        limit: int = 100,
        window: float = 60.0,
        rng: Random | None = None,
        recent: Iterable[float] = (),
        name: str = "",
    ) -> None:
        if limit < 1:
            raise InvalidInput("limit", limit, "must be at least 1")
        if not window > 0:
            raise InvalidInput("window", window, "must be more than 0 seconds")
        self.name = name
        self._limit, self._window = limit, window
        self._limiter = Limiter(limit=limit, window=window, rng=rng or Random())
        self._recent: tuple[float, ...] | None = tuple(recent)
        self._bucket: AsyncLimiter | None = None
        self._bucket_shape = (limit, limit)
        self._has_token = False
        self._lines: dict[Lane, list[tuple[float, int, asyncio.Future[float]]]] = {lane: [] for lane in Lane}
        self._numbers = count(1)
        self._granted = 0
        self._dispatcher: asyncio.Task[None] | None = None
        self._wake: asyncio.Future[None] | None = None
        self._closed: AsyncmigError | None = None

    @property
    def limit(self) -> int:
        """The configured limit; setting it forgets what was learnt, and takes effect at once."""
        return self._limit

    @limit.setter
    def limit(self, limit: int) -> None:
        if limit < 1:
            raise InvalidInput("limit", limit, "must be at least 1")
        self._limit = limit
        self._limiter.resize(limit)
        self._rouse()

    @property
    def pace(self) -> float:
        """Seconds between requests that use the whole budget evenly, as it is believed to be now."""
        return (self._window + 1.0) / self._limiter.slots

    def slot(
        self,
        *,
        lane: Lane = Lane.WORK,
        rank: float = 0.0,
        max_wait: float | None = None,
        ticket: int | None = None,
    ) -> Slot:
        """Return a context that waits for its turn and holds one slot.

        Lanes go strictly before one another, but for polls, which get every 20th grant. Inside a lane a lower `rank`
        goes first, then first come, first served; `ticket`: the place of an earlier slot that was refused. Entering
        raises `WaitTooLong` at once if the wait would be longer than `max_wait` seconds, and what `close` was given.
        """
        return Slot(self, lane, rank, max_wait, next(self._numbers) if ticket is None else ticket)

    def wait_estimate(self, lane: Lane = Lane.WORK) -> float:
        """Return about how many seconds a request of this lane would wait now."""
        self._start()
        ahead = sum(not waiter.done() for each in Lane if each <= lane for _, _, waiter in self._lines[each])
        return self._limiter.wait_for(ahead, self._now())

    def statistics(self) -> GateStatistics:
        """Return a snapshot."""
        held = self._limiter.held_until
        return GateStatistics(
            name=self.name,
            limit=self._limit,
            slots=self._limiter.slots,
            burst=self._limiter.burst,
            used=self._limiter.used,
            waiting={lane.name: sum(not w.done() for _, _, w in line) for lane, line in self._lines.items()},
            granted=self._granted,
            refused=self._limiter.refused,
            held_until=held if held > self._now() else None,
        )

    def recent(self) -> list[float]:
        """Return the ages in seconds of the answers of the last window, for the next process."""
        self._start()
        return self._limiter.recent(self._now())

    def close(self, error: AsyncmigError | None = None) -> None:
        """End everybody who waits, and everybody who comes, with `error` (default `SessionClosed`)."""
        self._closed = error or SessionClosed()
        self._stop_dispatcher()
        for line in self._lines.values():
            for _, _, waiter in line:
                if not waiter.done():
                    waiter.set_exception(copy.copy(self._closed))
            line.clear()

    async def enter(self, lane: Lane, rank: float, max_wait: float | None, ticket: int) -> float:
        """Wait for a slot, take it, and return when: what `Slot` does, who is the way in."""
        if self._closed is not None:
            raise copy.copy(self._closed)
        self._start()
        if max_wait is not None and (wait := self.wait_estimate(lane)) > max_wait:
            raise WaitTooLong(wait, max_wait)
        now = self._now()
        if self._dispatcher is None and self._limiter.burst >= self._limiter.slots:
            at = self._limiter.next_at(now)
            if at is not None and at <= now:
                return self._grant(now)
        waiter: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._lines[lane], (rank, ticket, waiter))
        if self._dispatcher is None:
            self._dispatcher = asyncio.create_task(self._dispatch(), name=f"asyncmig gate {self.name}")
        try:
            return await waiter
        except BaseException:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self.left("unsent", waiter.result())  # cancelled in the very turn of its grant
            if not self._anybody():
                self._stop_dispatcher()
            raise

    def left(self, kind: str, sent_at: float, retry_after: float | None = None) -> None:
        now = self._now()
        match kind:
            case "accepted":
                self._limiter.accepted(now, sent_at=sent_at)
            case "rejected":
                self._limiter.rejected(now, sent_at=sent_at, retry_after=retry_after)
            case "unsent":
                self._limiter.unsent(now, sent_at=sent_at)
            case _:
                self._limiter.lost(now, sent_at=sent_at)
        self._rouse()

    def _stop_dispatcher(self) -> None:
        if self._dispatcher is not None:
            self._dispatcher.cancel()
            self._dispatcher = None

    async def _dispatch(self) -> None:
        """Grant slots while somebody waits; the only one who waits for the bucket."""
        while self._anybody():
            now = self._now()
            at = self._limiter.next_at(now)
            if at is None or at - now > TICK:
                await self._sleep_until(at)
            elif not self._has_token:
                await self._take_token()
                self._has_token = True
            elif (waiter := self._next()) is not None:
                self._has_token = False
                waiter.set_result(self._grant(max(now, at)))
        self._dispatcher = None

    async def _take_token(self) -> None:
        """Wait for the bucket, if the server was seen to have one that is smaller than the window."""
        burst, slots = shape = (self._limiter.burst, self._limiter.slots)
        if burst >= slots:
            self._bucket = None
            return
        if self._bucket is None or self._bucket_shape != shape:
            bucket = AsyncLimiter(burst, burst * self._window / slots)
            await bucket.acquire(burst)  # it starts empty: the server's is
            self._bucket, self._bucket_shape = bucket, shape
        # The bucket's own wait could spin on a clock that stands still: its timers may fire a tick early.
        while not self._bucket.has_capacity(_TOKEN):  # noqa: ASYNC110
            await asyncio.sleep(self._window / slots)
        await self._bucket.acquire(_TOKEN)

    def _grant(self, now: float) -> float:
        self._limiter.take(now)
        self._granted += 1
        return now

    def _anybody(self) -> bool:
        for line in self._lines.values():
            while line and line[0][2].done():
                heapq.heappop(line)
        return any(self._lines.values())

    def _next(self) -> "asyncio.Future[float] | None":
        """Take the next waiter out of its line."""
        if not self._anybody():
            return None
        polls_turn = self._granted % _EVERY == _EVERY - 1 and self._lines[Lane.POLL]
        lane = Lane.POLL if polls_turn else min(lane for lane in Lane if self._lines[lane])
        return heapq.heappop(self._lines[lane])[2]

    async def _sleep_until(self, at: float | None) -> None:
        loop = asyncio.get_running_loop()
        self._wake = loop.create_future()
        timer = None if at is None else loop.call_at(at, self._rouse)
        try:
            await self._wake
        finally:
            self._wake = None
            if timer is not None:
                timer.cancel()

    def _rouse(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    def _start(self) -> None:
        if self._recent is not None:
            self._limiter.resume(self._recent, self._now())
            self._recent = None

    def _now(self) -> float:
        return asyncio.get_running_loop().time()
