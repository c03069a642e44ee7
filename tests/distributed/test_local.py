"""Processes on one host share a window in a file. Some of them are killed or stopped."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from gateload import most_in_a_window

from asyncmig.distributed.budget_store import SharedBudget, SlotReport
from asyncmig.distributed.local import LocalWindow

WORK = """
import asyncio, json, sys, time
from functools import partial
from pathlib import Path
from asyncmig import Gate
from asyncmig.distributed.local import LocalWindow
from asyncmig.distributed.budget_store import SharedBudgets
from asyncmig.distributed.shared_dispatcher import SharedDispatcher

folder, count = Path(sys.argv[1]), int(sys.argv[2])

async def main():
    shared = SharedBudgets(window=LocalWindow(folder=folder), account="x", timeout=1.0)
    gate = Gate(limit=20, window=2.0, name="GET /x", dispatcher=partial(SharedDispatcher, shared=shared))
    for number in range(count):
        async with gate.slot() as slot:
            sent = time.monotonic()
            await asyncio.sleep(0.02)
            slot.answered(200)
            print(json.dumps([sent, time.monotonic()]), flush=True)
    await gate.aclose()

asyncio.run(main())
"""


def worker(folder: Path, count: int) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-c", WORK, str(folder), str(count)]
    # Without a buffer, because `communicate` would not return the lines that `readline` has buffered.
    return subprocess.Popen(command, stdout=subprocess.PIPE, bufsize=0)


def stop(process: "subprocess.Popen[bytes]", folder: Path) -> None:
    """Stop a process while it does not hold the lock.

    If it held the lock, the other processes would use their shares instead of the whole budget.
    """
    (path,) = folder.glob("*.budget")
    with path.open("rb") as file, suppress(ChildProcessError):  # the process may have ended
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.001)
        time.sleep(0.05)  # the process sends the request for which it has just taken a slot
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)


@pytest.mark.parametrize("fault", [None, signal.SIGKILL, signal.SIGSTOP])
def test_four_processes_stay_within_the_limit_when_one_is_killed_or_stopped(
    tmp_path: Path, fault: signal.Signals | None
) -> None:
    processes = [worker(tmp_path, 20) for _ in range(4)]
    assert processes[0].stdout is not None
    first = processes[0].stdout.readline()
    if fault is signal.SIGSTOP:
        stop(processes[0], tmp_path)
    elif fault is not None:
        processes[0].send_signal(fault)
    lines = [first] + [
        line for each in processes[1:] for line in each.communicate(timeout=100)[0].splitlines()
    ]
    if fault is signal.SIGSTOP:
        processes[0].send_signal(signal.SIGCONT)
    lines += processes[0].communicate(timeout=100)[0].splitlines()
    # A request arrives before its time-out, even if a stopped process reads the answer later.
    spans = [
        (sent, min(answered, sent + 1.0))
        for sent, answered in map(json.loads, filter(None, map(bytes.strip, lines)))
    ]
    assert most_in_a_window(spans, 2.0) <= 20
    assert len(spans) == 80 if fault is not signal.SIGKILL else len(spans) >= 61


async def test_a_hold_of_a_budget_set_applies_to_all_processes_but_not_to_its_single_budgets(
    tmp_path: Path,
) -> None:
    budgets = [SharedBudget(name, 9, 60.0) for name in ("reads", "writes")]
    one, other = (
        LocalWindow(folder=tmp_path).budgets(budgets, account="x", timeout=60.0, speed=1.0) for _ in range(2)
    )
    single = LocalWindow(folder=tmp_path).budgets(budgets[:1], account="x", timeout=60.0, speed=1.0)
    await one.exchange([[SlotReport("reads+writes", "held", 40.0)], []], None)
    held, _ = await other.exchange([[], []], "a")
    assert not held.granted
    assert held.wait == pytest.approx(40.0, abs=10.0)
    assert (await single.exchange([[]], "b"))[0].granted


def test_an_incomplete_file_of_a_killed_process_counts_as_a_full_window(tmp_path: Path) -> None:
    one = worker(tmp_path, 1)
    one.communicate(timeout=100)
    (path,) = tmp_path.glob("*.budget")
    path.write_bytes(path.read_bytes()[:50])
    began = time.monotonic()  # noqa: TID251 - the clock of another process
    line = worker(tmp_path, 1).communicate(timeout=100)[0]
    assert json.loads(line)[0] - began >= 1.5
