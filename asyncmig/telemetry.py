"""OpenTelemetry traces and metrics, made from a session's events; needs the extra `otel`.

```python
from asyncmig.telemetry import instrument
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider

async with asyncmig.Session() as session:
    with instrument(session, meter_provider=MeterProvider([PrometheusMetricReader()])):
        await session.companies.sources()
```

Each migration is a trace, whose spans are its steps and requests. Names follow the semantic conventions for HTTP
clients (stable since 1.23). Metrics have few labels: method and route, lane, status, outcome. All routes after the
first 64 share one label. No span and no metric contains a key, a body, a URL with ids, or a file name.

| metric | unit | meaning |
| --- | --- | --- |
| `http.client.request.duration` | s | from the send to the end of the response |
| `asyncmig.request.wait` | s | the wait for the limit before the send |
| `asyncmig.requests.refused` | requests | the number of 429s |
| `asyncmig.budget.slots` | requests | the gate's estimate of the requests that a window allows |
| `asyncmig.budget.held` | s | the hold of a budget after a 429 |
| `asyncmig.run.duration` | s | the duration of a run, without the time for which it was parked |
| `asyncmig.run.noticed_within` | s | the longest possible delay until the end of a run was noticed |
| `asyncmig.migrations` | migrations | ended migrations, by outcome |
| `asyncmig.migrations.active` | migrations | migrations in progress |
| `asyncmig.run_slots` | runs | runs in progress, by owner: `ours`, `others`, `person` (ours that wait for one) |
| `asyncmig.run_slots.waiting` | starts | starts that wait for a run slot or a budget |
| `asyncmig.window.lost` | outages | how often the shared window became unavailable |
"""

import re
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import final
from urllib.parse import urlsplit

from opentelemetry.metrics import Meter, MeterProvider, get_meter
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, TracerProvider, get_tracer
from opentelemetry.trace import set_span_in_context as within

from asyncmig.events import (
    BudgetLearnt,
    Event,
    Held,
    MigrationChanged,
    RequestDone,
    RunEnded,
    RunSlotsChanged,
    SharedWindowLost,
)
from asyncmig.session import Session
from asyncmig.steps import OUTCOMES, OutcomeName

__all__ = ["instrument"]

Attributes = Mapping[str, str | int]

_NAME = "asyncmig"
_STATUSES = frozenset({"completed", "failed", "canceled"})
_MOST_ROUTES = 64
_OF_A_CUSTOMER = re.compile(r"[A-Z]+ (/(companies|migrations)/\{id\}(/|$)|\{\w+_url\}$)")
"""The endpoints whose placeholder `id` is the id of a customer's company or migration."""
_OTHER = "other"


@contextmanager
def instrument(
    session: Session,
    *,
    tracer_provider: TracerProvider | None = None,
    meter_provider: MeterProvider | None = None,
) -> Generator[None]:
    """Record spans and metrics of `session` until the `with` block ends.

    `tracer_provider`, `meter_provider`: by default the global providers of OpenTelemetry.
    """
    telemetry = _Telemetry(
        get_tracer(_NAME, tracer_provider=tracer_provider),
        get_meter(_NAME, meter_provider=meter_provider),
        server=urlsplit(session.base_url).hostname or "",
    )
    try:
        with session.events.subscribe(telemetry.note):
            yield
    finally:
        telemetry.end()


@final
@dataclass(slots=True)
class _MigrationSpans:
    """The spans of a migration in progress."""

    root: Span
    step: Span | None = None
    ids: set[str] = field(default_factory=set[str])
    """The ids of this customer's objects at the server."""


@final
class _Telemetry:
    """Turns events into spans and measurements."""

    def __init__(self, tracer: Tracer, meter: Meter, *, server: str) -> None:
        self._tracer, self._server = tracer, server
        self._routes: set[str] = set()
        self._migrations: dict[str, _MigrationSpans] = {}
        self._customers: dict[str, str] = {}
        """The external id of the customer, by each of the server's ids."""
        self._duration = meter.create_histogram("http.client.request.duration", "s")
        self._wait = meter.create_histogram("asyncmig.request.wait", "s")
        self._refused = meter.create_counter("asyncmig.requests.refused", "{request}")
        self._slots = meter.create_gauge("asyncmig.budget.slots", "{request}")
        self._held = meter.create_histogram("asyncmig.budget.held", "s")
        self._run = meter.create_histogram("asyncmig.run.duration", "s")
        self._noticed = meter.create_histogram("asyncmig.run.noticed_within", "s")
        self._ended = meter.create_counter("asyncmig.migrations", "{migration}")
        self._active = meter.create_up_down_counter("asyncmig.migrations.active", "{migration}")
        self._runs = meter.create_gauge("asyncmig.run_slots", "{run}")
        self._starts = meter.create_gauge("asyncmig.run_slots.waiting", "{start}")
        self._lost = meter.create_counter("asyncmig.window.lost", "{outage}")

    def note(self, event: Event) -> None:
        """Record one event."""
        match event:
            case RequestDone():
                self._request(event)
            case Held():
                self._held.record(event.seconds, self._budget(event.budget))
                self._slots.set(event.slots, self._budget(event.budget))
            case BudgetLearnt():
                self._slots.set(event.slots, self._budget(event.budget))
            case RunEnded():
                self._run_ended(event)
            case MigrationChanged():
                self._migration(event)
            case RunSlotsChanged():
                for whose, runs in (
                    ("ours", event.in_progress),
                    ("others", event.others),
                    ("person", event.waits_for_person),
                ):
                    self._runs.set(runs, {"asyncmig.run.owner": whose})
                self._starts.set(event.waiting)
            case SharedWindowLost():
                self._lost.add(1, self._budget(event.budget))
            case _:
                pass

    def end(self) -> None:
        """End the spans of migrations that have not ended."""
        for external_id in tuple(self._migrations):
            self._close(external_id, "pending")

    def _request(self, event: RequestDone) -> None:
        method, route = self._route(event.endpoint)
        labels: dict[str, str | int] = {"http.request.method": method, "url.template": route}
        if not event.is_external:
            labels["server.address"] = self._server
        if event.status is not None:
            labels["http.response.status_code"] = event.status
        if event.status is None or event.status >= 400:
            labels["error.type"] = "lost" if event.status is None else str(event.status)
        self._duration.record(event.seconds, labels)
        if not event.is_external:
            self._wait.record(event.waited, {"url.template": route, "asyncmig.lane": event.lane})
        if event.status == 429 and not event.is_external:
            self._refused.add(1, {"http.request.method": method, "url.template": route})
        now = time.time_ns()
        customer = event.ids.get("id", "") if _OF_A_CUSTOMER.match(event.endpoint) else ""
        migration = self._migrations.get(self._customers.get(customer, ""))
        span = self._tracer.start_span(
            f"{method} {route}",
            within(migration.step or migration.root) if migration else None,
            SpanKind.CLIENT,
            {
                **labels,
                "asyncmig.lane": event.lane,
                "asyncmig.waited": event.waited,
                "http.request.resend_count": event.attempt - 1,
            },
            start_time=now - round(event.seconds * 1e9),
        )
        if "error.type" in labels:
            span.set_status(Status(StatusCode.ERROR))
        span.end(now)

    def _run_ended(self, event: RunEnded) -> None:
        labels = {"asyncmig.status": event.status if event.status in _STATUSES else _OTHER}
        if event.seconds is not None:
            self._run.record(event.seconds, labels)
        if event.noticed_within is not None:
            self._noticed.record(event.noticed_within, labels)

    def _migration(self, event: MigrationChanged) -> None:
        migration = self._migrations.get(event.external_id)
        if migration is None:
            root = self._tracer.start_span(
                "migration", attributes={"asyncmig.external_id": event.external_id}
            )
            migration = self._migrations[event.external_id] = _MigrationSpans(root)
            self._active.add(1)
        migration.ids.update(event.ids.values())
        self._customers.update(dict.fromkeys(event.ids.values(), event.external_id))
        if migration.step is not None:
            migration.step.end()
            migration.step = None
        if event.step in OUTCOMES:
            self._close(event.external_id, event.step)
        else:
            migration.step = self._tracer.start_span(event.step, within(migration.root))

    def _close(self, external_id: str, outcome: OutcomeName) -> None:
        migration = self._migrations.pop(external_id)
        if migration.step is not None:
            migration.step.end()
        migration.root.set_attribute("asyncmig.outcome", outcome)
        if outcome in ("failed", "unknown"):
            migration.root.set_status(Status(StatusCode.ERROR, outcome))
        migration.root.end()
        for each in migration.ids:
            self._customers.pop(each, None)
        self._active.add(-1)
        self._ended.add(1, {"asyncmig.outcome": outcome})

    def _route(self, endpoint: str) -> tuple[str, str]:
        """Return method and route as labels. All routes after the first 64 share one label."""
        if endpoint not in self._routes and len(self._routes) == _MOST_ROUTES:
            return "_OTHER", _OTHER
        self._routes.add(endpoint)
        method, _, route = endpoint.partition(" ")
        return method, route

    def _budget(self, budget: str) -> Attributes:
        is_route = " " in budget
        return {"asyncmig.budget": " ".join(self._route(budget)) if is_route else budget}
