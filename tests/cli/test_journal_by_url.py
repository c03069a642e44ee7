"""`--journal` with a PostgreSQL database, given as a URL or as an environment variable that contains the URL."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from servers import database

from asyncmig.journal import JournalPlace

from .conftest import Cli, Result, Simulator

GOOD = b"Email,First Name,Last Name\na@x.de,A,B\nb@x.de,B,C\n"
ASKS = b"Email,Name\na@x.de,A\na@x.de,A\n"
SECRET = "s3cr3t"


@pytest.fixture
def address(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of an empty database, with a password. The server does not require it."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    with database(database_url) as url:
        yield url.replace("@", f":{SECRET}@")


@pytest.fixture(params=["variable", "url", "ASYNCMIG_JOURNAL"])
def journal(request: pytest.FixtureRequest, address: str, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """Return the options that select the journal."""
    if request.param == "url":
        return ("--journal", address.replace(f":{SECRET}@", "@"))
    name = "WORKERS_DATABASE" if request.param == "variable" else request.param
    monkeypatch.setenv(name, address)
    return ("--journal", name) if request.param == "variable" else ()


def commands(result: Result) -> list[list[str]]:
    """Return the arguments of each printed command."""
    return [line.split()[1:] for line in result.out.splitlines() if line.startswith("  asyncmig ")]


def test_each_command_works_on_a_journal_in_a_database(
    cli: Cli,
    customers: Callable[..., Path],
    simulator: Simulator,
    journal: tuple[str, ...],
    tmp_path: Path,
) -> None:
    connection = ("--speed", 60, "--base-url", simulator.base_url)
    before = cli("doctor", *journal, *connection)
    assert "has no journal: the first run creates it" in before.out
    assert cli("status", *journal).code == 2

    ran = cli("run", customers(acme=GOOD, bolt=ASKS), *journal, *connection)
    assert ran.code == 5, ran.err
    assert not list(tmp_path.glob("fleet.db*"))
    results = [ran, before]

    status = cli("status", *journal, "--json")
    rows = [json.loads(line) for line in status.out.splitlines()]
    assert {row["external_id"]: row["outcome"] for row in rows} == {"acme": "delivered", "bolt": "parked"}
    shown = cli("show", "acme", *journal)
    assert (shown.code, "delivered" in shown.out) == (0, True)
    assert cli("watch", *journal).code == 5
    assert "2 customers" in cli("doctor", *journal, *connection).out
    assert cli("report", *journal, "--report", "page.html").code == 0
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "acme" in page
    planned = cli("run", "customers.csv", "--plan", *journal)
    assert planned.code == 0
    adopted = cli("adopt", "acme", "11111111-1111-4111-8111-111111111111", *journal)
    assert adopted.code == 2
    assert "is not the one that the journal has" in adopted.err

    review, approve = commands(ran)
    assert review[0] == "review"
    asked = cli(*review)
    assert (asked.code, "bolt" in asked.out) == (5, True)
    assert "approve-safe" in approve
    decided = cli("review", "bolt", "--approve", "--allow-destructive", *journal)
    assert decided.code == 0, decided.err
    (following,) = [line.split()[1:] for line in decided.err.splitlines() if line.startswith("  asyncmig ")]
    assert cli(*following).code == 0
    results += [asked, decided]
    again = cli("retry", *journal)
    assert again.code == 0, again.err
    results += [status, shown, planned, adopted, again]
    for result in results:
        assert SECRET not in result.out + result.err + page
    for path in (tmp_path / "state").rglob("*"):
        assert path.is_dir() or SECRET.encode() not in path.read_bytes()


def test_a_journal_name_is_a_variable_only_if_it_contains_the_url_of_a_database(
    cli: Cli,
    customers: Callable[..., Path],
    simulator: Simulator,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("fleet", "/somewhere")
    connection = ("--speed", 60, "--base-url", simulator.base_url)
    assert cli("run", customers(acme=GOOD), "--journal", "fleet", *connection).code == 0
    assert (tmp_path / "fleet").is_file()


def test_a_journal_url_in_a_manifest_works_and_is_refused_with_a_password(
    cli: Cli, customers: Callable[..., Path], simulator: Simulator, address: str, tmp_path: Path
) -> None:
    customers(acme=GOOD)
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    table = (tmp_path / "customers.csv").read_text(encoding="utf-8").splitlines()[1].split(",")
    company = (
        f'[[company]]\nexternal_id = "acme"\nname = "Acme"\nsource = "{table[2]}"\nfiles = "../{table[-1]}"\n'
    )
    manifest = folder / "customers.toml"
    connection = ("--speed", 60, "--base-url", simulator.base_url)
    for url, code in ((address, 2), (address.replace(f":{SECRET}@", "@"), 0)):
        manifest.write_text(f'[defaults]\njournal = "{url}"\n{company}', encoding="utf-8")
        result = cli("run", manifest, *connection)
        assert result.code == code, result.err
        assert SECRET not in result.out + result.err
    assert JournalPlace(address).beside("last").is_file()
    assert cli("retry", "--journal", address.replace(f":{SECRET}@", "@")).code == 0
