"""`asyncmig journal`: the commands backup, compact and forget."""

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from servers import database

from .conftest import Cli, Simulator

GOOD = b"Email,Name\na@x.de,A\nb@x.de,B\n"
ASKS = b"Email,Name\na@x.de,A\na@x.de,A\n"


@pytest.fixture(params=["file", "database"])
def journal(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[str, ...]]:
    """Return the options that select a new journal."""
    if request.param == "file":
        yield ()
        return
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    with database(request.getfixturevalue("database_url")) as url:
        monkeypatch.setenv("TEST_DATABASE", url)
        yield ("--journal", "TEST_DATABASE")


def test_forget_removes_delivered_customers_and_others_only_with_force(
    cli: Cli, customers: Callable[..., Path], simulator: Simulator, journal: tuple[str, ...]
) -> None:
    connection = ("--speed", 60, "--base-url", simulator.base_url)
    assert cli("run", customers(acme=GOOD, bolt=ASKS, cafe=GOOD), *journal, *connection).code == 5

    def known() -> set[str]:
        return {line.split('"external_id": "')[1].split('"')[0] for line in status().splitlines()}

    def status() -> str:
        return cli("status", "--json", *journal).out

    assert cli("journal", "forget", *journal).code == 2
    assert "dora" in cli("journal", "forget", "acme", "dora", *journal).err
    refused = cli("journal", "forget", "acme", "bolt", *journal)
    assert (refused.code, "bolt" in refused.err, "parked" in refused.err) == (2, True, True)
    assert known() == {"acme", "bolt", "cafe"}
    assert "0 customers" in cli("journal", "forget", "--older-than", 1, *journal).err
    assert "1 customer forgotten: acme" in cli("journal", "forget", "acme", *journal).err
    assert known() == {"bolt", "cafe"}
    assert "1 customer forgotten: cafe" in cli("journal", "forget", "--older-than", 0, *journal).err
    assert cli("journal", "forget", "bolt", "--force", *journal).code == 0
    assert status() == ""


def test_backup_writes_a_usable_copy_and_compact_shrinks_the_file(
    cli: Cli, customers: Callable[..., Path], simulator: Simulator, tmp_path: Path
) -> None:
    connection = ("--speed", 60, "--base-url", simulator.base_url)
    assert cli("journal", "backup", "copy.db").code == cli("journal", "compact").code == 2
    assert not (tmp_path / "fleet.db").exists()
    assert cli("run", customers(acme=GOOD), *connection).code == 0
    saved = cli("journal", "backup", "copy.db")
    assert (saved.code, "copy.db" in saved.err) == (0, True)
    assert cli("journal", "backup", "copy.db").code == 2
    sent = simulator.count()
    assert cli("run", "customers.csv", "--journal", "copy.db", *connection).code == 0
    assert simulator.count() == sent
    compacted = cli("journal", "compact")
    assert (compacted.code, "bytes now" in compacted.err) == (0, True)
    with sqlite3.connect(tmp_path / "fleet.db") as db:
        assert db.execute("PRAGMA freelist_count").fetchone() == (0,)
    db.close()


@pytest.mark.parametrize(
    ("command", "tool"), [(("backup", "copy.db"), "pg_dump"), (("compact",), "autovacuum")]
)
def test_backup_and_compact_name_the_tool_of_a_database(
    cli: Cli, command: tuple[str, ...], tool: str
) -> None:
    result = cli("journal", *command, "--journal", "postgresql://127.0.0.1:1/x")
    assert result.code == 2
    assert tool in result.err
