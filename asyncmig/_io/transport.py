"""The interface to the network: a transport sends one request and returns its response, within time-outs."""

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
    - `headers`: until the headers of the response are complete. It begins with the request or, if the request's body
      is streamed, at the end of the body.
    - `total`: until the whole response was read. It does not apply to uploads and downloads of files.
    - `stall`: the longest time without a byte. Live streams have a longer one (`Endpoint.quiet_for`).
    - `min_rate`: bytes per second. In every `rate_window` seconds, at least `min_rate * rate_window` bytes of a body
      must be transferred. The time in which this program produces or consumes the body does not count.

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
    """No complete response arrived. `sent` is False if the request cannot have arrived."""

    def __init__(self, reason: str, *, sent: bool, timed_out: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.sent = sent
        self.timed_out = timed_out


class Response(Protocol):
    """A response whose headers have arrived. Reading its body may raise `Lost`."""

    @property
    def status(self) -> int:
        """The HTTP status."""
        ...

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers of the response. Names can be given in any case."""
        ...

    def chunks(self) -> AsyncIterator[bytes]:
        """Yield the body in chunks. Raises `Lost` if it breaks off."""
        ...


class Transport(Protocol):
    """Sends requests, each once."""

    def exchange(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        body: Body | None,
        timeouts: Timeouts,
    ) -> AbstractAsyncContextManager[Response]:
        """Send a request once, and yield the response when its headers have arrived.

        Raises `Lost`. The exit of the block releases the connection.
        """
        ...

    async def aclose(self) -> None:
        """Close all connections. Nothing is sent afterwards."""
        ...
