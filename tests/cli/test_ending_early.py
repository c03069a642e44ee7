"""`--max-duration` and `--stop-after-failures` end a run as one Ctrl-C does, and print the reason."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from asyncmig._core.duration import Duration, parse_duration
from asyncmig.errors import InvalidInput

from .conftest import KEY, SPEED, Cli, Simulator
from .test_interrupts import still_running

GOOD, LATIN = b"Email,Name\na@x.de,A\n", b"Email,Name\na@x.de,Caf\xe9\n"
Customers = Callable[..., Path]


def test_max_duration_ends_the_run_with_exit_code_75(
    cli: Cli, customers: Customers, simulator: Simulator, tmp_path: Path
) -> None:
    simulator.intercept = still_running
    arguments = ("run", customers(acme=GOOD), "--speed", SPEED, "--base-url", simulator.base_url)
    result = cli(*arguments, "--max-duration", "2m")
    assert result.code == 75
    assert "Ending early: it took 2m, as long as --max-duration allows." in result.err
    assert "Not finished (it took 2m, as long as --max-duration allows)" in result.out
    assert "--max-duration 2m" in result.out  # in the command that continues
    row = json.loads((tmp_path / "out/report.json").read_text(encoding="utf-8"))["customers"][0]
    assert row["outcome"] == "pending"
    assert row["ids"]["run"]
    simulator.intercept = lambda request: None
    assert cli(*arguments).code == 0


def test_stop_after_failures_exits_75_and_does_not_count_earlier_failures(
    cli: Cli, customers: Customers, simulator: Simulator
) -> None:
    manifest = customers(bad=LATIN, good=GOOD, worse=LATIN)
    arguments = ("run", manifest, "--speed", SPEED, "--base-url", simulator.base_url)
    result = cli(*arguments, "--concurrency", "1", "--stop-after-failures", "1")
    assert result.code == 75
    assert "1 customer failed, as many as --stop-after-failures allows" in result.err
    assert "Not finished (1 customer failed, as many as --stop-after-failures allows)" in result.out
    again = cli(*arguments, "--concurrency", "1", "--stop-after-failures", "2")
    assert again.code == 3
    assert "Ending early" not in again.err


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("90", 90), ("45m", 2700), ("1h30m", 5400), (" 2H ", 7200), ("1.5s", 1.5)],
)
def test_parse_duration_accepts_valid_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == Duration(seconds)
    assert parse_duration(str(Duration(seconds))) == Duration(seconds)


@pytest.mark.parametrize("text", ["", "0s", "m", "30m1h", "-1s", "1d"])
def test_parse_duration_rejects_other_texts(text: str) -> None:
    with pytest.raises(InvalidInput, match="duration"):
        parse_duration(text)


def test_a_summary_that_cannot_be_printed_does_not_change_the_exit_code(
    simulator: Simulator, customers: Customers, tmp_path: Path
) -> None:
    arguments = ["run", customers(acme=GOOD), "--speed", str(SPEED), "--base-url", simulator.base_url]
    with Path("/dev/full").open("wb") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "asyncmig", *arguments],
            cwd=tmp_path,
            env={**os.environ, "VERN_API_KEY": KEY},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert ended.returncode == 0, ended.stderr
    assert "the summary could not be printed" in ended.stderr
