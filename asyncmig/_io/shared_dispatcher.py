"""The dispatcher of a budget that several processes use; see `asyncmig._io.shared`.

Its own limiter is told of everything that this process sends, and of the answers. What it learns from them is of no
account while the keeper is there, which sees all processes. Without the keeper it limits this process to its share of
the last known window.
"""

import asyncio
import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import final

from asyncmig._core.endpoint import Lane
from asyncmig._core.limiter import Limiter
from asyncmig._core.retry import Occasions
from asyncmig._io.dispatcher import Dispatcher
from asyncmig._io.loop_guard import loop_speed
from asyncmig._io.send_log import EarlierSlot
from asyncmig._io.shared import BudgetClient, Reply, SharedWindow, What
from asyncmig.events import AttemptFailed, Events, SharedWindowFound, SharedWindowLost

__all__ = ["Shared", "SharedDispatcher"]

_log = logging.getLogger("asyncmig")
_SAME_HOLD = 0.5
"""Seconds by which two replies may differ about the end of one hold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """Who keeps the budgets of an account. `timeout`: a request that takes longer has arrived, if ever.

    `earlier`: what the send log knows of a budget, for a keeper that does not.
    """

    keeper: SharedWindow
    account: str
    """A digest that tells one API key from another."""
    timeout: float
    earlier: Sequence[EarlierSlot] = ()


@final
class SharedDispatcher(Dispatcher):
    """Gives the slots that a keeper grants, or while that is away those of this process's share."""

    __slots__ = (
        "_away",
        "_first_heard_at",
        "_heard_at",
        "_held_until",
        "_last_grant",
        "_limit",
        "_link",
        "_names",
        "_parted_at",
        "_shared",
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
        shared: Shared,
        limit: int,
    ) -> None:
        super().__init__(limiter, window=window, recent=recent, budget=budget, events=events)
        self._shared, self._limit = shared, limit
        self._link: BudgetClient | None = None
        self._away = Occasions()
        """Which failures to reach the keeper are told."""
        self._view: Reply | None = None
        """What the keeper said last; None while it is away."""
        self._names: dict[float, str] = {}
        """The keeper's names of the slots that are in use, by when they were granted."""
        self._first_heard_at = float("inf")
        self._last_grant = self._heard_at = self._parted_at = self._held_until = float("-inf")

    # How the budget stands

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
        return max(own, self._view.held, over * self._window / self._view.slots)

    def resize(self, limit: int) -> None:
        self._limit = limit
        if self._link is not None:
            self._link.resize(limit)
        super().resize(limit)

    # The ways in and out

    def enter_now(self) -> float | None:
        self._check_open()
        return None

    def turn(self) -> None:
        if self._loop is None or not self.waiters.count:
            super().turn()
            return
        link = self._linked(self._loop)
        link.wake()  # also while it is away: somebody has to find out when it is back
        if not link.online:
            super().turn()

    def _grant(self, now: float, name: str | None = None) -> float:
        now = self._last_grant = max(now, math.nextafter(self._last_grant, math.inf))
        assert self._link is not None
        self._names[now] = name or self._link.name()
        self._link.sent(self._names[now], now)
        return super()._grant(now)

    def name_of(self, sent_at: float) -> str:
        return self._names[sent_at]

    def accepted(self, sent_at: float) -> None:
        self._tell(sent_at, "accepted")
        super().accepted(sent_at)

    def rejected(self, sent_at: float, retry_after: float | None) -> None:
        self._tell(sent_at, "rejected", retry_after or 0.0)
        super().rejected(sent_at, retry_after)

    def lost(self, sent_at: float) -> None:
        self._tell(sent_at, "lost")
        super().lost(sent_at)

    def unsent(self, sent_at: float) -> None:
        self._tell(sent_at, "unsent")
        super().unsent(sent_at)

    def _tell(self, sent_at: float, what: What, seconds: float = 0.0) -> None:
        assert self._link is not None
        self._link.tell(self._names.pop(sent_at), what, self.now(), seconds=seconds)

    async def aclose(self) -> None:
        if self._link is not None:
            await self._link.aclose()

    # What the link says

    def is_waiting(self) -> bool:
        return self.waiters.count > 0

    def hand_out(self, slot: str) -> bool:
        waiter = self.waiters.next(self.granted)
        if waiter is None:
            return False
        waiter.set_result(self._grant(self.now(), slot))
        return True

    def heard(self, reply: Reply) -> None:
        self._view, self._heard_at = reply, self.now()
        self._first_heard_at = min(self._first_heard_at, self._heard_at)
        until = self._heard_at + reply.held
        if reply.held and until > self._held_until + _SAME_HOLD:
            self._held_until = until
            self._tell_held()
        self._tell_learnt()

    def parted(self, error: OSError) -> None:
        now, clients = self.now(), self._shared.keeper.processes
        if self._view is not None:
            # Others may have come since, where it is long ago, and where all have only just begun.
            known = self._heard_at > now - self._window > self._first_heard_at
            clients = max(self._view.clients, 1 if known else clients)
        slots, used = (self._view.slots, self._view.used) if self._view else (self._limit, 0)
        share = max(1, slots // clients)
        self._view, self._parted_at, self._away = None, now, Occasions()
        self._away.failed(now)  # which `SharedWindowLost` tells
        self.limiter.resize(share)
        # What others have used of the share is free again, at the latest, a window from now.
        taken = share - super().used() - max(0, slots - used) // clients
        self.limiter.resume([0.0] * max(0, taken), now)
        _log.warning("%s: no shared window (%s); this process keeps to %d", self._budget, error, share)
        if self._events is not None:
            self._events.emit(
                SharedWindowLost(
                    at=now, budget=self._budget, slots=share, processes=clients, error=str(error)
                )
            )
        self.turn()

    def still_away(self, error: OSError) -> None:
        now = self.now()
        if self._events is not None and self._away.failed(now):
            self._events.emit(
                AttemptFailed(
                    at=now,
                    endpoint=f"shared window of {self._budget}",
                    attempt=self._away.count,
                    status=None,
                    error=str(error),
                )
            )

    def joined(self, reply: Reply) -> None:
        self._rest()
        self.limiter.resize(self._limit)
        now, self._view = self.now(), reply
        self._heard_at = now
        _log.warning("%s: the shared window is back", self._budget)
        if self._events is not None:
            self._events.emit(
                SharedWindowFound(
                    at=now, budget=self._budget, slots=reply.slots, seconds=now - self._parted_at
                )
            )

    def _linked(self, loop: asyncio.AbstractEventLoop) -> BudgetClient:
        """Return the link, which is made when the loop's speed is known."""
        if self._link is None:
            shared = self._shared
            speed = loop_speed(loop)
            budget = shared.keeper.budget(
                self._budget,
                account=shared.account,
                limit=self._limit,
                window=self._window,
                timeout=shared.timeout,
                speed=speed,
            )
            self._link = BudgetClient(
                budget,
                self,
                limit=self._limit,
                window=self._window,
                timeout=shared.timeout,
                speed=speed,
                earlier=shared.earlier,
            )
        return self._link
