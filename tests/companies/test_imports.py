"""Imports: rows that are sent as a file, lists of any shape, and the recovery of a run."""

import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest
from inprocess import Fault, InProcess

from asyncmig import BadRequest, Conflict, InvalidInput, RunCanceled
from asyncmig.companies import Company, ImportState
from asyncmig.simulator import Reply, World
from asyncmig.simulator.companies.variants import PAGES

from .conftest import SOURCE, OpenSession

pytestmark = pytest.mark.looptime
STARTS = ("POST", "/imports")


def people(count: int) -> list[Mapping[str, object]]:
    return [
        {"Email": f"p{n}@x.org", "First Name": "F", "Last Name": f'"{n}",\n', "Phone": None}
        for n in range(count)
    ]


@asynccontextmanager
async def acme(open_session: OpenSession) -> AsyncIterator[Company]:
    async with open_session() as session:
        yield await session.companies.create(name="Acme", source=SOURCE)


def sent(transport: InProcess, method: str, ending: str) -> int:
    return len([1 for _, m, url in transport.sent if m == method and url.split("?")[0].endswith(ending)])


def contacts(world: World) -> list[list[str]]:
    (company,) = world.companies.values()
    return next(table.rows for table in company.tables if table.name == "Contacts")


def on_start(*faults: Fault | None) -> Callable[[str, str, int], Fault | None]:
    """Return a function that applies `faults` to the first starts of an import, in order."""
    return lambda method, path, number: (
        faults[number - 1]
        if method == "POST" and path.endswith("/imports") and number <= len(faults)
        else None
    )


@pytest.mark.parametrize(
    ("options", "uploads"),
    [
        ({}, 0),
        ({"max_inline_rows": 40}, 0),
        ({"max_inline_rows": 39}, 1),
        ({"max_inline_bytes": 1_000}, 1),
        ({"max_inline_rows": 0}, 1),
    ],
)
async def test_rows_over_a_limit_are_sent_as_a_file_with_the_same_result(
    options: dict[str, int], uploads: int, open_session: OpenSession, transport: InProcess, world: World
) -> None:
    async with acme(open_session) as company:
        done = await (await company.imports.start(rows=people(40), **options)).wait()
    assert done.report is not None
    assert done.report.inserted == 40
    assert contacts(world)[7] == ["p7@x.org", "F", '"7",', ""]
    assert sent(transport, "POST", "/uploads") == uploads
    assert sent(transport, *STARTS) == 1


@pytest.mark.parametrize(
    ("rows", "uploads"),
    [(people(500), 0), (people(501), 1), ([{"Email": "x" * 250_000}], 0), ([{"Email": "x" * 256_000}], 1)],
    ids=["500", "501", "250 kB", "256 kB"],
)
async def test_up_to_500_rows_and_256_kilobytes_are_sent_inline_by_default(
    rows: list[Mapping[str, object]], uploads: int, open_session: OpenSession, transport: InProcess
) -> None:
    async with acme(open_session) as company:
        await company.imports.start(rows=rows)
    assert sent(transport, "POST", "/uploads") == uploads


@pytest.mark.parametrize("status", [400, 413])
async def test_rows_that_the_server_refuses_inline_are_sent_as_a_file_with_the_same_key(
    status: int, open_session: OpenSession, transport: InProcess, world: World
) -> None:
    world.variants = replace(world.variants, inline_rows=10, inline_status=status)
    async with acme(open_session) as company:
        run = await company.imports.start(rows=people(40), idempotency_key="k")
        done = await run.wait()
        assert done.report is not None
        assert done.report.inserted == 40
        assert sent(transport, *STARTS) == 2
        again = await company.imports.start(rows=people(40), max_inline_rows=0, idempotency_key="k")
        assert again.id == run.id
    assert sent(transport, "POST", "/uploads") == 1
    assert world.verdict(10**6).duplicate_imports == 0


async def test_a_refusal_of_both_inline_rows_and_file_is_raised(
    open_session: OpenSession, transport: InProcess
) -> None:
    transport.fault = on_start(*[Fault(instead=Reply(status=400, body=b'{"error": "no such sheet"}'))] * 2)
    async with acme(open_session) as company:
        with pytest.raises(BadRequest, match="no such sheet"):
            await company.imports.start(rows=people(1))
    assert sent(transport, *STARTS) == 2


async def test_rows_whose_response_was_lost_are_not_imported_again_as_a_file(
    open_session: OpenSession, transport: InProcess, world: World
) -> None:
    """The inline request arrived. Its repeat passes another proxy, which refuses it as too large."""
    transport.fault = on_start(Fault(lost_after=True), Fault(instead=Reply(status=413, body=b"")))
    async with acme(open_session) as company:
        with pytest.raises(Conflict):
            await company.imports.start(rows=people(40))
        run = await company.imports.recover()
        assert run is not None
        done = await run.wait()
    assert done.report is not None
    assert done.report.inserted == 40
    assert world.verdict(10**6).duplicate_imports == 0


async def test_invalid_rows_and_files_are_refused_without_a_request(
    open_session: OpenSession, transport: InProcess
) -> None:
    async with acme(open_session) as company:
        before = len(transport.sent)
        for wrong, field in (
            ({"rows": [{"a": 1}, {"": 2}]}, "rows[1]"),
            ({"rows": [{"a": float("nan")}]}, "rows[0]['a']"),
            ({"rows": {"a": 1}}, "rows[0]"),
            ({"files": "contacts.csv"}, "files"),
            ({"files": ["contacts.csv"]}, "files"),
            ({"files": Path("contacts.csv")}, "files"),
            ({"rows": [{"a": 1}], "idempotency_key": ""}, "idempotency_key"),
        ):
            with pytest.raises(InvalidInput) as refused:
                await company.imports.start(**wrong)  # type: ignore[arg-type]
            assert refused.value.field == field
        assert len(transport.sent) == before


async def test_dates_and_numbers_are_the_same_inline_and_in_a_file(
    open_session: OpenSession, world: World
) -> None:
    rows = [{"Email": "a@x.org", "Last Name": date(2024, 2, 29), "First Name": 7, "Phone": 2**60}]
    async with acme(open_session) as company:
        await (await company.imports.start(rows=rows)).wait()
        await (await company.imports.start(rows=rows, max_inline_rows=0)).wait()
    first, second = contacts(world)
    assert first == second == ["a@x.org", "7", "2024-02-29", str(2**60)]


# Lists


async def three_imports(company: Company) -> list[str]:
    runs = [await company.imports.start(rows=[{"a": 1}])]
    for n in (2, 3):
        await runs[-1].wait()
        runs.append(await company.imports.start(rows=[{"a": n}]))
    return [run.id for run in reversed(runs)]


@pytest.mark.parametrize("field", ["imports", "runs", "data", ""])
@pytest.mark.parametrize("pages", PAGES)
async def test_imports_are_listed_newest_first_under_any_pagination(
    pages: str,
    field: str,
    open_session: OpenSession,
    transport: InProcess,
    world: World,
    caplog: pytest.LogCaptureFixture,
) -> None:
    world.variants = replace(world.variants, pages=pages, list_field=field, drift=True)
    async with acme(open_session) as company:
        newest_first = await three_imports(company)
        before = len(transport.sent)
        found = [state.run_id async for state in company.imports.list()]
    known = newest_first[:1] if pages in ("repeats", "more") else newest_first
    assert found == known
    assert len(transport.sent) - before <= 4
    assert not transport.foreign
    assert ("more imports than the server lists" in caplog.text) is (pages == "more")


async def test_an_endless_list_is_read_up_to_a_limit(
    open_session: OpenSession, transport: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asyncmig.companies.imports._PAGES", 20)
    numbers = iter(range(10**6))

    def invent(body: bytes) -> bytes:
        n = next(numbers)
        return json.dumps({"imports": [{"run_id": f"r{n}", "status": "completed"}], "next": f"c{n}"}).encode()

    transport.fault = lambda method, path, number: Fault(change=invent) if path.endswith("/imports") else None
    async with acme(open_session) as company:
        assert len([state async for state in company.imports.list()]) == 20


async def test_a_malformed_list_of_imports_is_read_as_far_as_possible(
    open_session: OpenSession, transport: InProcess
) -> None:
    body = (
        b'{"imports": [{"status": "running"}, {"status": "failed"}, {"status": "failed"}, {}], "next": "x"}'
    )
    transport.fault = lambda method, path, number: (
        Fault(instead=Reply(status=200, body=body)) if path.endswith("/imports") else None
    )
    async with acme(open_session) as company:
        statuses = [state.status async for state in company.imports.list()]
        assert statuses == ["running", "failed", "failed", ""]
        body = b'[{"status": null, "run_id": 7, "report": "new"}, "r2", null]'
        (state,) = [state async for state in company.imports.list()]
        assert (state.run_id, state.status, state.report) == ("7", "", None)


# Recovery of a run


@pytest.mark.parametrize(
    ("body", "run_id"),
    [
        ({"run_id": "r", "status": "running"}, "r"),
        ({"id": "r", "status": "paused"}, "r"),
        ({"run": {"run_id": "r", "status": "running"}}, "r"),
        ({"run": {"run_id": "r"}}, "r"),
        ({"run": {"status": "running"}}, None),
        ({"status": "needs_attention"}, None),
        ({"run": None}, ""),
        ({}, ""),
    ],
)
async def test_the_active_import_is_read_in_each_form(
    body: dict[str, object], run_id: str | None, open_session: OpenSession, transport: InProcess
) -> None:
    transport.fault = lambda method, path, number: Fault(
        instead=Reply(status=200, body=json.dumps(body).encode())
    )
    async with open_session() as session:
        active = await session.companies.open("c").imports.active()
    assert (active is None) is (run_id == "")
    assert active is None or (active.run_id or active.id) == run_id


@pytest.mark.parametrize("active", ["bare", "wrapped", "anonymous"])
async def test_recover_finds_the_active_import(active: str, open_session: OpenSession, world: World) -> None:
    world.variants = replace(world.variants, active=active)
    async with acme(open_session) as company:
        assert await company.imports.recover() is None
        run = await company.imports.start(rows=people(3))
        found = await company.imports.recover()
        assert found is not None
        assert found.id == run.id
        state: ImportState = await found.wait()
    assert state.status == "completed"


async def test_a_run_without_an_id_refuses_all_calls_without_a_request(
    open_session: OpenSession, transport: InProcess
) -> None:
    transport.fault = lambda method, path, number: Fault(
        instead=Reply(status=200, body=b'{"status": "running"}')
    )
    async with open_session() as session:
        run = await session.companies.open("c").imports.recover()
        assert run is not None
        assert run.id == ""
        before = len(transport.sent)
        for attempt in (run.wait, run.read, run.approve, run.reject, lambda: anext(run.updates())):
            with pytest.raises(InvalidInput, match="run_id"):
                await attempt()
        assert len(transport.sent) == before


@pytest.mark.parametrize("status", [400, 404, 405, 501])
async def test_the_active_import_has_no_id_if_the_server_lists_no_imports(
    status: int, open_session: OpenSession, transport: InProcess
) -> None:
    replies = [Reply(status=200, body=b'{"status": "running"}'), Reply(status=status, body=b"{}")]
    transport.fault = lambda method, path, number: Fault(instead=replies[min(number, 2) - 1])
    async with open_session() as session:
        run = await session.companies.open("c").imports.recover()
    assert run is not None
    assert run.id == ""


@pytest.mark.parametrize("spelling", [str.upper, str.title, " {}\n".format])
async def test_a_final_status_is_recognised_in_any_case_and_with_spaces(
    spelling: Callable[[str], str], open_session: OpenSession, transport: InProcess
) -> None:
    reply = Reply(status=200, body=json.dumps({"status": spelling("completed")}).encode())
    transport.fault = lambda method, path, number: Fault(instead=reply) if path.endswith("/r") else None
    async with acme(open_session) as company:
        assert (await company.imports.open("r").wait()).status == "completed"
        assert (await company.exports.open("r").wait()).status == "completed"


async def test_the_spelling_cancelled_ends_a_run(open_session: OpenSession, transport: InProcess) -> None:
    reply = Reply(status=200, body=b'{"status": "Cancelled", "error": "by the customer"}')
    transport.fault = lambda method, path, number: Fault(instead=reply) if path.endswith("/r") else None
    async with acme(open_session) as company:
        with pytest.raises(RunCanceled, match="by the customer"):
            await company.imports.open("r").wait()
