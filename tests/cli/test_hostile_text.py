"""Control characters from files and servers are not printed, and symbolic links of others are not followed."""

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from asyncmig.simulator import Reply, Request

from .conftest import SPEED, Cli, Result, Simulator

EVIL = "Bad\x9b2J\u202eevil\u2066\u061c\x85\u200f\x7fend"
NAME = "Bad\u202eevil\u2066\u061c\u200fend"
"""A customer's name: control characters in it are refused."""
CONTROL_CHARACTERS = frozenset("\x1b\x7f\u061c\u200e\u200f\u2028\u2029") | {
    chr(code) for span in ((0x80, 0xA0), (0x202A, 0x202F), (0x2066, 0x2070)) for code in range(*span)
}
Customers = Callable[..., Path]


def control_characters(text: str) -> set[str]:
    return CONTROL_CHARACTERS & set(text)


@pytest.fixture
def hostile(simulator: Simulator) -> Simulator:
    """A server whose error for a create request contains control characters."""

    def answer(request: Request) -> Reply | None:
        if request.method == "POST" and request.path.endswith("/companies"):
            return Reply(status=400, body=json.dumps({"error": EVIL}, ensure_ascii=False).encode())
        return None

    simulator.intercept = answer
    return simulator


def manifest(tmp_path: Path) -> Path:
    (tmp_path / "acme.csv").write_text(f"{EVIL},Email\n{EVIL},a@x.de\n", encoding="utf-8")
    path = tmp_path / "customers.csv"
    path.write_text(f"external_id,name,source,files\nacme,{NAME},HubSpot,acme.csv\n", encoding="utf-8")
    return path


def test_control_characters_reach_neither_terminal_nor_reports(
    cli: Cli, hostile: Simulator, tmp_path: Path
) -> None:
    customers = manifest(tmp_path)
    results: list[Result] = [
        cli("run", customers, "--speed", SPEED, "--base-url", hostile.base_url, "--report", "page.html"),
        cli("check", customers, "--base-url", hostile.base_url),
        cli("check", customers, "--json", "--base-url", hostile.base_url),
        cli("run", customers, "--plan"),
        *(
            cli(*command)
            for command in (("status",), ("status", "--json"), ("show", "acme"), ("watch",), ("report",))
        ),
    ]
    assert [result.code for result in results] == [3, 0, 0, 0, 0, 0, 0, 3, 0]
    for result in results:
        assert not control_characters(result.out + result.err), result
    assert all("evil" in result.out for result in (results[0], results[1], results[4], results[6]))
    for name in ("out/report.json", "page.html", "report.html"):
        assert not control_characters(Path(name).read_text(encoding="utf-8")), name
    report = json.loads(Path("out/report.json").read_bytes())
    assert report["customers"][0]["name"] == NAME
    (checked,) = map(json.loads, results[2].out.splitlines())
    assert checked["files"][0]["headers"][0]["header"] == EVIL


def test_a_symbolic_link_in_place_of_an_output_file_is_not_followed(
    cli: Cli, simulator: Simulator, customers: Customers, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    written = ("out/report.json", "page.html", "fleet.db.last")
    for number, planted in enumerate(("out/report.json.part", "page.html.part", "fleet.db.last")):
        (tmp_path / f"victim{number}").write_text("mine", encoding="utf-8")
        (tmp_path / planted).symlink_to(tmp_path / f"victim{number}")
    arguments = ("--speed", SPEED, "--base-url", simulator.base_url, "--report", "page.html")
    assert cli("run", customers(acme=b"Email,Name\na@x.de,A\n"), *arguments).code == 0
    for number, name in enumerate(written):
        assert Path(f"victim{number}").read_text(encoding="utf-8") == "mine"
        assert Path(name).is_file()
        assert not Path(name).is_symlink()
    assert not [path for path in tmp_path.rglob("*.part") if not path.is_symlink()]


@pytest.mark.parametrize("planted", ["text", "other JSON", "fifo", "link"])
def test_a_run_ignores_damaged_settings_of_the_last_run_and_replaces_them(
    cli: Cli, simulator: Simulator, customers: Customers, planted: str
) -> None:
    last = Path("fleet.db.last")
    connection = ("--speed", SPEED, "--base-url", simulator.base_url)
    if planted == "fifo":
        os.mkfifo(last)
    elif planted == "link":
        last.symlink_to("nowhere")
    else:
        last.write_text("mine" if planted == "text" else '{"schema": 1}', encoding="utf-8")
    if planted != "link":  # a link without a target counts as a missing file
        retried = cli("retry")
        assert retried.code == 2
        assert "fleet.db.last" in retried.err
        assert "fleet.db.last is ignored" in cli("watch").err
    ended = cli("run", customers(acme=b"Email,Name\na@x.de,A\n"), *connection)
    assert ended.code == 0, ended.err
    assert ("fleet.db.last is ignored" in ended.err) is (planted != "link")
    assert cli("retry").code == 0


@pytest.mark.skipif(os.name == "nt", reason="POSIX modes")
def test_a_report_has_the_default_file_mode(cli: Cli, simulator: Simulator, customers: Customers) -> None:
    cli("run", customers(acme=b"Email,Name\na@x.de,A\n"), "--speed", SPEED, "--base-url", simulator.base_url)
    Path("other").touch()
    assert stat.S_IMODE(Path("out/report.json").stat().st_mode) == stat.S_IMODE(Path("other").stat().st_mode)
