"""What a process sent in the last window, for the process after it.

An append-only file of a line for each request sent and each request ended, in wall-clock time and without
fsync: what the kernel has survives a SIGKILL, and after a power cut a minute has passed anyway. Several
processes may append to one file, and each starts from what all of them sent.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import TextIO, final

__all__ = ["RecentLog"]

_LARGEST = 256 * 1024
_KEPT = 900.0
"""Seconds of the loop's clock after which no window remembers a request."""


@final
class RecentLog:
    """Writes and reads such a file. `speed`: seconds of the loop's clock in a second of the wall-clock."""

    __slots__ = ("_file", "_path", "_speed")

    def __init__(self, path: Path, *, speed: float) -> None:
        self._path, self._speed = path, speed
        self._file: TextIO | None = None

    def ages(self) -> dict[str, list[float]]:
        """Return, by endpoint, how many of the loop's seconds ago requests ended; 0 for those that did not."""
        now = time.time()  # noqa: TID251 - it must mean the same to the next process
        ages: defaultdict[str, list[float]] = defaultdict(list)
        unanswered: Counter[str] = Counter()
        for kind, at, endpoint in self._lines():
            unanswered[endpoint] += 1 if kind == "sent" else -1
            if kind == "done":
                ages[endpoint].append(max(0.0, (now - at) * self._speed))
        for endpoint, count in unanswered.items():
            ages[endpoint].extend([0.0] * max(0, count))
        return dict(ages)

    def _lines(self) -> Iterable[tuple[str, float, str]]:
        try:
            text = self._path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return
        for line in text.splitlines():
            kind, _, rest = line.partition(" ")
            at, _, endpoint = rest.partition(" ")
            try:
                yield kind, float(at), endpoint
            except ValueError:
                continue  # the last line of a process that was killed

    def open(self) -> None:
        """Start appending; of a file that has grown large what is older than any window is dropped."""
        if self._path.exists() and self._path.stat().st_size > _LARGEST:
            oldest = time.time() - _KEPT / self._speed  # noqa: TID251 - as above
            young = [f"{kind} {at:.3f} {endpoint}\n" for kind, at, endpoint in self._lines() if at > oldest]
            with self._path.open(
                "r+", encoding="utf-8"
            ) as file:  # not another one: somebody may append to it
                file.writelines(young)
                file.truncate()
        self._file = self._path.open("a", buffering=1, encoding="utf-8")

    def note(self, kind: str, endpoint: str) -> None:
        """Append that a request was `sent`, or is `done`."""
        if self._file is not None:
            self._file.write(f"{kind} {time.time():.3f} {endpoint}\n")  # noqa: TID251 - as above

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
