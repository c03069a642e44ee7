"""Support for users' tests with this generation: a simulated account, a session with it, and the fixtures."""

from collections.abc import AsyncIterator
from dataclasses import asdict
from pathlib import Path

import pytest

from asyncmig import InvalidInput, RunFailed, Session
from asyncmig.migrations import Migration, Preview, Questions, Report
from asyncmig.simulator import FixedWindow, RunDurations
from asyncmig.simulator.migrations import Block, Limits, Question, Script, Variants, World
from asyncmig.testing import Ask, Fails, Parks, Simulator

pytestmark = pytest.mark.looptime
CONTACTS = b"E-mail,Given Name,Surname,Phone\r\na@x.org,Ada,L,1\r\nb@x.org,Bob,M,2\r\nbad,Cy,N,\r\n"


async def onboard(session: Session, external_id: str) -> Migration:
    """Create a migration and upload its file, as a user's service does."""
    migration = await session.migrations.create(name=external_id, source="HubSpot", external_id=external_id)
    await migration.upload(CONTACTS, name="contacts.csv")
    return migration


async def test_a_customer_goes_from_upload_to_download(tmp_path: Path) -> None:
    simulator = Simulator(api="migrations", seed=7)
    async with simulator.session() as session:
        migration = await onboard(session, "acme")
        preview = await (await migration.generate()).wait()
        assert isinstance(preview, Preview)
        assert preview.invalid_cells == 1
        report = await (await migration.execute()).wait()
        assert isinstance(report, Report)
        (contacts, *_) = [each for each in await migration.download(to=tmp_path, report=report) if each.rows]
    assert (contacts.rows, contacts.flagged, contacts.is_verified) == (3, "included", True)
    assert str(simulator.verdict()) == "no faults"
    assert len(simulator.world.migration("acme").workbook["contacts"]) == 3
    assert simulator.ledger.requests["POST /migrations"] == 1


async def test_scripts_ask_questions_and_make_runs_fail() -> None:
    simulator = Simulator(
        api="migrations",
        customers={
            "asks": Parks("Currency?", Ask(prompt="Keep?", options=("Yes", "No"))),
            "fails": Fails("The file is password-protected", times=2),
            "late": Script(blocks={"execute": [Block(questions=(Question(text="Replace?"),))]}),
        },
    )
    async with simulator.session() as session:
        run = await (await onboard(session, "asks")).generate()
        asked = await run.wait()
        assert isinstance(asked, Questions)
        assert [question.prompt for question in asked.questions] == ["Currency?", "Keep?"]
        currency, keep = asked.questions
        await run.answer({currency.id: currency.options[0].id, keep.id: "No"})
        assert isinstance(await run.wait(), Preview)
        assert simulator.answers("asks") == {"Currency?": "Do as proposed", "Keep?": "No"}

        migration = await onboard(session, "fails")
        for _ in range(2):
            with pytest.raises(RunFailed, match="password"):
                await (await migration.generate()).wait()
        assert isinstance(await (await migration.generate()).wait(), Preview)

        migration = await onboard(session, "late")
        await (await migration.generate()).wait()
        assert isinstance(await (await migration.execute()).wait(), Questions)


async def test_the_documented_limits_make_three_migrations_take_two_hours(looptime: float) -> None:
    simulator = Simulator(api="migrations", limits="by-class")
    async with simulator.session() as session:
        for name in ("a", "b", "c"):
            await onboard(session, name)
    assert 7200 <= float(looptime) < 7500
    assert simulator.verdict().over_the_limit == 0


@pytest.mark.asyncmig_simulator(
    api="migrations",
    limits=None,
    variants=Variants(limits="per-minute", lag=5.0),
    pace=RunDurations(base=500.0),
)
async def test_the_marker_configures_the_account(
    asyncmig_simulator: Simulator[World], asyncmig_session: Session, looptime: float
) -> None:
    async with asyncmig_session as session:
        assert isinstance(await (await (await onboard(session, "acme")).generate()).wait(), Preview)
    assert float(looptime) > 200
    assert not any(asdict(asyncmig_simulator.verdict()).values())


@pytest.fixture
async def served() -> AsyncIterator[Session]:
    simulator = Simulator(api="migrations")
    async with simulator.serve() as serving, Session(simulator.api_key, serving.base_url) as session:
        yield session


@pytest.mark.looptime(noop_cycles=42)
async def test_the_same_account_is_served_on_loopback(served: Session) -> None:
    assert [source.name for source in await served.migrations.sources()] == [
        "HubSpot",
        "Salesforce (AU)",
        "Pipedrive",
    ]


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"limits": "by-the-way"}, "limits"),
        ({"limit": lambda: FixedWindow(5)}, "limit"),
        ({"scope": "key"}, "scope"),
        ({"variants": 3}, "variants"),
        ({"sources": [7]}, "sources"),
        ({"schemas": [7]}, "schemas"),
        ({"customers": {"acme": 7}}, "customers"),
        ({"api": "workbooks"}, "api"),
        ({"api": "companies", "limits": Limits.parse("by-class")}, "limits"),
        ({"api": "companies", "plan": False}, "plan"),
    ],
    ids=lambda each: each if isinstance(each, str) else ",".join(each),
)
def test_an_invalid_option_is_refused(options: dict[str, object], name: str) -> None:
    with pytest.raises(InvalidInput, match=name):
        Simulator(**{"api": "migrations", **options})  # type: ignore[call-overload]
