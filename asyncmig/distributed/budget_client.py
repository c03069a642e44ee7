"""The client of one shared budget: asks the store for slots, and reports the results of requests to it.

The client has one task, which exists only while a request waits for a slot or a report must be sent. The dispatcher
decides which request gets a slot (lanes, ranks, cancellation).

If the store does not answer, the client is offline, and the dispatcher limits this process to its share. The client
remembers all slots of the last window, including those of earlier processes in the send log. It reports them again to
a store that was unavailable or has lost data.
"""

import asyncio
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol, final
from uuid import uuid4

from asyncmig._core.limits import RateHeaders
from asyncmig._io.dispatcher import TICK
from asyncmig._io.event_loop import loop_speed, start_task
from asyncmig.distributed.budget_store import BudgetReply, SharedBudget, SharedBudgets, SlotEvent, SlotReport

__all__ = ["BudgetClient", "SlotConsumer", "next_attempt"]

_MARGIN = 0.05
"""Seconds for which a slot is remembered after the end of its window."""
_ASKS_PER_WINDOW = 12
"""The least number of attempts to get a slot in a window, because another process may have returned one unused."""
_SHORTEST_WAIT, _LONGEST_WAIT = 0.001, 5.0
"""Seconds between two attempts. After a loss of data, the store grants no slot for at least the longest wait, so that
all waiting clients report again: `settle_time` in window.lua."""
_MOST_LOSSES = 8
"""After so many losses of data within one window, a store counts as unavailable, because each loss pauses
requests."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 1.0
"""Real seconds between attempts while offline. Within the longest pause, every process makes one."""
_FINAL_REPORT_TIMEOUT = 1.0
"""Real seconds for the last reports when the client closes."""


def next_attempt(wait: float, window: float) -> float:
    """Return the seconds until the next attempt to get a slot, if the store expects one in `wait` seconds."""
    return min(max(wait, _SHORTEST_WAIT), window / _ASKS_PER_WINDOW, _LONGEST_WAIT)


class SlotConsumer(Protocol):
    """The dispatcher, as its client uses it."""

    def is_waiting(self) -> bool:
        """Return whether a request waits for a slot of this budget alone."""
        ...

    def is_wanted(self) -> bool:
        """Return whether any request waits for a slot, also with other budgets."""
        ...

    def asks_at(self, now: float) -> float:
        """Return when the client may ask for a slot. It must wait while a request of a set of budgets goes first."""
        ...

    def grant_slot(self, slot: str) -> bool:
        """Grant a slot to the next request; return False if none waits any more."""
        ...

    def on_reply(self, reply: BudgetReply) -> None:
        """Use the state of the budget in the store."""
        ...

    def on_lost(self, error: OSError) -> None:
        """The store stopped answering: limit this process to its share."""
        ...

    def on_still_lost(self, error: OSError) -> None:
        """Another attempt to reach the store failed."""
        ...

    def on_found(self, reply: BudgetReply) -> None:
        """The store answers again, and this process has reported its slots."""
        ...


@dataclass(slots=True)
class _SentSlot:
    sent_at: float
    answered_at: float | None = None


@final
class BudgetClient:
    """Asks for slots while a request waits, and reports results. Times are on the event loop's clock."""

    __slots__ = (
        "_consumer",
        "_has_answered",
        "_holds",
        "_last_reply",
        "_last_reply_at",
        "_limit",
        "_losses",
        "_outbox",
        "_pause",
        "_sent",
        "_settled_at",
        "_speed",
        "_store",
        "_task",
        "_timeout",
        "_unconfirmed",
        "_used",
        "_used_at",
        "_wakeup",
        "_window",
        "ask_at",
        "online",
    )

    def __init__(
        self,
        consumer: SlotConsumer,
        budget: SharedBudget,
        shared: SharedBudgets,
    ) -> None:
        self._consumer, self._store, self._timeout = consumer, shared.store([budget]), shared.timeout
        self._limit, self._window = budget.limit, budget.window
        self.online: bool = True
        """Whether the store answers. While offline, the dispatcher does not use the client's slots."""
        self._sent: dict[str, _SentSlot] = {}
        """The slots of the last window, by name."""
        loop = asyncio.get_running_loop()
        self._speed, now = loop_speed(loop), loop.time()
        for slot in shared.earlier:
            self._sent[slot.name] = _SentSlot(now - slot.age, now - slot.age if slot.is_answered else None)
        self._holds: dict[str, float] = {}
        """Until when the requests of a set are held, by its name."""
        self._unconfirmed: list[str] = []
        """Slots that the store may have granted: its answer was lost."""
        self._has_answered = False
        """While offline: whether the store has answered once. Other processes may not have reported their slots
        yet."""
        self._task: asyncio.Task[None] | None = None
        self._wakeup = asyncio.Event()
        self.ask_at: float = float("-inf")
        """The time of the next attempt to get a slot."""
        self._pause = 0.0
        self._last_reply: BudgetReply | None = None
        self._last_reply_at = float("-inf")
        self._used, self._used_at = 0, float("-inf")
        """The number of slots of all processes, and when the store reported it. After a loss of data, a lower number
        may lack slots that are not reported again yet."""
        self._settled_at = float("-inf")
        self._losses: deque[float] = deque(maxlen=_MOST_LOSSES)
        self._outbox: list[SlotReport] = self._past_reports(now)

    # Called by the dispatcher

    def wake(self) -> None:
        """Start or wake the task, because a request waits or a report must be sent."""
        if self._task is None:
            self._task = start_task(self._work(), name="asyncmig shared gate")
        self._wakeup.set()

    def sent(self, slot: str, now: float) -> None:
        """Record that a request is sent with this slot."""
        self._sent[slot] = _SentSlot(now)

    def report(self, slot: str, event: SlotEvent, now: float, *, seconds: float = 0.0) -> None:
        """Report the result of the request with this slot."""
        sent = self._sent.get(slot)
        if event == "unsent":
            self._sent.pop(slot, None)
        elif sent is not None:
            sent.answered_at = now
        self._forget(now)
        if self.online:
            self._outbox.append(SlotReport(slot, event, seconds))
            self.ask_at = now
            self.wake()

    def report_headers(self, headers: RateHeaders) -> None:
        """Report the headers of a response that concern the budget."""
        if self.online:
            numbers = (
                "" if each is None or each < 0 else str(each) for each in (headers.limit, headers.remaining)
            )
            self._outbox.append(SlotReport("/".join(numbers), "headers", max(0.0, headers.reset or 0.0)))
            self.wake()

    def hold(self, name: str, until: float) -> None:
        """Report that the requests of a set are held."""
        self._holds[name] = until
        if self.online:
            self._outbox.append(SlotReport(name, "held", until - asyncio.get_running_loop().time()))
            self.wake()

    def resize(self, limit: int) -> None:
        """Report a new configured limit."""
        self._limit = limit
        self._outbox.append(SlotReport("", "limit", limit))
        self.wake()

    async def aclose(self) -> None:
        """Send the remaining reports for at most one real second, then stop the task."""
        task = self._task
        if task is None:
            return
        try:
            if self.online:
                await asyncio.wait([task], timeout=_FINAL_REPORT_TIMEOUT * self._speed)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    # The task

    async def _work(self) -> None:
        try:
            while (
                (self._outbox or self._consumer.is_waiting()) if self.online else self._consumer.is_wanted()
            ):
                await (self._turn() if self.online else self._reconnect())
        finally:
            self._task = None

    async def _turn(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        ask_at = max(self.ask_at, self._consumer.asks_at(now))
        early = ask_at - now > TICK
        if early and not self._outbox:
            self._wakeup.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(ask_at - now):
                    await self._wakeup.wait()
            return
        want = uuid4().hex if self._consumer.is_waiting() and not early else None
        try:
            (reply,) = await self._store.exchange([self.reports()], want)
            self.apply(reply)
        except OSError as error:
            self.exchange_failed(error, want)
            return
        if reply.lost or want is None:
            return
        if not reply.granted:
            self.ask_at = loop.time() + next_attempt(reply.wait, self._window)
        elif loop.time() - now > self._timeout / 2 or not self._consumer.grant_slot(want):
            # No request waits any more, or this process was suspended so long that the slot may count as lost.
            self.report(want, "unsent", loop.time())

    def _last_seen(self) -> SlotReport:
        """Return the first report of every exchange, from which the store detects a loss of data."""
        now, before = asyncio.get_running_loop().time(), self._last_reply
        if before is None or self._last_reply_at < now - self._timeout - self._window:
            return SlotReport("", "last_seen")  # no slot of the last reply is in the window any more
        return SlotReport(before.epoch, "last_seen", before.turn)

    def _remember(self, reply: BudgetReply) -> None:
        """Remember a reply. Raises `ConnectionError` if the store has lost its data `_MOST_LOSSES` times."""
        now, before = asyncio.get_running_loop().time(), self._last_reply
        if reply.lost and before is not None:
            self._outbox.insert(0, SlotReport(str(self._used), "used_before", now - self._used_at))
            self._losses.append(now)
            self._settled_at = now + reply.held
        if now >= self._settled_at or reply.used >= self._used:
            self._used, self._used_at = reply.used, now
        self._last_reply, self._last_reply_at = reply, now
        if len(self._losses) == _MOST_LOSSES and self._losses[0] > now - self._window:
            raise ConnectionError("it lost its data several times")

    # Called by the task, and by a set of budgets for its exchanges

    def reports(self) -> list[SlotReport]:
        """Return the reports of the next exchange. They count as reported."""
        reports, self._outbox = [self._last_seen(), *self._outbox], []
        return reports

    def apply(self, reply: BudgetReply) -> None:
        """Use the reply of an exchange. Raises `ConnectionError` if the store has lost its data `_MOST_LOSSES`
        times."""
        self._remember(reply)
        self._consumer.on_reply(reply)
        if reply.lost:
            self._outbox = [*self._past_reports(asyncio.get_running_loop().time()), *self._outbox]
            self.wake()

    def exchange_failed(self, error: OSError, want: str | None) -> None:
        """Go offline after a failed exchange, which asked for the slot `want`."""
        if want is not None:
            self._unconfirmed.append(want)
        if self.online:
            self.online, self._has_answered, self._pause = False, False, _FIRST_PAUSE
            self._consumer.on_lost(error)

    async def _reconnect(self) -> None:
        """Pause, then try to report all slots of this process.

        The client is online again after two successful attempts. In the time between them, all other processes report
        their slots.
        """
        await asyncio.sleep(self._pause * self._speed)
        now = asyncio.get_running_loop().time()
        self._forget(now)
        try:
            reports = [self._last_seen(), *self._past_reports(now), *self._outbox]
            (reply,) = await self._store.exchange([reports], None)
            self._remember(reply)
        except OSError as error:
            self._consumer.on_still_lost(error)
            self._has_answered, self._pause = False, min(_LONGEST_PAUSE, self._pause * 2)
            return
        if not self._has_answered:
            self._has_answered, self._pause = True, _LONGEST_PAUSE
            return
        self._outbox, self.ask_at, self._unconfirmed = [], now, []
        self.online = True
        self._consumer.on_found(reply)

    def _past_reports(self, now: float) -> list[SlotReport]:
        """Return reports of all slots of the last window, for a store that may not have them."""
        reports = [SlotReport("", "limit", self._limit)]
        reports += [SlotReport(slot, "unsent") for slot in self._unconfirmed]
        reports += [
            SlotReport(name, "held", until - now) for name, until in self._holds.items() if until > now
        ]
        for slot, sent in self._sent.items():
            if sent.answered_at is None:
                reports.append(SlotReport(slot, "sent_before", now - sent.sent_at))
            else:
                reports.append(SlotReport(slot, "answered_before", now - sent.answered_at))
        return reports

    def _forget(self, now: float) -> None:
        """Drop the slots of earlier windows."""
        over = now - self._window - _MARGIN
        for slot, sent in list(self._sent.items()):
            if (sent.sent_at + self._timeout if sent.answered_at is None else sent.answered_at) <= over:
                del self._sent[slot]
