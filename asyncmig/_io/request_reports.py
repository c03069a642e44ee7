"""Counts the requests of a session, reports them as events, and reports a lost response to the gate."""

import asyncio
from collections import Counter
from types import TracebackType
from typing import Self, final

from asyncmig._core.retry import Doubt
from asyncmig._io.attempts import RetryableFailure
from asyncmig._io.call import Call
from asyncmig._io.failures import owner
from asyncmig._io.gate import Gate, Slot
from asyncmig._io.transport import Lost
from asyncmig.errors import NoAnswer
from asyncmig.events import Events, RequestDone, RequestSent, SlotAwaited

__all__ = ["RequestReports", "Sending"]

_LONG_WAIT = 60.0
"""The shortest wait for the limit, in seconds, that an event reports before it begins."""


@final
class RequestReports:
    """The number of requests of a session, and their events."""

    __slots__ = ("_events", "requests")

    def __init__(self, events: Events) -> None:
        self._events = events
        self.requests: Counter[tuple[str, str]] = Counter()
        """The number of requests sent, by endpoint key and lane name."""

    def long_wait(self, call: Call, gate: Gate) -> None:
        """Report that a request begins to wait, if the gate estimates more than a minute."""
        budget, seconds = gate.longest_wait(call.endpoint.lane)
        if seconds < _LONG_WAIT:
            return
        now, customer, is_known = asyncio.get_running_loop().time(), owner(), seconds < float("inf")
        self._events.emit(
            SlotAwaited(
                at=now,
                external_id=None if customer is None else customer.external_id,
                endpoint=call.endpoint.key,
                ids=call.ids,
                budget=budget,
                until=now + seconds if is_known else None,
                seconds=seconds if is_known else None,
            )
        )

    def sent(self, call: Call, waited: float, attempt: int) -> float | None:
        """Count a request that is sent now. Return the time if events report the request, otherwise None."""
        endpoint = call.endpoint
        self.requests[endpoint.counted_as] += 1
        if not self._events.wants_requests:
            return None
        now = asyncio.get_running_loop().time()
        self._events.emit(
            RequestSent(
                at=now,
                endpoint=endpoint.key,
                ids=call.ids,
                lane=endpoint.lane.name,
                attempt=attempt,
                waited=waited,
            )
        )
        return now

    def done(
        self, call: Call, waited: float, attempt: int, sent_at: float, status: int | None, error: str | None
    ) -> None:
        """Report that an attempt has ended whose beginning was reported at `sent_at`.

        `status`: None if no headers arrived. `error`: why no complete response arrived; None if it did.
        """
        now = asyncio.get_running_loop().time()
        self._events.emit(
            RequestDone(
                at=now,
                endpoint=call.endpoint.key,
                ids=call.ids,
                lane=call.endpoint.lane.name,
                attempt=attempt,
                waited=waited,
                seconds=now - sent_at,
                status=status,
                error=error,
            )
        )


@final
class Sending:
    """Reports one attempt as events. Its exit turns `Lost` into `RetryableFailure`.

    A request that cannot have arrived returns its slot.
    """

    __slots__ = ("_attempt", "_reports", "_sent_at", "call", "slot", "status")

    def __init__(
        self,
        reports: RequestReports,
        call: Call,
        slot: Slot,
        attempt: int,
    ) -> None:
        self._reports, self._attempt = reports, attempt
        self.call, self.slot = call, slot
        self.status: int | None = None
        """None until the headers arrive."""

    def __enter__(self) -> Self:
        self._sent_at = self._reports.sent(self.call, self.slot.waited, self._attempt)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        lost = exc if isinstance(exc, Lost) else None
        if lost is not None and not lost.sent:
            self.slot.unsent()
        trouble = None if lost is None else lost.reason
        if self._sent_at is not None:
            self._reports.done(
                self.call, self.slot.waited, self._attempt, self._sent_at, self.status, trouble
            )
        if lost is not None:
            raise RetryableFailure(
                NoAnswer(self.call.endpoint.method, self.call.endpoint.template, lost.reason),
                Doubt.MAYBE if lost.sent else Doubt.NOT_SENT,
                timed_out=lost.timed_out,
            ) from lost
