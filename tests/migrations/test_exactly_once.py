"""A start, an answer and an upload are never repeated while the first may have been processed."""

import asyncio
from collections.abc import Mapping

import pytest

from asyncmig import ServerError, UnknownOutcome
from asyncmig.migrations import Preview, Questions, Report

from .conftest import OpenMigration
from .server import QUESTION, Account, Json, Reply

pytestmark = pytest.mark.looptime
OTHER = {**QUESTION, "question": "Which currency?"}


def blocked(question: Json) -> Json:
    return {"status": "blocked", "blocked_reason": "question", "questions": [question]}


async def generate_in_another_session(open_migration: OpenMigration) -> None:
    """Generate in a session of its own, so that the next session knows no run."""
    async with open_migration() as migration:
        await (await migration.generate()).wait()


async def test_a_lost_execution_is_found_by_its_outcome_in_the_log(
    open_migration: OpenMigration, account: Account
) -> None:
    account.log_merges = True
    account.steps["execute"] = [(0.1, account.steps["execute"][0][1])]
    await generate_in_another_session(open_migration)
    account.add_event = lambda *_: None  # type: ignore[method-assign, assignment] - the thread has no events
    account.fault = lambda method, path, n: "lost" if path.endswith("/runs") and n == 2 else None
    async with open_migration() as migration:
        assert (await migration.execute()).id == "run-1"
    assert account.starts() == ["generate", "execute"]


async def test_an_execution_is_not_repeated_while_nothing_can_be_read(
    open_migration: OpenMigration, account: Account
) -> None:
    account.steps["execute"] = [(0.1, account.steps["execute"][0][1])]

    def fault(method: str, path: str, n: int) -> object:
        if account.count("POST", "/runs") < 2 or path.endswith("/preview"):
            return None
        if path.endswith("/runs"):
            account.run_id = "run-2"
            return "lost" if n == 2 else None
        return 503 if path.endswith("/log") else 404

    account.fault = fault
    async with open_migration() as migration:
        await (await migration.generate()).wait()
        with pytest.raises(UnknownOutcome):
            await migration.execute()
    assert account.starts() == ["generate", "execute"]


async def test_a_lost_execution_that_blocked_is_not_repeated(
    open_migration: OpenMigration, account: Account
) -> None:
    await generate_in_another_session(open_migration)
    account.steps["execute"] = [(0.1, blocked(QUESTION))]

    def fault(method: str, path: str, n: int) -> object:
        if path.endswith("/runs") and n == 3:  # a person has just answered in the provider's app
            account.set_state(account.now, {"status": "completed"})
        return "lost" if path.endswith("/runs") and n == 2 else None

    account.fault = fault
    async with open_migration() as migration:
        with pytest.raises(UnknownOutcome):
            await migration.execute()
    assert account.starts() == ["generate", "execute"]


async def test_a_start_that_is_accepted_without_an_id_is_looked_up(
    open_migration: OpenMigration, account: Account
) -> None:
    def start(body: Json, query: object) -> Reply:
        account.start(body)
        return Reply(201, {"status": "queued", "run_id": None})

    account.routes["POST", "/migrations/m1/runs"] = start
    async with open_migration() as migration:
        run = await migration.generate()
        assert run.id == "run-1"
        assert isinstance(await run.wait(), Preview)
    assert account.starts() == ["generate"]


async def test_a_lost_start_is_found_if_the_thread_cannot_be_read(
    open_migration: OpenMigration, account: Account
) -> None:
    def fault(method: str, path: str, n: int) -> object:
        if path.endswith("/thread"):
            return 404
        return "lost" if path.endswith("/runs") and n == 1 else None

    async with open_migration() as migration:
        await asyncio.sleep(60)
        account.fault = fault
        assert (await migration.generate()).id == "run-1"
    assert account.starts() == ["generate"]


async def test_a_lost_answer_is_not_sent_to_the_next_question(
    open_migration: OpenMigration, account: Account
) -> None:
    account.lag = 25.0
    account.steps["generate"] = [(30.0, blocked(QUESTION))]
    account.steps["answer"] = [(3.0, blocked(OTHER))]
    account.fault = lambda method, path, n: "lost" if path.endswith("/messages") and n == 1 else None
    async with open_migration() as migration:
        run = await migration.generate()
        await run.wait()
        await run.answer({"q1": "a"})
        asked = await run.wait()
        assert isinstance(asked, Questions)
        assert asked.questions[0].prompt == "Which currency?"
    assert account.answered == 1


async def test_a_file_that_may_have_arrived_is_not_sent_again(
    open_migration: OpenMigration, account: Account
) -> None:
    def fault(method: str, path: str, n: int) -> object:
        if method == "PUT" and not account.files:
            return "lost"
        return 500 if path.endswith("/files") and method == "GET" and account.files else None

    account.fault = fault
    async with open_migration() as migration:
        with pytest.raises(ServerError):
            await migration.upload(b"a\n1\n", name="a.csv")
    assert len(account.files) == 1


async def test_a_lost_execution_whose_preview_is_gone_is_found_once_the_log_is_settled(
    open_migration: OpenMigration, account: Account
) -> None:
    def start(body: Json, query: object) -> Reply:
        account.run_id = "run-2" if body["kind"] == "execute" else "run-1"
        return account.start(body)

    def log(body: object, query: Mapping[str, str]) -> Reply:
        reply = account.log(query)
        is_settled = reply.status == 200
        return reply if is_settled else Reply(409, {"error": "not settled", "status": "awaiting_approval"})

    account.log_hides_preview = True
    account.steps["execute"] = [(40.0, account.steps["execute"][0][1])]
    account.routes["POST", "/migrations/m1/runs"] = start
    account.routes["GET", "/migrations/m1/log"] = log
    async with open_migration() as migration:
        await (await migration.generate()).wait()
        ended = Reply(200, {"run_id": "run-1", "status": "awaiting_approval"})
        account.routes["GET", "/migrations/m1/runs/run-1"] = lambda body, query: ended
        account.routes["GET", "/migrations/m1/preview"] = lambda body, query: Reply(404, {"error": "gone"})
        account.fault = lambda method, path, n: "lost" if method == "POST" and path.endswith("runs") else None
        assert isinstance(await (await migration.execute()).wait(), Report)
    assert account.starts() == ["generate", "execute"]


async def test_a_lost_execution_with_a_separate_run_is_found_after_the_run_of_its_preview(
    open_migration: OpenMigration, account: Account
) -> None:
    def start(body: Json, query: object) -> Reply:
        account.run_id = "run-2" if body["kind"] == "execute" else "run-1"
        return account.start(body)

    account.log_hides_preview = True
    account.routes["POST", "/migrations/m1/runs"] = start
    async with open_migration() as migration:
        await (await migration.generate()).wait()
        ended = Reply(200, {"run_id": "run-1", "status": "awaiting_approval"})
        account.routes["GET", "/migrations/m1/runs/run-1"] = lambda body, query: ended
        account.fault = lambda method, path, n: "lost" if method == "POST" and path.endswith("runs") else None
        assert isinstance(await (await migration.execute()).wait(), Report)
    assert account.starts() == ["generate", "execute"]
