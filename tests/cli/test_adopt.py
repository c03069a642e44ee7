"""`asyncmig adopt` links a customer to a company whose create request had no answer."""

import asyncio
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from asyncmig import InvalidInput, Journal
from asyncmig.cli.app import app

COMPANY = "0a6ff0c5-1b7e-4e0e-9d2a-3f1c5b7d9e11"


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    """Write an empty journal."""
    path = tmp_path / "fleet.db"

    async def make() -> None:
        async with Journal(path):
            pass

    asyncio.run(make())
    return path


def states(path: Path) -> dict[str, bytes]:
    async def read() -> dict[str, bytes]:
        async with Journal(path, read_only=True) as journal:
            return await journal.states()

    return asyncio.run(read())


def adopt(journal: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["adopt", "--journal", str(journal), "--", *arguments])


def test_adopt_records_the_company(journal: Path) -> None:
    ended = adopt(journal, "acme-001", "c-1")
    assert ended.exit_code == 0
    assert "Run again to continue" in ended.stderr
    assert b'"company_id":"c-1"' in states(journal)["acme-001"]


def test_a_company_of_another_customer_is_refused(journal: Path) -> None:
    assert adopt(journal, "acme-001", COMPANY).exit_code == 0
    ended = adopt(journal, "bolt-002", COMPANY)
    assert isinstance(ended.exception, InvalidInput)
    assert "is the company of another customer: acme-001" in str(ended.exception)
    assert b'"company_id"' not in states(journal).get("bolt-002", b"")
    assert adopt(journal, "acme-001", COMPANY).exit_code == 0  # the same customer again


@pytest.mark.parametrize(
    "given",
    [
        f" {COMPANY}\n",
        f"https://app.vern.so/companies/{COMPANY}",
        f"https://app.vern.so/acme/companies/{COMPANY}/imports/7?tab=a#top",
        f"https://app.vern.so/companies/{COMPANY}/",
        f"https://app.vern.so/#/companies/{COMPANY}",
        f"  http://localhost:3000/companies/{COMPANY}?x=1 ",
    ],
)
def test_adopt_accepts_a_pasted_id_or_url(journal: Path, given: str) -> None:
    ended = adopt(journal, " acme-001 ", given)
    assert ended.exit_code == 0, ended.output
    assert f"acme-001 is now linked to company {COMPANY}" in ended.stderr
    assert f'"company_id":"{COMPANY}"'.encode() in states(journal)["acme-001"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["a b", "c-1"],
        ["a/b", "c-1"],
        ["", "c-1"],
        ["x" * 256, "c-1"],
        *(
            ["acme", company]
            for company in (
                *(" ", "..", ".", "a/b", "a/b?c", "a?c", "a#c", "a%2fb", "a b", "a\tb", "a\x00b", "a\\b"),
                *("a\u200bb", "a\u202eb", "a\x9bb", "\udcff", "x" * 256),
                *(
                    "https://app.vern.so/companies/",
                    "https://app.vern.so/companies/..",
                    "https://app.vern.so",
                ),
                *("https://app.vern.so/sources/s-1", "https://app.vern.so/companies/a%2Fb", "http://["),
            )
        ),
    ],
    ids=ascii,
)
def test_invalid_ids_are_refused(journal: Path, arguments: list[str]) -> None:
    assert adopt(journal, *arguments).exit_code != 0
    assert states(journal) == {}


def test_an_error_does_not_contain_the_given_url(journal: Path) -> None:
    ended = adopt(journal, "acme", "https://user:hunter2@app.vern.so/login?token=hunter2")
    assert ended.exit_code != 0
    assert "hunter2" not in f"{ended.output}{ended.exception}"


def test_adopt_does_not_create_a_missing_journal(tmp_path: Path) -> None:
    ended = adopt(tmp_path / "typo.db", "acme-001", "c-1")
    assert ended.exit_code != 0
    assert "there is no such file" in str(ended.exception)
    assert list(tmp_path.iterdir()) == []
