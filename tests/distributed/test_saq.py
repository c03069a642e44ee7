"""Jobs on real queues, with workers in this process: parks, decisions, aborts, shutdown, take-over."""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import redis
from cutproxy import CutProxy
from farm import customers
from inprocess import BASE_URL, KEY, InProcess
from saq.job import Job, Status
from saq.worker import Worker

from asyncmig import (
    Approve,
    CustomerHeld,
    CustomerNotFound,
    Delivered,
    Failed,
    InvalidInput,
    MemoryJournal,
    Parked,
    Pending,
    Session,
    Spec,
    UsageError,
)
from asyncmig.customers.options import MigrationOptions
from asyncmig.distributed._open_queue import open_queue
from asyncmig.distributed._resilient_queue import ResilientQueue
from asyncmig.distributed.saq import MigrationQueue, settings, worker_settings
from asyncmig.errors import JournalUnavailable
from asyncmig.jobs.runners import digest_of
from asyncmig.journal import ClaimPort
from asyncmig.simulator import SCHEMAS, SOURCES, RunDurations, World, fast_loop

SPEED = 60.0


@dataclass
class Place:
    """The queue, server, folder and journal that the workers of a test share."""

    url: str
    name: str
    folder: Path
    world: World = field(
        default_factory=lambda: World(
            key=KEY, sources=SOURCES, schemas=SCHEMAS, seed=1, pace=RunDurations(sigma=0.0)
        )
    )
    journal: MemoryJournal = field(default_factory=MemoryJournal)

    def queue(self) -> MigrationQueue:
        return MigrationQueue(self.url, name=self.name, heartbeat=1, journal=self.journal)

    @asynccontextmanager
    async def worker(
        self,
        *,
        decide: Any = "park",
        latency: float = 0.1,
        sweep: int = 600,
        connections: Any = None,
        root: Path | None = None,
        journal: Any = None,
    ) -> AsyncIterator[Worker]:
        """Run a worker in this process. Stop it when the block ends."""

        @asynccontextmanager
        async def own_journal() -> AsyncIterator[MemoryJournal]:
            yield self.journal

        configuration = worker_settings(
            self.url,
            session=lambda: Session(KEY, BASE_URL, transport=InProcess(self.world, latency=latency)),
            journal=journal or own_journal,
            to=self.folder / "out",
            options=MigrationOptions(decide=decide, root=root),
            concurrency=4,
            name=self.name,
            sweep=sweep,
            connections=connections,
        )
        worker = Worker(**configuration)
        worker.SIGNALS = []
        await worker.queue.connect()
        running = asyncio.create_task(worker.start())
        try:
            yield worker
        finally:
            worker.event.set()
            await running
            await worker.queue.disconnect()


@pytest.fixture(params=["redis", "postgres"])
def place(request: pytest.FixtureRequest, tmp_path: Path, prefix: str) -> Place:
    url = request.getfixturevalue("redis_url" if request.param == "redis" else "database_url")
    return Place(url, prefix, tmp_path)


ON_REDIS = pytest.mark.parametrize("place", ["redis"], indirect=True)
ON_POSTGRES = pytest.mark.parametrize("place", ["postgres"], indirect=True)
"""`ON_REDIS` and `ON_POSTGRES` mark tests that do not depend on the server of the queue: one of the two is enough."""


def run(main: Coroutine[object, object, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(100 * SPEED):
            await main

    with asyncio.Runner(loop_factory=lambda: fast_loop(SPEED)) as runner:
        runner.run(bounded())


def parking_customer(place: Place) -> list[Spec]:
    """Return a customer whose import asks a question, so that its job parks."""
    (spec,) = customers(place.folder / "in", 1)
    spec.files[0].write_text("Email,First Name,Last Name\n" + "p@x.org,A,B\n" * 5, encoding="utf-8")
    return [spec]


async def until(condition: Callable[[], object]) -> None:
    while not condition():  # noqa: ASYNC110 - no event signals it
        await asyncio.sleep(1.0)


@ON_REDIS
def test_customers_that_share_a_folder_are_refused(place: Place) -> None:
    async def main() -> None:
        one, other = customers(place.folder / "in", 2)
        (place.folder / "out" / one.external_id).mkdir(parents=True)
        (place.folder / "out" / other.external_id).symlink_to(one.external_id)
        async with place.queue() as queue, place.worker():
            outcomes = [outcome async for outcome in queue.run([other])]
        (refused,) = outcomes
        assert isinstance(refused, Failed)
        assert "has the same folder as another customer" in refused.error
        assert one.external_id in refused.error
        assert not place.world.ledger.entries

    run(main())


def test_each_customer_becomes_a_job_without_a_time_out_and_returns_an_outcome(place: Place) -> None:
    async def main() -> None:
        specs = customers(place.folder / "in", 5)
        async with place.queue() as queue:
            assert await queue.submit(specs[0])
            assert not await queue.submit(specs[0])
            job = await queue._queue.job(queue._key(specs[0].external_id))
            assert (job.timeout, job.heartbeat) == (0, 1)
            async with place.worker():
                outcomes = [outcome async for outcome in queue.run(specs)]
        assert {type(outcome) for outcome in outcomes} == {Delivered}
        assert sorted(outcome.external_id for outcome in outcomes) == [spec.external_id for spec in specs]
        assert all(Path(file.path).is_file() for outcome in outcomes for file in outcome.files)

    run(main())


@ON_POSTGRES
def test_an_invalid_spec_fails_alone_and_two_specs_of_one_customer_are_refused(place: Place) -> None:
    async def main() -> None:
        good, other, outside = customers(place.folder / "in", 3)
        wrong = msgspec.structs.replace(other, name="a\0b")
        moved = place.folder / "outside.csv"
        outside.files[0].rename(moved)
        outside = msgspec.structs.replace(outside, files=(moved,))

        async def specs() -> AsyncIterator[Spec]:
            for spec in (good, wrong, outside):
                yield spec

        async with place.queue() as queue, place.worker(root=place.folder / "in"):
            with pytest.raises(InvalidInput, match=good.external_id):
                _ = [outcome async for outcome in queue.run([good, good])]
            with pytest.raises(InvalidInput, match="name="):
                await queue.submit(wrong)
            outcomes = {outcome.external_id: outcome async for outcome in queue.run(specs())}
        assert isinstance(outcomes[good.external_id], Delivered)
        failed = [outcomes[spec.external_id] for spec in (wrong, outside)]
        assert [type(outcome) for outcome in failed] == [Failed, Failed]
        assert "name=" in str(getattr(failed[0], "error", ""))
        assert "lies outside of" in str(getattr(failed[1], "error", ""))
        async with MigrationQueue(place.url, name=place.name, root=place.folder / "in") as queue:
            with pytest.raises(InvalidInput, match="lies outside of"):
                await queue.submit(outside)

    run(main())


@ON_REDIS
def test_a_park_ends_its_job_and_a_decision_starts_it_again(place: Place) -> None:
    async def main() -> None:
        (spec,) = specs = parking_customer(place)
        async with place.queue() as queue, place.worker():
            (parked,) = [outcome async for outcome in queue.run(specs)]
            assert isinstance(parked, Parked)
            asked = await queue.questions(spec.external_id)
            assert asked is not None
            assert asked.attention == parked.attention
            questions = msgspec.structs.replace(parked.attention, questions=())
            other = msgspec.structs.replace(parked, attention=questions)
            assert await queue.decide(spec.external_id, Approve(), shown=other) == "changed"
            with pytest.raises(InvalidInput, match="is not a question of this run"):
                await queue.decide(spec.external_id, Approve({"other": "a"}))
            assert await queue.decide(spec.external_id, Approve(), shown=digest_of(parked)) == "recorded"
            *_, last = [status async for status in queue.follow(spec.external_id)]
            assert last.outcome == "delivered"
            with pytest.raises(InvalidInput, match="asks nothing now: it is delivered"):
                await queue.decide(spec.external_id, Approve())
            spec.files[0].write_text("Email,Name\nnew@x.org,New\n", encoding="utf-8")
            with pytest.raises(InvalidInput, match="keeps its outcome"):
                await queue.submit(spec, if_changed="refuse")

    run(main())


@ON_POSTGRES
def test_a_customer_of_a_queue_can_be_canceled_retried_and_forgotten(place: Place) -> None:
    async def main() -> None:
        (spec,) = customers(place.folder / "in", 1)
        name = spec.external_id
        async with place.queue() as queue:
            with pytest.raises(CustomerNotFound):
                await queue.status(name)
            assert await queue.submit(spec)
            assert (await queue.status(name)).step == "waiting"
            place.world.pace = RunDurations(base=240.0, sigma=0.0)
            async with place.worker():
                await until(lambda: place.world.ledger.requests["POST /companies/{id}/imports"])
                with pytest.raises(CustomerHeld):
                    await queue.forget(name, force=True)
                assert not await queue.retry(name)  # its job has not ended
                outcome = await queue.cancel(name)
                assert isinstance(outcome, Pending)
                assert outcome.reason == "canceled"
                (status,) = [status async for status in queue.follow(name)]
                assert status.pending_reason == "canceled"
                assert await queue.retry(name)
                *_, last = [status async for status in queue.follow(name)]
                assert last.outcome == "delivered"
                assert isinstance(await queue.cancel(name), Delivered)
                assert [each.external_id for each in await queue.customers(outcome="delivered")] == [name]
                await queue.forget(name)
        assert place.journal.events
        assert await place.journal.states() == {}
        assert await place.journal.instructions() == {}

    run(main())
    verdict = place.world.verdict(0.0)
    assert (verdict.duplicate_companies, verdict.duplicate_imports) == (0, 0)


@ON_REDIS
def test_the_error_of_a_queue_without_a_journal_names_the_missing_argument(place: Place) -> None:
    async def main() -> None:
        async with MigrationQueue(place.url, name=place.name) as queue:
            with pytest.raises(UsageError, match=r"MigrationQueue\(url, journal=\.\.\.\)"):
                await queue.status("acme")

    run(main())


@ON_REDIS
def test_a_job_carries_the_options_of_its_submission_and_the_worker_sets_the_others(place: Place) -> None:
    async def main() -> None:
        specs = parking_customer(place)
        async with place.queue() as queue, place.worker(decide="approve"):
            (parked,) = [outcome async for outcome in queue.run(specs, decide="park")]
            assert isinstance(parked, Parked)
            options = MigrationOptions(row_filter="all")  # the default of `decide` overrides nothing
            (done,) = [outcome async for outcome in queue.run(specs, options=options)]
            assert isinstance(done, Delivered)
            assert done.row_filter == "all"
            for options, field in (
                (MigrationOptions(decide=decide), "decide"),
                (MigrationOptions(root=place.folder), "root"),
            ):
                with pytest.raises(InvalidInput, match=field):
                    await queue.submit(specs[0], options=options)
            with pytest.raises(InvalidInput, match="retries"):
                await queue.submit(specs[0], retries=-1)

    async def decide(parked: Parked) -> None:
        raise AssertionError(parked)

    run(main())


def test_an_aborted_job_is_cancelled_and_continues_when_it_is_submitted_again(place: Place) -> None:
    async def main() -> None:
        (spec,) = customers(place.folder / "in", 1)
        async with place.queue() as queue, place.worker():
            place.world.pace = RunDurations(base=240.0, sigma=0.0)
            following = asyncio.ensure_future(_all(queue, [spec]))
            await until(lambda: place.world.ledger.requests["POST /companies/{id}/imports"])
            await queue.abort(spec.external_id)
            (aborted,) = await following
            assert isinstance(aborted, Pending)
            assert "aborted" in aborted.error
            await asyncio.sleep(6 * SPEED)  # until SAQ has forgotten the abort
            (done,) = await _all(queue, [spec])
            assert isinstance(done, Delivered)
        assert place.world.verdict(asyncio.get_running_loop().time()).duplicate_imports == 0

    run(main())


def test_a_stopped_worker_finishes_its_requests_and_returns_its_jobs_to_the_queue(place: Place) -> None:
    async def main() -> None:
        specs = customers(place.folder / "in", 3)
        ledger = place.world.ledger
        async with place.queue() as queue:
            following = asyncio.ensure_future(_all(queue, specs))
            async with place.worker(latency=1.0):
                await until(lambda: ledger.requests["POST /companies/{id}/imports"])
            assert not following.done()
            sent = len(ledger.entries)
            await asyncio.sleep(10.0)
            assert len(ledger.entries) == sent
            async with place.worker():
                outcomes = await following
        assert {type(outcome) for outcome in outcomes} == {Delivered}
        assert ledger.requests["POST /companies"] == 3
        assert ledger.requests["POST /companies/{id}/imports"] == 3

    run(main())


async def _all(queue: MigrationQueue, specs: list[Spec]) -> list[object]:
    return [outcome async for outcome in queue.run(specs)]


def test_the_job_of_a_dead_worker_is_swept_and_done_by_another_worker(place: Place) -> None:
    """The dead worker took the job and sent no heartbeat."""

    async def main() -> None:
        (spec,) = customers(place.folder / "in", 1)
        async with place.queue() as queue:
            await queue.submit(spec)
            dead = open_queue(place.url, place.name)
            await dead.connect()
            job = await dead.dequeue()
            assert job is not None
            job.started, job.attempts = 1, 1
            await job.update(status="active")
            async with place.worker(sweep=60):
                outcomes = await _all(queue, [spec])
            await dead.disconnect()
        assert [type(outcome) for outcome in outcomes] == [Delivered]

    run(main())


@asynccontextmanager
async def dead_worker(place: Place) -> AsyncIterator[tuple[ResilientQueue, Job]]:
    """Take a job as a worker that dies afterwards. Yield its queue and the job."""
    dead = open_queue(place.url, place.name)
    await dead.connect()
    job = await dead.dequeue()
    assert job is not None
    job.worker_id, job.started, job.attempts = "dead", 1, 1
    await job.update(status="active")
    yield dead, job
    await dead.disconnect()


def test_a_job_is_not_lost_if_the_process_that_sweeps_it_dies(place: Place) -> None:
    async def main() -> None:
        (spec,) = customers(place.folder / "in", 1)
        async with place.queue() as queue:
            await queue.submit(spec)
            async with dead_worker(place) as (dead, taken):
                sweeper = open_queue(place.url, place.name)
                await sweeper.connect()
                await asyncio.sleep(2.0 * SPEED)
                sweeping = asyncio.create_task(sweeper.sweep(SPEED))
                while (job := await dead.job(taken.key)) is None or job.status is Status.ACTIVE:  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
                sweeping.cancel()
                await asyncio.wait([sweeping])
                # Its locks end with its connection, or after a second.
                await sweeper.disconnect()
                async with place.worker(sweep=60):
                    outcomes = await _all(queue, [spec])
        assert [type(outcome) for outcome in outcomes] == [Delivered]

    run(main())


def test_a_job_that_its_worker_ended_because_of_a_sweep_is_queued_again(place: Place) -> None:
    async def main() -> None:
        (spec,) = customers(place.folder / "in", 1)
        async with place.queue() as queue:
            await queue.submit(spec)
            async with dead_worker(place) as (worker, job):
                await worker.finish(job, Status.ABORTED, error=worker.swept_error_message)
                again = await worker.dequeue(timeout=5.0)
        assert again is not None
        assert again.key == job.key

    run(main())


def test_a_job_that_was_aborted_before_its_worker_died_ends_as_canceled(place: Place) -> None:
    async def main() -> None:
        (spec,) = customers(place.folder / "in", 1)
        async with place.queue() as queue:
            await queue.submit(spec)
            async with dead_worker(place):
                await queue.abort("c0000")
                async with place.worker(sweep=60):
                    (outcome,) = await _all(queue, [spec])
        assert isinstance(outcome, Pending)
        assert outcome.reason == "canceled"
        assert not place.world.ledger.entries

    run(main())


def test_a_heartbeat_does_not_overwrite_an_abort_and_its_reason(place: Place) -> None:
    async def main() -> None:
        (spec,) = customers(place.folder / "in", 1)
        worker, other = open_queue(place.url, place.name), open_queue(place.url, place.name)
        async with place.queue() as queue:
            await worker.connect()
            await other.connect()
            await queue.submit(spec)
            job = await worker.dequeue()
            assert job is not None
            job.worker_id, job.started = "worker", 1
            await job.update(status="active")
            await worker.touch(job)
            seen = await other.job(job.key)
            assert seen is not None
            assert seen.status == "active"
            assert abs(seen.touched - job.touched) < 1000  # each queue rounds the server's clock
            await other.abort(seen, "the reason")
            await worker.touch(job)
            aborted = await other.job(job.key)
            assert aborted is not None
            assert (aborted.status, aborted.error) == ("aborting", "the reason")
            await worker.disconnect()
            await other.disconnect()

    run(main())


def test_a_job_that_a_worker_has_just_taken_is_not_swept(place: Place) -> None:
    async def main() -> None:
        (spec,) = customers(place.folder / "in", 1)
        worker, other = open_queue(place.url, place.name), open_queue(place.url, place.name)
        async with place.queue() as queue:
            await worker.connect()
            await other.connect()
            await queue.submit(spec)
            job = await worker.dequeue()
            assert job is not None
            assert await other.sweep(SPEED) == []  # its worker has not marked it as active yet
            await asyncio.sleep(2.0 * SPEED)
            assert [key.rpartition(":")[2] for key in await other.sweep(SPEED)] == [job.key]
            await worker.disconnect()
            await other.disconnect()

    run(main())


@ON_POSTGRES
def test_the_worker_supplies_the_secrets_of_a_destination_and_the_queue_never_stores_them(
    place: Place,
) -> None:
    secrets = {"destination": {"base_url": "https://crm.example", "auth": {"token": "very-secret"}}}
    asked: list[str] = []

    def connections(external_id: str) -> dict[str, object]:
        asked.append(external_id)
        return secrets

    async def main() -> None:
        (spec,) = customers(place.folder / "in", 1)
        async with place.queue() as queue:
            with pytest.raises(InvalidInput, match="connections") as caught:
                await queue.submit(msgspec.structs.replace(spec, connections=secrets))
            assert "very-secret" not in str(caught.value)
            async with place.worker(connections=connections):
                assert [type(outcome) for outcome in await _all(queue, [spec])] == [Delivered]
            job = await queue._queue.job(queue._key(spec.external_id))
        assert asked == [spec.external_id]
        assert "very-secret" not in repr(job.to_dict())

    run(main())


@ON_REDIS
def test_a_worker_waits_while_another_process_holds_the_customer(place: Place) -> None:
    async def main() -> None:
        (spec,) = customers(place.folder / "in", 1)
        claim = await place.journal.claim(spec.external_id)
        async with place.queue() as queue, place.worker():
            following = asyncio.ensure_future(_all(queue, [spec]))
            await asyncio.sleep(120.0)
            assert not following.done()
            assert not place.world.ledger.requests["POST /companies"]
            await claim.release()
            assert [type(outcome) for outcome in await following] == [Delivered]

    run(main())


def test_an_unreachable_queue_gets_the_outcomes_later_and_causes_at_most_two_warnings(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        specs = customers(place.folder / "in", 3)
        async with (
            CutProxy(place.url) as proxy,
            place.queue() as queue,
            replace(place, url=proxy.url).worker(),
        ):
            following = asyncio.ensure_future(_all(queue, specs))
            await until(lambda: place.world.ledger.requests["POST /companies/{id}/imports"] == 3)
            proxy.refuses = True
            proxy.close_connections()
            await until(lambda: len(list((place.folder / "out").glob("*/Contacts.csv"))) == 3)
            await until(lambda: any("the queue" in record.getMessage() for record in caplog.records))
            await asyncio.sleep(2 * SPEED)
            assert not following.done()
            proxy.refuses = False
            assert {type(outcome) for outcome in await following} == {Delivered}

    with caplog.at_level(logging.WARNING):
        run(main())
    assert not [record for record in caplog.records if record.exc_info and record.name in ("saq", "asyncio")]
    warnings = [record.getMessage() for record in caplog.records if "the queue" in record.getMessage()]
    assert 1 <= len(warnings) <= 2  # one for broken connections, one for refused connections
    assert not any("protocol" in text for text in warnings)


class UnavailableJournal:
    """A journal that cannot be opened, or refuses claims, while `is_unavailable`."""

    def __init__(self, journal: MemoryJournal) -> None:
        self._journal, self.is_unavailable = journal, True
        self.tries = 0

    def check(self) -> None:
        self.tries += 1
        if self.is_unavailable:
            raise JournalUnavailable("fleet.db", "is locked")

    async def claim(self, external_id: str) -> ClaimPort:
        self.check()
        return await self._journal.claim(external_id)

    async def instruction(self, external_id: str) -> None:
        self.check()


@pytest.mark.parametrize("is_openable", [False, True])
def test_a_worker_waits_for_an_unavailable_journal_and_warns_once(
    redis_url: str, prefix: str, tmp_path: Path, is_openable: bool, caplog: pytest.LogCaptureFixture
) -> None:
    place = Place(redis_url, prefix, tmp_path)
    journal = UnavailableJournal(place.journal)

    @asynccontextmanager
    async def opening() -> AsyncIterator[UnavailableJournal]:
        if not is_openable:
            journal.check()
        yield journal

    async def main() -> None:
        specs = customers(tmp_path / "in", 3)
        async with place.queue() as queue, place.worker(journal=opening):
            following = asyncio.ensure_future(_all(queue, specs))
            await until(lambda: journal.tries > 6)
            journal.is_unavailable = False
            assert {type(outcome) for outcome in await following} == {Delivered}

    with caplog.at_level(logging.WARNING):
        run(main())
    (line,) = [record.getMessage() for record in caplog.records if record.name == "asyncmig"]
    assert "is locked" in line
    assert "waits for it" in line or "waiting for it" in line


def test_a_job_is_queued_again_when_the_queue_has_lost_its_data(
    redis_url: str, tmp_path: Path, prefix: str
) -> None:
    async def main() -> None:
        place = Place(redis_url, prefix, tmp_path)
        (spec,) = customers(tmp_path / "in", 1)
        async with place.queue() as queue:
            following = asyncio.ensure_future(_all(queue, [spec]))
            await asyncio.sleep(60.0)
            client = redis.Redis.from_url(redis_url)
            client.delete(*client.keys(f"saq:*{prefix}*"))
            async with place.worker():
                assert [type(outcome) for outcome in await following] == [Delivered]

    run(main())


def lose_jobs(place: Place) -> None:
    client = redis.Redis.from_url(place.url)
    client.delete(*client.keys(f"saq:*{place.name}*"))


def test_no_customer_ends_as_pending_when_the_queue_loses_its_jobs_three_times(
    redis_url: str, tmp_path: Path, prefix: str
) -> None:
    async def main() -> None:
        place = Place(redis_url, prefix, tmp_path)
        specs = customers(tmp_path / "in", 4)
        claims = [await place.journal.claim(spec.external_id) for spec in specs]
        async with place.queue() as queue, place.worker():
            for _ in range(3):
                for spec in specs:
                    await queue.submit(spec)
                await asyncio.sleep(0.3 * SPEED)
                lose_jobs(place)
                await asyncio.sleep(0.6 * SPEED)
                assert not any([await queue._queue.job(queue._key(spec.external_id)) for spec in specs])
            following = asyncio.ensure_future(_all(queue, specs))
            await asyncio.sleep(SPEED)
            for claim in claims:
                await claim.release()
            assert [type(outcome) for outcome in await following] == [Delivered] * 4

    run(main())


def test_a_task_whose_job_is_lost_stops_and_writes_no_result(
    redis_url: str, tmp_path: Path, prefix: str
) -> None:
    async def main() -> None:
        place = Place(redis_url, prefix, tmp_path)
        place.world.pace = RunDurations(base=60.0, sigma=0.0)
        ledger, (lost, ended) = place.world.ledger, customers(tmp_path / "in", 2)
        async with place.queue() as queue, place.worker():
            await queue.submit(lost)
            await until(lambda: ledger.requests["POST /companies/{id}/imports"])
            lose_jobs(place)
            await queue.submit(ended)  # the worker still takes jobs
            assert [type(outcome) for outcome in await _all(queue, [ended])] == [Delivered]
            await asyncio.sleep(2 * SPEED)
            assert await queue._queue.job(queue._key(lost.external_id)) is None
            assert not (tmp_path / "out" / lost.external_id).exists()
            assert [type(outcome) for outcome in await _all(queue, [lost])] == [Delivered]
        assert ledger.requests["POST /companies/{id}/imports"] == 2

    run(main())


def test_a_cancellation_in_any_turn_of_the_loop_ends_the_wait_for_outcomes(
    redis_url: str, prefix: str, tmp_path: Path
) -> None:
    (spec,) = customers(tmp_path / "in", 1)

    async def main() -> None:
        async def consume() -> None:
            async for _ in queue.run([spec]):
                raise AssertionError("an outcome without a worker")

        async with MigrationQueue(redis_url, name=prefix) as queue:
            for turns in range(60):
                task = asyncio.create_task(consume())
                for _ in range(turns):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.wait([task], timeout=10.0)
                assert task.cancelled(), f"the task continues after a cancellation in turn {turns}"

    asyncio.run(main())


def test_settings_come_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("VERN_API_KEY", KEY)
    for name in [name for name in os.environ if name.startswith("ASYNCMIG_")]:
        monkeypatch.delenv(name)
    with pytest.raises(InvalidInput, match="ASYNCMIG_DATABASE"):
        settings()
    monkeypatch.setenv("ASYNCMIG_DATABASE", str(tmp_path / "fleet.db"))
    with pytest.raises(InvalidInput, match="ASYNCMIG_QUEUE"):
        settings()
    monkeypatch.setenv("ASYNCMIG_QUEUE", "amqp://secret@host")
    with pytest.raises(InvalidInput, match="amqp://") as caught:
        settings()
    assert "secret" not in str(caught.value)
    monkeypatch.setenv("ASYNCMIG_QUEUE", redis_url)
    monkeypatch.setenv("ASYNCMIG_DECIDE", "approve-safe")  # as `asyncmig run` reads it
    settings()
    wrongs = {
        "ASYNCMIG_DECIDE": "guess",
        "ASYNCMIG_CONCURRENCY": "0",
        "ASYNCMIG_RATE": "100",
        "ASYNCMIG_SCOPE": "company",
        "ASYNCMIG_FILTER": "some",
        "ASYNCMIG_RETRIES": "-1",
        "ASYNCMIG_DELIVER_REJECTED": "perhaps",
    }
    for name, wrong in wrongs.items():
        monkeypatch.setenv(name, wrong)
        with pytest.raises(InvalidInput, match=name):
            settings()
        monkeypatch.delenv(name)
    caplog.clear()
    assert settings()["concurrency"] == 100
    assert caplog.messages == []
    monkeypatch.setenv("ASYNCMIG_MAX_DURATION", "1h")
    settings()
    assert "a worker ignores ASYNCMIG_MAX_DURATION" in caplog.text
    with pytest.raises(InvalidInput, match="heartbeat"):
        MigrationQueue(redis_url, heartbeat=0)
