"""Uses of the public API for type checkers. mypy and pyright read this module; it is never run."""

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import assert_type

import pytest
from aiohttp import web

import asyncmig
from asyncmig import companies, events, journal, preflight, testing, transport, webhooks


async def handles() -> None:
    async with asyncmig.Session() as session:
        assert_type(session, asyncmig.Session)
        assert_type(await session.companies.sources(), tuple[companies.Source, ...])
        assert_type(await session.companies.templates(), tuple[companies.Template, ...])
        assert_type(await session.companies.source("HubSpot"), companies.Source)
        assert_type(await session.companies.template("Contacts"), companies.Template)
        company = await session.companies.create(name="Acme", source="id", external_id="acme")
        assert_type(company, companies.Company)
        assert_type(company.sheet("Contacts"), companies.Sheet)
        assert_type(company.connections, tuple[companies.Connection, ...])
        run = await company.imports.start(files=[Path("contacts.csv")])
        assert_type(run, companies.ImportRun)
        assert_type(await run.wait(), companies.ImportState)
        assert_type(run.needs_attention, asyncmig.NeedsAttention | None)
        async for state in run.updates():
            assert_type(state, companies.ImportState)
        await run.approve(answers={"fq0": "a", "fq1": asyncmig.Custom("text")})
        assert_type(
            await company.download(to="out", sheets=["Deals"], filter="all"), list[asyncmig.Downloaded]
        )
        async with company.stream("Contacts") as chunks:
            async for chunk in chunks:
                assert_type(chunk, bytes)
        exported = await company.export()
        assert_type(exported, companies.ExportOutcome)
        assert_type(exported.report.hollow, tuple[asyncmig.ExportResult, ...])
        export = await company.exports.start(mode="canary")
        assert_type((await export.wait()).report, companies.ExportReport | None)


async def uploads(company: companies.Company, stream: AsyncIterator[bytes]) -> None:
    def show(sent: int, size: int) -> None: ...
    async def chunks() -> AsyncIterator[bytes]:
        yield b""

    uploaded = await company.upload(b"a", name="a.csv", progress=show)
    assert_type(uploaded, companies.Uploaded)
    assert_type(await company.upload(stream, name="a.csv", size=1), companies.Uploaded)
    assert_type(await company.upload(chunks, name="a.csv", size=1), companies.Uploaded)
    await company.imports.start(files=[Path("b.csv"), uploaded])
    await company.imports.start(rows=[{"a": 1}, {"b": None}])
    async for state in company.imports.list():
        assert_type(state, companies.ImportState)
    assert_type(await company.imports.active(), companies.ImportState | None)
    assert_type(await company.imports.recover(), companies.ImportRun | None)


async def destination(session: asyncmig.Session, token: str) -> None:
    crm = companies.Destination(base_url="https://crm.example", auth={"token": token})
    await session.companies.create(name="A", source="s", connections={"destination": crm})
    plain = {"base_url": "https://crm.example", "auth": {"token": token}}
    await session.companies.create(name="A", source="s", connections={"destination": plain})


async def fleet(specs: list[asyncmig.Spec]) -> None:
    async with asyncmig.Session() as session, asyncmig.Fleet(session, journal="fleet.db") as driven:
        async for outcome in driven.run(specs):
            match outcome:
                case asyncmig.Delivered():
                    assert_type(outcome.files, tuple[asyncmig.Downloaded, ...])
                case asyncmig.Parked():
                    assert_type(outcome.destructive, tuple[asyncmig.Action, ...])
                case asyncmig.Failed() | asyncmig.Unknown() | asyncmig.Pending():
                    assert_type(outcome.error, str)


async def check(spec: asyncmig.Spec, templates: tuple[companies.Template, ...]) -> None:
    assert_type(await preflight.check_spec(spec, templates, head=1000), preflight.Checked)
    assert_type(await preflight.check(spec.files), preflight.Checked)
    assert_type(spec.validate(), int)


async def gate() -> None:
    budget = asyncmig.Gate(limit=100, window=60.0)
    async with budget.slot(lane=asyncmig.Lane.WORK, max_wait=5.0) as slot:
        assert_type(slot, asyncmig.Slot)
        slot.answered(200)
    assert_type(budget.statistics(), asyncmig.GateStatistics)
    assert_type(budget.wait_estimate(), float)


def sync_use() -> None:
    with asyncmig.Session():  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
        pass


async def raw_access(session: asyncmig.Session) -> None:
    reply = await session.request("GET", "/companies/{id}/notes", id="c")
    assert_type(reply, asyncmig.Reply)
    assert_type(reply.json(list[companies.Source]), list[companies.Source])
    assert_type(session.check_open(), None)


async def watch(session: asyncmig.Session) -> None:
    def on_event(event: events.Event) -> None:
        match event:
            case events.RequestDone():
                assert_type(event.status, int | None)
            case _:
                assert_type(event.at, float)

    with session.events.subscribe(on_event), session.events.open(events.Held) as stream:
        assert_type(stream, events.EventStream[events.Held])
        async for event in stream:
            assert_type(event, events.Held)


async def export(exports: companies.Exports) -> None:
    run = await exports.start(mode="canary")
    assert_type(run, companies.ExportRun)
    state = await run.wait()
    assert_type(state, companies.ExportState)
    assert_type(state.report, companies.ExportReport | None)


async def decide(parked: asyncmig.Parked) -> asyncmig.Decision | None:
    return None if parked.attention.is_destructive else asyncmig.Approve()


DECIDE: asyncmig.Decide = decide
POLICIES: list[asyncmig.Policy] = ["park", "approve_safe", "approve", "reject", decide]
FILTERS: list[asyncmig.RowFilter] = ["valid", "all"]
SCOPES: list[asyncmig.Scope] = ["endpoint", "key"]


async def custom_journal(store: asyncmig.JournalPort) -> journal.ClaimPort:
    return await store.claim("acme")


class CustomTransport:
    """A transport that a user wrote."""

    @asynccontextmanager
    async def exchange(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        body: transport.Body | None,
        timeouts: transport.Timeouts,
    ) -> AsyncGenerator[transport.Response]:
        raise transport.Lost("connection refused", sent=False)
        yield

    async def aclose(self) -> None: ...


TRANSPORT: asyncmig.Transport = CustomTransport()


async def webhook(request: web.Request, reassembler: webhooks.Reassembler) -> None:
    event = webhooks.receive(await request.read(), request.headers, ["whsec_a", "whsec_b"], now=0.0)
    assert_type(event, webhooks.Batch | webhooks.OtherEvent)
    added = reassembler.add(event)
    assert_type(added.export, webhooks.Export | None)
    if added.export:
        for sheet in added.export.sheets():
            assert_type(sheet.rows, tuple[webhooks.Row, ...])
            assert_type(sheet.rows[0].children, Mapping[str, tuple[webhooks.Row, ...]])
        for batch in added.export.batches():
            assert_type(batch, webhooks.Batch)
    assert_type(added.given_up, tuple[webhooks.Incomplete, ...])


@pytest.mark.asyncmig_simulator(seed=1)
async def service(asyncmig_simulator: testing.Simulator, asyncmig_session: asyncmig.Session) -> None:
    async with asyncmig_session as session, asyncmig_simulator.serve() as serving:
        assert_type(session, asyncmig.Session)
        assert_type(serving.base_url, str)
