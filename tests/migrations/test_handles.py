"""The catalogue, and the requests and results of each handle."""

import json

import pytest
from msgspec.structs import replace

from asyncmig import ApiError, BadRequest, InvalidInput, NotFound, Session, UnknownOutcome
from asyncmig.customers.catalog import Link
from asyncmig.migrations.connections import WORKBOOK

from .conftest import KEY, OpenMigration
from .server import BASE_URL, Account, Reply

pytestmark = pytest.mark.looptime
LINK = {"templateId": ["a", "b"], "columnName": "Id", "discriminator": "Kind", "keyMap": {"x": "y"}}
COLUMNS = [
    {"name": "Id", "required": True, "schema": {"type": "string"}, "future": 1},
    {"name": "Owner", "linkRule": [LINK]},
    {"name": "Old"},
]


def session(account: Account) -> Session:
    return Session(KEY, BASE_URL, transport=account, limits="per-endpoint")


def sent(account: Account, method: str, path: str) -> list[object]:
    return [json.loads(content) for _, m, p, content in account.sent if (m, p) == (method, path)]


# Create


async def test_an_existing_migration_lists_its_differences(account: Account) -> None:
    async with session(account) as opened:
        create = opened.migrations.create
        new = await create(name="Acme", source="HubSpot", external_id="acme")
        same = await create(
            name="Acme", source="HubSpot", external_id="acme", templates=["deals", "contacts"]
        )
        other = await create(name="Acme Ltd", source="Notion", external_id="acme", templates=["contacts"])
    assert (new.is_new, new.differences) == (True, ())
    assert (same.is_new, same.differences) == (False, ())
    assert [(each.field, each.requested, each.found) for each in other.differences] == [
        ("name", "Acme Ltd", "Acme"),
        ("source", "Notion", "HubSpot"),
        ("templates", ("contacts",), ("contacts", "deals")),
    ]


async def test_a_lost_create_is_repeated_only_with_an_external_id(account: Account) -> None:
    account.fault = lambda method, path, n: "lost" if path == "/migrations" and n != 2 else None
    async with session(account) as opened:
        assert (await opened.migrations.create(name="Acme", external_id="acme")).id == "m1"
        with pytest.raises(UnknownOutcome, match="provider's app"):
            await opened.migrations.create(name="Acme")
    assert sent(account, "POST", "/migrations") == [{"name": "Acme", "external_id": "acme"}] * 2 + [
        {"name": "Acme"}
    ]


# Sources and templates


async def test_sources_are_addressed_by_their_names(account: Account) -> None:
    account.routes["GET", "/sources"] = lambda body, query: Reply(
        200, {"sources": [{"name": "Salesforce (AU)", "logo_url": None, "new": 1}]}
    )
    account.routes["POST", "/sources/Salesforce (AU)/pin"] = lambda body, query: Reply(
        200, {"source": "Salesforce (AU)", "pinned_recipe_run_id": body["run_id"]}
    )
    async with session(account) as opened:
        source = await opened.migrations.source("salesforce (au)")
        assert (source.id, source.name) == ("Salesforce (AU)", "Salesforce (AU)")
        assert (await opened.migrations.pin(source, "run-1")).run_id == "run-1"
        assert (await opened.migrations.pin(source, None)).run_id is None
    assert any("/sources/Salesforce%20%28AU%29/pin" in url for url, _ in account.headers)


async def test_a_lost_rename_is_confirmed_under_the_new_name(account: Account) -> None:
    account.routes["PATCH", "/sources/Old"] = lambda body, query: Reply(404, {"error": "no such source"})
    account.routes["PATCH", "/sources/New"] = lambda body, query: Reply(
        200, {"source": {"name": "New", "auth_url": "https://new"}}
    )
    async with session(account) as opened:
        with pytest.raises(NotFound):
            await opened.migrations.update_source("Old", name="New")
        account.fault = lambda method, path, n: "lost" if path == "/sources/Old" and n == 2 else None
        assert (await opened.migrations.update_source("Old", name="New")).auth_url == "https://new"


async def test_an_update_of_a_template_keeps_its_rules(account: Account) -> None:
    account.template = {"slug": "contacts", "name": "Contacts", "columns": COLUMNS}
    async with session(account) as opened:
        template = await opened.migrations.template("contacts")
        first, owner, _ = template.columns
        await opened.migrations.update_template(
            template,
            columns=[replace(first, required=False), {"name": "Owner", "unique": True}, {"name": "New"}],
        )
        assert account.template["columns"] == [
            {**COLUMNS[0], "required": False},
            {**COLUMNS[1], "unique": True},
            {"name": "New"},
        ]
        await opened.migrations.update_template("contacts", columns=[owner])
        assert account.template["columns"] == [{**COLUMNS[1], "unique": False}]
        changed = replace(owner, links=(Link(template_id='["a","c"]', column_name="Id"),))
        await opened.migrations.update_template("contacts", columns=[changed, {"name": "Id", "schema": None}])
    rule = {"templateId": ["a", "c"], "columnName": "Id"}
    assert account.template["columns"] == [
        {"name": "Owner", "unique": False, "linkRule": [rule]},
        {"name": "Id", "schema": None},
    ]


@pytest.mark.parametrize("columns", [[], [{"name": "A"}, {"name": "A"}], [{}]])
async def test_wrong_columns_are_refused_before_a_request(
    columns: list[dict[str, str]], account: Account
) -> None:
    async with session(account) as opened:
        with pytest.raises(InvalidInput):
            await opened.migrations.update_template("contacts", columns=columns)
        with pytest.raises(InvalidInput):
            await opened.migrations.update_template("contacts")
    assert account.sent == []


# Knowledge


async def test_an_update_of_knowledge_keeps_concurrent_changes_of_the_agent(
    open_migration: OpenMigration, account: Account
) -> None:
    account.text = {"knowledge": "Agent: one", "updated_at": "t1"}

    def merge(text: str) -> str:
        if text == "Agent: one":
            account.text = {"knowledge": "Agent: two", "updated_at": "t2"}
        return f"{text}\nUs"

    async with open_migration() as migration:
        written = await migration.knowledge.update(merge)
    assert written.text == account.text["knowledge"] == "Agent: two\nUs"


async def test_a_lost_write_of_knowledge_is_recognised(
    open_migration: OpenMigration, account: Account
) -> None:
    account.text = {"knowledge": "one", "updated_at": "t1"}
    account.fault = lambda method, path, n: "lost" if method == "PATCH" and n == 1 else None
    async with open_migration() as migration:
        written = await migration.knowledge.write("two", if_unmodified_since="t1")
        assert written.text == "two"
        with pytest.raises(ApiError, match="412"):
            await migration.knowledge.write("three", if_unmodified_since="t1")


# Connections


async def test_a_connection_is_saved_without_showing_its_secrets(
    open_migration: OpenMigration, account: Account, caplog: pytest.LogCaptureFixture
) -> None:
    path = "/migrations/m1/source-connection"
    account.routes["POST", path] = lambda body, query: Reply(
        201 if body["source_key"] == "salesforce" else 400,
        {
            "source_connection": {"id": "c1", "creds_configured": True},
            "error": f"bad {body.get('credentials')}",
        },
    )
    account.routes["GET", path] = lambda body, query: Reply(404, {"error": "none"})
    account.routes["DELETE", path] = lambda body, query: Reply(200, {"deleted": False})
    async with open_migration() as migration:
        saved = await migration.connection.save(
            "salesforce", profile_id=WORKBOOK, credentials={"token": "s3cr3t-token"}
        )
        assert saved.creds_configured is True
        with pytest.raises(BadRequest) as refused:
            await migration.connection.save("hubspot", credentials={"token": "s3cr3t-token"})
        assert "s3cr3t" not in f"{refused.value!r} {refused.value} {refused.value.body!r}"
        assert await migration.connection.read("salesforce") is None
        assert await migration.connection.delete() is False
        with pytest.raises(InvalidInput, match="lower case"):
            await migration.connection.save("Salesforce")
    first = sent(account, "POST", path)[0]
    assert first == {"source_key": "salesforce", "profile_id": None, "credentials": {"token": "s3cr3t-token"}}
    assert "s3cr3t" not in caplog.text


# Log and preview


async def test_the_log_is_read_as_json_and_as_markdown(
    open_migration: OpenMigration, account: Account
) -> None:
    async with open_migration() as migration:
        await (await migration.generate()).wait()
        log = await migration.log()
        assert [(run.run_id, run.kind) for run in log.runs] == [("run-1", "generate")]
        assert await migration.log_markdown() == "# Log"


@pytest.mark.parametrize(
    ("cells", "count"),
    [
        ([{"rowNumber": 2, "colIndex": "1", "message": {"code": 1}}, None, "row 3"], 3),
        ({"2:Email": {"error": "empty"}}, 1),
        (None, 0),
        ("all is well", 0),
    ],
)
async def test_invalid_cells_of_any_shape_are_counted(
    cells: object, count: int, open_migration: OpenMigration, account: Account
) -> None:
    account.routes["GET", "/migrations/m1/preview"] = lambda body, query: Reply(
        200, {"sheets": [{"template": {"slug": "a", "name": "A"}, "rows": None, "invalid_cells": cells}, {}]}
    )
    async with open_migration() as migration:
        assert (await migration.preview(fields=["A"])).invalid_cells == count


async def test_a_late_preview_is_found(open_migration: OpenMigration, account: Account) -> None:
    account.fault = lambda method, path, n: 404 if path.endswith("/preview") and n < 3 else None
    async with open_migration() as migration:
        assert await (await migration.generate()).wait()
        account.fault = lambda method, path, n: 404
        with pytest.raises(NotFound):
            await migration.preview()
