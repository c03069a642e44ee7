"""A run does not replace input files, and does not read its own output as input."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from asyncmig.simulator import Reply, Request

from .conftest import SPEED, Cli, Simulator

GOOD = b"Email,Name\na@x.de,A\nb@x.de,B\n"
SECRET = b"Email,Name\nsecret@bolt.de,S\n"
Customers = Callable[..., Path]
HEADER = "external_id,name,source,templates,files\n"


@pytest.fixture
def run(cli: Cli, simulator: Simulator) -> Cli:
    return lambda *args: cli("run", *args, "--speed", SPEED, "--base-url", simulator.base_url)


@pytest.fixture
def manifest(tmp_path: Path) -> Callable[..., Path]:
    """Write a manifest with a line `external_id=files` for each customer."""

    def write(name: str = "customers.csv", **files: str) -> Path:
        lines = [f"{key},{key} Inc,HubSpot,Contacts,{each}\n" for key, each in files.items()]
        (tmp_path / name).write_text(HEADER + "".join(lines), encoding="utf-8")
        return tmp_path / name

    return write


def put(path: Path, content: bytes = GOOD) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.fixture
def uploaded(simulator: Simulator) -> list[str]:
    """The names of the uploaded files in the order of their uploads."""
    names: list[str] = []

    def note(request: Request) -> Reply | None:
        if request.method == "POST" and request.path.endswith("/uploads"):
            names.append(json.loads(request.body)["name"])
        return None

    simulator.intercept = note
    return names


@pytest.mark.parametrize("files", ["acme/*.csv", "acme/Contacts.csv", "./acme/../acme/Contacts.csv"])
@pytest.mark.parametrize("out", [".", "absolute", "linked"])
def test_an_input_in_its_delivery_folder_is_refused_before_any_request(
    run: Cli, manifest: Callable[..., Path], simulator: Simulator, tmp_path: Path, files: str, out: str
) -> None:
    source = put(tmp_path / "acme/Contacts.csv")
    (tmp_path / "linked").symlink_to(tmp_path)
    result = run(manifest(acme=files), "--out", tmp_path if out == "absolute" else out)
    assert result.code == 2
    assert "line 2: files:" in result.err
    assert "where sheets are delivered" in result.err
    assert source.read_bytes() == GOOD
    assert simulator.count() == 0


def test_an_input_in_the_delivery_folder_of_another_customer_is_refused(
    run: Cli, manifest: Callable[..., Path], simulator: Simulator, tmp_path: Path
) -> None:
    put(tmp_path / "out/bolt/Contacts.csv")
    put(tmp_path / "bolt.csv")
    result = run(manifest(acme="out/bolt/Contacts.csv", bolt="bolt.csv"))
    assert result.code == 2
    assert "line 2: files: 'out/bolt/Contacts.csv': is below out/bolt" in result.err
    assert simulator.count() == 0


@pytest.mark.parametrize("target", ["out/acme", "out/acme/Contacts.csv"])
def test_an_input_link_into_a_delivery_folder_is_refused(
    run: Cli, manifest: Callable[..., Path], simulator: Simulator, tmp_path: Path, target: str
) -> None:
    source = put(tmp_path / "out/acme/Contacts.csv")
    (tmp_path / "data").symlink_to(tmp_path / target)
    files = "data" if target.endswith(".csv") else "data/Contacts.csv"
    result = run(manifest(acme=files))
    assert (result.code, simulator.count()) == (2, 0), result.err
    assert source.read_bytes() == GOOD


def test_an_input_link_inside_a_delivery_folder_is_refused(
    run: Cli, manifest: Callable[..., Path], simulator: Simulator, tmp_path: Path
) -> None:
    put(tmp_path / "data.csv")
    (tmp_path / "out/acme").mkdir(parents=True)
    (tmp_path / "out/acme/Contacts.csv").symlink_to(tmp_path / "data.csv")
    result = run(manifest(acme="out/acme/Contacts.csv"))
    assert (result.code, simulator.count()) == (2, 0)
    assert (tmp_path / "out/acme/Contacts.csv").is_symlink()


def test_an_input_that_a_glob_excludes_is_not_replaced(
    run: Cli, manifest: Callable[..., Path], uploaded: list[str], tmp_path: Path
) -> None:
    source = put(tmp_path / "acme/Contacts.csv")
    put(tmp_path / "in/contacts.csv", SECRET)
    result = run(manifest(acme="**/*.csv"), "--out", ".")
    assert result.code == 3
    assert "is an input file: it was not replaced" in result.err + result.out
    assert source.read_bytes() == GOOD
    assert uploaded == ["contacts.csv"]


def test_ids_that_windows_reserves_have_separate_folders(
    run: Cli, manifest: Callable[..., Path], tmp_path: Path
) -> None:
    ids = ("con", "_con", "__con", "COM1", "_COM1")
    for each in ids:
        put(tmp_path / f"in/{each}.csv", f"Email,Name\n{each}@x.de,A\n".encode())
    assert run(manifest(**{each: f"in/{each}.csv" for each in ids})).code == 0
    sheets = [path.read_text(encoding="utf-8") for path in (tmp_path / "out").glob("*/Contacts.csv")]
    assert sorted(text.splitlines()[1] for text in sheets) == sorted(f"{each}@x.de,A" for each in ids)


@pytest.mark.parametrize("listed", [("acme", "bolt"), ("acme",), ("bolt",)])
def test_customers_whose_folders_are_linked_to_each_other_are_refused(
    run: Cli, manifest: Callable[..., Path], simulator: Simulator, tmp_path: Path, listed: tuple[str, ...]
) -> None:
    put(tmp_path / "in.csv")
    assert run(manifest(acme="in.csv")).code == 0
    (tmp_path / "out/bolt").symlink_to("acme")
    if listed == ("bolt",):  # the journal still contains acme
        (tmp_path / "out/report.json").unlink()
    sent = simulator.count()
    result = run(manifest(**dict.fromkeys(listed, "in.csv")))
    if listed == ("acme",):
        assert result.code == 0
        return
    assert (result.code, simulator.count()) == (2, sent), result.err
    assert "would be one folder on this file system" in result.err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--report", "customers.csv"), "is the manifest"),
        (("--report", "manifest-link.html"), "is the manifest"),
        (("--report", "manifest-hard.html"), "is the manifest"),
        (("--report", "sub/../customers.csv"), "is the manifest"),
        (("--report", "acme.csv"), "acme.csv"),
        (("--report", "other.txt"), "exists, and is not a report"),
        (("--report", "fleet.db"), "is the journal"),
        (("--report", "fleet.db.recent"), "is a file of the journal"),
        (("--report", "fleet.db-wal"), "is a file of the journal"),
        (("--report", "out/report.json"), "report"),
        (("--report", "out/Report.JSON"), "report"),
        (("--report", "out/acme/Contacts.csv"), "lies below out/acme"),
        (("--journal", "customers.csv"), "is the manifest"),
        (("--journal", "acme.csv"), "acme.csv"),
        (("--journal", "out/report.json"), "is the journal"),
        (("--journal", "out/acme/fleet.db"), "lies below out/acme"),
        (("--out", "taken"), "exists, and is not a report"),
    ],
)
def test_an_output_path_with_another_purpose_is_refused(
    run: Cli,
    manifest: Callable[..., Path],
    simulator: Simulator,
    tmp_path: Path,
    args: tuple[str, str],
    message: str,
) -> None:
    path = manifest(acme="acme.csv")
    put(tmp_path / "acme.csv")
    put(tmp_path / "other.txt", b"mine")
    put(tmp_path / "taken/report.json", b'{"mine": 1}')
    (tmp_path / "sub").mkdir()
    (tmp_path / "manifest-link.html").symlink_to(path)
    os.link(path, tmp_path / "manifest-hard.html")
    (tmp_path / "out/acme").mkdir(parents=True)
    before = {each: each.read_bytes() for each in tmp_path.rglob("*") if each.is_file()}
    result = run(path, *args)
    assert (result.code, simulator.count()) == (2, 0), result.err
    assert message in result.err
    assert {each: each.read_bytes() for each in before} == before


def test_an_html_report_does_not_replace_a_report_json(
    run: Cli, cli: Cli, manifest: Callable[..., Path], tmp_path: Path
) -> None:
    put(tmp_path / "acme.csv")
    assert run(manifest(acme="acme.csv"), "--report", "page.html").code == 0
    (tmp_path / "kept.json").write_bytes(before := (tmp_path / "out/report.json").read_bytes())
    for name in ("out/report.json", "kept.json"):
        result = cli("report", "--report", name)
        assert (result.code, "is not a report in HTML" in result.err) == (2, True)
        assert (tmp_path / name).read_bytes() == before
    assert cli("report", "--report", "page.html").code == 0


def test_a_manifest_in_a_delivery_folder_is_refused(
    run: Cli, manifest: Callable[..., Path], simulator: Simulator, tmp_path: Path
) -> None:
    put(tmp_path / "data/acme.csv")
    (tmp_path / "acme").mkdir()
    result = run(manifest("acme/Contacts.csv", acme="../data/acme.csv"), "--out", ".")
    assert (result.code, simulator.count()) == (2, 0)
    assert "manifest " in result.err


@pytest.mark.parametrize("glob", ["*", "*.csv", "**/*", "**/*.csv", "[a-z]*"])
def test_globs_exclude_output_files_with_a_note(
    run: Cli, manifest: Callable[..., Path], uploaded: list[str], tmp_path: Path, glob: str
) -> None:
    put(tmp_path / "acme.csv")
    put(tmp_path / "bolt-in.csv", SECRET)
    both = manifest("both.toml", acme="")
    tables = (
        f'[[company]]\nexternal_id="{key}"\nname="{key}"\nsource="HubSpot"\nfiles=["{file}"]\n'
        for key, file in (("acme", "acme.csv"), ("bolt", "bolt-in.csv"))
    )
    both.write_text("".join(tables), encoding="utf-8")
    assert run(both, "--report", "report.html").code == 0
    (tmp_path / "bolt-in.csv").unlink()
    both.unlink()
    uploaded.clear()
    result = run(
        manifest(cora=glob), "--report", "second.html", "--journal", "second.db", "--decide", "approve"
    )
    assert "a glob matches files that are not inputs, and leaves them out: " in result.err
    assert "customers.csv (the manifest)" in result.err
    assert result.code == 0, result.err
    assert uploaded == ["acme.csv"]


def test_a_resumed_run_does_not_upload_what_it_delivered(
    run: Cli, manifest: Callable[..., Path], uploaded: list[str], tmp_path: Path
) -> None:
    put(tmp_path / "acme.csv")
    put(tmp_path / "sub/bolt.csv", SECRET)
    manifest(acme="acme.csv", bolt="sub/bolt.csv")
    assert run("customers.csv").code == 0
    manifest(acme="acme.csv", bolt="sub/bolt.csv", cora="**/acme.csv;out/**/*.csv")
    result = run("customers.csv")
    assert result.code == 2
    assert "line 4: files: 'out/**/*.csv': matches no file, except out/" in result.err
    manifest(acme="acme.csv", cora="**/*.csv")  # bolt is no longer in the manifest
    result = run("customers.csv", "--json", "-q")
    assert result.code in (0, 3)
    assert "out/bolt/Contacts.csv (below out/bolt, where sheets are delivered)" in result.err
    assert "leaves them out" not in result.out
    assert sorted(uploaded) == ["acme.csv", "acme.csv", "bolt.csv", "bolt.csv"]


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("customers.csv", "is the manifest"),
        ("fleet.db", "is the journal"),
        ("fleet.db.last", "is a file of a journal"),
        ("old.db", "is a journal"),
        ("out/report.json", "is the report"),
        ("moved.json", "is a report"),
        ("report.html", "is a report"),
        ("out/acme/Contacts.csv", "is below out/acme"),
    ],
)
@pytest.mark.parametrize("command", ["run", "plan"])
def test_an_output_file_named_as_input_is_refused(
    run: Cli,
    manifest: Callable[..., Path],
    simulator: Simulator,
    tmp_path: Path,
    name: str,
    what: str,
    command: str,
) -> None:
    put(tmp_path / "acme.csv")
    manifest(acme="acme.csv")
    assert run("customers.csv", "--report", "report.html", "--journal", "old.db").code == 0
    os.rename(tmp_path / "out/report.json", tmp_path / "moved.json")
    run("customers.csv", "--plan")
    assert run("customers.csv").code in (0, 6)  # fleet.db does not contain acme
    sent = simulator.count()
    result = run(manifest(acme="acme.csv", bolt=name), *(["--plan"] if command == "plan" else []))
    assert result.code == 2
    assert f"line 3: files: '{name}': {what}" in result.err
    assert simulator.count() == sent


def test_check_excludes_the_same_files(
    cli: Cli, manifest: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VERN_API_KEY")
    put(tmp_path / "acme.csv")
    put(tmp_path / "out/acme/Contacts.csv")
    result = cli("check", manifest(acme="**/*.csv"))
    assert result.code == 0
    assert "acme.csv" in result.out
    assert "customers.csv" not in result.out
    assert "Contacts.csv" not in result.out
    assert "customers.csv (the manifest)" in result.err


@pytest.mark.parametrize("place", ["customers.csv", "acme.csv", "fleet.db", "fleet.db.last"])
def test_other_commands_do_not_replace_files_with_another_purpose(
    run: Cli, cli: Cli, manifest: Callable[..., Path], tmp_path: Path, place: str
) -> None:
    put(tmp_path / "acme.csv")
    assert run(manifest(acme="acme.csv")).code == 0
    before = (tmp_path / place).read_bytes()
    for command in (("report", "--report"), ("sim", "--ledger"), ("retry", "--report")):
        result = cli(*command, place)
        assert result.code == 2, command
        assert place in result.err
    assert (tmp_path / place).read_bytes() == before


def test_reports_of_an_earlier_run_are_replaced(run: Cli, cli: Cli, customers: Customers) -> None:
    manifest = customers(acme=GOOD)
    for _ in range(2):
        assert run(manifest, "--report", "report.html").code == 0
        assert cli("report", "--report", "journal.html").code == 0


@pytest.mark.parametrize("files", ["../outside.csv", "in/../../outside.csv", "in/link.csv", "in/*.csv"])
@pytest.mark.parametrize("by", ["option", "environment", "toml"])
def test_inputs_outside_of_the_root_are_refused(
    run: Cli,
    manifest: Callable[..., Path],
    simulator: Simulator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    files: str,
    by: str,
) -> None:
    put(tmp_path / "outside.csv", SECRET)
    put(tmp_path / "work/in/good.csv")
    (tmp_path / "work/in/link.csv").symlink_to(tmp_path / "outside.csv")
    path = manifest("work/customers.csv", acme=files)
    args: list[str] = []
    if by == "option":
        args = ["--root", "work/in"]
    elif by == "environment":
        monkeypatch.setenv("ASYNCMIG_ROOT", "work/in")
    else:
        path = tmp_path / "work/customers.toml"
        path.write_text(
            '[defaults]\nroot = "in"\n[[company]]\nexternal_id = "acme"\nname = "A"\nsource = "HubSpot"\n'
            f'files = ["{files}"]\n',
            encoding="utf-8",
        )
    result = run(path, *args)
    assert (result.code, simulator.count()) == (2, 0)
    assert f"files: '{files}': lies outside of" in result.err
    (tmp_path / "work/in/link.csv").unlink()
    missing = run(path, "--root", "none")
    assert (missing.code, simulator.count()) == (2, 0)
    assert "--root 'none' is not a folder" in missing.err
    if "*" in files:
        assert run(path, *args).code == 0
