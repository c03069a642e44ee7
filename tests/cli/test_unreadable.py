"""One record of a journal that this version cannot decode concerns one customer, and no other."""

import json
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


def states(path: Path) -> dict[str, object]:
    with closing(sqlite3.connect(path)) as db:
        return dict(db.execute("SELECT external_id, state FROM companies"))


def spoil(path: Path, state: object) -> None:
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE companies SET state = ? WHERE external_id = 'bad'", (state,))


@pytest.fixture
def fleet(cli: Cli, simulator: Simulator, customers: Customers) -> Path:
    """A journal with a customer that is delivered, one that is parked, and `bad`."""
    manifest = customers(acme=GOOD, park=FLAWED, bad=GOOD)
    assert cli("run", manifest, "--speed", SPEED, "--base-url", simulator.base_url).code == 5
    return manifest


@pytest.mark.parametrize("state", [*STATES.values(), 7, "text"], ids=[*STATES, "number", "text"])
def test_5_every_command_goes_on_with_the_others(
    cli: Cli, fleet: Path, simulator: Simulator, state: object
) -> None:
    spoil(Path("fleet.db"), state)
    told = {line["external_id"]: line for line in map(json.loads, cli("status", "--json").out.splitlines())}
    assert (told["acme"]["outcome"], told["park"]["outcome"]) == ("delivered", "parked")
    assert told["bad"]["outcome"] == "failed"
    assert "cannot read the customer's record in the journal" in told["bad"]["error"]
    Path("bad.csv").unlink()  # its import may have begun: that the file is gone concerns nobody else
    Path("out/acme/Contacts.csv").unlink()
    sent = simulator.count("POST /companies")
    for command in (("run", fleet, "--speed", SPEED, "--base-url", simulator.base_url), ("retry",)):
        ended = cli(*command)
        assert ended.code == 5, ended.err
        assert "cannot read the customer's record" in ended.out
        assert simulator.count("POST /companies") == sent
    assert Path("out/acme/Contacts.csv").is_file()
    for command, code in ((("show", "bad"), 0), (("watch",), 5), (("review",), 5), (("report",), 0)):
        ended = cli(*command)
        assert ended.code == code, (command, ended.out, ended.err)
    assert "cannot read the customer" in Path("report.html").read_text(encoding="utf-8")
    plan = json.loads(cli("run", fleet, "--plan", "--json").out)
    assert "bad" in plan["failed"]
    assert cli("review", "park", "--approve", "--allow-destructive").code == 0
    for command in (("adopt", "bad", "c-9"), ("review", "bad", "--approve")):
        refused = cli(*command)
        assert (refused.code, "bad" in refused.err) == (2, True)
    assert states(Path("fleet.db"))["bad"] == state


def test_5_what_can_be_told_of_it_is(cli: Cli, fleet: Path) -> None:
    spoil(Path("fleet.db"), STATES["an unknown outcome"])
    (told,) = [
        line
        for line in map(json.loads, cli("status", "--json").out.splitlines())
        if line["external_id"] == "bad"
    ]
    assert (told["name"], told["ids"]) == ("B", {"company": "c-7", "run": "r-7"})


def test_a_damaged_text_concerns_its_row_alone(cli: Cli, fleet: Path) -> None:
    with closing(sqlite3.connect("fleet.db")) as db, db:
        db.execute("INSERT INTO companies (external_id, state) VALUES (CAST(x'ff41' AS TEXT), x'7b')")
        db.execute("DROP TRIGGER events_stand")
        db.execute("UPDATE events SET kind = CAST(x'ff' AS TEXT), detail = x'ff' WHERE seq = 1")
    told = {
        line["external_id"]: line["outcome"]
        for line in map(json.loads, cli("status", "--json").out.splitlines())
    }
    assert told == {"acme": "delivered", "park": "parked", "bad": "delivered", "\ufffdA": "failed"}
    for command in (("show", "acme"), ("status",), ("report",)):
        assert cli(*command).code == 0
