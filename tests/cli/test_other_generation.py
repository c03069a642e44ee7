"""If the server has another API generation than `--api`, the error names it, and no company or record is created."""

from collections.abc import Callable
from pathlib import Path

import pytest

from asyncmig import generations
from asyncmig.simulator import Reply

from .conftest import SOURCE, SPEED, Accounts, Cli, Simulator

GOOD = b"Email,Name\na@x.de,A\n"
Customers = Callable[..., Path]
pytestmark = pytest.mark.skipif("migrations" not in generations.known(), reason="there is one generation")


def test_run_names_the_generation_of_the_server(
    cli: Cli, account: Accounts, customers: Customers, tmp_path: Path
) -> None:
    world = account()
    manifest = customers(acme=GOOD, bolt=GOOD)
    result = cli("run", manifest, "--base-url", world.base_url, "--speed", SPEED)
    assert result.code == 2
    assert "the server speaks the API generation 'migrations': add --api migrations" in result.err
    assert {entry.endpoint for entry in world.ledger.entries} == {"GET /sources"}
    assert "0 customers" in cli("status").out


def test_a_404_of_the_first_create_request_detects_it_and_leaves_no_records(
    cli: Cli, account: Accounts, customers: Customers, tmp_path: Path
) -> None:
    world = account()
    manifest = customers(acme=GOOD, bolt=GOOD)
    # With an id, the command sends no catalogue request.
    text = manifest.read_text(encoding="utf-8").replace("HubSpot,Contacts", f"{SOURCE},")
    manifest.write_text(text, encoding="utf-8")
    result = cli("run", manifest, "--base-url", world.base_url, "--speed", SPEED)
    assert result.code == 2
    assert "the server speaks the API generation 'migrations': add --api migrations" in result.err
    assert not world.migrations
    assert "0 customers" in cli("status").out


def test_a_404_with_another_error_fails_only_the_customer(
    cli: Cli, simulator: Simulator, customers: Customers
) -> None:
    gone = Reply(status=404, body=b'{"error": "Source not found"}')
    simulator.intercept = lambda request: gone if request.method == "POST" else None
    result = cli("run", customers(acme=GOOD), "--base-url", simulator.base_url, "--speed", SPEED)
    assert result.code == 3
    assert "Source not found" in result.out


def test_doctor_names_the_generation_of_the_server(cli: Cli, account: Accounts, simulator: Simulator) -> None:
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
def test_only_an_unambiguous_response_identifies_another_generation(
    listed: object, other: str | None
) -> None:
    assert generations.spoken_instead("companies", listed) == other
