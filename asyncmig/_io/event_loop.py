"""The event loop: guards against use on the wrong loop, and ways to start and end tasks."""

import asyncio
import copy
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from contextvars import Context
from itertools import islice
from typing import TYPE_CHECKING, TypeVar, final

import anyio

from asyncmig.errors import AsyncmigError, UsageError

__all__ = [
    "AsyncOnly",
    "LoopGuard",
    "finish_all",
    "gradually",
    "loop_speed",
    "run_all",
    "running_loop",
    "start_task",
]

_PER_TURN = 8
"""Tasks that are woken, started or cancelled together in one turn of the loop: each of them may then take its next
step in one turn, too."""


class AsyncOnly:
    """A base class that refuses `with`. Hidden from type checkers, which report such a `with` by themselves."""

    __slots__ = ()

    if not TYPE_CHECKING:

        def __enter__(self):
            what = type(self).__name__
            raise UsageError(
                f"a {what} is used with `async with`, not `with`: put it into a coroutine, "
                "`async def main(): ...`, and start that with `asyncio.run(main())`"
            )

        def __exit__(self, *exc_info): ...  # `with` looks for it before it enters


def running_loop(what: str, home: asyncio.AbstractEventLoop | None = None) -> asyncio.AbstractEventLoop:
    """Return the running loop; raise `UsageError` if there is none, or if it is not `home`."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        raise UsageError(
            f"a {what} is used inside a coroutine that asyncio runs: put the calls into "
            "`async def main(): ...`, and start that with `asyncio.run(main())`"
        ) from None
    if home is not None and loop is not home:
        raise UsageError(
            f"this {what} belongs to another event loop: make one in each loop, or hand the call over to "
            "that loop with `asyncio.run_coroutine_threadsafe(coroutine, loop)`"
        )
    return loop


def loop_speed(loop: asyncio.AbstractEventLoop) -> float:
    """Return the seconds on the loop's clock in one second of the wall clock: 1, except on a simulator's loop."""
    return float(getattr(loop, "speed", 1.0))


@final
class LoopGuard:
    """Guards that an object is used on the event loop that opened it, from `enter` to `leave`.

    Otherwise it raises `UsageError` with the fix.
    """

    __slots__ = ("_left", "_loop", "_what")

    def __init__(self, what: str) -> None:
        self._what = what
        self._loop: asyncio.AbstractEventLoop | None = None
        self._left: AsyncmigError | None = None

    def enter(self) -> None:
        """Bind to the running loop; raise `UsageError` the second time."""
        loop = running_loop(self._what)
        if self._loop is not None:
            raise UsageError(
                f"this {self._what} was entered before: one `async with` block each, and a new {self._what} "
                "for the next"
            )
        self._loop = loop

    def forget(self) -> None:
        """Undo `enter` after a failed start: the object may be entered again."""
        self._loop = None

    def leave(self, error: AsyncmigError) -> None:
        """Raise `error` from now on."""
        self._left = error

    def loop(self) -> asyncio.AbstractEventLoop:
        """Return the running loop; raise `UsageError` if it is another loop, or if the object was not entered."""
        if self._left is not None:
            raise copy.copy(self._left)
        loop = running_loop(self._what, self._loop)
        if self._loop is None:
            raise UsageError(
                f"this {self._what} is not open yet: make calls inside "
                f"`async with {self._what}(...) as {self._what.lower()}:`"
            )
        return loop


T = TypeVar("T")


def start_task(
    coroutine: Coroutine[object, object, T], *, name: str, context: Context | None = None
) -> "asyncio.Task[T]":
    """Return a task on the running loop that takes its first step only after the caller has returned to the loop.

    `loop.create_task` does not guarantee that: with `asyncio.eager_task_factory` (Python 3.12) it runs the coroutine
    up to its first suspension. A coroutine that clears the attribute in which its caller stores the task would then
    clear it before the caller sets it. So this bypasses the loop's task factory.
    """
    return asyncio.Task(coroutine, loop=asyncio.get_running_loop(), name=name, context=context)


def gradually(calls: Iterator[Callable[[], object]], loop: asyncio.AbstractEventLoop) -> None:
    """Make `calls`, each of which wakes a task: a few at once, and a few in each later turn of `loop`.

    Others who share the loop then need not wait for the next steps of thousands of tasks.
    """
    few = list(islice(calls, _PER_TURN))
    for call in few:
        call()
    if few:
        loop.call_soon(gradually, calls, loop)


async def run_all(work: Iterable[Callable[[], Awaitable[object]]]) -> None:
    """Run all of `work` concurrently, and wait until each has ended.

    If one raises, the others are cancelled, and that first error is raised, not in an exception group.
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
    """Run all of `work` concurrently, and wait until each has ended, even if others raise. Then raise the first
    error.

    If it is cancelled, it cancels all of them and waits until they have ended.
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
