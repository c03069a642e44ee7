"""Files compared with templates: which columns are found, and which cells break the rules."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from asyncmig import InvalidInput, Spec, preflight
from asyncmig.companies import Template
from asyncmig.customers.catalog import ColumnSpec, Link
from asyncmig.preflight import CheckedFile, Finding

Write = Callable[..., list[Path]]
EMAIL = r"[^@\s]+@[^@\s]+\.[a-z]+"
CONTACTS = Template(
    id="c",
    name="Contacts",
    columns=(
        ColumnSpec(name="Email", required=True, unique=True, rule="strict", pattern=EMAIL),
        ColumnSpec(name="Last Name", required=True),
        ColumnSpec(name="Phone"),
    ),
)
DEALS = Template(
    id="d",
    name="Deals",
    columns=(
        ColumnSpec(name="Title", required=True),
        ColumnSpec(
            name="Contact", rule="link", links=(Link(template_id="c", column_name="Email"),), pattern="("
        ),
    ),
)


def template(*columns: ColumnSpec, name: str = "T") -> Template:
    return Template(id=name, name=name, columns=columns)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Return a function that writes CSV files with the given names."""

    def write(**files: str) -> list[Path]:
        for name, text in files.items():
            (tmp_path / f"{name}.csv").write_text(text, encoding="utf-8")
        return [tmp_path / f"{name}.csv" for name in files]

    return write


async def check_files(
    files: list[Path], *templates: Template, head: int | None = None
) -> tuple[CheckedFile, ...]:
    return (await preflight.check(files, templates, head=head)).files


def broken_rules(file: CheckedFile) -> dict[str, list[int]]:
    return {
        f"{warning.kind} {warning.column}": [sample.line for sample in warning.samples]
        for warning in file.warnings
    }


def finding(kind: str, file: CheckedFile) -> Finding:
    (found,) = [warning for warning in file.warnings if warning.kind == kind]
    return found


@pytest.mark.parametrize("character", "\u00a0\u00ad\u200b\u200d\u202e\ufeff")
async def test_an_invisible_character_is_reported_in_a_column_whose_cells_are_compared(
    write: Write, character: str
) -> None:
    (file,) = await check_files(
        write(contacts=f"Email,Last Name\na@x.org,A\na{character}@x.org,B\n"), CONTACTS
    )
    warning = finding("invisible", file)
    assert (warning.count, warning.samples[0].line, warning.samples[0].value) == (1, 3, f"a{character}@x.org")
    assert f"U+{ord(character):04X}" in warning.text


async def test_rows_that_break_rules_are_reported_with_their_lines(write: Write) -> None:
    text = (
        'e-mail,LAST_NAME,phone\na@x.org,A,1\n a@x.org ,B,\n"b@x.\norg",C,\n,D,\nnobody,,\nc@x.org (old),E\n'
    )
    (file,) = await check_files(write(people=text), CONTACTS)
    assert file.template == "Contacts"
    assert [match.column for match in file.headers] == ["Email", "Last Name", "Phone"]
    assert broken_rules(file) == {
        "rows_short None": [8],
        "required Email": [6],
        "unique Email": [3],
        "strict Email": [4, 7],
        "strict_in_part Email": [8],
        "required Last Name": [7],
    }
    assert finding("strict", file).samples[1].value == "nobody"
    assert finding("strict_in_part", file).text == (
        f"Email: matches the rule {EMAIL} only in part, which the server may accept, in 1 row"
    )


async def test_a_finding_shows_its_first_five_samples(write: Write) -> None:
    (file,) = await check_files(write(a="Email,Last Name\n" + "x" * 99 + ",A\n" + "x,A\n" * 7), CONTACTS)
    warning = finding("strict", file)
    assert warning.count == 8
    assert [sample.line for sample in warning.samples] == [2, 3, 4, 5, 6]
    assert warning.samples[0].value == "x" * 80


async def test_links_are_resolved_in_all_files_of_the_customer(write: Write) -> None:
    files = write(
        deals="Title,Contact\nA,a@x.org\nB,b@x.org\nC,z@x.org\nD,\n",
        one="Email,Last Name\na@x.org,A\n",
        two="Email,Last Name\nb@x.org,B\n",
    )
    deals, *_ = await check_files(files, CONTACTS, DEALS)
    assert broken_rules(deals) == {"link Contact": [4]}


async def test_a_link_may_point_to_its_own_template(write: Write) -> None:
    boss = ColumnSpec(name="Boss", rule="link", links=(Link(template_id="T", column_name="Id"),))
    (file,) = await check_files(write(a="Id,Boss\n1,2\n2,\n3,4\n"), template(ColumnSpec(name="Id"), boss))
    assert broken_rules(file) == {"link Boss": [4]}


@pytest.mark.parametrize(
    ("head", "links", "note"),
    [
        (10, DEALS.columns[1].links, "not all rows are read"),
        (None, DEALS.columns[1].links, "no file has the column it points to"),
        (None, (Link(),), "no file has the column it points to"),
    ],
)
async def test_a_link_that_cannot_be_checked_causes_a_note(
    write: Write, head: int | None, links: tuple[Link, ...], note: str
) -> None:
    deals = template(ColumnSpec(name="Title"), ColumnSpec(name="Contact", rule="link", links=links))
    (file,) = await check_files(write(deals="Title,Contact\nA,a@x.org\n"), deals, head=head)
    assert broken_rules(file) == {}
    assert note in file.notes[0]


async def test_a_duplicate_value_in_another_file_is_reported(write: Write) -> None:
    files = write(one="Email,Last Name\na@x.org,A\n", two="Email,Last Name\nb@x.org,B\na@x.org,C\n")
    one, two = await check_files(files, CONTACTS)
    assert broken_rules(one) == {}
    assert broken_rules(two) == {"unique Email": [3]}


async def test_the_number_of_remembered_values_is_bounded(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asyncmig.preflight.scan._MOST_REMEMBERED", 2)
    text = "Email,Last Name\na@x.org,A\nb@x.org,A\nc@x.org,A\nc@x.org,A\na@x.org,A\n"
    deals, contacts = await check_files(
        write(deals="Title,Contact\nA,z@x.org\n", contacts=text), CONTACTS, DEALS
    )
    assert broken_rules(contacts) == {"unique Email": [6]}
    assert contacts.notes == ("Email: too many values to find every duplicate",)
    assert broken_rules(deals) == {}
    assert "not all values that it points to are known" in deals.notes[0]


async def test_links_to_an_incompletely_read_file_are_not_checked(write: Write) -> None:
    contacts = 'Email,Last Name\na@x.org,A\nb@x.org,"' + "x" * 5_000_000
    deals, _ = await check_files(
        write(deals="Title,Contact\nA,z@x.org\n", contacts=contacts), CONTACTS, DEALS
    )
    assert broken_rules(deals) == {}
    assert "not all values that it points to are known" in deals.notes[0]


@pytest.mark.parametrize("pattern", [r"(?=a)a", r"(a)\1", "(", "a{2000}", "\ud800"])
async def test_a_pattern_that_re2_does_not_support_is_not_checked(
    write: Write, capfd: pytest.CaptureFixture[str], pattern: str
) -> None:
    (file,) = await check_files(
        write(a="Code\nb\n"), template(ColumnSpec(name="Code", rule="strict", pattern=pattern))
    )
    assert broken_rules(file) == {}
    assert f"Code: the strict rule {pattern} cannot be checked here (" in file.notes[0]
    assert capfd.readouterr() == ("", "")


async def test_a_hostile_pattern_takes_linear_time(write: Write) -> None:
    rule = ColumnSpec(name="Code", rule="strict", pattern="(a+)+")
    (file,) = await check_files(write(a="Code\n" + "a" * 100_000 + "b\n"), template(rule))
    assert broken_rules(file) == {"strict_in_part Code": [2]}


async def test_a_note_names_the_package_to_install_if_re2_is_missing(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "re2", None)
    (file,) = await check_files(write(a="Email,Last Name\nx,A\n"), CONTACTS)
    assert broken_rules(file) == {}
    assert file.notes == (f"Email: the strict rule {EMAIL} is not checked (pip install 'asyncmig[check]')",)


@pytest.mark.parametrize("rule", [None, "none", "ai", "link", "tomorrow"])
async def test_the_pattern_of_a_rule_that_is_not_strict_is_ignored(write: Write, rule: str | None) -> None:
    (file,) = await check_files(
        write(a="Code\nb\n"),
        template(ColumnSpec(name="Code", rule=rule, pattern="a", links=() if rule == "link" else (Link(),))),
    )
    assert (file.warnings, file.notes) == ((), ())


@pytest.mark.parametrize(
    ("header", "column", "near"),
    [
        ("E-Mail", "Email", None),
        ("ｅｍａｉｌ", "Email", None),
        ("e_mail ", "Email", None),
        ("Email Address", None, "Email"),
        ("Contact E-mail", None, "Email"),
        ("Emial", None, "Email"),
        ("Town", None, None),
        ("", None, None),
        ("%", None, None),
    ],
)
async def test_headers_match_columns_by_equal_or_similar_names(
    write: Write, header: str, column: str | None, near: str | None
) -> None:
    required = ColumnSpec(name="Email", required=True)
    (file,) = await check_files(write(t=f"Id,{header}\n1,\n"), template(ColumnSpec(name="Id"), required))
    assert (file.headers[1].column, file.headers[1].near) == (column, near)
    if column:
        assert broken_rules(file)["required Email"] == [2]
    else:
        assert finding("column_missing", file).text == (
            "'Email' is required by T, and no header has that name"
            + (f"; {header!r} may be it" if near else "")
        )


async def test_a_header_may_be_a_part_of_the_column_name(write: Write) -> None:
    (file,) = await check_files(
        write(a="Id,Name\n"), template(ColumnSpec(name="Id"), ColumnSpec(name="Last Name"))
    )
    assert file.headers[1].near == "Last Name"


async def test_a_file_is_checked_with_the_most_similar_template(write: Write) -> None:
    files = write(
        a="Title,Contact,Email\nx,,\n",
        more="Email,Last Name,Title\n,,\n",
        b="Email,Phone\n,\n",
        contacts="Phone,Ort,PLZ\n1,,\n",
        c="Ort,PLZ,Land,Phone\n,,\n",
        deals="Email,Last Name,Title\n,,\n",
    )
    small = template(ColumnSpec(name="Title"))
    a, more, b, contacts, c, deals = await check_files(files, small, CONTACTS, DEALS)
    found = [file.template for file in (a, more, b, contacts, c, deals)]
    assert found == ["Deals", "Contacts", "Contacts", "Contacts", None, "Deals"]
    assert finding("no_template", c).text.startswith("no template has columns with these names")
    assert [match.header for match in c.headers] == ["Ort", "PLZ", "Land", "Phone"]


async def test_a_wide_file_can_be_compared_with_wide_templates(write: Write) -> None:
    header = ",".join(f"Field number {n}" for n in range(3000))
    templates = [
        template(*(ColumnSpec(name=f"Feild {n}") for n in range(300)), name=f"T{i}") for i in range(3)
    ]
    (file,) = await check_files(write(a=f"{header}\n"), *templates)
    assert len(file.headers) == 2000


async def test_a_spec_is_checked_with_its_templates(write: Write) -> None:
    (path,) = write(contacts="Email,Last Name\nnobody,A\n")
    spec = Spec(external_id="acme", name="Acme", source="s", files=(path,))
    assert (await preflight.check_spec(spec, [CONTACTS, DEALS])).warnings == 1
    assert (await preflight.check_spec(spec)).warnings == 0
    only_deals = Spec(external_id="acme", name="Acme", source="s", files=(path,), templates=("d",))
    assert [
        w.kind for w in (await preflight.check_spec(only_deals, [CONTACTS, DEALS])).files[0].warnings
    ] == ["no_template"]
    assert (await preflight.check_spec(spec, [CONTACTS], head=0)).files[0].rows == 0
    with pytest.raises(InvalidInput, match="external_id"):
        await preflight.check_spec(Spec(external_id="a b", name="A", source="s", files=(path,)), [CONTACTS])
