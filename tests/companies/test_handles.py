"""Companies, imports and runs, used as in the README."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from inprocess import Fault, InProcess

from asyncmig import Conflict, Custom, InvalidInput, RunFailed, Spec
from asyncmig.customers.catalog import named
from asyncmig.simulator import Reply, World

from .conftest import DUPLICATES, SOURCE, OpenSession

pytestmark = pytest.mark.looptime
Customer = Callable[..., Spec]


async def test_the_first_example_of_the_readme_runs(
    open_session: OpenSession, customer: Customer, tmp_path: Path
) -> None:
    async with open_session() as session:
        source = named("source", "HubSpot", await session.companies.sources()).id
        company = await session.companies.create(name="Acme", source=source, external_id="acme-001")
        run = await company.imports.start(files=list(customer().files))
        done = await run.wait()
        files = await company.download(to=tmp_path / "out")
    assert done.report is not None
    assert done.report.inserted == 20
    assert sorted(Path(file.path).name for file in files) == ["Companies.csv", "Contacts.csv", "Deals.csv"]


async def test_a_download_is_checked_against_the_last_report_by_default(
    open_session: OpenSession, customer: Customer, transport: InProcess, tmp_path: Path
) -> None:
    transport.world.schemas = dict(list(transport.world.schemas.items())[1:2])
    transport.fault = lambda method, path, number: (
        Fault(truncated_to=100) if path.endswith("/export.csv") and number == 1 else None
    )
    async with open_session() as session:
        company = await session.companies.create(name="Acme", source=SOURCE)
        await (await company.imports.start(files=list(customer().files))).wait()
        files = await company.download(to=tmp_path / "out")
    assert [file.rows for file in files] == [20]


async def test_rows_are_imported_without_a_file(open_session: OpenSession, tmp_path: Path) -> None:
    rows = [{"Email": f"p{n}@x.org", "Last Name": "L", "First Name": "F"} for n in range(3)]
    async with open_session() as session:
        company = await session.companies.create(name="Acme", source=SOURCE)
        done = await (await company.imports.start(rows=rows)).wait()
        await company.download(to=tmp_path, filter="all")
    assert done.report is not None
    assert done.report.inserted == 3
    assert "p2@x.org" in (tmp_path / "Contacts.csv").read_text(encoding="utf-8")


async def test_a_repeated_key_returns_the_same_run_and_conflicts_on_another_payload(
    open_session: OpenSession, world: World
) -> None:
    async with open_session() as session:
        company = await session.companies.create(name="Acme", source=SOURCE)
        first = await company.imports.start(rows=[{"a": 1}], idempotency_key="k")
        second = await company.imports.start(rows=[{"a": 1}], idempotency_key="k")
        assert first.id == second.id
        active = await company.imports.active()
        assert active is not None
        assert active.run_id == first.id
        with pytest.raises(Conflict):
            await company.imports.start(rows=[{"a": 2}], idempotency_key="k")
        await first.wait()
        assert await company.imports.active() is None
        assert [state.run_id async for state in company.imports.list()] == [first.id]


async def test_a_wrapped_active_import_is_read(open_session: OpenSession, transport: InProcess) -> None:
    async with open_session() as session:
        company = await session.companies.create(name="Acme", source=SOURCE)
        run = await company.imports.start(rows=[{"a": 1}])
        transport.fault = lambda method, path, number: Fault(change=lambda body: b'{"run": ' + body + b"}")
        active = await company.imports.active()
        assert active is not None
        assert active.run_id == run.id


async def test_answers_are_checked_against_the_questions(
    open_session: OpenSession, customer: Customer, transport: InProcess
) -> None:
    async with open_session() as session:
        company = await session.companies.create(name="Acme", source=SOURCE)
        run = await company.imports.start(files=list(customer(contacts=DUPLICATES).files))
        with pytest.raises(InvalidInput, match="asks nothing"):
            await run.approve()
        await run.wait()
        assert run.needs_attention is not None
        question = run.needs_attention.questions[0]
        before = len(transport.sent)
        for answers, reason in (
            ({"fq9": "a"}, "is not a question of this run"),
            ({question.id: "z"}, "is not one of"),
            ({question.id: Custom("x")}, "takes only its options"),
        ):
            with pytest.raises(InvalidInput, match=reason):
                await run.approve(answers=answers)
        assert len(transport.sent) == before
        await run.approve(answers={question.id: "a"})
        done = await run.wait()
    assert done.report is not None
    assert done.report.inserted == 20


async def test_a_decision_after_that_of_another_client_is_a_conflict(
    open_session: OpenSession, customer: Customer
) -> None:
    async with open_session() as session, open_session() as elsewhere:
        company = await session.companies.create(name="Acme", source=SOURCE)
        run = await company.imports.start(files=list(customer(contacts=DUPLICATES).files))
        await run.wait()
        other = elsewhere.watch(run.id, company.id)
        await other.wait()
        await other.reject()
        with pytest.raises(Conflict):
            await run.approve()
        with pytest.raises(RunFailed, match="Rejected"):
            await run.wait()


async def test_a_stale_read_after_a_decision_is_not_a_new_park(
    open_session: OpenSession, customer: Customer, transport: InProcess, world: World
) -> None:
    async with open_session() as session:
        company = await session.companies.create(name="Acme", source=SOURCE)
        run = await company.imports.start(files=list(customer(contacts=DUPLICATES).files))
        parked = await run.wait()
        stale = Reply(status=200, body=__import__("msgspec").json.encode(parked))
        reads = 0

        def lagging(method: str, path: str, number: int) -> Fault | None:
            nonlocal reads
            if method == "GET" and path.endswith(run.id):
                reads += 1
                return Fault(instead=stale) if reads <= 2 else None
            return None

        transport.fault = lagging
        await run.approve()
        assert (await run.wait()).status == "completed"


@pytest.mark.parametrize("seed", range(12))
async def test_a_new_handle_ignores_stale_reads_after_a_decision(
    open_session: OpenSession, world: World, seed: int
) -> None:
    world.variants = replace(world.variants, parks_twice=True)
    async with open_session() as session:
        company = await session.companies.create(name="Acme", source=SOURCE)
        mails = [*(f"p{n}@x.org" for n in range(20)), *["p1@x.org"] * 3, *(f"bad {n}" for n in range(3))]
        rows = [{"Email": mail, "First Name": "F", "Last Name": "L"} for mail in mails]
        run = await company.imports.start(rows=rows)
        await run.wait()
        asked = run.needs_attention
        world.variants, world.rng = replace(world.variants, stale=0.6), Random(seed)
        await run.approve()
        del run
        later = session.companies.open(company.id).imports
        active = await later.recover()
        assert active is not None
        second = later.open(active.id)
        await second.wait()
        assert second.needs_attention != asked
        await second.approve()
        del second
        assert (await later.open(active.id).wait()).status == "completed"
    assert world.verdict(10**6).blind_decisions == 0


async def test_a_park_that_another_handle_decided_is_not_decided_again(
    open_session: OpenSession, customer: Customer, transport: InProcess, world: World
) -> None:
    async with open_session() as session:
        company = await session.companies.create(name="Acme", source=SOURCE)
        run = await company.imports.start(files=list(customer(contacts=DUPLICATES).files))
        parked = Reply(status=200, body=__import__("msgspec").json.encode(await run.wait()))
        other = company.imports.open(run.id)
        await run.approve()
        transport.fault = lambda method, path, number: (
            Fault(instead=parked) if method == "GET" and path.endswith(run.id) else None
        )
        before = len(transport.sent)
        with pytest.raises(Conflict, match="was already decided"):
            await other.approve()
        assert not any(url.endswith("/decisions") for _, _, url in transport.sent[before:])


async def test_updates_yields_each_update_once_and_ends(open_session: OpenSession) -> None:
    async with open_session() as session:
        company = await session.companies.create(name="Acme", source=SOURCE)
        run = await company.imports.start(rows=[{"a": 1}])
        seen = [(state.status, state.progress_message) async for state in run.updates()]
    assert len(seen) == len(set(seen))
    assert [status for status, _ in seen][-1] == "completed"


@pytest.mark.parametrize(("wanted", "reason"), [("Nope", "is not known"), ("Twice", "is the name of 2")])
def test_an_unknown_or_ambiguous_name_is_refused(wanted: str, reason: str) -> None:
    from asyncmig.companies import Source

    sources = [Source(id="1", name="Once"), Source(id="2", name="Twice"), Source(id="3", name="Twice")]
    for wanted_as in ("Once", "once", "1"):
        assert named("source", wanted_as, sources).id == "1"
    with pytest.raises(InvalidInput, match=reason):
        named("source", wanted, sources)
