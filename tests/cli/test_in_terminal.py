"""The program in a terminal and in a pipe: live view, colours, and a typed Ctrl-C."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from asyncmig.simulator.server.settings import RunDurations

from .conftest import KEY, SPEED, Simulator, serving
from .terminal import Terminal
from .test_interrupts import still_running

Customers = Callable[..., Path]
GOOD = b"Email,Name\na@x.de,A\n"


@pytest.fixture
def slow() -> Iterator[Simulator]:
    with serving(RunDurations(queued=1.0, base=90.0, per_row=0.0, sigma=0.0)) as simulator:
        yield simulator


def arguments(simulator: Simulator, manifest: Path, *more: str) -> list[str]:
    return ["run", str(manifest), "--speed", str(SPEED), "--base-url", simulator.base_url, *more]


def piped(
    simulator: Simulator, manifest: Path, *more: str, **environment: str
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "asyncmig", *arguments(simulator, manifest, *more)],
        cwd=manifest.parent,
        env={**os.environ, "VERN_API_KEY": KEY, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_terminal_shows_progress_and_ctrl_c_stops_the_run_gracefully(
    simulator: Simulator, customers: Customers
) -> None:
    simulator.intercept = still_running
    manifest = customers(acme=GOOD, bolt=GOOD)
    with Terminal(arguments(simulator, manifest), manifest.parent, VERN_API_KEY=KEY) as terminal:
        terminal.wait_for("0 of 2 done")
        terminal.wait_for("2 running")
        terminal.wait_for("of the limit:")
        terminal.wait_for("acme  running")
        terminal.type("\x03")
        terminal.wait_for("Interrupted: no new work is started")
        assert terminal.end() == 75
    assert "To continue here:" in terminal.text
    assert "\x1b[" in terminal.raw


def test_no_color_disables_colours_in_a_terminal(slow: Simulator, customers: Customers) -> None:
    manifest = customers(acme=GOOD)
    with Terminal(arguments(slow, manifest), manifest.parent, VERN_API_KEY=KEY, NO_COLOR="1") as terminal:
        assert terminal.end() == 0
    assert "0 of 1 done" in terminal.text
    assert not {"\x1b[32m", "\x1b[36m"} & {terminal.raw[i : i + 5] for i in range(len(terminal.raw))}


def test_force_color_adds_colours_but_no_live_view_to_a_pipe(
    simulator: Simulator, customers: Customers
) -> None:
    manifest = customers(acme=GOOD)
    ended = piped(simulator, manifest, FORCE_COLOR="1")
    assert ended.returncode == 0
    assert "\x1b[32m" in ended.stderr
    assert not {"\x1b[2K", "\x1b[1A", "\x1b[?25l"} & {
        ended.stderr[i : i + n] for i in range(len(ended.stderr)) for n in (4, 6)
    }


def test_a_pipe_has_no_escapes_and_quiet_prints_nothing_on_success(
    simulator: Simulator, customers: Customers
) -> None:
    manifest = customers(acme=GOOD)
    verbose = piped(simulator, manifest, "-v")
    assert verbose.returncode == 0
    assert "\x1b" not in verbose.stdout + verbose.stderr
    for step in ("creating  acme", "uploading  acme  acme.csv", "completed  run "):
        assert step in verbose.stderr
    quiet = piped(simulator, manifest, "--quiet", "--journal", "again.db", "--out", "again")
    assert quiet.returncode == 6  # the new journal does not contain the result of the first create request
    assert "unknown  acme" in quiet.stderr
    silent = piped(simulator, manifest, "--quiet")
    assert (silent.returncode, silent.stdout, silent.stderr) == (0, "", "")
