"""Sources and templates are found by name. Companies have the values of their creation and hide secrets."""

import json
import logging
import pickle
from collections.abc import Mapping
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from inprocess import KEY, Fault, InProcess
from rich.console import Console

from asyncmig import (
    BadRequest,
    Conflict,
    Delivered,
    InvalidInput,
    MemoryJournal,
    NotFound,
    Spec,
    UnexpectedReply,
    Unknown,
    UnknownOutcome,
    generations,
    migrate,
)
from asyncmig._io.call import Call
from asyncmig.companies import Connection, Destination, routes
from asyncmig.companies.exports import checked_connections
from asyncmig.companies.wire import CompanyBody, CompanyCreated, CompanyInfo, UploadTarget
from asyncmig.simulator import Reply, World

from .conftest import SOURCE, OpenSession
from .test_handles import Customer

pytestmark = pytest.mark.looptime
TOKEN, PIN = 'tok"en\\of-d\u00e9stination', 48_151_623
DESTINATION = Destination(
    base_url="https://crm.invalid/v2", auth={"kind": "bearer", "keys": [TOKEN, {"pin": PIN}]}
)


async def test_sources_and_templates_are_found_by_name_or_id(open_session: OpenSession) -> None:
    async with open_session() as session:
        source = await session.companies.source("Salesforce")
        assert await session.companies.source(source.id) == source
        template = await session.companies.template("Contacts")
        with pytest.raises(InvalidInput, match=r"source='Access'.*\['HubSpot', 'Pipedrive', 'Salesforce'\]"):
            await session.companies.source("Access")
    rules = {column.name: (column.required, column.unique, column.rule) for column in template.columns}
    assert rules["Email"] == (True, True, "strict")
    assert template.columns[0].pattern is not None


async def test_without_a_catalogue_the_error_says_to_use_ids(open_session: OpenSession, world: World) -> None:
    world.variants = replace(world.variants, catalogue=False)
    async with open_session() as session:
        for call in (
            session.companies.sources(),
            session.companies.templates(),
            session.companies.source("HubSpot"),
            session.companies.template("Contacts"),
        ):
            with pytest.raises(NotFound, match=r"does not list (sources|templates): .*use ids") as missing:
                await call
            assert missing.value.status == 404
            assert str(pickle.loads(pickle.dumps(missing.value))) == str(missing.value)


async def test_a_created_company_has_the_values_of_the_response(
    open_session: OpenSession, customer: Customer
) -> None:
    async with open_session() as session:
        company = await session.companies.create(
            name="Acme", source=SOURCE, external_id="acme", connections={"destination": DESTINATION}
        )
        assert (company.name, company.external_id, company.is_new) == ("Acme", "acme", True)
        assert company.created_at == "2026-01-01T00:00:00Z"
        assert company.workbook_id
        assert company.magic_link_url
        (connection,) = company.connections
        assert isinstance(connection, Connection)
        assert (connection.kind, connection.creds_configured) == ("destination", True)
        assert company.magic_link_url not in repr(company)
        opened = session.companies.open(company.id)
        assert (opened.name, opened.workbook_id, opened.connections, opened.is_new) == (None, None, (), False)


async def test_sheets_are_found_by_name_including_those_an_import_added(
    open_session: OpenSession, customer: Customer
) -> None:
    async with open_session() as session:
        company = await session.companies.create(name="Acme", source=SOURCE)
        contacts = company.sheet("Contacts")
        assert company.sheet(contacts.id) == contacts
        with pytest.raises(InvalidInput, match=r"sheet='Odd'.*\['Companies', 'Contacts', 'Deals'\]"):
            company.sheet("Odd")
        run = await company.imports.start(rows=[{"nothing": "known"}])
        await run.wait()
        assert company.sheet("Rows").id
        assert company.sheet("Contacts").template_id == contacts.template_id
        with pytest.raises(InvalidInput, match="opened by its id"):
            session.companies.open(company.id).sheet("Contacts")


async def test_a_download_from_an_existing_company_may_have_rows_of_earlier_imports(
    open_session: OpenSession, world: World, customer: Customer, tmp_path: Path
) -> None:
    """A later API may answer 200 with the existing company of the external id, which may have earlier imports."""
    world.variants = replace(world.variants, existing=True)
    async with open_session() as session:
        first = await session.companies.create(name="Acme", source=SOURCE, external_id="acme")
        await (
            await first.imports.start(rows=[{"Email": "a@x.org", "Last Name": "A", "First Name": "B"}])
        ).wait()
        again = await session.companies.create(name="Acme", source=SOURCE, external_id="acme")
        assert (again.id, again.is_new, again.sheets) == (first.id, False, first.sheets)
        done = await (await again.imports.start(files=list(customer().files))).wait()
        assert done.report is not None
        files = await again.download(to=tmp_path / "out")
    assert sum(file.rows for file in files) == 21


async def test_an_existing_company_is_not_imported_again_after_the_loss_of_the_journal(
    open_session: OpenSession, world: World, customer: Customer, tmp_path: Path
) -> None:
    world.variants = replace(world.variants, existing=True)
    async with open_session() as session:
        for _ in range(2):
            outcome = await migrate(session, customer(), journal=MemoryJournal(), to=tmp_path / "out")
            assert isinstance(outcome, Delivered), outcome
    assert any("was not repeated" in note for note in outcome.notes)
    (company,) = world.companies.values()
    assert len(company.runs) == 1


async def test_nothing_is_imported_into_the_company_of_another_customer(
    open_session: OpenSession, customer: Customer, transport: InProcess, tmp_path: Path
) -> None:
    other = b'{"company": {"id": "c-bolt", "external_id": "bolt"}, "sheets": []}'
    transport.fault = lambda method, path, number: (
        Fault(instead=Reply(status=200, body=other))
        if (method, path[-10:]) == ("POST", "/companies")
        else None
    )
    journal = MemoryJournal()
    async with open_session() as session:
        outcome = await migrate(session, customer(), journal=journal, to=tmp_path / "out")
        assert isinstance(outcome, Unknown), outcome
        assert "the company c-bolt, whose external id is 'bolt'" in outcome.error
        assert "company" not in outcome.ids
    assert transport.requests.keys() <= {"GET /sources", "GET /templates", "POST /companies"}


# Secrets


def shows_a_secret(text: str) -> bool:
    return any(secret in text for secret in (TOKEN, str(PIN), "tok", "of-d"))


@pytest.mark.parametrize(
    "form", [DESTINATION, {"base_url": DESTINATION.base_url, "auth": dict(DESTINATION.auth)}]
)
async def test_destination_secrets_are_sent_to_the_server_and_shown_nowhere(
    form: Destination | Mapping[str, object],
    open_session: OpenSession,
    transport: InProcess,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The server quotes the request, raw and as JSON, in each kind of response."""
    caplog.set_level(logging.DEBUG)
    async with open_session() as session:
        seen: list[str] = []
        with session.events.subscribe(lambda event: seen.append(repr(event))):
            for status, text in ((400, '{"error": %s}'), (500, "<p>%s"), (200, "%s"), (409, "cut %s")):
                quoted = json.dumps(TOKEN) if status == 400 else f"{TOKEN} {json.dumps(TOKEN)} {PIN}"
                reply = Reply(status=status, body=(text % quoted).encode())
                transport.fault = lambda method, path, number, reply=reply: Fault(afterwards=reply)  # type: ignore[misc]
                with pytest.raises((BadRequest, Conflict, UnknownOutcome, UnexpectedReply)) as refused:
                    await session.companies.create(
                        name=f"Acme {status}", source=SOURCE, connections={"destination": form}
                    )
                texts = [str(refused.value), repr(refused.value), repr(pickle.dumps(refused.value))]
                texts += [getattr(refused.value, "sent", ""), repr(refused.value.__cause__)]
                assert not [line for line in texts if shows_a_secret(line)]
        assert not [line for line in [*seen, caplog.text] if shows_a_secret(line)]
    assert all(company.connected for company in transport.world.companies.values())
    assert len(transport.world.companies) == 4


def test_neither_repr_nor_rich_output_shows_a_secret() -> None:
    body = CompanyBody(name="A", source="s", connections=checked_connections({"destination": DESTINATION}))
    call = Call(endpoint=routes.CREATE_COMPANY, body=TOKEN.encode(), secrets=(TOKEN,))
    created = CompanyCreated(company=CompanyInfo(id="c"), magic_link_url=f"https://x.invalid/{TOKEN}")
    target = UploadTarget(upload_url=f"https://x.invalid/?signature={TOKEN}", upload_ref="r")
    for value in (DESTINATION, body, call, created, target):
        console = Console(file=StringIO(), width=500)
        console.print(value)
        assert isinstance(console.file, StringIO)
        assert not shows_a_secret(repr(value) + str(value) + console.file.getvalue())


@pytest.mark.parametrize(
    ("connections", "field"),
    [
        ({}, "connections"),
        ({"destinaton": DESTINATION}, "connections"),
        ({"destination": DESTINATION, "other": DESTINATION}, "connections"),
        (DESTINATION, "connections"),
        ({"destination": TOKEN}, "connections.destination"),
        (
            {"destination": {"base_url": "https://x.invalid", "auth": {}, "token": TOKEN}},
            "connections.destination",
        ),
        ({"destination": {"auth": {"token": TOKEN}}}, "connections.destination.base_url"),
        ({"destination": Destination(base_url="crm.invalid")}, "connections.destination.base_url"),
        ({"destination": Destination(base_url="ftp://x.invalid")}, "connections.destination.base_url"),
        (
            {"destination": Destination(base_url=f"https://u:{KEY}@x.invalid")},
            "connections.destination.base_url",
        ),
        ({"destination": Destination(base_url="https://[x")}, "connections.destination.base_url"),
        ({"destination": Destination(base_url="https://x.invalid\r\n")}, "connections.destination.base_url"),
        ({"destination": {"base_url": "https://x.invalid", "auth": TOKEN}}, "connections.destination.auth"),
        (
            {"destination": Destination(base_url="https://x.invalid", auth={"token": object()})},
            "connections.destination.auth",
        ),
    ],
)
async def test_malformed_connections_are_refused_before_a_request_and_not_quoted(
    connections: Mapping[str, Destination], field: str, open_session: OpenSession, transport: InProcess
) -> None:
    async with open_session() as session:
        with pytest.raises(InvalidInput) as refused:
            await session.companies.create(name="A", source=SOURCE, connections=connections)
        spec = Spec(external_id="a", name="A", source=SOURCE, files=(Path("a.csv"),), connections=connections)
        checked = generations.check_spec(generations.find("companies"), spec)[1]
    assert checked is not None
    assert refused.value.field == checked.field == field
    assert not shows_a_secret(str(refused.value) + repr(refused.value) + repr(checked))
    assert KEY not in str(refused.value)
    assert not transport.sent
