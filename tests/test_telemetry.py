"""The OpenTelemetry data of a fleet: spans in traces, few labels, no secrets."""

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


class Recorder:
    """OpenTelemetry providers that record the data of a session."""

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
def recorder() -> Recorder:
    return Recorder()


def session(**options: object) -> Session:
    world = World(key=KEY, sources=SOURCES, schemas=SCHEMAS, seed=1, pace=RunDurations(sigma=0.0))
    return Session(KEY, BASE_URL, transport=InProcess(world, **options), rng=Random(3))


async def test_a_migration_is_a_trace_of_its_steps_and_requests(recorder: Recorder, tmp_path: Path) -> None:
    async with session() as opened, Fleet(opened, journal=MemoryJournal(), to=tmp_path / "out") as fleet:
        with instrument(opened, tracer_provider=recorder.tracers, meter_provider=recorder.meters):
            outcomes = [outcome async for outcome in fleet.run(customers(tmp_path / "in", 2))]
    roots = [span for span in recorder.spans if span.name == "migration"]
    assert {span.attributes["asyncmig.external_id"] for span in roots} == {"c0000", "c0001"}
    assert {span.attributes["asyncmig.outcome"] for span in roots} == {"delivered"}
    trace = [span for span in recorder.spans if span.context.trace_id == roots[0].context.trace_id]
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
    recorded = repr([(span.name, dict(span.attributes)) for span in recorder.spans])
    ids = [each for outcome in outcomes for each in outcome.ids.values()]
    assert not [secret for secret in [KEY, "contacts-0000", *ids] if secret in recorded]
    assert [(labels, point.value) for labels, point in recorder.points("asyncmig.migrations")] == [
        ({"asyncmig.outcome": "delivered"}, 2)
    ]
    assert [point.value for _, point in recorder.points("asyncmig.migrations.active")] == [0]
    assert {labels["asyncmig.status"] for labels, _ in recorder.points("asyncmig.run.duration")} == {
        "completed"
    }


async def test_errors_and_refusals_are_recorded(recorder: Recorder) -> None:
    faults = iter([FAULTS["too-many"], Fault(refused=True)])
    async with session(fault=lambda *_: next(faults, None)) as opened:
        with instrument(opened, tracer_provider=recorder.tracers, meter_provider=recorder.meters):
            await opened.companies.sources()
    recorded = [(s.attributes.get("error.type"), s.status.is_ok) for s in recorder.spans]
    assert recorded == [("429", False), ("lost", False), (None, True)]
    assert [span.attributes["http.request.resend_count"] for span in recorder.spans] == [0, 0, 1]
    assert [point.value for _, point in recorder.points("asyncmig.requests.refused")] == [1]
    assert [point.count for _, point in recorder.points("asyncmig.budget.held")] == [1]
    assert {labels["asyncmig.budget"] for labels, _ in recorder.points("asyncmig.budget.slots")} == {
        "GET /sources"
    }


async def test_the_number_of_routes_in_labels_is_limited(recorder: Recorder) -> None:
    async with session() as opened:
        with instrument(opened, tracer_provider=recorder.tracers, meter_provider=recorder.meters):
            for n in range(200):
                done = RequestDone(
                    at=0.0, endpoint=f"GET /x{n}", lane="WORK", attempt=1, seconds=0.1, status=200
                )
                opened.events.emit(done)
    assert len(recorder.points("http.client.request.duration")) == 65


async def test_a_migration_that_has_not_ended_is_recorded_as_pending(
    recorder: Recorder, tmp_path: Path
) -> None:
    async with session() as opened, Fleet(opened, journal=MemoryJournal(), to=tmp_path / "out") as fleet:
        with instrument(opened, tracer_provider=recorder.tracers, meter_provider=recorder.meters):
            fleet.submit(customers(tmp_path / "in", 1)[0])
            await asyncio.sleep(5.0)
            opened.events.emit(SharedWindowLost(at=0.0, budget="*", slots=1, processes=2, error="it is away"))
    assert [dict(s.attributes)["asyncmig.outcome"] for s in recorder.spans if s.name == "migration"] == [
        "pending"
    ]
    assert [labels for labels, _ in recorder.points("asyncmig.window.lost")] == [{"asyncmig.budget": "*"}]


async def test_prometheus_can_scrape_the_metrics() -> None:
    """The example for Prometheus: the reader of the provider, and the page that is scraped."""
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
async def test_only_ids_in_routes_of_companies_assign_a_request_to_a_company(
    route: str, belongs: bool, recorder: Recorder, tmp_path: Path
) -> None:
    async with session() as opened:
        with instrument(opened, tracer_provider=recorder.tracers, meter_provider=recorder.meters):
            opened.events.emit(
                MigrationChanged(at=0.0, external_id="acme", ids={"company": "c-1"}, step="uploading")
            )
            with suppress(ApiError):
                await opened.request("GET", route, id="c-1")
    (request,) = [span for span in recorder.spans if span.name == f"GET {route}"]
    (step,) = [span for span in recorder.spans if span.name == "uploading"]
    assert (request.parent is not None and request.parent.span_id == step.context.span_id) is belongs


async def test_run_slots_and_named_budgets_are_measured(recorder: Recorder) -> None:
    async with session() as opened:
        with instrument(opened, tracer_provider=recorder.tracers, meter_provider=recorder.meters):
            opened.events.emit(
                RunSlotsChanged(at=0.0, limit=3, in_progress=2, waits_for_person=1, others=1, waiting=4)
            )
            opened.events.emit(BudgetLearnt(at=0.0, budget="generate", slots=1, burst=1))
    runs = {
        labels["asyncmig.run.owner"]: point.value for labels, point in recorder.points("asyncmig.run_slots")
    }
    assert runs == {"ours": 2, "others": 1, "person": 1}
    assert [point.value for _, point in recorder.points("asyncmig.run_slots.waiting")] == [4]
    assert [labels for labels, _ in recorder.points("asyncmig.budget.slots")] == [
        {"asyncmig.budget": "generate"}
    ]
