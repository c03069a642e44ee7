"""Start tasks in the same order under every task factory, and run several whose error leaves ungrouped."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import TypeVar

import anyio

__all__ = ["finish_all", "run_all", "start_task"]

T = TypeVar("T")


def start_task(coroutine: Coroutine[object, object, T], *, name: str) -> "asyncio.Task[T]":
    """Return a task of the running loop that takes its first step after the caller's.

    `loop.create_task` does not promise that: with `asyncio.eager_task_factory` (Python 3.12) it runs the coroutine up
    to its first suspension before it returns. A coroutine that clears the attribute in which its caller keeps the
    task would clear it before the caller sets it. So the loop's task factory is not asked.
    """
    return asyncio.Task(coroutine, loop=asyncio.get_running_loop(), name=name)


async def run_all(work: Iterable[Callable[[], Awaitable[object]]]) -> None:
    """Run all of `work` at once, and wait until each has ended.

    If one raises, the others are cancelled, and that first error is raised itself.
    """
    failures: list[Exception] = []

    async def one(function: Callable[[], Awaitable[object]]) -> None:
        try:
            await function()
        except Exception as error:
            failures.append(error)
            group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        for function in work:
            group.start_soon(one, function)
    if failures:
        raise failures[0]


async def finish_all(work: Iterable[Callable[[], Coroutine[object, object, object]]]) -> None:
    """Run all of `work` at once, and wait until each has ended, also if others raise; then raise the first error.

    Cancelled, it cancels them all, and waits until they have ended.
    """
    tasks = [start_task(function(), name="finish") for function in work]
    try:
        await asyncio.gather(*tasks, return_exceptions=True)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in tasks:
        task.result()
