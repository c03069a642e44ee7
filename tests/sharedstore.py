"""A store of shared windows in this process, with a limiter for each budget, a delay, and simulated outages."""

import asyncio
from collections.abc import Callable, Sequence
from random import Random

from asyncmig._core.limiter import Limiter
from asyncmig._core.limits import RateHeaders
from asyncmig._core.run_table import Reach
from asyncmig.distributed.budget_store import BudgetReply, SharedBudget, SlotReport


class Store:
    """The store that several gates of a test share."""

    def __init__(self, *, latency: float = 0.01, processes: int = 4) -> None:
        self.latency, self.processes = latency, processes
        self.closed = False
        self.unreachable = False
        """Whether requests fail before they reach the store."""
        self.drops_replies = False
        """Whether the store executes requests, but its replies are lost."""
        self.loses_data = False
        """Whether the store loses its data between any two exchanges."""
        self.limiters: dict[str, Limiter] = {}
        self.taken: dict[tuple[str, str], float] = {}
        """When each unanswered slot was taken, by budget and slot."""
        self.known: set[tuple[str, str]] = set()
        """Slots whose answer was counted. Another report of the same answer changes nothing."""
        self.holds: dict[str, float] = {}
        """When the hold of a set of budgets ends, by the name of the set."""
        self.clients: set[int] = set()
        self.exchanges = 0
        self.accounts: set[str] = set()
        self.run_slots = StoredRuns(self)

    def budgets(
        self, budgets: Sequence[SharedBudget], *, account: str, timeout: float, speed: float
    ) -> "StoredBudgets":
        self.accounts.add(account)
        for each in budgets:
            if each.name not in self.limiters:
                self.limiters[each.name] = Limiter(limit=each.limit, window=each.window, rng=Random(5))
        return StoredBudgets(self, [each.name for each in budgets])

    def runs(self, account: str) -> "StoredRuns":
        return self.run_slots

    def forget(self) -> None:
        """Lose all data except for the limits of the budgets."""
        for name, old in self.limiters.items():
            self.limiters[name] = Limiter(limit=old._limit, window=old._window, rng=Random(5))
        self.taken, self.known = {}, set()

    async def aclose(self) -> None:
        self.closed = True


class StoredBudgets:
    """Budgets that one client charges together."""

    def __init__(self, store: Store, names: Sequence[str]) -> None:
        self._store, self._names = store, names

    async def exchange(
        self, reports: Sequence[Sequence[SlotReport]], want: str | None
    ) -> Sequence[BudgetReply]:
        store, loop = self._store, asyncio.get_running_loop()
        store.exchanges += 1
        await asyncio.sleep(store.latency / 2)
        if store.unreachable:
            raise ConnectionError("the store is unreachable")
        if store.loses_data:
            lost = BudgetReply(slots=100, burst=100, used=0, clients=1, epoch=f"{store.exchanges}", lost=True)
            return [lost for _ in self._names]
        store.clients.add(id(self))
        for name, each in zip(self._names, reports, strict=True):
            for report in each:
                self._apply(name, report, loop.time())
        replies = self._replies(want, loop.time())
        await asyncio.sleep(store.latency / 2)
        if store.drops_replies:
            raise ConnectionError("the reply is lost")
        return replies

    def _apply(self, name: str, report: SlotReport, now: float) -> None:
        limiter, taken, slot = self._store.limiters[name], self._store.taken, (name, report.slot)
        sent_at = taken.pop(slot, None)
        if report.event == "limit":
            if report.seconds != limiter._limit:
                limiter.resize(int(report.seconds))
        elif report.event == "held":
            self._store.holds[report.slot] = now + report.seconds
        elif report.event == "headers":
            limit, _, remaining = report.slot.partition("/")
            limiter.apply_headers(
                RateHeaders(
                    limit=int(limit) if limit else None,
                    remaining=int(remaining) if remaining else None,
                    reset=report.seconds or None,
                ),
                now,
            )
        elif sent_at is None:
            if report.event == "answered_before" and slot not in self._store.known:
                self._store.known.add(slot)
                limiter.resume([report.seconds], now)
            elif report.event == "sent_before":
                limiter.take(now)
                taken[slot] = now
        elif report.event == "rejected":
            limiter.rejected(now, sent_at=sent_at, retry_after=report.seconds or None)
        elif report.event == "sent_before":
            taken[slot] = sent_at
        elif report.event in ("accepted", "answered_before"):
            self._store.known.add(slot)
            limiter.accepted(now, sent_at=sent_at)
        elif report.event == "lost":
            limiter.lost(now, sent_at=sent_at)
        else:
            limiter.unsent(now, sent_at=sent_at)

    def _replies(self, want: str | None, now: float) -> list[BudgetReply]:
        limiters = [self._store.limiters[name] for name in self._names]
        held = self._store.holds.get("+".join(self._names), now)
        earliest = [limiter.next_at(now) if want else None for limiter in limiters]
        times = [None if at is None else max(at, held) for at in earliest]
        granted = all(at is not None and at <= now for at in times)
        if granted and want:
            for name, limiter in zip(self._names, limiters, strict=True):
                limiter.take(now)
                self._store.taken[name, want] = now
        return [
            BudgetReply(
                granted=granted,
                wait=0.25 if at is None else max(0.0, at - now),
                slots=limiter.slots,
                burst=limiter.burst,
                used=limiter.used(now),
                clients=len(self._store.clients),
                held=max(0.0, limiter.held_until - now),
            )
            for limiter, at in zip(limiters, times, strict=True)
        ]


class StoredRuns:
    """The run slots of all accounts. The store's clock is `ahead` seconds ahead of the loop's clock."""

    reach: Reach = "network"

    def __init__(self, store: Store) -> None:
        self._store = store
        self.state, self.ahead, self.updates = b"", 1e6, 0

    async def update(self, change: Callable[[bytes, float], bytes], *, speed: float) -> None:
        self.updates += 1
        await asyncio.sleep(self._store.latency / 2)
        if self._store.unreachable:
            raise ConnectionError("the store is unreachable")
        self.state = change(self.state, asyncio.get_running_loop().time() + self.ahead)
        await asyncio.sleep(self._store.latency / 2)
