"""The rules of the second API generation: JSON schemas of cells, extended link rules, enforcement of every rule."""

import json
from pathlib import Path

import pytest

from asyncmig import preflight
from asyncmig.customers.catalog import ColumnSpec, Link
from asyncmig.migrations import Template
from asyncmig.preflight import CheckedFile

MONEY = {
    "type": "object",
    "properties": {
        "amount": {"type": "number", "minimum": 0},
        "currency": {"enum": ["EUR", "USD"]},
        "code": {"type": "string", "pattern": "^[A-Z]+$"},
    },
    "required": ["amount"],
}
GOOD, BAD = '{"amount": 1.5, "currency": "EUR", "code": "AB"}', '{"amount": -1}'


def contacts(column: ColumnSpec) -> Template:
    return Template(id="contacts", name="Contacts", columns=(ColumnSpec(name="Email"), column))


async def check_cells(folder: Path, *templates: Template, **cells: list[str]) -> dict[str, CheckedFile]:
    """Write and check a file for each template. `cells` are the cells of its last column."""
    paths = []
    for template in templates:
        path = folder / f"{template.id}.csv"
        names = [column.name for column in template.columns]
        rows = [
            ",".join(f'"{each.replace(chr(34), chr(34) * 2)}"' for each in (f"{n}@x.org", *names[1:-1], cell))
            for n, cell in enumerate(cells[template.id])
        ]
        path.write_text("\n".join([",".join(names), *rows]) + "\n", encoding="utf-8")
        paths.append(path)
    files = (await preflight.check(paths, templates)).files
    return {Path(file.path).stem: file for file in files}


def lines(file: CheckedFile, kind: str) -> list[int]:
    return [sample.line for warning in file.warnings if warning.kind == kind for sample in warning.samples]


@pytest.mark.parametrize(
    ("schema", "bad"),
    [
        (MONEY, [BAD, "not JSON", "{}", '{"amount": NaN}', '{"amount": 1, "code": "ab"}', '{"amount": "1"}']),
        ({"$defs": {"a": {"type": "object"}}, "$ref": "#/$defs/a"}, ["[1]", "3"]),
        ({"type": ["object", "array"], "uniqueItems": True}, ["[1, 1]"]),
        ({"type": "object", "additionalProperties": {"type": ["number", "string"]}}, ['{"a": null}']),
    ],
)
async def test_a_cell_is_checked_with_its_json_schema(schema: object, bad: list[str], tmp_path: Path) -> None:
    template = contacts(ColumnSpec(name="Price", schema=schema, pattern="never used"))
    file = (await check_cells(tmp_path, template, contacts=[GOOD, *bad, ""]))["contacts"]
    assert lines(file, "schema") == [3 + n for n in range(min(len(bad), 5))]
    assert not file.notes
    assert not lines(file, "strict")


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"$ref": "https://example.org/schema.json"}, "refers to another document"),
        ({"properties": {"a": {"$ref": "file:///etc/passwd"}}}, "refers to another document"),
        ({"patternProperties": {"^(a+)+$": {}}}, "patternProperties"),
        ({"pattern": "(?=a)"}, "its pattern cannot be checked"),
        ({"type": "nonsense"}, "cannot be checked here"),
        ({"$ref": "#/nowhere"}, "nowhere"),
        ({"$ref": "#"}, "nested too deeply"),
        ({"enum": ["x" * 200_000]}, "characters"),
        ("nonsense", "not an object"),
    ],
)
async def test_a_schema_that_cannot_be_checked_causes_a_note(
    schema: object, reason: str, tmp_path: Path
) -> None:
    template = contacts(ColumnSpec(name="Price", schema=schema))
    file = (await check_cells(tmp_path, template, contacts=[GOOD]))["contacts"]
    assert not lines(file, "schema")
    assert any(reason in note for note in file.notes), file.notes


@pytest.mark.timeout(10)
@pytest.mark.parametrize(
    ("schema", "cell"),
    [
        ({"pattern": "^(a+)+$"}, json.dumps("a" * 50_000 + "!")),
        ({"$ref": "#"}, GOOD),
        ({"allOf": [{"$ref": "#"}, {"$ref": "#"}]}, GOOD),
        (
            {
                "$defs": {f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(40)}
                | {"d40": {}},
                "$ref": "#/$defs/d0",
            },
            GOOD,
        ),
        ({"uniqueItems": True}, json.dumps([{"a": n} for n in range(20_000)])),
        ({"multipleOf": 1e-300}, "1e300"),
        ({"type": "array"}, "[" * 100_000),
        ({"type": "integer"}, "9" * 100_000),
    ],
    ids=["pattern", "self", "twice itself", "doubles", "unique", "multiple", "deep", "digits"],
)
async def test_the_check_of_each_schema_ends(schema: object, cell: str, tmp_path: Path) -> None:
    template = contacts(ColumnSpec(name="Price", schema=schema))
    assert (await check_cells(tmp_path, template, contacts=[cell]))["contacts"].rows == 1


async def test_every_rule_is_enforced_regardless_of_the_desired_rule(tmp_path: Path) -> None:
    column = ColumnSpec(
        name="Code",
        rule="none",
        pattern="^[A-Z]+$",
        links=(Link(template_id="contacts", column_name="Email"),),
    )
    file = (await check_cells(tmp_path, contacts(column), contacts=["AB", "ab", "0@x.org"]))["contacts"]
    assert lines(file, "strict") == [3, 4]
    assert lines(file, "link") == [2, 3]


async def test_a_template_id_that_is_too_deeply_nested_json_is_treated_as_a_name(tmp_path: Path) -> None:
    link = Link(template_id="[" * 100_000, column_name="Email")
    column = ColumnSpec(name="Owner", rule="link", links=(link,))
    file = (await check_cells(tmp_path, contacts(column), contacts=["x"]))["contacts"]
    assert file.notes == ("Owner: the link rule is not checked: no file has the column it points to",)


PEOPLE = Template(id="people", name="People", columns=(ColumnSpec(name="Nick"), ColumnSpec(name="Key")))
FIRMS = Template(id="firms", name="Firms", columns=(ColumnSpec(name="Short"), ColumnSpec(name="Key")))


@pytest.mark.parametrize(
    ("link", "cells", "bad"),
    [
        ({"templateId": "people"}, ["p1", "f1"], [3]),
        ({"templateId": ["people", "firms"], "discriminator": "Kind"}, ["p1", "f1", "x"], [4]),
        ({"templateId": "people", "valueMap": {"one": "p1", "two": "nobody"}}, ["one", "p1", "two"], [4]),
        (
            {"templateId": "people", "valuePath": "owner.ids"},
            ['{"owner": {"ids": ["p1", "p2"]}}', '{"owner": {"ids": ["p1", "x"]}}', "no JSON", "{}"],
            [3],
        ),
        ({"templateId": "json", "keyPath": "id"}, ["7", "a", "8"], [4]),
        ({"templateId": "json", "keyPath": "id", "keyMap": {"a": "A"}}, ["7", "a", "A"], [3]),
    ],
    ids=[
        "plain",
        "several templates",
        "values are mapped",
        "values in JSON",
        "keys in JSON",
        "keys are mapped",
    ],
)
async def test_extended_link_rules_are_checked(
    link: dict[str, object], cells: list[str], bad: list[int], tmp_path: Path
) -> None:
    body = {"slug": "deals", "name": "Deals", "columns": [{"name": "Title"}]}
    rule = {"columnName": "Key", **link}
    body["columns"] = [{"name": "Title"}, {"name": "Owner", "desiredRule": "none", "linkRule": [rule]}]
    from asyncmig._core.decode import decode

    deals = decode(json.dumps(body).encode(), Template)
    keys = Template(id="json", name="Json", columns=(ColumnSpec(name="Label"), ColumnSpec(name="Key")))
    found = await check_cells(
        tmp_path,
        deals,
        PEOPLE,
        FIRMS,
        keys,
        deals=cells,
        people=["p1", "p2"],
        firms=["f1"],
        json=['{"id": 7}', '{"id": "a"}'],
    )
    assert lines(found["deals"], "link") == bad
    assert not found["deals"].notes
