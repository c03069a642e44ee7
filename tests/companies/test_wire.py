"""Every payload of the contract: as it is documented, and as a preview API may send it one day."""

import json
from typing import Any, cast

import msgspec
import pytest

from asyncmig._core.decode import decode
from asyncmig.companies import wire
from asyncmig.companies.wire import CompanyInfo, Connection, ExportReport, Sheet, Source, Template
from asyncmig.customers.catalog import ColumnSpec, Link
from asyncmig.customers.outcome import ExportResult, ImportReport, SheetCount
from asyncmig.customers.questions import Action, NeedsAttention, Option, Patch, Question, Target
from asyncmig.simulator.server.messages import drifted

SOURCES = '{"sources": [{"id": "s1", "name": "HubSpot", "logo_url": null}]}'
TEMPLATES = """
{"templates": [{"id": "t1", "name": "Contacts", "description": null, "columns": [
  {"name": "Email", "description": "main", "required": true, "unique": true,
   "desiredRule": "strict", "strictRule": ".+@.+", "linkRule": null},
  {"name": "Company", "description": "", "required": false, "unique": false,
   "desiredRule": "link", "strictRule": null, "linkRule": [{"templateId": "t2", "columnName": "Name"}]},
  {"name": "City", "description": "", "required": false, "unique": false, "desiredRule": "ai"}
]}]}
"""
COMPANY = """
{"company": {"id": "c1", "name": "Acme", "external_id": "acme-1", "created_at": "2026-01-01T00:00:00Z"},
 "workbook_id": "w1", "sheets": [{"id": "h1", "name": "Contacts", "template_id": "t1"}],
 "connections": [{"id": "n1", "kind": "destination", "creds_configured": true}],
 "magic_link_url": "https://app.invalid/magic/1"}
"""
UPLOAD = '{"upload_url": "https://storage.invalid/put?signature=abc", "upload_ref": "u1"}'
STARTED = '{"run_id": "r1", "status": "queued", "poll_url": "/api/v1/companies/c1/imports/r1"}'
RUNNING = '{"status": "running", "progress_message": "Mapping"}'
PARKED = """
{"status": "needs_attention", "report": {"inserted": 20, "invalidCellCount": 3},
 "needs_attention": {
  "questions": [{"id": "fq0", "prompt": "Keep them?", "context": "Sheet Contacts",
    "target": {"sheet_id": "h1", "column": "Email", "affected_count": 3, "sample_values": ["a", "b"],
               "error": "unique"},
    "relevant_columns": ["Email"], "options": [{"id": "a", "label": "Yes"}, {"id": "b", "label": "No"}],
    "allow_custom": true}],
  "proposed_patch": {"summary": "drops 3", "actions": [
    {"sheet_id": "h1", "action": "dedup_keep_first", "key_column": "Email"},
    {"sheet_id": "h1", "column": "Stage", "action": "set_value", "value": "lead"}]}}}
"""
COMPLETED = """
{"status": "completed", "report": {"inserted": 23, "invalidCellCount": 2,
 "perSheet": [{"templateName": "Contacts", "sheetId": "h1", "rowCount": 23}]}}
"""
FAILED = '{"status": "failed", "error": "Import timed out"}'
CANCELED = '{"status": "canceled"}'
EXPORTED = """
{"status": "completed", "report": {"mode": "full", "total": 3, "succeeded": 2, "failed": 1, "results": [
  {"template_id": "t1", "path": "/contacts", "status": 201, "ok": true, "error": null, "fields_confirmed": true},
  {"template_id": "t1", "path": "/contacts", "status": 200, "ok": true, "error": null, "fields_confirmed": false},
  {"template_id": "t1", "path": "/contacts", "status": 422, "ok": false, "error": "no", "fields_confirmed": null}]}}
"""
PARKED_STATE = wire.ImportState(
    status="needs_attention",
    report=ImportReport(inserted=20, invalid_rows=3),
    needs_attention=NeedsAttention(
        questions=(
            Question(
                id="fq0",
                prompt="Keep them?",
                context="Sheet Contacts",
                target=Target(
                    sheet_id="h1", column="Email", affected_count=3, sample_values=("a", "b"), error="unique"
                ),
                relevant_columns=("Email",),
                options=(Option(id="a", label="Yes"), Option(id="b", label="No")),
                allow_custom=True,
            ),
        ),
        proposed_patch=Patch(
            summary="drops 3",
            actions=(
                Action(sheet_id="h1", action="dedup_keep_first", key_column="Email"),
                Action(sheet_id="h1", column="Stage", action="set_value", value="lead"),
            ),
        ),
    ),
)
COMPLETED_STATE = wire.ImportState(
    status="completed",
    report=ImportReport(
        inserted=23, invalid_rows=2, per_sheet=(SheetCount(template_name="Contacts", sheet_id="h1", rows=23),)
    ),
)
DOCUMENTED: dict[str, tuple[str, msgspec.Struct]] = {
    "sources": (SOURCES, wire.Sources(sources=(Source(id="s1", name="HubSpot"),))),
    "templates": (
        TEMPLATES,
        wire.Templates(
            templates=(
                Template(
                    id="t1",
                    name="Contacts",
                    columns=(
                        ColumnSpec(
                            name="Email",
                            description="main",
                            required=True,
                            unique=True,
                            rule="strict",
                            pattern=".+@.+",
                        ),
                        ColumnSpec(
                            name="Company",
                            description="",
                            rule="link",
                            links=(Link(template_id="t2", column_name="Name"),),
                        ),
                        ColumnSpec(name="City", description="", rule="ai"),
                    ),
                ),
            )
        ),
    ),
    "company": (
        COMPANY,
        wire.CompanyCreated(
            company=CompanyInfo(
                id="c1", name="Acme", external_id="acme-1", created_at="2026-01-01T00:00:00Z"
            ),
            workbook_id="w1",
            sheets=(Sheet(id="h1", name="Contacts", template_id="t1"),),
            connections=(Connection(id="n1", kind="destination", creds_configured=True),),
            magic_link_url="https://app.invalid/magic/1",
        ),
    ),
    "upload": (
        UPLOAD,
        wire.UploadTarget(upload_url="https://storage.invalid/put?signature=abc", upload_ref="u1"),
    ),
    "run started, or decided": (STARTED, wire.RunStarted(run_id="r1", status="queued")),
    "import running": (RUNNING, wire.ImportState(status="running", progress_message="Mapping")),
    "import parked": (PARKED, PARKED_STATE),
    "import completed": (COMPLETED, COMPLETED_STATE),
    "import failed": (FAILED, wire.ImportState(status="failed", error="Import timed out")),
    "import canceled": (CANCELED, wire.ImportState(status="canceled")),
    "active import, bare": (
        '{"run_id": "r1", "status": "running"}',
        wire.ActiveImport(run_id="r1", status="running"),
    ),
    "active import, wrapped": (
        '{"run": {"run_id": "r1", "status": "running"}}',
        wire.ActiveImport(run=wire.ListedImport(run_id="r1", status="running")),
    ),
    "active import, none": ('{"run": null}', wire.ActiveImport()),
    "export running": (RUNNING, wire.ExportState(status="running", progress_message="Mapping")),
    "export completed": (
        EXPORTED,
        wire.ExportState(
            status="completed",
            report=ExportReport(
                mode="full",
                total=3,
                succeeded=2,
                failed_count=1,
                results=(
                    ExportResult(
                        template_id="t1", path="/contacts", status=201, ok=True, fields_confirmed=True
                    ),
                    ExportResult(
                        template_id="t1", path="/contacts", status=200, ok=True, fields_confirmed=False
                    ),
                    ExportResult(template_id="t1", path="/contacts", status=422, ok=False, error="no"),
                ),
            ),
        ),
    ),
    "export failed": (FAILED, wire.ExportState(status="failed", error="Import timed out")),
}
PAYLOADS = pytest.mark.parametrize(("text", "expected"), DOCUMENTED.values(), ids=DOCUMENTED)


@PAYLOADS
def test_what_is_documented_is_understood_to_the_last_field(text: str, expected: msgspec.Struct) -> None:
    decoded = decode(text.encode(), type(expected))
    assert decoded == expected
    assert decode(msgspec.json.encode(decoded), type(expected)) == expected
    understood = json.loads(msgspec.json.encode(decoded))
    assert not missing(json.loads(text), understood)


def missing(documented: object, understood: object) -> list[str]:
    """Return the documented fields that did not come through; what is null may be absent."""
    if isinstance(documented, dict):
        fields = cast("dict[str, object]", documented)
        known = cast("dict[str, object]", understood)
        return [
            name if name not in known else f"{name}.{below}"
            for name, value in fields.items()
            if value is not None and name not in ("poll_url", "run")
            for below in ([""] if name not in known else missing(value, known[name]))
        ]
    if isinstance(documented, list):
        pairs = zip(documented, cast("list[object]", understood), strict=True)
        return [name for pair in pairs for name in missing(*pair)]
    return [] if documented == understood else [f"{documented!r} became {understood!r}"]


@PAYLOADS
def test_numbers_may_be_text_and_new_fields_may_stand_anywhere(text: str, expected: msgspec.Struct) -> None:
    changed = drifted(json.loads(text))
    assert decode(json.dumps(changed).encode(), type(expected)) == expected


def optional(value: object, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """Return the places of all fields below `value`."""
    if isinstance(value, list):
        items = cast("list[object]", value)
        return [place for n, each in enumerate(items) for place in optional(each, (*path, n))]
    if isinstance(value, dict):
        fields = cast("dict[str, object]", value)
        return [
            place
            for name, each in fields.items()
            for place in ((*path, name), *optional(each, (*path, name)))
        ]
    return []


REQUIRED = {  # what nothing can be made of without
    "sources", "templates", "company", "id", "upload_url", "upload_ref", "run_id", "status", "actions", "name",
}  # fmt: skip
NEW_SHAPES: tuple[object, ...] = ({"value": 1}, [{"value": 1}], "text", 5, True, None)


@PAYLOADS
def test_an_optional_field_that_is_absent_null_or_new_hides_nothing_else(
    text: str, expected: msgspec.Struct
) -> None:
    for path in optional(json.loads(text)):
        if path[-1] in REQUIRED:
            continue
        for shape in (*NEW_SHAPES, ...):
            changed = json.loads(text)
            put(changed, path, shape)
            decoded = json.loads(msgspec.json.encode(decode(json.dumps(changed).encode(), type(expected))))
            beside = json.loads(msgspec.json.encode(expected))
            put(decoded, path, None)
            put(beside, path, None)
            assert decoded == beside, (path, shape)


def put(whole: object, path: tuple[str | int, ...], value: object) -> None:
    """Write `value` to a place of decoded JSON; `...` removes what is there."""
    holder: Any = whole
    for step in path[:-1]:
        holder = holder[step]
    holder[path[-1]] = value
    if value is ...:
        del holder[path[-1]]


def test_a_patch_is_destructive_as_soon_as_one_action_is_or_cannot_be_told() -> None:
    for actions, destructive in (
        ('[{"action": "keep"}, {"action": "set_value"}]', False),
        ('[{"action": "keep"}, {"action": "delete_invalid_rows"}]', True),
        ('[{"action": "keep"}, {"action": "dedup_keep_first", "key_column": "Email"}]', True),
        ('[{"action": "keep"}, {"action": "merge_rows"}]', True),
        ('[{"action": "keep"}, {"action": null}]', True),
        ('[{"action": "keep"}, {}]', True),
    ):
        body = f'{{"status": "x", "needs_attention": {{"proposed_patch": {{"actions": {actions}}}}}}}'
        asked = decode(body.encode(), wire.ImportState).needs_attention
        assert asked is not None
        assert asked.is_destructive is destructive
        assert len(asked.destructive) == destructive


@pytest.mark.parametrize(
    ("value", "body"),
    [
        (wire.CompanyBody(name="A", source="s"), '{"name": "A", "source": "s"}'),
        (
            wire.CompanyBody(
                name="A",
                source="s",
                external_id="e",
                template_ids=("t",),
                connections={"destination": {"base_url": "https://d.invalid", "auth": {"token": "x"}}},
            ),
            """{"name": "A", "source": "s", "external_id": "e", "template_ids": ["t"],
            "connections": {"destination": {"base_url": "https://d.invalid", "auth": {"token": "x"}}}}""",
        ),
        (
            wire.UploadBody(name="a.csv", content_type="text/csv", size=5),
            '{"name": "a.csv", "content_type": "text/csv", "size": 5}',
        ),
        (
            wire.ImportBody(idempotency_key="k", files=(wire.FileRef(name="a.csv", upload_ref="u"),)),
            '{"idempotency_key": "k", "files": [{"name": "a.csv", "upload_ref": "u"}]}',
        ),
        (
            wire.ImportBody(idempotency_key="k", rows=msgspec.Raw(b'[{"Email": "a@x.org"}]')),
            '{"idempotency_key": "k", "rows": [{"Email": "a@x.org"}]}',
        ),
        (wire.DecisionBody(decision="reject"), '{"decision": "reject"}'),
        (
            wire.DecisionBody(
                decision="approve",
                answers=(
                    wire.AnswerBody(question_id="q", option_id="a"),
                    wire.AnswerBody(question_id="r", custom="x"),
                ),
            ),
            """{"decision": "approve", "answers": [{"question_id": "q", "option_id": "a"},
            {"question_id": "r", "custom": "x"}]}""",
        ),
        (
            wire.ExportBody(
                mode="full",
                idempotency_key="k",
                selection=wire.Selection(template_ids=("t",), row_filter="valid"),
            ),
            '{"mode": "full", "idempotency_key": "k", "selection": {"template_ids": ["t"], "row_filter": "valid"}}',
        ),
    ],
    ids=lambda each: type(each).__name__ if isinstance(each, msgspec.Struct) else "",
)
def test_requests_are_written_as_documented_and_no_field_more(value: msgspec.Struct, body: str) -> None:
    assert json.loads(msgspec.json.encode(value)) == json.loads(body)
