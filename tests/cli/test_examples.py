"""The help of each command ends with an example, and the example works."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import Cli, Simulator
from .test_status import make_journal

FLAWED = b"Email,Name\na@x.de,A\nno,C\n"
WITH_JOURNAL = ("run", "config", "status", "show", "watch", "review", "report", "retry")
MAINTENANCE = ("journal backup", "journal compact", "journal forget")
WITHOUT_JOURNAL = ("adopt", "check", "demo", "doctor", "sim")


def example(cli: Cli, command: str) -> list[str]:
    text = " ".join(cli(*command.split(), "--help").out.split())
    found = re.search(r"Example: asyncmig (.*?)(?: \(|$)", text)
    assert found, text
    return shlex.split(found[1])


def test_every_command_has_an_example(cli: Cli) -> None:
    commands = listed(cli("--help").out)
    assert {*commands} == {*WITH_JOURNAL, *WITHOUT_JOURNAL, "journal"}
    assert {f"journal {command}" for command in listed(cli("journal", "--help").out)} == {*MAINTENANCE}
    for command in {*WITH_JOURNAL, *WITHOUT_JOURNAL, *MAINTENANCE}:
        assert " ".join(example(cli, command)).startswith(f"{command} ") or command == "sim"


def listed(text: str) -> list[str]:
    return re.findall(r"^  (\w+)", text.partition("Commands:")[2], re.MULTILINE)


def test_the_examples_work(
    cli: Cli,
    simulator: Simulator,
    customers: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("VERN_BASE_URL", simulator.base_url)
    monkeypatch.setenv("ASYNCMIG_SPEED", "60")
    customers(**{"acme-001": FLAWED})
    (tmp_path / "customers.toml").write_text("", encoding="utf-8")
    results = {command: cli(*example(cli, command)) for command in (*WITH_JOURNAL, *MAINTENANCE)}
    codes = {command: result.code for command, result in results.items()}
    assert codes == {
        "run": 5,
        "config": 0,
        "status": 0,
        "show": 0,
        "watch": 5,
        "review": 0,
        "report": 0,
        "retry": 0,
        **dict.fromkeys(MAINTENANCE, 0),
    }, results["review"]
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    make_journal(Path("fleet.db"))
    assert cli(*example(cli, "adopt")).code == 0
    assert cli(*example(cli, "demo"), "--customers", "4", "--speed", "200").code == 0
    assert Path("asyncmig-demo/report.html").is_file()


def test_the_program_prints_its_version_and_completions(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    assert re.fullmatch(r"asyncmig \d+\.\d+\.\d+\S*\n", cli("--version").out)
    monkeypatch.setenv("_ASYNCMIG_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "asyncmig re")
    monkeypatch.setenv("COMP_CWORD", "1")
    assert set(cli().out.split()) == {"report", "retry", "review"}


@pytest.mark.parametrize("columns", ["50", "66", "80"])
def test_help_does_not_break_words_at_hyphens(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    for command in ("run", "sim", "review"):
        text = cli(command, "--help").out
        assert re.findall(r"\S*\w-$", text, re.MULTILINE) == []
        assert "--cert-key" in text or "per-minute" in text
