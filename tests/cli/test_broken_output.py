"""If stdout or stderr cannot be written, a run stops gracefully, and no command prints a traceback."""

import json
import os
import pty
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from asyncmig.simulator.server.settings import RunDurations

from .conftest import KEY, SPEED, Cli, Simulator, serving

GOOD = b"Email,Name\na@x.de,A\n"
Customers = Callable[..., Path]


@pytest.fixture
def slow() -> Iterator[Simulator]:
    with serving(RunDurations(queued=1.0, base=150_000.0, per_row=0.0, sigma=0.0)) as simulator:
        yield simulator


def broken(how: str) -> int:
    """Return a descriptor that cannot be written."""
    if how == "full":
        return os.open("/dev/full", os.O_WRONLY)
    reading, writing = os.pipe()
    os.close(reading)
    return writing


def run(
    folder: Path, *args: object, encoding: str = "utf-8", **streams: int
) -> "subprocess.CompletedProcess[bytes]":
    """Run the program with some of its streams replaced; the others are captured."""
    try:
        return subprocess.run(
            [sys.executable, "-m", "asyncmig", *map(str, args)],
            cwd=folder,
            env={**os.environ, "VERN_API_KEY": KEY, "PYTHONIOENCODING": encoding},
            check=False,
            timeout=100,
            **{"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams},
        )
    finally:
        for descriptor in streams.values():
            os.close(descriptor)


def rows(folder: Path) -> list[dict[str, object]]:
    report = json.loads((folder / "out/report.json").read_text(encoding="utf-8"))
    return list(report["customers"])


@pytest.mark.parametrize(
    ("how", "stream", "options"),
    [
        ("full", "stdout", ["--json"]),
        ("pipe", "stdout", ["--json", "-v"]),
        ("full", "stderr", ["-v"]),
        ("pipe", "stderr", ["--json", "-v"]),
    ],
)
def test_a_run_exits_75_and_writes_the_report_when_a_stream_breaks(
    slow: Simulator, customers: Customers, tmp_path: Path, how: str, stream: str, options: list[str]
) -> None:
    manifest = customers(acme=GOOD, bolt=GOOD)
    arguments = ("run", manifest, *options, "--speed", SPEED, "--base-url", slow.base_url)
    ended = run(tmp_path, *arguments, **{stream: broken(how)})
    assert ended.returncode == 75, ended.stderr
    assert b"Traceback" not in (ended.stderr or b"")
    assert b"BrokenPipe" not in (ended.stderr or b"")
    assert [row["outcome"] for row in rows(tmp_path)] == ["pending", "pending"]
    assert all(row["error"] != "not finished" for row in rows(tmp_path))


@pytest.mark.parametrize(
    ("how", "stream", "options"),
    [
        ("full", "stdout", ["-v"]),
        ("pipe", "stdout", []),
        ("full", "stderr", ["-q"]),
        ("pipe", "stderr", ["-v"]),
    ],
)
def test_a_broken_stream_does_not_undo_results(
    simulator: Simulator, customers: Customers, tmp_path: Path, how: str, options: list[str], stream: str
) -> None:
    arguments = ("run", customers(acme=GOOD), *options, "--speed", SPEED, "--base-url", simulator.base_url)
    ended = run(tmp_path, *arguments, **{stream: broken(how)})
    (row,) = rows(tmp_path)
    assert ended.returncode == {"delivered": 0, "pending": 75}[str(row["outcome"])], ended.stderr
    assert row["error"] != "not finished"
    assert b"Traceback" not in (ended.stderr or b"") + (ended.stdout or b"")


def test_a_run_exits_75_when_the_file_of_events_cannot_grow(
    slow: Simulator, customers: Customers, tmp_path: Path
) -> None:
    arguments = ("run", customers(acme=GOOD), "--json", "--speed", str(SPEED), "--base-url", slow.base_url)
    with (tmp_path / "events.jsonl").open("wb") as events:
        events.write(b" " * 200_000)
        events.flush()
        process = subprocess.Popen(
            [sys.executable, "-m", "asyncmig", *map(str, arguments)],
            cwd=tmp_path,
            env={**os.environ, "VERN_API_KEY": KEY},
            stdout=events,
            stderr=subprocess.PIPE,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (200_300, 200_300)),
        )
        _, err = process.communicate(timeout=100)
    assert process.returncode == 75, err
    assert b"stdout cannot be written" in err
    assert b"Traceback" not in err


@pytest.mark.parametrize("closed", [">&-", "<&- >&- 2>&-"])
def test_a_run_succeeds_with_streams_that_are_closed_from_the_start(
    simulator: Simulator, customers: Customers, tmp_path: Path, closed: str
) -> None:
    manifest = customers(acme=GOOD)
    connection = f"--speed {SPEED} --base-url {simulator.base_url}"
    line = f"{sys.executable} -m asyncmig run {manifest} --json -v {connection}"
    ended = subprocess.run(
        ["sh", "-c", f"{line} {closed}"],
        cwd=tmp_path,
        env={**os.environ, "VERN_API_KEY": KEY},
        capture_output=True,
        check=False,
        timeout=100,
    )
    assert ended.returncode == 0, ended.stderr
    assert b"Traceback" not in ended.stderr
    assert (tmp_path / "out/acme/Contacts.csv").read_bytes() == b"Email,Name\r\na@x.de,A\r\n"


@pytest.mark.parametrize("encoding", ["ascii"])
def test_characters_that_a_stream_cannot_represent_are_escaped(
    simulator: Simulator, tmp_path: Path, encoding: str
) -> None:
    (tmp_path / "a.csv").write_bytes(GOOD)
    (tmp_path / "b.csv").write_bytes(b"Email,Name\na@x.de,Caf\xe9\n")
    lines = "external_id,name,source,files\na,Łódź · 株式会社,HubSpot,a.csv\nb,Ünï,HubSpot,b.csv\n"
    (tmp_path / "customers.csv").write_text(lines, encoding="utf-8")
    connection = ("--speed", SPEED, "--base-url", simulator.base_url)
    ended = run(tmp_path, "run", "customers.csv", "-v", *connection, encoding=encoding)
    assert ended.returncode == 3, ended.stderr
    assert b"Traceback" not in ended.stderr
    check = ["check", "customers.csv", "--json", "--base-url", simulator.base_url]
    for command in (["show", "a"], check):
        ended = run(tmp_path, *command, encoding=encoding)
        assert ended.returncode == 0, ended.stderr
        if "--json" in command:
            assert all(json.loads(line) for line in ended.stdout.decode(encoding).splitlines())


def test_a_run_ends_gracefully_when_its_terminal_disappears_without_a_signal(
    simulator: Simulator, customers: Customers, tmp_path: Path
) -> None:
    args = ["run", str(customers(acme=GOOD)), "--speed", str(SPEED), "--base-url", simulator.base_url]
    test_fd, program_fd = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "asyncmig", *args],
        cwd=tmp_path,
        env={**os.environ, "VERN_API_KEY": KEY, "TERM": "xterm-256color"},
        stdin=program_fd,
        stdout=program_fd,
        stderr=program_fd,
        start_new_session=True,
    )
    os.close(program_fd)
    deadline = time.perf_counter() + 20
    while not simulator.count("GET /sources") and time.perf_counter() < deadline:
        time.sleep(0.01)
    os.close(test_fd)
    code = process.wait(100)
    (row,) = rows(tmp_path)
    assert code == {"delivered": 0, "pending": 75}[str(row["outcome"])]
    assert row["error"] != "not finished"


@pytest.mark.parametrize("how", ["full", "pipe"])
@pytest.mark.parametrize(
    "command",
    [
        ["status"],
        ["check", "customers.csv", "--json"],
        ["sim"],
    ],
    ids=" ".join,
)
def test_other_commands_exit_74_without_a_traceback_when_they_cannot_print(
    cli: Cli, simulator: Simulator, customers: Customers, tmp_path: Path, command: list[str], how: str
) -> None:
    manifest = customers(acme=GOOD)
    connection = ("--speed", SPEED, "--base-url", simulator.base_url)
    if command[0] == "status":
        assert cli("run", manifest, *connection).code == 0
    if command[0] == "check":
        command = [*command, "--base-url", simulator.base_url]
    ended = run(tmp_path, *command, stdout=broken(how))
    assert ended.returncode == 74, ended.stderr
    assert b"Traceback" not in ended.stderr
    assert b"Exception" not in ended.stderr
