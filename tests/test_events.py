"""The events of a session: their content and order, and subscribers that fail or are slow."""

import asyncio
import logging
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from random import Random

import pytest
from inprocess import BASE_URL, KEY, Fault, InProcess

from asyncmig import Fleet, InvalidInput, MemoryJournal, Session, Spec
from asyncmig.events import (
    BudgetLearnt,
    Event,
    Events,
    EventStream,
    EventT,
    Held,
    MigrationChanged,
    RequestDone,
    RequestSent,
    RunChanged,
    RunEnded,
)
from asyncmig.simulator import SCHEMAS, SOURCES, RunDurations, World
from asyncmig.simulator.server.limits import SlidingLog

pytestmark = pytest.mark.looptime
SOURCE = next(iter(SOURCES))


@pytest.fixture
def transport() -> InProcess:
    return InProcess(World(key=KEY, sources=SOURCES, schemas=SCHEMAS, seed=5, pace=RunDurations(sigma=0.0)))


def session(transport: InProcess, **options: object) -> Session:
    return Session(KEY, BASE_URL, transport=transport, rng=Random(2), **options)  # type: ignore[arg-type]


def changed(step: str) -> MigrationChanged:
    return MigrationChanged(at=0.0, external_id="acme", step=step)


async def remaining(events: EventStream[EventT]) -> list[EventT]:
    """Close a stream and return the events that it still contains."""
    events.close()
    return [event async for event in events]


def now() -> float:
    return asyncio.get_running_loop().time()


# Requests


async def test_a_request_emits_an_event_when_it_is_sent_and_when_it_is_done(transport: InProcess) -> None:
    received: list[Event] = []
    async with session(transport) as opened:
        with opened.events.subscribe(received.append):
            began = now()
            company = await opened.companies.create(name="A", source=SOURCE, external_id="acme")
            took = now() - began
            await company.upload(b"Email\na@x.org\n", name="a.csv")
    sent, done, *upload = received
    assert sent == RequestSent(at=began, endpoint="POST /companies", lane="WORK", attempt=1)
    assert isinstance(done, RequestDone)
    assert (done.status, done.attempt, done.waited, done.error) == (201, 1, 0.0, None)
    assert done.seconds == pytest.approx(took)
    assert done.at == pytest.approx(began + took)
    assert [(event.endpoint, event.ids) for event in upload if isinstance(event, RequestDone)] == [
        ("POST /companies/{id}/uploads", {"id": company.id}),
        ("PUT {upload_url}", {"id": company.id}),
    ]
    assert [event.is_external for event in upload if isinstance(event, RequestSent)] == [False, True]
    assert opened.requests["PUT {upload_url}", "WORK"] == 1
    assert "PUT {upload_url}" not in opened.stats()


async def test_the_time_in_the_queue_is_not_part_of_the_time_of_the_request(transport: InProcess) -> None:
    async with session(transport, limit=1) as opened:
        with opened.events.open(RequestDone) as events:
            await opened.companies.sources()
            asked = now()
            await opened.companies.sources()
            _, second = [await anext(events), await anext(events)]
    assert second.waited == pytest.approx(second.at - second.seconds - asked)
    assert second.waited > 55
    assert second.seconds < 1


async def test_each_attempt_emits_its_number_and_its_result() -> None:
    faults = [Fault(refused=True), Fault(hangs=True), None]
    world = World(key=KEY, sources=SOURCES, schemas=SCHEMAS, seed=5)
    transport = InProcess(world, fault=lambda method, path, number: faults[number - 1])
    async with session(transport) as opened:
        with opened.events.open(RequestDone) as events:
            await opened.companies.sources()
            first, second, third = [await anext(events) for _ in range(3)]
    assert [event.attempt for event in (first, second, third)] == [1, 2, 3]
    assert (first.status, first.error) == (None, "ClientConnectorError")
    assert (second.status, second.error) == (None, "TimeoutError")
    assert (third.status, third.error) == (200, None)


async def test_a_hold_emits_its_end_and_the_budget_that_was_learnt() -> None:
    world = World(key=KEY, sources=SOURCES, schemas=SCHEMAS, seed=5, limit=lambda: SlidingLog(10))
    async with session(InProcess(world)) as opened:
        with opened.events.open(Held, BudgetLearnt) as events:
            await asyncio.gather(*(opened.companies.sources() for _ in range(30)))
            held = await anext(events)
            assert isinstance(held, Held)
            learnt = [event for event in await remaining(events) if isinstance(event, BudgetLearnt)]
        believed = opened.stats()["GET /sources"]
    assert held.budget == "GET /sources"
    assert held.until == pytest.approx(held.at + held.seconds)
    assert held.seconds > 0
    assert held.slots == 100
    assert learnt[0].at > held.at
    assert (learnt[-1].slots, learnt[-1].burst) == (believed.slots, believed.burst)
    assert believed.slots < 100


# Runs and migrations


async def test_the_end_of_a_run_is_emitted_once_with_the_delay_of_its_detection(transport: InProcess) -> None:
    async with session(transport) as opened:
        company = await opened.companies.create(name="A", source=SOURCE, external_id="acme")
        run = await company.imports.start(rows=[{"Email": "a@x.org"}])
        began = now()
        with opened.events.open(RunChanged, RunEnded, RequestSent) as events:
            await asyncio.gather(run.wait(), run.wait())
            await opened.watch(run.id, company.id).read()
            received = await remaining(events)
    changes = [event.status for event in received if isinstance(event, RunChanged)]
    reads = [event for event in received if isinstance(event, RequestSent)]
    (ended,) = [event for event in received if isinstance(event, RunEnded)]
    assert (changes[0], changes[-1]) == ("queued", "completed")
    assert (ended.ids, ended.status) == ({"company": company.id, "run": run.id}, "completed")
    assert ended.seconds == pytest.approx(ended.at - began)
    assert {event.ids["run_id"] for event in reads} == {run.id}
    last = max(event.at for event in reads if event.at < reads[-1].at)
    assert ended.noticed_within == pytest.approx(ended.at - last)


async def test_the_end_of_a_run_that_was_not_observed_has_no_duration(transport: InProcess) -> None:
    async with session(transport) as opened:
        company = await opened.companies.create(name="A", source=SOURCE, external_id="acme")
        run = await company.imports.start(rows=[{"Email": "a@x.org"}])
        await asyncio.sleep(4000)
    async with session(transport) as later:
        with later.events.open(RunEnded) as events:
            await later.watch(run.id, company.id).wait()
            ended = await anext(events)
    assert (ended.seconds, ended.noticed_within) == (None, None)


async def test_a_migration_emits_its_steps_and_its_ids(transport: InProcess, tmp_path: Path) -> None:
    (tmp_path / "contacts.csv").write_text("Email\na@x.org\n", encoding="utf-8")
    spec = Spec(external_id="acme", name="A", source=SOURCE, files=(tmp_path / "contacts.csv",))
    async with session(transport) as opened:
        with opened.events.open(MigrationChanged, RunEnded) as events:
            async with Fleet(opened, journal=MemoryJournal(), to=tmp_path / "out") as fleet:
                (outcome,) = [outcome async for outcome in fleet.run([spec])]
            received = await remaining(events)
    steps = [event for event in received if isinstance(event, MigrationChanged)]
    assert [(steps[0].step, steps[0].ids), steps[-1].step] == [("checking", {}), "delivered"]
    assert steps[-1].ids == outcome.ids
    assert [event.ids for event in received if isinstance(event, RunEnded)] == [outcome.ids]
    assert [event.at for event in received] == sorted(event.at for event in received)


# Subscribers and streams


async def test_a_failing_subscriber_is_logged_once_and_the_others_receive_every_event(
    transport: InProcess, caplog: pytest.LogCaptureFixture
) -> None:
    received: list[Event] = []

    def failing(event: Event) -> None:
        raise ValueError("no")

    async with session(transport) as opened:
        with opened.events.subscribe(failing), opened.events.subscribe(received.append):
            assert len(await opened.companies.sources()) == 3
    assert len(received) == 2
    assert [record.getMessage() for record in caplog.records if record.exc_info] == [
        "a subscriber of events failed and is removed"
    ]


def test_a_subscriber_cannot_cancel_the_emitter() -> None:
    def cancelling(event: Event) -> None:
        raise asyncio.CancelledError

    events, received = Events(), list[Event]()
    with events.subscribe(cancelling), events.subscribe(received.append):
        events.emit(changed("creating"))
        events.emit(changed("uploading"))
    assert len(received) == 2


def test_a_coroutine_function_is_refused_as_a_subscriber() -> None:
    async def listener(event: Event) -> None:
        raise AssertionError

    with pytest.raises(InvalidInput, match=r"events\.open"), Events().subscribe(listener):
        pass


def test_a_subscriber_may_unsubscribe_while_it_receives_an_event() -> None:
    events, received = Events(), list[str]()
    with ExitStack() as subscription, events.subscribe(lambda event: received.append("second")):

        def once(event: Event) -> None:
            received.append("once")
            subscription.close()
            raise ValueError("and it fails, too")

        subscription.enter_context(events.subscribe(once))
        events.emit(changed("creating"))
        events.emit(changed("uploading"))
    assert received == ["second", "once", "second"]


async def test_a_stream_yields_the_events_of_its_kinds_since_it_was_opened() -> None:
    events = Events()
    events.emit(changed("missed"))
    with events.open(MigrationChanged) as some, events.open() as every:
        events.emit(changed("creating"))
        events.emit(RunChanged(at=1.0, ids={"company": "c", "run": "r"}, status="running", progress=None))
        events.emit(changed("uploading"))
    events.emit(changed("missed, too"))
    assert [event.step async for event in some] == ["creating", "uploading"]
    assert len([event async for event in every]) == 3


async def test_a_full_stream_drops_its_oldest_events_and_counts_them() -> None:
    events = Events()
    with events.open(buffer=3) as slow, events.open() as fast:
        for number in range(10):
            events.emit(changed(str(number)))
    assert [event.step async for event in slow if isinstance(event, MigrationChanged)] == ["7", "8", "9"]
    assert (slow.dropped, fast.dropped) == (7, 0)


async def test_a_stream_ends_with_its_session(transport: InProcess) -> None:
    async def collect(stream: EventStream[RequestDone]) -> list[str]:
        return [event.endpoint async for event in stream]

    async with session(transport) as opened:
        reading = asyncio.create_task(collect(opened.events.open(RequestDone)))
        await opened.companies.sources()
    assert await reading == ["GET /sources"]
    assert [event async for event in opened.events.open()] == []


async def test_a_cancelled_read_of_a_stream_loses_no_event() -> None:
    events = Events()
    with events.open() as stream:
        waiting = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        events.emit(changed("creating"))
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert await anext(stream) == changed("creating")


def test_a_buffer_of_size_0_is_refused() -> None:
    with pytest.raises(InvalidInput, match="buffer"):
        Events().open(buffer=0)


# The log


async def test_the_log_has_one_line_per_request_with_fields_and_without_the_key(
    transport: InProcess, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, "asyncmig"):
        async with session(transport) as opened:
            company = await opened.companies.create(name="A", source=SOURCE, external_id="acme")
            await (await company.imports.start(rows=[{"Email": "a@x.org"}])).wait()
    done = [record for record in caplog.records if getattr(record, "event", "") == "RequestDone"]
    assert len(done) == len(transport.sent)
    assert {record.levelno for record in done} == {logging.DEBUG}
    assert [vars(done[0])[name] for name in ("endpoint", "lane", "status", "attempt", "waited")] == [
        "POST /companies", "WORK", 201, 1, 0.0,
    ]  # fmt: skip
    assert "endpoint='POST /companies'" in done[0].getMessage()
    assert {record.levelno for record in caplog.records if "Run" in getattr(record, "event", "")} == {
        logging.INFO
    }
    assert KEY not in "".join(str(vars(record)) for record in caplog.records)


async def test_a_stalled_run_is_logged_as_a_warning_with_fields(caplog: pytest.LogCaptureFixture) -> None:
    world = World(
        key=KEY, sources=SOURCES, schemas=SCHEMAS, seed=5, pace=RunDurations(base=5000.0, sigma=0.0)
    )
    async with session(InProcess(world)) as opened:
        company = await opened.companies.create(name="A", source=SOURCE, external_id="acme")
        run = await company.imports.start(rows=[{"Email": "a@x.org", "Last Name": "L"}])
        await run.wait(through_parks=True)
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    fields = vars(record)
    assert (fields["event"], fields["ids"]) == ("RunStalled", {"company": company.id, "run": run.id})
    assert fields["seconds"] >= 75 * 60


def test_nothing_is_logged_unless_logging_is_configured() -> None:
    code = (
        "import logging, asyncmig.events as e\n"
        "e.Events().emit(e.RunStalled(at=0.0, ids={'company': 'c', 'run': 'r'}, seconds=1.0))\n"
        "logging.getLogger('asyncmig').warning('loud')"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (ran.stdout, ran.stderr) == ("", "")


async def test_events_of_requests_are_wanted_only_while_a_subscriber_exists(transport: InProcess) -> None:
    async with session(transport) as opened:
        assert not opened.events.wants_requests
        with opened.events.open():
            assert opened.events.wants_requests
        assert not opened.events.wants_requests
