"""`status`, `show` and `watch` print the content of a journal, also while another process writes it."""

import asyncio
import json
import os
import re
import socket
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from asyncmig import Fleet, Journal, Parked, Spec
from asyncmig.cli import watch
from asyncmig.companies.workflow.record import Record
from asyncmig.customers.status import LastFailure
from asyncmig.jobs.status import follow
from asyncmig.journal import JournalEvent, JournalPort
from asyncmig.simulator import Reply, Request
from asyncmig.simulator.server.settings import RunDurations
from asyncmig.testing import Simulator as InProcess

from .conftest import KEY, SPEED, Cli, Simulator, serving
from .test_interrupts import started, still_running

GOOD, LATIN = b"Email,Name\na@x.de,A\n", b"Email,Name\na@x.de,Caf\xe9\n"
Customers = Callable[..., Path]
NEED_A_JOURNAL = (
    ("status",),
    ("show", "acme"),
    ("watch",),
    ("review",),
    ("review", "acme", "--approve"),
    ("report",),
    ("retry",),
    ("adopt", "acme", "c-1"),
)


def make_journal(path: Path) -> None:
    async def make() -> None:
        async with Journal(path):
            pass

    asyncio.run(make())


def change(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as db, db:
        db.execute(statement)


@pytest.fixture
def slow() -> Iterator[Simulator]:
    with serving(RunDurations(queued=1.0, base=150.0, per_row=0.0, sigma=0.0)) as simulator:
        yield simulator


def test_status_uses_default_limits_for_a_journal_that_the_library_wrote(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "contacts.csv").write_bytes(GOOD)
    spec = Spec(external_id="acme", name="Acme", source="HubSpot", files=(tmp_path / "contacts.csv",))

    async def program() -> None:
        async with (
            InProcess(api="migrations", limits="by-class").session() as session,
            Fleet(session, journal=tmp_path / "fleet.db", to=tmp_path / "out", api="migrations") as fleet,
        ):
            assert [type(outcome) async for outcome in fleet.run([spec])] == [Parked]

    asyncio.run(program())
    shown = cli("status", "--journal", tmp_path / "fleet.db").out
    assert "Slots in use now (default limits, because the settings of the last run are not known):" in shown
    assert re.search(r"^ *1/1h +1 +generate$", shown, re.MULTILINE)
    (create,) = [
        each
        for line in cli("status", "--journal", tmp_path / "fleet.db", "--budgets", "--json").out.splitlines()
        if (each := json.loads(line))["budget"] == "create"
    ]
    assert (create["limit"], create["used"], create["is_assumed"]) == (1, 1, True)


def test_status_lists_customers_and_show_prints_the_history_of_one(
    cli: Cli, customers: Customers, simulator: Simulator
) -> None:
    cli("run", customers(acme=GOOD, cafe=LATIN), "--speed", SPEED, "--base-url", simulator.base_url)
    table = cli("status").out
    assert "2 customers: " in table
    assert "cafe.csv is not UTF-8 text" in table
    lines = {line["external_id"]: line for line in map(json.loads, cli("status", "--json").out.splitlines())}
    assert (lines["acme"]["outcome"], lines["acme"]["step"], lines["acme"]["rows"]["delivered"]) == (
        "delivered",
        "ended",
        1,
    )
    assert (lines["cafe"]["outcome"], lines["cafe"]["step"]) == ("failed", "running")
    history = cli("show", "acme").out
    for message in (
        "acme  acme Inc: delivered",
        "imported   1 row",
        "out/acme/Contacts.csv (1 row, ",
    ):
        assert message in history
    assert re.search(r"s +started +run ", history)
    assert cli("watch").code == 3


def test_commands_exit_2_for_a_missing_journal_or_customer(cli: Cli, tmp_path: Path) -> None:
    for command in NEED_A_JOURNAL:
        result = cli(*command)
        assert result.code == 2
        assert "there is no such file" in result.err
    assert list(tmp_path.iterdir()) == []
    make_journal(tmp_path / "fleet.db")
    assert cli("adopt", "acme", "c-1").code == 0
    assert "is not in the journal" in cli("show", "bolt").err


@pytest.mark.parametrize("command", NEED_A_JOURNAL, ids=str)
@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("folder", "this is a folder"),
        ("empty", "is empty"),
        ("text", "this file is not a journal"),
        ("sqlite", "another program"),
        ("newer", "was written by a newer version of asyncmig"),
        ("no folder", "there is no folder"),
    ],
)
def test_commands_exit_2_for_a_path_that_is_not_a_journal_and_do_not_change_it(
    cli: Cli, tmp_path: Path, command: tuple[str, ...], kind: str, reason: str
) -> None:
    place = tmp_path / ("nowhere/x.db" if kind == "no folder" else "x.db")
    match kind:
        case "folder":
            place.mkdir()
        case "empty":
            place.touch()
        case "text":
            place.write_text("external_id,name,source,files\n" * 100)
        case "sqlite":
            change(place, "CREATE TABLE other (x)")
        case "newer":
            make_journal(place)
            change(place, "PRAGMA user_version=99")
        case _:
            pass
    if command[0] == "retry" and kind != "no folder":
        last = {"folder": str(tmp_path), "manifest": "customers.csv", "settings": {}}
        place.with_name("x.db.last").write_text(json.dumps(last))
    before = sorted(tmp_path.rglob("*")), place.read_bytes() if place.is_file() else b""
    result = cli(*command, "--journal", place)
    assert result.code == 2
    assert reason in result.err or (command[0] == "retry" and kind == "no folder")
    assert (sorted(tmp_path.rglob("*")), place.read_bytes() if place.is_file() else b"") == before


def test_status_and_watch_show_the_work_of_another_process(
    cli: Cli, customers: Customers, simulator: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The import runs until `watch` has read the journal once, so that the test does not depend on speed."""
    polled, followed = threading.Event(), threading.Event()

    def until_it_is_followed(request: Request) -> Reply | None:
        running = still_running(request)
        if running is not None:
            polled.set()
        return None if followed.is_set() else running

    def following(journal: JournalPort, *, after: int) -> AsyncIterator[JournalEvent]:
        followed.set()
        return follow(journal, after=after)

    monkeypatch.setattr(watch, "follow", following)
    simulator.intercept = until_it_is_followed
    arguments = ["run", str(customers(acme=GOOD)), "--speed", str(SPEED), "--base-url", simulator.base_url]
    with started(arguments, tmp_path) as process:
        assert polled.wait(40), process.poll()
        (line,) = map(json.loads, cli("status", "--json").out.splitlines())
        watched = cli("watch", "--json")
        _, err = process.communicate()
    assert process.returncode == 0, err
    assert (line["outcome"], line["step"]) == ("pending", "running")
    assert f"process {process.pid} on " in line["held_by"]
    assert watched.code == 0
    assert [json.loads(event)["kind"] for event in watched.out.splitlines()] == ["delivered"]


def test_watch_follows_imports_of_no_process_at_the_server_and_exits_75(
    cli: Cli, customers: Customers, slow: Simulator
) -> None:
    manifest = customers(acme=GOOD, cafe=LATIN)
    cli("run", manifest, "--speed", SPEED, "--base-url", slow.base_url, "--max-duration", "60s")
    sent = sum(entry.method == "POST" for entry in slow.world.ledger.entries)
    result = cli("watch")
    assert result.code == 75
    assert "2 imports may still run at the server" in result.err
    assert "completed          acme" in result.out
    assert "failed             cafe  cafe.csv is not UTF-8 text" in result.out
    assert f"To continue them:\n  asyncmig run {manifest}" in result.err
    assert sum(entry.method == "POST" for entry in slow.world.ledger.entries) == sent


def test_watch_reports_failed_reads(cli: Cli, customers: Customers, slow: Simulator) -> None:
    cli("run", customers(acme=GOOD), "--speed", SPEED, "--base-url", slow.base_url, "--max-duration", "60s")
    refused = iter(range(2))
    slow.intercept = lambda request: (
        Reply(status=503, body=b'{"error": "not now"}') if next(refused, None) is not None else None
    )
    (line,) = [line for line in cli("watch").out.splitlines() if line.startswith("retrying ")]
    assert (
        "acme  GET /companies/{id}/imports/{run_id} answered 503 (attempt 1; tried again until it is" in line
    )


def test_watch_exits_4_when_the_key_is_refused(cli: Cli, customers: Customers, slow: Simulator) -> None:
    manifest = customers(acme=GOOD, bolt=GOOD)
    cli("run", manifest, "--speed", SPEED, "--base-url", slow.base_url, "--max-duration", "60s")
    slow.intercept = lambda request: Reply(status=401, body=b'{"error":"Invalid API key"}')
    result = cli("watch")
    assert result.code == 4
    assert result.err.count("Error: ") == 1
    assert "Invalid API key" in result.err
    assert "Traceback" not in result.err


def test_watch_exits_2_when_the_settings_of_the_last_run_are_invalid(
    cli: Cli, customers: Customers, simulator: Simulator, tmp_path: Path
) -> None:
    cli("run", customers(acme=GOOD), "--speed", SPEED, "--base-url", simulator.base_url)
    place = tmp_path / "fleet.db.last"
    last = json.loads(place.read_text(encoding="utf-8"))
    for settings in ({"rate": "fast"}, {"colour": "red"}, {"speed": "x"}):
        place.write_text(json.dumps({**last, "settings": settings}), encoding="utf-8")
        result = cli("watch")
        assert result.code == 2, settings
        assert "Traceback" not in result.err


def test_control_characters_of_the_server_in_the_journal_are_not_printed(
    cli: Cli, customers: Customers, simulator: Simulator
) -> None:
    def refuse(request: Request) -> Reply | None:
        hostile = json.dumps({"error": "no\x1b]0;title\x07\x9b2J\u202e"}).encode()
        create = request.method == "POST" and request.path.endswith("/companies")
        return Reply(status=400, body=hostile) if create else None

    simulator.intercept = refuse
    cli("run", customers(acme=GOOD), "--speed", SPEED, "--base-url", simulator.base_url)
    for command in (("status",), ("status", "--json"), ("show", "acme")):
        assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(cli(*command).out)


def test_a_repeated_failure_is_reported_at_once_and_recorded(
    cli: Cli, customers: Customers, simulator: Simulator
) -> None:
    refused = iter(range(3))
    simulator.intercept = lambda request: (
        Reply(status=503, body=b'{"error": "the disk is full"}')
        if request.path.endswith("/uploads") and next(refused, None) is not None
        else None
    )
    manifest = customers(acme=GOOD)
    done = cli("run", manifest, "-v", "--speed", SPEED, "--base-url", simulator.base_url)
    assert done.code == 0
    (line,) = [line for line in done.err.splitlines() if " retrying " in line]
    assert "acme  POST /companies/{id}/uploads answered 503 (attempt 1; tried again until " in line
    assert line.endswith("): the disk is full")
    assert any("recovered  acme  " in line for line in done.err.splitlines())
    history = cli("show", "acme").out
    assert re.search(
        r"failure +\d{4}-\d\d-\d\d .*answered 503 \(attempt 1; the migration has continued since\): the disk",
        history,
    )
    assert re.search(r"retrying +POST /companies/\{id\}/uploads answered 503", history)
    status = json.loads(cli("status", "--json").out.splitlines()[0])
    assert status["last_failure"]["error"] == "the disk is full"
    assert KEY not in done.err + history


async def test_status_shows_the_failure_that_a_customer_retries(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failure = LastFailure(
        at=0.0, endpoint="PUT {upload_url}", status=403, error="denied", attempt=7, until=2_000_000_000.0
    )
    record = Record(external_id="acme", name="Acme", source="s", company_id="c", last_failure=failure)
    monkeypatch.chdir(tmp_path)
    async with Journal(tmp_path / "fleet.db") as journal, await journal.claim("acme") as claim:
        await claim.write(
            "retrying", msgspec.json.encode({"last_failure": failure}), msgspec.json.encode(record)
        )
        table = await asyncio.to_thread(cli, "status")
    assert "PUT {upload_url} answered 403 (attempt 7; tried again until 03:33:20 UTC): denied" in table.out


@pytest.mark.parametrize("place", ["fifo", "socket"])
@pytest.mark.parametrize(
    "command",
    [
        *(["status"], ["show", "acme"], ["watch"], ["review"], ["report"], ["adopt", "acme", "c-1"]),
        *(["run", "customers.csv", "--plan"], ["run", "customers.csv"]),
    ],
    ids=" ".join,
)
def test_commands_exit_2_for_a_journal_that_is_not_a_regular_file(
    cli: Cli, customers: Customers, command: list[str], place: str
) -> None:
    customers(acme=b"Email,Name\na@x.de,A\n")
    if place == "fifo":
        os.mkfifo("fleet.db")
    else:
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind("fleet.db")
    result = cli(*command)
    assert (result.code, "is not a file" in result.err) == (2, True), result.err
