"""The budgets of one session: the gate of each endpoint, and the slots of earlier processes with the same key."""

import asyncio
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import final

from asyncmig._core.endpoint import Endpoint
from asyncmig._core.limits import BY_KEY, Limits, Rate, charged
from asyncmig._io.budget_set import BudgetSet
from asyncmig._io.dispatcher import Dispatcher, DispatcherFactory
from asyncmig._io.event_loop import finish_all, loop_speed
from asyncmig._io.gate import BudgetSetFactory, Gate, joined_gate
from asyncmig._io.run_slots import RunSlots
from asyncmig._io.send_log import EarlierSlot, Kind, SendLog
from asyncmig._io.threads import in_thread
from asyncmig.errors import AsyncmigError
from asyncmig.events import Events

__all__ = ["SessionBudgets", "budgets_by_route", "route_shape"]


@final
class SessionBudgets:
    """Makes the gates of a session when an endpoint first needs them, and writes their slots to the send log."""

    __slots__ = (
        "_budget_set",
        "_closed",
        "_dispatcher",
        "_events",
        "_gates",
        "_limits",
        "_log",
        "_opening",
        "_rates",
        "_rng",
        "_runs",
        "_timeout",
        "by_name",
    )

    def __init__(
        self,
        limits: Limits,
        *,
        runs: RunSlots,
        events: Events,
        rng: Random,
        timeout: float,
        dispatcher: Callable[[Sequence[EarlierSlot]], DispatcherFactory] = lambda _: Dispatcher,
        budget_set: BudgetSetFactory = BudgetSet,
    ) -> None:
        """`timeout`: seconds after which an unanswered request has either arrived or been lost. `dispatcher`: returns
        the factory of a budget's dispatcher, given the budget's slots of earlier processes.
        """
        self._limits, self._runs, self._events, self._rng = limits, runs, events, rng
        self._timeout, self._dispatcher, self._budget_set = timeout, dispatcher, budget_set
        self.by_name: dict[str, Gate] = {}
        """The gates of single budgets."""
        self._gates: dict[tuple[tuple[str, ...], bool], Gate] = {}
        """The gates of endpoints, by the budgets that they charge and whether they take run slots."""
        self._rates: dict[Gate, Mapping[str, Rate]] = {}
        """All gates, with the budgets that each of them charges."""
        self._log: SendLog | None = None
        self._opening = asyncio.Lock()
        self._closed: AsyncmigError | None = None

    def gate(self, endpoint: Endpoint) -> Gate:
        """Return the gate of an endpoint."""
        rates = charged(self._limits, endpoint)
        takes_run = endpoint.run_order is not None and self._limits.runs is not None
        key = (tuple(rates), takes_run)
        gate = self._gates.get(key)
        if gate is None:
            budgets = [self._budget(name, rate) for name, rate in rates.items()]
            if len(budgets) == 1 and not takes_run:
                gate = budgets[0]
            else:
                runs = self._runs if takes_run else None
                gate = joined_gate(budgets, runs=runs, events=self._events, budget_set=self._budget_set)
                self._rates[gate] = rates
                self._keep_log(gate)
            self._gates[key] = gate
        return gate

    def _budget(self, name: str, rate: Rate) -> Gate:
        gate = self.by_name.get(name)
        if gate is None:
            earlier = self._earlier(name)
            gate = self.by_name[name] = Gate(
                limit=rate.limit,
                window=rate.window,
                rng=self._rng,
                recent=[slot.answered_for(self._timeout) for slot in earlier],
                name=name,
                events=self._events,
                dispatcher=self._dispatcher(earlier),
            )
            self._rates[gate] = {name: rate}
            self._keep_log(gate)
            if self._closed is not None:
                gate.close(self._closed)
        return gate

    async def remember(self, path: Path, loop: asyncio.AbstractEventLoop) -> None:
        """Open the send log at `path`, unless one is open. A file that cannot be used causes only a warning."""
        async with self._opening:
            if self._log is not None:
                return
            log = SendLog(path, speed=loop_speed(loop), timeout=self._timeout, clock=loop.time, threaded=True)
            await in_thread(log.open)
            self._log = log
        for name, gate in self.by_name.items():
            gate.resume([slot.answered_for(self._timeout) for slot in self._earlier(name)])
        for gate in self._rates:
            self._keep_log(gate)

    def _keep_log(self, gate: Gate) -> None:
        """Write the slots and holds of a gate to the send log, and apply the holds of earlier processes in it."""
        log = self._log
        if log is None:
            return
        gate.keep_log(partial(_note_all, log, self._rates[gate]), partial(log.hold, gate.name))
        if held_for := log.held_for(gate.name):
            gate.resume((), held_for=held_for)

    def _earlier(self, name: str) -> list[EarlierSlot]:
        """Return the slots of earlier processes in a budget.

        An earlier process may have counted by key and this one by endpoint, or the reverse.
        """
        if self._log is None:
            return []
        names = (None,) if name == BY_KEY else (name, BY_KEY)
        return [slot for each in names for slot in self._log.earlier(each)]

    def close(self, error: AsyncmigError) -> None:
        """End waiting and new calls with `error`."""
        self._closed = error
        for gate in self._rates:
            gate.close(error)

    async def aclose(self) -> None:
        """Close the gates."""
        await finish_all([gate.aclose for gate in self._rates])

    async def aclose_log(self) -> None:
        """Close the send log, after the last request."""
        if self._log is not None:
            await self._log.aclose()


def _note_all(log: SendLog, rates: Mapping[str, Rate], kind: Kind, slot: str) -> None:
    for name, rate in rates.items():
        log.note(kind, name, slot, window=rate.window)


def route_shape(endpoint: Endpoint) -> tuple[str, str]:
    """Return the method of an endpoint, and its route template without the names of ids."""
    return endpoint.method, re.sub(r"\{[^}]*\}", "{}", endpoint.template)


def budgets_by_route(
    generations: Iterable[Iterable[Endpoint]],
) -> Mapping[tuple[str, str], tuple[str, ...]]:
    """Return the named budgets of each route, by `route_shape`. `generations`: the endpoints of each API generation.

    If several endpoints of a generation have the same route, it has the budgets of all of them. A route that has
    named budgets in one generation and none in another is left out: requests to it charge a budget of their own.
    """
    found: defaultdict[tuple[str, str], dict[str, None]] = defaultdict(dict)
    unnamed: set[tuple[str, str]] = set()
    for endpoints in generations:
        own: defaultdict[tuple[str, str], dict[str, None]] = defaultdict(dict)
        for each in endpoints:
            own[route_shape(each)] |= dict.fromkeys(each.budgets)
        unnamed |= {shape for shape, budgets in own.items() if not budgets}
        for shape, budgets in own.items():
            found[shape] |= budgets
    return {shape: tuple(budgets) for shape, budgets in found.items() if shape not in unnamed}
