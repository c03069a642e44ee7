"""Parks that were decided a moment ago: a read that lags may show them once more, and they are no new parks.

Kept for the session, not for a handle: several handles may read the same run, and a handle that decided may be gone.
"""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import final

__all__ = ["DecidedParks"]

_ECHO = 30.0
"""Seconds for which a reading may still show the park that was decided (contract: reads may lag)."""
_READS = 16
"""Readings that may show it even later, for an old run is read every 30 s; until one has shown something else."""
_FORGOTTEN = 3600.0
"""Seconds after which a run that nobody reads is forgotten."""


@dataclass(slots=True)
class _Decided:
    mark: str
    at: float
    reads: int = 0


@final
class DecidedParks:
    """Remembers for each run which park was decided last, until no reading can show it any more.

    A mark tells a park from others of the same run. Times are on the loop's clock.
    """

    __slots__ = ("_by_run",)

    def __init__(self) -> None:
        self._by_run: dict[Hashable, _Decided] = {}

    def add(self, run: Hashable, mark: str, *, at: float, now: float) -> None:
        """Remember that the park of `run` with this mark was decided at `at`."""
        for other in [each for each, decided in self._by_run.items() if decided.at + _FORGOTTEN <= now]:
            del self._by_run[other]
        self._by_run[run] = _Decided(mark, at)

    def saw(self, run: Hashable, mark: str | None, *, ended: bool) -> None:
        """Take note of a reading: the mark of the park that it shows, or None."""
        decided = self._by_run.get(run)
        if decided is None:
            return
        if ended:
            del self._by_run[run]
        elif decided.mark == mark:
            decided.reads += 1
        else:
            decided.reads = _READS

    def is_echo(self, run: Hashable, mark: str, *, now: float) -> bool:
        """Return whether the park of `run` with this mark was decided a moment ago."""
        decided = self._by_run.get(run)
        if decided is None or decided.mark != mark:
            return False
        return now < decided.at + _ECHO or decided.reads < _READS
