"""Regression tests: errors that a hostile server once caused in the client."""

import asyncio
from pathlib import Path

import msgspec
import pytest

from asyncmig import Conflict, InvalidInput, Session, UnknownOutcome
from asyncmig.migrations import Preview, Questions, Report, StartPoint
from asyncmig.migrations.wire import RunState

from .conftest import KEY, OpenMigration
from .server import BASE_URL, QUESTION, REPORT, SHEETS, Account, Json, Reply

pytestmark = pytest.mark.looptime
RUNS = "/migrations/m1/runs"
SECRET = "s3cr3t-answer"


def lost(number: int, fault: str = "vanished") -> object:
    return lambda method, path, n: (
        fault if method == "POST" and path.endswith("/runs") and n == number else None
    )


@pytest.mark.parametrize("kind", ["message", "preview", "completed"])
async def test_a_late_event_of_the_previous_operation_does_not_confirm_a_start(
    kind: str, open_migration: OpenMigration, account: Account
) -> None:
    async with open_migration() as migration:
        await (await migration.generate()).wait()
        account.add_event(account.now + 2.0, kind, {"text": "late"})
        account.fault = lost(2)  # type: ignore[assignment]
        report = await (await migration.execute()).wait()
    assert isinstance(report, Report)
    assert account.starts() == ["generate", "execute"]


@pytest.mark.parametrize("kind", ["message", "preview", "completed"])
async def test_an_execution_is_not_repeated_if_no_log_shows_the_origin_of_an_event(
    kind: str, open_migration: OpenMigration, account: Account
) -> None:
    account.log_hides_preview = True
    async with open_migration() as migration:
        await (await migration.generate()).wait()
        account.add_event(account.now + 2.0, kind, {"text": "late, or of an execution with a run of its own"})
        account.fault = lost(2)  # type: ignore[assignment]
        with pytest.raises(UnknownOutcome):
            await migration.execute()
    assert account.starts() == ["generate"]


async def test_a_late_event_does_not_end_an_update_early(
    open_migration: OpenMigration, account: Account
) -> None:
    account.lag = 25.0
    account.steps["update"] = [(100.0, {"status": "awaiting_approval"})]
    async with open_migration() as migration:
        await (await migration.generate()).wait()
        account.add_event(account.now + 3.0, "preview")
        begun = account.now
        await (await migration.update("Dates are day first")).wait()
        assert account.now >= begun + 100.0


async def test_a_late_event_does_not_confirm_a_lost_second_generate(
    open_migration: OpenMigration, account: Account
) -> None:
    async with open_migration() as migration:
        await (await migration.generate()).wait()
        account.add_event(account.now + 2.0, "message", "late")
        account.fault = lost(2)  # type: ignore[assignment]
        assert isinstance(await (await migration.generate()).wait(), Preview)
    assert account.starts() == ["generate", "generate"]


async def test_an_execution_with_a_run_of_its_own_is_not_compared_with_the_old_run(
    open_migration: OpenMigration, account: Account
) -> None:
    async with open_migration() as migration:
        await (await migration.generate()).wait()
        await (await migration.execute()).wait()
        await (await migration.generate()).wait()
        account.run_id = "run-2"
        account.steps["execute"] = [(0.1, {"status": "completed", "report": REPORT})]
        account.add_event = lambda *_: None  # type: ignore[method-assign, assignment] - the thread has no events
        run = await migration.execute()
        begun = account.now
        assert isinstance(await run.wait(), Report)
        assert account.now < begun + 60.0  # 30 s in which a read may return the old run, and one poll


def lose_start_to_another_run(account: Account, *, created_at: str, run_id: str = "run-2") -> None:
    """Lose the second start, and then report that a run of another client is in progress."""

    def start(body: Json, query: object) -> Reply:
        return Reply(409, {"error": "a run is in progress", "run_id": run_id})

    def fault(method: str, path: str, n: int) -> object:
        if method == "POST" and path.endswith("/runs") and n == 2:
            account.routes["POST", RUNS] = start
            return "vanished"
        return None

    account.fault = fault
    state = {"run_id": run_id, "status": "running", "created_at": created_at}
    account.routes["GET", f"{RUNS}/{run_id}"] = lambda body, query: Reply(200, state)


async def test_a_refused_repeat_does_not_adopt_a_run_that_is_older_than_the_start(
    open_migration: OpenMigration, account: Account
) -> None:
    account.routes["GET", "/migrations/m1/log"] = lambda body, query: Reply(
        200, {"generated_at": "2026-01-01T12:00:00Z", "runs": []}
    )
    async with open_migration() as migration:
        await (await migration.generate()).wait()
        lose_start_to_another_run(account, created_at="2026-01-01T11:00:00Z")
        with pytest.raises(Conflict, match="run-2"):
            await migration.generate()


async def test_a_refused_repeat_of_generate_does_not_adopt_a_run_that_was_known_before(
    open_migration: OpenMigration, account: Account
) -> None:
    async with open_migration() as migration:
        await (await migration.generate()).wait()
        lose_start_to_another_run(account, created_at="2027-01-01T11:00:00Z", run_id="run-1")
        with pytest.raises(Conflict, match="run-1"):
            await migration.generate()


async def test_a_run_without_an_id_is_never_requested(
    open_migration: OpenMigration, account: Account
) -> None:
    account.log_hides_preview = True
    account.steps["generate"] = [(0.1, {"status": "awaiting_approval"})]
    async with open_migration() as migration:
        account.fault = lost(1, "lost")  # type: ignore[assignment]
        run = await migration.generate()
        assert (run.id, isinstance(await run.wait(), Preview)) == ("", True)
        for step in (run.read, run.cancel, lambda: run.answer("x"), lambda: anext(run.updates())):
            with pytest.raises(InvalidInput, match="no known id"):
                await step()  # type: ignore[operator]
    assert not [path for _, _, path, _ in account.sent if path.endswith("/runs/")]


async def test_a_lost_put_is_found_by_name_and_size(open_migration: OpenMigration, account: Account) -> None:
    stored = account.storage

    def storage(method: str, path: str, content: bytes) -> Reply:
        reply = stored(method, path, content)
        account.files[-1]["storage_path"] = f"moved/{len(account.files)}"
        return reply

    account.storage = storage  # type: ignore[method-assign]
    account.fault = lambda method, path, n: "lost" if method == "PUT" and "0-1-a.csv" in path else None
    async with open_migration() as migration:
        await migration.upload_all([("a.csv", b"a\n1\n"), ("b.csv", b"b\n1\n")])
    assert sorted(each["name"] for each in account.files) == ["a.csv", "b.csv"]


def test_no_repr_shows_the_answers_or_the_message_of_a_run() -> None:
    state = RunState(run_id="run-1", status="blocked", answers={"q1": SECRET})
    point = StartPoint(kind="execute", after=3, state=state, message=SECRET)
    assert SECRET not in f"{state!r} {point!r}"


async def test_a_start_point_has_no_answers(open_migration: OpenMigration, account: Account) -> None:
    points: list[StartPoint] = []

    async def noted(point: StartPoint) -> None:
        points.append(point)

    account.steps["generate"] = [(60.0, {"status": "awaiting_approval", "answers": {"q1": SECRET}})]
    async with open_migration() as migration:
        await (await migration.generate()).wait()
        await migration.execute(noted=noted)
    assert SECRET.encode() not in msgspec.json.encode(points)


async def test_a_direct_download_replaces_an_export_job_that_never_starts(
    open_migration: OpenMigration, account: Account, tmp_path: Path
) -> None:
    account.routes["POST", "/migrations/m1/exports"] = lambda body, query: Reply(409, {"error": "running"})
    path = "/migrations/m1/exports/contacts.csv"
    reply = Reply(200, SHEETS["contacts"].encode(), {"Content-Type": "text/csv"})

    def contacts(body: Json, query: object) -> Reply:
        return (
            Reply(409, {"error": "an export is running"})
            if account.count("GET", "contacts.csv") == 1
            else reply
        )

    account.routes["GET", path] = contacts
    async with open_migration() as migration:
        begun = account.now
        files = await migration.download(to=tmp_path, sheets=["contacts"])
        assert 300.0 < account.now - begun < 620.0
    assert files[0].rows == 2


async def test_a_sheet_that_is_refused_directly_and_as_a_job_raises_conflict(
    open_migration: OpenMigration, account: Account, tmp_path: Path
) -> None:
    for method, path in (("POST", "exports"), ("GET", "exports/contacts.csv")):
        account.routes[method, f"/migrations/m1/{path}"] = lambda body, query: Reply(409, {"error": "no"})
    async with open_migration() as migration:
        with pytest.raises(Conflict):
            await migration.download(to=tmp_path, sheets=["contacts"])


async def test_a_slow_iteration_yields_the_events_that_it_missed(
    open_migration: OpenMigration, account: Account
) -> None:
    account.stream_ends = False
    async with open_migration() as migration:
        await migration.generate()
        shared = migration._shared.stream("user")
        seen: list[int] = []
        events = shared.events(after=-1)
        first = asyncio.create_task(anext(events))
        await asyncio.sleep(2)
        for n in range(3000):
            account.add_event(account.now + 0.001 * n, "message", str(n))
        await asyncio.sleep(30)
        event = await first
        while True:
            assert not isinstance(event, Exception)
            seen.append(getattr(event, "sequence", 0))
            if len(seen) == 3001:
                break
            event = await anext(events)
        await events.aclose()
    assert seen == sorted(set(seen))


@pytest.mark.parametrize("host", ["storage.example", "10.0.0.1"])
async def test_an_unencrypted_link_from_a_local_server_to_another_host_is_refused(
    host: str, account: Account
) -> None:
    url = "http://127.0.0.1:1/api/v1"

    def files(body: Json, query: object) -> Reply:
        return Reply(
            201, {"files": [{"name": "a.csv", "storage_path": "p", "signed_url": f"http://{host}/p"}]}
        )

    account.routes["POST", "/migrations/m1/files"] = files
    transport = _Renamed(account)
    async with Session(KEY, url, transport=transport, limits="per-endpoint") as session:
        migration = await session.migrations.create(name="Acme", external_id="acme")
        with pytest.raises(InvalidInput, match="not https"):
            await migration.upload(b"a\n1\n", name="a.csv")
    assert not [each for each, _ in account.headers if host in each]


class _Renamed:
    """A transport to the account at another base URL."""

    def __init__(self, account: Account) -> None:
        self._account = account

    def exchange(self, method: str, url: str, **options: object) -> object:
        renamed = url.replace("http://127.0.0.1:1/api/v1", BASE_URL)
        return self._account.exchange(method, renamed, **options)  # type: ignore[arg-type]

    async def aclose(self) -> None:
        pass


async def test_log_waits_as_long_as_the_server_asks(open_migration: OpenMigration, account: Account) -> None:
    async with open_migration() as migration:
        run = await migration.generate()
        with pytest.raises(Conflict):
            await migration.log()
        begun = account.now
        assert (await migration.log(wait=True)).runs
        assert 60.0 <= account.now - begun <= 91.0
        await run.wait()
    assert account.count("GET", "/log") <= 6


async def test_polls_are_less_frequent_while_the_stream_is_open(
    open_migration: OpenMigration, account: Account
) -> None:
    account.steps["generate"] = [(600.0, {"status": "awaiting_approval"})]
    async with open_migration() as migration:
        await (await migration.generate()).wait()
        assert account.now < 640.0
    assert account.count("GET", f"{RUNS}/run-1") <= 13


async def test_polls_are_not_less_frequent_without_a_stream(
    open_migration: OpenMigration, account: Account
) -> None:
    account.steps["generate"] = [(600.0, {"status": "awaiting_approval"})]
    account.routes["GET", "/migrations/m1/thread/stream"] = lambda body, query: Reply(404)
    async with open_migration() as migration:
        await (await migration.generate()).wait(stream=False)
    assert account.count("GET", f"{RUNS}/run-1") >= 40


async def test_a_download_can_be_limited_to_rows_with_invalid_cells(
    open_migration: OpenMigration, account: Account, tmp_path: Path
) -> None:
    account.sheets["contacts"] = "Name\r\nAda\r\nBAD\r\n"

    def contacts(body: Json, query: Json) -> Reply:
        assert query["filter"] == "invalid"
        return Reply(200, b"Name\r\nBAD\r\n", {"Content-Type": "text/csv", "X-Total-Records": "1"})

    account.routes["GET", "/migrations/m1/exports/contacts.csv"] = contacts  # type: ignore[assignment]
    report = Report.__struct_config__ and msgspec.convert({**REPORT, "invalidCellCount": 1}, Report)
    async with open_migration() as migration:
        files = await migration.download(to=tmp_path, sheets=["contacts"], filter="invalid", report=report)
    assert (files[0].rows, files[0].flagged) == (1, "included")


async def test_a_start_that_another_process_may_have_sent_is_looked_up(
    open_migration: OpenMigration, account: Account
) -> None:
    points: list[StartPoint] = []

    async def noted(point: StartPoint) -> None:
        points.append(point)

    async with open_migration() as migration:
        await migration.generate(noted=noted)
    async with open_migration() as migration:
        assert isinstance(await (await migration.generate(since=points[0])).wait(), Preview)
    assert account.starts() == ["generate"]
    async with open_migration() as migration:
        await migration.execute(noted=noted)
        await asyncio.sleep(100)
    async with open_migration() as migration:
        assert isinstance(await (await migration.execute(since=points[1])).wait(), Report)
    assert account.starts() == ["generate", "execute"]


async def test_a_blocked_start_of_another_process_is_found_by_a_refused_repeat(
    open_migration: OpenMigration, account: Account
) -> None:
    points: list[StartPoint] = []

    async def noted(point: StartPoint) -> None:
        points.append(point)

    account.steps["generate"] = [(5.0, {"status": "blocked", "questions": [QUESTION]})]
    async with open_migration() as migration:
        await migration.generate(noted=noted)
        await asyncio.sleep(60)
    async with open_migration() as migration:
        assert isinstance(await (await migration.generate(since=points[0])).wait(), Questions)
    assert account.starts() == ["generate"]


async def test_a_failed_export_job_is_started_once_more(
    open_migration: OpenMigration, account: Account, tmp_path: Path
) -> None:
    jobs = "/migrations/m1/exports"
    account.routes["GET", f"{jobs}/contacts.csv"] = lambda body, query: Reply(409, {"error": "compressed"})
    account.routes["POST", jobs] = lambda body, query: Reply(
        202, {"job_id": f"j{account.count('POST', '/exports')}"}
    )
    account.routes["GET", f"{jobs}/jobs/j1"] = lambda body, query: Reply(
        200, {"status": "failed", "error": "no"}
    )
    link = {"status": "completed", "total_rows": 2, "download_url": "/files/x"}
    account.routes["GET", f"{jobs}/jobs/j2"] = lambda body, query: Reply(200, link)
    account.routes["GET", "/files/x"] = lambda body, query: Reply(200, account.sheets["contacts"].encode())
    async with open_migration() as migration:
        files = await migration.download(to=tmp_path, sheets=["contacts"])
    assert (files[0].rows, account.count("POST", "/exports")) == (2, 2)
