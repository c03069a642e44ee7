"""The content of an upload: a file, bytes or a stream. It is counted and hashed while it is read."""

import asyncio
import hashlib
import inspect
import os
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import IO, Protocol, Self, TypeGuard, cast, final

from aiolimiter import AsyncLimiter

from asyncmig._core.arguments import checked_text
from asyncmig._io.threads import begin, finish, in_thread, wait_ended
from asyncmig.customers.files import check_utf8, raise_unreadable, size_of
from asyncmig.errors import InvalidInput

__all__ = ["BinaryFile", "ByteThrottle", "Content", "Progress", "Stream", "content_of"]


Stream = AsyncIterable[bytes] | Callable[[], AsyncIterable[bytes]]
"""An async iterable of bytes, or a callable that returns a new one, so that a failed upload can be repeated."""
BinaryFile = IO[bytes]
"""A seekable binary file object. Each attempt reads it from its first position. It is never closed."""
Progress = Callable[[int, int], None]
"""Called with the number of bytes sent so far and the total. It starts at 0 again when an upload is repeated."""

_CHUNK = 256 * 1024
_AHEAD = 2 * 1024 * 1024
"""Bytes that a thread reads at once, because the exchange between threads takes longer than a read of one chunk."""
_SLICES = 8
"""Slices per second. After each slice another upload can continue."""
_EXACT = 1.0 - 1e-6
"""The part of an amount that suffices, because rounding must not cost another sleep."""


@final
class ByteThrottle:
    """Limits the bytes per second of all uploads together, first come, first served.

    Raises `InvalidInput` for a rate of less than one byte a second.
    """

    __slots__ = ("_bucket", "_rate", "_turn", "slice")

    def __init__(self, rate: float) -> None:
        if not 1.0 <= rate < float("inf"):
            raise InvalidInput("upload_bytes_per_second", rate, "must be at least one byte a second")
        self._rate = rate
        self.slice: int = max(1, int(rate / _SLICES))
        """The most bytes that one `take` may request."""
        burst = max(rate / 2, 1.0)
        self._bucket = AsyncLimiter(burst, burst / rate)
        self._turn = asyncio.Lock()

    async def take(self, amount: int) -> None:
        """Wait until `amount` bytes, at most one slice, may be sent."""
        async with self._turn:
            # Not `acquire` alone: it prefers small amounts, and it would spin on a clock that stands still.
            while not self._bucket.has_capacity(amount * _EXACT):  # noqa: ASYNC110
                await asyncio.sleep(amount / self._rate / 2)
            await self._bucket.acquire(amount * _EXACT)


class _Digest(Protocol):
    def update(self, data: bytes, /) -> None: ...
    def hexdigest(self) -> str: ...


_Open = Callable[[_Digest], AbstractAsyncContextManager[AsyncIterator[bytes]]]
"""Opens content for one attempt. The digest is updated while the content is read."""


@final
@dataclass(slots=True, eq=False)
class Content:
    """The content of one upload."""

    name: str
    size: int
    """Bytes."""
    open_chunks: _Open
    once: bool = False
    """Whether the content can be read only once."""
    was_read: bool = False
    """Whether any of the content was read."""

    @asynccontextmanager
    async def attempt(
        self, pace: ByteThrottle | None, progress: Progress | None
    ) -> AsyncGenerator["Attempt"]:
        """Open the content for one attempt. After the block, nothing reads it any more."""
        digest = hashlib.sha256()
        async with self.open_chunks(digest) as chunks:
            attempt = Attempt(self, chunks, digest, pace, progress)
            try:
                yield attempt
            finally:
                if not attempt.idle.is_set():
                    # Another task still reads the content, and a generator cannot be closed while it runs.
                    await finish(asyncio.ensure_future(attempt.idle.wait()))


@final
class Attempt:
    """The bytes of one attempt as an async iterator.

    It is not a generator, because a running generator cannot be closed: aiohttp reads the body in a task of its own,
    and cancels that task as soon as the server has responded.
    """

    __slots__ = ("_chunks", "_content", "_given", "_pace", "_progress", "_rest", "digest", "failure", "idle")

    def __init__(
        self,
        content: Content,
        chunks: AsyncIterator[bytes],
        digest: _Digest,
        pace: ByteThrottle | None,
        progress: Progress | None,
    ) -> None:
        self._content, self._chunks, self._pace, self._progress = content, chunks, pace, progress
        self.digest: _Digest = digest
        """The SHA-256 of the bytes read so far."""
        self._rest = memoryview(b"")
        self._given = 0
        self.idle: asyncio.Event = asyncio.Event()
        """Set while nothing reads the content."""
        self.idle.set()
        self.failure: Exception | None = None
        """Why the content could not be read. The transport reports only a broken connection."""

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        self.idle.clear()
        try:
            return await self._next()
        except StopAsyncIteration:
            raise
        except Exception as error:
            self.failure = error
            raise
        finally:
            self.idle.set()

    async def _next(self) -> bytes:
        if self._given and self._progress is not None:
            self._progress(self._given, self._content.size)  # the previous chunk was sent
        if self._given == self._content.size:
            raise StopAsyncIteration
        piece = self._rest or memoryview(await self._next_piece())
        most = _CHUNK if self._pace is None else min(_CHUNK, self._pace.slice)
        self._rest, chunk = piece[most:], bytes(piece[:most])
        if self._pace is not None:
            await self._pace.take(len(chunk))
        self._given += len(chunk)
        return chunk

    async def _next_piece(self) -> bytes:
        """Return the next piece. Raises `InvalidInput` if the content is shorter or longer than its size."""
        content = self._content
        content.was_read = True
        chunk = await _next_chunk(self._chunks)
        if not chunk:
            raise _wrong_size(content, f"ended after {self._given} bytes")
        left = content.size - self._given - len(chunk)
        if left < 0 or (left == 0 and await _next_chunk(self._chunks)):
            raise _wrong_size(content, "has more bytes")
        return chunk


async def _next_chunk(chunks: AsyncIterator[bytes]) -> bytes:
    """Return the next non-empty chunk, or an empty one at the end."""
    async for chunk in chunks:
        if chunk:
            return chunk
    return b""


def _wrong_size(content: Content, what: str) -> InvalidInput:
    return InvalidInput(
        "files",
        content.name,
        f"{what}, but its size was {content.size}: it has changed, or the size was wrong",
    )


def content_of(
    source: Path | str | bytes | BinaryFile | Stream, *, name: str | None, size: int | None
) -> Content:
    """Return the content of `source`.

    `name`: the file name; required for bytes and streams. `size`: the number of bytes; required for a stream. Raises
    `InvalidInput` for a source that cannot be uploaded, and for a wrong or missing name or size.
    """
    if isinstance(source, str):
        if "\n" in source:
            raise InvalidInput(
                "source", source[:40], "is text, and not a path: give it as bytes, with a name"
            )
        source = Path(source)
    if isinstance(source, Path):
        name, known, opener = name or source.name, size_of(source), partial(_file_chunks, source)
        check_utf8("name", name)
        return _measured(name, size, known, opener)
    if _is_file(source):
        return _of_file(source, name=name, size=size)
    if not isinstance(source, bytes | bytearray | memoryview | AsyncIterable) and not callable(source):
        reason = (
            "must be a path, bytes, a seekable binary file, an async iterable, or a callable that opens one"
        )
        raise InvalidInput("source", type(source).__name__, reason)
    if name is None:
        raise InvalidInput("name", name, "bytes and streams need a file name")
    name = checked_text("name", name)
    if isinstance(source, bytes | bytearray | memoryview):
        if not source:
            raise InvalidInput("files", name, "is empty")
        return _measured(name, size, len(source), partial(_object_chunks, BytesIO(source), 0, name))
    if size is None or size < 1:
        raise InvalidInput("size", size, "a stream needs its size in bytes, more than 0")
    return Content(name, size, partial(_stream_chunks, source), once=isinstance(source, AsyncIterator))


def _is_file(source: object) -> TypeGuard[BinaryFile]:
    return hasattr(source, "read") and not isinstance(source, AsyncIterable)


def _of_file(file: BinaryFile, *, name: str | None, size: int | None) -> Content:
    """Return the content of a file object from its current position. Raises `InvalidInput` unless it can seek."""
    shown = type(file).__name__
    try:
        is_binary, can_seek = isinstance(cast(object, file.read(0)), bytes), file.seekable()
        start = file.tell() if can_seek else 0
        length = file.seek(0, os.SEEK_END) - start if can_seek else 0
        file.seek(start) if can_seek else None
    except (AttributeError, OSError, TypeError, ValueError) as error:  # closed, or opened for writing only
        raise InvalidInput("source", shown, f"cannot be read: {error}") from error
    if not is_binary:
        raise InvalidInput("source", shown, 'was opened as text: open it with "rb"')
    if not can_seek:
        reason = "cannot seek, so it cannot be read again for a repeat: give its bytes, or a callable that opens it"
        raise InvalidInput("source", shown, reason)
    given = getattr(file, "name", None) if name is None else name
    if not isinstance(given, str):
        raise InvalidInput("name", name, "a file object without a name needs one")
    name = checked_text("name", given if name else Path(given).name)
    if length < 1:
        raise InvalidInput(
            "source", name, f"has no bytes after its position, {start}: seek(0) to upload all of it"
        )
    return _measured(name, size, length, partial(_object_chunks, file, start, name))


def _measured(name: str, stated: int | None, size: int, open_chunks: _Open) -> Content:
    if stated not in (None, size):
        raise InvalidInput("size", stated, f"is wrong: {name} has {size} bytes")
    return Content(name, size, open_chunks)


@asynccontextmanager
async def _file_chunks(path: Path, digest: _Digest) -> AsyncGenerator[AsyncIterator[bytes]]:
    file = _LazyFile(path)
    try:
        async with aclosing(_read(file, path.name, digest)) as chunks:
            yield chunks
    finally:
        file.close()


@asynccontextmanager
async def _object_chunks(
    file: BinaryFile, start: int, name: str, digest: _Digest
) -> AsyncGenerator[AsyncIterator[bytes]]:
    try:
        await in_thread(file.seek, start)
    except (OSError, ValueError) as error:
        raise_unreadable(name, error)
    async with aclosing(_read(file, name, digest)) as chunks:
        yield chunks


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


@final
class _LazyFile:
    """A file that is opened by the first read, which runs in a thread, and closed by a read that reaches its end."""

    __slots__ = ("_file", "_path")

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryFile | None = None

    def read(self, size: int, /) -> bytes:
        """Return the next bytes; fewer than `size` only at the end."""
        if self._file is None:
            self._file = self._path.open("rb")
        if self._file.closed:
            return b""
        piece = self._file.read(size)
        if len(piece) < size:
            self.close()
        return piece

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


async def _read(file: _Readable, name: str, digest: _Digest) -> AsyncGenerator[bytes]:
    """Yield a file in pieces. A thread reads and hashes the next piece while the network sends the present one."""

    def read() -> bytes:
        """Return the next `_AHEAD` bytes; fewer only at the end of the file."""
        piece = file.read(_AHEAD)
        while piece and len(piece) < _AHEAD and (more := file.read(_AHEAD - len(piece))):
            piece += more
        digest.update(piece)
        return piece

    ahead = begin(read)
    try:
        while piece := await asyncio.shield(ahead):
            if len(piece) == _AHEAD:
                ahead = begin(read)
            yield piece
            if len(piece) < _AHEAD:
                return
    except (OSError, ValueError) as error:  # ValueError: the file object was closed meanwhile
        raise_unreadable(name, error)
    finally:
        await wait_ended(ahead)  # a file must not be closed while it is read


@asynccontextmanager
async def _stream_chunks(source: Stream, digest: _Digest) -> AsyncGenerator[AsyncIterator[bytes]]:
    chunks: AsyncIterable[bytes] = source if isinstance(source, AsyncIterable) else source()  # pyright: ignore[reportUnknownVariableType] - it may be callable too
    if not isinstance(chunks, AsyncIterable):  # pyright: ignore[reportUnnecessaryIsInstance] - a caller's own
        if inspect.iscoroutine(chunks):
            chunks.close()
        raise InvalidInput(
            "files", type(chunks).__name__, "was returned by the callable, and is not an async iterable"
        )
    try:
        async with aclosing(_hashed(chunks, digest)) as hashed:
            yield hashed
    finally:
        if chunks is not source and isinstance(chunks, AsyncGenerator):
            await chunks.aclose()  # no other code has a reference to the generator


async def _hashed(chunks: AsyncIterable[bytes], digest: _Digest) -> AsyncGenerator[bytes]:
    async for chunk in chunks:
        if not isinstance(chunk, bytes | bytearray | memoryview):  # pyright: ignore[reportUnnecessaryIsInstance] - a caller's
            raise InvalidInput(
                "files", type(chunk).__name__, "was yielded by a stream, which must yield bytes"
            )
        digest.update(chunk)
        yield bytes(chunk)
