"""aiohttp's connection with two changes: it tolerates a 204 with a body, and its time-outs cost less.

It overrides private methods of aiohttp. The tests of the transport show when a new version of aiohttp breaks them.
"""

import asyncio
import re
from functools import partial
from typing import final

import aiohttp
from aiohttp.client_proto import ResponseHandler

__all__ = ["LARGEST_HEADER", "Connector"]

_BODY = re.compile(rb"\r\n(?:content-length:[ \t]*0*[1-9]|transfer-encoding:)", re.IGNORECASE)
"""Headers of a response that announce a body."""
_WITHOUT_BODY = re.compile(rb"HTTP/1\.[01] +(204|1[0-9]{2})(?![0-9])")
"""The first line of a response that should have no body: 204, or an interim response (1xx) before the final one."""
_WITH_BODY = re.compile(rb"HTTP/1\.[01] (?:20[0-35-9]|[345][0-9]{2}) ")
"""The first line of a response that may have a body, as servers usually write it: needs no further search."""
_STATUS_LINE = len(b"HTTP/1.1 204 ")
LARGEST_HEADER = 64 * 1024
"""The largest header of a response, in bytes."""


@final
class _Connection(ResponseHandler):
    """A connection that drops the body of a 204, and needs one timer for many bytes.

    Some storages send a body after a 204, against RFC 9110. aiohttp would parse it as the next response, and this
    request would fail.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._is_at_head, self._head = False, b""
        self._response_parser: object = None
        """aiohttp's parser of the present response."""
        self._silent_until: float | None = None
        """When the time-out between two bytes is over; None while no byte is expected."""

    def data_received(self, data: bytes) -> None:
        if self._response_parser is not self._parser:  # aiohttp makes a parser for each response
            self._response_parser, self._is_at_head, self._head = self._parser, True, b""
        if self._is_at_head:
            if not self._head and _WITH_BODY.match(data):
                self._is_at_head = False
            else:
                data = data[: len(data) - self._bytes_after_204(data)]
        super().data_received(data)

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        self._response_parser = None
        if self._read_timeout_handle is not None:
            self._read_timeout_handle.cancel()
            self._read_timeout_handle = None

    # aiohttp starts a new timer whenever bytes arrive. Here one timer checks when it fires whether bytes have
    # arrived.

    def _reschedule_timeout(self) -> None:
        if not self._read_timeout:
            self._drop_timeout()
            return
        at = self._silent_until = self._loop.time() + self._read_timeout
        timer = self._read_timeout_handle
        if timer is None or timer.when() > at:
            if timer is not None:
                timer.cancel()
            self._read_timeout_handle = self._loop.call_at(at, self._end_silence)

    def _drop_timeout(self) -> None:
        self._silent_until = None

    def _end_silence(self) -> None:
        self._read_timeout_handle, at = None, self._silent_until
        if at is None:
            return
        if at > self._loop.time():
            self._read_timeout_handle = self._loop.call_at(at, self._end_silence)
        else:
            self._on_read_timeout()

    def _bytes_after_204(self, data: bytes) -> int:
        """Return how many bytes at the end of `data`, the next bytes of a response, belong to the body of a 204."""
        at, self._head = max(0, len(self._head) - 3), self._head + data
        while found := _WITHOUT_BODY.match(self._head):
            end = self._head.find(b"\r\n\r\n", at) + 4
            if end < 4:
                break
            at, head, self._head = 0, self._head[:end], self._head[end:]
            if found[1] == b"204":
                if self._head or _BODY.search(head):
                    self.force_close()
                self._is_at_head = False
                return len(self._head)
        longest = LARGEST_HEADER if found else _STATUS_LINE
        self._is_at_head = len(self._head) < longest
        return 0


@final
class Connector(aiohttp.TCPConnector):
    """A connector that opens such connections. aiohttp has no public way to choose their class."""

    def __init__(self, *, limit: int, force_close: bool) -> None:
        super().__init__(limit=limit, force_close=force_close)  # pyright: ignore[reportUnknownMemberType]  # of aiohttp
        connection: type[ResponseHandler] = _Connection
        self._factory = partial(connection, loop=asyncio.get_running_loop())
