"""`--json`: the events of a run for programs, one JSON object per line (NDJSON).

Each line has `schema` (2), `type`, `time` (wall clock, ISO 8601 in UTC) and `at` (seconds since the start of the
command, on the loop's clock). The first line is `Begun`, the last `Ended`. Between them are the events of the
session, with the names of their classes, and an `Outcome` per customer with the fields of `report.json`. Later
versions may add fields and types.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import cast, final

import msgspec

from asyncmig.cli.output import SCHEMA, print_line
from asyncmig.customers.status import CustomerStatus
from asyncmig.events import Event, RequestDone, RequestSent

__all__ = ["EventPrinter", "wall_clock"]

_TIMES = ("at", "until")


def wall_clock() -> str:
    """Return the wall-clock time, ISO 8601 in UTC with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@final
class EventPrinter:
    """Prints each event when it happens, until stdout is closed."""

    __slots__ = ("_abandoned", "_clock", "_epoch", "_read", "_requests", "_wall")

    def __init__(
        self,
        *,
        clock: Callable[[], float],
        wall: Callable[[], str] = wall_clock,
        requests: bool = False,
        abandoned: Callable[[], None],
    ) -> None:
        """`clock`: the loop's clock. `wall`: returns the wall-clock time. `requests`: also print each request.

        `abandoned` is called once, when stdout cannot be written.
        """
        self._clock, self._wall, self._requests, self._abandoned = clock, wall, requests, abandoned
        self._epoch, self._read = clock(), True

    def begin(self, customers: int) -> None:
        """Print the first line."""
        self._write("Begun", {"version": version("asyncmig"), "customers": customers})

    def note(self, event: Event) -> None:
        """Print an event."""
        if not self._requests and isinstance(event, RequestSent | RequestDone):
            return
        fields = cast("dict[str, object]", msgspec.to_builtins(event))
        if "company_id" in fields:
            ids = {kind: fields.pop(f"{kind}_id", None) for kind in ("company", "run")}
            fields["ids"] = {kind: each for kind, each in ids.items() if each}
        self._write(str(fields.pop("type")), fields)

    def outcome(self, row: CustomerStatus) -> None:
        """Print how one customer ended."""
        self._write("Outcome", cast("dict[str, object]", msgspec.to_builtins(row)))

    def end(self, customers: Sequence[CustomerStatus], *, exit_code: int, reason: str | None) -> None:
        """Print the last line."""
        outcomes = Counter(customer.outcome for customer in customers)
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
        except OSError:  # a stdout that is not guarded
            self._read = False
            self._abandoned()
