"""A request whose result many tasks need: it is sent once for all that wait, and its result is kept for a while."""

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import Context
from typing import Generic, TypeVar, final

__all__ = ["SharedRead"]

T = TypeVar("T")


@final
class SharedRead(Generic[T]):
    """Keeps the last result of a read. Tasks that ask at the same time share one read, and its failure."""

    __slots__ = ("_at", "_kept", "_task", "_waiting")

    def __init__(self) -> None:
        self._kept: tuple[T] | None = None
        self._at = 0.0
        self._task: asyncio.Task[T] | None = None
        self._waiting = 0

    async def get(self, read: Callable[[], Awaitable[T]], *, max_age: float) -> T:
        """Return the kept result if it is at most `max_age` seconds old, or else what `read` returns now.

        Raises what `read` raises. The read is cancelled if all tasks that wait for it are.
        """
        loop = asyncio.get_running_loop()
        if self._kept is not None and loop.time() - self._at <= max_age:
            return self._kept[0]
        if self._task is None:
            # In an empty context, because the read belongs to no customer and to no step of one.
            self._task = loop.create_task(self._read(read), context=Context())
        task = self._task
        self._waiting += 1
        try:
            return await asyncio.shield(task)
        finally:
            self._waiting -= 1
            if not self._waiting:
                task.cancel()

    async def _read(self, read: Callable[[], Awaitable[T]]) -> T:
        try:
            value = await read()
        finally:
            self._task = None
        self._kept, self._at = (value,), asyncio.get_running_loop().time()
        return value
