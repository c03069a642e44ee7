"""The output at 80 columns and with `--json`, and the consistency of options."""

import asyncio
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import typer
from rich.console import Console

from asyncmig.cli.app import app
from asyncmig.cli.live_view import LiveView
from asyncmig.cli.settings import Display, Settings
from asyncmig.events import AttemptFailed, MigrationChanged
from asyncmig.session import Session

from .conftest import KEY, SPEED, Cli, Simulator
from .terminal import Terminal

GOOD, LATIN = b"Email,Name\na@x.de,A\n", b"Email,Name\na@x.de,Caf\xe9\n"
TWICE, NO_NAME = b"Email,Name\na@x.de,A\na@x.de,B\n", b"Email,Name\na@x.de,\n"
Customers = Callable[..., Path]
COLUMNS = 80
GROUP = typer.main.get_group(app)
COMMANDS = sorted(GROUP.commands)


@pytest.fixture
def fleet(cli: Cli, customers: Customers, simulator: Simulator, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run customers with three outcomes. Two parked customers have the same question, and the third another one."""
    monkeypatch.setenv("VERN_BASE_URL", simulator.base_url)
    manifest = customers(acme=GOOD, bolt=TWICE, cafe=LATIN, dora=TWICE + b"a@x.de,C\n", emil=NO_NAME)
    manifest.write_text(
        manifest.read_text(encoding="utf-8").replace("acme Inc", "Çelik ☃ Inc"), encoding="utf-8"
    )
    assert cli("run", manifest, "--speed", SPEED).code == 5
    return manifest


def rows_of(table: str) -> list[list[str]]:
    return [line.split(maxsplit=2) for line in table.splitlines() if line.split() and line[0].isalpha()]


def test_status_prints_a_summary_and_groups_parked_customers_by_question(cli: Cli, fleet: Path) -> None:
    result = cli("status")
    rows = [row for row in rows_of(result.out) if row[0] in ("delivered", "failed", "parked")]
    parked = [row[2] for row in rows if row[0] == "parked"]
    assert len(parked) == 2
    (same,) = [text for text in parked if "(bolt, dora)" in text]
    assert "cells of Email break the rule 'unique'" in same
    assert "1-2 cells" in same
    assert any("Name break the rule 'required'" in text and "(emil)" in text for text in parked)
    assert "5 customers: 1 delivered, 1 failed, 3 parked." in result.out
    assert "  asyncmig review\n" in result.out


def test_status_filters_by_outcome_and_sorts(cli: Cli, fleet: Path) -> None:
    def names(*options: str) -> list[str]:
        return [
            row[0] for row in rows_of(cli("status", *options).out)[1:] if row[0] in "acme bolt cafe dora emil"
        ]

    assert sorted(names("--list")) == ["acme", "bolt", "cafe", "dora", "emil"]
    assert names("--list", "--sort", "id") == ["acme", "bolt", "cafe", "dora", "emil"]
    assert names("--sort", "outcome") == ["acme", "cafe", "bolt", "dora", "emil"]
    assert names("--outcome", "failed,parked", "--sort", "id") == ["bolt", "cafe", "dora", "emil"]
    chosen = cli("status", "--outcome", "parked", "--sort", "id", "--json").out.splitlines()
    assert [json.loads(line)["external_id"] for line in chosen] == ["bolt", "dora", "emil"]
    wrong = cli("status", "--outcome", "parkd")
    assert wrong.code == 2
    assert "did you mean 'parked'?" in wrong.err
    assert cli("status", "--outcome", "unknown").code == 0


@pytest.mark.timeout(120)
def test_output_at_80_columns_is_not_cut_inside_a_word(cli: Cli, fleet: Path) -> None:
    for command in (
        *(["status"], ["status", "--list"], ["show", "bolt"], ["config", "customers.csv"], ["doctor"]),
        *(["run", "customers.csv", "--plan"], ["check", "customers.csv"]),
    ):
        whole = cli(*command)
        words = set((whole.out + whole.err).split())
        with Terminal(command, fleet.parent, columns=COLUMNS, VERN_API_KEY=KEY) as terminal:
            terminal.end()
        lines = [line for line in terminal.text.splitlines() if not line.startswith(("  asyncmig", "─"))]
        assert max(map(len, lines)) <= COLUMNS, command
        too_long = " ".join(word for word in words if len(word) > COLUMNS - 20)
        times = re.compile(r"[\d.:-]+")
        cut = {word for line in lines for word in line.split() if not times.fullmatch(word)} - words
        assert not {word for word in cut if word not in too_long}, (command, terminal.text)


def test_each_command_with_output_supports_json(cli: Cli, fleet: Path) -> None:
    for command in (
        *(["status"], ["show", "acme"], ["config", "customers.csv"], ["doctor"], ["check", "customers.csv"]),
        *(["review"], ["run", "customers.csv", "--plan"], ["run", "customers.csv"], ["watch"]),
        *(["report"], ["adopt", "other", "0a6ff0c5-1b7e-4e0e-9d2a-3f1c5b7d9e11"]),
        *(["journal", "backup", "copy.db"], ["journal", "compact"], ["journal", "forget", "acme"]),
    ):
        result = cli(*command, "--json")
        lines = [json.loads(line) for line in result.out.splitlines()]
        assert all(isinstance(line, dict) and line["schema"] for line in lines), command
        assert lines or command == ["watch"], (command, result.err)


def test_json_escapes_only_characters_that_stdout_cannot_encode(cli: Cli, fleet: Path) -> None:
    assert "Çelik ☃ Inc" in cli("show", "acme", "--json").out
    command = [sys.executable, "-m", "asyncmig", "show", "acme", "--json"]
    environment = {"PYTHONIOENCODING": "latin-1", "PYTHONPATH": ":".join(sys.path)}
    ended = subprocess.run(command, cwd=fleet.parent, env=environment, capture_output=True, check=True)
    assert json.loads(ended.stdout)["name"] == "Çelik ☃ Inc"


def options() -> Iterator[tuple[str, str, str]]:
    """Yield the command, the name and the metavar of each option and argument that takes a value."""
    for name, command in [*GROUP.commands.items(), *GROUP.commands["journal"].commands.items()]:
        for parameter in command.params:
            if not getattr(parameter, "is_flag", False) and parameter.name != "help":
                yield name, str(parameter.name), str(getattr(parameter, "metavar", None))


def test_all_options_have_one_style_of_metavars() -> None:
    literal, value = r"[a-z-]+(\|[a-z-]+)+", r"\[?[A-Z_]+((=|\[:)[A-Z]+)?\]?(\.\.\.)?"
    wrong = [each for each in options() if not re.fullmatch(f"{literal}|{value}", each[2])]
    assert wrong == []


def test_the_option_for_the_html_report_is_report_in_each_command(cli: Cli, fleet: Path) -> None:
    for command in ("run", "retry", "report"):
        names = [option for parameter in GROUP.commands[command].params for option in parameter.opts]
        assert "--report" in names
        assert "--to" not in names
    assert cli("report", "--report", "page.html").code == 0
    assert (fleet.parent / "page.html").is_file()


@pytest.mark.parametrize("command", COMMANDS)
def test_the_short_help_of_each_command_is_a_whole_sentence(command: str) -> None:
    assert GROUP.commands[command].get_short_help_str(64).endswith(".")
    assert not GROUP.commands[command].get_short_help_str(64).endswith("...")


def test_a_plan_lists_a_failed_customer_as_failed_only(cli: Cli, fleet: Path) -> None:
    plan = json.loads(cli("run", fleet, "--plan", "--json").out)
    assert (plan["done"], plan["failed"]) == (["acme"], ["cafe"])
    assert sorted(plan["parked"]) == ["bolt", "dora", "emil"]
    assert "1 delivered already, 1 failed already" in cli("run", fleet, "--plan").out


def test_review_explains_each_key_and_prints_commands_for_open_decisions(
    cli: Cli, fleet: Path, simulator: Simulator
) -> None:
    with Terminal(["review", "bolt"], fleet.parent, columns=COLUMNS, VERN_API_KEY=KEY) as terminal:
        terminal.wait_for("[q]uit: ")
        for explanation in ("  r  send a rejection", "  s  send nothing", "  q  send nothing"):
            assert explanation in terminal.text
        assert "  a  " not in terminal.text
        assert "  asyncmig review bolt --approve --allow-destructive\n" in terminal.text
        terminal.type("?\n")
        terminal.wait_for("  r  send a rejection")
        terminal.type("q\n")
        assert terminal.end() == 5
    assert "Still parked: bolt. To decide later:\n  asyncmig review bolt\n" in terminal.text
    printed = cli("review", "bolt").out
    commands = [line.split()[1:] for line in printed.splitlines() if line.startswith("    asyncmig ")]
    assert [("--approve" in each, "--reject" in each, "--answer" in each) for each in commands] == [
        (True, False, False),
        (True, False, True),
        (False, True, False),
    ]
    assert cli(*commands[1]).code == 0
    assert "approved" in cli("show", "bolt").out or "approve" in cli("show", "bolt").out


def test_the_pace_of_sim_determines_the_duration_of_imports(
    tmp_path: Path, cli: Cli, customers: Customers, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds: list[float] = []
    for pace in ("0.1", "50"):
        command = [sys.executable, "-m", "asyncmig", "sim", "--speed", "600", "--pace", pace, "--json"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as served:
            assert served.stdout is not None
            reach = json.loads(served.stdout.readline())
            monkeypatch.setenv("VERN_API_KEY", reach["api_key"])
            folder = ("--journal", f"{pace}.db", "--out", f"out-{pace}")
            arguments = ("--speed", 600, "--base-url", reach["base_url"], *folder)
            cli("run", customers(**{f"c-{pace.replace('.', '-')}": GOOD}), *arguments)
            served.terminate()
            verdict = json.loads(served.stdout.readline())
            assert verdict["requests"] > 0
        report = json.loads((tmp_path / f"out-{pace}/report.json").read_text(encoding="utf-8"))
        seconds.append(report["customers"][0]["seconds"])
    assert seconds[0] < seconds[1]


@pytest.mark.looptime
async def test_the_live_view_is_cut_only_between_words() -> None:
    out, names = io.StringIO(), [f"customer-{n:03}" for n in range(5)]
    console = Console(file=out, width=COLUMNS, force_terminal=True, no_color=True)
    session = Session("key", "http://127.0.0.1:9/api/v1")
    progress = LiveView(session, console, dict.fromkeys(names, 1), Settings(), Display())
    failure = {
        "endpoint": "PUT {upload_url}",
        "attempt": 3,
        "attempts": 8,
        "status": 403,
        "error": "denied " * 30,
    }
    with progress.following():
        for name in names:
            session.events.emit(
                MigrationChanged(at=0.0, external_id=name, step="uploading", detail="contacts.csv")
            )
            session.events.emit(AttemptFailed(at=0.0, external_id=name, **failure))  # type: ignore[arg-type]
        await asyncio.sleep(1.0)
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue()).replace("\r", "\n").splitlines()
    cut = [line for line in lines if line.endswith("…")]
    assert cut
    assert max(map(len, lines)) <= COLUMNS
    words = (
        f"denied … PUT {{upload_url}} answered 403 (attempt 3 of 8; tried again): {' '.join(names)}".split()
    )
    assert {line.split()[-2].rstrip(":,") for line in cut} <= {word.rstrip(":,") for word in words}


def test_commands_validate_api_and_the_generation_in_the_journal_has_priority(
    cli: Cli, fleet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    company = json.loads(cli("show", "acme", "--json").out)["ids"]["company"]
    for command in (["check", fleet], ["doctor"], ["adopt", "zoe", company]):
        result = cli(*command, "--api", "nonsense")
        assert (result.code, "known are: " in result.err) == (2, True), command
    monkeypatch.setenv("ASYNCMIG_API", "nonsense")
    assert "known are: " in cli("doctor").err
    assert "known are: " not in cli("adopt", "acme", company).err
