"""Exports to a destination: canary and full, reports, refusals, and lost responses."""

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
    """Return a function that opens a company with 20 imported rows, on a server that follows the contract."""

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
        transport = InProcess(world)
        async with Session(
            KEY, BASE_URL, transport=transport, rng=Random(3), retry=RetryPolicy(attempts=3)
        ) as session:
            company = await session.companies.create(
                name="Acme", source=SOURCE, connections=DESTINATION if connected else None
            )
            await (await company.imports.start(rows=ROWS)).wait()
            yield company, transport

    return make


def starts(transport: InProcess) -> int:
    return sum(method == "POST" and url.endswith(START) for _, method, url in transport.sent)


async def test_a_full_export_follows_a_clean_canary(imported: Imported) -> None:
    async with imported() as (company, transport):
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
    assert starts(transport) == 4


@pytest.mark.parametrize(
    ("kind", "variants"),
    [
        ("failed", replace(CLEAN, failed_writes=1.0)),
        ("hollow", replace(CLEAN, hollow_writes=1.0)),
        ("unlisted", replace(CLEAN, failed_writes=1.0, listed_writes=0)),
    ],
)
async def test_no_full_export_follows_a_canary_with_losses(
    imported: Imported, kind: str, variants: Variants
) -> None:
    async with imported(variants) as (company, transport):
        exported = await company.export()
    assert exported.full is None
    assert not exported.is_clean
    assert exported.stopped is not None
    assert ("1 failed" in exported.stopped) == (kind != "hollow")
    assert ("1 were hollow" in exported.stopped) == (kind == "hollow")
    assert len(exported.report.failed) == (kind == "failed")
    assert len(exported.report.hollow) == (kind == "hollow")
    assert starts(transport) == 1


async def test_no_full_export_follows_a_canary_without_a_report(imported: Imported) -> None:
    async with imported() as (company, transport):
        done = Reply(status=200, body=b'{"status": "completed"}')
        transport.fault = lambda method, path, n: (
            Fault(instead=done) if method == "GET" and "/exports/" in path else None
        )
        exported = await company.export()
    assert exported.full is None
    assert exported.stopped == (
        "the canary export has no report, so the result of its writes is unknown; the full export was not started"
    )


async def test_unverified_writes_do_not_prevent_the_full_export(imported: Imported) -> None:
    async with imported(replace(CLEAN, unread_writes=1.0)) as (company, _):
        exported = await company.export()
    assert exported.is_clean
    assert len(exported.report.unverified) == 20


async def test_canary_first_false_starts_the_full_export_directly(imported: Imported) -> None:
    async with imported(replace(CLEAN, hollow_writes=1.0)) as (company, _):
        exported = await company.export(canary_first=False)
    assert exported.canary is None
    assert len(exported.report.hollow) == 20
    assert not exported.is_clean


@pytest.mark.parametrize("text", [True, False])
@pytest.mark.parametrize(
    ("reading", "error"), [("refused", BadRequest), ("conflict", Conflict), ("fails", RunFailed)]
)
async def test_a_missing_connection_is_named_in_each_form_of_the_error(
    imported: Imported, reading: str, error: type[Exception], text: bool
) -> None:
    async with imported(replace(CLEAN, unconnected_export=reading), connected=False) as (company, transport):
        if not text:
            nothing = Fault(change=lambda body: body.replace(b"No destination is connected", b""))
            transport.fault = lambda method, path, n: nothing if "/exports/" in path else None
            transport.world.variants = replace(transport.world.variants, error_body=False)
        with pytest.raises(error, match="No destination is connected" if text else "without `connections`"):
            await company.export()
    assert starts(transport) == 1


@pytest.mark.parametrize("fault", ["answer-lost", "500-after", "hang", "truncated"])
async def test_a_start_without_a_response_can_be_repeated_with_its_key(
    imported: Imported, fault: str
) -> None:
    async with imported() as (company, transport):
        transport.fault = lambda method, path, n: FAULTS[fault] if path.endswith(START) else None
        with pytest.raises(UnknownOutcome, match="same idempotency key") as unknown:
            await company.exports.start(mode="full")
        transport.fault = lambda method, path, n: None
        key = msgspec.json.decode(unknown.value.sent)["idempotency_key"]
        run = await company.exports.start(mode="full", idempotency_key=key)
        assert (await run.wait()).status == "completed"
    assert transport.world.verdict(now=10**6).duplicate_exports == 0
    assert "secret-of-d" not in str(unknown.value) + unknown.value.sent


async def test_an_attempt_that_may_have_arrived_makes_the_outcome_unknown(imported: Imported) -> None:
    """This holds even if the later attempts were refused a connection."""
    async with imported() as (company, transport):
        transport.fault = lambda method, path, n: (
            (FAULTS["answer-lost"] if n == 1 else Fault(refused=True)) if path.endswith(START) else None
        )
        with pytest.raises(UnknownOutcome):
            await company.exports.start(mode="full")


async def test_refused_connections_raise_no_answer(imported: Imported) -> None:
    async with imported() as (company, transport):
        transport.fault = lambda method, path, n: Fault(refused=True) if path.endswith(START) else None
        with pytest.raises(NoAnswer):
            await company.exports.start(mode="full")


async def test_a_key_with_another_payload_is_a_conflict(imported: Imported) -> None:
    async with imported() as (company, _):
        await company.exports.start(mode="canary", idempotency_key="k")
        with pytest.raises(Conflict):
            await company.exports.start(mode="full", idempotency_key="k")


async def test_an_export_is_opened_by_its_id(imported: Imported) -> None:
    async with imported() as (company, _):
        run = await company.exports.start(mode="canary")
        done = await company.exports.open(run.id, age=1.0).wait()
    assert done.report is not None
    assert done.report.mode == "canary"


async def test_a_selection_limits_the_exported_rows(imported: Imported) -> None:
    async with imported() as (company, transport):
        other = next(schema.id for schema in SCHEMAS if schema.id not in transport.world.schemas)
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
async def test_an_invalid_argument_is_refused_without_a_request(
    imported: Imported, field: str, wrong: dict[str, str]
) -> None:
    async with imported() as (company, transport):
        before = len(transport.sent)
        with pytest.raises(InvalidInput, match=field):
            await company.exports.start(**{"mode": "full", **wrong})  # type: ignore[arg-type]
        assert len(transport.sent) == before


@pytest.mark.parametrize("keys", [("", None), (None, ""), ("k", "k")])
async def test_the_keys_of_canary_and_full_export_must_differ(
    imported: Imported, keys: tuple[str | None, str | None]
) -> None:
    async with imported() as (company, transport):
        with pytest.raises(InvalidInput, match="_key"):
            await company.export(canary_key=keys[0], full_key=keys[1])
        with pytest.raises(InvalidInput, match="run_id"):
            company.exports.open("")
        assert starts(transport) == 0


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
def test_each_write_is_classified(result: ExportResult, kind: str) -> None:
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
def test_writes_that_a_report_counts_but_does_not_list_are_counted(
    counts: dict[str, int], unlisted: int, unlisted_failures: int
) -> None:
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
