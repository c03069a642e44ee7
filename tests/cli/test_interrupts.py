"""SIGINT, SIGTERM and SIGHUP stop the program gracefully, and the same command continues."""

import asyncio
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from rich.console import Console

from asyncmig.cli.interrupts import Interrupts
from asyncmig.session import Session
from asyncmig.simulator import Reply, Request

from .conftest import KEY, SPEED, Cli, Simulator


@pytest.fixture
def endless(simulator: Simulator) -> Simulator:
    """A server whose imports run until the test replaces `intercept`."""
    simulator.intercept = still_running
    return simulator


def still_running(request: Request) -> Reply | None:
    """Answer that the import runs if the request is a poll."""
    run = re.search(r"/imports/([^/?]+)$", request.path)
    if request.method != "GET" or run is None:
        return None
    return Reply(status=200, body=json.dumps({"run_id": run[1], "status": "running"}).encode())


def wait_for(imports: int, simulator: Simulator, process: "subprocess.Popen[str]") -> None:
    """Wait until this number of imports was started."""
    while simulator.count("POST /companies/{id}/imports") < imports:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


def started(args: Sequence[str], folder: Path) -> subprocess.Popen[str]:
    """Start the program in `folder`."""
    return subprocess.Popen(
        [sys.executable, "-m", "asyncmig", *args],
        cwd=folder,
        env={**os.environ, "VERN_API_KEY": KEY},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(autouse=True)
def default_sighup() -> Iterator[None]:
    """Restore the default action of SIGHUP. Under `nohup`, the started programs would inherit that it is ignored."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_the_run_gracefully_and_the_same_command_continues(
    endless: Simulator, cli: Cli, customers: Callable[..., Path], tmp_path: Path, number: signal.Signals
) -> None:
    manifest = customers(acme=b"Email,Name\na@x.de,A\n", bolt=b"Email,Name\nb@x.de,B\n")
    args = ["run", str(manifest), "--speed", str(SPEED), "--base-url", endless.base_url]
    process = started(args, tmp_path)
    wait_for(2, endless, process)
    process.send_signal(number)
    out, err = process.communicate()

    assert process.returncode == 75, err
    message = (
        "the terminal was closed (SIGHUP)"
        if number is signal.SIGHUP
        else "Interrupted: no new work is started"
    )
    assert message in err
    assert "Imports continue at the server. To continue here:\n  asyncmig run" in out
    rows = json.loads((tmp_path / "out/report.json").read_text(encoding="utf-8"))["customers"]
    assert [row["outcome"] for row in rows] == ["pending", "pending"]
    assert all(row["ids"]["run"] for row in rows)

    endless.intercept = lambda request: None
    again = cli(*args)
    assert again.code == 0, again.err
    starts = [entry for entry in endless.world.ledger.entries if entry.method == "POST"]
    assert sum(entry.endpoint.endswith("/imports") for entry in starts) == 2
    assert sum(entry.endpoint.endswith("/companies") for entry in starts) == 2


@pytest.mark.parametrize("ignored", [False, True], ids=["terminal", "nohup"])
def test_a_second_sighup_does_not_stop_at_once_and_an_ignored_sighup_stays_ignored(
    endless: Simulator, customers: Callable[..., Path], tmp_path: Path, ignored: bool
) -> None:
    manifest = customers(acme=b"Email,Name\na@x.de,A\n")
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    try:
        process = started(
            ["run", str(manifest), "--speed", str(SPEED), "--base-url", endless.base_url], tmp_path
        )
    finally:
        signal.signal(signal.SIGHUP, before)
    wait_for(1, endless, process)
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM if ignored else signal.SIGHUP)
    _, err = process.communicate()
    assert process.returncode == 75, err
    assert ("SIGHUP" in err) is not ignored
    assert "Stopping at once" not in err
    rows = json.loads((tmp_path / "out/report.json").read_text(encoding="utf-8"))["customers"]
    assert [row["outcome"] for row in rows] == ["pending"]


@pytest.mark.looptime
async def test_a_second_interrupt_cancels_at_once() -> None:
    output = io.StringIO()
    session = Session(KEY, "http://127.0.0.1:9/api/v1")
    with Interrupts(session, Console(file=output)) as interrupts:
        loop = asyncio.get_running_loop()
        loop.call_later(1.0, interrupts.interrupt)
        loop.call_later(2.0, interrupts.interrupt)
        loop.call_later(3.0, interrupts.interrupt)
        with pytest.raises(asyncio.CancelledError):
            await asyncio.sleep(1000.0)
        assert loop.time() == 2.0
        await asyncio.sleep(2.0)
    assert interrupts.count == 3
    assert "Stopping at once." in output.getvalue()


def test_a_run_stops_gracefully_when_the_reader_of_its_events_closes_stdout(
    endless: Simulator, customers: Callable[..., Path], tmp_path: Path
) -> None:
    manifest = customers(acme=b"Email,Name\na@x.de,A\n", bolt=b"Email,Name\nb@x.de,B\n")
    args = ["run", str(manifest), "--json", "--speed", str(SPEED), "--base-url", endless.base_url]
    with started(args, tmp_path) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert json.loads(process.stdout.readline())["type"] == "Begun"
        process.stdout.close()
        err = process.stderr.read()
    assert process.returncode == 75, err
    assert "Ending early: stdout was closed by its reader" in err
    assert "BrokenPipe" not in err
    rows = json.loads((tmp_path / "out/report.json").read_text(encoding="utf-8"))["customers"]
    assert [row["outcome"] for row in rows] == ["pending", "pending"]
