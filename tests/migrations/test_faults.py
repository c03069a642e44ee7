"""Each fault occurs once in each request of a migration: the migration completes, and nothing happens twice."""

from pathlib import Path

import pytest

from asyncmig import Session
from asyncmig.migrations import Preview, Questions, Report

from .conftest import KEY
from .server import BASE_URL, QUESTION, Account

pytestmark = pytest.mark.looptime
REQUESTS = [
    ("POST", "/migrations", 1),
    ("GET", "/migrations/m1/files", 1),
    ("POST", "/migrations/m1/files", 1),
    ("PUT", ".csv", 1),
    ("POST", "/migrations/m1/runs", 1),
    ("POST", "/migrations/m1/runs", 2),
    ("GET", "/migrations/m1/runs/run-1", 1),
    ("GET", "/migrations/m1/runs/run-1", 3),
    ("POST", "/migrations/m1/runs/run-1/messages", 1),
    ("GET", "/migrations/m1/preview", 1),
    ("GET", "/migrations/m1/thread", 1),
    ("GET", "/migrations/m1/thread", 2),
    ("GET", "/migrations/m1/thread/stream", 1),
    ("GET", "/migrations/m1/log", 1),
    ("GET", "/migrations/m1/exports/contacts.csv", 1),
]
FAULTS = ["refused", "vanished", "lost", "cut", "page", 429, 500, 502, 503]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(("method", "ending", "number"), REQUESTS)
async def test_a_migration_completes_and_nothing_happens_twice(
    method: str, ending: str, number: int, fault: object, account: Account, tmp_path: Path
) -> None:
    met = []

    def pick(m: str, path: str, n: int) -> object:
        if m != method or not path.endswith(ending) or (len(path) != len(ending) and ending.startswith("/")):
            return None
        met.append(path)
        return fault if len(met) == number else None

    account.fault = pick
    account.steps["generate"] = [(60.0, {"status": "blocked", "questions": [QUESTION]})]
    async with Session(KEY, BASE_URL, transport=account, limits="per-endpoint") as session:
        migration = await session.migrations.create(name="Acme", source="HubSpot", external_id="acme")
        await migration.upload_all([("contacts.csv", b"a\n1\n"), ("deals.csv", b"b\n2\n")])
        run = await migration.generate()
        assert isinstance(await run.wait(), Questions)
        await run.answer("a")
        assert isinstance(await run.wait(), Preview)
        report = await (await migration.execute()).wait()
        assert isinstance(report, Report)
        files = await migration.download(to=tmp_path, report=report)
    assert [(file.rows, file.flagged, file.is_verified) for file in files] == [
        (2, "none", True),
        (1, "none", True),
    ]
    assert len(met) >= number
    assert account.starts() == ["generate", "execute"]
    assert account.answered == 1
    assert sorted(each["name"] for each in account.files) == ["contacts.csv", "deals.csv"]
