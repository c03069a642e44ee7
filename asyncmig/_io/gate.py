"""The gate of one budget, or of a set of budgets: each request takes a slot, and reports its result."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from itertools import count
from random import Random
from types import TracebackType
from typing import Protocol, final

from asyncmig._core.arguments import checked_call
from asyncmig._core.endpoint import Lane
from asyncmig._core.limiter import MARGIN, SHORT_WINDOW, Limiter
from asyncmig._core.limits import RateHeaders
from asyncmig._io.budget_set import BudgetSet
from asyncmig._io.dispatcher import TICK, Dispatcher, DispatcherFactory
from asyncmig._io.run_slots import RunSlots
from asyncmig._io.send_log import Kind
from asyncmig.errors import AsyncmigError, InvalidInput, SessionClosed, WaitTooLong
from asyncmig.events import Events

__all__ = ["TICK", "Gate", "GateStatistics", "Slot", "joined_gate"]

_TOO_MANY = 429
_tickets = count(1)
"""Numbers for places in queues. They are unique over all gates, because the requests of several gates may wait for
the same budget."""
Note = Callable[[Kind, str], None]
"""Called with each change of a slot, and the name of the slot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GateStatistics:
    """A snapshot of one budget. Times are on the loop's clock."""

    name: str
    limit: int
    """The configured limit."""
    window: float
    """The window of the limit, in seconds."""
    slots: int
    """W: the present estimate of the number of requests that a window allows."""
    burst: int
    """B: how many of them may be sent at once."""
    used: int
    """The number of taken slots: of requests without an answer, or answered less than a window ago."""
    waiting: dict[str, int]
    """The number of waiting requests, by the name of the lane."""
    granted: int
    """The number of slots granted so far."""
    refused: int
    """The number of 429s."""
    held_until: float | None
    """The end of the hold after a 429; None without a hold."""


@final
class Slot:
    """The right to send one request, as an async context manager.

    Call `answered` as soon as the status is known. Otherwise the request counts as lost: it may have arrived at any
    time until the context ended. A slot can be entered only once; each request needs its own slot.
    """

    __slots__ = (
        "_dispatcher",
        "_lane",
        "_max_wait",
        "_name",
        "_note",
        "_order",
        "_rank",
        "_run",
        "_sent_at",
        "ticket",
        "waited",
    )

    def __init__(
        self,
        dispatcher: Dispatcher | BudgetSet,
        lane: Lane,
        rank: float,
        max_wait: float | None,
        ticket: int,
        note: Note | None,
        order: int = 0,
        run: str | None = None,
    ) -> None:
        self._order, self._run = order, run
        self._note, self._name = note, ""
        self._dispatcher, self._lane, self._rank, self._max_wait = dispatcher, lane, rank, max_wait
        self._sent_at: float | None = None
        """None before the grant, and after the result was reported."""
        self.ticket: int = ticket
        """The place in the queue. A repeat after a 429 keeps it."""
        self.waited: float = 0.0
        """Seconds that the request waited for its slot."""

    async def __aenter__(self) -> "Slot":
        self._sent_at = self._dispatcher.enter_now()
        if self._sent_at is None:
            self._check_wait()
            asked = self._dispatcher.now()
            self._sent_at = await self._dispatcher.wait(
                self._lane, self._rank, self.ticket, self._order, self._run
            )
            self.waited = max(0.0, self._sent_at - asked)
        if self._note is not None:
            self._name = self._dispatcher.name_of(self._sent_at)
            self._note("sent", self._name)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if self._sent_at is not None:
            self._dispatcher.lost(self._done("done"))
            self._run_done(started=True)

    def held(self) -> AbstractAsyncContextManager["Slot"]:
        """Return a context manager for a slot that was entered before. Its exit is the exit of the slot."""
        return _EnteredSlot(self)

    def answered(
        self, status: int, *, retry_after: float | None = None, headers: RateHeaders | None = None
    ) -> None:
        """Report the status of the answer.

        A 429 holds all requests for at least `retry_after` seconds (at most one window). `headers`: the rate headers
        of the answer.
        """
        if self._sent_at is None:
            return
        if status == _TOO_MANY:
            if retry_after is None and headers is not None and (headers.reset or 0.0) > 0.0:
                retry_after = headers.reset
            self._dispatcher.rejected(self._done("done"), retry_after, headers)
        else:
            self._dispatcher.accepted(self._done("done"), headers)
        if self._run is not None:
            self._run_done(started=not 400 <= status < 500)

    def too_many_runs(self, *, retry_after: float | None, listed: int | None) -> None:
        """Report a 429 because of the runs in progress. `listed`: the number of runs in its list; None without a
        list."""
        if self._sent_at is None:
            return
        if self._run is not None and isinstance(self._dispatcher, BudgetSet):
            self._dispatcher.too_many_runs(self._done("done"), self._run, retry_after, listed)
        else:
            self.answered(_TOO_MANY, retry_after=retry_after)

    def unsent(self) -> None:
        """Report that the request was not sent. The next request gets the slot."""
        if self._sent_at is not None:
            self._dispatcher.unsent(self._done("unsent"))
            self._run_done(started=False)

    def _run_done(self, *, started: bool) -> None:
        if self._run is not None and isinstance(self._dispatcher, BudgetSet):
            (self._dispatcher.run_started if started else self._dispatcher.run_refused)(self._run)

    def _done(self, kind: Kind) -> float:
        sent_at, self._sent_at = self._sent_at, None
        assert sent_at is not None
        if self._note is not None:
            self._note(kind, self._name)
        return sent_at

    def _check_wait(self) -> None:
        if self._max_wait is None:
            return
        wait = self._dispatcher.wait_estimate(self._lane)
        if wait > self._max_wait:
            raise WaitTooLong(wait, self._max_wait)


@final
class _EnteredSlot:
    """The exit of a slot that other code has entered."""

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
    """Lets requests pass as fast as a limit allows, and no faster, however the server counts.

    The limit is `limit` requests in `window` seconds. `recent`: the ages in seconds of the answers that another
    process received in its last window. `events`: receives holds and new estimates of the limit. `dispatcher`: makes
    the dispatcher of the slots; a session with a shared window passes its own. A gate can also be used without a
    session:

        async with gate.slot() as slot:
            response = await send()
            slot.answered(response.status)

    Every wait can be cancelled: no slot is lost, and no other request is blocked. Raises `InvalidInput` for a limit
    or a window that is not positive. `asyncmig._core.limiter` explains the algorithm.
    """

    __slots__ = ("_note", "dispatcher", "is_long", "name")

    @checked_call
    def __init__(
        self,
        *,
        limit: int = 100,
        window: float = 60.0,
        rng: Random | None = None,
        recent: Iterable[float] = (),
        name: str = "",
        events: Events | None = None,
        dispatcher: DispatcherFactory = Dispatcher,
    ) -> None:
        _check_limit(limit)
        if not window > 0:
            raise InvalidInput("window", window, "must be more than 0 seconds")
        self.name: str = name
        self.is_long: bool = window > SHORT_WINDOW
        """Whether a request may wait for long: the window is longer than two minutes, or requests need run slots."""
        limiter = Limiter(limit=limit, window=window, rng=rng or Random())
        self.dispatcher: Dispatcher | BudgetSet = dispatcher(
            limiter, window=window, recent=recent, budget=name, events=events
        )
        self._note: Note | None = None

    @property
    def limit(self) -> int:
        """The configured limit. A new value takes effect at once, and resets the estimates W and B."""
        return self.dispatcher.slowest().limit

    @limit.setter
    def limit(self, limit: int) -> None:
        _check_limit(limit)
        self.dispatcher.resize(limit)

    @property
    def pace(self) -> float:
        """The seconds between two requests that use the whole budget evenly, by the present estimate of the limit.

        Slots become free a little later, because the window begins with the answer.
        """
        slowest = self.dispatcher.slowest()
        return (slowest.window + MARGIN) / slowest.slots

    def slot(
        self,
        *,
        lane: Lane = Lane.WORK,
        rank: float = 0.0,
        max_wait: float | None = None,
        ticket: int | None = None,
        order: int = 0,
        run: str | None = None,
    ) -> Slot:
        """Return a slot. To enter it is to wait for the grant.

        A lower lane goes first; but every 20th grant goes to a waiting poll. In a lane, a lower `order` goes first,
        then a lower `rank`, then the earlier request. `ticket`: keeps the place in the queue of an earlier slot,
        whose request got a 429. `run`: the id with which the request also takes a run slot. Entering raises
        `WaitTooLong` at once if the wait would be longer than `max_wait` seconds, and the error that was given to
        `close`.
        """
        ticket = next(_tickets) if ticket is None else ticket
        return Slot(self.dispatcher, lane, rank, max_wait, ticket, self._note, order, run)

    def longest_wait(self, lane: Lane = Lane.WORK) -> tuple[str, float]:
        """Return the budget that delays a request of this lane most, and the approximate seconds.

        Returns `runs` and infinity if all run slots are taken, because the durations of runs are not known.
        """
        return self.dispatcher.longest_wait(lane)

    def wait_estimate(self, lane: Lane = Lane.WORK) -> float:
        """Return the approximate seconds that a request of this lane would wait now."""
        return self.dispatcher.wait_estimate(lane)

    def statistics(self) -> GateStatistics:
        """Return a snapshot."""
        dispatcher, slowest, now = self.dispatcher, self.dispatcher.slowest(), self.dispatcher.now()
        held = dispatcher.held_until
        return GateStatistics(
            name=self.name,
            limit=slowest.limit,
            window=slowest.window,
            slots=slowest.slots,
            burst=slowest.burst,
            used=slowest.used(),
            waiting={lane.name: dispatcher.waiting(lane) for lane in Lane},
            granted=slowest.granted,
            refused=slowest.refused,
            held_until=held if held > now else None,
        )

    def recent(self) -> list[float]:
        """Return the ages in seconds of the answers of the last window, for the next process."""
        return self.dispatcher.slowest().recent()

    def keep_log(self, note: Note, hold: Callable[[float], None]) -> None:
        """From now on, call `note` for each change of a slot, and `hold` with the seconds of each hold."""
        self._note, self.dispatcher.on_held = note, hold

    def resume(self, recent: Iterable[float], *, held_for: float = 0.0) -> None:
        """Take the slots of an earlier process, and send nothing for `held_for` seconds.

        `recent`: the ages in seconds of its answers.
        """
        self.dispatcher.resume(recent, held_for)

    def close(self, error: AsyncmigError | None = None) -> None:
        """End every wait, present and future, with `error` (default `SessionClosed`)."""
        self.dispatcher.close(error or SessionClosed())

    async def aclose(self) -> None:
        """Close, and wait until no task runs."""
        self.close()
        await self.dispatcher.aclose()


class BudgetSetFactory(Protocol):
    """Creates the set of a joined gate; the class `BudgetSet` is one such factory."""

    def __call__(
        self,
        dispatchers: Sequence[Dispatcher],
        runs: RunSlots | None = None,
        *,
        name: str = "",
        events: Events | None = None,
    ) -> BudgetSet:
        """Return a set of budgets; the arguments are those of `BudgetSet`."""
        ...


def joined_gate(
    gates: Sequence[Gate],
    *,
    runs: RunSlots | None = None,
    events: Events | None = None,
    budget_set: BudgetSetFactory = BudgetSet,
) -> Gate:
    """Return a gate whose requests take a slot of each of `gates`, and a run slot of `runs` if given, all at once.

    Its statistics and its pace are those of the slowest budget. Closing it does not close `gates`.
    """
    dispatchers = [each for gate in gates if isinstance(each := gate.dispatcher, Dispatcher)]
    name = "+".join(each.name for each in gates)
    gate = Gate(name=name)
    gate.is_long = runs is not None or any(each.is_long for each in gates)
    gate.dispatcher = budget_set(dispatchers, runs, name=name, events=events)
    return gate


def _check_limit(limit: int) -> None:
    if limit < 1:
        raise InvalidInput("limit", limit, "must be at least 1")
