"""A loop on which waiting takes no time. All clocks of the process show the time of the loop."""

import asyncio
import selectors
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import TypeVar
from unittest import mock

from pyrate_limiter import clocks

__all__ = ["VirtualLoop", "run"]

T = TypeVar("T")
_TURN = 1e-6
"""Seconds of a turn of the loop: with a clock that does not advance, rounding lets some limiters wait without end."""


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop whose clock jumps to the next timer when no callback is ready."""

    def __init__(self) -> None:
        self.now = 1000.0
        selector = selectors.DefaultSelector()
        select = selector.select

        def jump(timeout: float | None = None) -> object:
            self.now += max(_TURN, timeout or 0.0)
            return select(0 if timeout is not None else None)

        selector.select = jump  # type: ignore[method-assign, assignment]
        super().__init__(selector)

    def time(self) -> float:
        return self.now


async def _in_place(function: Callable[..., T], *args: object) -> T:
    """Replace `asyncio.to_thread` by a direct call: a virtual clock does not wait for a thread."""
    return function(*args)


@contextmanager
def _clocks(loop: VirtualLoop) -> Iterator[None]:
    def seconds() -> float:
        return loop.now

    def nanoseconds() -> int:
        return int(loop.now * 1e9)

    with (
        mock.patch.object(time, "time", seconds),
        mock.patch.object(time, "monotonic", seconds),
        mock.patch.object(clocks, "monotonic_ns", nanoseconds),
        mock.patch.object(asyncio, "to_thread", _in_place),
    ):
        yield


def run(main: Coroutine[object, object, T]) -> T:
    """Run `main` on a new virtual loop."""
    loop = VirtualLoop()
    with _clocks(loop), asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(main)
