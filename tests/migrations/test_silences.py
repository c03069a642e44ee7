"""Open points of the contract, by number: the client on a scripted server. See the table in `test_readings.py`."""

import asyncio
from pathlib import Path

import pytest

from asyncmig import BadRequest, Conflict, RunCanceled, RunFailed
from asyncmig.migrations import Preview, Questions, Report

from .conftest import KEY, OpenMigration
from .server import QUESTION, Account, Reply

pytestmark = pytest.mark.looptime
RUNS = "/migrations/m1/runs"


async def test_3_execute_may_return_another_run_id(open_migration: OpenMigration, account: Account) -> None:
    async with open_migration() as migration:
        await (await migration.generate()).wait()
        account.run_id = "run-2"
        run = await migration.execute()
        assert run.id == "run-2"
        assert isinstance(await run.wait(), Report)


@pytest.mark.parametrize("status", ["completed", "awaiting_approval"])
@pytest.mark.parametrize("lag", [0.0, 20.0])
async def test_4_execute_starts_after_either_final_status_of_a_clarify(
    status: str, lag: float, open_migration: OpenMigration, account: Account
) -> None:
    account.lag, account.steps["clarify"] = lag, [(15.0, {"status": status})]
    async with open_migration() as migration:
        await (await migration.generate()).wait()
        run = await migration.clarify("Why?")
        account.add_event(account.now + 10, "message", {"text": "Because"})
        assert isinstance(await run.wait(), Preview)
        assert await run.messages() == "Because"
        assert isinstance(await (await migration.execute()).wait(), Report)


@pytest.mark.parametrize(
    "block",
    [
        {"questions": [{"id": 7, "question": "Why?", "options": None}]},
        {"blocked_reason": None, "questions": [{"id": 7, "question": "Why?", "allowCustom": False}]},
    ],
)
async def test_7_a_question_without_options_takes_any_text(
    block: dict[str, object], open_migration: OpenMigration, account: Account
) -> None:
    account.steps["generate"] = [(30.0, {"status": "blocked", **block})]
    async with open_migration() as migration:
        run = await migration.generate()
        asked = await run.wait()
        assert isinstance(asked, Questions)
        await run.answer({asked.questions[0].id: "Because"})
        assert isinstance(await run.wait(), Preview)


async def test_7_a_block_for_an_unknown_reason_is_shown_and_can_be_canceled(
    open_migration: OpenMigration, account: Account
) -> None:
    account.steps["generate"] = [(30.0, {"status": "blocked", "blocked_reason": "payment"})]
    async with open_migration() as migration:
        run = await migration.generate()
        asked = await run.wait()
        assert isinstance(asked, Questions)
        assert (asked.questions, asked.reason) == ((), "payment")
        assert (await run.cancel()).status == "canceled"


async def test_8_a_blocked_run_fails_if_the_server_ends_it(
    open_migration: OpenMigration, account: Account
) -> None:
    blocked = {"status": "blocked", "questions": [QUESTION]}
    account.steps["generate"] = [(30.0, blocked), (7200.0, {"status": "failed", "error": "Import timed out"})]
    async with open_migration() as migration:
        run = await migration.generate()
        await run.wait()
        with pytest.raises(RunFailed, match="timed out"):
            await run.wait(through_parks=True)


async def test_11_files_with_changed_names_are_matched_by_position(
    open_migration: OpenMigration, account: Account
) -> None:
    def urls(body: dict[str, list[dict[str, str]]], query: object) -> Reply:
        names = [each["name"].replace(" ", "_") for each in body["files"]]
        url = "https://storage.test/p/{}"
        return Reply(
            201,
            {"files": [{"name": "x", "storage_path": f"p/{n}", "signed_url": url.format(n)} for n in names]},
        )

    account.routes["POST", "/migrations/m1/files"] = urls
    async with open_migration() as migration:
        uploaded = await migration.upload_all([("my a.csv", b"a\n1\n"), ("my b.csv", b"b\n22\n")])
    assert [each.storage_path for each in uploaded] == ["p/my_a.csv", "p/my_b.csv"]
    assert {each["storage_path"]: each["size"] for each in account.files} == {
        "p/my_a.csv": 4,
        "p/my_b.csv": 5,
    }


@pytest.mark.parametrize("kind", ["generate", "execute"])
async def test_12_a_run_may_be_unknown_for_some_seconds(
    kind: str, open_migration: OpenMigration, account: Account
) -> None:
    async with open_migration() as migration:
        if kind == "execute":
            await (await migration.generate()).wait()
        started = account.now
        account.fault = lambda method, path, n: (
            404 if path == f"{RUNS}/run-1" and 0.2 < account.now - started < 25 and method == "GET" else None
        )
        run = await (migration.generate if kind == "generate" else migration.execute)()
        assert await run.wait(stream=False)


async def test_15_unknown_values_are_accepted(open_migration: OpenMigration, account: Account) -> None:
    account.steps["execute"] = [
        (20.0, {"status": "reticulating", "message": 7}),
        (
            90.0,
            {
                "status": "COMPLETED ",
                "report": {"inserted": "3", "perSheet": [{}, None], "coverage": [1]},
                "x": [],
            },
        ),
    ]
    async with open_migration() as migration:
        await (await migration.generate()).wait()
        run = await migration.execute()
        statuses = [state.status async for state in run.updates()]
        report = await run.wait()
    assert "reticulating" in statuses
    assert isinstance(report, Report)
    assert (report.inserted, report.coverage) == (3, [1])


async def test_17_cancel_waits_until_the_run_is_canceled(
    open_migration: OpenMigration, account: Account
) -> None:
    def cancel(body: dict[str, str], query: object) -> Reply:
        assert body == {"status": "cancel_requested"}
        account.timeline = [(account.now + 25, {"status": "canceled"}), *account.timeline[:1]]
        account.timeline.sort(key=lambda each: each[0])
        return Reply(200, {"run_id": "run-1", "status": "running"})

    account.routes["PATCH", f"{RUNS}/run-1"] = cancel
    async with open_migration() as migration:
        run = await migration.generate()
        waiting = asyncio.create_task(run.wait())
        await asyncio.sleep(1)
        assert (await run.cancel()).status == "canceled"
        with pytest.raises(RunCanceled):
            await waiting


async def test_17_a_cancel_of_an_ended_run_returns_its_end(
    open_migration: OpenMigration, account: Account
) -> None:
    async with open_migration() as migration:
        run = await migration.generate()
        await run.wait()
        assert (await run.cancel()).status == "awaiting_approval"


async def test_18_deleting_a_missing_connection_is_not_an_error(open_migration: OpenMigration) -> None:
    async with open_migration() as migration:
        assert await migration.connection.delete("salesforce") is False


async def test_19_a_bare_409_is_a_conflict(open_migration: OpenMigration, account: Account) -> None:
    account.routes["POST", RUNS] = lambda body, query: Reply(409, {"error": "no preview"})
    async with open_migration() as migration:
        with pytest.raises(Conflict, match="no preview"):
            await migration.execute()
    assert account.count("POST", RUNS) == 1


@pytest.mark.parametrize("link", ["/files/x", "files/x", "https://api.test/files/x"])
async def test_20_a_link_may_be_relative_and_is_requested_without_the_key(
    link: str, open_migration: OpenMigration, account: Account, tmp_path: Path
) -> None:
    jobs = "/migrations/m1/exports"
    account.routes["POST", jobs] = lambda body, query: Reply(202, {"job_id": "j1"})
    state = {"job_id": "j1", "status": "completed", "total_rows": 2, "download_url": link}
    account.routes["GET", f"{jobs}/jobs/j1"] = lambda body, query: Reply(200, state)
    content = Reply(200, account.sheets["contacts"].encode())
    account.routes["GET", "/files/x"] = lambda body, query: content
    async with open_migration() as migration:
        job = await migration.export_job("contacts")
        await job.download(tmp_path / "contacts.csv")
    fetched = [headers for url, headers in account.headers if url.endswith("/files/x")]
    assert fetched
    assert KEY not in str(fetched)


@pytest.mark.parametrize("body", [b"<html>proxy</html>", b"", b"{}", b'{"error":{"code":1}}'])
async def test_21_an_error_is_classified_by_its_status(
    body: bytes, open_migration: OpenMigration, account: Account
) -> None:
    account.routes["POST", RUNS] = lambda _, query: Reply(400, body, {"Content-Type": "text/html"})
    async with open_migration() as migration:
        with pytest.raises(BadRequest):
            await migration.generate()


@pytest.mark.parametrize("at", [0.5 * step for step in range(60)])
async def test_a_cancelled_workflow_leaves_no_task(
    at: float, open_migration: OpenMigration, account: Account
) -> None:
    account.steps["generate"] = [(5.0, {"status": "blocked", "questions": [QUESTION]})]
    account.steps["answer"] = [(5.0, {"status": "awaiting_approval"})]

    async def work() -> None:
        async with open_migration() as migration:
            await migration.upload(b"a\n1\n", name="a.csv")
            run = await migration.generate()
            await run.wait()
            await run.answer("a")
            await run.wait()
            await (await migration.execute()).wait()

    task = asyncio.create_task(work())
    await asyncio.sleep(at)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert asyncio.all_tasks() == {asyncio.current_task()}
