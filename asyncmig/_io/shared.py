"""A budget that several processes use: what keeps it, and how this process asks it.

What keeps the budget is behind a port. It hears of each slot what became of it, and grants the next one or says when
to ask again; the time is its own, never this process's. Who goes next here (lanes, ranks, cancellation) stays the
dispatcher's affair. The link below has one task, and that only while somebody waits or there is something to tell.

If the keeper cannot be reached the link says so, and the dispatcher goes on by itself, with this process's share.
All slots of the last window are remembered here, also those of earlier processes that the send log names. A keeper
that is back, or says that it has lost what it knew, is told of them first.
"""

import asyncio
import uuid
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, final

from asyncmig._io.dispatcher import TICK
from asyncmig._io.send_log import EarlierSlot
from asyncmig._io.tasks import start_task

__all__ = ["BudgetClient", "BudgetStore", "Host", "Reply", "SharedWindow", "SlotReport"]

What = Literal[
    "accepted",
    "rejected",
    "lost",
    "unsent",
    "limited",
    "answered_before",
    "sent_before",
    "used_before",
    "knows",
]
_MARGIN = 0.05
_ASK_AGAIN = 12
"""A slot that somebody did not need is found in a part of the window."""
_SOONEST = 0.001
_MOST_LOSSES = 8
"""How often in a window a keeper may lose what it knew; each time nothing is sent for a moment."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 1.0
"""Real seconds between tries to reach the keeper again; in the longest all others try, too."""
_FAREWELL = 1.0
"""Real seconds for the last words at the end."""


class SlotReport(NamedTuple):
    """What became of a slot. `seconds`: a 429's Retry-After, an age, or a new limit.

    Two are not about a slot: how many were taken by all (`used_before`, and its age), and the epoch and the turn that
    were seen last (`knows`).
    """

    slot: str
    what: What
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """The budget as its keeper sees it. Seconds are those of the event loop's clock."""

    granted: bool = False
    wait: float = 0.0
    """Until it makes sense to ask again."""
    slots: int
    burst: int
    used: int
    clients: int
    """Processes that are alive, as far as they were heard of lately."""
    held: float = 0.0
    epoch: str = ""
    """Changes when the keeper has lost what it knew."""
    turn: int = 0
    """Rises with each exchange of an epoch; one that falls shows that the keeper has lost the last moments."""
    lost: bool = False
    """Whether this process has to tell again what it knows; no slot was granted."""


class BudgetStore(Protocol):
    """One budget, kept outside of this process."""

    async def exchange(self, happened: Sequence[SlotReport], want: str | None) -> Reply:
        """Tell what happened, and ask for a slot that is then called `want`.

        Raises `OSError` if the keeper cannot be reached; it may have heard all the same.
        """
        ...


class SharedWindow(Protocol):
    """Makes the shared budgets of one session."""

    processes: int
    """How many processes to reckon with until the keeper has told."""

    def budget(
        self, name: str, *, account: str, limit: int, window: float, timeout: float, speed: float
    ) -> BudgetStore:
        """Return the budget `name` of an account, whose name is a digest.

        `timeout`: seconds after which a request that was never answered has arrived, if ever. `speed`: seconds of
        the loop's clock in a real one; all others are the loop's.
        """
        ...

    async def aclose(self) -> None:
        """Close the connections."""
        ...


class Host(Protocol):
    """Who the link works for."""

    def is_waiting(self) -> bool:
        """Return whether anybody waits for a slot."""
        ...

    def hand_out(self, slot: str) -> bool:
        """Give a slot to whose turn it is; False if nobody waits any more."""
        ...

    def heard(self, reply: Reply) -> None:
        """The keeper has told how the budget stands."""
        ...

    def parted(self, error: OSError) -> None:
        """The keeper cannot be reached: go on alone."""
        ...

    def still_away(self, error: OSError) -> None:
        """The keeper was tried again, and cannot be reached."""
        ...

    def joined(self, reply: Reply) -> None:
        """The keeper is back, and knows what this process has used."""
        ...


@dataclass(slots=True)
class _Own:
    sent_at: float
    answered_at: float | None = None


@final
class BudgetClient:
    """Asks for slots while somebody waits, and tells what became of them. Times are the loop's."""

    __slots__ = (
        "_ask_at",
        "_budget",
        "_doubtful",
        "_found",
        "_heard",
        "_heard_at",
        "_host",
        "_limit",
        "_losses",
        "_own",
        "_pause",
        "_poke",
        "_speed",
        "_task",
        "_telling",
        "_timeout",
        "_window",
        "online",
    )

    def __init__(
        self,
        budget: BudgetStore,
        host: Host,
        *,
        limit: int,
        window: float,
        timeout: float,
        speed: float,
        earlier: Iterable[EarlierSlot] = (),
    ) -> None:
        """`earlier`: what the send log knows of other processes."""
        self._budget, self._host = budget, host
        self._window, self._timeout, self._speed = window, timeout, speed
        self.online = True
        self._own: dict[str, _Own] = {}
        """The slots of the last window."""
        now = asyncio.get_running_loop().time()
        for slot in earlier:
            self._own[slot.name] = _Own(now - slot.age, now - slot.age if slot.is_answered else None)
        self._limit = limit
        self._doubtful: str | None = None
        """A slot that was asked for, and no answer came."""
        self._found = False
        """Whether the keeper is back, and others may not have said yet what they used."""
        self._task: asyncio.Task[None] | None = None
        self._poke = asyncio.Event()
        self._ask_at = float("-inf")
        self._pause = 0.0
        self._heard: Reply | None = None
        """The last reply."""
        self._heard_at = float("-inf")
        self._losses: deque[float] = deque(maxlen=_MOST_LOSSES)
        self._telling: list[SlotReport] = self._remembered(now)

    # What the dispatcher says

    def wake(self) -> None:
        """Somebody waits, or there is something to tell."""
        if self._task is None:
            self._task = start_task(self._work(), name="asyncmig shared gate")
        self._poke.set()

    def name(self) -> str:
        """Return a name that no other slot has."""
        return uuid.uuid4().hex

    def sent(self, slot: str, now: float) -> None:
        """A request goes with this slot."""
        self._own[slot] = _Own(now)

    def tell(self, slot: str, what: What, now: float, *, seconds: float = 0.0) -> None:
        """Tell what became of a slot."""
        own = self._own.get(slot)
        if what == "unsent":
            self._own.pop(slot, None)
        elif own is not None:
            own.answered_at = now
        self._forget(now)
        if self.online:
            self._telling.append(SlotReport(slot, what, seconds))
            self._ask_at = now
            self.wake()

    def resize(self, limit: int) -> None:
        """Tell of another limit."""
        self._limit = limit
        self._telling.append(SlotReport("", "limited", limit))
        self.wake()

    async def aclose(self) -> None:
        """Tell what is left, as far as that takes but a moment, and stop."""
        task = self._task
        if task is None:
            return
        try:
            if self.online:
                await asyncio.wait([task], timeout=_FAREWELL * self._speed)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    # The task

    async def _work(self) -> None:
        try:
            while self._host.is_waiting() or (self._telling and self.online):
                await (self._turn() if self.online else self._rejoin())
        finally:
            self._task = None

    async def _turn(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        early = self._ask_at - now > TICK
        if early and not self._telling:
            await self._rest(self._ask_at - now)
            return
        telling, self._telling = self._telling, []
        want = self.name() if self._host.is_waiting() and not early else None
        reply = await self._exchange(telling, want)
        if reply is None:
            return
        self._host.heard(reply)
        if reply.lost:
            self._telling = [*self._remembered(now), *self._telling]
            return
        if want is None:
            return
        if not reply.granted:
            self._ask_at = loop.time() + min(max(reply.wait, _SOONEST), self._window / _ASK_AGAIN)
        elif loop.time() - now > self._timeout / 2 or not self._host.hand_out(want):
            # Nobody waits, or this process stood still so long that the slot may be counted as lost.
            self.tell(want, "unsent", loop.time())

    async def _exchange(self, telling: Sequence[SlotReport], want: str | None) -> Reply | None:
        """Return the reply; or go on alone, and remember what may not have been heard."""
        try:
            return await self._asked(telling, want)
        except OSError as error:
            self.online, self._found = False, False
            self._pause, self._doubtful = _FIRST_PAUSE, want
            self._host.parted(error)
            return None

    async def _asked(self, telling: Sequence[SlotReport], want: str | None) -> Reply:
        loop, heard = asyncio.get_running_loop(), self._heard
        if heard is None or self._heard_at < loop.time() - self._timeout - self._window:
            knows = SlotReport("", "knows")  # nothing that matters any more
        else:
            knows = SlotReport(heard.epoch, "knows", heard.turn)
        reply = await self._budget.exchange([knows, *telling], want)
        now = loop.time()
        if reply.lost and heard is not None:
            self._telling.insert(0, SlotReport(str(heard.used), "used_before", now - self._heard_at))
            self._losses.append(now)
        self._heard, self._heard_at = reply, now
        if len(self._losses) == _MOST_LOSSES and self._losses[0] > now - self._window:
            raise ConnectionError("it loses again and again what it knows")
        return reply

    async def _rejoin(self) -> None:
        """Wait a little, then try to tell all that this process used; twice, for others have to tell of theirs."""
        await asyncio.sleep(self._pause * self._speed)
        now = asyncio.get_running_loop().time()
        self._forget(now)
        try:
            reply = await self._asked([*self._remembered(now), *self._telling], None)
        except OSError as error:
            self._host.still_away(error)
            self._found, self._pause = False, min(_LONGEST_PAUSE, self._pause * 2)
            return
        if not self._found:
            self._found, self._pause = True, _LONGEST_PAUSE
            return
        self._telling, self._ask_at, self._doubtful, self.online = [], now, None, True
        self._host.joined(reply)

    async def _rest(self, seconds: float) -> None:
        """Sleep, until woken."""
        self._poke.clear()
        try:
            async with asyncio.timeout(seconds):
                await self._poke.wait()
        except TimeoutError:
            pass

    def _remembered(self, now: float) -> list[SlotReport]:
        remembered = [SlotReport("", "limited", self._limit)]
        if self._doubtful is not None:
            remembered.append(SlotReport(self._doubtful, "unsent"))
        for slot, own in self._own.items():
            if own.answered_at is None:
                remembered.append(SlotReport(slot, "sent_before", now - own.sent_at))
            else:
                remembered.append(SlotReport(slot, "answered_before", now - own.answered_at))
        return remembered

    def _forget(self, now: float) -> None:
        """Drop what no window holds any more."""
        over = now - self._window - _MARGIN
        for slot, own in list(self._own.items()):
            if (own.sent_at + self._timeout if own.answered_at is None else own.answered_at) <= over:
                del self._own[slot]
