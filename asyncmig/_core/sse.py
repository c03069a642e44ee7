"""Decodes server-sent events: bytes go in as they arrive, complete frames come out.

Implements the parsing rules of the HTML standard, section 9.2.6, "Interpreting an event stream": lines end with LF,
CR or CRLF, comments and unknown fields are skipped, the values of several `data` fields are joined with LF, and a
frame that the end of the stream cuts off is dropped. The frames do not depend on where the bytes are cut.
"""

import re
from dataclasses import dataclass
from typing import final

__all__ = ["LARGEST_FRAME", "Frame", "SseDecoder"]

LARGEST_FRAME = 16 * 1024 * 1024
"""The largest frame, in bytes."""
_BOM = b"\xef\xbb\xbf"
_LINE_END = re.compile(rb"[\r\n]")


@final
@dataclass(frozen=True, slots=True)
class Frame:
    """One event of a stream."""

    event: str
    """`message` if the stream names none."""
    data: str


@final
class SseDecoder:
    """Decodes one stream. Between two calls of `feed` it keeps the frame that is incomplete."""

    __slots__ = ("_data", "_event", "_held", "_is_first", "_size", "_skips_lf")

    def __init__(self) -> None:
        self._held = bytearray()
        """The bytes of the current line so far."""
        self._skips_lf = False
        """Whether the last byte was a CR, so that an LF belongs to the same line end."""
        self._is_first, self._size = True, 0
        self._event = ""
        self._data: list[str] = []

    def feed(self, chunk: bytes) -> list[Frame]:
        """Return the frames that these bytes complete. Raises `ValueError` for a frame beyond `LARGEST_FRAME`."""
        if self._skips_lf and chunk:
            chunk, self._skips_lf = chunk.removeprefix(b"\n"), False
        searched = len(self._held)
        self._held += chunk
        frames: list[Frame] = []
        begin = 0
        while found := _LINE_END.search(self._held, max(begin, searched)):
            end = found.start()
            frame = self._line(bytes(self._held[begin:end]))
            if frame is not None:
                frames.append(frame)
            begin = end + 1
            if self._held[end] == 0x0D:
                if begin == len(self._held):
                    self._skips_lf = True
                elif self._held[begin] == 0x0A:
                    begin += 1
        del self._held[:begin]
        if self._size + len(self._held) > LARGEST_FRAME:
            raise ValueError(f"a frame has more than {LARGEST_FRAME} bytes")
        return frames

    def _line(self, line: bytes) -> Frame | None:
        if self._is_first:
            line, self._is_first = line.removeprefix(_BOM), False
        if not line:
            return self._dispatch()
        self._size += len(line)
        name, _, value = line.partition(b":")
        text = value.removeprefix(b" ").decode("utf-8", "replace")
        if name == b"event":
            self._event = text
        elif name == b"data":
            self._data.append(text)
        return None

    def _dispatch(self) -> Frame | None:
        """Return the frame that a blank line ends; None if it has no data."""
        event, data = self._event, self._data
        self._event, self._data, self._size = "", [], 0
        return Frame(event or "message", "\n".join(data)) if data else None
