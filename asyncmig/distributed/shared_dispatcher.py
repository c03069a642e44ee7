"""The dispatcher of a budget that several processes share.

While the store answers, it grants the slots, because only the store has the requests of all processes. The
dispatcher's own limiter counts the requests of this process. While the store is unavailable, the limiter grants the
slots, with this process's share of the last known limit.
"""

import logging
import math
from collections.abc import Iterable
from typing import final
from uuid import uuid4

from asyncmig._core.endpoint import Lane
from asyncmig._core.limiter import SHORT_WINDOW, Limiter
from asyncmig._core.limits import RateHeaders
from asyncmig._core.retry import ReportThrottle
from asyncmig._io.budget_set import BudgetSet
from asyncmig._io.dispatcher import Dispatcher
from asyncmig._io.waiters import Head
from asyncmig.distributed.budget_client import BudgetClient
from asyncmig.distributed.budget_store import BudgetReply, SharedBudget, SharedBudgets, SlotEvent
from asyncmig.events import AttemptFailed, Events, SharedWindowFound, SharedWindowLost

__all__ = ["RECHECK", "SharedDispatcher"]

_log = logging.getLogger("asyncmig")
RECHECK = 0.05
"""Seconds after which a request asks again if another one went first."""
_SAME_HOLD = 0.5
"""Seconds by which the end of the same hold may differ between two replies."""


@final
class SharedDispatcher(Dispatcher):
    """Grants the slots of a shared budget to the requests of this process."""

    __slots__ = (
        "_failures",
        "_first_reply_at",
        "_held_until",
        "_is_paused",
        "_last_grant",
        "_limit",
        "_lost_at",
        "_reply_at",
        "_shared",
        "_slot_names",
        "_view",
        "client",
    )

    def __init__(
        self,
        limiter: Limiter,
        *,
        window: float,
        recent: Iterable[float],
        budget: str = "",
        events: Events | None = None,
        shared: SharedBudgets,
    ) -> None:
        super().__init__(limiter, window=window, recent=recent, budget=budget, events=events)
        self._shared = shared
        self._limit = limiter.slots  # a new limiter starts with the configured limit
        self.client: BudgetClient | None = None
        self._failures = ReportThrottle()
        """Limits how often a failure to reach the store is reported."""
        self._view: BudgetReply | None = None
        """The store's last reply; None while it is unavailable."""
        self._slot_names: dict[float, str] = {}
        """The names of the slots in use, as the store has them, by the time of the grant."""
        self._is_paused = False
        """Whether no request may be sent: the store is unavailable, and the share is less than one slot."""
        self._first_reply_at = float("inf")
        self._last_grant = self._reply_at = self._lost_at = self._held_until = float("-inf")

    # The state of the budget

    @property
    def slots(self) -> int:
        return self.limiter.slots if self._view is None else self._view.slots

    @property
    def burst(self) -> int:
        return self.limiter.burst if self._view is None else self._view.burst

    @property
    def held_until(self) -> float:
        return self.limiter.held_until if self._view is None else self._held_until

    def used(self) -> int:
        own = super().used()
        return own if self._view is None else max(own, self._view.used)

    def wait_estimate(self, lane: Lane) -> float:
        own = super().wait_estimate(lane)
        if self._view is None:
            return own
        over = self._view.used - self._view.slots + self.waiters.ahead_of(lane)
        return max(own, self._view.held, over * self.window / self._view.slots)

    def resize(self, limit: int) -> None:
        self._limit = limit
        if self.client is not None:
            self.client.resize(limit)
        super().resize(limit)

    # Slots

    def enter_now(self) -> float | None:
        self.check_open()
        return None

    @property
    def is_online(self) -> bool:
        """Whether the store grants the slots: it answered the last exchange, or was not used yet."""
        return self.client is None or self.client.online

    def turn(self) -> None:
        if self._loop is None or not self.is_wanted():
            super().turn()
            return
        client = self.opened_client()
        if self.waiters.count or not client.online:
            client.wake()  # also while the store is unavailable, so that the client detects when it answers again
        if not client.online and not self._is_paused:
            super().turn()

    def next_at(self, now: float) -> float | None:
        return None if self.is_online or self._is_paused else super().next_at(now)

    def has_before(self, queue: BudgetSet, place: Head, now: float) -> bool:
        """Return whether a waiter of another queue goes before `place`, and can be granted soon."""
        if not self.is_online:
            return super().has_before(queue, place, now)
        soon = now + self.window / self.slots
        own = self.waiters.head(self.granted)
        if own is not None and own[0] < place and self.client is not None and self.client.ask_at <= soon:
            return True
        return any(each is not queue and self._is_before(each, place, soon) for each in self._sets)

    def _is_before(self, queue: BudgetSet, place: Head, soon: float) -> bool:
        head = queue.waiters.head(self.granted)
        return head is not None and head[0] < place and queue.asks_at <= soon

    def take(self, now: float, name: str = "") -> float:
        now = self._last_grant = max(now, math.nextafter(self._last_grant, math.inf))
        client = self.opened_client()
        self._slot_names[now] = name or uuid4().hex
        client.sent(self._slot_names[now], now)
        return super().take(now)

    def name_of(self, sent_at: float) -> str:
        return self._slot_names[sent_at]

    def accepted(self, sent_at: float, headers: RateHeaders | None = None) -> None:
        self._report(sent_at, "accepted", headers=headers)
        super().accepted(sent_at, headers)

    def rejected(self, sent_at: float, retry_after: float | None, headers: RateHeaders | None = None) -> None:
        self._report(sent_at, "rejected", retry_after or 0.0, headers=headers)
        super().rejected(sent_at, retry_after, headers)

    def lost(self, sent_at: float) -> None:
        self._report(sent_at, "lost")
        super().lost(sent_at)

    def unsent(self, sent_at: float) -> None:
        self._report(sent_at, "unsent")
        super().unsent(sent_at)

    def _report(
        self,
        sent_at: float,
        event: SlotEvent,
        seconds: float = 0.0,
        *,
        headers: RateHeaders | None = None,
    ) -> None:
        client = self.opened_client()
        client.report(self._slot_names.pop(sent_at), event, self.now(), seconds=seconds)
        if headers is not None:
            client.report_headers(headers)

    async def aclose(self) -> None:
        if self.client is not None:
            await self.client.aclose()

    # Called by the client

    def is_waiting(self) -> bool:
        return self.waiters.count > 0

    def asks_at(self, now: float) -> float:
        own, soon = self.waiters.head(self.granted), now + self.window / self.slots
        if own is None or not any(self._is_before(each, own[0], soon) for each in self._sets):
            return now
        return now + RECHECK

    def grant_slot(self, slot: str) -> bool:
        waiter = self.waiters.dequeue(self.granted)
        if waiter is None:
            return False
        waiter.set_result(self.take(self.now(), slot))
        return True

    def on_reply(self, reply: BudgetReply) -> None:
        self._view, self._reply_at = reply, self.now()
        self._first_reply_at = min(self._first_reply_at, self._reply_at)
        until = self._reply_at + reply.held
        if reply.held and until > self._held_until + _SAME_HOLD:
            self._held_until = until
            self._emit_held()
        self._emit_learnt()

    def on_lost(self, error: OSError) -> None:
        now, clients = self.now(), self._shared.window.processes
        if self._view is not None:
            # Other processes may have started after an old reply, or after the first replies.
            known = self._reply_at > now - self.window > self._first_reply_at
            clients = max(self._view.clients, 1 if known else clients)
        slots, used = (self._view.slots, self._view.used) if self._view else (self._limit, 0)
        share = slots // clients
        if self.window <= SHORT_WINDOW:
            share = max(1, share)
        self._is_paused = share == 0
        self._view, self._lost_at, self._failures = None, now, ReportThrottle()
        self._failures.failed(now)  # `SharedWindowLost` reports this one
        self.limiter.resize(max(1, share))
        # Other processes may have used slots of this share. They are free again after one window at the latest.
        taken = share - super().used() - max(0, slots - used) // clients
        self.limiter.resume([0.0] * max(0, taken), now)
        _log.warning(
            "%s: the shared window is unavailable (%s); this process uses at most %d slots",
            self._budget,
            error,
            share,
        )
        self._events.emit(
            SharedWindowLost(at=now, budget=self._budget, slots=share, processes=clients, error=str(error))
        )
        self.turn()

    def on_still_lost(self, error: OSError) -> None:
        now = self.now()
        if self._failures.failed(now):
            self._events.emit(
                AttemptFailed(
                    at=now,
                    endpoint=f"shared window of {self._budget}",
                    attempt=self._failures.count,
                    status=None,
                    error=str(error),
                )
            )

    def on_found(self, reply: BudgetReply) -> None:
        self._stop_timers()
        self._is_paused = False
        self.limiter.resize(self._limit)
        now, self._view = self.now(), reply
        self._reply_at = now
        _log.warning("%s: the shared window is available again", self._budget)
        self._events.emit(
            SharedWindowFound(at=now, budget=self._budget, slots=reply.slots, seconds=now - self._lost_at)
        )
        for each in self._sets:
            each.turn()

    def shared_budget(self) -> SharedBudget:
        """Return the budget, as its store needs it."""
        return SharedBudget(self._budget, self._limit, self.window)

    def opened_client(self) -> BudgetClient:
        """Return the client. It is made on first use, because it needs the running loop."""
        if self.client is None:
            self.client = BudgetClient(self, self.shared_budget(), self._shared)
        return self.client
