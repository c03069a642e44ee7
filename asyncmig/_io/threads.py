"""Blocking work in a thread that ends before its caller goes on, also when the caller is cancelled."""

import asyncio
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from types import TracebackType
from typing import IO, ParamSpec, Self, TypeVar, final

import anyio

__all__ = ["WriteBehind", "begin", "finish", "in_thread", "outlast", "write_all"]

P = ParamSpec("P")
T = TypeVar("T")
_BATCH = 2 * 1024 * 1024
_PIECES = 1024
"""The most that one `writev` takes (IOV_MAX, limits.h)."""


async def in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run `function` in the loop's executor and return what it returns.

    Cancelled, this waits for the thread first: a file must not be closed while another thread reads it. The loop's
    own executor, because a loop with a virtual clock can tell that it has work.
    """
    return await finish(begin(function, *args, **kwargs))


def begin(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> "asyncio.Future[T]":
    """Start `function` in the loop's executor; whoever starts it must `finish` it."""
    return asyncio.get_running_loop().run_in_executor(None, partial(function, *args, **kwargs))


async def finish(work: "asyncio.Future[T]") -> T:
    """Return what the work comes to; cancelled, wait for its thread first."""
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await outlast(work)
        raise


async def outlast(work: "asyncio.Future[T]") -> None:
    """Wait until the thread has ended, whoever cancels, and leave aside what came of it."""
    with anyio.CancelScope(shield=True):
        while not work.done():
            try:
                await asyncio.wait([work])
            except asyncio.CancelledError:
                continue
    if not work.cancelled():
        work.exception()


def write_all(file: IO[bytes], chunks: Sequence[bytes]) -> None:
    """Write to an unbuffered file, in as few calls as there can be. Blocks.

    After each call a thread has to win the interpreter's lock again, which costs more than the call does.
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
    """Writes to an unbuffered file in a thread while its caller fetches what comes next; 4 MiB and a chunk may wait.

    Leaving the block waits for the thread. What went wrong with a write is raised by one of the next, or at the end.
    """

    __slots__ = ("_file", "_held", "_size", "_work")

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._held: list[bytes] = []
        self._size = 0
        self._work: asyncio.Future[None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if exc_type is None:
            await self.settled()
        elif self._work is not None:
            await outlast(self._work)

    async def settled(self) -> None:
        """Wait until everything is written."""
        await self._turn()
        await self._settle()

    async def write(self, chunk: bytes) -> None:
        self._held.append(chunk)
        self._size += len(chunk)
        if self._size >= _BATCH:
            await self._turn()

    async def _turn(self) -> None:
        """Start to write what is held, once the batch before is written."""
        await self._settle()
        held, self._held, self._size = self._held, [], 0
        self._work = begin(write_all, self._file, held)

    async def _settle(self) -> None:
        work, self._work = self._work, None
        if work is not None:
            await finish(work)
