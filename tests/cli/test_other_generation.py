"""A server of another API generation than `--api` names: it is told, nothing is created, and nothing stays behind."""

from collections.abc import Callable
from pathlib import Path

import pytest

from asyncmig import generations
from asyncmig.simulator import Reply

from .conftest import SOURCE, SPEED, Accounts, Cli, Simulator

GOOD = b"Email,Name\na@x.de,A\n"
Customers = Callable[..., Path]
pytestmark = pytest.mark.skipif("migrations" not in generations.known(), reason="there is one generation")


def test_run_says_which_generation_the_server_speaks(
    cli: Cli, account: Accounts, customers: Customers, tmp_path: Path
) -> None:
    world = account()
    manifest = customers(acme=GOOD, bolt=GOOD)
    result = cli("run", manifest, "--base-url", world.base_url, "--speed", SPEED)
    assert result.code == 2
    assert "the server speaks the API generation 'migrations': add --api migrations" in result.err
    assert {entry.endpoint for entry in world.ledger.entries} == {"GET /sources"}
    assert "0 customers" in cli("status").out


def test_a_404_of_the_first_creation_shows_it_and_the_journal_forgets_the_customers(
    cli: Cli, account: Accounts, customers: Customers, tmp_path: Path
) -> None:
    world = account()
    manifest = customers(acme=GOOD, bolt=GOOD)
    text = manifest.read_text(encoding="utf-8").replace(
        "HubSpot,Contacts", f"{SOURCE},"
    )  # ids are not looked up
    manifest.write_text(text, encoding="utf-8")
    result = cli("run", manifest, "--base-url", world.base_url, "--speed", SPEED)
    assert result.code == 2
    assert "the server speaks the API generation 'migrations': add --api migrations" in result.err
    assert not world.migrations
    assert "0 customers" in cli("status").out


def test_another_404_of_a_creation_is_the_customers_own(
    cli: Cli, simulator: Simulator, customers: Customers
) -> None:
    gone = Reply(status=404, body=b'{"error": "Source not found"}')
    simulator.intercept = lambda request: gone if request.method == "POST" else None
    result = cli("run", customers(acme=GOOD), "--base-url", simulator.base_url, "--speed", SPEED)
    assert result.code == 3
    assert "Source not found" in result.out


def test_doctor_says_which_generation_the_server_speaks(
    cli: Cli, account: Accounts, simulator: Simulator
) -> None:
    world = account()
    result = cli("doctor", "--base-url", world.base_url, "--speed", SPEED)
    assert result.code == 2
    assert "answers like the API generation migrations, not companies: add --api migrations" in result.out
    assert "answers like the API generation companies" in cli("doctor", "--base-url", simulator.base_url).out


@pytest.mark.parametrize(
    ("listed", "other"),
    [
        ({"sources": [{"name": "HubSpot", "logo_url": None}]}, "migrations"),
        ({"sources": [{"name": "HubSpot", "id": "1"}]}, None),
        ({"sources": [{"name": "HubSpot", "id": "1"}, {"name": "Pipedrive"}]}, None),
        ({"sources": []}, None),
        ({"sources": 3}, None),
        (["sources"], None),
    ],
)
def test_only_a_clear_response_shows_another_generation(listed: object, other: str | None) -> None:
    assert generations.spoken_instead("companies", listed) == other
