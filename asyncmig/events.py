"""What happens inside a session, as frozen records for whoever wants to watch.

    with session.events.subscribe(print):
        ...

A subscriber that raises is reported to the log and dropped: it can break no call.
"""

import logging
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import final

import msgspec

__all__ = ["Event", "Events", "MigrationChanged", "RequestDone", "RequestSent", "RunChanged", "RunStalled"]

_log = logging.getLogger("asyncmig")


class RequestSent(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The limit let a request go, and it goes."""

    endpoint: str
    """Method and route template."""
    lane: str
    attempt: int


class RequestDone(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """One attempt of one request ended. Times are seconds on the loop's clock."""

    endpoint: str
    """Method and route template."""
    lane: str
    attempt: int
    seconds: float
    """From the send to the answer's end, or to the failure."""
    status: int | None
    """None: no answer came."""
    error: str | None = None


class RunChanged(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A run was read and had a new status or a new progress text."""

    company_id: str
    run_id: str
    status: str
    progress: str | None


class RunStalled(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A run has not ended for longer than any should take; it is polled on."""

    company_id: str
    run_id: str
    seconds: float


class MigrationChanged(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """One customer's migration came to a step."""

    external_id: str
    step: str
    """checking, creating, uploading, starting, running, parked, deciding, downloading, or an outcome."""
    detail: str = ""


Event = RequestSent | RequestDone | RunChanged | RunStalled | MigrationChanged


@final
class Events:
    """Hands each event to every subscriber, in order, in the task where it happened."""

    __slots__ = ("_subscribers",)

    def __init__(self) -> None:
        self._subscribers: list[Callable[[Event], None]] = []

    @contextmanager
    def subscribe(self, subscriber: Callable[[Event], None]) -> Generator[None]:
        """Call `subscriber` with each event until the block ends. It must not block."""
        self._subscribers.append(subscriber)
        try:
            yield
        finally:
            if subscriber in self._subscribers:
                self._subscribers.remove(subscriber)

    def emit(self, event: Event) -> None:
        """Tell every subscriber."""
        for subscriber in tuple(self._subscribers):
            try:
                subscriber(event)
            except Exception:
                _log.exception("a subscriber of events failed and is dropped")
                self._subscribers.remove(subscriber)
