"""`asyncmig.testing` and the pytest plugin: a simulated account, and a session with it."""

import re
import subprocess
import sys
from dataclasses import asdict
from functools import partial
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest

import asyncmig.testing
from asyncmig import (
    Approve,
    Decision,
    Delivered,
    Failed,
    Fleet,
    Outcome,
    Parked,
    RetryPolicy,
    Session,
    Spec,
    UnknownOutcome,
)
from asyncmig.simulator import FAULTS, Fault, Faults, RunDurations, SlidingLog, Variants, export_webhooks
from asyncmig.simulator.server.limits import FixedWindow, SlidingCounter, TokenBucket
from asyncmig.testing import Ask, Fails, Parks, Simulator

pytestmark = pytest.mark.looptime
ROWS = [{"Email": "ada@example.com", "First Name": "Ada", "Last Name": "Lovelace"}]


async def onboard(session: Session, external_id: str) -> str:
    """Create a company and import its rows, as a user's service does."""
    source = (await session.companies.sources())[0]
    company = await session.companies.create(name=external_id, source=source.id, external_id=external_id)
    run = await company.imports.start(rows=ROWS)
    return (await run.wait()).status


async def simulate(**options: object) -> Simulator:
    simulator = Simulator(**options)  # type: ignore[arg-type]
    async with simulator.session() as session:
        await onboard(session, "acme")
    return simulator


def requests_to(simulator: Simulator) -> list[tuple[float, str, int]]:
    """Return the requests to the server: seconds after the first request, endpoint and status."""
    first, *_ = entries = simulator.ledger.entries
    return [(round(entry.at - first.at, 6), entry.endpoint, entry.status) for entry in entries]


async def test_the_same_seed_gives_the_same_requests() -> None:
    one, same, other = [await simulate(seed=seed, faults={"500-before": 0.3}) for seed in (3, 3, 4)]
    assert requests_to(one) == requests_to(same) != requests_to(other)


@pytest.mark.asyncmig_simulator(pace=RunDurations(queued=0.0, base=7000.0, sigma=0.0))
async def test_the_marker_configures_the_simulated_account(
    asyncmig_simulator: Simulator, asyncmig_session: Session, looptime: float
) -> None:
    async with asyncmig_session as session:
        assert await onboard(session, "acme") == "completed"
    assert 7000 < float(looptime) < 7100
    assert not any(
        count for name, count in asdict(asyncmig_simulator.verdict()).items() if name != "unaccounted"
    )


@pytest.mark.asyncmig_simulator(variants=Variants(catalogue=False), seed=1)
class TestMarkers:
    @pytest.mark.asyncmig_simulator(seed=2)
    def test_options_of_all_markers_apply_and_the_closest_marker_wins(
        self, asyncmig_simulator: Simulator
    ) -> None:
        assert not asyncmig_simulator.world.variants.catalogue
        assert repr(asyncmig_simulator.world.rng.random()) == repr(Simulator(seed=2).world.rng.random())


async def test_faults_are_rates_or_a_plan() -> None:
    plan = Faults(script={("POST /companies", 1): Fault(lost_after=True)})
    with pytest.raises(UnknownOutcome):
        await simulate(faults=plan)
    with pytest.raises(ValueError, match="unknown fault"):
        Simulator(faults={"no such": 1.0})


@pytest.mark.looptime(noop_cycles=42)
async def test_the_account_can_be_served_over_http() -> None:
    simulator = Simulator()
    async with simulator.session() as session:
        await onboard(session, "acme")
    async with simulator.serve() as serving, Session(simulator.api_key, serving.base_url) as session:
        await onboard(session, "bolt")
    assert {simulator.world.workbook(each).external_id for each in ("acme", "bolt")} == {"acme", "bolt"}


async def test_a_session_with_other_options_can_use_the_transport() -> None:
    simulator = Simulator(faults={"500-before": 1.0})
    retry = RetryPolicy(attempts=2)
    async with Session(
        simulator.api_key, simulator.base_url, transport=simulator.transport, retry=retry
    ) as session:
        with pytest.raises(Exception, match="500"):
            await session.companies.sources()
    assert len(simulator.transport.sent) == 2


async def test_imported_rows_can_be_sent_as_webhooks() -> None:
    simulator = await simulate()
    workbook = simulator.world.workbook("acme")
    assert (workbook.company_name, workbook.external_id) == ("acme", "acme")
    assert [len(table.rows) for table in workbook.tables if table.name == "Contacts"] == [1]
    assert len(export_webhooks(workbook, rng=simulator.world.rng)) == 1
    with pytest.raises(KeyError):
        simulator.world.workbook("nobody")


def test_the_plugin_is_not_loaded_by_default() -> None:
    assert not [entry for entry in distribution("asyncmig").entry_points if entry.group == "pytest11"]
    code = "import asyncmig, sys; print({'pytest', 'asyncmig.simulator', 'asyncmig.webhooks'} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "set()\n"


def test_the_fixtures_can_be_used_in_plain_functions(pytester: pytest.Pytester) -> None:
    pytester.makeconftest('pytest_plugins = ["asyncmig.pytest_plugin"]')
    pytester.makepyfile(
        """
        import asyncio

        def test_plain(asyncmig_session, asyncmig_simulator):
            async def main():
                async with asyncmig_session as session:
                    return await session.companies.sources()

            assert len(asyncio.run(main())) == 3
            assert len(asyncmig_simulator.ledger.entries) == 1
        """
    )
    pytester.makeini("[pytest]\nasyncio_default_fixture_loop_scope = function\n")
    result = pytester.runpytest_inprocess("--strict-markers", "-W", "error")
    result.assert_outcomes(passed=1)
    assert "asyncmig_simulator(**options)" in pytester.runpytest_inprocess("--markers").stdout.str()


BAD_OPTIONS: list[dict[str, object]] = [
    *({"faults": {"500-before": rate}} for rate in (2, -0.1, float("nan"), float("inf"), "0.1", True, None)),
    {"faults": {7: 0.1}},
    {"faults": ["hang"]},
    {"faults": "hang"},
    *({"seed": seed} for seed in (-1, 1.5, "x", None, True)),
    *({"limit": limit} for limit in (10, None)),
    *({"latency": latency} for latency in (-1, float("nan"), float("inf"), "1")),
    {"scope": "company"},
    {"variants": {"zombies": 0.1}},
    {"pace": 3},
]


@pytest.mark.parametrize("options", BAD_OPTIONS, ids=str)
def test_invalid_options_of_a_simulator_are_refused(options: dict[str, object]) -> None:
    (name,) = options
    with pytest.raises(ValueError, match=name.removesuffix("s")):
        Simulator(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options",
    [
        *(
            {name: share}
            for name in ("zombies", "stale", "hollow_writes")
            for share in (1.1, -0.1, float("nan"), "x")
        ),
        *({name: -1} for name in ("lag", "inline_rows", "park_lasts", "key_lives", "upload_lives")),
        {"replay_shows": "past"},
        {"poll_url": "ftp"},
        {"pages": "scroll"},
        {"replay_status": 500},
    ],
    ids=str,
)
def test_invalid_variants_are_refused(options: dict[str, object]) -> None:
    (name,) = options
    with pytest.raises(ValueError, match=name):
        Variants(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("limit", [-1, float("nan"), "10", None])
def test_an_invalid_limit_or_pace_is_refused(limit: object) -> None:
    for make in (SlidingLog, FixedWindow, SlidingCounter, partial(TokenBucket, burst=1)):
        with pytest.raises(ValueError, match="limit"):
            make(limit)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="window"):
            make(1, 0.0)
    with pytest.raises(ValueError, match=r"pace\.base"):
        RunDurations(base=limit)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("mark", "message"),
    [
        ("7", "give the options by name"),
        ("faults={'500-before': 2}", "must be a number from 0 to 1"),
        ("faults={'no such': 1}", "unknown fault"),
        ("seed=-1", "seed"),
        ("sead=1", "sead"),
    ],
)
def test_a_marker_with_invalid_options_is_an_error(
    pytester: pytest.Pytester, mark: str, message: str
) -> None:
    pytester.makeini("[pytest]\nasyncio_default_fixture_loop_scope = function")
    pytester.makeconftest('pytest_plugins = ["asyncmig.pytest_plugin"]')
    pytester.makepyfile(
        f"import pytest\n@pytest.mark.asyncmig_simulator({mark})\ndef test_it(asyncmig_simulator): pass\n"
    )
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines([f"*{message}*"])


async def migrated(simulator: Simulator, folder: Path, external_id: str, **options: Any) -> Outcome:
    """Migrate one customer whose file has no bad cell."""
    path = folder / f"{external_id}.csv"
    path.write_text("Email,First Name,Last Name\nada@example.com,Ada,Lovelace\n", encoding="utf-8")
    async with simulator.session() as session:
        source = (await session.companies.sources())[0].id
        spec = Spec(external_id=external_id, name=external_id, source=source, files=(path,))
        async with Fleet(session, journal=folder / "journal.db", to=folder / "out", **options) as fleet:
            return await fleet.submit(spec)


async def test_a_scripted_customer_parks_and_completes_when_it_is_answered(tmp_path: Path) -> None:
    questions = Parks(
        "Keep the duplicates?", Ask(prompt="Currency?", options=("EUR", "USD"), destructive=True)
    )
    simulator = Simulator(customers={"acme": questions})
    parked = await migrated(simulator, tmp_path, "acme")
    assert isinstance(parked, Parked)
    assert [each.prompt for each in parked.attention.questions] == ["Keep the duplicates?", "Currency?"]
    assert [each.label for each in parked.attention.questions[1].options] == ["EUR", "USD"]
    assert len(parked.destructive) == 1
    assert simulator.answers("acme") == {}

    async def decide(parked: Parked) -> Decision:
        keep, currency = parked.attention.questions
        return Approve(answers={keep.id: keep.options[0].id, currency.id: currency.options[1].id})

    delivered = await migrated(simulator, tmp_path, "acme", decide=decide)
    assert isinstance(delivered, Delivered)
    assert delivered.rows == 1
    assert simulator.answers("acme") == {"Keep the duplicates?": "Do as proposed", "Currency?": "USD"}
    assert str(simulator.verdict()) == "no faults"


async def test_a_scripted_customer_fails_and_others_do_not(tmp_path: Path) -> None:
    simulator = Simulator(
        customers={"acme": Fails("The file is locked"), "bolt": Fails("Timed out", times=1)}
    )
    failed = await migrated(simulator, tmp_path, "acme", retries=1)
    assert isinstance(failed, Failed)
    assert "The file is locked" in failed.error
    assert isinstance(await migrated(simulator, tmp_path, "bolt", retries=1), Delivered)
    assert isinstance(await migrated(simulator, tmp_path, "coda"), Delivered)


@pytest.mark.parametrize("customers", [{"acme": "parks"}, {"acme": None}], ids=str)
def test_an_invalid_script_of_a_customer_is_refused(customers: Any) -> None:
    with pytest.raises(ValueError, match="acme"):
        Simulator(customers=customers)
    for questions in ((), (3,)):
        with pytest.raises(ValueError, match="question"):
            Parks(*questions)  # type: ignore[arg-type]


async def test_the_text_of_a_verdict_names_its_faults() -> None:
    simulator = Simulator()
    async with simulator.session() as session:
        source = (await session.companies.sources())[0].id
        company = await session.companies.create(name="Acme", source=source, external_id="acme")
        await company.imports.start(rows=ROWS)
    assert str(simulator.verdict()) == "imports whose end was never read: 1"


def test_the_table_of_faults_is_complete() -> None:
    listed = re.findall(r"^\| (`.*?`) \|", asyncmig.testing.__doc__ or "", re.MULTILINE)
    assert set(re.findall(r"`(.*?)`", " ".join(listed))) == set(FAULTS)
