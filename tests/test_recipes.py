"""The guide's recipes for other runners: awaited, cancelled at any point, run again, nothing is done twice."""

import asyncio
import re
import sys
import types
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import documents
import procrastinate.testing
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from farm import customers

import asyncmig
from asyncmig.simulator import SCHEMAS, SOURCES, RunDurations, World, serve
from asyncmig.simulator.server.clock import fast_loop

PRELUDE = "import asyncmig, os; from pathlib import Path"
Names = dict[str, Any]
beats: list[None] = []


@pytest.fixture
def names(redis_url: str, database_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Names:
    """What the recipes define. For Temporal's package, which is large, something stands in that only counts."""
    monkeypatch.setenv("REDIS_URL", redis_url)
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.chdir(tmp_path)
    beats.clear()
    temporal = types.ModuleType("temporalio")
    activity = types.SimpleNamespace(defn=lambda function: function, heartbeat=lambda: beats.append(None))
    temporal.activity = activity  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "temporalio", temporal)
    names: Names = {"__name__": "recipes"}
    exec(PRELUDE, names)
    for block in documents.GUIDE.blocks("python"):
        if re.search("AppKey|WorkerSettings|procrastinate|temporalio", block):
            exec(block, names)
    return names


def run(main: Callable[[World], Awaitable[None]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Serve a world and run `main`, on a fast clock."""

    async def served() -> None:
        pace = RunDurations(base=60.0, sigma=0.0)
        world = World(key="key", sources=SOURCES, schemas=SCHEMAS, seed=1, pace=pace)
        async with serve(world) as serving:
            monkeypatch.setenv("VERN_API_KEY", world.key)
            monkeypatch.setenv("VERN_BASE_URL", serving.base_url)
            await main(world)
            assert [len(company.runs) for company in world._companies.values()] == [1]

    with asyncio.Runner(loop_factory=lambda: fast_loop(60)) as runner:
        runner.run(served())


async def begun(world: World) -> None:
    """Wait until the import runs."""
    while not world.ledger.requests["POST /companies/{id}/imports"]:  # noqa: ASYNC110 - it is about the outside
        await asyncio.sleep(0.5)


async def cancelled(work: Coroutine[object, object, object], world: World) -> None:
    """Run a job until its import runs, and then cancel it, as runners do."""
    task = asyncio.ensure_future(work)
    await begun(world)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    assert task.cancelled()


def customer(prefix: str, folder: Path) -> dict[str, str]:
    (spec,) = customers(folder / "in", 1)
    return {"external_id": prefix, "name": prefix, "source": spec.source, "file": str(spec.files[0])}


def test_a_service_that_is_stopped_goes_on_when_it_starts_again(
    names: Names, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = customer(prefix, tmp_path)
    upload = tmp_path / "uploads" / prefix / "contacts.csv"
    upload.parent.mkdir(parents=True)
    Path(sent["file"]).rename(upload)
    body = {"id": prefix, "name": prefix, "source": sent["source"], "files": ["contacts.csv"]}

    async def once(until: Callable[[asyncmig.Fleet], Awaitable[object]]) -> None:
        app = web.Application()
        app.cleanup_ctx.append(names["migrations"])
        app.router.add_post("/migrations", names["submit"])
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        port = runner.addresses[0][1]
        async with (
            aiohttp.ClientSession() as client,
            client.post(f"http://127.0.0.1:{port}/migrations", json=body) as answer,
        ):
            assert answer.status == 202
        await until(app[names["FLEET"]])
        await runner.cleanup()

    async def main(world: World) -> None:
        await once(lambda _: begun(world))
        spec = asyncmig.Spec(
            external_id=prefix,
            name=prefix,
            source=sent["source"],
            files=(Path("uploads", prefix, "contacts.csv"),),
        )
        await once(lambda fleet: fleet.submit(spec))
        assert Path("out", prefix, "Contacts.csv").is_file()

    run(main, monkeypatch)


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        ({"files": ["/etc/passwd"]}, "No such file"),
        ({"files": ["../../secret.csv"]}, "No such file"),
        ({"files": ["link.csv"]}, "lies outside of uploads"),
        ({"id": "../secret"}, "external_id="),
        ({"id": ".."}, "external_id="),
    ],
)
def test_a_service_reads_no_file_but_uploads(
    names: Names, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sent: Names, words: str
) -> None:
    (tmp_path / "uploads/acme").mkdir(parents=True)
    (tmp_path / "secret.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    (tmp_path / "uploads/acme/link.csv").symlink_to(tmp_path / "secret.csv")
    monkeypatch.setenv("VERN_API_KEY", "key")
    body = {"id": "acme", "name": "Acme", "source": "source", "files": ["link.csv"], **sent}

    async def main() -> None:
        app = web.Application()
        app.cleanup_ctx.append(names["migrations"])
        app.router.add_post("/migrations", names["submit"])
        async with TestClient(TestServer(app)) as client:
            answer = await client.post("/migrations", json=body)
            assert answer.status == 400
            assert words in (await answer.json())["error"]

    asyncio.run(main())


def test_an_arq_job_that_is_cancelled_is_tried_again(
    names: Names, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, settings = customer(prefix, tmp_path), names["WorkerSettings"]

    async def main(world: World) -> None:
        (function,) = settings.functions
        for again in (False, True):
            ctx: Names = {}
            await settings.on_startup(ctx)
            if again:
                assert await function(ctx, **job) == "Delivered"
            else:
                await cancelled(function(ctx, **job), world)
            await settings.on_shutdown(ctx)

    run(main, monkeypatch)


def test_a_procrastinate_task_that_is_cancelled_is_run_again(
    names: Names, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main(world: World) -> None:
        with names["tasks"].replace_connector(procrastinate.testing.InMemoryConnector()) as tasks:
            await names["startup"](names["ctx"])
            await cancelled(names["migrate_task"](**customer(prefix, tmp_path)), world)
            async with tasks.open_async():
                await names["migrate_task"].defer_async(**customer(prefix, tmp_path))
                await tasks.run_worker_async(wait=False, install_signal_handlers=False)
            await names["shutdown"](names["ctx"])
        assert Path("out", prefix, "Contacts.csv").is_file()

    run(main, monkeypatch)


def test_a_temporal_activity_beats_and_is_tried_again(
    names: Names, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main(world: World) -> None:
        await names["startup"](names["ctx"])
        await cancelled(names["migrate_activity"](customer(prefix, tmp_path)), world)
        stopped = len(beats)
        assert await names["migrate_activity"](customer(prefix, tmp_path)) == "Delivered"
        assert len(beats) >= stopped + 3
        await names["shutdown"](names["ctx"])

    run(main, monkeypatch)
