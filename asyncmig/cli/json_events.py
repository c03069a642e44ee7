"""`--json`: what happens, as one JSON object a line, for programs.

Each has `schema` (1), `type`, `time` (wall-clock, ISO 8601 in UTC) and `at` (seconds since the command began, on the
loop's clock). The first is `Begun`, the last `Ended`; between them stand the events of the session under their own
names, and an `Outcome` for each customer, shaped as in `report.json`. Fields and types may be added.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import cast, final

import msgspec

from asyncmig.cli.output import print_line
from asyncmig.cli.report import CustomerRow
from asyncmig.events import Event, RequestDone, RequestSent

__all__ = ["SCHEMA", "EventPrinter", "wall_clock"]

SCHEMA = 1
_TIMES = ("at", "until")


def wall_clock() -> str:
    """Return the time of day as ISO 8601 in UTC, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@final
class EventPrinter:
    """Prints events, each as soon as it happens, until nobody reads them any more."""

    __slots__ = ("_abandoned", "_clock", "_epoch", "_read", "_requests", "_wall")

    def __init__(
        self,
        *,
        clock: Callable[[], float],
        wall: Callable[[], str] = wall_clock,
        requests: bool = False,
        abandoned: Callable[[], None],
    ) -> None:
        """`clock`: the loop's; `wall`: the time of day. `requests`: write each of them, too.

        `abandoned` is called once, when whoever read the lines has gone away.
        """
        self._clock, self._wall, self._requests, self._abandoned = clock, wall, requests, abandoned
        self._epoch, self._read = clock(), True

    def begin(self, customers: int) -> None:
        """Write the first line."""
        self._write("Begun", {"version": version("asyncmig"), "customers": customers})

    def note(self, event: Event) -> None:
        """Write an event."""
        if not self._requests and isinstance(event, RequestSent | RequestDone):
            return
        fields = cast("dict[str, object]", msgspec.to_builtins(event))
        self._write(str(fields.pop("type")), fields)

    def outcome(self, row: CustomerRow) -> None:
        """Write how one customer ended."""
        self._write("Outcome", cast("dict[str, object]", msgspec.to_builtins(row)))

    def end(self, companies: Sequence[CustomerRow], *, exit_code: int, reason: str | None) -> None:
        """Write the last line."""
        outcomes = Counter(company.outcome for company in companies)
        self._write(
            "Ended", {"exit_code": exit_code, "reason": reason, "outcomes": dict(sorted(outcomes.items()))}
        )

    def _write(self, kind: str, fields: "dict[str, object]") -> None:
        if not self._read:
            return
        at = {"at": self._clock()} | {
            name: value for name in _TIMES if isinstance(value := fields.pop(name, None), float)
        }
        since = {name: round(value - self._epoch, 3) for name, value in at.items()}
        line = {"schema": SCHEMA, "type": kind, "time": self._wall(), **since, **fields}
        try:
            print_line(line)
        except OSError:  # of a stdout that is not guarded
            self._read = False
            self._abandoned()
