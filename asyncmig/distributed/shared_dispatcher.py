"""The dispatcher of a gate whose budget several processes share.

Its own limiter records every request of this process and every answer. While the store answers, the store's state
takes precedence over the limiter's, because only the store sees all processes. While the store is unavailable, the
limiter limits this process to its share of the last known window.
"""

import asyncio
import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import final

from asyncmig._core.endpoint import Lane
from asyncmig._core.limiter import Limiter, RateHeaders
from asyncmig._core.retry import Occasions
from asyncmig._io.dispatcher import Dispatcher
from asyncmig._io.event_loop import loop_speed
from asyncmig._io.send_log import EarlierSlot
from asyncmig.distributed.budget_client import BudgetClient
from asyncmig.distributed.budget_store import BudgetReply, SharedWindow, SlotEvent
from asyncmig.events import AttemptFailed, Events, SharedWindowFound, SharedWindowLost

__all__ = ["SharedBudgets", "SharedDispatcher"]

_log = logging.getLogger("asyncmig")
_SAME_HOLD = 0.5
"""Seconds by which the end of one hold may differ between two replies."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedBudgets:
    """Which shared window a dispatcher uses, and for which account."""

    window: SharedWindow
    account: str
    """A digest that stands for the API key."""
    timeout: float
    """Seconds after which an unanswered request has either arrived or been lost."""
    earlier: Sequence[EarlierSlot] = ()
    """The slots of earlier processes that the send log names; the store may not know them."""


@final
class SharedDispatcher(Dispatcher):
    """Hands out the slots that the store grants; while it is unavailable, those of this process's share."""

    __slots__ = (
        "_client",
        "_failures",
        "_first_reply_at",
        "_held_until",
        "_last_grant",
        "_limit",
        "_lost_at",
        "_reply_at",
        "_shared",
        "_slot_names",
        "_view",
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
        self._client: BudgetClient | None = None
        self._failures = Occasions()
        """Limits how often a failure to reach the store is reported."""
        self._view: BudgetReply | None = None
        """The store's last reply; None while it is unavailable."""
        self._slot_names: dict[float, str] = {}
        """The store's names of the slots in use, by the time of their grant."""
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
        if self._client is not None:
            self._client.resize(limit)
        super().resize(limit)

    # Slots

    def enter_now(self) -> float | None:
        self.check_open()
        return None

    def turn(self) -> None:
        if self._loop is None or not self.waiters.count:
            super().turn()
            return
        client = self._opened_client(self._loop)
        client.wake()  # also while the store is unavailable: the client finds out when it is back
        if not client.online:
            super().turn()

    def _grant(self, now: float, name: str | None = None) -> float:
        now = self._last_grant = max(now, math.nextafter(self._last_grant, math.inf))
        assert self._client is not None
        self._slot_names[now] = name or self._client.name()
        self._client.sent(self._slot_names[now], now)
        return super()._grant(now)

    def name_of(self, sent_at: float) -> str:
        return self._slot_names[sent_at]

    def accepted(self, sent_at: float, headers: RateHeaders | None = None) -> None:
        self._report(sent_at, "accepted")
        super().accepted(sent_at, headers)

    def rejected(self, sent_at: float, retry_after: float | None, headers: RateHeaders | None = None) -> None:
        self._report(sent_at, "rejected", retry_after or 0.0)
        super().rejected(sent_at, retry_after, headers)

    def lost(self, sent_at: float) -> None:
        self._report(sent_at, "lost")
        super().lost(sent_at)

    def unsent(self, sent_at: float) -> None:
        self._report(sent_at, "unsent")
        super().unsent(sent_at)

    def _report(self, sent_at: float, event: SlotEvent, seconds: float = 0.0) -> None:
        assert self._client is not None
        self._client.report(self._slot_names.pop(sent_at), event, self.now(), seconds=seconds)

    async def aclose(self) -> None:
        if self._client is not None:
            await self._client.aclose()

    # Called by the client

    def is_waiting(self) -> bool:
        return self.waiters.count > 0

    def hand_out(self, slot: str) -> bool:
        waiter = self.waiters.dequeue(self.granted)
        if waiter is None:
            return False
        waiter.set_result(self._grant(self.now(), slot))
        return True

    def on_reply(self, reply: BudgetReply) -> None:
        self._view, self._reply_at = reply, self.now()
        self._first_reply_at = min(self._first_reply_at, self._reply_at)
        until = self._reply_at + reply.held
        if reply.held and until > self._held_until + _SAME_HOLD:
            self._held_until = until
            self._tell_held()
        self._tell_learnt()

    def on_lost(self, error: OSError) -> None:
        now, clients = self.now(), self._shared.window.processes
        if self._view is not None:
            # Other processes may have started since an old reply, or after the first replies.
            known = self._reply_at > now - self.window > self._first_reply_at
            clients = max(self._view.clients, 1 if known else clients)
        slots, used = (self._view.slots, self._view.used) if self._view else (self._limit, 0)
        share = max(1, slots // clients)
        self._view, self._lost_at, self._failures = None, now, Occasions()
        self._failures.failed(now)  # `SharedWindowLost` reports this one
        self.limiter.resize(share)
        # Slots of this share that other processes have used are free again after one window at the latest.
        taken = share - super().used() - max(0, slots - used) // clients
        self.limiter.resume([0.0] * max(0, taken), now)
        _log.warning(
            "%s: the shared window is unavailable (%s); this process uses at most %d slots",
            self._budget,
            error,
            share,
        )
        if self._events is not None:
            self._events.emit(
                SharedWindowLost(
                    at=now, budget=self._budget, slots=share, processes=clients, error=str(error)
                )
            )
        self.turn()

    def on_still_lost(self, error: OSError) -> None:
        now = self.now()
        if self._events is not None and self._failures.failed(now):
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
        self.limiter.resize(self._limit)
        now, self._view = self.now(), reply
        self._reply_at = now
        _log.warning("%s: the shared window is available again", self._budget)
        if self._events is not None:
            self._events.emit(
                SharedWindowFound(at=now, budget=self._budget, slots=reply.slots, seconds=now - self._lost_at)
            )

    def _opened_client(self, loop: asyncio.AbstractEventLoop) -> BudgetClient:
        """Return the client. It is made on first use, because it needs the speed of the running loop."""
        if self._client is None:
            shared = self._shared
            speed = loop_speed(loop)
            budget = shared.window.budget(
                self._budget,
                account=shared.account,
                limit=self._limit,
                window=self.window,
                timeout=shared.timeout,
                speed=speed,
            )
            self._client = BudgetClient(
                budget,
                self,
                limit=self._limit,
                window=self.window,
                timeout=shared.timeout,
                speed=speed,
                earlier=shared.earlier,
            )
        return self._client
