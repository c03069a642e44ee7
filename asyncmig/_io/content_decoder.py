"""Decompresses a body while it streams, in pieces of bounded size, and detects a body that was cut short.

aiohttp can decompress, too, but it accepts a gzip body that ends early. Downloads must detect that a proxy has cut a
body short.
"""

import zlib
from collections.abc import Iterable, Iterator
from typing import final

__all__ = ["ACCEPTED", "ContentDecoder", "Undecodable", "decoder_for"]

ACCEPTED = "gzip"
"""The `Accept-Encoding` of requests."""
_PIECE = 256 * 1024
_WBITS = {"gzip": 16 + zlib.MAX_WBITS, "x-gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}


class Undecodable(Exception):
    """The body does not match its `Content-Encoding`, or ends early."""


def decoder_for(headers: Iterable[str]) -> "ContentDecoder | None":
    """Return the decoder for the values of `Content-Encoding`; None if there is nothing to decode.

    Raises `Undecodable` for an unknown encoding and for several encodings, because no request accepts them.
    """
    codings = [name.strip().lower() for value in headers for name in value.split(",")]
    codings = [name for name in codings if name not in ("", "identity")]
    if not codings:
        return None
    if len(codings) > 1:
        raise Undecodable(f"the body is encoded {len(codings)} times, which the request did not accept")
    return ContentDecoder(codings[0])


@final
class ContentDecoder:
    """Decodes one body with the given `Content-Encoding`. Raises `Undecodable` for an unknown encoding."""

    __slots__ = ("_begun", "_wbits", "_zlib")

    def __init__(self, coding: str) -> None:
        if coding not in _WBITS:
            raise Undecodable(f"the body is encoded as {coding[:40]!r}, which the request did not accept")
        self._wbits = _WBITS[coding]
        self._begun = False
        self._zlib = zlib.decompressobj(self._wbits)

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield the decompressed bytes, at most 256 KiB at a time, so that a bomb does not fill the memory."""
        if not self._begun and data:
            self._begun = True
            if self._wbits == zlib.MAX_WBITS and data[0] & 0x0F != 8:
                self._zlib = zlib.decompressobj(
                    -zlib.MAX_WBITS
                )  # some servers send deflate without its header
        more = bool(data)
        while more:
            if self._zlib.eof:  # gzip may have several members, and zeros as padding
                data = data.lstrip(b"\0")
                if not data:
                    return
                self._zlib = zlib.decompressobj(self._wbits)
            try:
                piece = self._zlib.decompress(data, _PIECE)
            except zlib.error as error:
                raise Undecodable(f"the body cannot be decompressed ({error})") from error
            data = self._zlib.unused_data if self._zlib.eof else self._zlib.unconsumed_tail
            if piece:
                yield piece
            more = bool(data) or len(piece) == _PIECE

    def close(self) -> None:
        """Raise `Undecodable` if the body is incomplete."""
        if self._begun and not self._zlib.eof:
            raise Undecodable("the compressed body ends early")
