"""The examples in the docstrings of this generation run unchanged."""

from pathlib import Path

import documents
import pytest

import asyncmig
from asyncmig import Custom, Session, migrations

from .conftest import KEY
from .server import BASE_URL, QUESTION, Account, Reply

pytestmark = pytest.mark.looptime
EXAMPLES = [
    each
    for each in documents.docstrings()
    if each.blocks("python") and each.name.startswith("asyncmig.migrations")
]


@pytest.mark.parametrize("text", EXAMPLES, ids=str)
async def test_the_python_blocks_run(
    text: documents.Document, account: Account, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("contacts.csv", "deals.csv"):
        Path(name).write_text("Name\nAda\n", encoding="utf-8")
    account.template = {"slug": "contacts", "name": "Contacts", "columns": [{"name": "Email"}]}
    account.routes["POST", "/migrations/m1/exports"] = lambda body, query: Reply(202, {"job_id": "j1"})
    account.routes["GET", "/migrations/m1/exports/jobs/j1"] = lambda body, query: Reply(
        200, {"job_id": "j1", "status": "completed", "download_url": "https://files.test/x"}
    )
    account.routes["GET", "/x"] = lambda body, query: Reply(200, b"Name\r\nAda\r\n")
    names: dict[str, object] = {name: getattr(migrations, name) for name in migrations.__all__}
    names |= {"asyncmig": asyncmig, "Custom": Custom, "choose": lambda question: question.options[0].id}
    is_whole = text.name == "asyncmig.migrations"
    if is_whole or ".runs." in text.name:
        questions = [QUESTION] if is_whole else [{**QUESTION, "id": each} for each in ("q1", "q2")]
        account.steps["generate"] = [(30.0, {"status": "blocked", "questions": questions})]
    async with Session(KEY, BASE_URL, transport=account, limits="per-endpoint") as session:
        names |= {"session": session}
        if not is_whole and ".catalog." not in text.name:
            migration = await session.migrations.create(name="Acme", external_id="acme")
            run = await migration.generate()
            await run.wait()
            names |= {"migration": migration, "run": run, "report": None}
        await documents.run_blocks(text.name, text.blocks("python"), names)
