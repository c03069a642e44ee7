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
"""The most tasks that are woken in one turn of the loop, because all of them may take their next step in one turn,
too."""


class AsyncOnly:
    """A base class whose `with` raises `UsageError`. Type checkers do not see it, because they report such a
    `with`."""

    __slots__ = ()

    if not TYPE_CHECKING:

        def __enter__(self):
            what = type(self).__name__
            raise UsageError(
                f"a {what} is used with `async with`, not `with`: put it into a coroutine, "
                "`async def main(): ...`, and start that with `asyncio.run(main())`"
            )

        def __exit__(self, *exc_info): ...  # `with` requires it before it calls `__enter__`


def running_loop(what: str, expected: asyncio.AbstractEventLoop | None = None) -> asyncio.AbstractEventLoop:
    """Return the running loop. Raises `UsageError` if there is none, or if it is not the expected one.

    `what`: the name of the object, for the error.
    """
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        raise UsageError(
            f"a {what} is used inside a coroutine that asyncio runs: put the calls into "
            "`async def main(): ...`, and start that with `asyncio.run(main())`"
        ) from None
    if expected is not None and loop is not expected:
        raise UsageError(
            f"this {what} belongs to another event loop: make one in each loop, or hand the call over to "
            "that loop with `asyncio.run_coroutine_threadsafe(coroutine, loop)`"
        )
    return loop


def loop_speed(loop: asyncio.AbstractEventLoop) -> float:
    """Return the seconds of the loop's clock in one real second: 1, except on the loop of a simulation."""
    return float(getattr(loop, "speed", 1.0))


@final
class LoopGuard:
    """Guards that an object is used on the event loop that opened it, between `enter` and `leave`.

    Otherwise `loop` raises `UsageError` with the fix. `what`: the name of the object's class.
    """

    __slots__ = ("_left", "_loop", "_what")

    def __init__(self, what: str) -> None:
        self._what = what
        self._loop: asyncio.AbstractEventLoop | None = None
        self._left: AsyncmigError | None = None

    def enter(self) -> None:
        """Bind the object to the running loop. Raises `UsageError` if it was entered before."""
        loop = running_loop(self._what)
        if self._loop is not None:
            raise UsageError(
                f"this {self._what} was entered before: one `async with` block each, and a new {self._what} "
                "for the next"
            )
        self._loop = loop

    def forget(self) -> None:
        """Undo `enter` after a failed start, so that the object can be entered again."""
        self._loop = None

    def leave(self, error: AsyncmigError) -> None:
        """Raise `error` from now on."""
        self._left = error

    def loop(self) -> asyncio.AbstractEventLoop:
        """Return the running loop. Raises `UsageError` if it is another one, or if the object was not entered."""
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

    `loop.create_task` does not guarantee that: with `asyncio.eager_task_factory` (Python 3.12), it runs the coroutine
    up to its first suspension. If the coroutine clears the attribute in which its caller stores the task, it would
    clear it before the caller sets it. Therefore this does not use the loop's task factory.
    """
    return asyncio.Task(coroutine, loop=asyncio.get_running_loop(), name=name, context=context)


def gradually(calls: Iterator[Callable[[], object]], loop: asyncio.AbstractEventLoop) -> None:
    """Make `calls`, each of which wakes a task: a few now, and a few in each later turn of `loop`.

    Other tasks then need not wait for the next steps of thousands of tasks.
    """
    few = list(islice(calls, _PER_TURN))
    for call in few:
        call()
    if few:
        loop.call_soon(gradually, calls, loop)


async def run_all(work: Iterable[Callable[[], Awaitable[object]]]) -> None:
    """Run all functions concurrently, and wait until each has ended.

    If one raises, the others are cancelled, and the first error is raised, without an exception group.
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
    """Run all functions concurrently, and wait until each has ended, even if others raise. Then raise the first
    error.

    If this is cancelled, it cancels all functions, and waits until they have ended.
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
