"""Every block of the README is true: commands and Python run, data is read, tables agree with the program."""

import ast
import asyncio
import csv
import inspect
import io
import json
import re
import shlex
import signal
import subprocess
import sys
import types
from collections import Counter
from collections.abc import Coroutine
from datetime import UTC, datetime
from pathlib import Path
from random import Random

import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from asyncmig.cli import exit_codes
from asyncmig.cli.app import run_app
from asyncmig.cli.options import Rate
from asyncmig.cli.report import Report
from asyncmig.cli.run import RunResult
from asyncmig.cli.sim import new_world
from asyncmig.jobs.manifest import read_manifest
from asyncmig.simulator import World, disordered, export_webhooks, send
from asyncmig.simulator.companies.data import generate
from asyncmig.simulator.server.app import serve
from asyncmig.simulator.server.clock import fast_loop

README = Path(__file__).parents[1].joinpath("README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
COMMANDS = [
    line.split("#")[0].rpartition("&& ")[2].strip().removeprefix(".venv/bin/")
    for language, text in BLOCKS
    if language == "bash"
    for line in text.splitlines()
]


def blocks(language: str) -> list[str]:
    return [text for found, text in BLOCKS if found == language]


def test_nothing_is_left_untested() -> None:
    assert {language for language, _ in BLOCKS} == {"bash", "text", "python", "csv", "json"}
    assert {shlex.split(command)[0] for command in COMMANDS} == {"asyncmig", "export", "pytest"}
    assert README[: README.index("```python")].count("\n") + blocks("python")[0].count("\n") < 34


@pytest.fixture
def others(redis_url: str, database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The servers that blocks need; and a stand-in for Temporal's package, which is large."""
    monkeypatch.setenv("REDIS_URL", redis_url)
    monkeypatch.setenv("DATABASE_URL", database_url)
    temporal = types.ModuleType("temporalio")
    temporal.activity = types.SimpleNamespace(defn=lambda function: function, heartbeat=lambda: None)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "temporalio", temporal)


@pytest.mark.usefixtures("others")
def test_the_python_blocks_run_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    generate(tmp_path, customers=1, seed=4)
    monkeypatch.chdir(tmp_path / "cust-0001")
    Path("deals.csv").write_text("Title,Stage,Amount\nBig,won,7\n", encoding="utf-8")
    Path("contacts.csv").write_text("Email,First Name,Last Name\na@example.com,A,B\n", encoding="utf-8")
    world = new_world(seed=1, rate=Rate())
    monkeypatch.setenv("VERN_API_KEY", world.key)

    async def main() -> None:
        async with serve(world) as serving:
            monkeypatch.setenv("VERN_BASE_URL", serving.base_url)
            monkeypatch.setenv("WEBHOOK_SECRET", "whsec_c2VjcmV0")
            names: dict[str, object] = {"__name__": "readme"}
            for block in blocks("python"):
                code = compile(block, "README.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
                if inspect.iscoroutine(result := eval(code, names)):
                    await result
            await send_webhooks(names["app"], world)

    run_fast(main())
    assert Path("out/acme-001/Contacts.csv").is_file()
    out = capsys.readouterr().out
    assert "acme-002 ['out/acme-002" in out
    assert "acme-001 {'Contacts': 1, 'Deals': 1}" in out
    assert "'GET /sources': 2" in out or "'GET /sources': 1" in out


def wall_clock() -> float:
    return datetime.now(UTC).timestamp()


async def send_webhooks(app: object, world: World) -> None:
    """Deliver the first company's workbook to the handler that the README shows."""
    assert isinstance(app, web.Application)
    sent = export_webhooks(world.workbook("acme-001"), rng=Random(1), target=200)
    mixed = disordered(sent, rng=Random(2), defects=["wrong-key"])
    async with TestServer(app) as server:
        url = str(server.make_url("/webhooks"))
        statuses = await send(url, mixed, secret="whsec_c2VjcmV0", clock=wall_clock, attempts=1)
    assert Counter(status for (status,) in statuses) == {204: len(mixed) - 1, 400: 1}


def test_the_example_of_a_test_is_one_that_passes(pytester: pytest.Pytester) -> None:
    plugins, test = (text for text in blocks("python") if "pytest" in text)
    pytester.makeconftest(plugins)
    pytester.makepyfile(test)
    pytester.makeini("[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\n")
    pytester.runpytest_inprocess("--strict-markers", "-W", "error", "-p", "no:cacheprovider").assert_outcomes(
        passed=1
    )


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
    """Run an `asyncmig` command of the README; None for the others. Real clocks run faster here."""
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


def test_the_manifest_is_one(tmp_path: Path) -> None:
    (text,) = blocks("csv")
    for record in csv.DictReader(io.StringIO(text)):
        for file in record["files"].replace("*", "all").split(";"):
            (tmp_path / file).parent.mkdir(exist_ok=True)
            (tmp_path / file).write_text("x", encoding="utf-8")
    (tmp_path / "customers.csv").write_text(text, encoding="utf-8")
    assert len(read_manifest(tmp_path / "customers.csv").customers) == 2


def test_the_report_has_this_shape() -> None:
    shown = json.loads(blocks("json")[0])
    report = msgspec.convert(shown, Report)
    assert json.loads(msgspec.json.encode(report)) == shown


def test_the_table_of_exit_codes_is_complete() -> None:
    table = README[README.index("| exit code |") :]
    listed = [int(code) for code in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)]
    assert listed == sorted(code for code in vars(exit_codes).values() if isinstance(code, int))
    order = re.search(r"in the order ([\d, ]+)", README)
    documented = inspect.getdoc(RunResult.exit_code)
    assert order is not None
    assert documented is not None
    assert order[1].rstrip(",. ") in documented


def test_every_option_of_run_is_listed() -> None:
    table = set(re.findall(r"^\| `(--[a-z-]+)", README, re.MULTILINE))
    help_text = subprocess.run(
        [sys.executable, "-m", "asyncmig", "run", "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert set(re.findall(r"(--[a-z-]+)", help_text)) - {"--help"} >= table
    assert table >= {"--out", "--journal", "--decide", "--filter", "--scope", "--rate", "--concurrency"}
