"""`--json` prints one event per line in a stable schema."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from asyncmig.cli.json_output import EventPrinter
from asyncmig.customers.status import CustomerStatus, RowCounts
from asyncmig.events import (
    BudgetLearnt,
    Held,
    MigrationChanged,
    RequestDone,
    RequestSent,
    RunChanged,
    RunEnded,
    RunStalled,
)

from .conftest import SPEED, Cli, Simulator

GOLDEN = """\
{"schema": 2, "type": "Begun", "time": "T", "at": 0.0, "version": "V", "customers": 1}
{"schema": 2, "type": "MigrationChanged", "time": "T", "at": 1.5, "external_id": "acme", "step": "creating", "detail": "", "ids": {}}
{"schema": 2, "type": "RequestSent", "time": "T", "at": 1.5, "endpoint": "POST /companies", "ids": {}, "lane": "WORK", "attempt": 1, "waited": 0.0}
{"schema": 2, "type": "RequestDone", "time": "T", "at": 1.5, "endpoint": "POST /companies", "ids": {}, "lane": "WORK", "attempt": 1, "waited": 0.0, "seconds": 0.5, "status": 429, "error": null}
{"schema": 2, "type": "Held", "time": "T", "at": 1.5, "until": 3.0, "budget": "POST /companies", "seconds": 1.5, "slots": 100, "burst": 100}
{"schema": 2, "type": "BudgetLearnt", "time": "T", "at": 1.5, "budget": "POST /companies", "slots": 90, "burst": 90}
{"schema": 2, "type": "RunChanged", "time": "T", "at": 1.5, "status": "running", "progress": "\\u009b2J\\u202e\\u001b[2J", "ids": {"company": "c", "run": "r"}}
{"schema": 2, "type": "RunStalled", "time": "T", "at": 1.5, "seconds": 4500.0, "ids": {"company": "c", "run": "r"}}
{"schema": 2, "type": "RunEnded", "time": "T", "at": 1.5, "status": "completed", "seconds": 60.0, "noticed_within": 2.0, "ids": {"company": "c", "run": "r"}}
{"schema": 2, "type": "Outcome", "time": "T", "at": 1.5, "external_id": "acme", "name": "Acme", "api": "companies", "outcome": "delivered", "pending_reason": null, "step": "ended", "detail": "", "ids": {"company": "c", "run": "r"}, "error": null, "files": [], "rows": {"inserted": 2, "flagged": 0, "delivered": 3}, "replaced_existing_data": null, "notes": [], "destructive": [], "seconds": 60.0, "holds_run_slot": false, "changed_at": null, "last_failure": null, "held_by": null, "progress": null}
{"schema": 2, "type": "Ended", "time": "T", "at": 1.5, "exit_code": 0, "reason": null, "outcomes": {"delivered": 1}}
"""  # noqa: E501 - a line is an event

ROW = CustomerStatus(
    external_id="acme",
    name="Acme",
    outcome="delivered",
    step="ended",
    ids={"company": "c", "run": "r"},
    rows=RowCounts(inserted=2, flagged=0, delivered=3),
    seconds=60.0,
)


def test_json_events_keep_the_schema(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asyncmig.cli.json_output.version", lambda package: "V")
    now = 1000.0
    printer = EventPrinter(clock=lambda: now, wall=lambda: "T", requests=True, abandoned=lambda: None)
    printer.begin(1)
    now = at = 1001.5
    request = {"endpoint": "POST /companies", "lane": "WORK", "attempt": 1}
    for event in (
        MigrationChanged(at=at, external_id="acme", step="creating"),
        RequestSent(at=at, **request),  # type: ignore[arg-type]
        RequestDone(at=at, seconds=0.5, status=429, **request),  # type: ignore[arg-type]
        Held(at=at, budget="POST /companies", until=1003.0, seconds=1.5, slots=100, burst=100),
        BudgetLearnt(at=at, budget="POST /companies", slots=90, burst=90),
        RunChanged(at=at, ids={"company": "c", "run": "r"}, status="running", progress="\x9b2J\u202e\x1b[2J"),
        RunStalled(at=at, ids={"company": "c", "run": "r"}, seconds=4500.0),
        RunEnded(
            at=at, ids={"company": "c", "run": "r"}, status="completed", seconds=60.0, noticed_within=2.0
        ),
    ):
        printer.note(event)
    printer.outcome(ROW)
    printer.end((ROW,), exit_code=0, reason=None)
    assert capsys.readouterr().out == GOLDEN


def test_run_prints_json_events_to_stdout_and_text_to_stderr(
    cli: Cli, customers: Callable[..., Path], simulator: Simulator
) -> None:
    manifest = customers(acme=b"Email,Name\na@x.de,A\n", cafe=b"Email,Name\na@x.de,Caf\xe9\n")
    arguments = ("run", manifest, "--json", "--speed", SPEED, "--base-url", simulator.base_url)
    result = cli(*arguments)
    events = [json.loads(line) for line in result.out.splitlines()]
    shapes = {line["type"]: list(line) for line in map(json.loads, GOLDEN.splitlines())}
    retries = ("AttemptFailed", "Recovered")  # a loaded machine may lose a response
    assert all(list(event) == shapes[event["type"]] for event in events if event["type"] not in retries)
    assert [events[0]["type"], events[-1]["type"]] == ["Begun", "Ended"]
    assert events[-1]["exit_code"] == result.code == 3
    assert not {event["type"] for event in events} & {"RequestSent", "RequestDone"}
    assert [event["at"] for event in events] == sorted(event["at"] for event in events)
    assert {event["external_id"] for event in events if event["type"] == "Outcome"} == {"acme", "cafe"}
    assert "delivered  acme" in result.err
    assert "A failed customer is imported again" in result.err
    verbose = cli(
        "run",
        manifest,
        "--json",
        "-v",
        "--select",
        "cafe",
        "--speed",
        SPEED,
        "--base-url",
        simulator.base_url,
    )
    assert {json.loads(line)["type"] for line in verbose.out.splitlines()} >= {"RequestSent", "RequestDone"}
