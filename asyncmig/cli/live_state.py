"""The state of a running fleet, collected from the events of the session: what the live view shows."""

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from asyncmig.cli.options import spoken_wait
from asyncmig.customers.failures import words_of
from asyncmig.customers.status import CustomerStatus, RemainingWork
from asyncmig.events import (
    AttemptFailed,
    Event,
    MigrationChanged,
    Recovered,
    RequestDone,
    RunChanged,
    RunEnded,
    SlotAwaited,
)
from asyncmig.jobs.plan import ObservedDurations
from asyncmig.steps import ACTIVE, OutcomeName, Progress

__all__ = ["CustomerProgress", "LiveState"]


_WINDOW = 60.0


@dataclass(slots=True)
class CustomerProgress:
    """One customer: its step, the time of that step's start, and the server's progress text."""

    external_id: str
    files: int
    step: Progress | OutcomeName = "waiting"
    since: float = 0.0
    began: float = 0.0
    text: str = ""
    trouble: str = ""
    """The last failed attempt, until the customer advances."""
    uploads: int = 0


@final
class LiveState:
    """Collects events and outcomes, and returns what is in progress."""

    __slots__ = ("_answers", "_customers", "_owners", "_runs", "durations", "ended", "now")

    def __init__(self, files: Mapping[str, int]) -> None:
        """`files`: the number of files of each customer."""
        self._customers = {name: CustomerProgress(name, count) for name, count in files.items()}
        self._runs: dict[str, CustomerProgress] = {}
        self._owners: dict[str, str] = {}
        self._answers: deque[float] = deque()
        self.durations: ObservedDurations = ObservedDurations()
        self.ended: Counter[str] = Counter()
        """Customers by outcome."""
        self.now: float = 0.0
        """The present time (loop's clock): that of the last event, or later if the view sets it."""

    def note(self, event: Event) -> None:
        """Record an event."""
        self.now = max(self.now, event.at)
        match event:
            case MigrationChanged():
                self._step(event)
            case RequestDone() if not event.is_external:
                self._answers.append(event.at)
            case AttemptFailed() if event.external_id in self._customers:
                self._customers[event.external_id].trouble = words_of(event)
            case Recovered() if event.external_id in self._customers:
                self._customers[event.external_id].trouble = ""
            case RunChanged() if event.ids["run"] in self._runs:
                self._runs[event.ids["run"]].text = event.progress or ""
            case SlotAwaited() if event.external_id in self._customers:
                self._customers[event.external_id].text = _wait(event)
            case RunEnded() if event.seconds is not None:
                self.durations.add(event.seconds)
            case _:
                pass

    def own(self, ids: Mapping[str, str], external_id: str) -> None:
        """Record the server's ids of a customer."""
        self._owners.update(dict.fromkeys(ids.values(), external_id))

    def owner(self, resource_id: str) -> str:
        """Return the external id of the customer that an id of the server belongs to; the id if it is not known."""
        return self._owners.get(resource_id, resource_id)

    def finish(self, status: CustomerStatus) -> None:
        """Record how one customer's migration ended."""
        self.ended[status.outcome] += 1
        self._customers[status.external_id].step = status.outcome

    @property
    def total(self) -> int:
        """The number of customers."""
        return len(self._customers)

    @property
    def steps(self) -> Counter[str]:
        """The number of customers at each step, or with each outcome."""
        return Counter(customer.step for customer in self._customers.values())

    def requests(self) -> int:
        """Return the number of requests that were answered in the last minute."""
        while self._answers and self._answers[0] < self.now - _WINDOW:
            self._answers.popleft()
        return len(self._answers)

    def slowest(self, most: int) -> list[CustomerProgress]:
        """Return the customers that have been in progress for the longest time, the longest first."""
        active = [customer for customer in self._customers.values() if customer.step in ACTIVE]
        return sorted(active, key=lambda customer: customer.began)[:most]

    def in_trouble(self) -> list[CustomerProgress]:
        """Return the customers whose last attempt failed and is repeated, in the order of the manifest."""
        return [each for each in self._customers.values() if each.trouble and each.step in ACTIVE]

    def under_way(self) -> list[RemainingWork]:
        """Return the remaining work of each customer that has not ended."""
        return [
            RemainingWork(
                step=customer.step,
                files=max(0, customer.files - customer.uploads),
                age=self.now - customer.since if customer.step == "running" else None,
            )
            for customer in self._customers.values()
            if customer.step in ACTIVE or customer.step == "waiting"
        ]

    def _step(self, event: MigrationChanged) -> None:
        self.own(event.ids, event.external_id)
        customer = self._customers.get(event.external_id)
        if customer is None or event.step not in ACTIVE or customer.step in self.ended:
            return
        if customer.step == event.step == "uploading":
            customer.uploads += 1
        if customer.step == "waiting":
            customer.began = event.at
        if customer.step != event.step:
            customer.since, customer.text = event.at, ""
        customer.step, customer.trouble = event.step, ""
        if event.step == "running" and "run" in event.ids:
            self._runs[event.ids["run"]] = customer
        elif event.detail:
            customer.text = event.detail


def _wait(event: SlotAwaited) -> str:
    """Return what a request waits for, in words."""
    if event.seconds is None:
        return "waiting for a run slot"
    return f"waiting for `{event.budget}` {spoken_wait(event.seconds)}"
