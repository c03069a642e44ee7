"""A spec may name its source and templates. They are resolved for all customers before a company is created."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from inprocess import Fault, InProcess

from asyncmig import Delivered, Failed, Fleet, MemoryJournal, Pending, Session, Spec, generations, migrate
from asyncmig.companies.workflow.record import Record
from asyncmig.session import context_of
from asyncmig.simulator import Reply, World

from .conftest import SOURCE, OpenSession

pytestmark = pytest.mark.looptime
Customer = Callable[..., Spec]
SOURCES, TEMPLATES = "GET /sources", "GET /templates"


def with_names(spec: Spec, source: str = "HubSpot", templates: tuple[str, ...] | None = None) -> Spec:
    return msgspec.structs.replace(spec, source=source, templates=templates)


async def run(session: Session, specs: list[Spec], journal: MemoryJournal, to: Path) -> dict[str, object]:
    async with Fleet(session, journal=journal, to=to, decide="approve") as fleet:
        return {outcome.external_id: outcome async for outcome in fleet.run(specs)}


async def test_each_list_is_read_once_per_fleet_and_the_journal_has_the_ids(
    open_session: OpenSession, customer: Customer, world: World, tmp_path: Path
) -> None:
    journal, specs = (
        MemoryJournal(),
        [with_names(customer(f"c{n}"), "hubspot", ("Contacts",)) for n in range(9)],
    )
    async with open_session() as session:
        outcomes = await run(session, specs, journal, tmp_path / "out")
        assert {type(outcome) for outcome in outcomes.values()} == {Delivered}
        assert (world.ledger.requests[SOURCES], world.ledger.requests[TEMPLATES]) == (1, 1)
        again = await run(session, specs, journal, tmp_path / "out")
    assert again.keys() == outcomes.keys()
    assert world.ledger.requests[SOURCES] == 1
    records = [msgspec.json.decode(state, type=Record) for state in (await journal.states()).values()]
    assert {record.source for record in records} == {SOURCE}
    assert {len(record.template_ids or ()) for record in records} == {1}


async def test_ids_and_recorded_customers_need_no_list(
    open_session: OpenSession, customer: Customer, world: World, tmp_path: Path
) -> None:
    journal = MemoryJournal()
    async with open_session() as session:
        assert isinstance((await run(session, [customer()], journal, tmp_path / "out"))["acme"], Delivered)
        renamed = with_names(customer(), "a name that the account does not have")
        assert isinstance((await run(session, [renamed], journal, tmp_path / "out"))["acme"], Delivered)
    assert world.ledger.requests[SOURCES] == 0


async def test_an_unknown_name_fails_only_its_customer_before_other_requests(
    open_session: OpenSession, customer: Customer, world: World, transport: InProcess, tmp_path: Path
) -> None:
    journal = MemoryJournal()
    specs = [
        with_names(customer("good")),
        with_names(customer("bad"), "Hubspto"),
        with_names(customer("worse"), "HubSpot", ("Contcats",)),
    ]
    async with open_session() as session:
        outcomes = await run(session, specs, journal, tmp_path / "out")
        assert isinstance(outcomes["good"], Delivered)
        bad, worse = outcomes["bad"], outcomes["worse"]
        assert isinstance(bad, Failed)
        assert bad.step == "checking"
        assert "source='Hubspto'" in bad.error
        assert "'HubSpot'" in bad.error
        assert isinstance(worse, Failed)
        assert "templates='Contcats'" in worse.error
        assert world.ledger.requests["POST /companies"] == 1
        corrected = with_names(customer("bad"))
        assert isinstance((await run(session, [corrected], journal, tmp_path / "out"))["bad"], Delivered)
    assert world.ledger.requests[SOURCES] == 1


async def test_a_name_added_to_the_account_is_found_later(
    open_session: OpenSession, customer: Customer, world: World, tmp_path: Path
) -> None:
    async with open_session() as session:
        journal, spec = MemoryJournal(), with_names(customer(), "Zoho")
        assert isinstance((await run(session, [spec], journal, tmp_path / "out"))["acme"], Failed)
        world.sources["5b0c3a52-0f5e-4c62-9a11-6d1f0a7e1cff"] = "Zoho"
        await asyncio.sleep(61.0)
        assert isinstance((await run(session, [spec], journal, tmp_path / "out"))["acme"], Delivered)
    assert world.ledger.requests[SOURCES] == 2


async def test_only_ids_work_if_the_server_has_no_lists(
    open_session: OpenSession, customer: Customer, transport: InProcess, tmp_path: Path
) -> None:
    transport.fault = lambda method, path, number: (
        Fault(instead=Reply(status=404, body=b"")) if path.endswith("/sources") else None
    )
    async with open_session() as session:
        outcomes = await run(
            session, [customer("id"), with_names(customer("name"))], MemoryJournal(), tmp_path / "out"
        )
    assert isinstance(outcomes["id"], Delivered)
    refused = outcomes["name"]
    assert isinstance(refused, Failed)
    assert "does not list names: use the id" in refused.error


async def test_a_customer_is_pending_while_the_list_cannot_be_read(
    open_session: OpenSession, customer: Customer, world: World, transport: InProcess, tmp_path: Path
) -> None:
    transport.fault = lambda method, path, number: (
        Fault(instead=Reply(status=503, body=b"")) if path.endswith("/sources") else None
    )
    journal, spec = MemoryJournal(), with_names(customer())
    async with open_session() as session:
        outcome = await migrate(session, spec, journal=journal, to=tmp_path / "out", retry_seconds=60.0)
        assert isinstance(outcome, Pending)
        assert outcome.reason == "server_away"
        assert world.ledger.requests["POST /companies"] == 0
        transport.fault = lambda method, path, number: None
        assert isinstance(await migrate(session, spec, journal=journal, to=tmp_path / "out"), Delivered)


@pytest.mark.parametrize("turns", range(0, 40, 3))
async def test_a_cancelled_customer_does_not_cancel_a_read_that_another_needs(
    open_session: OpenSession, customer: Customer, world: World, tmp_path: Path, turns: int
) -> None:
    async with open_session() as session:
        journal, generation = MemoryJournal(), generations.find("companies")
        first = asyncio.ensure_future(
            migrate(session, with_names(customer("one")), journal=journal, to=tmp_path / "one")
        )
        second = asyncio.ensure_future(
            generation.resolve(context_of(session), [with_names(customer("two"), "HubSpot")])
        )
        for _ in range(turns):
            await asyncio.sleep(0)
        first.cancel()
        (resolved,) = await second
        assert (resolved.spec.source, resolved.faults) == (SOURCE, ())
        await asyncio.gather(first, return_exceptions=True)
    assert world.ledger.requests[SOURCES] == 1


async def test_a_customer_reads_the_list_itself_if_the_reader_is_being_cancelled(
    open_session: OpenSession, customer: Customer, world: World
) -> None:
    async with open_session() as session:
        generation = generations.find("companies")
        first = asyncio.ensure_future(
            generation.resolve(context_of(session), [with_names(customer("one"), "HubSpot")])
        )
        await asyncio.sleep(0.05)
        first.cancel()
        second = asyncio.ensure_future(
            generation.resolve(context_of(session), [with_names(customer("two"), "HubSpot")])
        )
        (resolved,) = await second
        assert (resolved.spec.source, resolved.faults) == (SOURCE, ())
        assert first.cancelled()
