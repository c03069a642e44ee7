"""Runs: each operation ends with its own result, and no operation happens twice."""

import asyncio
from functools import partial
from itertools import pairwise

import msgspec
import pytest

from asyncmig import (
    Conflict,
    InvalidInput,
    RunCanceled,
    RunFailed,
    ServerError,
    UnexpectedReply,
    UnknownOutcome,
)
from asyncmig.customers.questions import Custom
from asyncmig.migrations.answers import CredentialsNeeded, Questions
from asyncmig.migrations.operation import StartPoint
from asyncmig.migrations.previews import Preview
from asyncmig.migrations.wire import Report

from .conftest import OpenMigration
from .server import QUESTION, REPORT, Account, Json, Reply

pytestmark = pytest.mark.looptime
BLOCKED = {"status": "blocked", "blocked_reason": "question", "questions": [QUESTION]}


async def test_generate_ends_with_a_preview_and_execute_with_a_report(
    open_migration: OpenMigration, account: Account
) -> None:
    async with open_migration() as migration:
        run = await migration.generate()
        preview = await run.wait()
        assert isinstance(preview, Preview)
        assert preview.sheets[0].rows == (("Ada", ""),)
        assert preview.invalid_cells == 2
        report = await (await migration.execute()).wait()
        assert isinstance(report, Report)
        assert report.inserted == 3
    assert account.starts() == ["generate", "execute"]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("lag", [0.0, 25.0])
@pytest.mark.parametrize("kind", ["update", "clarify", "execute"])
@pytest.mark.parametrize("seconds", [2.0, 60.0])
async def test_the_end_of_an_old_operation_does_not_end_a_new_operation(
    kind: str, lag: float, stream: bool, seconds: float, open_migration: OpenMigration, account: Account
) -> None:
    account.lag = lag
    account.steps[kind] = [(seconds, account.steps[kind][0][1])]
    async with open_migration() as migration:
        await (await migration.generate()).wait(stream=stream)
        started = account.now
        match kind:
            case "update":
                run = await migration.update("Dates are day first")
            case "clarify":
                run = await migration.clarify("Why?")
            case _:
                run = await migration.execute()
        result = await run.wait(stream=stream)
        assert account.now >= started + seconds
        assert isinstance(result, Report if kind == "execute" else Preview)


async def test_an_old_end_under_a_new_run_id_does_not_end_an_execution(
    open_migration: OpenMigration, account: Account
) -> None:
    def start(body: Json, query: object) -> Reply:
        answer = account.start(body)
        return Reply(201, {"run_id": "run-2", "status": "running"}) if body["kind"] == "execute" else answer

    account.lag = 25.0
    account.routes["POST", "/migrations/m1/runs"] = start
    account.routes["GET", "/migrations/m1/runs/run-2"] = lambda body, query: account.read("run-1")
    async with open_migration() as migration:
        await (await migration.generate()).wait()
        assert isinstance(await (await migration.execute()).wait(), Report)


async def test_execute_is_possible_after_a_clarify_that_left_the_run_completed(
    open_migration: OpenMigration, account: Account
) -> None:
    account.lag = 25.0
    async with open_migration() as migration:
        await (await migration.generate()).wait()
        await (await migration.clarify("Why?")).wait()
        report = await (await migration.execute()).wait()
        assert isinstance(report, Report)
        assert report.inserted == 3


async def test_any_number_of_tasks_share_the_polls_and_one_stream(
    open_migration: OpenMigration, account: Account
) -> None:
    async with open_migration() as migration:
        run = await migration.generate()
        results = await asyncio.gather(*(run.wait() for _ in range(50)), migration.run(run.id).wait())
        assert all(isinstance(each, Preview) for each in results)
    reads = [at for at, method, path, _ in account.sent if method == "GET" and path.endswith("/runs/run-1")]
    assert all(later - earlier >= 10.0 for earlier, later in pairwise(reads))
    assert account.count("GET", "/thread/stream") == 1
    assert account.count("GET", "/preview") == 1


@pytest.mark.parametrize("fault", ["lost", "vanished", 500, 502])
@pytest.mark.parametrize("kind", ["generate", "update", "clarify", "execute"])
@pytest.mark.parametrize("seconds", [0.5, 5.0, 300.0])
@pytest.mark.parametrize("hides", [False, True])
async def test_a_start_whose_response_is_lost_happens_once(
    kind: str, fault: object, seconds: float, hides: bool, open_migration: OpenMigration, account: Account
) -> None:
    account.log_hides_preview = hides
    async with open_migration() as migration:
        if kind != "generate":
            await (await migration.generate()).wait()
        account.steps[kind] = [(seconds, account.steps[kind][0][1])]
        number = len(account.runs) + 1
        account.fault = lambda method, path, n: fault if path.endswith("/runs") and n == number else None
        starters = {
            "generate": migration.generate,
            "update": lambda: migration.update("x"),
            "clarify": lambda: migration.clarify("x"),
            "execute": migration.execute,
        }
        result = await (await starters[kind]()).wait()
        assert isinstance(result, Report if kind == "execute" else Preview)
    assert account.starts() == (["generate"] if kind == "generate" else ["generate", kind])


@pytest.mark.parametrize("fault", ["lost", "vanished"])
@pytest.mark.parametrize("kind", ["generate", "execute"])
async def test_under_the_limits_by_class_a_lost_start_happens_once(
    kind: str, fault: str, open_migration: OpenMigration, account: Account
) -> None:
    async with open_migration(limits="by-class") as migration:
        number = 1 if kind == "generate" else 2
        account.fault = lambda method, path, n: fault if path.endswith("/runs") and n == number else None
        await (await migration.generate()).wait()
        report = await (await migration.execute()).wait()
    assert isinstance(report, Report)
    assert account.starts() == ["generate", "execute"]
    # The second `generate` waits for the next hour.
    hours = 2 if (kind, fault) == ("generate", "vanished") else 1
    assert account.now < hours * 3600.0 + 600.0


async def test_a_lost_generate_that_blocked_is_found_by_a_refused_repeat(
    open_migration: OpenMigration, account: Account
) -> None:
    account.steps["generate"] = [(5.0, BLOCKED)]
    account.fault = lambda method, path, n: "lost" if path.endswith("/runs") and n == 1 else None
    async with open_migration() as migration:
        run = await migration.generate()
        assert run.id == "run-1"
        assert isinstance(await run.wait(), Questions)
    assert account.starts() == ["generate"]


async def test_a_start_that_cannot_be_verified_raises_unknown_outcome(
    open_migration: OpenMigration, account: Account
) -> None:
    async with open_migration() as migration:
        await (await migration.generate()).wait()
        started = lambda: account.count("POST", "/runs") == 2  # noqa: E731 - evaluated at each request
        account.fault = lambda method, path, n: (
            "lost" if path.endswith("/runs") else 503 if started() and method == "GET" else None
        )
        with pytest.raises(UnknownOutcome, match="could not be checked"):
            await migration.execute()
    assert account.starts() == ["generate", "execute"]


async def test_another_process_determines_whether_a_start_happened(
    open_migration: OpenMigration, account: Account
) -> None:
    points = []

    async def noted(point: StartPoint) -> None:
        as_in_a_journal = msgspec.json.encode(point)
        points.append(msgspec.json.decode(as_in_a_journal, type=StartPoint))

    async with open_migration() as migration:
        await (await migration.generate()).wait()
        account.fault = lambda method, path, n: "vanished" if path.endswith("/runs") and n >= 2 else None
        task = asyncio.create_task(migration.execute(noted=noted))
        await asyncio.sleep(5)
        task.cancel()
    async with open_migration() as migration:
        assert await migration.recover(points[0]) is None
        account.fault = lambda method, path, n: None
        account.handle("POST", "api.test", "/migrations/m1/runs", {}, b'{"kind":"execute"}')
        found = await migration.recover(points[0])
        assert found is not None
        assert isinstance(await found.wait(), Report)


async def test_a_run_in_progress_is_a_conflict_that_names_it(
    open_migration: OpenMigration, account: Account
) -> None:
    async with open_migration() as migration:
        await migration.generate()
        with pytest.raises(Conflict, match="run-1"):
            await migration.generate()


@pytest.mark.parametrize("fault", [None, "lost", "vanished", 500, 409])
@pytest.mark.parametrize("lag", [0.0, 25.0])
async def test_an_answer_is_sent_once(
    fault: object, lag: float, open_migration: OpenMigration, account: Account
) -> None:
    account.lag = lag
    account.steps["generate"] = [(30.0, BLOCKED)]
    account.fault = lambda method, path, n: fault if path.endswith("/messages") and n == 1 else None
    async with open_migration() as migration:
        run = await migration.generate()
        asked = await run.wait()
        assert isinstance(asked, Questions)
        assert asked.questions[0].prompt == "Which date?"
        await run.answer({"q1": "a"})
        assert isinstance(await run.wait(), Preview)
    bodies = {content for _, _, path, content in account.sent if path.endswith("/messages")}
    assert bodies == {b'{"answers":[{"id":"q1","value":"Day first"}]}'}
    assert account.starts() == ["generate"]


async def test_an_answered_block_is_not_returned_again_if_the_thread_cannot_be_read(
    open_migration: OpenMigration, account: Account
) -> None:
    account.lag = 25.0
    account.steps["generate"] = [(30.0, BLOCKED)]
    async with open_migration() as migration:
        run = await migration.generate()
        await run.wait()
        await run.answer({"q1": "a"})
        account.fault = lambda method, path, n: 500 if path.endswith("/thread") else None
        assert isinstance(await run.wait(), Preview)


async def test_a_late_event_does_not_confirm_a_failed_answer(
    open_migration: OpenMigration, account: Account
) -> None:
    account.steps["generate"] = [(30.0, BLOCKED)]
    account.fault = lambda method, path, n: 500 if path.endswith("/messages") and n == 1 else None
    async with open_migration() as migration:
        run = await migration.generate()
        await run.wait()
        account.add_event(account.now + 5.0, "request_input", [QUESTION])
        await run.answer({"q1": "a"})
        assert isinstance(await run.wait(), Preview)
    assert account.answered == 1


async def test_a_stale_block_is_ignored_once_the_log_lists_the_end(
    open_migration: OpenMigration, account: Account
) -> None:
    account.steps["execute"] = [(10.0, BLOCKED)]
    account.steps["answer"] = [(2.0, {"status": "completed", "report": REPORT})]
    async with open_migration() as migration:
        await (await migration.generate()).wait()
        run = await migration.execute()
        assert isinstance(await run.wait(), Questions)
        await asyncio.sleep(200.0)
        account.lag = 25.0
        await run.answer({"q1": "a"})
        assert isinstance(await run.wait(), Report)


async def test_a_repeated_question_is_marked_as_asked_again(
    open_migration: OpenMigration, account: Account
) -> None:
    account.steps["generate"] = account.steps["answer"] = [(30.0, BLOCKED)]
    async with open_migration() as migration:
        run = await migration.generate()
        first = await run.wait()
        await run.answer("Day first")
        again = await run.wait()
    assert (first.asked_again, again.asked_again) == (False, True)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ({}, "no answer"),
        ({"q2": "x"}, "not a question"),
        ({"q1": "Month first"}, "use Custom"),
        ({"q1": " "}, "empty"),
    ],
)
async def test_wrong_answers_are_refused_before_a_request(
    answers: dict[str, str], reason: str, open_migration: OpenMigration, account: Account
) -> None:
    account.steps["generate"] = [(30.0, BLOCKED)]
    async with open_migration() as migration:
        run = await migration.generate()
        await run.wait()
        with pytest.raises(InvalidInput, match=reason):
            await run.answer(answers)
        await run.answer({"q1": Custom("By month")})
    assert account.count("POST", "/messages") == 1


async def test_credentials_are_submitted_and_never_shown(
    open_migration: OpenMigration, account: Account, caplog: pytest.LogCaptureFixture
) -> None:
    request = {
        "connection_id": "c1",
        "source_key": "salesforce",
        "schema": {
            "oneOf": [
                {"properties": {"user": {}, "password": {"airbyte_secret": True}}},
                {"properties": {"token": {}}},
            ]
        },
    }
    account.steps["generate"] = [
        (30.0, {"status": "blocked", "blocked_reason": "credentials", "credential_request": request})
    ]
    async with open_migration() as migration:
        run = await migration.generate()
        needed = await run.wait()
        assert isinstance(needed, CredentialsNeeded)
        assert needed.request.fields == ("user", "password", "token")
        with pytest.raises(Conflict, match="credentials"):
            await run.answer("x")
        await run.submit_credentials({"token": "s3cr3t-token"}, connection_id="c1")
        assert isinstance(await run.wait(), Preview)
    assert "s3cr3t-token" not in caplog.text


async def test_cancel_ends_a_run_and_does_not_change_an_ended_run(
    open_migration: OpenMigration, account: Account
) -> None:
    async with open_migration() as migration:
        run = await migration.generate()
        waiting = asyncio.create_task(run.wait())
        await asyncio.sleep(5)
        assert (await run.cancel()).status == "canceled"
        with pytest.raises(RunCanceled):
            await waiting
        assert (await run.cancel()).status == "canceled"


async def test_a_failed_execute_says_that_rows_may_have_been_written(
    open_migration: OpenMigration, account: Account
) -> None:
    account.steps["execute"] = [(30.0, {"status": "failed", "error": "worker died"})]
    async with open_migration() as migration:
        await (await migration.generate()).wait()
        with pytest.raises(RunFailed, match="worker died; rows may"):
            await (await migration.execute()).wait()


async def test_a_second_execute_ends_with_its_own_report(
    open_migration: OpenMigration, account: Account
) -> None:
    account.lag = 25.0
    async with open_migration() as migration:
        await (await migration.generate()).wait()
        await (await migration.execute()).wait()
        account.steps["execute"] = [(50.0, {"status": "completed", "report": {**REPORT, "inserted": 9}})]
        report = await (await migration.execute()).wait()
    assert isinstance(report, Report)
    assert report.inserted == 9


@pytest.mark.parametrize("fault", ["lost", "vanished", 503])
@pytest.mark.parametrize("kind", ["update", "execute"])
@pytest.mark.parametrize("merges", [False, True])
async def test_a_second_operation_of_a_kind_also_happens_once(
    kind: str, fault: object, merges: bool, open_migration: OpenMigration, account: Account
) -> None:
    account.log_merges = merges
    async with open_migration() as migration:
        await (await migration.generate()).wait()
        start = migration.execute if kind == "execute" else partial(migration.update, "x")
        await (await start()).wait()
        account.fault = lambda method, path, n: fault if path.endswith("/runs") and n == 3 else None
        await (await start()).wait()
    assert account.starts() == ["generate", kind, kind]


async def test_a_start_that_is_never_processed_is_sent_only_three_times(
    open_migration: OpenMigration, account: Account
) -> None:
    account.fault = lambda method, path, n: 503 if path.endswith("/runs") else None
    async with open_migration() as migration:
        with pytest.raises(ServerError, match="503"):
            await migration.generate()
    assert account.count("POST", "/runs") == 3


async def test_an_answer_is_sent_again_until_the_agent_accepts_it(
    open_migration: OpenMigration, account: Account
) -> None:
    account.steps["generate"] = [(30.0, BLOCKED)]
    account.fault = lambda method, path, n: 409 if path.endswith("/messages") and n < 4 else None
    async with open_migration() as migration:
        run = await migration.generate()
        await run.wait()
        await run.answer("a")
        assert isinstance(await run.wait(), Preview)
    assert account.count("POST", "/messages") == 4


async def test_a_404_for_a_new_migration_is_retried(open_migration: OpenMigration, account: Account) -> None:
    async with open_migration() as migration:
        begun = account.now
        account.fault = lambda method, path, n: 404 if account.now < begun + 20 else None
        await migration.upload(b"a\n1\n", name="a.csv")
    async with open_migration() as migration:
        later = account.now
        account.fault = lambda method, path, n: 404 if account.now < later + 20 else None
        assert isinstance(await (await migration.generate()).wait(), Preview)


@pytest.mark.parametrize(("sources", "hint"), [(200, "has no plan"), (403, "a proxy")])
async def test_a_403_says_whether_reads_still_work(
    sources: int, hint: str, open_migration: OpenMigration, account: Account
) -> None:
    account.routes["GET", "/sources"] = lambda body, query: Reply(sources, {"sources": []})
    async with open_migration() as migration:
        account.fault = lambda method, path, n: 403 if path.endswith("/runs") else None
        with pytest.raises(UnexpectedReply, match=hint):
            await migration.generate()


async def test_events_of_others_during_a_refused_start_do_not_confirm_it(
    open_migration: OpenMigration, account: Account
) -> None:
    async with open_migration() as migration:
        await (await migration.generate()).wait()

        def busy(method: str, path: str, n: int) -> object:
            if not path.endswith("/runs") or n > 2:
                return None
            account.add_event(account.now + 0.2, "message", {"text": "somebody else wrote this"})
            return 429

        account.fault = busy
        assert isinstance(await (await migration.execute()).wait(), Report)
    assert account.starts() == ["generate", "execute"]


async def test_a_short_second_execute_does_not_end_with_the_report_of_the_first(
    open_migration: OpenMigration, account: Account
) -> None:
    async with open_migration() as migration:
        await (await migration.generate()).wait()
        await (await migration.execute()).wait()
        account.lag = 25.0
        await asyncio.sleep(60)
        account.steps["execute"] = [(5.0, {"status": "completed", "report": {**REPORT, "inserted": 9}})]
        report = await (await migration.execute()).wait()
    assert isinstance(report, Report)
    assert report.inserted == 9


@pytest.mark.parametrize("sends_retry_after", [True, False])
async def test_a_cancel_over_an_hourly_limit_waits_for_the_limit(
    sends_retry_after: bool, open_migration: OpenMigration, account: Account
) -> None:
    refused: list[float] = []

    def cancel(body: object, query: object) -> Reply:
        left = 3600.0 - (account.now - refused[-1] if refused else 0.0)
        if not refused or left > 0.0:  # a refused request counts
            refused.append(account.now)
            return Reply(429, {"error": "too many"}, {"Retry-After": "3600"} if sends_retry_after else {})
        account.set_state(account.now, {"status": "canceled"})
        return account.read("run-1")

    account.steps["generate"] = [(1e9, {"status": "awaiting_approval"})]
    account.routes["PATCH", "/migrations/m1/runs/run-1"] = cancel
    async with open_migration("by-class") as migration, asyncio.timeout(30_000.0):
        run = await migration.generate()
        assert (await run.cancel()).status == "canceled"
        assert (await run.read()).status == "canceled"
    assert len(refused) <= (1 if sends_retry_after else 13)
