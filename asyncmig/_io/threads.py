"""Runs blocking work in a thread. The caller continues only after the thread has ended, even if it is cancelled."""

import asyncio
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import IO, ParamSpec, Self, TypeVar, final

import anyio

__all__ = ["WriteBehind", "begin", "finish", "in_thread", "wait_ended", "write_all"]

P = ParamSpec("P")
T = TypeVar("T")
_BATCH = 2 * 1024 * 1024
_PIECES = 1024
"""The most buffers of one `writev` (IOV_MAX, limits.h)."""


async def in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run `function` in the loop's executor, and return its result.

    If this is cancelled, it first waits for the thread, because a file must not be closed while a thread reads it. It
    uses the loop's own executor, so that a loop with a virtual clock waits for the work.
    """
    return await finish(begin(function, *args, **kwargs))


def begin(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> "asyncio.Future[T]":
    """Start `function` in the loop's executor. The caller must wait for it with `finish` or `wait_ended`."""
    return asyncio.get_running_loop().run_in_executor(None, partial(function, *args, **kwargs))


async def finish(work: "asyncio.Future[T]") -> T:
    """Return the result of the work. If this is cancelled, it first waits for the thread."""
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await wait_ended(work)
        raise


async def wait_ended(work: "asyncio.Future[T]") -> None:
    """Wait until the thread has ended, even if the caller is cancelled. Its result is ignored."""
    if not work.done():
        with anyio.CancelScope(shield=True):
            while not work.done():
                try:
                    await asyncio.wait([work])
                except asyncio.CancelledError:
                    continue
    if not work.cancelled():
        work.exception()


def write_all(file: IO[bytes], chunks: Sequence[bytes]) -> None:
    """Write to an unbuffered file in as few system calls as possible. Blocks.

    After each call the thread must acquire the interpreter lock again, which takes longer than the call.
    """
    for start in range(0, len(chunks), _PIECES):
        pieces = chunks[start : start + _PIECES]
        written = 0 if sys.platform == "win32" else os.writev(file.fileno(), pieces)
        if written < sum(map(len, pieces)):
            rest = memoryview(b"".join(pieces))[written:]
            while rest:
                rest = rest[file.write(rest) :]


@final
class WriteBehind:
    """Writes to an unbuffered file in a thread, while the caller fetches more data. Holds at most 4 MiB and one
    chunk.

    The exit of the `async with` block waits for the thread. One of the next calls, or the exit, raises the error of a
    write.
    """

    __slots__ = ("_file", "_held", "_size", "_work")

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._held: list[bytes] = []
        self._size = 0
        self._work: asyncio.Future[None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, exc_type: type[BaseException] | None, *_: object) -> None:
        if exc_type is None:
            await self.settled()
        elif self._work is not None:
            await wait_ended(self._work)

    async def settled(self) -> None:
        """Wait until everything is written."""
        if self._held:
            await self._turn()
        await self._settle()

    async def write(self, chunk: bytes) -> None:
        """Write a chunk, together with others. Raises the error of an earlier write."""
        self._held.append(chunk)
        self._size += len(chunk)
        if self._size >= _BATCH:
            await self._turn()

    async def _turn(self) -> None:
        """Start to write the held chunks, once the previous batch is written."""
        await self._settle()
        held, self._held, self._size = self._held, [], 0
        self._work = begin(write_all, self._file, held)

    async def _settle(self) -> None:
        work, self._work = self._work, None
        if work is not None:
            await finish(work)
