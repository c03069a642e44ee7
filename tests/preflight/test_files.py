"""The form of files: encodings, delimiters, line ends, quotes and arbitrary bytes."""

import asyncio
import contextlib
import csv
import io
import json
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from asyncmig import InvalidInput, preflight
from asyncmig.preflight import Checked, CheckedFile
from asyncmig.preflight.csv_file import Records, sniff

DATA = Path(__file__).parents[2].parent / "shared" / "data"  # real files, which are not in the repository
real = pytest.mark.skipif(not DATA.is_dir(), reason="there are no real files")
CONTACTS = "name,city\nJosé,Malmö\nZoë,São Paulo\nÁngel,Köln\n"


def check_file(path: Path, head: int | None = None) -> CheckedFile:
    checked = asyncio.run(preflight.check([path], head=head))
    assert msgspec.json.decode(msgspec.json.encode(checked), type=Checked) == checked
    return checked.files[0]


def write(folder: Path, content: bytes | str, name: str = "a.csv") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def kinds(file: CheckedFile) -> list[str]:
    return [warning.kind for warning in file.warnings]


@pytest.mark.parametrize(
    ("encoding", "detected", "warning_kinds"),
    [
        ("utf-8", "utf-8", []),
        ("utf-8-sig", "utf-8-sig", []),
        ("cp1252", "cp1252", ["encoding"]),
        ("utf-16", "utf-16", ["encoding"]),
        ("utf-16-le", "utf_16_le", ["encoding"]),
        ("utf-32", "utf-32", ["encoding"]),
    ],
)
def test_an_encoding_is_detected_and_decoded(
    tmp_path: Path, encoding: str, detected: str, warning_kinds: list[str]
) -> None:
    file = check_file(write(tmp_path, CONTACTS.encode(encoding)))
    assert (file.encoding, file.rows, kinds(file)) == (detected, 3, warning_kinds)
    assert [match.header for match in file.headers] == ["name", "city"]


@pytest.mark.parametrize(
    "text", ["имя,город\nИван,Москва\nМария,Казань\n", "名前,市\n山田太郎,東京\n佐藤,大阪\n"]
)
def test_encodings_of_other_alphabets_are_detected(tmp_path: Path, text: str) -> None:
    encoding = "cp1251" if "М" in text else "cp932"
    file = check_file(write(tmp_path, text.encode(encoding)))
    assert file.encoding == encoding
    assert file.headers[0].header == text[: text.index(",")]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_the_warning_names_the_first_byte_that_is_not_utf8(tmp_path: Path, end: bytes) -> None:
    head = b"name,city" + end + "Zoë,x".encode() + end + b"a,b"
    file = check_file(write(tmp_path, head + b"\xe9" + end))
    warning = file.warnings[0]
    assert warning.text.startswith(f"is not UTF-8: byte 0xe9 at offset {len(head)}, on line 3; it may be")
    assert warning.samples[0].line == 3


@pytest.mark.parametrize("shift", range(-5, 2))
def test_a_character_in_two_chunks_is_decoded_and_later_offsets_are_correct(
    tmp_path: Path, shift: int
) -> None:
    head = b"a\n" + b"x" * (2**20 - 2 + shift) + "€\r\n".encode()
    assert check_file(write(tmp_path, head + b"y")).encoding == "utf-8"
    text = check_file(write(tmp_path, head + b"\xff")).warnings[0].text
    assert f"at offset {len(head):,}, on line 3;" in text


def test_a_character_truncated_by_the_end_of_the_file_is_reported(tmp_path: Path) -> None:
    assert "offset 5," in check_file(write(tmp_path, b"a,b\n1\xe2\x82")).warnings[0].text


@pytest.mark.parametrize(
    ("name", "content", "warning_kinds"),
    [
        ("a.xlsx", b"PK\x03\x04...", []),
        ("a.xls", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", []),
        ("a.json", b"{}", []),
        ("a.csv", b"PK\x03\x04...", ["not_text"]),
        ("a.csv", random.Random(1).randbytes(4000), ["not_text"]),
    ],
)
def test_a_file_that_is_not_csv_is_not_parsed(
    tmp_path: Path, name: str, content: bytes, warning_kinds: list[str]
) -> None:
    file = check_file(write(tmp_path, content, name))
    assert (file.rows, file.delimiter, kinds(file)) == (None, None, warning_kinds)
    assert bool(file.notes) == (not warning_kinds)


def test_nuls_are_counted(tmp_path: Path) -> None:
    file = check_file(write(tmp_path, b"a,b\n1,\x002\n\x003,4\n"))
    assert (file.rows, kinds(file)) == (2, ["nul"])
    assert file.warnings[0].text == "has 2 NUL characters, the first on line 2"


@pytest.mark.parametrize(
    ("delimiter", "text"),
    [
        (";", "name;amount\nB;1,5\nC;2,5\n"),
        (";", "Name;Phone\n"),
        ("\t", "a\tb\tc\nx, y\t1\tz, w\nx, y\t2\tz, w\n"),
        ("|", "a|b\n1,0|2\n"),
        (",", "a,b\nx;y;z,1\nx;y;z,2\n"),
        (",", 'n,t\n"a;b","c;d"\n"a;b","e;f"\n'),
        (";", "E-mail;Name;Phone\na@x.org;A;1,5\nb at x;;2\nc@x.org;Z\nq@x.org;Q;1;2\n"),
        (",", "email\na@x.org\n"),
        (",", "notes\n" + "well; yes\n" * 30),
        (",", 'notes\n"well; yes"\n"well; no"\n'),
    ],
)
def test_the_delimiter_is_detected(tmp_path: Path, delimiter: str, text: str) -> None:
    file = check_file(write(tmp_path, text))
    assert file.delimiter == delimiter
    assert ("delimiter" in kinds(file)) == (delimiter != ",")


@pytest.mark.parametrize(
    ("text", "kind", "lines", "expected_text"),
    [
        ("a,b\n1\n1,2\n3\n", "rows_short", [2, 4], "fewer cells than the header's 2 in 2 rows"),
        ('a,b\n"1\n",2\n1,2,3\n', "rows_long", [4], "more cells than the header's 2 in 1 row"),
        ("a,b\n1,2\n\n , \n3,4\n\n\n", "rows_blank", [3], "nothing at all in 2 rows"),
        ('a,b\n1,2\n3,"4\n5,6\n', "quote_open", [3], "never closed"),
        ('a,b\n1,2\n3,4\n5,"', "quote_open", [4], "never closed"),
        ("a,b\n\n", "no_rows", [], "has a header and no rows"),
        ("\n\n", "no_header", [], "every line is blank"),
        ("a,, ,b\n1,2,3,4\n", "header_empty", [], "2 columns of 4 without a header: 2, 3"),
        ("a,b,a ,c,c\n1,2,3,4,5\n", "header_twice", [], "2 headers more than once: 'a', 'c'"),
        ("a,b\r1,2\r", "line_ends", [], "CR alone"),
        ("a," * 3000 + "a\n1", "header_many", [], "3,001 columns; only the first 2,000"),
    ],
)
def test_each_defect_of_the_form_is_reported_with_its_lines(
    tmp_path: Path, text: str, kind: str, lines: list[int], expected_text: str
) -> None:
    found = {warning.kind: warning for warning in check_file(write(tmp_path, text)).warnings}
    assert kind in found
    assert expected_text in found[kind].text
    assert [sample.line for sample in found[kind].samples] == lines


@pytest.mark.parametrize("text", ['a,b\n1,"x ""y"" z"\n', 'a,b\n1,"x\ny"\n', 'a,b\n1,2"\n', "a,b\n1,2"])
def test_closed_quotes_cause_no_warning(tmp_path: Path, text: str) -> None:
    assert kinds(check_file(write(tmp_path, text))) == []


def test_reading_stops_at_a_cell_without_an_end(tmp_path: Path) -> None:
    file = check_file(write(tmp_path, b"a,b\n1,2\n3,4\n5," + b"xyz \n" * 5 + b'6,"' + b"x" * 5_000_000))
    assert kinds(file)[0] == "broken_off"
    assert "from line 9:" in file.warnings[0].text
    assert file.complete is False


def test_reading_stops_at_a_cell_over_the_limit_of_the_csv_module(tmp_path: Path) -> None:
    path = write(tmp_path, b"a,b\n1,2\n3," + b"x" * 1001 + b"\n")
    before = csv.field_size_limit(1000)
    try:
        file = check_file(path)
    finally:
        csv.field_size_limit(before)
    assert (kinds(file), file.rows) == (["broken_off"], 1)
    assert "from line 3: field larger than field limit" in file.warnings[0].text


def test_reading_stops_at_a_header_without_an_end(tmp_path: Path) -> None:
    file = check_file(write(tmp_path, b'a,"' + b"x" * 5_000_000))
    assert (kinds(file), file.rows) == (["broken_off"], None)


def test_only_the_given_number_of_rows_is_read(tmp_path: Path) -> None:
    path = write(tmp_path, "a,b\n" + "1\n" * 50)
    for head, complete in ((0, False), (10, False), (50, True), (99, True)):
        file = check_file(path, head)
        assert (file.rows, file.complete) == (min(head, 50), complete)
    with pytest.raises(InvalidInput, match="head"):
        check_file(path, -1)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="No such file"):
        check_file(tmp_path / "none.csv")


def test_an_unreadable_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: Path) -> Iterator[None]:
        yield
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("asyncmig.preflight.scan.probe", denied)
    with pytest.raises(InvalidInput, match=r"a\.csv'\S+ Permission denied"):
        check_file(write(tmp_path, CONTACTS))


def test_a_warning_names_the_missing_package_of_the_encoding_detector(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "charset_normalizer", None)
    file = check_file(write(tmp_path, CONTACTS.encode("cp1252")))
    assert "pip install 'asyncmig[check]'" in file.warnings[0].text
    assert (file.encoding, file.rows) == (None, 3)


def open_files() -> set[str]:
    files: set[str] = set()
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            files.add(os.readlink(f"/proc/self/fd/{number}"))
    return files


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="open files are not listed there")
async def test_a_cancelled_check_leaves_no_file_open(tmp_path: Path) -> None:
    path = write(tmp_path, "a,b\n" + "1,2\n" * 500_000)
    task = asyncio.create_task(preflight.check([path]))
    while str(path) not in open_files():  # noqa: ASYNC110 - no event signals an opened file
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert str(path) not in open_files()


@given(content=st.one_of(st.binary(min_size=1), st.text(min_size=1).map(str.encode)))
@example(content=b"\xff\xfe")
@example(content=b"\xff\xfea")
@example(content=b"\xef\xbb\xbf")
@example(content=b"\r")
@example(content=b'"')
@example(content=b"\x00")
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_can_be_checked(tmp_path: Path, content: bytes) -> None:
    file = check_file(write(tmp_path, content))
    assert file.size == len(content)


cells = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), min_size=1).filter(
    str.strip
)
tables = st.integers(1, 5).flatmap(
    lambda width: st.lists(st.lists(cells, min_size=width, max_size=width), min_size=1, max_size=8)
)


@given(rows=tables, end=st.sampled_from(["\n", "\r\n"]), encoding=st.sampled_from(["utf-8", "utf-8-sig"]))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_written_rows_are_read_unchanged(
    tmp_path: Path, rows: list[list[str]], end: str, encoding: str
) -> None:
    text = io.StringIO(newline="")
    header = [f"column {n}" for n in range(len(rows[0]))]
    csv.writer(text, lineterminator=end, quoting=csv.QUOTE_ALL).writerows([header, *rows])
    path = write(tmp_path, text.getvalue().encode(encoding))
    file = check_file(path)
    assert (file.rows, file.complete, kinds(file)) == (len(rows), True, [])
    with path.open(encoding="utf-8-sig", newline="") as opened:
        assert [record for _, record in Records(opened, ",")] == [header, *rows]


@real
@pytest.mark.parametrize("path", sorted(DATA.glob("csv-spectrum/*.csv")), ids=lambda path: path.stem)
def test_corner_cases_are_read_as_expected(tmp_path: Path, path: Path) -> None:
    content = path.read_bytes()
    if path.stem.endswith("_crlf"):  # the copy of the collection has lost them
        content = content.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    copy = write(tmp_path, content)
    with copy.open(encoding="utf-8", newline="") as text:
        header, *rows = (record for _, record in Records(text, sniff(text)))
    expected = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    expected = expected if isinstance(expected, list) else [expected]
    if path.stem == "location_coordinates":  # the collection's two files disagree about the telephone number
        rows[0][0] = expected[0][header[0]]
    assert [dict(zip(header, row, strict=True)) for row in rows] == expected
    assert kinds(check_file(copy)) == []


@real
@pytest.mark.parametrize(
    ("name", "rows", "columns", "warning_kinds"),
    [
        ("avengers", 173, 21, ["encoding"]),
        ("bachelorette", 921, 23, ["line_ends"]),
        ("cabinet-turnover", 379, 10, ["header_empty"]),
        ("castle-solutions-2", 902, 11, []),
        ("country-codes", 249, 56, []),
        ("sp500-constituents", 503, 8, []),
        ("women-stem", 76, 9, []),
    ],
)
def test_real_files_are_read_with_the_expected_warnings(
    name: str, rows: int, columns: int, warning_kinds: list[str]
) -> None:
    file = check_file(DATA / f"{name}.csv")
    assert (file.rows, len(file.headers), kinds(file), file.complete) == (rows, columns, warning_kinds, True)


@real
def test_the_text_of_the_warning_about_a_real_file_that_is_not_utf8() -> None:
    assert check_file(DATA / "avengers.csv").warnings[0].text == (
        "is not UTF-8: byte 0xe6 at offset 5,764, on line 31; it may be cp1252. "
        "If the server reads only UTF-8, the whole import fails: save it as UTF-8"
    )


def finding(file: CheckedFile, kind: str) -> str:
    (found,) = [warning for warning in file.warnings if warning.kind == kind]
    return f"{found.text} {[(sample.line, sample.value) for sample in found.samples]}"


def test_a_second_byte_order_mark_is_reported(tmp_path: Path) -> None:
    file = check_file(write(tmp_path, "\ufeff\ufeffEmail,Name\na@x,A\n"))
    assert "second byte order mark" in finding(file, "mark")
    assert kinds(file) == ["mark"]


def test_a_byte_order_mark_before_a_later_row_is_reported_with_its_line(tmp_path: Path) -> None:
    file = check_file(write(tmp_path, "\ufeffEmail,Name\na@x,A\n\ufeffEmail,Name\nb@x,B\n\ufeffc@x,C\n"))
    assert "in 2 rows" in finding(file, "mark")
    assert "(3, " in finding(file, "mark")
    assert kinds(file) == ["mark"]


@pytest.mark.parametrize(
    "character", "\u00a0\u00ad\u200b\u200c\u200d\u200e\u200f\u202e\u2060\u2066\ufeff\u3000"
)
def test_an_invisible_character_is_reported_in_headers_and_cells(tmp_path: Path, character: str) -> None:
    file = check_file(write(tmp_path, f"Email,Last{character}Name\na@x,A\n"))
    assert f"U+{ord(character):04X}" in finding(file, "header_invisible")
    assert kinds(file) == ["header_invisible"]
    file = check_file(write(tmp_path, f"Email,Name\nb@x,B\na@x{character},A\n"))
    assert f"U+{ord(character):04X}" in file.notes[0]
    assert "first on line 3" in file.notes[0]


@pytest.mark.parametrize(
    "text",
    ["👩\u200d👩\u200d👧", "می\u200cخواهم", "Bonjour\u00a0!", "10\u202f000 €", "क्\u200dष", "日本\u3000語"],
)
def test_invisible_characters_that_a_language_uses_are_not_reported(tmp_path: Path, text: str) -> None:
    file = check_file(write(tmp_path, f"Email,Name\na@x,{text}\n"))
    assert (kinds(file), file.notes) == ([], ())
