"""Start background tasks in the same order under every task factory."""

import asyncio
from collections.abc import Coroutine
from typing import TypeVar

__all__ = ["start_task"]

T = TypeVar("T")


def start_task(coroutine: Coroutine[object, object, T], *, name: str) -> "asyncio.Task[T]":
    """Return a task of the running loop that takes its first step after the caller's.

    `loop.create_task` does not promise that: with `asyncio.eager_task_factory` (Python 3.12) it runs the coroutine up
    to its first suspension before it returns. A coroutine that clears the attribute in which its caller keeps the
    task would clear it before the caller sets it. So the loop's task factory is not asked.
    """
    return asyncio.Task(coroutine, loop=asyncio.get_running_loop(), name=name)
