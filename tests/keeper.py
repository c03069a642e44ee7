"""A keeper of shared windows in this process: a local limiter for each budget, a way there, and outages."""

import asyncio
from collections.abc import Sequence
from random import Random

from asyncmig._core.limiter import Limiter
from asyncmig._io.shared import Reply, SlotReport


class Keeper:
    """What several gates of a test share; `away`: it cannot be reached; `deaf`: it hears, and no answer comes."""

    def __init__(self, *, latency: float = 0.01, processes: int = 4) -> None:
        self.latency, self.processes = latency, processes
        self.away = self.deaf = self.closed = False
        self.leaky = False
        """It loses between any two exchanges what it knew."""
        self.limiters: dict[str, Limiter] = {}
        self.taken: dict[str, float] = {}
        self.known: set[str] = set()
        """Slots that were told of again."""
        self.clients: set[int] = set()
        self.exchanges = 0
        self.accounts: set[str] = set()

    def budget(
        self, name: str, *, account: str, limit: int, window: float, timeout: float, speed: float
    ) -> "KeptBudget":
        self.accounts.add(account)
        limiter = self.limiters.setdefault(name, Limiter(limit=limit, window=window, rng=Random(5)))
        return KeptBudget(self, limiter)

    def forget(self) -> None:
        """Lose everything but the budgets."""
        for name, old in self.limiters.items():
            self.limiters[name] = Limiter(limit=old._limit, window=old._window, rng=Random(5))
        self.taken, self.known = {}, set()

    async def aclose(self) -> None:
        self.closed = True


class KeptBudget:
    """One client's way to one budget."""

    def __init__(self, keeper: Keeper, limiter: Limiter) -> None:
        self._keeper, self._limiter = keeper, limiter

    async def exchange(self, happened: Sequence[SlotReport], want: str | None) -> Reply:
        keeper, loop = self._keeper, asyncio.get_running_loop()
        keeper.exchanges += 1
        await asyncio.sleep(keeper.latency / 2)
        if keeper.away:
            raise ConnectionError("it is away")
        if keeper.leaky:
            return Reply(slots=100, burst=100, used=0, clients=1, epoch=f"{keeper.exchanges}", lost=True)
        keeper.clients.add(id(self))
        for one in happened:
            self._hear(one, loop.time())
        reply = self._reply(want, loop.time())
        await asyncio.sleep(keeper.latency / 2)
        if keeper.deaf:
            raise ConnectionError("no answer came")
        return reply

    def _hear(self, one: SlotReport, now: float) -> None:
        limiter, taken = self._limiter, self._keeper.taken
        sent_at = taken.pop(one.slot, None)
        if one.what == "limited":
            if one.seconds != limiter._limit:
                limiter.resize(int(one.seconds))
        elif sent_at is None:
            if one.what == "answered_before" and one.slot not in self._keeper.known:
                self._keeper.known.add(one.slot)
                limiter.resume([one.seconds], now)
            elif one.what == "sent_before":
                limiter.take(now)
                taken[one.slot] = now
        elif one.what == "rejected":
            limiter.rejected(now, sent_at=sent_at, retry_after=one.seconds)
        elif one.what == "sent_before":
            taken[one.slot] = sent_at
        elif one.what in ("accepted", "answered_before"):
            self._keeper.known.add(one.slot)
            limiter.accepted(now, sent_at=sent_at)
        elif one.what == "lost":
            limiter.lost(now, sent_at=sent_at)
        else:
            limiter.unsent(now, sent_at=sent_at)

    def _reply(self, want: str | None, now: float) -> Reply:
        limiter = self._limiter
        at = limiter.next_at(now) if want else None
        granted = at is not None and at <= now
        if granted and want:
            limiter.take(now)
            self._keeper.taken[want] = now
        return Reply(
            granted=granted,
            wait=0.25 if at is None else max(0.0, at - now),
            slots=limiter.slots,
            burst=limiter.burst,
            used=limiter.used(now),
            clients=len(self._keeper.clients),
            held=max(0.0, limiter.held_until - now),
        )
