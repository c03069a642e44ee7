"""`asyncmig doctor`: one line for each thing, and the exit code of the worst."""

import json
import socket
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from asyncmig.simulator import Reply, Request

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
    assert "in the last run it was right; 0 requests answered 429" in said["limit"]
    report = json.loads(Path("out/report.json").read_text(encoding="utf-8"))
    report["budget"]["limits"]["GET /sources"] = {"limit": 100, "believed": 61, "burst": 61}
    Path("out/report.json").write_text(json.dumps(report), encoding="utf-8")
    assert "turned out lower (GET /sources: 61)" in lines(doctor(cli, simulator))["limit"]


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


def test_a_server_without_a_catalogue_does_not_tell_about_the_key(cli: Cli, simulator: Simulator) -> None:
    simulator.intercept = lambda request: Reply(status=404, body=b'{"error": "No such route"}')
    result = doctor(cli, simulator)
    assert result.code == 0
    assert lines(result)["API key"] == "? was not checked"
    assert "use ids in the manifest), or this is not the API's base URL" in lines(result)["server"]


def test_a_server_that_cannot_be_reached_is_a_matter_of_time(cli: Cli) -> None:
    result = cli("doctor", "--base-url", "http://127.0.0.1:9", "--speed", "600")
    assert result.code == 75
    assert "cannot be reached" in lines(result)["server"]


def test_a_clock_that_is_off_is_told(cli: Cli, simulator: Simulator) -> None:
    old = {"Date": "Wed, 21 Oct 2015 07:28:00 GMT"}
    simulator.intercept = lambda request: Reply(status=200, body=b'{"sources": []}', headers=old)
    result = cli("doctor", "--base-url", simulator.base_url)
    assert result.code == 2
    assert "ahead of the server's clock: correct it" in lines(result)["clock"]
    fast = doctor(cli, simulator)  # the clock of `asyncmig sim --speed 60` soon differs from this one
    assert (fast.code, lines(fast)["clock"][:18]) == (0, "? was not compared")


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


PAGE = b"<html><body>Not Found</body></html>"
ELSEWHERE = {
    "404 page": Reply(status=404, body=PAGE, content_type="text/html"),
    "404 plain": Reply(status=404, body=b"404 page not found", content_type="text/plain"),
    "404 empty": Reply(status=404, body=b""),
    "404 other JSON": Reply(status=404, body=b'{"detail": "Not Found"}'),
    "200 page": Reply(status=200, body=PAGE, content_type="text/html"),
    "200 page as JSON": Reply(status=200, body=PAGE),
    "200 plain": Reply(status=200, body=b"ok", content_type="text/plain"),
    "200 empty": Reply(status=200, body=b""),
    "200 other JSON": Reply(status=200, body=b'{"status": "ok"}'),
    "200 list": Reply(status=200, body=b"[]"),
    "301": Reply(status=301, body=b"", headers={"Location": "https://example.org/"}),
    "302": Reply(
        status=302, body=PAGE, content_type="text/html", headers={"Location": "/login?key=sk-very-secret"}
    ),
    "400 page": Reply(status=400, body=PAGE, content_type="text/html"),
    "403 page": Reply(status=403, body=PAGE, content_type="text/html"),
    "405": Reply(status=405, body=PAGE, content_type="text/html"),
}


@pytest.mark.parametrize("reply", ELSEWHERE.values(), ids=ELSEWHERE)
def test_2_another_web_server_is_no_migration_api(cli: Cli, simulator: Simulator, reply: Reply) -> None:
    simulator.intercept = lambda request: reply
    result = doctor(cli, simulator)
    assert result.code == 2
    said = lines(result)
    assert "is this the api's base url?" in said["server"].lower()
    assert "is accepted" not in result.out
    assert said["API key"].startswith("? ")
    assert "limit" in said
    assert KEY not in result.out + result.err


@pytest.mark.parametrize(
    ("reply", "code", "words"),
    [
        (Reply(status=429, body=b'{"error": "Too many requests"}'), 75, "429"),
        (Reply(status=429, body=b"", headers={"Retry-After": "60"}), 75, "429"),
        (Reply(status=500, body=b'{"error": "out of order"}'), 75, "out of order"),
        (Reply(status=503, body=PAGE, content_type="text/html"), 75, "503"),
        (Reply(status=403, body=b'{"error": "not here"}'), 2, "not here"),
    ],
    ids=str,
)
def test_what_the_server_says_is_told_at_once(
    cli: Cli, simulator: Simulator, reply: Reply, code: int, words: str
) -> None:
    asked: list[str] = []

    def answer(request: Request) -> Reply:
        asked.append(request.path)
        return reply

    simulator.intercept = answer
    result = cli("doctor", "--base-url", simulator.base_url)
    assert result.code == code
    assert words in lines(result)["server"]
    assert len(asked) == 1


def test_75_a_server_that_never_answers_is_not_waited_for(cli: Cli) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        result = cli("doctor", "--speed", "300", "--base-url", f"http://127.0.0.1:{server.getsockname()[1]}")
    assert result.code == 75
    assert "did not answer within 15 s" in lines(result)["server"]
    assert "limit" in lines(result)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--journal", "nowhere/fleet.db"),
        ("--journal", "taken/fleet.db"),
        ("--journal", "folder"),
        ("--journal", "empty.db", "--out", "new/out"),
        ("--out", "taken"),
        ("--out", "taken/out"),
        ("--base-url", "ftp://x"),
        ("--speed", "1", "--base-url", "https://no-such-host.invalid"),
    ],
    ids=" ".join,
)
def test_every_check_is_made_and_nothing_is_changed(
    cli: Cli, simulator: Simulator, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    (tmp_path / "taken").write_text("a file", encoding="utf-8")
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty.db").touch()
    before = {path: path.stat().st_mtime_ns for path in [tmp_path, *tmp_path.rglob("*")]}
    result = doctor(cli, simulator, *arguments)
    assert result.code == (75 if "no-such-host" in arguments[-1] else 0 if "empty.db" in arguments else 2)
    assert list(lines(result)) == [
        *("versions", "output", "journal's folder", "journal"),
        *(("server", "API key", "clock", "limit")),
    ]
    assert {path: path.stat().st_mtime_ns for path in [tmp_path, *tmp_path.rglob("*")]} == before


def test_75_a_journal_that_another_program_has_locked(
    cli: Cli, simulator: Simulator, customers: Callable[..., Path]
) -> None:
    assert cli("run", customers(acme=GOOD), "--base-url", simulator.base_url, "--speed", "60").code == 0
    with closing(sqlite3.connect("fleet.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        result = doctor(cli, simulator)
    assert result.code == 75
    assert "locked" in lines(result)["journal"]


def test_2_a_record_that_cannot_be_decoded_is_told(
    cli: Cli, simulator: Simulator, customers: Callable[..., Path]
) -> None:
    assert cli("run", customers(acme=GOOD), "--base-url", simulator.base_url, "--speed", "60").code == 0
    with closing(sqlite3.connect("fleet.db")) as other, other:
        other.execute("UPDATE companies SET state = x'ff'")
    Path("out/report.json").write_bytes(b"\xff")
    result = doctor(cli, simulator)
    assert result.code == 2
    assert "cannot read 1 record of 1" in lines(result)["journal"]
    assert "cannot be read" in lines(result)["limit"]


def test_a_proxy_of_the_environment_is_named(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://user:hunter2@127.0.0.1:9")
    result = cli("doctor", "--base-url", "https://api.example.org/v1")
    assert result.code == 75
    assert "through the proxy http://127.0.0.1:9" in lines(result)["server"]
    assert "hunter2" not in result.out + result.err


@pytest.mark.parametrize("value", ["socks5://127.0.0.1:9", "http://[", "ftp://hunter2@x"])
def test_2_a_proxy_that_cannot_be_used_is_told(cli: Cli, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("https_proxy", value)
    result = cli("doctor", "--base-url", "https://api.example.org/v1")
    assert result.code == 2
    assert "https_proxy" in lines(result)["server"]
    assert "limit" in lines(result)
    assert "hunter2" not in result.out + result.err


def test_75_a_name_server_that_hangs_is_not_waited_for(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, answered = threading.Event(), threading.Event()

    def hang(*arguments: object) -> None:
        asked.set()
        answered.wait(60)

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    result = cli("doctor", "--base-url", "http://localhost:9", "--speed", "300")
    answered.set()
    assert asked.is_set()
    assert result.code == 75
    assert "the name server did not answer" in lines(result)["server"]
    assert "limit" in lines(result)
