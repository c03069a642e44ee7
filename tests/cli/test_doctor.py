"""`asyncmig doctor`: one line for each thing, and the exit code of the worst."""

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from asyncmig.simulator import Reply

from .conftest import KEY, Cli, Result, Simulator

GOOD = b"Email,Name\na@x.de,A\n"


def lines(result: Result) -> dict[str, str]:
    """Return what was said of each thing, with its mark."""
    return {line[5:21].strip(): line[:3].strip() + " " + line[23:] for line in result.out.splitlines()}


def doctor(cli: Cli, simulator: Simulator, *more: str) -> Result:
    return cli("doctor", "--base-url", simulator.base_url, "--speed", "60", *more)


def test_all_is_well_and_one_request_was_sent(cli: Cli, simulator: Simulator) -> None:
    result = doctor(cli, simulator)
    assert result.code == 0, result.out + result.err
    assert all(text.startswith("ok ") for text in lines(result).values()), result.out
    assert set(lines(result)) == {
        *("versions", "output", "journal's folder", "journal", "server", "API key", "clock", "limit")
    }
    assert simulator.count() == simulator.count("GET /sources") == 1
    assert KEY not in result.out + result.err
    assert not Path("out").exists()
    assert not Path("fleet.db").exists()


def test_after_a_run_it_tells_of_the_journal_and_the_limit(
    cli: Cli, simulator: Simulator, customers: Callable[..., Path]
) -> None:
    assert cli("run", customers(acme=GOOD), "--base-url", simulator.base_url, "--speed", "60").code == 0
    said = lines(doctor(cli, simulator))
    assert "is intact, with 1 customer" in said["journal"]
    assert "in the last run it held (0 requests answered 429)" in said["limit"]
    report = json.loads(Path("out/report.json").read_text(encoding="utf-8"))
    report["budget"]["limits"]["GET /sources"] = {"limit": 100, "believed": 61, "burst": 61}
    Path("out/report.json").write_text(json.dumps(report), encoding="utf-8")
    assert "seen to be less: GET /sources: 61" in lines(doctor(cli, simulator))["limit"]


def test_a_refused_key_has_its_exit_code(
    cli: Cli, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VERN_API_KEY", "another")
    result = doctor(cli, simulator)
    assert result.code == 4
    assert lines(result)["API key"].startswith("BAD ")
    assert "Invalid API key" in result.out


def test_a_key_that_is_not_set_is_said_before_anything_is_sent(
    cli: Cli, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VERN_API_KEY")
    result = doctor(cli, simulator)
    assert result.code == 2
    assert lines(result)["API key"] == "BAD VERN_API_KEY is not set"
    assert simulator.count() == 0


def test_a_server_without_a_catalogue_accepts_the_key_all_the_same(cli: Cli, simulator: Simulator) -> None:
    simulator.intercept = lambda request: Reply(status=404, body=b'{"error": "No such route"}')
    result = doctor(cli, simulator)
    assert result.code == 0
    assert lines(result)["API key"] == "ok is accepted"
    assert "use ids" in lines(result)["server"]


def test_a_server_that_cannot_be_reached_is_a_matter_of_time(cli: Cli) -> None:
    result = cli("doctor", "--base-url", "http://127.0.0.1:9", "--speed", "600")
    assert result.code == 75
    assert "cannot be reached" in lines(result)["server"]


def test_a_clock_that_is_off_is_told(cli: Cli, simulator: Simulator) -> None:
    old = {"Date": "Wed, 21 Oct 2015 07:28:00 GMT"}
    simulator.intercept = lambda request: Reply(status=200, body=b'{"sources": []}', headers=old)
    result = doctor(cli, simulator)
    assert result.code == 2
    assert "ahead of the server's: set it right" in lines(result)["clock"]


def test_a_damaged_journal_and_a_place_that_cannot_be_written_are_told(
    cli: Cli, simulator: Simulator
) -> None:
    Path("taken").write_text("a file", encoding="utf-8")
    with sqlite3.connect("other.db") as other:
        other.execute("CREATE TABLE t (x)")
    other.close()
    result = doctor(cli, simulator, "--journal", "other.db", "--out", "taken/out")
    assert result.code == 2
    assert lines(result)["journal"].startswith("BAD ")
    assert lines(result)["output"].startswith("BAD ")
