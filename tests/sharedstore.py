"""A store of shared windows in this process: a local limiter for each budget, a delay, and outages."""

import asyncio
from collections.abc import Sequence
from random import Random

from asyncmig._core.limiter import Limiter
from asyncmig.distributed.budget_store import BudgetReply, SlotReport


class Store:
    """What several gates of a test share. `away`: it does not answer. `deaf`: it hears but does not answer."""

    def __init__(self, *, latency: float = 0.01, processes: int = 4) -> None:
        self.latency, self.processes = latency, processes
        self.away = self.deaf = self.closed = False
        self.leaky = False
        """It loses its data between any two exchanges."""
        self.limiters: dict[str, Limiter] = {}
        self.taken: dict[str, float] = {}
        self.known: set[str] = set()
        """Slots that were reported again."""
        self.clients: set[int] = set()
        self.exchanges = 0
        self.accounts: set[str] = set()

    def budget(
        self, name: str, *, account: str, limit: int, window: float, timeout: float, speed: float
    ) -> "StoredBudget":
        self.accounts.add(account)
        limiter = self.limiters.setdefault(name, Limiter(limit=limit, window=window, rng=Random(5)))
        return StoredBudget(self, limiter)

    def forget(self) -> None:
        """Lose everything but the budgets."""
        for name, old in self.limiters.items():
            self.limiters[name] = Limiter(limit=old._limit, window=old._window, rng=Random(5))
        self.taken, self.known = {}, set()

    async def aclose(self) -> None:
        self.closed = True


class StoredBudget:
    """One budget, as one client uses it."""

    def __init__(self, store: Store, limiter: Limiter) -> None:
        self._store, self._limiter = store, limiter

    async def exchange(self, reports: Sequence[SlotReport], want: str | None) -> BudgetReply:
        store, loop = self._store, asyncio.get_running_loop()
        store.exchanges += 1
        await asyncio.sleep(store.latency / 2)
        if store.away:
            raise ConnectionError("it is away")
        if store.leaky:
            return BudgetReply(slots=100, burst=100, used=0, clients=1, epoch=f"{store.exchanges}", lost=True)
        store.clients.add(id(self))
        for one in reports:
            self._hear(one, loop.time())
        reply = self._reply(want, loop.time())
        await asyncio.sleep(store.latency / 2)
        if store.deaf:
            raise ConnectionError("no answer came")
        return reply

    def _hear(self, one: SlotReport, now: float) -> None:
        limiter, taken = self._limiter, self._store.taken
        sent_at = taken.pop(one.slot, None)
        if one.event == "limited":
            if one.seconds != limiter._limit:
                limiter.resize(int(one.seconds))
        elif sent_at is None:
            if one.event == "answered_before" and one.slot not in self._store.known:
                self._store.known.add(one.slot)
                limiter.resume([one.seconds], now)
            elif one.event == "sent_before":
                limiter.take(now)
                taken[one.slot] = now
        elif one.event == "rejected":
            limiter.rejected(now, sent_at=sent_at, retry_after=one.seconds)
        elif one.event == "sent_before":
            taken[one.slot] = sent_at
        elif one.event in ("accepted", "answered_before"):
            self._store.known.add(one.slot)
            limiter.accepted(now, sent_at=sent_at)
        elif one.event == "lost":
            limiter.lost(now, sent_at=sent_at)
        else:
            limiter.unsent(now, sent_at=sent_at)

    def _reply(self, want: str | None, now: float) -> BudgetReply:
        limiter = self._limiter
        at = limiter.next_at(now) if want else None
        granted = at is not None and at <= now
        if granted and want:
            limiter.take(now)
            self._store.taken[want] = now
        return BudgetReply(
            granted=granted,
            wait=0.25 if at is None else max(0.0, at - now),
            slots=limiter.slots,
            burst=limiter.burst,
            used=limiter.used(now),
            clients=len(self._store.clients),
            held=max(0.0, limiter.held_until - now),
        )
