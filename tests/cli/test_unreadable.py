"""A journal record that this version cannot decode affects only its customer."""

import json
import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from .conftest import SPEED, Cli, Simulator

GOOD = b"Email,Name\na@x.de,A\n"
FLAWED = b"Email,Name\na@x.de,A\na@x.de,B\nno,C\n"
Customers = Callable[..., Path]
STATES = {
    "not JSON": b"{",
    "empty": b"",
    "not UTF-8": b'{"external_id":"bad","name":"\xff\xfe","source":"s"}',
    "bytes": b"\x00\xff\x80",
    "an unknown outcome": b'{"external_id":"bad","name":"B","source":"s","company_id":"c-7","run_id":"r-7",'
    b'"outcome":{"type":"paused"}}',
    "a wrong type": b'{"external_id":"bad","name":"B","source":"s","epoch":"first"}',
    "a list": b"[]",
    "deep": b"[" * 100_000,
    "a newer version": b'{"version":2,"external_id":"bad","name":"B","source":"s","company_id":"c-7"}',
}
BAD: dict[str, object] = {f"bad{n}": state for n, state in enumerate([*STATES.values(), 7, "text"])}
"""Customers, and the values that overwrite their records."""


def states(path: Path) -> dict[str, object]:
    with closing(sqlite3.connect(path)) as db:
        return dict(db.execute("SELECT external_id, state FROM companies"))


def overwrite_state(path: Path, state: object, external_id: str = "bad") -> None:
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE companies SET state = ? WHERE external_id = ?", (state, external_id))


@pytest.fixture
def bad(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """The external ids of the customers whose records are overwritten."""
    return getattr(request, "param", ("bad",))


@pytest.fixture
def fleet(cli: Cli, simulator: Simulator, customers: Customers, bad: tuple[str, ...]) -> Path:
    """Write a journal with a delivered customer, a parked one and the ones to overwrite. Return the manifest."""
    manifest = customers(acme=GOOD, park=FLAWED, **dict.fromkeys(bad, GOOD))
    assert cli("run", manifest, "--speed", SPEED, "--base-url", simulator.base_url).code == 5
    return manifest


@pytest.mark.parametrize("bad", [tuple(BAD)], indirect=True, ids=["all"])
def test_every_command_processes_the_other_customers(cli: Cli, fleet: Path, simulator: Simulator) -> None:
    for name, state in BAD.items():
        overwrite_state(Path("fleet.db"), state, name)
        Path(
            f"{name}.csv"
        ).unlink()  # its import may have started, so that a missing file affects only this customer
    shown_status = {
        line["external_id"]: line for line in map(json.loads, cli("status", "--json").out.splitlines())
    }
    assert (shown_status["acme"]["outcome"], shown_status["park"]["outcome"]) == ("delivered", "parked")
    assert {name: shown_status[name]["outcome"] for name in BAD} == dict.fromkeys(BAD, "failed")
    errors = {name: shown_status[name]["error"] for name in BAD}
    assert {
        name
        for name, error in errors.items()
        if "cannot read the customer's record in the journal" not in error
    } == set(), errors
    Path("out/acme/Contacts.csv").unlink()
    sent = simulator.count("POST /companies")
    for command in (("run", fleet, "--speed", SPEED, "--base-url", simulator.base_url), ("retry",)):
        ended = cli(*command)
        assert ended.code == 5, ended.err
        assert "cannot read the customer's record" in ended.out
        assert set(re.findall(r"bad\d+", ended.out)) == BAD.keys()
        assert simulator.count("POST /companies") == sent
    assert Path("out/acme/Contacts.csv").is_file()
    shown = [(("show", name), 0) for name in BAD]
    for command, code in (*shown, (("watch",), 5), (("review",), 5), (("report",), 0)):
        ended = cli(*command)
        assert ended.code == code, (command, ended.out, ended.err)
    assert "cannot read the customer" in Path("report.html").read_text(encoding="utf-8")
    plan = json.loads(cli("run", fleet, "--plan", "--json").out)
    assert BAD.keys() <= set(plan["failed"])
    assert cli("review", "park", "--approve", "--allow-destructive").code == 0
    for name in BAD:
        for command in (("adopt", name, "c-9"), ("review", name, "--approve")):
            refused = cli(*command)
            assert (refused.code, name in refused.err) == (2, True), (command, refused.err)
    left = states(Path("fleet.db"))
    assert {name: left[name] for name in BAD} == BAD


def test_status_shows_the_readable_fields_of_an_unreadable_record(cli: Cli, fleet: Path) -> None:
    overwrite_state(Path("fleet.db"), STATES["an unknown outcome"])
    (shown_status,) = [
        line
        for line in map(json.loads, cli("status", "--json").out.splitlines())
        if line["external_id"] == "bad"
    ]
    assert (shown_status["name"], shown_status["ids"]) == ("B", {"company": "c-7", "run": "r-7"})


def test_a_damaged_text_affects_only_its_row(cli: Cli, fleet: Path) -> None:
    with closing(sqlite3.connect("fleet.db")) as db, db:
        db.execute("INSERT INTO companies (external_id, state) VALUES (CAST(x'ff41' AS TEXT), x'7b')")
        db.execute("DROP TRIGGER events_stand")
        db.execute("UPDATE events SET kind = CAST(x'ff' AS TEXT), detail = x'ff' WHERE seq = 1")
    shown_status = {
        line["external_id"]: line["outcome"]
        for line in map(json.loads, cli("status", "--json").out.splitlines())
    }
    assert shown_status == {"acme": "delivered", "park": "parked", "bad": "delivered", "\ufffdA": "failed"}
    for command in (("show", "acme"), ("status",), ("report",)):
        assert cli(*command).code == 0
