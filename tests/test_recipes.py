"""The guide's recipes for job runners: a job that is killed, cancelled or repeated does nothing twice."""

import asyncio
import json
import os
import re
import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import documents
import msgspec
import procrastinate
import pytest
from farm import Farm, customers
from jobprocess import KINDS, PRELUDE, recipe

import asyncmig
from asyncmig.customers.decisions import Credentials
from asyncmig.customers.questions import NeedsAttention
from asyncmig.distributed.postgres import PostgresJournal
from asyncmig.distributed.saq import MigrationQueue
from asyncmig.jobs.runners import RetryJob
from asyncmig.simulator import SCHEMAS, SOURCES, RunDurations, World, fast_loop, serve

Names = dict[str, Any]
HERE = Path(__file__).parent


@pytest.fixture
def names(redis_url: str, database_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Names:
    """Return the names that the recipes define."""
    monkeypatch.setenv("REDIS_URL", redis_url)
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.chdir(tmp_path)
    names: Names = {"__name__": "recipes"}
    exec(PRELUDE, names)
    for block in documents.GUIDE.blocks("python"):
        if re.search("def run_customer|migrate_task", block) or (
            "temporalio" in block and documents.is_runnable(block)
        ):
            exec(block, names)
    return names


def run(main: Callable[[World], Awaitable[None]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Serve a simulated account and run `main`, with a fast clock."""

    async def served() -> None:
        pace = RunDurations(base=60.0, sigma=0.0)
        world = World(key="key", sources=SOURCES, schemas=SCHEMAS, seed=1, pace=pace)
        async with serve(world) as serving:
            monkeypatch.setenv("VERN_API_KEY", world.key)
            monkeypatch.setenv("VERN_BASE_URL", serving.base_url)
            await main(world)
            assert [len(company.runs) for company in world.companies.values()] == [1]

    with asyncio.Runner(loop_factory=lambda: fast_loop(60)) as runner:
        runner.run(served())


async def import_started(world: World) -> None:
    """Wait until the import has started."""
    while not world.ledger.requests["POST /companies/{id}/imports"]:  # noqa: ASYNC110 - the simulator has no event for it
        await asyncio.sleep(0.5)


def customer(prefix: str, folder: Path) -> dict[str, str]:
    (spec,) = customers(folder / "in", 1)
    return {"external_id": prefix, "name": prefix, "source": spec.source, "file": str(spec.files[0])}


def job(external_id: str, folder: Path) -> Names:
    """Return the argument of a job in the recipes."""
    sent = customer(external_id, folder)
    return {
        "id": sent["external_id"],
        "files": [sent["file"]],
        "name": sent["name"],
        "source": sent["source"],
    }


async def wait_for_outcomes(
    names: Names,
    journal: PostgresJournal,
    kind: type[asyncmig.Outcome],
    ids: list[str],
    seconds: float = 100.0,
) -> None:
    """Wait until the journal has an outcome of this kind for all customers."""
    async with asyncio.timeout(seconds):
        while not all(  # noqa: ASYNC110 - other processes write the journal
            [isinstance(await names["read_outcome"](journal, each), kind) for each in ids]
        ):
            await asyncio.sleep(0.3)


async def wait_for_imports(farm: Farm, count: int) -> None:
    """Wait until the simulator has started `count` imports."""
    async with asyncio.timeout(100):
        while farm.verdict()["imports"] < count:  # noqa: ASYNC110 - the simulator is another process
            await asyncio.sleep(0.2)


Approve = Callable[[Names], Awaitable[bool]]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", list(KINDS))
async def test_workers_that_are_killed_and_stopped_do_nothing_twice_and_apply_a_decision(
    kind: str, redis_url: str, database_url: str, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(kind)
    monkeypatch.setenv("REDIS_URL", redis_url.removesuffix("/0") + "/13")
    monkeypatch.setenv("DATABASE_URL", database_url)
    names = recipe(KINDS[kind])
    ids = [f"{prefix}-{n}" for n in range(3)]
    jobs = [job(each, tmp_path / each) for each in ids]
    Path(jobs[0]["files"][0]).write_text(
        "Email,First Name,Last Name\n" + "a@example.com,A,B\n" * 5, encoding="utf-8"
    )
    farm = Farm(tmp_path, speed=10, queue=redis_url, database=database_url, window=redis_url, name=prefix)
    async with AsyncExitStack() as exits:
        exits.enter_context(farm)
        journal = await exits.enter_async_context(PostgresJournal(database_url, schema=prefix))
        approve = await QUEUES[kind](names, jobs, journal, exits)
        command = [sys.executable, HERE / "jobprocess.py", kind, "10", prefix]
        farm.launch(command, cwd=tmp_path)
        await wait_for_imports(farm, 3)
        farm.kill(0)
        farm.launch(command, cwd=tmp_path)
        await asyncio.sleep(1.0)
        farm.stop()
        farm.launch(command, cwd=tmp_path)
        try:
            await wait_for_outcomes(names, journal, asyncmig.Parked, ids[:1])
            assert await approve(jobs[0])
            await wait_for_outcomes(names, journal, asyncmig.Delivered, ids)
        except TimeoutError:
            raise AssertionError(farm.log()[-6000:]) from None
        assert not await approve(jobs[0])
        verdict = farm.verdict()
        assert (verdict["duplicate_imports"], verdict["duplicate_companies"]) == (0, 0)


async def fill_saq(
    names: Names, jobs: list[Names], journal: PostgresJournal, exits: AsyncExitStack
) -> Approve:
    """Enqueue the jobs as the recipe does. Return a function that approves the proposal for a customer."""
    queue = await exits.enter_async_context(
        MigrationQueue(os.environ["REDIS_URL"], journal=journal, heartbeat=2)
    )
    specs = [
        asyncmig.Spec(
            external_id=each["id"], name=each["name"], source=each["source"], files=(Path(each["files"][0]),)
        )
        for each in jobs
    ]
    assert [await queue.submit(each) for each in specs] == [True, True, True]
    assert not await queue.submit(specs[0])
    return lambda customer: names["approve_submitted"](queue, customer["id"])


async def fill_arq(
    names: Names, jobs: list[Names], journal: PostgresJournal, exits: AsyncExitStack
) -> Approve:
    import arq

    settings = arq.connections.RedisSettings.from_dsn(os.environ["REDIS_URL"])
    pool = await arq.create_pool(settings, default_queue_name=jobs[0]["id"].rpartition("-")[0])
    exits.push_async_callback(pool.aclose)
    assert [await names["enqueue"](pool, each) for each in jobs] == [True, True, True]
    assert not await names["enqueue"](pool, jobs[0])
    return lambda customer: names["approve"](pool, journal, customer)


async def fill_procrastinate(
    names: Names, jobs: list[Names], journal: PostgresJournal, exits: AsyncExitStack
) -> Approve:
    tasks = names["tasks"]
    await exits.enter_async_context(tasks.open_async())
    await tasks.schema_manager.apply_schema_async()
    for each in jobs:
        await names["defer"](each)
    with pytest.raises(procrastinate.exceptions.AlreadyEnqueued):
        await names["defer"](jobs[0])
    return lambda customer: names["approve_deferred"](journal, customer)


QUEUES = {"saq": fill_saq, "arq": fill_arq, "procrastinate": fill_procrastinate}


def test_the_next_job_of_a_parked_customer_applies_the_decision(
    names: Names, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = job(prefix, tmp_path)
    Path(sent["files"][0]).write_text("Email,First Name,Last Name\nbad,A,B\n", encoding="utf-8")

    async def main(world: World) -> None:
        ctx: Names = {}
        await names["startup"](ctx)
        assert await names["run_customer"](ctx, sent) == "Parked"
        parked = await names["read_outcome"](ctx["journal"], prefix)
        other = msgspec.structs.replace(
            parked, attention=NeedsAttention(questions=parked.attention.questions)
        )
        stale = names["decision_for"](other, asyncmig.Reject())
        assert await names["run_customer"](ctx, sent, stale) == "Parked"
        decision = json.loads(json.dumps(names["decision_for"](parked, asyncmig.Approve())))
        assert await names["run_customer"](ctx, sent, decision) == "Delivered"
        with pytest.raises(asyncmig.InvalidInput, match="Credentials"):
            names["decision_for"](parked, Credentials(credentials={"password": "hidden"}))
        await names["shutdown"](ctx)

    run(main, monkeypatch)


def test_a_job_whose_customer_is_held_is_retried_later(
    names: Names, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = job(prefix, tmp_path)

    async def main(world: World) -> None:
        ctx: Names = {}
        await names["startup"](ctx)
        first = asyncio.ensure_future(names["run_customer"](ctx, sent))
        await import_started(world)
        with pytest.raises(RetryJob, match="is held by") as caught:
            await names["run_customer"](ctx, sent)
        assert caught.value.after > 0
        assert await first == "Delivered"
        await names["shutdown"](ctx)

    run(main, monkeypatch)


def test_a_temporal_activity_sends_heartbeats_and_can_be_retried(
    names: Names, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    testing = pytest.importorskip("temporalio.testing")

    async def main(world: World) -> None:
        heartbeats: list[object] = []
        await names["startup"](names["resources"])
        environment = testing.ActivityEnvironment()
        environment.on_heartbeat = lambda *details: heartbeats.append(details)
        work = asyncio.ensure_future(environment.run(names["migrate_activity"], job(prefix, tmp_path)))
        await import_started(world)
        environment.cancel()
        with suppress(asyncio.CancelledError):
            await work
        assert work.cancelled()
        stopped = len(heartbeats)
        again = testing.ActivityEnvironment()
        again.on_heartbeat = environment.on_heartbeat
        assert await again.run(names["migrate_activity"], job(prefix, tmp_path)) == "Delivered"
        assert len(heartbeats) >= stopped + 2
        await names["shutdown"](names["resources"])

    run(main, monkeypatch)


@pytest.mark.parametrize("activity_name", ["migrate_activity", "migrate_activity_2"])
async def test_the_temporal_workflow_runs_the_activity_and_ends_with_its_result(
    names: Names, activity_name: str
) -> None:
    """Replay a history as a Temporal server would send it. No package contains a server, but the client has the core.

    The replay of a history with another activity fails.
    """
    pytest.importorskip("temporalio")
    from temporalio.api.enums.v1 import EventType
    from temporalio.api.history.v1 import HistoryEvent
    from temporalio.client import WorkflowHistory
    from temporalio.converter import default
    from temporalio.worker import Replayer
    from temporalio.workflow import NondeterminismError

    arguments = {"payloads": await default().encode([{"id": "acme", "files": ["contacts.csv"]}, None])}
    result = {"payloads": await default().encode(["Delivered"])}
    queue = {"name": "migrations"}
    task = {"scheduled_event_id": 2}, {"scheduled_event_id": 2, "started_event_id": 3}
    compares_names = {
        "sdk_metadata": {"core_used_flags": [1]}
    }  # without it, Temporal's core accepts any activity
    last = {"scheduled_event_id": 8}, {"scheduled_event_id": 8, "started_event_id": 9}
    begun = {"workflow_type": {"name": "MigrateCustomer"}, "task_queue": queue, "input": arguments}
    activity = {"activity_id": "1", "activity_type": {"name": activity_name}, "input": arguments}
    history: list[tuple[str, Names]] = [
        ("workflow_execution_started", {**begun, "original_execution_run_id": "run"}),
        ("workflow_task_scheduled", {"task_queue": queue}),
        ("workflow_task_started", task[0]),
        ("workflow_task_completed", {**task[1], **compares_names}),
        ("activity_task_scheduled", {**activity, "workflow_task_completed_event_id": 4}),
        ("activity_task_started", {"scheduled_event_id": 5}),
        ("activity_task_completed", {"scheduled_event_id": 5, "started_event_id": 6, "result": result}),
        ("workflow_task_scheduled", {"task_queue": queue}),
        ("workflow_task_started", last[0]),
        ("workflow_task_completed", last[1]),
        ("workflow_execution_completed", {"result": result, "workflow_task_completed_event_id": 10}),
    ]
    events = [
        HistoryEvent(
            event_id=number,
            event_time={"seconds": number},
            event_type=EventType.Value(f"EVENT_TYPE_{kind.upper()}"),
            **{f"{kind}_event_attributes": attributes},
        )
        for number, (kind, attributes) in enumerate(history, start=1)
    ]
    replayer = Replayer(workflows=[names["MigrateCustomer"]])
    replayed = await replayer.replay_workflow(WorkflowHistory("acme", events), raise_on_replay_failure=False)
    if activity_name == "migrate_activity":
        assert replayed.replay_failure is None
    else:
        assert isinstance(replayed.replay_failure, NondeterminismError)
