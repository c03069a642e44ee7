"""A simulator and workers, each in its own process, and customers for them to migrate."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from asyncmig import Spec
from asyncmig.simulator import SOURCES

HERE = Path(__file__).parent
SOURCE = next(iter(SOURCES))


def customers(folder: Path, count: int, source: str = SOURCE) -> list[Spec]:
    """Write a file for each customer, and return the specs of all."""
    folder.mkdir(parents=True, exist_ok=True)
    specs: list[Spec] = []
    for number in range(count):
        path = folder / f"contacts-{number:04d}.csv"
        rows = "".join(f"p{n}@x{number}.org,A,B\n" for n in range(20))
        path.write_text(f"Email,First Name,Last Name\n{rows}", encoding="utf-8")
        name = f"c{number:04d}"
        specs.append(Spec(external_id=name, name=f"Customer {name}", source=source, files=(path,)))
    return specs


class Farm:
    """Starts and stops a simulator and workers. Their clocks run `speed` times as fast as real time."""

    def __init__(
        self,
        folder: Path,
        *,
        speed: float,
        queue: str,
        database: str,
        window: str,
        name: str,
        concurrency: int = 60,
        api: str = "companies",
        limits: str | None = None,
    ) -> None:
        self.folder, self.name, self._speed, self._api = folder, name, speed, api
        self._settings = {
            "queue": queue,
            "database": database,
            "window": window,
            "name": name,
            "to": str(folder / "out"),
            "concurrency": concurrency,
            "speed": speed,
            "api": api,
            "limits": limits,
        }
        self._environment = dict(os.environ)
        self.workers: list[subprocess.Popen[bytes]] = []
        self._log = (folder / "workers.log").open("ab")

    def __enter__(self) -> Self:
        command = [
            sys.executable,
            HERE / "simprocess.py",
            str(self._speed),
            self._api,
            self._settings["limits"] or "",
        ]
        self._simulator = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started = self._read_line()
        self.base_url, self.key = started["base_url"], started["key"]
        self._environment |= {"VERN_BASE_URL": self.base_url, "VERN_API_KEY": self.key}
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        for worker in self.workers:
            worker.kill()
            worker.wait()
        self._simulator.kill()
        self._simulator.communicate()
        self._log.close()

    def start(self, count: int = 1, *, clocks_off: Iterable[float] = ()) -> None:
        """Start `count` workers. `clocks_off`: by how many seconds the wall clocks of the first workers are wrong."""
        for off in [*clocks_off, *[0.0] * count][:count]:
            environment = {**self._environment, "WORKER": json.dumps({**self._settings, "off": off})}
            command = [sys.executable, HERE / "workerprocess.py"]
            self.workers.append(subprocess.Popen(command, env=environment, stderr=self._log))

    def launch(self, command: list[object], *, cwd: Path) -> None:
        """Start a worker with a command."""
        environment = {**self._environment, "PYTHONPATH": os.pathsep.join(sys.path)}
        self.workers.append(
            subprocess.Popen(command, env=environment, cwd=cwd, stderr=self._log)  # type: ignore[call-overload]
        )

    def pause_simulator(self) -> None:
        """Suspend the simulator. Requests that arrive before `resume_simulator` stay in flight."""
        self._simulator.send_signal(signal.SIGSTOP)

    def resume_simulator(self) -> None:
        self._simulator.send_signal(signal.SIGCONT)

    def kill(self, number: int) -> None:
        """Kill the worker with this index."""
        self.workers[number].kill()
        self.workers.pop(number).wait()

    def stop(self) -> list[int]:
        """Stop all workers, and return their exit codes in order."""
        for worker in self.workers:
            worker.send_signal(signal.SIGTERM)
        codes = [worker.wait() for worker in self.workers]
        self.workers.clear()
        return codes

    def verdict(self) -> dict[str, float]:
        """Return the verdict of the simulator's ledger."""
        assert self._simulator.stdin is not None
        self._simulator.stdin.write("\n")
        self._simulator.stdin.flush()
        return self._read_line()

    def log(self) -> str:
        return (self.folder / "workers.log").read_text(encoding="utf-8", errors="replace")

    def _read_line(self) -> dict[str, Any]:
        assert self._simulator.stdout is not None
        return json.loads(self._simulator.stdout.readline())
