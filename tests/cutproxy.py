"""A TCP proxy that can interrupt the connections to a server."""

import asyncio
from contextlib import suppress
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit


class CutProxy:
    """Forwards TCP connections to the server at `url`.

    While `open` is not set, it forwards no data and closes no connection, as when the network is down.
    """

    def __init__(self, url: str) -> None:
        self._url = urlsplit(url)
        self.open = asyncio.Event()
        self.open.set()
        self.refuses = False
        """Whether the proxy closes each connection as soon as it is opened."""
        self.drop_reply_to = b""
        """When a client sends these bytes, the proxy forwards them, and closes all connections instead of the reply.

        This happens once: the proxy then clears the attribute.
        """
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
            self.close_connections()
            await asyncio.wait(tasks, timeout=0.1)

    def close_connections(self) -> None:
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
            server_reader, server_writer = await asyncio.open_connection(self._url.hostname, self._url.port)
            self._writers |= {writer, server_writer}
            dropping = asyncio.Event()  # set once `drop_reply_to` was forwarded on this connection
            try:
                await asyncio.gather(
                    self._forward_to_server(reader, server_writer, dropping),
                    self._forward_to_client(server_reader, writer, dropping),
                )
            finally:
                self._writers -= {writer, server_writer}
                server_writer.close()

    async def _forward_to_server(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, dropping: asyncio.Event
    ) -> None:
        while data := await reader.read(65536):
            await self.open.wait()
            writer.write(data)
            if self.drop_reply_to and self.drop_reply_to in data:
                self.drop_reply_to = b""
                dropping.set()
        writer.close()

    async def _forward_to_client(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, dropping: asyncio.Event
    ) -> None:
        while data := await reader.read(65536):
            await self.open.wait()
            if dropping.is_set():  # the server has replied, so it has executed the request
                self.close_connections()
                return
            writer.write(data)
        writer.close()
