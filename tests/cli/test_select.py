"""`--select` runs some of the customers. `retry` repeats the last run of a journal."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from asyncmig.simulator import Reply, Request

from .conftest import KEY, SPEED, Cli, Simulator

GOOD = b"Email,Name\na@x.de,A\nb@x.de,B\n"
FLAWED = b"Email,Name\na@x.de,A\na@x.de,B\nno,C\n"
LATIN = b"Email,Name\na@x.de,Caf\xe9\n"
IMPORTS = "POST /companies/{id}/imports"
Customers = Callable[..., Path]


@pytest.fixture
def run(cli: Cli, simulator: Simulator) -> Cli:
    return lambda *args: cli("run", *args, "--speed", SPEED, "--base-url", simulator.base_url)


def outcomes(folder: Path) -> dict[str, str]:
    report = json.loads((folder / "out/report.json").read_text(encoding="utf-8"))
    return {company["external_id"]: company["outcome"] for company in report["customers"]}


def imports(simulator: Simulator) -> int:
    return sum(entry.endpoint == IMPORTS for entry in simulator.world.ledger.entries)


def test_only_selected_customers_are_migrated_and_determine_the_exit_code(
    run: Cli, customers: Customers, tmp_path: Path
) -> None:
    manifest = customers(acme=GOOD, bolt=GOOD, cafe=LATIN)
    result = run(manifest, "--select", "acme, bolt")
    assert result.code == 0
    assert outcomes(tmp_path) == {"acme": "delivered", "bolt": "delivered", "cafe": "pending"}
    assert "Every selected customer is delivered" in result.out
    assert "Not selected: 1 customer." in result.out
    assert run(manifest, "--select", "status:pending").code == 3
    assert outcomes(tmp_path)["cafe"] == "failed"


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ("acm", "'acm' is not in customers.csv; did you mean 'acme'?"),
        ("acme,zzzz", "'zzzz' is not in customers.csv"),
        ("status:faild", "is not an outcome; the outcomes are delivered, failed, parked, unknown, pending"),
        ("status:", "selects nothing"),
        (",", "selects nothing"),
    ],
)
def test_a_selection_of_unknown_customers_exits_2_before_any_request(
    run: Cli, customers: Customers, simulator: Simulator, selection: str, message: str
) -> None:
    customers(acme=GOOD)
    result = run("customers.csv", "--select", selection)
    assert result.code == 2
    assert message in result.err
    assert simulator.count() == 0


@pytest.mark.parametrize("selection", ["", " ", ",", "status:", "status: ,"])
def test_an_empty_selection_exits_2_and_selects_no_customer(
    run: Cli, cli: Cli, customers: Customers, simulator: Simulator, selection: str
) -> None:
    manifest = customers(acme=GOOD)
    for result in (run(manifest, "--select", selection), run(manifest, "--plan", "--select", selection)):
        assert result.code == 2
        assert "selects nothing" in result.err
    assert simulator.count() == 0


def test_a_status_without_customers_sends_no_request(
    run: Cli, customers: Customers, simulator: Simulator
) -> None:
    manifest = customers(acme=GOOD)
    result = run(manifest, "--select", "status:failed,parked")
    assert (result.code, simulator.count()) == (0, 0)
    assert "No customer is selected: there is nothing to do." in result.out


def test_retry_migrates_undelivered_customers_with_the_same_options(
    run: Cli,
    cli: Cli,
    customers: Customers,
    simulator: Simulator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert run(customers(acme=GOOD, bolt=FLAWED, cafe=LATIN), "--out", "there").code == 5
    assert imports(simulator) == 3
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    result = cli("retry", "--journal", "../fleet.db", "--decide", "approve")
    assert result.code == 3, result.err
    assert imports(simulator) == 4  # the failed customer was imported again, and the parked one continued
    assert (tmp_path / "there/bolt/Contacts.csv").is_file()
    assert "Not selected: 1 customer." in result.out
    assert cli("retry", "--journal", "../fleet.db", "--select", "status:failed").code == 3
    assert imports(simulator) == 5


def test_retry_keeps_the_settings_of_the_last_run(
    run: Cli, cli: Cli, customers: Customers, tmp_path: Path
) -> None:
    run(customers(bolt=FLAWED), "--rate", "50/60s")
    cli("retry", "--decide", "reject")
    settings = json.loads((tmp_path / "fleet.db.last").read_text(encoding="utf-8"))["settings"]
    assert settings["rate"] == "50/60s"
    assert "decide" not in settings
    assert KEY not in json.dumps(settings)


def test_retry_exits_2_with_advice_if_there_was_no_run(cli: Cli, tmp_path: Path) -> None:
    result = cli("retry")
    assert result.code == 2
    assert "asyncmig run MANIFEST" in result.err
    (tmp_path / "fleet.db.last").write_text("{", encoding="utf-8")
    assert "cannot be read" in cli("retry").err


def test_the_summary_names_each_failed_customer_and_its_error_once(
    run: Cli, customers: Customers, simulator: Simulator
) -> None:
    def refuse(request: Request) -> Reply | None:
        create = request.method == "POST" and request.path.endswith("/companies")
        return Reply(status=400, body=b'{"error": "a company of that name exists"}') if create else None

    simulator.intercept = refuse
    names = [f"c-{n}" for n in range(6)]
    result = run(customers(**dict.fromkeys(names, GOOD)))
    assert result.code == 3
    assert "failed  c-0, c-1, c-2, c-3, c-4, c-5" in result.out
    assert "asyncmig retry --select status:failed" in result.out
    assert result.out.count("a company of that name exists") == 1
