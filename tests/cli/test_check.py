"""`asyncmig check`: with templates from the API, from a file or without templates; text, JSON and exit codes."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from asyncmig import RetryPolicy
from asyncmig.preflight import CheckedFile
from asyncmig.simulator import Reply, Request

from .conftest import CONTACTS, Cli, Simulator

Customers = Callable[..., Path]
GOOD = b"Email,Name\na@x.org,A\nb@x.org,B\n"
BAD = b"Email,Name\na@x.org,A\nnobody,\na@x.org,C\n"
TEMPLATES = [
    {"id": "o", "name": "Others", "columns": [{"name": "Email"}, {"name": "Name"}]},
    {"id": CONTACTS, "name": "Contacts", "columns": [{"name": "Email", "unique": True}, {"name": "Name"}]},
]


@pytest.fixture
def base_url(simulator: Simulator, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("VERN_BASE_URL", simulator.base_url)
    return simulator.base_url


def test_check_requests_the_templates_of_the_account_once(
    cli: Cli, customers: Customers, simulator: Simulator, base_url: str
) -> None:
    customers(acme=BAD, bolt=GOOD)
    result = cli("check", "customers.csv")
    assert result.code == 0
    assert result.out.splitlines() == [
        "acme  acme.csv: 3 rows, 2 columns, utf-8, most like Contacts (2 columns of the same name)",
        "  warning: Email: must be unique, and a value is repeated in 1 row (line 4: 'a@x.org')",
        r"  warning: Email: does not match the rule \S+@\S+ in 1 row (line 3: 'nobody')",
        "  warning: Name: is required, and empty in 1 row (line 3)",
        "bolt  bolt.csv: 2 rows, 2 columns, utf-8, most like Contacts (2 columns of the same name)",
    ]
    assert "2 files of 2 customers: 3 warnings. The server decides, and may accept" in result.err
    assert simulator.count() == simulator.count("GET /templates") == 1


@pytest.mark.parametrize("origin", ["environment", "manifest"])
def test_the_base_url_comes_from_the_environment_or_the_manifest(
    cli: Cli, customers: Customers, simulator: Simulator, monkeypatch: pytest.MonkeyPatch, origin: str
) -> None:
    manifest = customers(acme=GOOD).with_suffix(".toml")
    defaults = ""
    if origin == "environment":
        monkeypatch.setenv("ASYNCMIG_BASE_URL", simulator.base_url)
    else:
        defaults = f"[defaults]\nbase-url = '{simulator.base_url}'\n"
    manifest.write_text(
        f"{defaults}[[company]]\nexternal_id = 'a'\nname = 'A'\nsource = 'HubSpot'\nfiles = ['acme.csv']\n",
        encoding="utf-8",
    )
    assert cli("check", manifest).code == 0
    assert simulator.count("GET /templates") == 1


def test_json_output_has_one_object_per_line(cli: Cli, customers: Customers, base_url: str) -> None:
    customers(acme=BAD, bolt=GOOD)
    acme, bolt = map(json.loads, cli("check", "customers.csv", "--json").out.splitlines())
    assert (acme["external_id"], bolt["external_id"]) == ("acme", "bolt")
    (file,) = msgspec.convert(acme["files"], list[CheckedFile])
    assert [(warning.kind, warning.count) for warning in file.warnings] == [
        ("unique", 1),
        ("strict", 1),
        ("required", 1),
    ]


@pytest.mark.parametrize("wrap", [lambda templates: {"templates": templates}, lambda templates: templates])
def test_the_example_of_the_help_works_with_templates_from_a_file(
    cli: Cli, customers: Customers, monkeypatch: pytest.MonkeyPatch, wrap: Callable[[object], object]
) -> None:
    monkeypatch.delenv("VERN_API_KEY")
    customers(acme=BAD)
    Path("templates.json").write_text(json.dumps(wrap(TEMPLATES)), encoding="utf-8")
    example = re.search(r"Example: asyncmig (check .*)", cli("check", "--help").out)
    assert example is not None
    result = cli(*example[1].split())
    assert result.code == 0
    assert result.out.count("warning:") == 1


def test_without_a_key_only_the_files_are_checked(
    cli: Cli, customers: Customers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VERN_API_KEY")
    customers(acme=BAD, bolt=b"a;b\n1;\xe9\n")
    result = cli("check", "customers.csv", "--head", "1")
    assert result.code == 0
    assert "without VERN_API_KEY or --templates FILE, only the files themselves are checked" in result.err
    assert "acme  acme.csv: 1 row read, 2 columns, utf-8\n" in result.out
    assert "is not UTF-8: byte 0xe9 at offset 6, on line 2; it may be cp1252" in result.out
    assert "separated by semicolons" in result.out


@pytest.mark.parametrize(("status", "code"), [(401, 4), (404, 0), (500, 75), (302, 75)])
def test_the_exit_code_if_the_server_returns_no_templates(
    cli: Cli,
    customers: Customers,
    simulator: Simulator,
    base_url: str,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    code: int,
) -> None:
    # Retries would take real time.
    monkeypatch.setattr("asyncmig.session.RetryPolicy", lambda: RetryPolicy(attempts=1))

    def answer(request: Request) -> Reply:
        return Reply(status=status, body=b'{"error": "no"}')

    simulator.intercept = answer
    customers(acme=GOOD)
    result = cli("check", "customers.csv")
    assert result.code == code
    assert ("does not list templates" if status == 404 else "could not be read") in result.err


def test_unknown_templates_are_reported(cli: Cli, tmp_path: Path, customers: Customers) -> None:
    customers(acme=GOOD)
    Path("t.json").write_text(json.dumps([{"id": "d", "name": "Deals"}]), encoding="utf-8")
    result = cli("check", "customers.csv", "--templates", "t.json")
    assert (result.code, result.out) == (2, "")
    assert "line 2: templates: 'Contacts' is not known; there are ['Deals']" in result.err


@pytest.mark.parametrize(("content", "message"), [("{", "not JSON"), ("[{}]", "id"), (None, "No such file")])
def test_a_file_without_valid_templates_is_reported(
    cli: Cli, customers: Customers, content: str | None, message: str
) -> None:
    customers(acme=GOOD)
    if content is not None:
        Path("t.json").write_text(content, encoding="utf-8")
    result = cli("check", "customers.csv", "--templates", "t.json")
    assert (result.code, result.out) == (2, "")
    assert message in result.err


def test_faults_of_the_manifest_are_reported_before_any_request(
    cli: Cli, customers: Customers, simulator: Simulator
) -> None:
    customers(acme=b"")
    result = cli("check", "customers.csv", "--base-url", simulator.base_url)
    assert result.code == 2
    assert "is empty" in result.err
    assert simulator.count() == 0


def test_control_characters_of_files_and_templates_are_not_printed(cli: Cli, customers: Customers) -> None:
    manifest = customers(acme=b"Email,Name,\x1b[31mred\nx\x1b[2J,[bold]A[/]\nx\x1b[2J,A\n")
    manifest.write_text(manifest.read_text(encoding="utf-8").replace(",Contacts,", f",{CONTACTS},"), "utf-8")
    red = {"name": "\x1bEmail", "unique": True}
    templates = [{"id": CONTACTS, "name": "Red\x1b[31m", "columns": [red, {"name": "Name"}]}]
    Path("t.json").write_text(json.dumps(templates), encoding="utf-8")
    result = cli("check", "customers.csv", "--templates", "t.json")
    assert result.code == 0
    assert "\x1b" not in result.out
    assert "most like Red [31m (2 columns" in result.out
    assert "Email: must be unique" in result.out


def test_without_the_extra_the_output_names_what_to_install(
    cli: Cli, customers: Customers, base_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    customers(acme=BAD)
    for module in ("charset_normalizer", "re2"):
        monkeypatch.setitem(sys.modules, module, None)
    result = cli("check", "customers.csv")
    assert result.code == 0
    assert "encodings are not guessed and strict rules are not checked" in result.err
    assert "pip install 'asyncmig[check]'" in result.err
