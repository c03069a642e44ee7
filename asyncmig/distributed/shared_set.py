"""Requests that charge several budgets which processes share, and may start a run.

The store grants a slot of every budget in one exchange, or none. If the request starts a run, its run slot is
reserved first. It is released at once if the budgets have no slot, so that a waiting request holds nothing. While the
store is unavailable, the dispatchers grant slots from the share of this process, as they do without a shared window.
"""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import final
from uuid import uuid4

from asyncmig._core.endpoint import Lane
from asyncmig._io.budget_set import BudgetSet
from asyncmig._io.dispatcher import TICK, Dispatcher
from asyncmig._io.event_loop import start_task
from asyncmig._io.run_slots import RunSlots
from asyncmig._io.waiters import Head
from asyncmig.distributed.budget_client import next_attempt
from asyncmig.distributed.budget_store import BudgetReply, BudgetStore, SharedBudgets, name_of_set
from asyncmig.distributed.shared_dispatcher import RECHECK, SharedDispatcher
from asyncmig.events import Events

__all__ = ["SharedBudgetSet"]

_NEVER = float("inf")


@final
class SharedBudgetSet(BudgetSet):
    """The requests that charge the same shared budgets. Has the methods of `Dispatcher` for them."""

    __slots__ = (
        "_ask_at",
        "_blocked_until",
        "_members",
        "_ready_at",
        "_shared",
        "_store",
        "_task",
        "_wakeup",
    )

    def __init__(
        self,
        dispatchers: Sequence[Dispatcher],
        runs: RunSlots | None = None,
        *,
        name: str = "",
        events: Events | None = None,
        shared: SharedBudgets,
    ) -> None:
        super().__init__(dispatchers, runs, name=name, events=events)
        self._members = [each for each in dispatchers if isinstance(each, SharedDispatcher)]
        self._shared = shared
        self._store: BudgetStore | None = None
        self._task: asyncio.Task[None] | None = None
        self._wakeup = asyncio.Event()
        self._ask_at = float("-inf")
        """The time of the next attempt to get a slot."""
        self._ready_at = float("-inf")
        """When the store will have a slot of each budget, according to its last reply."""
        self._blocked_until = float("-inf")
        """Until when the first waiter must wait for a run slot, or for the end of a hold of this set."""

    @property
    def asks_at(self) -> float:
        return max(self._ready_at, self._blocked_until)

    def name_of(self, sent_at: float) -> str:
        return self._members[0].name_of(sent_at)

    def turn(self) -> None:
        self._refuse_starts()
        for each in self._members:
            each.turn()  # a member that is offline grants from its share, or detects that the store answers again
        if self.waiters.count and all(each.is_online for each in self._members):
            if self._task is None:
                self._task = start_task(self._work(), name="asyncmig shared gate of a set")
            self._wakeup.set()

    async def aclose(self) -> None:
        """Stop the task."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _work(self) -> None:
        try:
            while (head := self.waiters.head(self._members[0].granted)) and all(
                each.is_online for each in self._members
            ):
                self._wakeup.clear()
                now = asyncio.get_running_loop().time()
                at = self._may_ask_at(head, now)
                if at - now > TICK:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(at - now):
                            await self._wakeup.wait()
                else:
                    await self._ask(head, now)
        finally:
            self._task = None
            self._blocked_until = float("-inf")

    def _may_ask_at(self, head: tuple[Head, asyncio.Future[float]], now: float) -> float:
        """Return when the store may be asked; infinity while that depends on a report of another run."""
        self._blocked_until = self._held_until
        if self._runs is not None and (start := self._run_of.get(head[1])):
            at = self._runs.earliest(start[0], now)
            self._blocked_until = max(self._blocked_until, _NEVER if at is None else at)
        at = max(self._ask_at, self._blocked_until)
        if at <= now and any(each.has_before(self, head[0], now) for each in self._members):
            return now + RECHECK
        return at

    async def _ask(self, head: tuple[Head, asyncio.Future[float]], now: float) -> None:
        """Reserve a run slot if one is needed, ask the store for a slot of each budget, and grant it."""
        place, waiter = head
        start, runs = self._run_of.get(waiter), self._runs
        if runs is not None and start is not None and not await runs.reserve(start[0], place[1]):
            return
        slot = uuid4().hex
        replies: Sequence[BudgetReply] | None = None
        try:
            replies = await self._exchange(slot)
        finally:
            is_granted = replies is not None and replies[0].granted
            # If this process was suspended for long, the slot may count as lost.
            is_late = asyncio.get_running_loop().time() - now > self._shared.timeout / 2
            if is_granted and not is_late and not waiter.done():
                lane = place[0]
                # Removes the waiter from the counts of the queue.
                self.waiters.cancelled(Lane.POLL if lane < 0 else Lane(lane))
                self._grant_to(waiter, asyncio.get_running_loop().time(), slot)
            else:
                if runs is not None and start is not None:
                    runs.release(start[0])
                if is_granted:
                    self._give_back(slot)
        if replies is not None and not is_granted:
            self._put_off(replies)

    def _give_back(self, slot: str) -> None:
        now = asyncio.get_running_loop().time()
        for each in self._members:
            each.opened_client().report(slot, "unsent", now)

    def _hold(self, retry_after: float | None) -> None:
        super()._hold(retry_after)
        name = name_of_set([each.shared_budget() for each in self._members])
        self._members[0].opened_client().hold(name, self._held_until)

    def _put_off(self, replies: Sequence[BudgetReply]) -> None:
        now = asyncio.get_running_loop().time()
        wait, window = max(
            (reply.wait, each.window) for reply, each in zip(replies, self._members, strict=True)
        )
        self._ask_at = now + next_attempt(wait, window)
        self._ready_at = max(self._ask_at, now + wait)

    async def _exchange(self, slot: str) -> Sequence[BudgetReply] | None:
        """Ask for a slot of each budget. If the store does not answer, all members go offline."""
        clients = [each.opened_client() for each in self._members]
        if self._store is None:
            self._store = self._shared.store([each.shared_budget() for each in self._members])
        try:
            replies = await self._store.exchange([each.reports() for each in clients], slot)
            for client, reply in zip(clients, replies, strict=True):
                client.apply(reply)
        except OSError as error:
            for client in clients:
                client.exchange_failed(error, slot)
            return None
        return replies
