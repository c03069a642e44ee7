"""`asyncmig doctor`: one line for each check, and the exit code of the worst result."""

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
    """Return the mark and the text of each check by its name."""
    return {line[5:21].strip(): line[:3].strip() + " " + line[23:] for line in result.out.splitlines()}


def doctor(cli: Cli, simulator: Simulator, *more: str) -> Result:
    return cli("doctor", "--base-url", simulator.base_url, "--speed", "60", *more)


def test_doctor_reports_no_fault_with_one_request(cli: Cli, simulator: Simulator) -> None:
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


def test_doctor_reports_the_journal_and_the_limit_of_the_last_run(
    cli: Cli, simulator: Simulator, customers: Callable[..., Path]
) -> None:
    assert cli("run", customers(acme=GOOD), "--base-url", simulator.base_url, "--speed", "60").code == 0
    checks = lines(doctor(cli, simulator))
    assert "is intact, with 1 customer" in checks["journal"]
    assert "in the last run it was right; 0 requests answered 429" in checks["limit"]
    report = json.loads(Path("out/report.json").read_text(encoding="utf-8"))
    report["budget"]["limits"]["GET /sources"] = {"limit": 100, "believed": 61, "burst": 61}
    Path("out/report.json").write_text(json.dumps(report), encoding="utf-8")
    assert "turned out lower (GET /sources: 61)" in lines(doctor(cli, simulator))["limit"]


def test_doctor_exits_4_if_the_key_is_refused(
    cli: Cli, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VERN_API_KEY", "another")
    result = doctor(cli, simulator)
    assert result.code == 4
    assert lines(result)["API key"].startswith("BAD ")
    assert "Invalid API key" in result.out


def test_doctor_reports_a_missing_key_before_any_request(
    cli: Cli, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VERN_API_KEY")
    result = doctor(cli, simulator)
    assert result.code == 2
    assert lines(result)["API key"] == "BAD VERN_API_KEY is not set"
    assert simulator.count() == 0


def test_doctor_does_not_check_the_key_if_the_server_has_no_catalogue(cli: Cli, simulator: Simulator) -> None:
    simulator.intercept = lambda request: Reply(status=404, body=b'{"error": "No such route"}')
    result = doctor(cli, simulator)
    assert result.code == 0
    assert lines(result)["API key"] == "? was not checked"
    assert "use ids in the manifest), or this is not the API's base URL" in lines(result)["server"]


def test_doctor_exits_75_if_the_server_cannot_be_reached(cli: Cli) -> None:
    result = cli("doctor", "--base-url", "http://127.0.0.1:9", "--speed", "600")
    assert result.code == 75
    assert "cannot be reached" in lines(result)["server"]


def test_doctor_reports_a_wrong_clock(cli: Cli, simulator: Simulator) -> None:
    old = {"Date": "Wed, 21 Oct 2015 07:28:00 GMT"}
    simulator.intercept = lambda request: Reply(status=200, body=b'{"sources": []}', headers=old)
    result = cli("doctor", "--base-url", simulator.base_url)
    assert result.code == 2
    assert "ahead of the server's clock: correct it" in lines(result)["clock"]
    fast = doctor(cli, simulator)  # the clock of `asyncmig sim --speed 60` advances faster than the local one
    assert (fast.code, lines(fast)["clock"][:18]) == (0, "? was not compared")


def test_doctor_reports_a_damaged_journal_and_an_unwritable_folder(cli: Cli, simulator: Simulator) -> None:
    Path("taken").write_text("a file", encoding="utf-8")
    with sqlite3.connect("other.db") as other:
        other.execute("CREATE TABLE t (x)")
    other.close()
    result = doctor(cli, simulator, "--journal", "other.db", "--out", "taken/out")
    assert result.code == 2
    assert lines(result)["journal"].startswith("BAD ")
    assert lines(result)["output"].startswith("BAD ")


PAGE = b"<html><body>Not Found</body></html>"
OTHER_SERVERS = {
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


@pytest.mark.parametrize("reply", OTHER_SERVERS.values(), ids=OTHER_SERVERS)
def test_doctor_exits_2_if_another_web_server_answers(cli: Cli, simulator: Simulator, reply: Reply) -> None:
    simulator.intercept = lambda request: reply
    result = doctor(cli, simulator)
    assert result.code == 2
    checks = lines(result)
    assert "is this the api's base url?" in checks["server"].lower()
    assert "is accepted" not in result.out
    assert checks["API key"].startswith("? ")
    assert "limit" in checks
    assert KEY not in result.out + result.err


@pytest.mark.parametrize(
    ("reply", "code", "message"),
    [
        (Reply(status=429, body=b'{"error": "Too many requests"}'), 75, "429"),
        (Reply(status=429, body=b"", headers={"Retry-After": "60"}), 75, "429"),
        (Reply(status=500, body=b'{"error": "out of order"}'), 75, "out of order"),
        (Reply(status=503, body=PAGE, content_type="text/html"), 75, "503"),
        (Reply(status=403, body=b'{"error": "not here"}'), 2, "not here"),
    ],
    ids=str,
)
def test_doctor_reports_an_error_of_the_server_after_one_request(
    cli: Cli, simulator: Simulator, reply: Reply, code: int, message: str
) -> None:
    asked: list[str] = []

    def answer(request: Request) -> Reply:
        asked.append(request.path)
        return reply

    simulator.intercept = answer
    result = cli("doctor", "--base-url", simulator.base_url)
    assert result.code == code
    assert message in lines(result)["server"]
    assert len(asked) == 1


def test_doctor_exits_75_if_the_server_does_not_answer_in_time(cli: Cli) -> None:
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
def test_doctor_performs_every_check_and_changes_no_file(
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


def test_doctor_exits_75_if_another_program_has_locked_the_journal(
    cli: Cli, simulator: Simulator, customers: Callable[..., Path]
) -> None:
    assert cli("run", customers(acme=GOOD), "--base-url", simulator.base_url, "--speed", "60").code == 0
    with closing(sqlite3.connect("fleet.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        result = doctor(cli, simulator)
    assert result.code == 75
    assert "locked" in lines(result)["journal"]


def test_doctor_exits_2_if_a_record_cannot_be_decoded(
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


def test_doctor_names_the_proxy_of_the_environment_without_its_credentials(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", "http://user:hunter2@127.0.0.1:9")
    result = cli("doctor", "--base-url", "https://api.example.org/v1")
    assert result.code == 75
    assert "through the proxy http://127.0.0.1:9" in lines(result)["server"]
    assert "hunter2" not in result.out + result.err


@pytest.mark.parametrize("value", ["socks5://127.0.0.1:9", "http://[", "ftp://hunter2@x"])
def test_doctor_exits_2_if_the_proxy_cannot_be_used(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("https_proxy", value)
    result = cli("doctor", "--base-url", "https://api.example.org/v1")
    assert result.code == 2
    assert "https_proxy" in lines(result)["server"]
    assert "limit" in lines(result)
    assert "hunter2" not in result.out + result.err


def test_doctor_exits_75_if_the_name_server_does_not_answer(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
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
