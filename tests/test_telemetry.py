"""What OpenTelemetry gets to see of a fleet: spans in traces, few labels, no secrets."""

import asyncio
from contextlib import suppress
from pathlib import Path
from random import Random

import prometheus_client
import pytest
from farm import customers
from inprocess import BASE_URL, KEY, InProcess
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from asyncmig import ApiError, Fleet, MemoryJournal, Session
from asyncmig.events import BudgetLearnt, MigrationChanged, RequestDone, RunSlotsChanged, SharedWindowLost
from asyncmig.simulator import FAULTS, SCHEMAS, SOURCES, Fault, RunDurations, World
from asyncmig.telemetry import instrument

pytestmark = pytest.mark.looptime


class Watched:
    """A session's providers, and what they got."""

    def __init__(self) -> None:
        self.exporter, self.reader = InMemorySpanExporter(), InMemoryMetricReader()
        self.tracers, self.meters = TracerProvider(), MeterProvider([self.reader])
        self.tracers.add_span_processor(SimpleSpanProcessor(self.exporter))

    @property
    def spans(self) -> tuple[ReadableSpan, ...]:
        return self.exporter.get_finished_spans()

    def points(self, metric: str) -> list[tuple[dict[str, object], object]]:
        data = self.reader.get_metrics_data()
        return [
            (dict(point.attributes), point)
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for found in scope.metrics
            if found.name == metric
            for point in found.data.data_points
        ]


@pytest.fixture
def watched() -> Watched:
    return Watched()


def session(**options: object) -> Session:
    world = World(key=KEY, sources=SOURCES, schemas=SCHEMAS, seed=1, pace=RunDurations(sigma=0.0))
    return Session(KEY, BASE_URL, transport=InProcess(world, **options), rng=Random(3))


async def test_a_migration_is_a_trace_of_its_steps_and_requests(watched: Watched, tmp_path: Path) -> None:
    async with session() as opened, Fleet(opened, journal=MemoryJournal(), to=tmp_path / "out") as fleet:
        with instrument(opened, tracer_provider=watched.tracers, meter_provider=watched.meters):
            outcomes = [outcome async for outcome in fleet.run(customers(tmp_path / "in", 2))]
    roots = [span for span in watched.spans if span.name == "migration"]
    assert {span.attributes["asyncmig.external_id"] for span in roots} == {"c0000", "c0001"}
    assert {span.attributes["asyncmig.outcome"] for span in roots} == {"delivered"}
    trace = [span for span in watched.spans if span.context.trace_id == roots[0].context.trace_id]
    assert {"creating", "uploading", "starting", "running", "downloading"} <= {span.name for span in trace}
    (start,) = [span for span in trace if span.name == "POST /companies/{id}/imports"]
    assert start.attributes["http.request.method"] == "POST"
    assert start.attributes["url.template"] == "/companies/{id}/imports"
    assert start.attributes["http.response.status_code"] == 201
    assert start.attributes["server.address"] == "api.test"
    assert start.end_time - start.start_time >= 0.05e9
    (put,) = [span for span in trace if span.name == "PUT {upload_url}"]
    assert put.attributes["http.response.status_code"] == 200
    assert "server.address" not in put.attributes
    said = repr([(span.name, dict(span.attributes)) for span in watched.spans])
    ids = [each for outcome in outcomes for each in outcome.ids.values()]
    assert not [secret for secret in [KEY, "contacts-0000", *ids] if secret in said]
    assert [(labels, point.value) for labels, point in watched.points("asyncmig.migrations")] == [
        ({"asyncmig.outcome": "delivered"}, 2)
    ]
    assert [point.value for _, point in watched.points("asyncmig.migrations.active")] == [0]
    assert {labels["asyncmig.status"] for labels, _ in watched.points("asyncmig.run.duration")} == {
        "completed"
    }


async def test_errors_and_refusals_are_told(watched: Watched) -> None:
    faults = iter([FAULTS["too-many"], Fault(refused=True)])
    async with session(fault=lambda *_: next(faults, None)) as opened:
        with instrument(opened, tracer_provider=watched.tracers, meter_provider=watched.meters):
            await opened.companies.sources()
    said = [(s.attributes.get("error.type"), s.status.is_ok) for s in watched.spans]
    assert said == [("429", False), ("lost", False), (None, True)]
    assert [span.attributes["http.request.resend_count"] for span in watched.spans] == [0, 0, 1]
    assert [point.value for _, point in watched.points("asyncmig.requests.refused")] == [1]
    assert [point.count for _, point in watched.points("asyncmig.budget.held")] == [1]
    assert {labels["asyncmig.budget"] for labels, _ in watched.points("asyncmig.budget.slots")} == {
        "GET /sources"
    }


async def test_an_endless_supply_of_routes_is_one_label(watched: Watched) -> None:
    async with session() as opened:
        with instrument(opened, tracer_provider=watched.tracers, meter_provider=watched.meters):
            for n in range(200):
                done = RequestDone(
                    at=0.0, endpoint=f"GET /x{n}", lane="WORK", attempt=1, seconds=0.1, status=200
                )
                opened.events.emit(done)
    assert len(watched.points("http.client.request.duration")) == 65


async def test_what_has_not_ended_is_pending_in_the_end(watched: Watched, tmp_path: Path) -> None:
    async with session() as opened, Fleet(opened, journal=MemoryJournal(), to=tmp_path / "out") as fleet:
        with instrument(opened, tracer_provider=watched.tracers, meter_provider=watched.meters):
            fleet.submit(customers(tmp_path / "in", 1)[0])
            await asyncio.sleep(5.0)
            opened.events.emit(SharedWindowLost(at=0.0, budget="*", slots=1, processes=2, error="it is away"))
    assert [dict(s.attributes)["asyncmig.outcome"] for s in watched.spans if s.name == "migration"] == [
        "pending"
    ]
    assert [labels for labels, _ in watched.points("asyncmig.window.lost")] == [{"asyncmig.budget": "*"}]


async def test_prometheus_can_scrape_it() -> None:
    """The example for Prometheus: its reader, and its page."""
    registry = prometheus_client.CollectorRegistry()
    meters = MeterProvider([PrometheusMetricReader(registry=registry)])
    async with session() as opened:
        with instrument(opened, meter_provider=meters):
            await opened.companies.sources()
    page = prometheus_client.generate_latest(registry).decode()
    assert "http_client_request_duration_seconds_count{" in page
    assert 'url_template="/sources"' in page
    assert KEY not in page


@pytest.mark.parametrize(
    ("route", "belongs"),
    [("/companies/{id}/notes", True), ("/workbooks/{id}", False), ("/companies/{id}s", False)],
)
async def test_an_id_in_another_route_is_not_taken_for_a_company(
    route: str, belongs: bool, watched: Watched, tmp_path: Path
) -> None:
    async with session() as opened:
        with instrument(opened, tracer_provider=watched.tracers, meter_provider=watched.meters):
            opened.events.emit(
                MigrationChanged(at=0.0, external_id="acme", ids={"company": "c-1"}, step="uploading")
            )
            with suppress(ApiError):
                await opened.request("GET", route, id="c-1")
    (request,) = [span for span in watched.spans if span.name == f"GET {route}"]
    (step,) = [span for span in watched.spans if span.name == "uploading"]
    assert (request.parent is not None and request.parent.span_id == step.context.span_id) is belongs


async def test_run_slots_and_named_budgets_are_measured(watched: Watched) -> None:
    async with session() as opened:
        with instrument(opened, tracer_provider=watched.tracers, meter_provider=watched.meters):
            opened.events.emit(
                RunSlotsChanged(at=0.0, limit=3, in_progress=2, waits_for_person=1, others=1, waiting=4)
            )
            opened.events.emit(BudgetLearnt(at=0.0, budget="generate", slots=1, burst=1))
    runs = {
        labels["asyncmig.run.owner"]: point.value for labels, point in watched.points("asyncmig.run_slots")
    }
    assert runs == {"ours": 2, "others": 1, "person": 1}
    assert [point.value for _, point in watched.points("asyncmig.run_slots.waiting")] == [4]
    assert [labels for labels, _ in watched.points("asyncmig.budget.slots")] == [
        {"asyncmig.budget": "generate"}
    ]
