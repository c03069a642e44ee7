"""The interface to the network: what sends one request and returns its response, and the time-outs for that."""

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from typing import Protocol

from asyncmig._core.arguments import check_fields
from asyncmig.errors import InvalidInput

__all__ = ["Body", "Lost", "Response", "Timeouts", "Transport"]

Body = bytes | AsyncIterator[bytes]
"""A request body: bytes, or an async iterable of bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """Time-outs in seconds, and the slowest accepted transfer. None means no limit.

    - `connect`: until a connection is established.
    - `headers`: until the headers of the answer are complete, counted from the start of the request or, if its
      body is streamed, from the end of the body.
    - `total`: until the whole answer was read. Uploads and downloads of files have no total.
    - `stall`: the longest time without a byte. An endpoint may allow more (`Endpoint.stall_timeout`).
    - `min_rate`, in bytes per second: a body must move `min_rate * rate_window` bytes in every `rate_window` seconds.
      The time in which this program produces or consumes the body does not count.

    Raises `InvalidInput` for a value that is not greater than 0.
    """

    connect: float | None = 10.0
    headers: float | None = 60.0
    total: float | None = 60.0
    stall: float | None = 30.0
    min_rate: float | None = 100.0
    rate_window: float = 60.0

    def __post_init__(self) -> None:
        check_fields(self)
        for name in self.__slots__:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InvalidInput(name, value, "must be more than 0, or None for no limit")

    def streaming(self) -> "Timeouts":
        """Return a copy without `total`, because the time of a transfer depends on its size."""
        return replace(self, total=None)


class Lost(Exception):
    """No answer came, or only a part of it. `sent` is False if the request cannot have arrived."""

    def __init__(self, reason: str, *, sent: bool, timed_out: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.sent = sent
        self.timed_out = timed_out


class Response(Protocol):
    """An answer whose headers have arrived. Reading its body may raise `Lost`."""

    @property
    def status(self) -> int:
        """The HTTP status."""
        ...

    @property
    def headers(self) -> Mapping[str, str]:
        """The response headers; names in any case."""
        ...

    def chunks(self) -> AsyncIterator[bytes]:
        """Yield the body in chunks; raises `Lost` if it breaks off."""
        ...


class Transport(Protocol):
    """Sends one request, once."""

    def exchange(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        body: Body | None,
        timeouts: Timeouts,
    ) -> AbstractAsyncContextManager[Response]:
        """Send the request and yield the answer at its headers. Raises `Lost`. The exit closes what it opened."""
        ...

    async def aclose(self) -> None:
        """Close all connections; nothing is sent afterwards."""
        ...
