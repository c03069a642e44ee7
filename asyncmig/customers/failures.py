"""The last failed attempt for a customer, as the journal stores it and as text for people."""

import asyncio
import time
from datetime import UTC, datetime

import msgspec

from asyncmig.events import AttemptFailed

__all__ = ["LastFailure", "wall_clock", "words_of"]


class LastFailure(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A failed attempt that was repeated: the first one of a step, or a later one that was reported."""

    at: float
    """Wall-clock time, in seconds."""
    endpoint: str
    """Method and route template."""
    status: int | None = None
    """None if no complete response arrived."""
    error: str = ""
    """The server's text, or the reason why there is none."""
    attempt: int = 1
    """The number of the attempt in the step, from 1."""
    attempts: int | None = None
    """The maximum number of attempts, if it is limited."""
    until: float | None = None
    """Wall-clock time until which the step is repeated, if its time is limited."""
    is_over: bool = False
    """Whether the migration has continued since."""

    @classmethod
    def of(cls, event: AttemptFailed, *, wall: float) -> "LastFailure":
        """Return the record of an event of the running loop. `wall`: the current wall-clock time in seconds."""
        loop = asyncio.get_running_loop()
        now, speed = loop.time(), float(getattr(loop, "speed", 1.0))
        return cls(
            at=wall - (now - event.at) / speed,
            endpoint=event.endpoint,
            status=event.status,
            error=event.error,
            attempt=event.attempt,
            attempts=event.attempts,
            until=None if event.until is None else wall + (event.until - now) / speed,
        )

    @property
    def words(self) -> str:
        """The failure in one line, for people. It contains unescaped text of the server."""
        answered = f" answered {self.status}" if self.status is not None else ""
        which = f"attempt {self.attempt}" + (f" of {self.attempts}" if self.attempts else "")
        if self.is_over:
            what = "the migration has continued since"
        elif self.until is not None:
            what = f"tried again until {clock(self.until)}"
        else:
            what = "tried again" if self.attempts else "tried again until it is answered"
        return f"{self.endpoint}{answered} ({which}; {what}): {self.error}"


def words_of(event: AttemptFailed) -> str:
    """Return an event of the running loop in one line, for people. It contains unescaped text of the server."""
    return LastFailure.of(event, wall=wall_clock()).words


def wall_clock() -> float:
    """Return the wall-clock time in seconds, because the journal outlives the loop's clock."""
    return time.time()  # noqa: TID251 - see above


def clock(wall: float) -> str:
    """Return a wall-clock time for people: the time of day in UTC."""
    return f"{datetime.fromtimestamp(wall, UTC):%H:%M:%S} UTC"
