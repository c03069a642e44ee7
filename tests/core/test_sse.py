"""Server-sent events: every form that the standard allows, split at any byte."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncmig._core.sse import LARGEST_FRAME, Frame, SseDecoder

STREAM = (
    '\ufeff: welcome\n\nevent: message\ndata: {"text":"Grüße, 世界 🎉"}\n\n'
    "event: status\r\ndata: one\r\ndata:two\r\ndata\r\n\r\n"
    ": ping\r\revent: preview\rdata:  padded\rretry: 10\rid: 7\r\r"
    "data: no name\n\nevent: nothing to say\n\nevent: done\ndata: {}\n\nevent: message\ndata: cut off\n"
).encode()
FRAMES = [
    Frame("message", '{"text":"Grüße, 世界 🎉"}'),
    Frame("status", "one\ntwo\n"),
    Frame("preview", " padded"),
    Frame("message", "no name"),
    Frame("done", "{}"),
]


def decode(*pieces: bytes) -> list[Frame]:
    decoder = SseDecoder()
    return [frame for piece in pieces for frame in decoder.feed(piece)]


def test_every_valid_form_is_decoded() -> None:
    assert decode(STREAM) == FRAMES


@given(cuts=st.lists(st.integers(0, len(STREAM)), max_size=12).map(sorted))
def test_any_split_of_the_bytes_gives_the_same_frames(cuts: list[int]) -> None:
    ends = [*cuts, len(STREAM)]
    assert decode(*(STREAM[a:b] for a, b in zip([0, *cuts], ends, strict=True))) == FRAMES


def test_one_byte_at_a_time_gives_the_same_frames() -> None:
    assert decode(*(bytes([byte]) for byte in STREAM)) == FRAMES


lines = st.sampled_from(["", "data: x", "data:", "event: a", ": c", "id: 1", "data: é", "nonsense"])


@given(
    parts=st.lists(st.tuples(lines, st.sampled_from(["\n", "\r", "\r\n"])), max_size=30),
    size=st.integers(1, 7),
)
def test_the_frames_of_any_lines_do_not_depend_on_the_split(parts: list[tuple[str, str]], size: int) -> None:
    stream = "".join(line + end for line, end in parts).encode()
    assert decode(*(stream[at : at + size] for at in range(0, len(stream), size))) == decode(stream)


def test_a_frame_without_an_end_is_refused() -> None:
    lines = [b"data: " + b"x" * 65536 + b"\n"] * (LARGEST_FRAME // 65536)
    with pytest.raises(ValueError, match="more than"):
        decode(*lines)
