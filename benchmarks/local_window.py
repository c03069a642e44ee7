"""Processes on one host that share a window in files (`shared="local"`): 600 calls of one process, and of four.

    python benchmarks/local_window.py                 # takes about two minutes
    python benchmarks/local_window.py --speed 20      # a slower clock, for a machine with few cores

Each call charges two budgets of 100 a minute. The seconds are measured on the clock of the event loop, from the
first request to the last answer. The refusals are those of a server with a sliding window that counts each request
at its latest possible arrival. No other server with this limit is stricter. In two of the runs with four processes,
one process is killed, or is stopped for two minutes and then continued.
"""

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque

LIMIT, WINDOW, CALLS, TIMEOUT = 100, 60.0, 600, 5.0
WORK = """
import asyncio, json, sys
from functools import partial
from pathlib import Path
from asyncmig import Gate
from asyncmig._io.gate import joined_gate
from asyncmig.distributed.local import LocalWindow
from asyncmig.distributed.budget_store import SharedBudgets
from asyncmig.distributed.shared_dispatcher import SharedDispatcher
from asyncmig.distributed.shared_set import SharedBudgetSet
from asyncmig.simulator import fast_loop

folder, count, speed, limit, window, timeout = Path(sys.argv[1]), int(sys.argv[2]), *map(float, sys.argv[3:])

async def main():
    loop = asyncio.get_running_loop()
    shared = SharedBudgets(window=LocalWindow(folder=folder), account="x", timeout=timeout)
    make = partial(SharedDispatcher, shared=shared)
    gates = [Gate(limit=int(limit), window=window, name=name, dispatcher=make) for name in ("reads", "writes")]
    both = joined_gate(gates, budget_set=partial(SharedBudgetSet, shared=shared))
    async def call():
        async with both.slot() as slot:
            sent = loop.time()
            await asyncio.sleep(0.2)
            slot.answered(200)
            print(json.dumps([sent, loop.time()]), flush=True)
    await asyncio.gather(*(call() for _ in range(count)))
    await both.aclose()
    await asyncio.gather(*(gate.aclose() for gate in gates))

with asyncio.Runner(loop_factory=lambda: fast_loop(speed)) as runner:
    runner.run(main())
"""


def measure(processes: int, speed: float, harm: signal.Signals | None = None) -> tuple[float, int, int]:
    """Return the seconds, the number of answered calls, and the number of refusals."""
    with tempfile.TemporaryDirectory() as folder:
        settings = [str(each) for each in (speed, LIMIT, WINDOW, TIMEOUT)]
        command = [sys.executable, "-c", WORK, folder, str(CALLS // processes), *settings]
        children = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(processes)]
        first = children[0]
        assert first.stdout is not None
        lines = [first.stdout.readline()]
        if harm is not None:
            first.send_signal(harm)
        if harm is signal.SIGSTOP:
            time.sleep(120.0 / speed)
            first.send_signal(signal.SIGCONT)
        for child in children:
            lines += child.communicate()[0].splitlines()
    spans = [json.loads(line) for line in lines if line.strip()]
    # A stopped process reads its answers late, but its requests arrived within the time-out.
    spans = [(sent, min(answered, sent + TIMEOUT)) for sent, answered in spans]
    return (
        max(answered for _, answered in spans) - min(sent for sent, _ in spans),
        len(spans),
        refusals(spans),
    )


def refusals(spans: list[tuple[float, float]]) -> int:
    """Return how many requests a sliding window refuses if each request arrives when it is answered."""
    seen: deque[float] = deque()
    refused = 0
    for at in sorted(answered for _, answered in spans):
        while seen and seen[0] <= at - WINDOW:
            seen.popleft()
        if len(seen) < LIMIT:
            seen.append(at)
        else:
            refused += 1
    return refused


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--speed", type=float, default=20.0, help="seconds of the clock in a real one")
    speed = parser.parse_args().speed
    alone, _, refused = measure(1, speed)
    print(f"one process                    {alone:6.1f} s  1.00  {refused} refused")
    for name, harm in (("", None), (", one killed", signal.SIGKILL), (", one stopped", signal.SIGSTOP)):
        seconds, answered, refused = measure(4, speed, harm)
        print(
            f"four processes{name:<15}  {seconds:6.1f} s  {seconds / alone:.2f}  {refused} refused of {answered}"
        )


if __name__ == "__main__":
    main()
