"""Destination exports: canary and full, what a report says, what is refused, what a lost answer means."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from random import Random

import msgspec
import pytest
from inprocess import BASE_URL, KEY, InProcess

from asyncmig import ExportResult, InvalidInput, NoAnswer, RetryPolicy, RunFailed, Session, UnknownOutcome
from asyncmig._core.decode import decode
from asyncmig.companies import Company, ExportReport
from asyncmig.companies.wire import ExportState
from asyncmig.errors import BadRequest, Conflict
from asyncmig.simulator import FAULTS, SCHEMAS, SOURCES, Fault, Reply, RunDurations, Variants, World

pytestmark = pytest.mark.looptime
SOURCE = next(iter(SOURCES))
ROWS = [{"Email": f"p{n}@x.org", "Last Name": "L", "First Name": "F"} for n in range(20)]
DESTINATION = {"destination": {"base_url": "https://d.invalid", "auth": {"token": "secret-of-d"}}}
CLEAN = Variants(failed_writes=0.0, hollow_writes=0.0)
START = "/exports"
Imported = Callable[..., AbstractAsyncContextManager[tuple[Company, InProcess]]]


@pytest.fixture
def imported() -> Imported:
    """Opens a company whose 20 rows are imported, on a server that reads the contract as given."""

    @asynccontextmanager
    async def make(
        variants: Variants = CLEAN, *, connected: bool = True
    ) -> AsyncIterator[tuple[Company, InProcess]]:
        world = World(
            key=KEY,
            sources=SOURCES,
            schemas=SCHEMAS[1:2],
            seed=5,
            pace=RunDurations(sigma=0.0),
            variants=variants,
        )
        wire = InProcess(world)
        async with Session(
            KEY, BASE_URL, transport=wire, rng=Random(3), retry=RetryPolicy(attempts=3)
        ) as session:
            company = await session.companies.create(
                name="Acme", source=SOURCE, connections=DESTINATION if connected else None
            )
            await (await company.imports.start(rows=ROWS)).wait()
            yield company, wire

    return make


def starts(wire: InProcess) -> int:
    return sum(method == "POST" and url.endswith(START) for _, method, url in wire.sent)


async def test_a_clean_canary_is_followed_by_everything(imported: Imported) -> None:
    async with imported() as (company, wire):
        exported = await company.export(canary_key="c", full_key="f")
        again = await company.export(canary_key="c", full_key="f")
    assert exported.canary is not None
    assert exported.full is not None
    assert exported.canary.report is not None
    assert (exported.canary.report.total, exported.report.total) == (1, 20)
    assert exported.is_clean
    assert exported.stopped is None
    assert "natural key" in exported.note
    assert again == exported
    assert starts(wire) == 4


@pytest.mark.parametrize(
    ("kind", "variants"),
    [
        ("failed", replace(CLEAN, failed_writes=1.0)),
        ("hollow", replace(CLEAN, hollow_writes=1.0)),
        ("unlisted", replace(CLEAN, failed_writes=1.0, listed_writes=0)),
    ],
)
async def test_a_canary_that_loses_something_stops_there(
    imported: Imported, kind: str, variants: Variants
) -> None:
    async with imported(variants) as (company, wire):
        exported = await company.export()
    assert exported.full is None
    assert not exported.is_clean
    assert exported.stopped is not None
    assert ("1 failed" in exported.stopped) == (kind != "hollow")
    assert ("1 were hollow" in exported.stopped) == (kind == "hollow")
    assert len(exported.report.failed) == (kind == "failed")
    assert len(exported.report.hollow) == (kind == "hollow")
    assert starts(wire) == 1


async def test_a_canary_without_a_report_proves_nothing(imported: Imported) -> None:
    async with imported() as (company, wire):
        done = Reply(status=200, body=b'{"status": "completed"}')
        wire.fault = lambda method, path, n: (
            Fault(instead=done) if method == "GET" and "/exports/" in path else None
        )
        exported = await company.export()
    assert exported.full is None
    assert exported.stopped == (
        "the canary export has no report, so the result of its writes is unknown; the full export was not started"
    )


async def test_writes_that_nobody_reads_back_do_not_stop_it(imported: Imported) -> None:
    async with imported(replace(CLEAN, unread_writes=1.0)) as (company, _):
        exported = await company.export()
    assert exported.is_clean
    assert len(exported.report.unverified) == 20


async def test_without_a_canary_all_is_written_at_once(imported: Imported) -> None:
    async with imported(replace(CLEAN, hollow_writes=1.0)) as (company, _):
        exported = await company.export(canary_first=False)
    assert exported.canary is None
    assert len(exported.report.hollow) == 20
    assert not exported.is_clean


@pytest.mark.parametrize("text", [True, False])
@pytest.mark.parametrize(
    ("reading", "error"), [("refused", BadRequest), ("conflict", Conflict), ("fails", RunFailed)]
)
async def test_without_a_connection_the_error_is_clear_however_it_comes(
    imported: Imported, reading: str, error: type[Exception], text: bool
) -> None:
    async with imported(replace(CLEAN, unconnected_export=reading), connected=False) as (company, wire):
        if not text:
            nothing = Fault(change=lambda body: body.replace(b"No destination is connected", b""))
            wire.fault = lambda method, path, n: nothing if "/exports/" in path else None
            wire.world.variants = replace(wire.world.variants, error_body=False)
        with pytest.raises(error, match="No destination is connected" if text else "without `connections`"):
            await company.export()
    assert starts(wire) == 1


@pytest.mark.parametrize("fault", ["answer-lost", "500-after", "hang", "truncated"])
async def test_a_start_that_is_never_answered_says_how_to_find_it(imported: Imported, fault: str) -> None:
    async with imported() as (company, wire):
        wire.fault = lambda method, path, n: FAULTS[fault] if path.endswith(START) else None
        with pytest.raises(UnknownOutcome, match="same idempotency key") as unknown:
            await company.exports.start(mode="full")
        wire.fault = lambda method, path, n: None
        key = msgspec.json.decode(unknown.value.sent)["idempotency_key"]
        run = await company.exports.start(mode="full", idempotency_key=key)
        assert (await run.wait()).status == "completed"
    assert wire.world.verdict(now=10**6).duplicate_exports == 0
    assert "secret-of-d" not in str(unknown.value) + unknown.value.sent


async def test_an_attempt_that_may_have_arrived_makes_the_outcome_unknown(imported: Imported) -> None:
    """Also where the last ones found nobody listening."""
    async with imported() as (company, wire):
        wire.fault = lambda method, path, n: (
            (FAULTS["answer-lost"] if n == 1 else Fault(refused=True)) if path.endswith(START) else None
        )
        with pytest.raises(UnknownOutcome):
            await company.exports.start(mode="full")


async def test_where_nobody_listens_nothing_was_started(imported: Imported) -> None:
    async with imported() as (company, wire):
        wire.fault = lambda method, path, n: Fault(refused=True) if path.endswith(START) else None
        with pytest.raises(NoAnswer):
            await company.exports.start(mode="full")


async def test_a_key_with_another_payload_is_a_conflict(imported: Imported) -> None:
    async with imported() as (company, _):
        await company.exports.start(mode="canary", idempotency_key="k")
        with pytest.raises(Conflict):
            await company.exports.start(mode="full", idempotency_key="k")


async def test_a_run_is_found_again_by_its_id(imported: Imported) -> None:
    async with imported() as (company, _):
        run = await company.exports.start(mode="canary")
        done = await company.exports.open(run.id, age=1.0).wait()
    assert done.report is not None
    assert done.report.mode == "canary"


async def test_a_selection_narrows_what_is_written(imported: Imported) -> None:
    async with imported() as (company, wire):
        other = next(schema.id for schema in SCHEMAS if schema.id not in wire.world.schemas)
        exported = await company.export(template_ids=[other], row_filter="plan = 'pro'")
    assert exported.report.total == 0


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("mode", {"mode": "half"}),
        ("template_ids", {"template_ids": "abc"}),
        ("template_ids", {"template_ids": []}),
        ("template_ids", {"template_ids": ["a", ""]}),
        ("row_filter", {"row_filter": "  "}),
        ("idempotency_key", {"idempotency_key": ""}),
    ],
)
async def test_what_cannot_be_meant_costs_no_request(
    imported: Imported, field: str, wrong: dict[str, str]
) -> None:
    async with imported() as (company, wire):
        before = len(wire.sent)
        with pytest.raises(InvalidInput, match=field):
            await company.exports.start(**{"mode": "full", **wrong})  # type: ignore[arg-type]
        assert len(wire.sent) == before


@pytest.mark.parametrize("keys", [("", None), (None, ""), ("k", "k")])
async def test_the_keys_of_the_stages_are_two(
    imported: Imported, keys: tuple[str | None, str | None]
) -> None:
    async with imported() as (company, wire):
        with pytest.raises(InvalidInput, match="_key"):
            await company.export(canary_key=keys[0], full_key=keys[1])
        with pytest.raises(InvalidInput, match="run_id"):
            company.exports.open("")
        assert starts(wire) == 0


@pytest.mark.parametrize(
    ("result", "kind"),
    [
        (ExportResult(status=201, ok=True, fields_confirmed=True), "confirmed"),
        (ExportResult(status=201, ok=True, fields_confirmed=False), "hollow"),
        (ExportResult(status=204, ok=False, fields_confirmed=False), "hollow"),
        (ExportResult(ok=True, fields_confirmed=False), "hollow"),
        (ExportResult(status=422, ok=False, error="no"), "failed"),
        (ExportResult(status=422, ok=False, fields_confirmed=False), "failed"),
        (ExportResult(status=422, ok=True), "failed"),
        (ExportResult(status=201, ok=False), "failed"),
        (ExportResult(ok=False), "failed"),
        (ExportResult(error="time-out"), "failed"),
        (ExportResult(status=302), "failed"),
        (ExportResult(status=200, ok=True), "unverified"),
        (ExportResult(status=200), "unverified"),
        (ExportResult(), "unverified"),
    ],
)
def test_a_write_is_one_of_four(result: ExportResult, kind: str) -> None:
    report = ExportReport(results=(result,))
    found = {"failed": report.failed, "hollow": report.hollow, "unverified": report.unverified}
    assert {name for name, results in found.items() if results} == {kind} - {"confirmed"}
    assert report.is_clean == (kind in ("confirmed", "unverified"))


@pytest.mark.parametrize(
    ("counts", "unlisted", "unlisted_failures"),
    [
        ({"total": 3, "succeeded": 2, "failed": 1}, 1, 0),
        ({"total": 3, "succeeded": 1, "failed": 2}, 1, 1),
        ({"total": "5", "succeeded": "2"}, 3, 2),
        ({"failed": 4}, 0, 3),
        ({"total": 0, "succeeded": 7, "failed": 0}, 0, 0),
        ({}, 0, 0),
    ],
)
def test_counts_and_lists_may_disagree(counts: dict[str, int], unlisted: int, unlisted_failures: int) -> None:
    results = [
        {
            "template_id": "t",
            "path": "/a",
            "status": 201,
            "ok": True,
            "error": None,
            "fields_confirmed": True,
        },
        {
            "template_id": "t",
            "path": "/a",
            "status": 422,
            "ok": False,
            "error": "no",
            "fields_confirmed": None,
        },
    ]
    body = msgspec.json.encode(
        {"status": "completed", "report": {"mode": "full", "results": results, **counts}}
    )
    report = decode(body, ExportState).report
    assert report is not None
    assert (report.unlisted, report.unlisted_failures) == (unlisted, unlisted_failures)
    assert len(report.failed) == 1
    assert msgspec.json.decode(msgspec.json.encode(report), type=ExportReport) == report
