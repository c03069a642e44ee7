"""`asyncmig run`: each exit code with its files and its output."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from asyncmig.simulator import Reply, Request

from .conftest import CONTACTS, KEY, SOURCE, SPEED, Cli, Simulator

GOOD = b"Email,Name\na@x.de,A\nb@x.de,B\n"
FLAWED = b"Email,Name\na@x.de,A\na@x.de,B\nno,C\n"
LATIN = b"Email,Name\na@x.de,Caf\xe9\n"
Customers = Callable[..., Path]


@pytest.fixture
def run(cli: Cli, simulator: Simulator) -> Cli:
    return lambda *args: cli("run", *args, "--speed", SPEED, "--base-url", simulator.base_url)


def outcomes(folder: Path) -> dict[str, str]:
    report = json.loads((folder / "out/report.json").read_text(encoding="utf-8"))
    return {company["external_id"]: company["outcome"] for company in report["customers"]}


def test_a_run_that_delivers_all_exits_0_and_its_repetition_sends_nothing(
    run: Cli, customers: Customers, simulator: Simulator, tmp_path: Path
) -> None:
    manifest = customers(acme=GOOD, bolt=GOOD)
    first = run(manifest)
    assert first.code == 0, first.err
    assert (tmp_path / "out/acme/Contacts.csv").read_bytes() == GOOD.replace(b"\n", b"\r\n")
    assert outcomes(tmp_path) == {"acme": "delivered", "bolt": "delivered"}
    assert "delivered           2" in first.out
    assert "delivered  acme  acme Inc: 2 rows in 1 sheet" in first.err

    sent = simulator.count()
    again = run(manifest)
    assert again.code == 0
    assert simulator.count() == sent
    assert "Delivered before: 2 customers." in again.err
    assert outcomes(tmp_path) == {"acme": "delivered", "bolt": "delivered"}


def test_faults_of_the_manifest_exit_2_before_any_request(
    run: Cli, customers: Customers, simulator: Simulator, tmp_path: Path
) -> None:
    manifest = customers(acme=GOOD)
    with manifest.open("a", encoding="utf-8") as file:
        file.write("\nacme,,HubSpot,,none.csv\n")
    result = run(manifest)
    assert (result.code, result.out) == (2, "")
    assert result.err.count(f"{manifest}: line 3: ") == 3
    assert simulator.count() == 0
    assert not (tmp_path / "out").exists()


def test_unknown_names_exit_2_before_any_create_request(
    run: Cli, customers: Customers, simulator: Simulator
) -> None:
    manifest = customers(acme=GOOD)
    manifest.write_text(
        "external_id,name,source,templates,files\na,A,Hubspt,Contact,acme.csv", encoding="utf-8"
    )
    result = run(manifest)
    assert result.code == 2
    assert "line 2: source: 'Hubspt' is not known; there are ['HubSpot']" in result.err
    assert "line 2: templates: 'Contact' is not known; there are ['Contacts']" in result.err
    assert simulator.count("POST") == 0


def no_catalogue(request: Request) -> Reply | None:
    gone = request.path.endswith(("/sources", "/templates"))
    return Reply(status=404, body=b'{"error": "Not found"}') if gone else None


def test_names_exit_2_if_the_server_has_no_catalogue_and_ids_work(
    run: Cli, customers: Customers, simulator: Simulator
) -> None:
    simulator.intercept = no_catalogue
    manifest = customers(acme=GOOD)
    result = run(manifest)
    assert result.code == 2
    assert result.err.count("this server does not list names: use the id") == 2
    text = manifest.read_text(encoding="utf-8").replace("HubSpot", SOURCE).replace("Contacts", CONTACTS)
    manifest.write_text(text, encoding="utf-8")
    assert run(manifest).code == 0


def test_templates_are_not_requested_if_the_manifest_names_none(
    run: Cli, customers: Customers, simulator: Simulator
) -> None:
    manifest = customers(acme=GOOD)
    manifest.write_text(manifest.read_text(encoding="utf-8").replace("Contacts", ""), encoding="utf-8")
    assert run(manifest).code == 0
    assert simulator.count("GET /templates") == 0


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--rate", "fast"), "must look like 100/60s"),
        (("--rate", "0/60s"), "greater than 0"),
        (("--base-url", "http://example.com/api/v1"), "must be https"),
        (("--base-url", "https://example.com/api/v1", "--speed", "60"), "for the simulator on this machine"),
        (("--journal", "."), "this is a folder"),
        (("--journal", "none/fleet.db"), "there is no folder"),
        (("--out", "acme.csv"), "acme.csv is not a folder"),
        (("--out", "acme.csv/a/b"), "acme.csv is not a folder"),
        (("--decide", "maybe"), "maybe"),
        (("--concurrency", "0"), "--concurrency"),
    ],
)
def test_wrong_options_exit_2_with_a_message(
    cli: Cli, customers: Customers, args: tuple[str, ...], message: str
) -> None:
    result = cli("run", customers(acme=GOOD), "--base-url", "http://127.0.0.1:9/api/v1", *args)
    assert result.code == 2
    assert message in result.err
    assert "Traceback" not in result.err


def test_a_missing_key_exits_2(cli: Cli, customers: Customers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VERN_API_KEY")
    result = cli("run", customers(acme=GOOD))
    assert result.code == 2
    assert "VERN_API_KEY" in result.err


def test_a_failed_customer_exits_3_with_the_reason(run: Cli, customers: Customers, tmp_path: Path) -> None:
    result = run(customers(acme=GOOD, cafe=LATIN))
    assert result.code == 3
    assert outcomes(tmp_path) == {"acme": "delivered", "cafe": "failed"}
    assert "cafe.csv is not UTF-8 text" in result.out
    assert not (tmp_path / "out/cafe").exists()


def test_a_refused_key_exits_4_and_customers_stay_pending(
    run: Cli, customers: Customers, simulator: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = customers(acme=GOOD, bolt=GOOD)
    monkeypatch.setenv("VERN_API_KEY", "wrong")
    result = run(manifest)
    assert result.code == 4
    assert outcomes(tmp_path) == {"acme": "pending", "bolt": "pending"}
    assert simulator.count() == 1
    assert "asyncmig run" in result.out
    monkeypatch.setenv("VERN_API_KEY", KEY)
    assert run(manifest).code == 0


def test_a_key_that_is_revoked_during_the_run_exits_4(
    run: Cli, customers: Customers, simulator: Simulator, tmp_path: Path
) -> None:
    def revoked(request: Request) -> Reply | None:
        late = request.path.endswith("/uploads")
        return Reply(status=401, body=b'{"error": "Invalid API key"}') if late else None

    simulator.intercept = revoked
    assert run(customers(acme=GOOD, cafe=LATIN)).code == 4
    assert outcomes(tmp_path) == {"acme": "pending", "cafe": "pending"}
    report = json.loads((tmp_path / "out/report.json").read_text(encoding="utf-8"))
    assert "401" in report["customers"][0]["error"]
    assert report["customers"][0]["ids"]["company"]


def test_a_parked_customer_exits_5_until_it_is_decided(
    run: Cli, customers: Customers, tmp_path: Path
) -> None:
    manifest = customers(acme=GOOD, bolt=FLAWED)
    result = run(manifest)
    assert result.code == 5
    assert outcomes(tmp_path)["bolt"] == "parked"
    assert "--decide approve-safe" in result.out
    assert run(manifest, "--decide", "approve-safe").code == 5
    assert run(manifest, "--decide", "approve").code == 0
    assert (tmp_path / "out/bolt/Contacts.csv").read_text(encoding="utf-8").split() == [
        "Email,Name",
        "a@x.de,A",
    ]


def test_parked_has_priority_over_failed_and_a_rejected_run_is_failed(
    run: Cli, customers: Customers, tmp_path: Path
) -> None:
    manifest = customers(bolt=FLAWED, cafe=LATIN)
    assert run(manifest).code == 5
    assert run(manifest, "--decide", "reject").code == 3
    assert outcomes(tmp_path) == {"bolt": "failed", "cafe": "failed"}


def test_a_lost_journal_makes_outcomes_unknown_and_exits_6(
    run: Cli, customers: Customers, tmp_path: Path
) -> None:
    manifest = customers(acme=GOOD, bolt=FLAWED)
    run(manifest)
    result = run(manifest, "--journal", "new.db")
    assert result.code == 6
    assert outcomes(tmp_path) == {"acme": "unknown", "bolt": "unknown"}
    assert "external_id" in result.out


@pytest.mark.parametrize("lost", ["missing", "0 bytes"])
def test_a_lost_journal_causes_one_warning(run: Cli, customers: Customers, tmp_path: Path, lost: str) -> None:
    manifest = customers(acme=GOOD)
    assert "warning" not in run(manifest).err
    (tmp_path / "fleet.db").unlink()
    if lost == "0 bytes":
        (tmp_path / "fleet.db").touch()
    result = run(manifest)
    warning, _, rest = result.err.partition("\n")
    assert "fleet.db is missing or empty" in warning
    assert "lists 1 customer as delivered" in warning
    assert "warning" not in rest
    assert "warning" not in run(manifest).err


def test_a_catalogue_that_cannot_be_read_exits_75(
    run: Cli, customers: Customers, simulator: Simulator, tmp_path: Path
) -> None:
    simulator.intercept = lambda request: Reply(status=501, body=b"")
    result = run(customers(acme=GOOD))
    assert result.code == 75
    assert outcomes(tmp_path) == {"acme": "pending"}
    assert "the catalogue could not be read" in result.out


def test_filter_all_keeps_the_rows_with_a_bad_cell(run: Cli, customers: Customers, tmp_path: Path) -> None:
    rows = b"".join(b"p%d@x.de,P\n" % n for n in range(40))
    manifest = customers(acme=b"Email,Name\n" + rows + b"no,C\n")
    assert run(manifest, "--filter", "all").code == 0
    assert len((tmp_path / "out/acme/Contacts.csv").read_bytes().splitlines()) == 42
    company = json.loads((tmp_path / "out/report.json").read_text(encoding="utf-8"))["customers"][0]
    assert company["rows"] == {"inserted": 41, "flagged": 1, "delivered": 41}


def test_another_filter_or_folder_causes_a_new_delivery_without_a_second_import(
    run: Cli, customers: Customers, simulator: Simulator, tmp_path: Path
) -> None:
    manifest = customers(acme=b"Email,Name\n" + b"".join(b"p%d@x.de,P\n" % n for n in range(40)) + b"no,C\n")
    for args, lines in (((), 41), (("--filter", "all"), 42), (("--out", "more", "--filter", "all"), 42)):
        assert run(manifest, *args).code == 0
        folder = tmp_path / ("more" if "--out" in args else "out")
        assert len((folder / "acme/Contacts.csv").read_bytes().splitlines()) == lines
    assert sum(entry.method == "POST" for entry in simulator.world.ledger.entries) == 3


def test_long_external_ids_do_not_share_a_folder(run: Cli, customers: Customers, tmp_path: Path) -> None:
    first, second = "a" * 200 + "1", "a" * 200 + "2"
    manifest = customers(**{first: b"Email,Name\n1@x.de,A\n", second: b"Email,Name\n2@x.de,A\n"})
    assert run(manifest).code == 0
    assert {path.name for path in (tmp_path / "out").iterdir() if path.is_dir()} == {first, second}


def test_ids_that_would_share_a_folder_exit_2(
    run: Cli, customers: Customers, simulator: Simulator, tmp_path: Path
) -> None:
    manifest = customers(acme=GOOD, ACME=GOOD)
    assert run(manifest).code == 0
    (tmp_path / "out/REPORT.JSON").write_text("what a file system without case would show", encoding="utf-8")
    sent = simulator.count()
    result = run(manifest)
    assert result.code == 2
    assert "would be one folder" in result.err
    assert simulator.count() == sent


def test_sheets_whose_names_differ_only_in_case_are_two_files(
    run: Cli, customers: Customers, tmp_path: Path
) -> None:
    assert run(customers(contacts=b"x,y\n1,2\n")).code == 0
    found = {
        path.name: path.read_text(encoding="utf-8").split() for path in (tmp_path / "out/contacts").iterdir()
    }
    assert found == {"Contacts.csv": ["Email,Name"], "contacts-2.csv": ["x,y", "1,2"]}


def test_the_key_is_in_no_output_and_in_no_file(run: Cli, customers: Customers, tmp_path: Path) -> None:
    result = run(customers(acme=GOOD, bolt=FLAWED, cafe=LATIN))
    assert KEY not in result.out + result.err
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or KEY.encode() not in path.read_bytes(), path


def test_control_characters_of_the_server_are_not_printed(
    run: Cli, customers: Customers, simulator: Simulator
) -> None:
    def refuse(request: Request) -> Reply | None:
        hostile = json.dumps({"error": "no\x1b]0;title\x07\x1b[2J [bold]ok\u202e"}).encode()
        create = request.method == "POST" and request.path.endswith("/companies")
        return Reply(status=400, body=hostile) if create else None

    simulator.intercept = refuse
    result = run(customers(acme=GOOD))
    assert result.code == 3
    for text in (result.out, result.err):
        assert "[bold]ok" in text
        assert not {"\x1b", "\x07", "\u202e"} & set(text)


def test_ignored_columns_of_the_manifest_are_named(run: Cli, customers: Customers) -> None:
    manifest = customers(acme=GOOD)
    lines = manifest.read_text(encoding="utf-8").splitlines()
    manifest.write_text(f"{lines[0]},owner\n{lines[1]},Eve\n", encoding="utf-8")
    result = run(manifest)
    assert result.code == 0
    assert "columns that are ignored: owner" in result.err


REAL = sorted(Path(__file__).parents[3].joinpath("shared/data").rglob("*.csv"))


@pytest.mark.skipif(not REAL, reason="the folder with real files does not exist")
def test_real_files_are_delivered_unchanged_or_fail_with_a_reason(run: Cli, tmp_path: Path) -> None:
    manifest = tmp_path / "customers.csv"
    with manifest.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["external_id", "name", "source", "files"])
        writer.writerows([f"c-{n}", path.name, "HubSpot", path] for n, path in enumerate(REAL))
    result = run(manifest, "--filter", "all", "--decide", "approve")
    assert result.code == 3, result.err
    report = json.loads((tmp_path / "out/report.json").read_text(encoding="utf-8"))
    failed = {company["name"]: company["error"] for company in report["customers"] if company["error"]}
    assert list(failed) == ["avengers.csv"]
    assert "is not UTF-8" in failed["avengers.csv"]
    for n, path in enumerate(REAL):
        if path.name not in failed:
            assert cells(tmp_path / f"out/c-{n}/{path.stem}.csv") == cells(path), path


def cells(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return [record for record in csv.reader(file) if record]
