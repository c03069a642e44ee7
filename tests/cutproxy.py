"""A way to a server that can be cut."""

import asyncio
from contextlib import suppress
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit


class CutProxy:
    """Passes a TCP connection on. `cut`: nothing passes, and nothing is closed, as when a cable is pulled."""

    def __init__(self, url: str) -> None:
        self._url = urlsplit(url)
        self.open = asyncio.Event()
        self.open.set()
        self.refuses = False
        """Whether connections are closed as soon as they are opened."""
        self.last_words = b""
        """What passes to the server once. Its answer does not pass: all connections break instead."""
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None] | None] = set()

    @property
    def url(self) -> str:
        host, port = self._server.sockets[0].getsockname()[:2]
        user, at, _ = self._url.netloc.rpartition("@")
        return self._url._replace(netloc=f"{user}{at}{host}:{port}").geturl()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._server.close()
        self.open.set()
        while tasks := [task for task in self._tasks if task is not None and not task.done()]:
            self.break_off()
            await asyncio.wait(tasks, timeout=0.1)

    def break_off(self) -> None:
        """Close every connection."""
        for writer in self._writers:
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._tasks.add(asyncio.current_task())
        try:
            await self.open.wait()
            if not self.refuses:
                await self._connect(reader, writer)
        finally:
            writer.close()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):  # the server may be stopped
            there, back = await asyncio.open_connection(self._url.hostname, self._url.port)
            self._writers |= {writer, back}
            ending = asyncio.Event()  # whether the last words have passed on this connection
            try:
                await asyncio.gather(
                    self._pass_to_server(reader, back, ending), self._pass_to_client(there, writer, ending)
                )
            finally:
                self._writers -= {writer, back}
                back.close()

    async def _pass_to_server(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, ending: asyncio.Event
    ) -> None:
        while data := await reader.read(65536):
            await self.open.wait()
            writer.write(data)
            if self.last_words and self.last_words in data:
                self.last_words = b""
                ending.set()
        writer.close()

    async def _pass_to_client(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, ending: asyncio.Event
    ) -> None:
        while data := await reader.read(65536):
            await self.open.wait()
            if ending.is_set():  # the server has answered the last words, so it has carried them out
                self.break_off()
                return
            writer.write(data)
        writer.close()
