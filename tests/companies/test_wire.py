"""Each payload of the contract is decoded as documented, and with the changes that a preview API may make."""

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
def test_each_documented_field_is_decoded(text: str, expected: msgspec.Struct) -> None:
    decoded = decode(text.encode(), type(expected))
    assert decoded == expected
    assert decode(msgspec.json.encode(decoded), type(expected)) == expected
    decoded_fields = json.loads(msgspec.json.encode(decoded))
    assert not missing(json.loads(text), decoded_fields)


def missing(documented: object, decoded_fields: object) -> list[str]:
    """Return the documented fields that were not decoded; a null field may be absent."""
    if isinstance(documented, dict):
        fields = cast("dict[str, object]", documented)
        known = cast("dict[str, object]", decoded_fields)
        return [
            name if name not in known else f"{name}.{below}"
            for name, value in fields.items()
            if value is not None and name not in ("poll_url", "run")
            for below in ([""] if name not in known else missing(value, known[name]))
        ]
    if isinstance(documented, list):
        pairs = zip(documented, cast("list[object]", decoded_fields), strict=True)
        return [name for pair in pairs for name in missing(*pair)]
    return [] if documented == decoded_fields else [f"{documented!r} became {decoded_fields!r}"]


@PAYLOADS
def test_numbers_as_text_and_unknown_fields_are_accepted(text: str, expected: msgspec.Struct) -> None:
    changed = drifted(json.loads(text))
    assert decode(json.dumps(changed).encode(), type(expected)) == expected


def optional(value: object, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """Return the paths of all fields below `value`."""
    if isinstance(value, list):
        items = cast("list[object]", value)
        return [below for n, each in enumerate(items) for below in optional(each, (*path, n))]
    if isinstance(value, dict):
        fields = cast("dict[str, object]", value)
        return [
            below
            for name, each in fields.items()
            for below in ((*path, name), *optional(each, (*path, name)))
        ]
    return []


REQUIRED = {  # a payload is useless without these fields
    "sources", "templates", "company", "id", "upload_url", "upload_ref", "run_id", "status", "actions", "name",
}  # fmt: skip
NEW_SHAPES: tuple[object, ...] = ({"value": 1}, [{"value": 1}], "text", 5, True, None)


@PAYLOADS
def test_a_missing_null_or_malformed_optional_field_does_not_affect_other_fields(
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
    """Set the value at `path` in decoded JSON; `...` deletes the field."""
    holder: Any = whole
    for step in path[:-1]:
        holder = holder[step]
    holder[path[-1]] = value
    if value is ...:
        del holder[path[-1]]


def test_a_patch_is_destructive_if_one_action_is_destructive_or_unknown() -> None:
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
def test_requests_have_exactly_the_documented_fields(value: msgspec.Struct, body: str) -> None:
    assert json.loads(msgspec.json.encode(value)) == json.loads(body)
