"""An event loop on which time runs faster: a minute passes in a second at `speed=60`.

Only the event loop changes: its `time()` runs `speed` times faster, and its selector sleeps `speed` times
shorter, so timers, time-outs and limiters of every library follow.
"""

import asyncio
import selectors
from typing import final

__all__ = ["fast_loop"]


@final
class _FastLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock runs `speed` times faster than the wall's."""

    def __init__(self, speed: float) -> None:
        self.speed = speed
        selector = selectors.DefaultSelector()
        select = selector.select

        def select_shorter(timeout: float | None = None) -> object:
            return select(None if timeout is None else timeout / speed)

        selector.select = select_shorter  # type: ignore[method-assign, assignment]
        super().__init__(selector)

    def time(self) -> float:
        return super().time() * self.speed


def fast_loop(speed: float) -> asyncio.AbstractEventLoop:
    """Return a new event loop whose clock runs `speed` times faster than the wall's.

    Raises `ValueError` unless `speed` is more than 0.
    """
    if not speed > 0:
        raise ValueError(f"speed={speed!r}: must be more than 0")
    return _FastLoop(speed)
