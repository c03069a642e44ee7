"""The simulator sends webhooks as the contract says, and the client restores the workbook from them."""

import json
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime
from random import Random

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from svix.webhooks import Webhook as Svix
from svix.webhooks import WebhookVerificationError

from asyncmig import WebhookRefused
from asyncmig.simulator import DEFECTS, SCHEMAS, Webhook, Workbook, disordered, export_webhooks, send
from asyncmig.simulator.companies.tables import Table
from asyncmig.webhooks import Export, Reassembler, Row, receive

SECRET = "whsec_c2ltdWxhdG9y"
NOW = 1_750_000_000.0


@pytest.fixture
def workbook() -> Workbook:
    companies, contacts, deals = (
        Table(sheet_id=f"sheet-{n}", name=schema.name, schema=schema, header=[c.name for c in schema.columns])
        for n, schema in enumerate(SCHEMAS)
    )
    companies.rows = [["Acme", "Bonn", ""]]
    contacts.rows = [[f"p{n}@x.org", "Ada", "" if n == 3 else f"L{n}", "1"] for n in range(120)]
    deals.rows = [[f"Deal {n}", "won", "7", f"p{n % 130}@x.org"] for n in range(300)]
    return Workbook(id="wb", company_name="Acme", external_id="acme", tables=[companies, contacts, deals])


def collect(sent: Iterable[Webhook]) -> tuple[list[Export], list[str]]:
    """Return the exports in the webhooks, and the defects of the refused webhooks."""
    reassembler, exports, refused = Reassembler(), list[Export](), list[str]()
    for webhook in sent:
        try:
            event = receive(webhook.body, webhook.headers(SECRET, NOW), SECRET, now=NOW)
        except WebhookRefused:
            refused.append(webhook.defect)
            continue
        if export := reassembler.add(event).export:
            exports.append(export)
    return exports, refused


def walk(rows: Iterable[Row]) -> Iterable[Row]:
    for row in rows:
        yield row
        for children in row.children.values():
            yield from walk(children)


@pytest.mark.parametrize("drift", [False, True])
@pytest.mark.parametrize("first_index", [0, 1])
def test_a_flat_export_is_restored_completely(workbook: Workbook, first_index: int, drift: bool) -> None:
    sent = export_webhooks(workbook, rng=Random(1), first_index=first_index, target=4096, drift=drift)
    assert len(sent) > 5
    assert max(len(webhook.body) for webhook in sent) < 8192
    (export,), refused = collect(disordered(sent, rng=Random(2), defects=DEFECTS))
    assert sorted(refused) == sorted(DEFECTS)
    assert [sheet.name for sheet in export.sheets()] == ["Companies", "Contacts", "Deals"]
    for sheet, table in zip(export.sheets(), workbook.tables, strict=True):
        assert sheet.id == table.sheet_id
        assert [list(row.values.values()) for row in sheet.rows] == table.rows
        assert [row.index for row in sheet.rows] == list(range(len(table.rows)))
    contacts = export.sheets()[1]
    assert [row.index for row in contacts.rows if row.errors] == [3]


def test_a_nested_export_is_restored_completely_with_its_child_rows(workbook: Workbook) -> None:
    sent = export_webhooks(workbook, rng=Random(1), nested=True, preview=True)
    for webhook in sent:
        assert sum(len(roots) for roots in json.loads(webhook.body)["data"].values()) <= 50
    (export,), _ = collect(disordered(sent, rng=Random(3)))
    assert export.event == "workbook.preview.export"
    companies, contacts, deals = export.sheets()
    assert (len(companies.rows), len(contacts.rows)) == (1, 120)
    assert len(contacts.rows[0].children["Deals"]) == 3
    everything = [row for sheet in export.sheets() for row in walk(sheet.rows)]
    assert len(everything) == 1 + 120 + 300
    orphans = {row.values["Contact"] for row in deals.rows}
    assert orphans == {f"p{n}@x.org" for n in range(120, 130)}


def test_an_export_without_rows_is_restored(workbook: Workbook) -> None:
    for table in workbook.tables:
        table.rows = []
    for nested in (False, True):
        (export,), _ = collect(export_webhooks(workbook, rng=Random(1), nested=nested))
        assert export.sheets() == ()


def test_svix_accepts_valid_webhooks_and_refuses_defective_ones(workbook: Workbook) -> None:
    now = datetime.now(UTC).timestamp()  # svix reads the wall clock
    (first, *_) = export_webhooks(workbook, rng=Random(1))
    Svix(SECRET).verify(first.body, first.headers(SECRET, now))
    for defect in DEFECTS:
        bad = replace(first, defect=defect)
        with pytest.raises((WebhookVerificationError, ValueError)):
            Svix(SECRET).verify(bad.body, bad.headers(SECRET, now))


async def test_the_sender_retries_until_a_webhook_is_accepted(workbook: Workbook) -> None:
    received: list[str] = []

    async def handler(request: web.Request) -> web.Response:
        received.append(request.headers["svix-id"])
        receive(await request.read(), request.headers, SECRET, now=NOW)
        return web.Response(status=503 if len(received) == 1 else 204)

    app = web.Application()
    app.router.add_post("/webhooks", handler)
    sent = export_webhooks(workbook, rng=Random(1), target=16_384)
    async with TestServer(app) as server:
        url = str(server.make_url("/webhooks"))
        statuses = await send(url, sent, secret=SECRET, clock=lambda: NOW, pause=0.0)
        missing = await send(
            str(server.make_url("/nowhere")), sent[:1], secret=SECRET, clock=lambda: NOW, attempts=1
        )
    assert statuses == [[503, 204], *([204] for _ in sent[1:])]
    assert received == [sent[0].id, *(webhook.id for webhook in sent)]
    assert missing == [[404]]
    assert await send(url, sent[:1], secret=SECRET, clock=lambda: NOW, attempts=2, pause=0.0) == [[0, 0]]
