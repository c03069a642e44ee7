"""Failed attempts that are repeated are reported as events and in the journal, with their customer."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
from inprocess import KEY, STORAGE_URL, InProcess

from asyncmig import Delivered, MemoryJournal, Pending, Spec, migrate
from asyncmig._core.retry import ReportThrottle
from asyncmig.events import AttemptFailed, Event, Recovered, RunStalled
from asyncmig.jobs.status import CustomerStatus, read_statuses, timeline
from asyncmig.simulator import Fault, Reply, World

from .conftest import OpenSession

pytestmark = pytest.mark.looptime
Customer = Callable[..., Spec]
BUSY = Fault(instead=Reply(status=503, body=b'{"error": "the disk is full"}'))
ENDPOINTS = {
    ("POST", "/companies"): "POST /companies",
    ("POST", "/uploads"): "POST /companies/{id}/uploads",
    ("PUT", "/storage"): "PUT {upload_url}",
    ("POST", "/imports"): "POST /companies/{id}/imports",
    ("POST", "/exports"): "POST /companies/{id}/exports",
    ("GET", "/export.csv"): "GET /companies/{id}/export.csv",
}


def now() -> float:
    return asyncio.get_running_loop().time()


def failing(transport: InProcess, method: str, ending: str, *, fault: Fault = BUSY, until: float) -> None:
    """Apply a fault to the requests to one endpoint until a time."""
    transport.fault = lambda m, path, number: (
        fault if (m, now() < until) == (method, True) and path.endswith(ending) else None
    )


async def status_in(journal: MemoryJournal) -> CustomerStatus:
    (status,) = await read_statuses(journal)
    return status


async def words_in(journal: MemoryJournal, kind: str) -> list[str]:
    return [each.words for each in timeline(await journal.events("acme")) if each.kind == kind]


def test_the_first_failure_is_reported_and_then_some_at_doubling_intervals() -> None:
    throttle = ReportThrottle()
    reported = [at for at in range(4000) if throttle.failed(float(at))]
    assert reported == [0, 15, 45, 105, 225, 465, 945, 1545, 2145, 2745, 3345, 3945]
    assert throttle.count == 4000


@pytest.mark.parametrize("kind", ENDPOINTS, ids=ENDPOINTS.values())
async def test_each_repeated_request_is_reported_with_its_customer(
    kind: tuple[str, str], open_session: OpenSession, customer: Customer, transport: InProcess, tmp_path: Path
) -> None:
    failing(transport, *kind, until=200.0)
    secrets = {"destination": {"base_url": "https://d.invalid", "auth": {"token": "secret-of-d"}}}
    spec, journal = msgspec.structs.replace(customer(), connections=secrets), MemoryJournal()
    events: list[Event] = []
    async with open_session() as session:
        with session.events.subscribe(events.append):
            outcome = await migrate(session, spec, journal=journal, to=tmp_path, export="canary")
    assert isinstance(outcome, Delivered), outcome
    failures = [event for event in events if isinstance(event, AttemptFailed)]
    assert 2 <= len(failures) <= 6
    for event in failures:
        assert (event.external_id, event.endpoint, event.status) == ("acme", ENDPOINTS[kind], 503)
        assert event.until in (None, pytest.approx(failures[0].at + 900.0, abs=1.0))
        assert event.attempts is None
    assert failures[0].until is not None
    assert failures[0].attempt == 1
    assert all(later.attempt > earlier.attempt for earlier, later in pairwise(failures))
    assert all(later.at - earlier.at >= 15.0 for earlier, later in pairwise(failures))
    (recovered,) = [event for event in events if isinstance(event, Recovered)]
    assert (recovered.external_id, recovered.endpoint) == ("acme", ENDPOINTS[kind])
    assert recovered.attempts > failures[-1].attempt
    words = await words_in(journal, "retrying")
    assert [line.startswith(f"{ENDPOINTS[kind]} answered 503 (attempt ") for line in words] == [True] * len(
        failures
    )
    assert await words_in(journal, "recovered") == [f"after {recovered.attempts} attempts"]
    texts = repr(events) + repr(await journal.events())
    assert not [secret for secret in (KEY, STORAGE_URL, "secret-of-d", "https://") if secret in texts]


async def test_failed_polls_are_reported_until_the_run_can_be_read(
    open_session: OpenSession,
    customer: Customer,
    transport: InProcess,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    events: list[Event] = []
    transport.fault = lambda method, path, number: (
        BUSY if method == "GET" and "/imports/" in path and now() < 1500.0 else None
    )
    async with open_session() as session:
        with session.events.subscribe(events.append):
            outcome = await migrate(session, customer(), journal=MemoryJournal(), to=tmp_path)
    assert isinstance(outcome, Delivered)
    failures = [event for event in events if isinstance(event, AttemptFailed)]
    assert {event.endpoint for event in failures} == {"GET /companies/{id}/imports/{run_id}"}
    assert {event.external_id for event in failures} == {"acme"}
    assert {event.ids["run_id"] for event in failures} == {outcome.ids["run"]}
    assert {(event.until, event.attempts) for event in failures} == {(None, None)}
    assert 4 <= len(failures) <= 8
    assert len([event for event in events if isinstance(event, Recovered)]) == 1
    (warning,) = [record.message for record in caplog.records if "cannot be read" in record.message]
    assert f"run {outcome.ids['run']} of acme cannot be read" in warning


async def test_the_status_of_a_customer_has_its_last_failure_and_the_recovery(
    open_session: OpenSession, customer: Customer, transport: InProcess, tmp_path: Path
) -> None:
    failing(transport, "PUT", "/storage", until=200.0)
    journal = MemoryJournal()
    async with open_session() as session:
        work = asyncio.create_task(migrate(session, customer(), journal=journal, to=tmp_path))
        await asyncio.sleep(100.0)
        failure = (await status_in(journal)).last_failure
        assert failure is not None
        assert (failure.endpoint, failure.status, failure.is_over) == ("PUT {upload_url}", 503, False)
        assert failure.attempt > 1
        assert failure.until is not None
        assert 700.0 < failure.until - failure.at < 900.0
        assert "tried again until " in failure.words
        assert isinstance(await work, Delivered)
    failure = (await status_in(journal)).last_failure
    assert failure is not None
    assert failure.is_over
    assert "the migration has continued since" in failure.words


async def test_the_last_failure_remains_in_the_status_after_the_end(
    open_session: OpenSession, customer: Customer, transport: InProcess, tmp_path: Path
) -> None:
    failing(transport, "PUT", "/storage", until=10**9, fault=Fault(refused=True))
    journal = MemoryJournal()
    async with open_session() as session:
        outcome = await migrate(session, customer(), journal=journal, to=tmp_path)
    assert isinstance(outcome, Pending)
    failure = (await status_in(journal)).last_failure
    assert failure is not None
    assert not failure.is_over
    assert failure.error.startswith("no answer (")
    assert 6 <= len(await words_in(journal, "retrying")) <= 7  # in 900 s


async def test_reports_of_calls_without_a_customer_have_the_number_of_attempts(
    open_session: OpenSession, transport: InProcess
) -> None:
    events: list[Event] = []
    failing(transport, "GET", "/templates", until=5.0)
    async with open_session() as session:
        with session.events.subscribe(events.append):
            await session.companies.templates()
    failures = [event for event in events if isinstance(event, AttemptFailed)]
    assert [(each.external_id, each.attempt, each.attempts) for each in failures] == [(None, 1, 8)]
    assert len([event for event in events if isinstance(event, Recovered)]) == 1


async def test_a_failing_listener_does_not_stop_the_attempts(
    open_session: OpenSession, customer: Customer, transport: InProcess, tmp_path: Path
) -> None:
    def listener(event: Event) -> None:
        raise ValueError("a listener that fails")

    failing(transport, "PUT", "/storage", until=50.0)
    async with open_session() as session:
        with session.events.subscribe(listener):
            outcome = await migrate(session, customer(), journal=MemoryJournal(), to=tmp_path)
    assert isinstance(outcome, Delivered)


async def test_the_log_has_a_warning_with_the_customer(
    open_session: OpenSession,
    customer: Customer,
    transport: InProcess,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    failing(transport, "PUT", "/storage", until=5.0)
    async with open_session() as session:
        await migrate(session, customer(), journal=MemoryJournal(), to=tmp_path)
    (record,) = [each for each in caplog.records if getattr(each, "event", "") == "AttemptFailed"]
    assert record.levelno == logging.WARNING
    assert "external_id='acme'" in record.message
    assert "the disk is full" in record.message or "refused" in record.message


async def test_a_stalled_run_is_reported_with_its_customer(
    open_session: OpenSession, customer: Customer, world: World, tmp_path: Path
) -> None:
    events: list[Event] = []
    world.pace = replace(world.pace, base=6000.0)
    async with open_session() as session:
        with session.events.subscribe(events.append):
            await migrate(session, customer(), journal=MemoryJournal(), to=tmp_path)
    (stalled,) = [event for event in events if isinstance(event, RunStalled)]
    assert stalled.external_id == "acme"


async def test_reports_have_no_time_limit_while_no_request_succeeds(
    open_session: OpenSession, customer: Customer, transport: InProcess, tmp_path: Path
) -> None:
    events: list[Event] = []
    failing(transport, "POST", "/uploads", until=5000.0)
    async with open_session() as session:
        with session.events.subscribe(events.append):
            outcome = await migrate(session, customer(), journal=MemoryJournal(), to=tmp_path)
    assert isinstance(outcome, Delivered)
    last = [event for event in events if isinstance(event, AttemptFailed)][-1]
    assert last.at > 4000.0
    assert (last.until, last.attempts) == (None, None)
