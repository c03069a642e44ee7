"""A simulated process that dies at a journal write or a request. Its journal and files stay as they were then."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Self, TypeVar
from urllib.parse import urlsplit

import looptime
from inprocess import InProcess

from asyncmig._io.transport import Body, Response, Timeouts, Transport
from asyncmig.journal import (
    Activity,
    ClaimPort,
    Instruction,
    JournalEvent,
    JournalPort,
    MemoryJournal,
    Wanted,
)

T = TypeVar("T")


class Life:
    """Numbers the journal writes and requests of a process. It can die just before or just after one of them."""

    def __init__(
        self, dies_at: int | None = None, *, after: bool = False, kill: Callable[[], None] = lambda: None
    ) -> None:
        """Choose the death of the process.

        It dies before operation `dies_at`, or after it with `after`. `kill` kills a real process. Without `kill`,
        `live` simulates the death.
        """
        self._dies_at, self._after, self._kill = dies_at, after, kill
        self.points: list[str] = []
        self.died = asyncio.Event()

    def wake(self) -> None:
        """Let the process continue: it was suspended, not dead."""
        self.died.clear()

    @asynccontextmanager
    async def point(self, name: str) -> AsyncIterator[None]:
        await self._continue_or_die()
        self.points.append(name)
        number = len(self.points)
        await self._continue_or_die(dies=number == self._dies_at and not self._after)
        dies = number == self._dies_at and self._after
        try:
            yield
        except Exception:
            await self._continue_or_die(dies=dies)
            raise
        await self._continue_or_die(dies=dies)

    async def _continue_or_die(self, *, dies: bool = False) -> None:
        if dies:
            self.died.set()
            self._kill()
        if self.died.is_set():
            await asyncio.Event().wait()  # a dead process runs nothing, not even its clean-up


class MortalTransport:
    """A transport of a process that may die."""

    def __init__(self, transport: Transport, life: Life) -> None:
        self._transport, self._life = transport, life

    @asynccontextmanager
    async def exchange(
        self, method: str, url: str, *, headers: Mapping[str, str], body: Body | None, timeouts: Timeouts
    ) -> AsyncIterator[Response]:
        exchange = self._transport.exchange(method, url, headers=headers, body=body, timeouts=timeouts)
        async with AsyncExitStack() as stack:
            async with self._life.point(f"{method} {urlsplit(url).path.rpartition('/')[2]}"):
                answer = await stack.enter_async_context(exchange)
            yield answer

    async def aclose(self) -> None:
        await self._transport.aclose()


class MortalClaim:
    """A claim of a process that may die."""

    def __init__(self, claim: ClaimPort, life: Life) -> None:
        self._claim, self._life = claim, life
        self.external_id, self.token = claim.external_id, claim.token

    @property
    def state(self) -> bytes | None:
        return self._claim.state

    async def write(self, kind: str, detail: bytes, state: bytes) -> None:
        async with self._life.point(f"write {kind}"):
            await self._claim.write(kind, detail, state)

    async def release(self) -> None:
        if not self._life.died.is_set():
            async with self._life.point("release"):
                await self._claim.release()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.release()


class MortalJournal:
    """A journal of a process that may die."""

    def __init__(self, journal: JournalPort, life: Life) -> None:
        self._journal, self._life = journal, life

    async def claim(self, external_id: str) -> MortalClaim:
        async with self._life.point("claim"):
            claim = await self._journal.claim(external_id)
        return MortalClaim(claim, self._life)

    async def state(self, external_id: str) -> bytes | None:
        return await self._journal.state(external_id)

    async def activity(self, external_id: str | None = None) -> dict[str, Activity]:
        return await self._journal.activity(external_id)

    async def instruct(self, external_id: str, instruction: Instruction) -> None:
        await self._journal.instruct(external_id, instruction)

    async def delete_instruction(self, external_id: str, instruction: Instruction) -> None:
        await self._journal.delete_instruction(external_id, instruction)

    async def instruction(self, external_id: str) -> Instruction | None:
        return await self._journal.instruction(external_id)

    async def instructions(self, wanted: Wanted | None = None) -> dict[str, Instruction]:
        return await self._journal.instructions(wanted)

    async def forget(self, external_id: str) -> None:
        await self._journal.forget(external_id)

    async def states(self) -> dict[str, bytes]:
        return await self._journal.states()

    async def events(
        self, external_id: str | None = None, *, after: int = 0, limit: int | None = None
    ) -> list[JournalEvent]:
        return await self._journal.events(external_id, after=after, limit=limit)


Process = Callable[[Transport, JournalPort], Awaitable[T]]


async def live(
    process: Process[T], transport: InProcess, journal: MemoryJournal, folder: Path, life: Life
) -> tuple[T | None, MemoryJournal]:
    """Run a process until it ends or dies. Return its result, and a copy of the journal without claims.

    The files in `folder` stay as they were at the death: changes by the clean-up of the task are undone.
    """
    task = asyncio.ensure_future(process(MortalTransport(transport, life), MortalJournal(journal, life)))
    died = asyncio.ensure_future(life.died.wait())
    await asyncio.wait((task, died), return_when=asyncio.FIRST_COMPLETED)
    died.cancel()
    if task.done():
        return task.result(), journal.copy_without_claims()
    transport.disconnected = True
    copy = folder.with_name(f"{folder.name}-left")
    if folder.exists():
        shutil.copytree(folder, copy)
    task.cancel()
    await asyncio.wait([task])
    transport.disconnected = False
    shutil.rmtree(folder, ignore_errors=True)
    if copy.exists():
        copy.rename(folder)
    return None, journal.copy_without_claims()


class Inline(ThreadPoolExecutor):
    """Runs each function at once in the calling thread, so that all runs of a test have the same order."""

    def submit(self, function: Callable[..., T], /, *args: object, **kwargs: object) -> "Future[T]":
        future: Future[T] = Future()
        try:
            future.set_result(function(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)
        return future


def virtual_loop() -> asyncio.AbstractEventLoop:
    """Return a loop with a virtual clock that starts at 0, and without threads: all runs have the same order."""
    loop = looptime.new_event_loop(noop_cycles=0)
    loop.set_default_executor(Inline(1))
    return loop


def run(main: Coroutine[object, object, T]) -> T:
    """Run `main` on a virtual loop."""
    with asyncio.Runner(loop_factory=virtual_loop) as runner:
        return runner.run(main)


class Turns:
    """Counts the iterations of a loop, and cancels a task at one of them."""

    def __init__(self, cancel_at: int | None = None) -> None:
        self._cancel_at, self.count = cancel_at, 0
        self._task: asyncio.Task[object] | None = None

    def watch(self, task: "asyncio.Task[object]") -> None:
        self._task, self.count = task, 0

    def stop(self) -> None:
        self._task = None

    def loop(self) -> asyncio.AbstractEventLoop:
        loop = virtual_loop()
        run_once = loop._run_once

        def turn() -> None:
            if self._task is not None:
                self.count += 1
                if self.count == self._cancel_at:
                    self._task.cancel()
            run_once()

        loop._run_once = turn
        return loop
