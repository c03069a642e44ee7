"""Manifests in CSV: what the reader accepts, the faults that it reports, and files that are not manifests."""

import contextlib
import os
import pickle
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from asyncmig.customers.spec import ResolvedSpec
from asyncmig.errors import InvalidInput
from asyncmig.jobs.manifest import InvalidManifest, Manifest, read_manifest

HEADER = "external_id,name,source,templates,files"
HUBSPOT = "6b1c8f6e-7a3f-4a3c-9d2b-0f1e2d3c4b5a"
CONTACTS = "0d9a4a52-0b0e-4c0e-8f5e-1a2b3c4d5e6f"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.csv", "b.csv", "deep/c.csv", "odd[1].csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("id\n1\n", encoding="utf-8")
    (tmp_path / "empty.csv").touch()
    return tmp_path


def read(folder: Path, *lines: str, encoding: str = "utf-8", header: str = HEADER) -> Manifest:
    path = folder / "customers.csv"
    path.write_bytes("\n".join([header, *lines, ""]).encode(encoding))
    return read_manifest(path)


def faults(folder: Path, *lines: str, header: str = HEADER) -> list[str]:
    with pytest.raises(InvalidManifest) as caught:
        read(folder, *lines, header=header)
    return [str(fault) for fault in caught.value.faults]


def test_a_line_becomes_a_customer(folder: Path) -> None:
    (customer,) = read(folder, "acme-1,Acme,HubSpot,Contacts; Deals,a.csv;deep/*.csv").customers
    assert (customer.line, customer.external_id, customer.name, customer.source) == (
        2,
        "acme-1",
        "Acme",
        "HubSpot",
    )
    assert customer.templates == ("Contacts", "Deals")
    assert customer.files == (folder / "a.csv", folder / "deep/c.csv")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_bom_is_not_part_of_the_header(folder: Path, encoding: str) -> None:
    assert read(folder, "acme,Açme,s,,a.csv", encoding=encoding).customers[0].name == "Açme"


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_all_line_ends_and_quoted_cells_are_read(folder: Path, end: str) -> None:
    path = folder / "m.csv"
    path.write_bytes(end.join([HEADER, 'a,"Acme,\nInc",s,,a.csv', "", "b,B,s,,b.csv"]).encode())
    first, second = read_manifest(path).customers
    assert first.name == "Acme,\nInc"
    assert (second.external_id, second.line) == ("b", 5)


def test_the_templates_column_is_optional_and_columns_may_have_any_order(folder: Path) -> None:
    manifest = read(folder, "a.csv,s,Acme,x,acme", header="files,Source,NAME,crm owner,external_id")
    assert manifest.customers[0].templates == ()
    assert manifest.ignored == ("crm owner",)


def test_a_glob_is_expanded_once_and_in_order(folder: Path) -> None:
    (customer,) = read(folder, "acme,Acme,s,,b.csv;[ab].csv;**/c.csv").customers
    assert customer.files == (folder / "b.csv", folder / "a.csv", folder / "deep/c.csv")


def test_one_file_in_several_spellings_is_imported_once(folder: Path) -> None:
    (folder / "link.csv").symlink_to("a.csv")
    (customer,) = read(folder, "acme,Acme,s,,a.csv;deep/../a.csv;./a.csv;link.csv;[al]*.csv").customers
    assert customer.files.count(folder / "a.csv") == 1
    assert folder / "deep/../a.csv" not in customer.files
    assert folder / "link.csv" not in customer.files


def test_an_existing_file_whose_name_looks_like_a_glob_is_not_expanded(folder: Path) -> None:
    assert read(folder, "acme,Acme,s,,odd[1].csv").customers[0].files == (folder / "odd[1].csv",)


def test_all_faults_are_found_at_once_with_line_and_field(folder: Path) -> None:
    assert faults(
        folder,
        "a b,Acme,s,,a.csv",
        "dup,,s,,a.csv",
        "dup,B,,,none.csv;empty.csv",
        "ok,C,s,,deep/*.txt",
        "deep,D,s,,deep",
        "short,E",
        "long,F,s,,a.csv,more",
    ) == [
        "line 2: external_id: 'a b' must be 1 to 255 of A-Z, a-z, 0-9, _ and -",
        "line 3: name: is empty",
        "line 4: external_id: 'dup' is already on line 3",
        f"line 4: files: '{folder}/none.csv': No such file or directory",
        f"line 4: files: '{folder}/empty.csv': is empty",
        "line 4: source: is empty: the API generation 'companies' needs one",
        "line 5: files: 'deep/*.txt': matches no file",
        f"line 6: files: '{folder}/deep': is not a file",
        "line 7: files: is empty: name at least one file",
        "line 7: source: is empty: the API generation 'companies' needs one",
        "line 8: manifest: has 6 cells where the header has 5",
    ]


def test_a_customer_of_the_generation_migrations_may_have_no_source(folder: Path) -> None:
    path = folder / "customers.csv"
    path.write_text(f"{HEADER}\nacme,Acme,,,a.csv\n", encoding="utf-8")
    (spec,) = read_manifest(path, api="migrations").specs()
    assert (spec.source, repr(spec)) == ("", "<Spec acme: 'Acme' from no source, 1 files>")


def test_missing_and_repeated_columns_are_faults(folder: Path) -> None:
    assert faults(folder, header="external_id,name,name,sources") == [
        "line 1: source: this column is missing; is 'sources' meant for it?",
        "line 1: files: this column is missing",
        "line 1: name: this column appears twice",
    ]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (HEADER.encode(), "lists no customers, only a header"),
        (HEADER.encode("utf-16"), "is UTF-16: save it as UTF-8"),
        (b"PK\x03\x04...", "is a ZIP archive or an Excel workbook: save it as CSV (UTF-8)"),
        (
            HEADER.encode() + b"\na,Caf\xe9,s,,a.csv",
            "line 2: manifest: is not UTF-8 (byte 0xe9): save it as UTF-8",
        ),
        (
            HEADER.encode() + b'\na,"Acme,s,,a.csv',
            "line 2: manifest: is not CSV from here on (unexpected end of data)",
        ),
        (HEADER.replace(",", ";").encode(), "separates its columns with ';': use ','"),
    ],
)
def test_a_file_that_is_not_a_manifest_is_refused_with_the_reason(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    path = tmp_path / "m.csv"
    path.write_bytes(content)
    with pytest.raises(InvalidManifest) as caught:
        read_manifest(path)
    assert reason in str(caught.value)


def test_a_missing_manifest_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidManifest, match="No such file"):
        read_manifest(tmp_path / "none.csv")
    with pytest.raises(InvalidManifest, match="directory"):
        read_manifest(tmp_path)


def test_the_error_can_be_pickled(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput) as caught:
        read_manifest(tmp_path / "none.csv")
    again = pickle.loads(pickle.dumps(caught.value))
    assert isinstance(again, InvalidManifest)
    assert (str(again), again.faults) == (str(caught.value), caught.value.faults)


def test_a_spec_has_the_names_as_written_in_the_manifest(folder: Path) -> None:
    first, second = read(folder, f"a,A,hubSpot,contacts;{CONTACTS},a.csv", f"b,B,{HUBSPOT},,b.csv").specs()
    assert (first.source, first.templates) == ("hubSpot", ("contacts", CONTACTS))
    assert (second.source, second.templates) == (HUBSPOT, None)


def test_every_unknown_name_is_listed_once(folder: Path) -> None:
    manifest = read(
        folder, "a,A,Twin,Contact,a.csv", "b,B,Pipedrive,Deals,b.csv", "c,C,Pipedrive,Contact,b.csv"
    )
    source, template = (
        InvalidInput("source", "Pipedrive", "is odd"),
        InvalidInput("templates", "Contact", "is new"),
    )
    faults = ((InvalidInput("source", "Twin", "is two"), template), (source,), (source, template))
    with pytest.raises(InvalidManifest) as caught:
        manifest.check_names(map(ResolvedSpec, manifest.specs(), faults))
    assert [str(fault) for fault in caught.value.faults] == [
        "line 2: source: 'Twin' is two",
        "line 2: templates: 'Contact' is new (also on line 4)",
        "line 3: source: 'Pipedrive' is odd (also on line 4)",
    ]
    manifest.check_names(ResolvedSpec(spec, ()) for spec in manifest.specs())


CELLS = st.text(alphabet=st.characters(codec="utf-8", exclude_characters="/*"), max_size=8)
RECORDS = st.lists(st.lists(CELLS, max_size=6).map(",".join), max_size=6).map("\n".join)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.one_of(
        st.binary(max_size=200),
        RECORDS.map(str.encode),
        RECORDS.map(lambda text: f"{HEADER}\n{text}".encode()),
        RECORDS.map(lambda text: f"{HEADER}\n{text}".encode("utf-16")),
        CELLS.map(lambda text: f"{HEADER}\na,A,s,{text},{text}".encode()),
    )
)
@example(f"{HEADER}\na,A,s,,a\0b\n".encode())
@example(f"{HEADER}\na,A,s,,{'x' * 300}\n".encode())
@example(f"{HEADER}\na,A,s,,[\n".encode())
@example(f"{HEADER}\na,{'x' * 140_000},s,,a.csv\n".encode())
def test_arbitrary_bytes_are_read_or_raise_invalid_manifest(folder: Path, content: bytes) -> None:
    path = folder / "m.csv"
    path.write_bytes(content)
    with contextlib.suppress(InvalidManifest):
        manifest = read_manifest(path)
        assert all(customer.files for customer in manifest.customers)


ROW = "acme,Acme,s,,a.csv"


def faults_of(path: Path) -> list[str]:
    with pytest.raises(InvalidManifest) as refused:
        read_manifest(path)
    return [str(fault) for fault in refused.value.faults]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (
            f"{HEADER}\n{ROW}".replace(",", "\t"),
            "separates its columns with tabs: use ','",
        ),
        (f"{HEADER}\n{ROW}".replace(",", ";"), "separates its columns with ';': use ','"),
        (f"{HEADER}\n{ROW}".replace(",", "|"), "separates its columns with '|': use ','"),
        (f"sep=;\n{HEADER}\n{ROW}".replace(",", ";"), "begins with 'sep=;': remove this line"),
        (f"sep=\t\n{HEADER}\n{ROW}".replace(",", "\t"), "begins with 'sep=\t': remove this line"),
        (f'"{HEADER}"\n"{ROW}"', "has each line in quotes"),
        (f"{HEADER}\n{ROW}".encode("utf-16-le"), "UTF-16 without a byte order mark"),
        (f"{HEADER}\n{ROW}".encode("utf-16-be"), "UTF-16 without a byte order mark"),
        (f"{HEADER}\n{ROW}".encode("utf-16"), "is UTF-16: save it as UTF-8"),
        (f"{HEADER}\n{ROW}".encode("utf-32"), "save it as UTF-8"),
        (f"{HEADER}\nacme,Café,s,,a.csv".encode("cp1252"), "is not UTF-8 (byte 0xe9): save it as UTF-8"),
        (f"{HEADER},é\n{ROW}".encode("cp1252"), "is not UTF-8 (byte 0xe9): save it as UTF-8"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1...", "is an old Excel workbook: save it as CSV (UTF-8)"),
        (b"PK\x03\x04...", "is a ZIP archive or an Excel workbook: save it as CSV (UTF-8)"),
        ("\ufeff", "is empty"),
        ("\ufeff\n \u200b\n", "is empty"),
        (",,\n,,", "has no header"),
        (
            ROW,
            "has no header: the first line must name the columns external_id, name, source, files, templates",
        ),
        ('[[company]]\nexternal_id = "acme"\n', "looks like TOML"),
        ("<html><table><tr><td>external_id</td></tr></table></html>", "looks like HTML or XML"),
        ('{"external_id": "acme"}', "looks like JSON"),
        ('[{"external_id": "acme"}]', "looks like JSON"),
        ('[\n  {"external_id": "acme"}\n]', "looks like JSON"),
        ('[defaults]\nout = "x"', "looks like TOML"),
    ],
    ids=ascii,
)
def test_a_wrong_file_format_is_reported_as_a_single_fault(
    folder: Path, content: str | bytes, reason: str
) -> None:
    path = folder / "m.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    (fault,) = faults_of(path)
    assert reason in fault


@pytest.mark.parametrize(
    "header",
    [
        f"\ufeff{HEADER}",
        f"\ufeff\ufeff{HEADER}",
        f"sep=,\n{HEADER}",
        HEADER.upper(),
        HEADER.replace(",", " , "),
        HEADER.replace("external_id", "External ID"),
        HEADER.replace("external_id", "external-id"),
        HEADER.replace("external_id", "external\u00a0id"),
        HEADER.replace("name", "na\u200bme"),
        HEADER.replace("source", "\u200bsource\ufeff"),
    ],
    ids=ascii,
)
@pytest.mark.parametrize("mark", ["", "\ufeff", "\u200b"], ids=ascii)
def test_unambiguous_variants_of_the_header_are_read(folder: Path, header: str, mark: str) -> None:
    path = folder / "m.csv"
    path.write_text(f"{header}\n{mark}{ROW}{mark}\n", encoding="utf-8")
    (customer,) = read_manifest(path).customers
    assert (customer.external_id, customer.name, customer.files) == ("acme", "Acme", (folder / "a.csv",))


@pytest.mark.parametrize(
    ("part", "hint"),
    [
        ("deep\\c.csv", "folders are separated by '/': write deep/c.csv"),
        ("deep\\*.csv", "folders are separated by '/': write deep/*.csv"),
        ("C:\\data\\a.csv", "it is a Windows path"),
        ("\\\\server\\share\\a.csv", "it is a Windows path"),
        ("~/a.csv", "'~' is not expanded"),
        ("~ada/*.csv", "'~' is not expanded"),
        ("file:///data/my%20a.csv", "it is a URL: write its path, /data/my a.csv"),
        ("https://example.org/a.csv", "it is a URL: download the file"),
        ("'a.csv'", "it has quotes around it: write a.csv"),
        ('""a.csv""', "it has quotes around it: write a.csv"),
        ("\u201ca.csv\u201d", "it has quotes around it: write a.csv"),
        ("$HOME/a.csv", "variables are not expanded"),
        ("%USERPROFILE%/a.csv", "variables are not expanded"),
        ("a\u200b.csv", "it has invisible or look-alike characters (U+200B ZERO WIDTH SPACE)"),
    ],
    ids=ascii,
)
@pytest.mark.skipif(os.name == "nt", reason="paths of POSIX")
def test_the_fault_of_a_path_without_a_file_has_a_hint(folder: Path, part: str, hint: str) -> None:
    cell = '"""a.csv"""' if part.startswith('"') else part
    (fault,) = faults(folder, f"acme,Acme,s,,{cell}")
    assert fault.startswith("line 2: files: ")
    assert hint in fault


@pytest.mark.skipif(os.name == "nt", reason="paths of POSIX")
@pytest.mark.parametrize("name", ["back\\slash.csv", "~home.csv", "'quoted'.csv", "$x.csv"])
def test_an_existing_file_with_special_characters_is_found(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"x")
    assert read(folder, f"acme,Acme,s,,{name}").customers[0].files == (folder / name,)
