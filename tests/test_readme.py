"""Every block of the README is correct: commands and Python run, data is read, and tables match the program."""

import asyncio
import csv
import io
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Coroutine
from pathlib import Path

import documents
import pytest

from asyncmig._core.limits import Rate
from asyncmig.cli.app import run_app
from asyncmig.cli.sim import new_world
from asyncmig.jobs.manifest import read_manifest
from asyncmig.simulator import fast_loop, migrations
from asyncmig.simulator.companies.data import generate
from asyncmig.simulator.server.app import serve

README = documents.README.text
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
COMMANDS = [
    line.split("#")[0].rpartition("&& ")[2].strip().removeprefix(".venv/bin/")
    for language, text in BLOCKS
    if language == "bash"
    for line in text.splitlines()
]


def blocks(language: str) -> list[str]:
    return [text for found, text in BLOCKS if found == language]


def test_the_tests_know_every_language_and_command_of_the_readme() -> None:
    assert {language for language, _ in BLOCKS} == {"bash", "text", "python", "csv"}
    assert {shlex.split(command)[0] for command in COMMANDS} == {"asyncmig", "export", "pytest"}
    assert README[: README.index("```python")].count("\n") + blocks("python")[0].count("\n") < 34


def test_the_python_blocks_run_in_order(
    redis_url: str,
    database_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("REDIS_URL", redis_url)
    monkeypatch.setenv("DATABASE_URL", database_url)
    generate(tmp_path, customers=1, seed=4)
    monkeypatch.chdir(tmp_path / "cust-0001")
    Path("deals.csv").write_text("Title,Stage,Amount\nBig,won,7\n", encoding="utf-8")
    Path("contacts.csv").write_text("Email,First Name,Last Name\na@example.com,A,B\n", encoding="utf-8")
    world = new_world(seed=1, rate=Rate())
    monkeypatch.setenv("VERN_API_KEY", world.key)

    names: dict[str, object] = {"__name__": "readme"}

    async def main() -> None:
        async with serve(world) as first, serve(migrations.World(key=world.key)) as second:
            for block in blocks("python"):
                serving = second if "session.migrations" in block else first
                monkeypatch.setenv("VERN_BASE_URL", serving.base_url)
                await documents.run_blocks("README.md", [block], names)

    run_fast(main())
    assert Path("out/acme-001/Contacts.csv").is_file()
    out = capsys.readouterr().out
    assert "acme-002 ['out/acme-002" in out
    assert "contacts 1 flagged rows: none" in out
    assert "'GET /sources': 2" in out or "'GET /sources': 1" in out


def test_the_commands_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    generate(tmp_path, customers=3, seed=5)
    simulator = subprocess.Popen(
        [sys.executable, "-m", "asyncmig", *shlex.split(command_of("sim"))[1:]],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert simulator.stdout is not None
        for setting in shlex.split(simulator.stdout.readline())[1:]:
            monkeypatch.setenv(*setting.split("=", 1))
        codes = [run(monkeypatch, shlex.split(command)) for command in COMMANDS if " sim" not in command]
    finally:
        simulator.send_signal(signal.SIGINT)
        simulator.communicate()
    assert codes[0] == 0, capsys.readouterr()
    assert set(codes[1:]) <= {0, 3, 5, None}
    shown, printed = blocks("text")[0], capsys.readouterr().out
    for line in shown.splitlines():
        assert not line[:1].isalpha() or line.split()[0] in printed


def command_of(name: str) -> str:
    return next(command for command in COMMANDS if command.startswith(f"asyncmig {name}"))


def run(monkeypatch: pytest.MonkeyPatch, command: list[str]) -> int | None:
    """Run an `asyncmig` command of the README with a faster clock. Return its exit code; None for other commands."""
    if command[0] != "asyncmig":
        return None
    faster = {"demo": ["--customers", "4", "--speed", "200"], "check": []}
    monkeypatch.setattr(sys, "argv", [*command, *faster.get(command[1], ["--speed", "60"])])
    with pytest.raises(SystemExit) as caught:
        run_app()
    assert isinstance(caught.value.code, int)
    return caught.value.code


def run_fast(main: Coroutine[object, object, None]) -> None:
    with asyncio.Runner(loop_factory=lambda: fast_loop(60)) as runner:
        runner.run(main)


def test_the_manifest_can_be_read(tmp_path: Path) -> None:
    (text,) = blocks("csv")
    for record in csv.DictReader(io.StringIO(text)):
        for file in record["files"].replace("*", "all").split(";"):
            (tmp_path / file).parent.mkdir(exist_ok=True)
            (tmp_path / file).write_text("x", encoding="utf-8")
    (tmp_path / "customers.csv").write_text(text, encoding="utf-8")
    assert len(read_manifest(tmp_path / "customers.csv").customers) == 2


def test_the_options_of_run_in_the_readme_exist() -> None:
    table = set(re.findall(r"^\| `[a-z_`, ]+ \| `(--[a-z-]+)", README, re.MULTILINE))
    help_text = subprocess.run(
        [sys.executable, "-m", "asyncmig", "run", "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert set(re.findall(r"(--[a-z-]+)", help_text)) - {"--help"} >= table
    assert table >= {"--out", "--journal", "--decide", "--filter", "--scope", "--rate", "--concurrency"}
