"""The plan of a run: its requests, its bytes, the earliest end, and the decisions that it needs.

Nothing is sent. The plan is made from the files and the journal, without what only the server knows: names of sources
and templates, durations of imports, questions.

The earliest end is arithmetic, without a clock or a session. A server that allows W requests in a window lets W go at
once, and W more after each window. So n requests of one budget take at least `(n - 1) // W` windows until the last is
sent. This is a lower bound for any client. The time that the imports take comes on top.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Protocol

import msgspec

from asyncmig import generations
from asyncmig._core.endpoint import Endpoint, Repeat
from asyncmig._core.limits import Limits, Rate, charged
from asyncmig.customers.files import customer_folder, size_of
from asyncmig.customers.options import MigrationOptions
from asyncmig.customers.outcome import Delivered, Failed, Parked
from asyncmig.customers.questions import Action
from asyncmig.customers.spec import HasNames
from asyncmig.customers.status import CustomerRecord, RemainingWork, is_new
from asyncmig.generations import Generation

__all__ = [
    "Destruction",
    "Forecast",
    "Plan",
    "PlannedFile",
    "earliest_end",
    "forecast",
    "plan",
]


_LARGEST = 5
"""The number of files in `Plan.largest`."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """Seconds until the end. `is_bound`: the end cannot be earlier, and it is not known how much later it will be."""

    seconds: float
    is_bound: bool


def earliest_end(
    requests: Mapping[str, int], *, limits: Limits = Limits.BY_CLASS, api: str = generations.DEFAULT
) -> float:
    """Return the seconds before which the last of these requests cannot be sent, if nothing was sent recently.

    `requests`: by endpoint of the generation `api`.
    """
    return max((seconds for _, seconds in _waits(requests, limits, api)), default=0.0)


def _waits(requests: Mapping[str, int], limits: Limits, api: str) -> Iterator[tuple[str, float]]:
    """Yield each budget, and the seconds before which the last of its requests cannot be sent."""
    endpoints = generations.find(api).endpoints
    counts: Counter[str] = Counter()
    rates: dict[str, Rate] = {}
    for key, count in requests.items():
        method, _, template = key.partition(" ")
        unknown = Endpoint(name=key, method=method, template=template, repeat=Repeat.NEVER)
        for name, rate in charged(limits, endpoints.get(key, unknown)).items():
            counts[name] += count
            rates[name] = rate
    for name, count in counts.items():
        if count:
            yield name, (count - 1) // rates[name].limit * rates[name].window


def forecast(
    under_way: Collection[RemainingWork],
    longest: float | None,
    *,
    limits: Limits = Limits.BY_CLASS,
    concurrency: int = 500,
    api: str = generations.DEFAULT,
) -> Forecast:
    """Return when all of `under_way` will have ended, from the budgets and from the longest import so far.

    `longest`: how many seconds the longest import took, because a fleet waits for its last import; None until an
    import has ended.
    """
    generation = generations.find(api)
    left: Counter[str] = Counter()
    for work, count in Counter(RemainingWork(step=each.step, files=each.files) for each in under_way).items():
        for endpoint, requests in generation.requests_left(work).items():
            left[endpoint] += requests * count
    starts = {endpoint: left[endpoint] for endpoint in generation.requests_before_run if left[endpoint]}
    started = earliest_end(starts, limits=limits, api=api)
    bound = earliest_end(left, limits=limits, api=api)
    ages = [customer.age for customer in under_way if customer.age is not None]
    if longest is None:
        return Forecast(bound, is_bound=bool(under_way))
    ends = [bound, *(longest - age for age in ages)]
    if starts:
        ends += [started + longest, longest * -(-len(under_way) // concurrency)]
    return Forecast(max(ends), is_bound=any(age > longest for age in ages))


class Planned(HasNames, Protocol):
    """A customer to plan for: a `Spec`, or a line of a manifest."""

    @property
    def external_id(self) -> str: ...
    @property
    def files(self) -> tuple[Path, ...]: ...


class PlannedFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file that would be uploaded."""

    external_id: str
    path: str
    bytes: int


class Destruction(msgspec.Struct, frozen=True, kw_only=True):
    """A parked import whose proposed patch destroys rows, or may."""

    external_id: str
    actions: tuple[Action, ...]
    """Empty if the server's proposal could not be read."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """The work that is left. Each count is a lower bound."""

    schema: int = 1
    customers: int
    done: tuple[str, ...]
    """Customers that are delivered: nothing is left to do for them."""
    new: int
    """Customers without a record in the journal."""
    under_way: int
    """Customers with a record in the journal that have not ended."""
    failed: tuple[str, ...]
    """Customers that failed and are not imported again, because neither their files have changed nor the options ask
    for it. Also customers that the run would refuse, because another API generation wrote their record, or because
    their record cannot be read."""
    repeated: tuple[str, ...]
    """Customers that failed and are imported again, because their files have changed or the options ask for it."""
    parked: tuple[str, ...]
    destructive: tuple[Destruction, ...]
    files: int
    bytes: int
    largest: tuple[PlannedFile, ...]
    requests: dict[str, int]
    """The number of requests by endpoint, with one poll per import and one download per customer."""
    seconds: float
    """Seconds before which the last request cannot be sent; the durations of the imports are added to them."""
    scarcest: str = ""
    """The named budget that causes them; empty if there are none, or if the budget of one endpoint does."""


async def plan(
    customers: Sequence[Planned],
    records: Mapping[str, CustomerRecord],
    *,
    to: Path,
    options: MigrationOptions | None = None,
    limits: Limits = Limits.BY_CLASS,
    api: str = generations.DEFAULT,
) -> Plan:
    """Return what `Fleet.run` would do for `customers`, with the same `to` and the same `options`.

    Raises `InvalidInput` for files that are missing.
    """
    generation = generations.find(api)
    options = options or MigrationOptions()
    left: dict[str, RemainingWork] = {}
    done, failed = list[str](), list[str]()
    for customer in customers:
        record = records.get(customer.external_id)
        if record is not None and record.api != generation.name:
            failed.append(customer.external_id)  # `migrate` refuses it
            continue
        folder = customer_folder(to, customer.external_id)
        work = await generation.remaining(customer.files, record, folder, options)
        if work is not None:
            left[customer.external_id] = work
        elif record is not None and isinstance(record.outcome, Delivered | Failed):
            (done if isinstance(record.outcome, Delivered) else failed).append(customer.external_id)
    uploads = [file for customer in customers for file in _uploads(customer, left.get(customer.external_id))]
    requests = _requests(generation, customers, records, left)
    names = [customer.external_id for customer in customers if customer.external_id in records]
    parked = {name: out for name in names if isinstance(out := records[name].outcome, Parked)}
    waits = _waits(requests, limits, generation.name)
    scarcest, seconds = max(waits, key=itemgetter(1), default=("", 0.0))
    return Plan(
        customers=len(customers),
        done=tuple(done),
        new=sum(name not in records for name in left),
        under_way=sum(name in records for name in left),
        failed=tuple(failed),
        repeated=tuple(name for name, work in left.items() if work.is_repeated),
        parked=tuple(parked),
        destructive=tuple(
            Destruction(external_id=name, actions=outcome.destructive)
            for name, outcome in parked.items()
            if outcome.attention.is_destructive
        ),
        files=len(uploads),
        bytes=sum(file.bytes for file in uploads),
        largest=tuple(sorted(uploads, key=lambda file: -file.bytes)[:_LARGEST]),
        requests=requests,
        seconds=seconds,
        scarcest=scarcest if seconds and scarcest in limits.budgets else "",
    )


def _uploads(customer: Planned, left: RemainingWork | None) -> Iterator[PlannedFile]:
    """Yield the files that are not uploaded yet: the last ones, because files are uploaded in order."""
    count = left.files if left else 0
    for path in customer.files[len(customer.files) - count :]:
        yield PlannedFile(external_id=customer.external_id, path=str(path), bytes=size_of(path))


def _requests(
    generation: Generation,
    customers: Sequence[Planned],
    records: Mapping[str, CustomerRecord],
    left: Mapping[str, RemainingWork],
) -> dict[str, int]:
    """Return the fewest requests, by endpoint, that the work in `left` takes."""
    new = [
        each
        for each in customers
        if each.external_id in left and is_new(records.get(each.external_id), generation.name)
    ]
    requests = Counter(generation.catalogue_requests(new))
    for work in left.values():
        requests.update(generation.requests_left(work))
    return dict(+requests)
