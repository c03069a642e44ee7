"""The program as a whole: help, demo, sim, and the error without the extra `cli`."""

import asyncio
import importlib.util
import json
import re
import signal
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

import asyncmig.__main__
from asyncmig.errors import AuthError, InvalidInput, NoAnswer
from asyncmig.simulator.companies.data import generate

from .conftest import Cli


@pytest.mark.parametrize("command", ["run", "demo", "sim"])
def test_help_ends_with_an_example(cli: Cli, command: str) -> None:
    result = cli(command, "--help")
    assert result.code == 0
    assert f"Example: asyncmig {command}" in result.out


def test_without_the_extra_the_program_prints_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec

    def without_typer(name: str) -> ModuleSpec | None:
        return None if name == "typer" else real(name)

    monkeypatch.setattr(asyncmig.__main__, "find_spec", without_typer)
    with pytest.raises(SystemExit) as caught:
        asyncmig.__main__.main()
    assert "pip install 'asyncmig[cli]'" in str(caught.value.code)


def test_the_library_does_not_import_modules_of_extras() -> None:
    extras = {"typer", "rich", "asyncmig.simulator"}
    code = f"import asyncmig.jobs.fleet, sys; sys.exit(bool({extras} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_demo_ends_as_planned_also_a_second_time_in_the_same_folder(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VERN_API_KEY")
    for seed in (1, 2):
        result = cli("demo", "--customers", "8", "--seed", seed, "--speed", "120")
        assert result.code == 0, result.out + result.err
        assert "all 8 customers ended as planned" in result.out
        assert "0 answered 429" in result.out
        report = json.loads((tmp_path / "asyncmig-demo/out/report.json").read_text(encoding="utf-8"))
        assert len(report["customers"]) == 8
        assert {company["outcome"] for company in report["customers"]} == {"delivered", "failed"}


def test_the_demo_of_the_generation_migrations_ends_as_planned(cli: Cli, tmp_path: Path) -> None:
    result = cli("demo", "--api", "migrations", "--customers", "6", "--speed", "120")
    assert result.code == 0, result.out + result.err
    assert "The documented limits allow one new customer an hour" in result.err
    assert "all 6 customers ended as planned: outcomes, reasons and row counts" in result.out
    assert "the rules in answers.toml answered" in result.out
    assert "no faults" in result.out
    assert (tmp_path / "asyncmig-demo/out/cust-0001/preview.html").is_file()
    refused = cli("demo", "--api", "other")
    assert (refused.code, "must be companies or migrations" in refused.err) == (2, True)


def test_the_demo_exits_1_if_results_differ_from_the_plan(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def generate_other_plan(folder: Path, *, customers: int, seed: int) -> object:
        generate(folder, customers=customers, seed=seed)
        return generate(folder.parent / "another", customers=customers, seed=seed + 1)

    monkeypatch.setattr("asyncmig.cli.demo.generate", generate_other_plan)
    result = cli("demo", "--customers", "5")
    assert result.code == 1
    assert "differences from the plan" in result.out


@pytest.mark.parametrize(
    ("errors", "code", "lines"),
    [
        ([NoAnswer("GET", "/x", "time-out"), AuthError("GET", "/x", 401, "no")], 4, 2),
        ([NoAnswer("GET", "/x", "time-out"), NoAnswer("GET", "/x", "time-out")], 75, 1),
        ([InvalidInput("out", "x", "is wrong"), ExceptionGroup("", [OSError(28, "full")])], 75, 2),
        ([InvalidInput("out", "x", "is wrong"), asyncio.CancelledError()], 2, 1),
        ([InvalidInput("out", "x", "is wrong"), KeyboardInterrupt()], 75, 0),
    ],
)
def test_errors_in_an_exception_group_are_printed_like_single_errors(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, errors: list[BaseException], code: int, lines: int
) -> None:
    def raise_all(*args: object, **kwargs: object) -> object:
        raise BaseExceptionGroup("unhandled errors in a TaskGroup", errors)

    monkeypatch.setattr("asyncmig.cli.doctor.examine", raise_all)
    result = cli("doctor")
    assert result.code == code
    assert result.err.count("Error: ") == lines


def test_the_demo_does_not_change_a_folder_that_it_did_not_create(cli: Cli, tmp_path: Path) -> None:
    mine = tmp_path / "mine/out/thesis.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("years of work", encoding="utf-8")
    result = cli("demo", "--out", "mine")
    assert result.code == 2
    assert "was not written by a demo" in result.err
    assert mine.read_text(encoding="utf-8") == "years of work"


def test_run_works_with_the_variables_that_sim_prints(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate(tmp_path, customers=5, seed=3)
    process = subprocess.Popen(
        [sys.executable, "-m", "asyncmig", "sim", "--speed", "60"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    match = re.fullmatch(r"export VERN_BASE_URL=(http://127\.0\.0\.1:\d+/api/v1) VERN_API_KEY=(\S+)\n", line)
    assert match, line
    monkeypatch.setenv("VERN_BASE_URL", match[1])
    monkeypatch.setenv("VERN_API_KEY", match[2])
    result = cli("run", "customers.csv", "--speed", "60", "--decide", "approve")
    process.send_signal(signal.SIGINT)
    _, printed = process.communicate(timeout=60)
    assert result.code == 3, result.err
    assert process.returncode == 0
    assert re.search(r"\d+ requests received, 0 of them over the limit", printed), printed
