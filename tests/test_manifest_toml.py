"""Manifests in TOML: customers, defaults and live connections, and the faults that the reader reports."""

from pathlib import Path

import pytest

from asyncmig.jobs.manifest import InvalidManifest, Manifest, read_defaults, read_manifest

ACME = """[[company]]
external_id = "acme"
name = "Acme Inc"
source = "HubSpot"
files = ["a;b.csv", "more/*.csv"]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "more").mkdir()
    for name in ("a;b.csv", "more/1.csv", "more/2.csv"):
        (tmp_path / name).write_text("x", encoding="utf-8")
    return tmp_path


def read(folder: Path, text: str, **options: str) -> Manifest:
    path = folder / "customers.toml"
    path.write_text(text, encoding="utf-8")
    return read_manifest(path, **options)


def faults(folder: Path, text: str, **options: str) -> list[str]:
    with pytest.raises(InvalidManifest) as caught:
        read(folder, text, **options)
    return [str(fault) for fault in caught.value.faults]


def test_a_table_becomes_a_customer_and_file_names_in_a_list_may_contain_semicolons(folder: Path) -> None:
    text = f'[defaults]\nrate = "50/60s"\n\n{ACME}templates = ["Deals"]\nowner = "Eve"\n'
    manifest = read(folder, text)
    (customer,) = manifest.customers
    assert (customer.line, customer.external_id, customer.source) == (4, "acme", "HubSpot")
    assert customer.templates == ("Deals",)
    assert [file.relative_to(folder).as_posix() for file in customer.files] == [
        "a;b.csv",
        "more/1.csv",
        "more/2.csv",
    ]
    assert manifest.ignored == ("owner",)
    assert manifest.defaults == read_defaults(folder / "customers.toml") == {"rate": "50/60s"}


def test_a_text_with_several_files_is_split_as_in_csv(folder: Path) -> None:
    (customer,) = read(folder, ACME.replace('["a;b.csv", "more/*.csv"]', '"more/1.csv;more/2.csv"')).customers
    assert len(customer.files) == 2


def test_all_faults_are_found_at_once(folder: Path) -> None:
    broken = '[[company]]\nexternal_id = "acme"\nname = 7\nsource = ""\nfiles = ["none.csv", 3]\n'
    found = faults(folder, f"{ACME}\n{broken}\n[[company]]\nname = 'x'\n[more]\n")
    assert [fault.replace(f"{folder}/", "") for fault in found] == [
        "more: is unknown: there are [[company]] and [defaults]",
        "line 7: name: must be a string: 7",
        "line 7: files: must be a list of strings: ['none.csv', 3]",
        "line 7: name: is empty",
        "line 7: external_id: 'acme' is already on line 1",
        "line 7: files: 'none.csv': No such file or directory",
        "line 7: files: '3': No such file or directory",
        "line 7: source: is empty: the API generation 'companies' needs one",
        "line 13: external_id: is missing",
        "line 13: files: is missing",
    ]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("external_id = acme", "line 1: manifest: is not TOML"),
        ("[defaults]\n", "manifest: lists no customers: there is no [[company]]"),
        ("company = 3\n", "company: must be tables: [[company]]"),
        ("company = [1, 2]\n", "company: must be tables: [[company]]"),
        (f"defaults = 3\n{ACME}", "defaults: must be a table: [defaults]"),
    ],
)
def test_a_file_that_is_not_a_manifest_is_refused_with_the_reason(
    folder: Path, text: str, fault: str
) -> None:
    (found,) = faults(folder, text)
    assert found.startswith(fault)


def test_a_text_of_several_lines_does_not_change_the_line_of_a_company(folder: Path) -> None:
    text = ACME.replace('"Acme Inc"', '"""Acme\n[[company]]\nInc"""').replace("acme", "a b")
    assert faults(folder, text) == ["line 1: external_id: 'a b' must be 1 to 255 of A-Z, a-z, 0-9, _ and -"]


def test_csv_files_and_missing_files_have_no_defaults(folder: Path) -> None:
    assert read_defaults(folder / "customers.csv") == {}
    assert read_defaults(folder / "none.toml") == {}


LIVE = """[[company]]
external_id = "bolt"
name = "Bolt GmbH"
source = "Salesforce"

[company.connection]
source_key = "salesforce"
config = { region = "eu" }
credentials = "BOLT_CREDENTIALS"
"""


def test_a_customer_may_have_a_live_connection_with_or_without_files(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BOLT_CREDENTIALS", '{"token": "s3cret", "port": 8080}')
    manifest = read(
        folder,
        LIVE + ACME.replace("acme", "both") + '[company.connection]\nsource_key = "hubspot"\n',
        api="migrations",
    )
    live, both = manifest.customers
    assert live.files == ()
    assert live.connection is not None
    assert (live.connection.source_key, live.connection.config) == ("salesforce", {"region": "eu"})
    assert live.connection.credentials == {"token": "s3cret", "port": 8080}
    assert both.connection is not None
    assert (len(both.files), both.connection.credentials) == (3, {})
    assert manifest.ignored == ()
    assert "s3cret" not in repr(manifest)


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ('"salesforce"', '"Salesforce"', "line 1: connection.source_key: 'Salesforce' must be in lower case"),
        ('source_key = "salesforce"', "", "line 1: connection.source_key: is missing"),
        ('{ region = "eu" }', "3", "line 1: connection.config: 3 must be a table"),
        (
            "config",
            "region",
            "line 1: connection.region: '***' is unknown; there are source_key, config, credentials",
        ),
        (
            '"BOLT_CREDENTIALS"',
            '"NOT_SET"',
            "line 1: connection.credentials: 'NOT_SET' this environment variable is not set",
        ),
        ('"BOLT_CREDENTIALS"', '"PLAIN"', "must hold a JSON object"),
        ('"BOLT_CREDENTIALS"', '"EMPTY"', "holds no field"),
        (
            '"BOLT_CREDENTIALS"',
            '"sk-s3cret!"',
            "must be the name of an environment variable, not the credentials",
        ),
        ('"BOLT_CREDENTIALS"', '{ token = "s3cret" }', "must be the name of an environment variable"),
    ],
)
def test_the_faults_of_a_connection_contain_no_secret(
    folder: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str, fault: str
) -> None:
    monkeypatch.setenv("BOLT_CREDENTIALS", '{"token": "s3cret"}')
    monkeypatch.setenv("PLAIN", "s3cret")
    monkeypatch.setenv("EMPTY", "{}")
    (found,) = faults(folder, LIVE.replace(old, new), api="migrations")
    assert fault in found
    assert "s3cret" not in found


def test_a_customer_may_have_no_source_unless_its_name_is_misspelled(folder: Path) -> None:
    sourceless = ACME.replace('source = "HubSpot"\n', "")
    (customer,) = read(folder, sourceless, api="migrations").customers
    assert customer.source == ""
    assert faults(folder, sourceless) == [
        "line 1: source: is empty: the API generation 'companies' needs one"
    ]
    misspelled = f'{sourceless}sorce = "HubSpot"\n'
    assert faults(folder, misspelled, api="migrations") == ["line 1: source: is missing"]


def test_a_customer_needs_files_or_a_connection(folder: Path) -> None:
    assert faults(folder, LIVE.split("\n[company.connection]")[0]) == ["line 1: files: is missing"]
    assert faults(folder, LIVE.split("\n[company.connection]")[0] + "connection = 3\nfiles = []\n") == [
        "line 1: connection: must be a table: [company.connection]",
        "line 1: files: is empty: name at least one file",
    ]
