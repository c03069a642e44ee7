"""`run --plan` checks everything and sends no request."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import SPEED, Cli, Simulator

GOOD = b"Email,Name\na@x.de,A\nb@x.de,B\n"
FLAWED = b"Email,Name\na@x.de,A\na@x.de,B\nno,C\n"
LATIN = b"Email,Name\na@x.de,Caf\xe9\n"
Customers = Callable[..., Path]


@pytest.fixture
def plan(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, object]]:
    monkeypatch.delenv("VERN_API_KEY")

    def planned(*args: object) -> dict[str, object]:
        result = cli("run", *args, "--plan", "--json")
        assert result.code == 0, result.err
        found = json.loads(result.out)
        assert isinstance(found, dict)
        return found

    return planned


def test_plan_counts_the_requests_of_new_customers_and_writes_no_file(
    plan: Callable[..., dict[str, object]], customers: Customers, tmp_path: Path
) -> None:
    manifest = customers(**{f"c-{n}": GOOD + b"c@x.de,C\n" * n for n in range(7)})
    planned = plan(manifest, "--rate", "3/60s")
    assert planned["requests"] == {
        "GET /sources": 1,
        "GET /templates": 1,
        "POST /companies": 7,
        "POST /companies/{id}/uploads": 7,
        "POST /companies/{id}/imports": 7,
        "GET /companies/{id}/imports/{run_id}": 7,
        "GET /companies/{id}/export.csv": 7,
    }
    assert (planned["new"], planned["files"], planned["seconds"]) == (7, 7, 120.0)
    assert planned["bytes"] == 7 * len(GOOD) + 21 * 9
    largest = planned["largest"]
    assert isinstance(largest, list)
    assert [file["external_id"] for file in largest] == ["c-6", "c-5", "c-4", "c-3", "c-2"]
    assert plan(manifest, "--rate", "3/60s", "--scope", "key")["seconds"] == 12 * 60.0
    assert not list(tmp_path.glob("fleet.db*"))
    assert not (tmp_path / "out").exists()


def test_plan_lists_ended_customers_and_decisions_that_destroy_rows(
    cli: Cli, simulator: Simulator, customers: Customers
) -> None:
    manifest = customers(acme=GOOD, bolt=FLAWED, cafe=LATIN)
    cli("run", manifest, "--speed", SPEED, "--base-url", simulator.base_url)
    sent = simulator.count()
    output = cli("run", manifest, "--plan").out
    assert "1 to continue, 1 delivered already, 1 failed already" in output
    assert "Parked, wait for a decision: bolt." in output
    (line,) = [line for line in output.splitlines() if line.startswith("  bolt: ")]
    assert set(line.removeprefix("  bolt: ").split("; ")) == {"dedup_keep_first by Email"}, line
    assert "not imported again while their files stay the same: cafe." in output
    again = json.loads(cli("run", manifest, "--plan", "--json", "--select", "status:failed").out)
    assert (again["repeated"], again["requests"]["POST /companies/{id}/imports"]) == (["cafe"], 1)
    (manifest.parent / "cafe.csv").write_bytes(GOOD)
    assert json.loads(cli("run", manifest, "--plan", "--json").out)["repeated"] == ["cafe"]
    done = cli("run", manifest, "--plan", "--select", "acme")
    assert "nothing is left to do" in done.out
    assert simulator.count() == sent


def test_plan_reports_faults_of_the_manifest_and_exits_2(cli: Cli, customers: Customers) -> None:
    manifest = customers(acme=GOOD)
    manifest.write_text(
        manifest.read_text(encoding="utf-8").replace("acme.csv", "gone.csv"), encoding="utf-8"
    )
    result = cli("run", manifest, "--plan")
    assert (result.code, result.out) == (2, "")
    assert "gone.csv" in result.err


def test_the_plan_of_the_generation_migrations_names_the_scarcest_budget(
    cli: Cli, plan: Callable[..., dict[str, object]], customers: Customers
) -> None:
    manifest = customers(**{f"c-{n}": GOOD for n in range(30)})
    planned = plan(manifest, "--api", "migrations")
    assert planned["seconds"] == 29 * 3600.0
    assert planned["scarcest"] in ("create", "generate")
    output = cli("run", manifest, "--plan", "--api", "migrations").out
    assert "the last request can be sent after 29 h 00 min" in " ".join(output.split())
