"""What the client of this generation keeps for a whole session: missing endpoints, decided parks."""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import final

__all__ = ["ClientState", "DecidedParks"]

_ECHO = 30.0
"""Seconds for which a reading may still show the park that was decided (contract: reads may lag)."""
_READS = 16
"""Readings that may show it even later, because an old run is read every 30 s, unless one shows something else."""
_FORGOTTEN = 3600.0
"""Seconds after which a run that nobody reads is forgotten."""


@final
class ClientState:
    """The state that all `Companies` objects and handles of one session share."""

    __slots__ = ("decided", "ends_lines", "has_archives")

    def __init__(self) -> None:
        self.has_archives: bool = True
        """False once the server has shown that it has no ZIP of all sheets."""
        self.ends_lines: bool = True
        """False once the server has shown that its sheets do not end with a line end."""
        self.decided: DecidedParks = DecidedParks()


@dataclass(slots=True)
class _Decided:
    mark: str
    at: float
    reads: int = 0


@final
class DecidedParks:
    """The last decided park of each run, for as long as a lagging read may still show it.

    A mark distinguishes a park from others of the same run. Kept by session: several handles may read the same run,
    and the handle that decided may be gone. Times are on the loop's clock.
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
        """Take a reading into account. `mark`: the park that it shows, or None."""
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
        """Return whether the park of `run` with this mark was decided so recently that a read may still show it."""
        decided = self._by_run.get(run)
        if decided is None or decided.mark != mark:
            return False
        return now < decided.at + _ECHO or decided.reads < _READS
