"""Changes of the manifest or of files between two runs are reported. Nothing is lost or imported twice."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from asyncmig.simulator import Reply

from .conftest import Cli, Simulator

GOOD = b"Email,Name\na@x.de,A\nb@x.de,B\n"
MORE = b"Email,Name\na@x.de,A\nb@x.de,B\nc@x.de,C\n"
LATIN = b"Email,Name\na@x.de,Caf\xe9\n"
Customers = Callable[..., Path]


@pytest.fixture
def run(cli: Cli, simulator: Simulator) -> Cli:
    return lambda *args: cli("run", *args, "--speed", "60", "--base-url", simulator.base_url)


def rows(folder: Path) -> dict[str, dict[str, object]]:
    report = json.loads((folder / "out/report.json").read_text(encoding="utf-8"))
    return {company["external_id"]: company for company in report["customers"]}


def imports(simulator: Simulator) -> int:
    return simulator.world.ledger.requests["POST /companies/{id}/imports"]


def test_a_removed_row_is_reported_and_its_files_are_kept(
    run: Cli, customers: Customers, simulator: Simulator, tmp_path: Path
) -> None:
    assert run(customers(acme=GOOD, bolt=GOOD)).code == 0
    result = run(customers(acme=GOOD))
    assert result.code == 0
    assert "in the journal and not in the manifest: 1 (bolt)" in result.err
    assert (tmp_path / "out/bolt/Contacts.csv").exists()
    sent = simulator.count()
    assert run(customers(acme=GOOD, bolt=GOOD)).code == 0
    assert simulator.count() == sent


def test_only_an_added_row_is_migrated(
    run: Cli, customers: Customers, simulator: Simulator, tmp_path: Path
) -> None:
    assert run(customers(acme=GOOD)).code == 0
    assert run(customers(acme=GOOD, bolt=GOOD)).code == 0
    assert rows(tmp_path).keys() == {"acme", "bolt"}
    assert (simulator.count("POST /companies"), imports(simulator)) == (6, 2)


def test_a_changed_external_id_fails_and_creates_no_second_company(
    run: Cli, customers: Customers, simulator: Simulator, tmp_path: Path
) -> None:
    assert run(customers(acme=GOOD)).code == 0
    manifest = customers(acme=GOOD)
    manifest.write_text(
        manifest.read_text(encoding="utf-8").replace("\nacme,", "\nacme-2,"), encoding="utf-8"
    )
    result = run(manifest)
    assert result.code == 3
    assert "A company of this name exists" in str(rows(tmp_path)["acme-2"]["error"])
    assert "in the journal and not in the manifest: 1 (acme)" in result.err
    assert imports(simulator) == 1


def test_a_changed_customer_name_is_reported(
    run: Cli, customers: Customers, simulator: Simulator, tmp_path: Path
) -> None:
    assert run(customers(acme=GOOD)).code == 0
    manifest = customers(acme=GOOD)
    manifest.write_text(manifest.read_text(encoding="utf-8").replace("acme Inc", "ACME SE"), encoding="utf-8")
    assert run(manifest).code == 0
    assert "was created as 'acme Inc'" in str(rows(tmp_path)["acme"]["notes"])
    assert imports(simulator) == 1


def test_a_changed_file_is_reported_and_not_imported_again(
    run: Cli, customers: Customers, simulator: Simulator, tmp_path: Path
) -> None:
    assert run(customers(acme=GOOD)).code == 0
    result = run(customers(acme=MORE))
    assert result.code == 0
    assert "not imported again: acme.csv" in str(rows(tmp_path)["acme"]["notes"])
    assert "Files of 1 customer changed since the import began, and not imported again: acme." in result.out
    assert imports(simulator) == 1


def test_if_changed_refuses_a_changed_file_or_imports_it_again(
    run: Cli, customers: Customers, simulator: Simulator, tmp_path: Path
) -> None:
    assert run(customers(acme=GOOD)).code == 0
    manifest = customers(acme=MORE)
    refused = run(manifest, "--if-changed", "refuse")
    assert refused.code == 3
    assert "acme.csv" in str(rows(tmp_path)["acme"]["error"])
    assert imports(simulator) == 1
    assert run(manifest, "--if-changed", "import-again", "--decide", "approve").code == 0
    assert imports(simulator) == 2
    assert "c@x.de" in (tmp_path / "out/acme/Contacts.csv").read_text(encoding="utf-8")
    assert run(manifest, "--if-changed", "always").code == 2


def test_a_file_corrected_after_a_failure_is_imported_again(
    run: Cli, customers: Customers, simulator: Simulator, tmp_path: Path
) -> None:
    assert run(customers(acme=LATIN)).code == 3
    assert run(customers(acme=MORE)).code == 0
    assert "imported again, for acme.csv" in str(rows(tmp_path)["acme"]["notes"])
    assert rows(tmp_path)["acme"]["rows"] == {"inserted": 3, "flagged": 0, "delivered": 3}
    assert imports(simulator) == 2


def test_a_file_deleted_after_the_start_of_its_import_does_not_stop_the_run(
    run: Cli, customers: Customers, simulator: Simulator, tmp_path: Path
) -> None:
    manifest = customers(acme=GOOD)
    assert run(manifest).code == 0
    manifest = customers(acme=GOOD, bolt=GOOD)
    (tmp_path / "acme.csv").unlink()
    assert run(manifest).code == 0
    assert "continues without it" in str(rows(tmp_path)["acme"]["notes"])
    (tmp_path / "bolt.csv").unlink()
    result = run(customers(cafe=LATIN))
    assert result.code == 3
    (tmp_path / "cafe.csv").unlink()
    assert run(tmp_path / "customers.csv").code == 3
    assert rows(tmp_path)["cafe"]["outcome"] == "failed"


def test_a_file_deleted_before_its_import_is_a_fault_of_the_manifest(
    run: Cli, customers: Customers, simulator: Simulator, tmp_path: Path
) -> None:
    assert run(customers(acme=GOOD)).code == 0
    manifest = customers(acme=GOOD, bolt=GOOD)
    (tmp_path / "bolt.csv").unlink()
    sent = simulator.count()
    assert run(manifest).code == 2
    assert simulator.count() == sent


def test_moved_files_are_read_from_the_path_in_the_manifest(
    run: Cli, customers: Customers, simulator: Simulator, tmp_path: Path
) -> None:
    refused = Reply(status=400, body=b'{"error": "not now"}')
    simulator.intercept = lambda request: refused if request.path.endswith("/uploads") else None
    manifest = customers(acme=GOOD)
    assert run(manifest).code == 3
    simulator.intercept = lambda request: None
    (tmp_path / "moved").mkdir()
    (tmp_path / "acme.csv").rename(tmp_path / "moved/acme.csv")
    text = manifest.read_text(encoding="utf-8").replace(",acme.csv", ",moved/acme.csv")
    manifest.write_text(text, encoding="utf-8")
    assert run(manifest).code == 0
    assert simulator.world.ledger.requests["POST /companies"] == 1
